#!/bin/bash
# What a client of the SQLite campaign does: three connections, one after another. Money moves between accounts in transactions (each
# ends with an fsync on the voted disk), one is rolled back, a script is read from the disk, and everything is read and checked again:
# what a bank would not like to see altered. Nothing in it is random or asks for the time. (bash: it opens connections itself.)
set -eu

# Sends the SQL on standard input over a connection of its own and prints all that comes back.
sql() {
  exec 3<>"/dev/tcp/$QUORATE_HOST/$QUORATE_PORT_5000"
  cat >&3
  printf '.quit\n' >&3
  cat <&3
  exec 3>&-
}

sql <<'SQL'
SELECT owner, balance FROM accounts WHERE id IN (7, 77, 477);
BEGIN;
UPDATE accounts SET balance = balance - 250 WHERE id = 7;
UPDATE accounts SET balance = balance + 250 WHERE id = 77;
INSERT INTO transfers (debit, credit, amount) VALUES (7, 77, 250);
COMMIT;
SELECT id, balance FROM accounts WHERE balance <> 1000 ORDER BY id;
SQL

sql <<'SQL'
BEGIN;
UPDATE accounts SET balance = balance - 100 WHERE id <= 200;
UPDATE accounts SET balance = balance + 100 WHERE id > 200 AND id <= 400;
INSERT INTO transfers (debit, credit, amount) SELECT id, id + 200, 100 FROM accounts WHERE id <= 200;
COMMIT;
BEGIN;
DELETE FROM accounts;
ROLLBACK;
SELECT count(*), min(balance), max(balance), sum(balance) FROM accounts;
SQL

sql <<'SQL'
SELECT count(*), sum(amount), sum(debit * 31 + credit) FROM transfers;
SELECT sum(id * balance) FROM accounts;
SELECT debit, count(*) FROM transfers WHERE debit BETWEEN 5 AND 9 GROUP BY debit;
.read /data/months.sql
PRAGMA integrity_check;
SQL
