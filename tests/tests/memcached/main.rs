//! memcached with four worker threads in three replicas answers byte for byte as the native one of the same package does.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod binary;
mod many;
mod text;
mod time;

use std::net::SocketAddr;

use quorate_tests::app::{App, Native};
use quorate_tests::set::Set;
use quorate_tests::wire::{Wire, agree, shown};

const PORT: u16 = 11211;
/// For tests of random commands: without the threads that move items between lists of their age. While one holds an item, a
/// counter is written to a new one instead of being changed in place, which shows in its trailing spaces and in statistics.
const NO_HELPERS: [&str; 2] = ["-o", "no_modern"];

/// A native server and a set of three replicas with random layouts.
struct Both {
    native: Native,
    set: Set,
}

impl Both {
    fn start() -> Both {
        Both::start_with(&[])
    }

    /// With more arguments for both.
    fn start_with(more: &[&str]) -> Both {
        let mut app = App::load("memcached").unwrap();
        let command = app.table("program").get_mut("command").unwrap();
        let words = command.as_array_mut().unwrap();
        words.extend(more.iter().map(|&word| word.into()));
        let native = app
            .native(|app, address, _| app.listening_at(address))
            .unwrap();
        let set = app
            .options(PORT)
            .unwrap()
            .replicas(3)
            .arguments(&["--layout", "random"])
            .start()
            .unwrap();
        Both { native, set }
    }

    fn addresses(&self) -> [SocketAddr; 2] {
        [self.native.address(), self.set.address()]
    }

    fn connect(&self) -> Pair {
        Pair {
            native: Wire::connect(self.native.address()).unwrap(),
            set: Wire::connect(self.set.address()).unwrap(),
        }
    }

    /// All replicas are still there, and nobody was outvoted meanwhile.
    fn finish(self) {
        let status = self.set.status().unwrap();
        assert_eq!(status["state"], "running", "{status:#}");
        assert_eq!(status["running"], 3, "{status:#}");
        assert!(self.set.lines_with("verdict").is_empty());
        let ended = self.set.stop().unwrap();
        assert_eq!(ended.code, 0, "{}", ended.stderr);
    }
}

/// A connection to each.
struct Pair {
    native: Wire,
    set: Wire,
}

impl Pair {
    fn send(&mut self, bytes: &[u8]) {
        self.native.send(bytes).unwrap();
        self.set.send(bytes).unwrap();
    }

    /// The next reply of the text protocol, which is the same from both.
    fn reply(&mut self, to: &[u8]) -> Vec<u8> {
        let (native, set) = (reply(&mut self.native), reply(&mut self.set));
        agree(&shown(to), &native, &set);
        set
    }

    /// Sends `request` to both; the reply, which is the same.
    fn same(&mut self, request: &[u8]) -> Vec<u8> {
        self.send(request);
        self.reply(request)
    }

    /// As [`Pair::same`]; and the reply is this one, so that two that are wrong alike are found too.
    fn is(&mut self, request: &str, expected: &str) {
        let reply = self.same(request.as_bytes());
        assert_eq!(shown(&reply), expected, "{request:?}");
    }

    /// The next packet of the binary protocol, which is the same from both.
    fn packet(&mut self, what: &str) -> Vec<u8> {
        let (native, set) = (packet(&mut self.native), packet(&mut self.set));
        agree(what, &native, &set);
        set
    }

    /// Everything until both end the connection, which is the same.
    fn rest(&mut self, what: &str) -> Vec<u8> {
        let (native, set) = (
            self.native.take_all().unwrap(),
            self.set.take_all().unwrap(),
        );
        agree(what, &native, &set);
        set
    }
}

/// One reply of the text protocol, with its values.
fn reply(wire: &mut Wire) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let line = wire.take_until(b"\r\n").unwrap();
        let text = String::from_utf8_lossy(&line).into_owned();
        let words: Vec<&str> = text.split_whitespace().collect();
        whole.extend(&line);
        match words.as_slice() {
            ["VALUE", _, _, length, ..] => {
                whole.extend(wire.take(length.parse::<usize>().unwrap() + 2).unwrap());
            }
            // Of the meta commands: the value ends the reply.
            ["VA", length, ..] => {
                whole.extend(wire.take(length.parse::<usize>().unwrap() + 2).unwrap());
                return whole;
            }
            ["STAT", ..] => {}
            _ => return whole,
        }
    }
}

/// One packet of the binary protocol.
fn packet(wire: &mut Wire) -> Vec<u8> {
    let mut whole = wire.take(24).unwrap();
    let length = u32::from_be_bytes([whole[8], whole[9], whole[10], whole[11]]);
    whole.extend(wire.take(length as usize).unwrap());
    whole
}

/// A storage command of the text protocol.
fn store(command: &str, value: &[u8]) -> Vec<u8> {
    let mut request = format!("{command} {}\r\n", value.len()).into_bytes();
    request.extend(value);
    request.extend(b"\r\n");
    request
}
