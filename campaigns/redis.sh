#!/bin/sh
# What a client of the Redis campaigns does: 24 commands over one connection and, after it has been closed, one more.
# It reads what the warm-up wrote and what it has written itself, so that a value which a fault has changed is seen by somebody.
# Nothing in it is random or depends on the time of day: the answers of two healthy runs are the same bytes.
set -eu
. "$(dirname "$0")/redis-cli.sh"

cli <<'COMMANDS'
PING
GET key:1
GET key:250
MGET key:100 key:200 key:300 key:400 key:500
SET greeting "hello from the campaign"
GET greeting
APPEND greeting ", again"
STRLEN greeting
INCRBY visitors 42
HGET hash field:77
HMGET hash field:1 field:250 field:500
HSET moon planet Jupiter name Io
HGETALL moon
LRANGE list 240 250
RPUSH queue a b c
LPOP queue
ZRANGE scores 0 9 WITHSCORES
ZRANK scores member:123
ZADD scores 1000 last
SETRANGE key:250 6 OF
GETRANGE key:250 0 20
DEL key:1
EXISTS key:1
DBSIZE
COMMANDS

# A second connection finds what the first one left.
cli <<'COMMANDS'
GET visitors
COMMANDS
