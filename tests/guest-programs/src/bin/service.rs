//! A server for the tests of relaxed sets: one request a line, one line of answer, on port 7000. Each replica may be given words of its
//! own: `delay=MS` it sleeps before it issues a token, `salt=N` makes its tokens others than those of the other replicas, `version=TEXT` is what
//! it answers to VERSION, `hangs` makes HANG one for ever, `disk=PATH` is where PUT and GET find their sectors.
//!
//! | request | answer |
//! | --- | --- |
//! | `LOGIN` | `token=` and 16 hexadecimal digits |
//! | `WHO TOKEN` | `known`, or `unknown` if this replica has issued no such token |
//! | `PUT SECTOR TEXT` | `put`: the sector holds the text, by a write that is not cached |
//! | `GET SECTOR` | its text |
//! | `SYNC` | `synced`, after an fsync |
//! | `ADD` | how often ADD was asked so far |
//! | `SAY TEXT` | `said`; the text goes to the console, with `salt` behind it if TEXT begins with `own` |
//! | `VERSION` | as given |
//! | `HANG` | `passed`, from who does not hang |

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SECTOR: usize = 512;

#[derive(Default)]
struct Own {
    delay: Duration,
    salt: u64,
    version: String,
    hangs: bool,
    disk: Option<File>,
}

#[derive(Default)]
struct Shared {
    tokens: HashSet<String>,
    issued: u64,
    added: u64,
}

/// A sector in memory as O_DIRECT wants it.
#[repr(align(4096))]
struct Aligned([u8; SECTOR]);

fn own() -> Own {
    let mut own = Own::default();
    for word in std::env::args().skip(1) {
        let (key, value) = word.split_once('=').unwrap_or((&word, ""));
        match key {
            "delay" => own.delay = Duration::from_millis(value.parse().unwrap_or(0)),
            "salt" => own.salt = value.parse().unwrap_or(0),
            "version" => own.version = value.to_owned(),
            "hangs" => own.hangs = true,
            "disk" => {
                let mut options = OpenOptions::new();
                options.read(true).write(true).custom_flags(libc::O_DIRECT);
                match options.open(value) {
                    Ok(file) => own.disk = Some(file),
                    Err(error) => println!("{value}: {error}"),
                }
            }
            _ => println!("{word}: not understood"),
        }
    }
    own
}

fn answer(own: &Own, shared: &Mutex<Shared>, line: &str) -> String {
    let lock = || {
        shared
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    };
    let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
    match command {
        "LOGIN" => {
            std::thread::sleep(own.delay);
            let mut shared = lock();
            shared.issued += 1;
            // Any function that is not the same for two salts.
            let token = (shared.issued ^ own.salt << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let token = format!("{token:016x}");
            shared.tokens.insert(token.clone());
            format!("token={token}")
        }
        "WHO" => match lock().tokens.contains(rest) {
            true => "known".to_owned(),
            false => "unknown".to_owned(),
        },
        "PUT" => {
            let (sector, text) = rest.split_once(' ').unwrap_or((rest, ""));
            let mut data = Aligned([0; SECTOR]);
            let length = text.len().min(SECTOR);
            data.0[..length].copy_from_slice(&text.as_bytes()[..length]);
            let at = sector.parse::<u64>().unwrap_or(0) * SECTOR as u64;
            match own.disk.as_ref().map(|disk| disk.write_all_at(&data.0, at)) {
                Some(Ok(())) => "put".to_owned(),
                other => format!("not put: {other:?}"),
            }
        }
        "GET" => {
            let mut data = Aligned([0; SECTOR]);
            let at = rest.parse::<u64>().unwrap_or(0) * SECTOR as u64;
            match own
                .disk
                .as_ref()
                .map(|disk| disk.read_exact_at(&mut data.0, at))
            {
                Some(Ok(())) => {
                    let text = data.0.split(|byte| *byte == 0).next().unwrap_or_default();
                    String::from_utf8_lossy(text).into_owned()
                }
                other => format!("not got: {other:?}"),
            }
        }
        "SYNC" => match own.disk.as_ref().map(File::sync_all) {
            Some(Ok(())) => "synced".to_owned(),
            other => format!("not synced: {other:?}"),
        },
        "ADD" => {
            let mut shared = lock();
            shared.added += 1;
            shared.added.to_string()
        }
        "SAY" => {
            match rest.starts_with("own") {
                true => println!("{rest} {}", own.salt),
                false => println!("{rest}"),
            }
            "said".to_owned()
        }
        "VERSION" => own.version.clone(),
        "HANG" if own.hangs => loop {
            std::hint::spin_loop();
        },
        "HANG" => "passed".to_owned(),
        _ => "what?".to_owned(),
    }
}

fn serve(own: &Own, shared: &Mutex<Shared>, stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        let answer = format!("{}\n", answer(own, shared, &line?));
        writer.write_all(answer.as_bytes())?;
    }
    Ok(())
}

fn main() {
    let own = Arc::new(own());
    let shared = Arc::<Mutex<Shared>>::default();
    let listener = match TcpListener::bind("0.0.0.0:7000") {
        Ok(listener) => listener,
        Err(error) => return println!("port 7000: {error}"),
    };
    println!("serves");
    for stream in listener.incoming().flatten() {
        let (own, shared) = (Arc::clone(&own), Arc::clone(&shared));
        std::thread::spawn(move || {
            // The client has gone.
            let _ = serve(&own, &shared, stream);
        });
    }
}
