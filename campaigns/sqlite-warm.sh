#!/bin/bash
# Makes the database on the disk: a table of accounts whose balances add up to a round sum, and a table of transfers.
# (bash: it opens connections itself.)
set -eu
exec 3<>"/dev/tcp/$QUORATE_HOST/$QUORATE_PORT_5000"
cat >&3 <<'SQL'
CREATE TABLE accounts (id INTEGER PRIMARY KEY, owner TEXT NOT NULL, balance INTEGER NOT NULL);
CREATE TABLE transfers (id INTEGER PRIMARY KEY, debit INTEGER NOT NULL, credit INTEGER NOT NULL, amount INTEGER NOT NULL);
CREATE INDEX transfers_by_debit ON transfers (debit);
BEGIN;
WITH RECURSIVE up (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM up WHERE n < 500)
  INSERT INTO accounts SELECT n, 'owner ' || n, 1000 FROM up;
COMMIT;
SELECT count(*), sum(balance) FROM accounts;
.quit
SQL
cat <&3
