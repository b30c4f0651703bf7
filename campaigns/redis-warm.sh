#!/bin/sh
# Fills Redis before the checkpoint that all trials begin with: enough of each type that the heap has something to lose.
# Run as the campaign's warm-up, with QUORATE_HOST and QUORATE_PORT_6379 set.
set -eu
. "$(dirname "$0")/redis-cli.sh"

cli <<'COMMANDS'
EVAL "for i = 1, 500 do redis.call('SET', 'key:' .. i, 'value of key ' .. i) end return 'strings'" 0
EVAL "for i = 1, 500 do redis.call('HSET', 'hash', 'field:' .. i, i * i) end return 'hash'" 0
EVAL "for i = 1, 500 do redis.call('RPUSH', 'list', 'element ' .. i) end return 'list'" 0
EVAL "for i = 1, 500 do redis.call('ZADD', 'scores', (i * 7919) % 500, 'member:' .. i) end return 'scores'" 0
SET visitors 1000
COMMANDS
