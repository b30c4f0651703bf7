#!/bin/bash
# What a client of the compute campaign does: it asks for six results, one after another, over one connection. Each answer says
# whether the kernel's own checks were met; the campaign compares the digests, too. (bash: it opens connections itself.)
set -eu
exec 3<>"/dev/tcp/$QUORATE_HOST/$QUORATE_PORT_7000"
for request in "run 1 1" "run 4 2" "run 16 3" "run 4 4" "run 8 5" "run 1 6"; do
  printf '%s\n' "$request" >&3
  IFS= read -r answer <&3
  printf '%s\n' "$answer"
done
printf 'quit\n' >&3
IFS= read -r answer <&3
printf '%s\n' "$answer"
