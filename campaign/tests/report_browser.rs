//! The report as readers open it, in headless Chromium: no script error, no request, content visible in every width and scheme.
//!
//! `QUORATE_TEST_PICTURES=DIR` keeps pictures of each section; `QUORATE_TEST_REPORT=FILE` looks at that report instead of at one
//! with made-up trials.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod browser;
mod made_up;

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use browser::{Browser, Misdeed};
use serde_json::Value;

fn page(dir: &Path) -> PathBuf {
    match std::env::var_os("QUORATE_TEST_REPORT") {
        Some(file) => fs::canonicalize(file).unwrap(),
        None => made_up::write(dir, 1500).html,
    }
}

#[test]
fn the_page_works_and_asks_for_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = page(dir.path());
    let mut browser = Browser::start();
    let pictures = std::env::var_os("QUORATE_TEST_PICTURES").map(PathBuf::from);
    browser.window(1200, 900, "light", "screen");
    browser.open(&file);

    let text = browser.evaluate("document.body.innerText");
    let text = text.as_str().unwrap().to_lowercase();
    for wanted in [
        "outcomes",
        "what became of the faults",
        "worst trials",
        "statistics",
        "reproduce",
    ] {
        assert!(
            text.contains(wanted),
            "no {wanted:?} in the text that is seen"
        );
    }
    for (width, scheme, media) in [
        (1200, "light", "screen"),
        (1200, "dark", "screen"),
        (400, "light", "screen"),
        (400, "dark", "screen"),
        (800, "light", "print"),
    ] {
        browser.window(width, 900, scheme, media);
        let over = browser.evaluate("document.documentElement.scrollWidth - innerWidth");
        assert!(
            over.as_f64().unwrap() <= 0.0,
            "{width} {media}: the page is {over} px too wide"
        );
        let low = browser.evaluate(LOW_CONTRAST);
        assert_eq!(
            low,
            Value::Array(vec![]),
            "{width} {scheme}: texts that are hard to read"
        );
        if let Some(to) = &pictures {
            pictures_of(&mut browser, to, &format!("{width}-{scheme}-{media}"));
        }
    }
    browser.window(1200, 900, "light", "screen");
    try_the_table(&mut browser);
    try_the_tabs(&mut browser);
    assert_eq!(browser.misdeeds(), []);
}

/// Texts whose contrast with what is behind them is below 4.5 (WCAG 2.1, 1.4.3), as far as plain colours go.
const LOW_CONTRAST: &str = r#"(() => {
  const rgb = (text) => (text.match(/[\d.]+/g) || []).map(Number);
  const light = (c) => { const [r, g, b] = c.map((v) => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * r + .7152 * g + .0722 * b; };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] === 1) return c.slice(0, 3); } return [255, 255, 255]; };
  const low = [];
  for (const e of document.querySelectorAll("h1,h2,h3,h4,p,dt,dd,th,td,li,a,label,button,code,text,.of,.n")) {
    if (!e.getClientRects().length || getComputedStyle(e).backgroundColor.startsWith("color(")) continue;
    const style = getComputedStyle(e);
    const front = rgb(e.tagName === "text" ? style.fill : style.color).slice(0, 3);
    const [a, b] = [light(front), light(behind(e))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) low.push(e.tagName + "." + e.className + ": " + e.textContent.slice(0, 40));
  }
  return low.slice(0, 5);
})()"#;

fn try_the_table(browser: &mut Browser) {
    if browser.evaluate("!document.getElementById('trials')") == true {
        return;
    }
    let seen = "Array.from(document.querySelectorAll('#trials tbody tr')).filter(r => !r.hidden)";
    let all = browser
        .evaluate(&format!("{seen}.length"))
        .as_u64()
        .unwrap();
    assert!(all > 0);
    browser.evaluate("const o = document.getElementById('by-outcome'); o.selectedIndex = 1; o.dispatchEvent(new Event('input')); 1");
    let some = browser.evaluate(&format!("new Set({seen}.map(r => r.dataset.outcome)).size"));
    assert_eq!(some, 1, "the filter leaves one outcome");
    browser.evaluate("o.selectedIndex = 0; o.dispatchEvent(new Event('input')); document.querySelector('#trials th button').click(); 1");
    let sorted = browser.evaluate(&format!(
        "(() => {{ const d = {seen}.map(r => Number(r.cells[0].textContent)); return d.length === {all} && d.every((v, i) => !i || d[i - 1] <= v); }})()"
    ));
    assert_eq!(sorted, true, "sorted by number of the draw");
    let nothing = "const t = document.getElementById('by-text'); t.value = 'no such text'; t.dispatchEvent(new Event('input')); 1";
    browser.evaluate(nothing);
    assert_eq!(browser.evaluate(&format!("{seen}.length")), 0);
}

fn try_the_tabs(browser: &mut Browser) {
    let script = "Array.from(document.querySelectorAll('.tabs')).every(t => {
        const labels = t.querySelectorAll(':scope > label'); labels[labels.length - 1].click();
        const panes = Array.from(t.querySelectorAll(':scope > .pane'));
        return panes.every((p, i) => (p.getClientRects().length > 0) === (i === panes.length - 1)); })";
    assert_eq!(
        browser.evaluate(script),
        true,
        "the last label shows the last pane"
    );
}

fn pictures_of(browser: &mut Browser, to: &Path, name: &str) {
    fs::create_dir_all(to).unwrap();
    let places = browser.evaluate(
        "Array.from(document.querySelectorAll('header, section')).map(s => { const r = s.getBoundingClientRect(); return [s.id || 'head', r.x + scrollX, r.y + scrollY, r.width, r.height]; })",
    );
    for place in places.as_array().unwrap() {
        let at = |i: usize| place[i].as_f64().unwrap();
        let id = place[0].as_str().unwrap();
        let picture = browser.picture(
            (at(1) - 8.0).max(0.0),
            (at(2) - 8.0).max(0.0),
            at(3) + 16.0,
            (at(4) + 16.0).min(2400.0),
        );
        let mut file = fs::File::create(to.join(format!("{name}-{id}.png"))).unwrap();
        file.write_all(&picture).unwrap();
    }
}

/// A server on an ephemeral port that has nothing; it notes that it was asked.
fn server() -> (u16, Arc<AtomicBool>) {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let asked = Arc::new(AtomicBool::new(false));
    let noted = Arc::clone(&asked);
    thread::spawn(move || {
        for connection in server.incoming() {
            noted.store(true, Ordering::SeqCst);
            // Whatever was asked: a browser that goes away before the answer needs none.
            let _ = connection.and_then(|mut connection| {
                connection.write_all(
                    b"HTTP/1.1 404 Nothing\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
                )
            });
        }
    });
    (port, asked)
}

/// What a page does that it should not, made from a good one; and whether anything was asked of the server.
fn misdeeds_of(spoil: impl Fn(&str, u16) -> String) -> (Vec<Misdeed>, bool) {
    let dir = tempfile::tempdir().unwrap();
    let file = made_up::write(dir.path(), 20).html;
    let (port, asked) = server();
    let good = fs::read_to_string(&file).unwrap();
    let bad = spoil(&good, port);
    assert_ne!(good, bad, "nothing was planted");
    fs::write(&file, bad).unwrap();
    let mut browser = Browser::start();
    browser.window(1200, 900, "light", "screen");
    browser.open(&file);
    (browser.misdeeds().to_vec(), asked.load(Ordering::SeqCst))
}

fn without_policy(page: &str) -> String {
    page.replace("Content-Security-Policy", "X-No-Policy")
}

#[test]
fn a_planted_script_error_is_found() {
    let (misdeeds, _) = misdeeds_of(|page, _| {
        without_policy(page).replace("\"use strict\";", "\"use strict\"; planted();")
    });
    assert!(
        misdeeds
            .iter()
            .any(|m| matches!(m, Misdeed::Error(text) if text.contains("planted is not defined"))),
        "{misdeeds:?}"
    );
}

#[test]
fn a_planted_request_is_found_and_refused_by_the_policy() {
    let plant = |page: &str, port: u16| {
        page.replace(
            "</main>",
            &format!("<img src=\"http://127.0.0.1:{port}/planted\" alt=\"\"></main>"),
        )
    };
    let (misdeeds, asked) = misdeeds_of(|page, port| plant(&without_policy(page), port));
    assert!(asked, "without the policy it reaches the server");
    assert!(
        misdeeds
            .iter()
            .any(|m| matches!(m, Misdeed::Request(url) if url.contains("/planted"))),
        "{misdeeds:?}"
    );
    let (misdeeds, asked) = misdeeds_of(plant);
    assert!(!asked, "with the policy it does not");
    assert!(
        !misdeeds.is_empty(),
        "and the browser says that it refused something"
    );
}

#[test]
fn a_planted_script_does_not_run() {
    let (misdeeds, _) = misdeeds_of(|page, _| {
        page.replace(
            "</main>",
            "<script>console.error('planted ran')</script></main>",
        )
    });
    assert!(!misdeeds.is_empty(), "the browser says that it refused it");
    assert!(
        !format!("{misdeeds:?}").contains("planted ran"),
        "{misdeeds:?}"
    );
}
