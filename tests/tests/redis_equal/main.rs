//! A set of three replicas answers byte for byte as a native redis-server of the same package does.
//!
//! The same bytes go to both. A reply that cannot be equal by the command's nature is compared by a [`rules::Rule`], each of
//! which has its reason.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod commands;
mod generator;
mod messages;
mod rules;
mod server;
mod sizes;
mod wire;

use std::time::Duration;

use quorate_tests::process::Ended;
use quorate_tests::resp::{Client, command, elements, shown, words};
use quorate_tests::server::NativeServer;
use quorate_tests::set::{Options, Set};
use rules::{Rule, normal};

/// For both servers: DEBUG SLEEP is one of the commands that must work.
const MORE: [&str; 2] = ["--enable-debug-command", "yes"];
/// How long something may take that must come.
const LONG: Duration = Duration::from_secs(30);

/// A native server and a set of three replicas with random layouts.
struct Both {
    native: NativeServer,
    set: Set,
}

impl Both {
    fn start() -> Both {
        let set = Options::redis_with(&MORE)
            .unwrap()
            .replicas(3)
            .arguments(&["--layout", "random"]);
        Both {
            native: NativeServer::start(&MORE).unwrap(),
            set: set.start().unwrap(),
        }
    }

    fn connect(&self) -> Pair {
        Pair {
            native: Client::connect(self.native.address()).unwrap(),
            set: Client::connect(self.set.address()).unwrap(),
        }
    }

    /// All replicas are still there, and nobody was outvoted meanwhile.
    fn finish(self) -> Ended {
        let status = self.set.status().unwrap();
        assert_eq!(status["state"], "running", "{status:#}");
        assert_eq!(status["running"], 3, "{status:#}");
        assert!(self.set.lines_with("verdict").is_empty());
        let ended = self.set.stop().unwrap();
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        ended
    }
}

/// A connection to each.
struct Pair {
    native: Client,
    set: Client,
}

impl Pair {
    /// Sends words separated by spaces to both. The replies are equal by the command's rule; one of them.
    fn same(&mut self, line: &str) -> Vec<u8> {
        self.same_words(&line.split_whitespace().collect::<Vec<_>>())
    }

    fn same_words<W: AsRef<[u8]>>(&mut self, words: &[W]) -> Vec<u8> {
        self.alike_bytes(&command(words), rules::rule(words))
    }

    /// As [`Pair::same`]; and the reply is this one, so that two that are wrong alike are found too.
    fn is(&mut self, line: &str, reply: &str) {
        assert_eq!(self.same(line), reply.as_bytes(), "{line}");
    }

    /// As [`Pair::same`] by another rule than that of equal bytes.
    fn alike(&mut self, line: &str, rule: Rule) -> Vec<u8> {
        self.alike_bytes(&words(line), rule)
    }

    fn alike_bytes(&mut self, request: &[u8], rule: Rule) -> Vec<u8> {
        let native = self.native.call(request);
        let set = self.set.call(request);
        let (Ok(native), Ok(set)) = (&native, &set) else {
            panic!("{}: native {native:?}, set {set:?}", shown(request));
        };
        agree(request, native, set, rule);
        set.clone()
    }

    /// Sends the same stream to both. All replies are equal, by the rule of each.
    fn stream(&mut self, requests: &[(Vec<u8>, Rule)]) {
        let stream: Vec<u8> = requests
            .iter()
            .flat_map(|(request, _)| request)
            .copied()
            .collect();
        let native = self.native.exchange(&stream, requests.len()).unwrap();
        let set = self.set.exchange(&stream, requests.len()).unwrap();
        for (((request, rule), native), set) in requests.iter().zip(&native).zip(&set) {
            agree(request, native, set, *rule);
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.native.send(bytes).unwrap();
        self.set.send(bytes).unwrap();
    }

    /// The next reply of both, which is equal.
    fn reply(&mut self) -> Vec<u8> {
        let (native, set) = (self.native.reply().unwrap(), self.set.reply().unwrap());
        agree(b"a reply that was waited for", &native, &set, Rule::Bytes);
        set
    }

    /// Everything until both end the connection, which is equal.
    fn rest(&mut self) -> Vec<u8> {
        let (native, set) = (self.native.rest().unwrap(), self.set.rest().unwrap());
        agree(b"the rest of a connection", &native, &set, Rule::Bytes);
        set
    }

    /// Asks both until both give `reply`; anything else that they say meanwhile is `before`.
    fn until(&mut self, line: &str, before: &[u8], reply: &[u8]) {
        for client in [&mut self.native, &mut self.set] {
            let deadline = std::time::Instant::now() + quorate_executor::patience::patient(LONG);
            loop {
                let now = client.call(&words(line)).unwrap();
                if now == reply {
                    break;
                }
                assert_eq!(shown(&now), shown(before), "{line}");
                assert!(
                    std::time::Instant::now() < deadline,
                    "{line} is still {}",
                    shown(&now)
                );
            }
        }
    }
}

fn agree(request: &[u8], native: &[u8], set: &[u8], rule: Rule) {
    if native == set {
        return;
    }
    let (left, right) = (normal(native, rule), normal(set, rule));
    if left == right {
        return;
    }
    let at = left
        .iter()
        .zip(&right)
        .take_while(|(left, right)| left == right)
        .count();
    panic!(
        "{} by {rule:?}: they differ from byte {at} on\n  native {}\n  set    {}\n  elements: native {}, set {}",
        shown(request),
        shown(&left[at.saturating_sub(40)..]),
        shown(&right[at.saturating_sub(40)..]),
        elements(native).len(),
        elements(set).len()
    );
}
