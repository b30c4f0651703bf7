#!/bin/sh
# One request, so that the server has opened what it opens once.
set -eu
curl --silent --show-error --fail --output /dev/null "http://$QUORATE_HOST:$QUORATE_PORT_80/"
