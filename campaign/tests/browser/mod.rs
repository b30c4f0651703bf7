//! Headless Chromium, driven by its DevTools protocol over a pair of pipes (`--remote-debugging-pipe`): no driver, no port, nothing
//! that another program could talk to. Messages are JSON, each ends with a zero byte; the browser reads from descriptor 3 and
//! writes to 4.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// For all that one browser is asked: a page of some megabytes on a busy machine takes a few seconds.
const PATIENCE: Duration = Duration::from_secs(180);
/// Messages of the browser that wait to be read (R10): its pipe is full then, and it waits.
const WAITING: usize = 4096;

/// What a page did that it should not.
#[derive(Clone, Debug, PartialEq)]
pub enum Misdeed {
    /// A script error, or anything the browser's console calls an error (refused by the policy, for one).
    Error(String),
    /// It asked for something.
    Request(String),
}

/// A browser with one page.
pub struct Browser {
    child: Child,
    to: File,
    from: Receiver<Value>,
    next: u64,
    session: String,
    misdeeds: Vec<Misdeed>,
    deadline: Instant,
    _home: tempfile::TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its whole process group: Chromium is a family of processes.
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

impl Browser {
    pub fn start() -> Browser {
        use std::os::unix::process::CommandExt;
        let home = tempfile::tempdir().unwrap();
        let (to, from) = (home.path().join("to"), home.path().join("from"));
        for pipe in [&to, &from] {
            rustix::fs::mknodat(
                rustix::fs::CWD,
                pipe,
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
                0,
            )
            .unwrap();
        }
        // Opened for both directions, a FIFO does not wait for its other end.
        let both = |path: &Path| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).open(path).unwrap()
        };
        let (to_file, from_file) = (both(&to), both(&from));
        let mut command = Command::new("sh");
        command
            .args([
                "-c",
                r#"in=$1 out=$2; shift 2; exec "$@" 3<"$in" 4>"$out""#,
                "sh",
            ])
            .args([&to, &from])
            .arg("chromium")
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
            ])
            .args([
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ])
            .args([
                "--disable-dev-shm-usage",
                "--disable-breakpad",
                "--hide-scrollbars",
                "--remote-debugging-pipe",
            ])
            .arg(format!(
                "--user-data-dir={}",
                home.path().join("profile").display()
            ))
            .arg("about:blank")
            .env("HOME", home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        let child = command.spawn().unwrap();
        let (sender, messages) = sync_channel(WAITING);
        thread::spawn(move || {
            let mut reader = BufReader::new(from_file);
            let mut message = Vec::new();
            while let Ok(1..) = reader.read_until(0, &mut message) {
                message.pop();
                let Ok(value) = serde_json::from_slice(&message) else {
                    return;
                };
                if sender.send(value).is_err() {
                    return;
                }
                message.clear();
            }
        });
        let mut browser = Browser {
            child,
            to: to_file,
            from: messages,
            next: 0,
            session: String::new(),
            misdeeds: Vec::new(),
            deadline: Instant::now() + PATIENCE,
            _home: home,
        };
        browser.attach();
        browser
    }

    fn attach(&mut self) {
        let target = self.ask("Target.createTarget", json!({"url": "about:blank"}));
        let target = target["targetId"].as_str().unwrap().to_owned();
        let session = self.ask(
            "Target.attachToTarget",
            json!({"targetId": target, "flatten": true}),
        );
        self.session = session["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            self.ask(&format!("{domain}.enable"), json!({}));
        }
    }

    /// Asks and waits for the answer; notes what else the browser says meanwhile.
    pub fn ask(&mut self, method: &str, parameters: Value) -> Value {
        self.next += 1;
        let id = self.next;
        let mut message = json!({"id": id, "method": method, "params": parameters});
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        let mut bytes = serde_json::to_vec(&message).unwrap();
        bytes.push(0);
        self.to.write_all(&bytes).unwrap();
        loop {
            let answer = self.message(method);
            if answer["id"] == json!(id) {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    fn message(&mut self, what: &str) -> Value {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match self.from.recv_timeout(left) {
            Ok(message) => {
                self.note(&message);
                message
            }
            Err(RecvTimeoutError::Timeout) => panic!("chromium did not answer {what} in time"),
            Err(RecvTimeoutError::Disconnected) => panic!(
                "chromium ended before it answered {what}; if it is not installed: scripts/setup clients"
            ),
        }
    }

    fn note(&mut self, message: &Value) {
        let parameters = &message["params"];
        let misdeed = match message["method"].as_str().unwrap_or_default() {
            "Runtime.exceptionThrown" => Misdeed::Error(parameters["exceptionDetails"].to_string()),
            "Log.entryAdded" if parameters["entry"]["level"] == "error" => {
                Misdeed::Error(parameters["entry"]["text"].to_string())
            }
            "Runtime.consoleAPICalled" if parameters["type"] == "error" => {
                Misdeed::Error(parameters["args"].to_string())
            }
            "Network.requestWillBeSent" if parameters["type"] != "Document" => {
                Misdeed::Request(parameters["request"]["url"].to_string())
            }
            _ => return,
        };
        self.misdeeds.push(misdeed);
    }

    /// Opens a file and waits until it is there in full and has been drawn.
    pub fn open(&mut self, file: &Path) {
        let url = format!("file://{}", file.display());
        self.ask("Page.navigate", json!({"url": url}));
        while self.message("Page.navigate")["method"] != "Page.loadEventFired" {}
        // Two frames later all that the page does by itself has been done and reported.
        self.evaluate(
            "new Promise(r => requestAnimationFrame(() => requestAnimationFrame(() => r(1))))",
        );
    }

    /// The value of an expression in the page.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let answer = self.ask(
            "Runtime.evaluate",
            json!({"expression": expression, "awaitPromise": true, "returnByValue": true}),
        );
        assert!(
            answer["exceptionDetails"].is_null(),
            "{expression}: {answer}"
        );
        answer["result"]["value"].clone()
    }

    /// The window's size in CSS pixels, and light or dark, screen or print.
    pub fn window(&mut self, width: u32, height: u32, scheme: &str, media: &str) {
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false}),
        );
        self.ask(
            "Emulation.setEmulatedMedia",
            json!({"media": media, "features": [{"name": "prefers-color-scheme", "value": scheme}]}),
        );
    }

    /// A picture of a part of the page, in CSS pixels from its top left corner: the bytes of a PNG file.
    pub fn picture(&mut self, x: f64, y: f64, width: f64, height: f64) -> Vec<u8> {
        let clip = json!({"x": x, "y": y, "width": width, "height": height, "scale": 1});
        let answer = self.ask(
            "Page.captureScreenshot",
            json!({"format": "png", "clip": clip, "captureBeyondViewport": true}),
        );
        from_base64(answer["data"].as_str().unwrap())
    }

    /// What the page did so far that it should not.
    pub fn misdeeds(&self) -> &[Misdeed] {
        &self.misdeeds
    }
}

fn from_base64(text: &str) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u32> = (text.bytes().filter(|c| *c != b'='))
        .map(|c| u32::from(digit(c)))
        .collect();
    let mut bytes = Vec::new();
    for group in digits.chunks(4) {
        let word = (0..4).fold(0, |word, i| word << 6 | group.get(i).copied().unwrap_or(0));
        let whole = group.len() * 6 / 8;
        bytes.extend_from_slice(&word.to_be_bytes()[1..=whole]);
    }
    bytes
}
