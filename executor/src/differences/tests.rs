#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

fn line(connection: u64, kind: Departure, request: &str, released: &str, said: &str) -> String {
    let escape = |text: &str| text.as_bytes().escape_ascii().to_string();
    let line = Line {
        at_ms: 1234,
        replica: 2,
        version: "new".to_owned(),
        connection,
        port: 6379,
        kind,
        position: 5,
        request: Some(escape(request)),
        released: escape(released),
        said: escape(said),
    };
    serde_json::to_string(&line).unwrap() + "\n"
}

fn read(text: &str) -> Report {
    Report::read(text.as_bytes()).unwrap()
}

#[test]
fn requests_have_names() {
    for (request, name) in [
        (&b"*3\r\n$5\r\nhmget\r\n$1\r\nk\r\n"[..], "HMGET"),
        (b"PING\r\n", "PING"),
        (b"get key\r\n", "GET"),
        (b"GET /a/b?c=d HTTP/1.1\r\nHost: x\r\n", "GET /a/b"),
        (b"POST /x HTTP/1.1\r\n", "POST /x"),
        (b"*1\r\n", "not text"),
        (b"\x80\x01\x00", "not text"),
        (b"", "nothing asked"),
    ] {
        assert_eq!(command(Some(request)), name);
    }
    assert_eq!(command(None), "unknown request");
    let long = [b"GET /", &[b'a'; 200][..], b" HTTP/1.1\r\n"].concat();
    assert_eq!(command(Some(&long)).chars().count(), 49);
}

#[test]
fn differences_have_a_class() {
    for (released, said, class) in [
        ("$1\r\na\r\n", "$1\r\nb\r\n", Class::Value),
        ("$1\r\na\r\n", "$2\r\nab\r\n", Class::Value),
        (":1\r\n", ":2\r\n", Class::Number),
        ("+OK\r\n", "-ERR no\r\n", Class::Error),
        ("-ERR no\r\n", "$-1\r\n", Class::NoError),
        ("-ERR no\r\n", "-ERR what\r\n", Class::ErrorText),
        (
            "*2\r\n$1\r\na\r\n$2\r\nbc\r\n",
            "*2\r\n$2\r\nbc\r\n$1\r\na\r\n",
            Class::Order,
        ),
        ("+a\r\n:1\r\n", "+a\r\n$-1\r\n", Class::Kind),
        ("HTTP/1.1 200 OK\r\n", "HTTP/1.1 500 No\r\n", Class::Status),
        (
            "HTTP/1.1 200 OK\r\nDate: a\r\n",
            "HTTP/1.1 200 OK\r\nDate: b\r\n",
            Class::Header("Date".to_owned()),
        ),
        ("Server: a\r\n", "Set-Cookie: a\r\n", Class::Headers),
        ("", "", Class::Value),
    ] {
        let found = classify(Departure::Bytes, released.as_bytes(), said.as_bytes());
        assert_eq!(found, class, "{released:?} {said:?}");
    }
    assert_eq!(classify(Departure::Crashed, b"a", b"b"), Class::Crashed);
}

#[test]
fn lines_are_grouped_and_the_first_is_the_example() {
    let get = "*2\r\n$3\r\nGET\r\n$1\r\nk\r\n";
    let text = [
        line(1, Departure::Bytes, get, "$1\r\na\r\n", "$1\r\nb\r\n"),
        line(1, Departure::Bytes, get, "$1\r\nc\r\n", "$1\r\nd\r\n"),
        line(2, Departure::Bytes, get, "$1\r\nc\r\n", "-ERR\r\n"),
        line(
            3,
            Departure::Crashed,
            "*2\r\n$5\r\nHMGET\r\n",
            "-WRONG\r\n",
            "",
        ),
        "\n".to_owned(),
        "no line\n".to_owned(),
        line(4, Departure::Bytes, get, "$1\r\na\r\n", "$1\r\nb\r\n"),
    ]
    .concat();
    let report = read(&text);
    assert_eq!(
        (report.differences, report.unreadable, report.ungrouped),
        (5, 1, 0)
    );
    let [values, errors, crash] = &report.groups[..] else {
        panic!("{:?}", report.groups);
    };
    assert_eq!(
        (values.command.as_str(), &values.class),
        ("GET", &Class::Value)
    );
    assert_eq!((values.count, values.connections), (3, 2));
    assert_eq!(values.first.said, "$1\\r\\nb\\r\\n");
    assert_eq!((&errors.class, errors.count), (&Class::Error, 1));
    assert_eq!(
        (crash.command.as_str(), &crash.class),
        ("HMGET", &Class::Crashed)
    );
    let shown = report.to_string();
    for part in [
        "5 answers differed, of 3 sorts\n",
        "\nreplica 2 (new), port 6379\n  GET: another value, 3 times on 2 connections\n",
        "    first after 1.234 s, on connection 1, byte 5\n      asked     \"*2\\r\\n$3\\r\\nGET\\r\\n$1\\r\\nk\\r\\n\"\n",
        "      released  \"$1\\r\\na\\r\\n\"\n      it said   \"$1\\r\\nb\\r\\n\"\n",
        "  HMGET: crashed, 1 time on 1 connection\n",
        "\n1 line could not be read",
    ] {
        assert!(shown.contains(part), "{part}\n    is not in\n{shown}");
    }
    assert_eq!(read("").to_string(), "no answer differed\n");
    // What the command prints as JSON names the class as a word.
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["groups"][2]["class"], "crashed");
    assert_eq!(json["groups"][0]["first"]["said"], "$1\\r\\nb\\r\\n");
}

#[test]
fn what_is_read_is_bounded() {
    let long = "x".repeat(MAX_LINE as usize * 3);
    let text = format!(
        "{long}\n{}",
        line(1, Departure::Missing, "PING\r\n", "", "")
    );
    let report = read(&text);
    assert_eq!((report.differences, report.unreadable), (1, 1));
    let many: String = (0..MAX_GROUPS + 7)
        .map(|number| line(1, Departure::Missing, &format!("C{number}\r\n"), "", ""))
        .collect();
    let report = read(&many);
    assert_eq!((report.groups.len(), report.ungrouped), (MAX_GROUPS, 7));
}

proptest::proptest! {
    #[test]
    fn any_file_is_safe(bytes: Vec<u8>) {
        let _ = Report::read(&bytes[..]);
    }

    #[test]
    fn any_answers_are_safe(request: Vec<u8>, released: Vec<u8>, said: Vec<u8>) {
        let _ = command(Some(&request));
        let _ = classify(Departure::Bytes, &released, &said);
    }
}
