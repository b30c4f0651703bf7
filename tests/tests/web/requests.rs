//! Single requests by curl: ranges, conditions, methods, paths.

use quorate_tests::curl::{fetch, masked};
use quorate_tests::one_at_a_time;

use crate::{Both, Server, agree};

/// Lengths of documents that are asked for in parts.
const LENGTHS: &[usize] = &[0, 1, 1448, 8193, 65_537, 1_048_577];

const RANGES: &[&str] = &[
    "0-0",
    "0-99",
    "1-1",
    "100-",
    "0-",
    "-1",
    "-500",
    "-99999999999",
    "-0",
    "0-0,-1",
    "0-0,2-2,4-4",
    "10-20,30-40,1000-",
    "0-10,5-15",
    "0-,0-,0-",
    "5-3",
    "abc",
    "0-0,abc",
    "1447-1448",
    "8192-8192",
    "8193-8200",
    "99999999-",
    "99999999-999999999",
    "0-18446744073709551615",
    "0-99999999999999999999",
    " 0-5",
    "0 - 5",
    "0-5,",
    ",0-5",
    "-",
];

const TIMES: &[&str] = &[
    "Thu, 01 Jan 2026 00:00:00 GMT",
    "Wed, 31 Dec 2025 23:59:59 GMT",
    "Thu, 01 Jan 2026 00:00:01 GMT",
    "Mon, 01 Jan 2300 00:00:00 GMT",
    "Thursday, 01-Jan-26 00:00:00 GMT",
    "Thu Jan  1 00:00:00 2026",
    "nonsense",
    "",
];

const PATHS: &[&str] = &[
    "/",
    "/index.html",
    "/index.html?query=1&x=%20",
    "/more",
    "/more/",
    "/more/nope",
    "/nope",
    "/nope/",
    "/index.html/",
    "/index.html/more",
    "/%69ndex.html",
    "/%00",
    "/%",
    "/%zz",
    "/a%2fb",
    "//index.html",
    "/./index.html",
    "/more/../index.html",
    "/../etc/passwd",
    "/../../../../etc/passwd",
    "/more/../../etc/passwd",
    "/%2e%2e/etc/passwd",
    "/..%2f..%2fetc/passwd",
    "/more/.",
    "/more/..",
    "/~root",
    "/index.html%20",
    "/INDEX.HTML",
    "/%c3%a4",
    "/index.html;x",
    "/a\\b",
];

#[test]
fn nginx_answers_single_requests() {
    single(Server::Nginx);
}

#[test]
fn lighttpd_answers_single_requests() {
    single(Server::Lighttpd);
}

#[test]
fn nginx_with_workers_answers_single_requests() {
    single(Server::Workers);
}

fn single(server: Server) {
    let _turn = one_at_a_time(&format!(
        "{server:?}: ranges, conditions, methods and paths by curl"
    ));
    let both = Both::start(server);
    let mut asked = Asked {
        both: &both,
        count: 0,
    };
    for &length in LENGTHS {
        let document = both.documents.at_least(length).unwrap();
        assert_eq!(document.length, length);
        let path = format!("/{}", document.name);
        asked.ranges(&path);
        asked.conditions(&path);
    }
    let largest = both.documents.at_least(100_000_000).unwrap();
    let path = format!("/{}", largest.name);
    for range in [
        "0-0",
        "99999999-",
        "-1",
        "50000000-50099999",
        "0-9,99999990-99999999",
        "100000000-",
    ] {
        asked.same(&path, &["--range", range]);
    }
    asked.same(&path, &["--head"]);
    for path in PATHS {
        asked.same(path, &[]);
        asked.same(path, &["--head"]);
    }
    asked.methods();
    println!("  {} requests, answers equal", asked.count);
    assert!(asked.count > 500);
    both.finish();
}

struct Asked<'a> {
    both: &'a Both,
    count: usize,
}

impl Asked<'_> {
    /// Asks both servers for the same; the set's answer, which is the same as the native one's.
    fn same(&mut self, path: &str, arguments: &[&str]) -> Vec<u8> {
        let [native, set] = self.both.addresses().map(|address| {
            // The name that is asked for, so that it may come back in an answer.
            let words = [arguments, &["--header", "Host: test"]].concat();
            fetch(&format!("http://{address}{path}"), &words).unwrap()
        });
        self.count += 1;
        let what = format!("{:?} {path} {arguments:?}", self.both.server);
        agree(&what, &masked(&native), &masked(&set));
        set
    }

    fn with_header(&mut self, path: &str, header: &str) -> Vec<u8> {
        self.same(path, &["--header", header])
    }

    fn ranges(&mut self, path: &str) {
        for range in RANGES {
            self.with_header(path, &format!("Range: bytes={range}"));
        }
        for header in [
            "Range: bytes",
            "Range: bytes:0-1",
            "Range: items=0-1",
            "Range: 0-1",
        ] {
            self.with_header(path, header);
        }
        self.same(path, &["--head", "--range", "0-0"]);
    }

    fn conditions(&mut self, path: &str) {
        let head = self.same(path, &["--head"]);
        let head = String::from_utf8(head).unwrap();
        let tag = head
            .lines()
            .find_map(|line| line.strip_prefix("ETag: "))
            .unwrap_or_else(|| panic!("{path}: no ETag in {head}"))
            .to_owned();
        let not_modified = self.with_header(path, &format!("If-None-Match: {tag}"));
        assert!(not_modified.starts_with(b"HTTP/1.1 304"), "{path} {tag}");
        for other in ["\"x\"", "*", "x", "\"x\", \"y\"", "\"", "W/\"x\""].map(str::to_owned) {
            self.with_header(path, &format!("If-None-Match: {other}"));
            self.with_header(path, &format!("If-Match: {other}"));
        }
        for tag in [
            tag.clone(),
            format!("W/{tag}"),
            format!("\"a\", {tag}, \"b\""),
        ] {
            self.with_header(path, &format!("If-None-Match: {tag}"));
            self.with_header(path, &format!("If-Match: {tag}"));
            self.same(
                path,
                &["--range", "0-0", "--header", &format!("If-Range: {tag}")],
            );
        }
        for time in TIMES {
            self.with_header(path, &format!("If-Modified-Since: {time}"));
            self.with_header(path, &format!("If-Unmodified-Since: {time}"));
            self.same(
                path,
                &["--range", "0-0", "--header", &format!("If-Range: {time}")],
            );
            let both = [
                "--header",
                &format!("If-None-Match: {tag}"),
                "--header",
                &format!("If-Modified-Since: {time}"),
            ];
            self.same(path, &both);
        }
    }

    fn methods(&mut self) {
        for method in [
            "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "PROPFIND", "get", "NONSENSE",
        ] {
            self.same("/index.html", &["--request", method]);
        }
        let large = "x".repeat(100_000);
        for data in ["", "a=b&c=d", large.as_str()] {
            self.same("/index.html", &["--data", data]);
        }
        self.same(
            "/index.html",
            &["--header", "Expect: 100-continue", "--data", "a=b"],
        );
        self.same(
            "/index.html",
            &["--header", "Transfer-Encoding: chunked", "--data", "a=b"],
        );
        self.same("/index.html", &["--http1.0"]);
        self.same(
            "/index.html",
            &["--http1.0", "--header", "Connection: keep-alive"],
        );
        self.same("/index.html", &["--header", "Connection: close"]);
        self.same("/index.html", &["--compressed"]);
        for length in [1000, 8000, 9000, 40_000] {
            let long = "y".repeat(length);
            self.same(&format!("/{long}"), &[]);
            self.same("/index.html", &["--header", &format!("X-Long: {long}")]);
        }
    }
}
