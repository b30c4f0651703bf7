#!/bin/sh
# The guest book, run by the web server for each request. GET shows the page, POST (name=…&text=…) adds an entry and sends
# the browser back to the page.
#
# What visitors send is never run nor shown as it is: it goes into SQL as a string literal with its quotes doubled, and out of
# SQL with the five characters escaped that mean something in HTML.

database=${GUESTBOOK:-/data/guestbook.db}
longest_body=8192

sql() {
  # Another request may be writing: wait for it, up to 10 s.
  /usr/bin/sqlite3 -batch -bail -cmd '.timeout 10000' "$database" "$1"
}

fail() {
  printf 'Status: %s\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n%s\n' "$1" "$2"
  exit 0
}

# What is too long is read all the same, up to a bound: a server that answers before it has read resets the connection, and
# the browser might never show the answer.
too_long() {
  /bin/busybox head -c 1000000 >/dev/null
  fail '413 Payload Too Large' 'The entry is too long.'
}

# The value of a field of the form, decoded: '+' is a space, %XX a byte.
field() {
  rest="&$body"
  case $rest in
    *"&$1="*) rest=${rest#*"&$1="} ;;
    *) rest= ;;
  esac
  /bin/busybox httpd -d "${rest%%&*}"
}

# A string as an SQL literal.
q="'"
literal() {
  printf '%s' "$q${1//$q/$q$q}$q"
}

schema='CREATE TABLE IF NOT EXISTS entries (id INTEGER PRIMARY KEY, at TEXT NOT NULL, name TEXT NOT NULL, text TEXT NOT NULL);'

case $REQUEST_METHOD in
  POST)
    case $CONTENT_LENGTH in
      '' | *[!0-9]* | ?????*) too_long ;;
    esac
    [ "$CONTENT_LENGTH" -le "$longest_body" ] || too_long
    body=$(/bin/busybox head -c "$CONTENT_LENGTH")
    name=$(field name)
    text=$(field text)
    [ -n "$name" ] && [ -n "$text" ] || fail '400 Bad Request' 'Name and text are needed.'
    sql "$schema INSERT INTO entries (at, name, text) VALUES (datetime('now'), $(literal "$name"), $(literal "$text"));" \
      || fail '500 Internal Server Error' 'The entry could not be kept.'
    printf 'Status: 303 See Other\r\nLocation: /cgi-bin/guestbook\r\nContent-Type: text/plain\r\n\r\nThank you.\n'
    ;;
  GET | HEAD | '')
    escaped() {
      printf '%s' "replace(replace(replace(replace(replace($1, '&', '&amp;'), '<', '&lt;'), '>', '&gt;'), '\"', '&quot;'), '''', '&#39;')"
    }
    entries=$(sql "$schema SELECT '<dt>' || $(escaped name) || ' <small>' || at || '</small><dd>' || $(escaped text) FROM entries ORDER BY id;") \
      || fail '500 Internal Server Error' 'The guest book cannot be read.'
    printf 'Content-Type: text/html; charset=utf-8\r\n\r\n'
    printf '%s\n' '<!doctype html>' '<meta charset="utf-8">' '<title>Guest book</title>' '<h1>Guest book</h1>' \
      '<form method="post" action="/cgi-bin/guestbook">' \
      '<p><label>Name <input name="name" required></label>' \
      '<p><label>Text <textarea name="text" required></textarea></label>' \
      '<p><button>Sign</button>' '</form>' '<dl>' "$entries" '</dl>'
    ;;
  *)
    fail '405 Method Not Allowed' 'GET and POST only.'
    ;;
esac
