#!/bin/sh
# What a client of the lighttpd campaign does: curl fetches a page, a larger file and parts of it, asks for what is not there, and
# asks whether something has changed; eight requests over one connection, four over another.
# The Date header is the guest's own clock, which a trial plays from its beginning: the same in every healthy trial.
set -eu
url=http://$QUORATE_HOST:$QUORATE_PORT_80

# --next: another request over the same connection.
curl --silent --show-error --include --http1.1 \
  "$url/" \
  --next --silent --include "$url/numbers.txt" \
  --next --silent --include --range 1000-1999 "$url/numbers.txt" \
  --next --silent --include --head "$url/numbers.txt" \
  --next --silent --include "$url/style.css" \
  --next --silent --include "$url/missing.html" \
  --next --silent --include --header 'If-None-Match: "never"' "$url/" \
  --next --silent --include --range -100 "$url/numbers.txt"

curl --silent --show-error --include --http1.1 \
  "$url/index.html" \
  --next --silent --include "$url/data.json" \
  --next --silent --include --request DELETE "$url/index.html" \
  --next --silent --include "$url/?query=ignored"
