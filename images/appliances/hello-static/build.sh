#!/usr/bin/env bash
# Makes root/bin/hello, beside this script or in the directory given.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
to=${1:-$here}
mkdir -p "$to/root/bin"
cc -O2 -static -o "$to/root/bin/hello" "$here/hello.c"
