# Sourced by the Redis scripts: `cli` is redis-cli, with one connection for all the commands on its standard input. It is the
# host's, or the one of the appliance's own package that `make test` and `make campaign` unpack.
# shellcheck shell=sh
repository=$(dirname "$0")/..
if command -v redis-cli >/dev/null; then
  redis_cli=redis-cli
elif [ -x "$repository/target/redis-cli" ]; then
  redis_cli=$repository/target/redis-cli
else
  echo "$0: there is no redis-cli: 'make campaign' and 'make test' unpack one (target/release/clients), or install the package redis-tools" >&2
  exit 127
fi

cli() {
  "$redis_cli" -h "$QUORATE_HOST" -p "$QUORATE_PORT_6379"
}
