//! Programs that a web server runs: a shell script for each request, a form that writes to SQLite on a voted disk.

use std::fmt::Write;
use std::path::Path;

use quorate_tests::app::App;
use quorate_tests::curl::{body, fetch};
use quorate_tests::set::Set;
use quorate_tests::{disk, one_at_a_time};

#[test]
fn scripts_get_the_request_and_their_output_is_the_answer() {
    let _turn = one_at_a_time("busybox httpd: CGI scripts in processes of their own");
    let mut app = App::load("busybox-httpd").unwrap();
    app.add_text(
        "/srv/www/cgi-bin/echo",
        "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\necho \"$REQUEST_METHOD $QUERY_STRING $CONTENT_LENGTH\"\ncat | sort | tr a-z A-Z\n",
    );
    executable(&mut app, "/srv/www/cgi-bin/echo");
    let set = start(&app);
    let url = format!("http://{}/cgi-bin/", set.address());
    let hello = fetch(&format!("{url}hello?a=b"), &[]).unwrap();
    let text = String::from_utf8(body(&hello).to_vec()).unwrap();
    assert!(text.starts_with("hello from process "), "{text}");
    assert!(text.ends_with(", query a=b\n"), "{text}");
    for lines in [1, 10, 1000, 10_000] {
        let mut data = String::new();
        for line in (0..lines).rev() {
            writeln!(data, "line {line:06}").unwrap();
        }
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("data");
        std::fs::write(&file, &data).unwrap();
        let from = format!("@{}", file.display());
        let answer = fetch(&format!("{url}echo?x"), &["--data-binary", &from]).unwrap();
        let mut expected = format!("POST x {}\n", data.len());
        for line in 0..lines {
            writeln!(expected, "LINE {line:06}").unwrap();
        }
        let got = String::from_utf8(body(&answer).to_vec()).unwrap();
        assert!(got == expected, "{lines} lines: {} bytes", got.len());
    }
    // Each is a process, and there may be several at once.
    std::thread::scope(|scope| {
        for number in 0..20 {
            let url = format!("{url}echo?{number}");
            scope.spawn(move || {
                let answer = fetch(&url, &["--data", "b"]).unwrap();
                assert_eq!(body(&answer), format!("POST {number} 1\nB\n").as_bytes());
            });
        }
    });
    finish(set);
}

/// What visitors write: name, text.
const ENTRIES: &[(&str, &str)] = &[
    ("Alice", "hello"),
    ("O'Neil", "it's 'quoted' and \"quoted\""),
    ("<b>Bold</b>", "<script>alert(1)</script>"),
    (
        "Robert'); DROP TABLE entries;--",
        "'); DELETE FROM entries; --",
    ),
    ("A & B", "&amp; &lt; 100% + plus%20 = equals; semi"),
    ("Zoë 名前 🦀", "naïve – “text”"),
    ("$(id)", "`id` $HOME ${IFS} \\ \\n"),
    ("x", "two\nlines"),
];

#[test]
fn the_guest_book_keeps_what_was_written() {
    let _turn = one_at_a_time("guest book: a form by curl, a CGI script, SQLite on a voted disk");
    let directory = disk::directory().unwrap();
    let mut app = App::load("guestbook").unwrap();
    app.put_disk(&directory.path().join("data.img")).unwrap();
    let set = start(&app);
    let mut expected = Vec::new();
    for (name, text) in ENTRIES {
        let answer = sign(&set, name, text);
        assert!(answer.starts_with("HTTP/1.1 303"), "{answer}");
        expected.push((escaped(name), escaped(text)));
    }
    assert_eq!(entries(&set), expected);
    // Forms that are not right.
    for (name, text, status) in [("", "x", "400"), ("x", "", "400")] {
        let answer = sign(&set, name, text);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
    }
    for length in [9000, 100_000] {
        let answer = sign(&set, "long", &"x".repeat(length));
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    }
    assert_eq!(entries(&set), expected);
    // Several at once: SQLite's locks work between processes.
    let before = expected.len();
    std::thread::scope(|scope| {
        for number in 0..20 {
            let set = &set;
            scope.spawn(move || {
                let answer = sign(set, &format!("client {number}"), "at once");
                assert!(answer.starts_with("HTTP/1.1 303"), "{answer}");
            });
        }
    });
    let all = entries(&set);
    assert_eq!(all[..before], expected);
    let mut late: Vec<_> = all[before..].iter().map(|(name, _)| name.clone()).collect();
    late.sort();
    let mut names: Vec<_> = (0..20).map(|number| format!("client {number}")).collect();
    names.sort();
    assert_eq!(late, names);
    finish(set);
    disk::check_clean(&directory.path().join("data.img")).unwrap();
    // What was written is there after a restart, and in the file on the host.
    let again = start(&app);
    assert_eq!(entries(&again), all);
    finish(again);
    let copy = directory.path().join("guestbook.db");
    disk::extract(&directory.path().join("data.img"), "/guestbook.db", &copy).unwrap();
    println!(
        "  {} entries: {} bytes of database",
        all.len(),
        length(&copy)
    );
    assert!(length(&copy) >= 8192);
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

fn executable(app: &mut App, path: &str) {
    let files = app.table("image")["files"].as_array_mut().unwrap();
    for file in files {
        if file["path"].as_str() == Some(path) {
            file.as_table_mut()
                .unwrap()
                .insert("mode".into(), 0o755.into());
        }
    }
}

fn start(app: &App) -> Set {
    let options = app.options(80).unwrap().replicas(3);
    options.arguments(&["--layout", "random"]).start().unwrap()
}

fn finish(set: Set) {
    let status = set.status().unwrap();
    assert_eq!(status["running"], 3, "{status:#}");
    assert!(set.lines_with("verdict").is_empty());
    let ended = set.stop().unwrap();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
}

/// Sends the form as a browser would.
fn sign(set: &Set, name: &str, text: &str) -> String {
    let url = format!("http://{}/cgi-bin/guestbook", set.address());
    let fields = [format!("name={name}"), format!("text={text}")];
    let [name, text] = &fields;
    let answer = fetch(&url, &["--data-urlencode", name, "--data-urlencode", text]).unwrap();
    String::from_utf8(answer).unwrap()
}

/// The five characters that mean something in HTML.
fn escaped(text: &str) -> String {
    [
        ("&", "&amp;"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ("\"", "&quot;"),
        ("'", "&#39;"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// The entries of the page as they are in its HTML.
fn entries(set: &Set) -> Vec<(String, String)> {
    let answer = fetch(&format!("http://{}/cgi-bin/guestbook", set.address()), &[]).unwrap();
    let page = String::from_utf8(answer).unwrap();
    let list = page.split_once("<dl>\n").unwrap().1;
    let list = list.split_once("\n</dl>").map_or("", |(list, _)| list);
    list.split("<dt>")
        .skip(1)
        .map(|entry| {
            let (name, rest) = entry.split_once(" <small>").unwrap();
            let text = rest.split_once("<dd>").unwrap().1;
            (name.to_owned(), text.trim_end_matches('\n').to_owned())
        })
        .collect()
}
