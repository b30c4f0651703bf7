//! `quorate replay --gdb`: Debian's own gdb at a recorded run of Redis, forwards and back.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use quorate_tests::one_at_a_time;
use quorate_tests::process::{Ended, Process, run};
use quorate_tests::resp::Client;
use quorate_tests::resp::words;
use quorate_tests::set::{Options, quorate};
use serde_json::Value;

/// Upper bound for what takes seconds.
const LONG: Duration = Duration::from_secs(120);

/// A recorded run: a client sets four keys one after the other.
struct Recorded {
    _directory: tempfile::TempDir,
    file: PathBuf,
    fingerprint: String,
}

fn record() -> Recorded {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("run.rec");
    let set = Options::redis()
        .arguments(&["--record", file.to_str().unwrap()])
        .start()
        .unwrap();
    let mut client = Client::connect(set.address()).unwrap();
    for number in 0..4 {
        let request = words(&format!("SET key:{number} value-{number}"));
        assert_eq!(client.call(&request).unwrap(), b"+OK\r\n");
    }
    assert_eq!(
        client.call(&words("GET key:2")).unwrap(),
        b"$7\r\nvalue-2\r\n"
    );
    let ended = set.stop().unwrap();
    let (_, rest) = ended.stderr.rsplit_once("; fingerprint ").unwrap();
    Recorded {
        _directory: directory,
        fingerprint: rest.lines().next().unwrap().to_owned(),
        file,
    }
}

/// `quorate replay --gdb`, waiting.
fn waiting(file: &Path, arguments: &[&str]) -> (Process, SocketAddr) {
    let mut command = Command::new(quorate().unwrap());
    command.arg("replay").arg(file);
    command.args(["--json", "--gdb", "0"]).args(arguments);
    let replay = Process::start(command).unwrap();
    let waits = "waiting for gdb at ";
    let line = replay.wait_for_line(waits, 0, LONG, |line| line.contains(waits));
    let line = line.unwrap().text;
    let (_, address) = line.split_once(waits).unwrap();
    let address: SocketAddr = address.parse().unwrap();
    assert!(address.ip().is_loopback());
    (replay, address)
}

/// gdb with the script that the replay has written, and then these commands. What it printed.
fn gdb(file: &Path, commands: &str) -> String {
    let script = file.with_extension("commands");
    let own = format!("{}.gdb", file.display());
    std::fs::write(&script, format!("source {own}\nset language c\n{commands}")).unwrap();
    let mut command = Command::new("gdb");
    command.args(["-nx", "-batch", "-x"]).arg(&script);
    let ended =
        run(command, LONG).expect("these tests need gdb: `scripts/setup clients` installs it");
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    format!("{said}\n{}", ended.stderr)
}

/// The replay has gone on to its end: nothing differs.
fn same(ended: &Ended, fingerprint: &str) {
    let json: Value = serde_json::from_slice(&ended.stdout).unwrap_or(Value::Null);
    assert_eq!(ended.code, 0, "{json:#}\n{}", ended.stderr);
    assert_eq!(json["differs"], Value::Null);
    assert_eq!(json["fingerprint"], fingerprint);
}

/// What a line `NAME:…` of gdb says.
fn said<'a>(text: &'a str, name: &str) -> &'a str {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(":"));
    line.unwrap_or_else(|| panic!("no {name} in what gdb printed:\n{text}"))
}

/// The same with the six lines that follow: the rest of a request, which has line ends in it.
fn whole(text: &str, name: &str) -> String {
    let first = said(text, name);
    let behind = text.lines().skip_while(|line| {
        let rest = line.strip_prefix(name);
        rest.and_then(|rest| rest.strip_prefix(":")) != Some(first)
    });
    let rest: Vec<&str> = behind.skip(1).take(6).map(str::trim).collect();
    format!("{} {}", first.trim(), rest.join(" "))
}

/// `client::querybuf`, in Redis 7.0: what the client sent. Debian's redis-server exports the names of its functions, so that `setCommand` is
/// known, but nothing of its types.
const SHOW: &str = "\
define here
  echo \\n$arg0:
  printf \"rip=%lx rsp=%lx rax=%lx rdi=%lx rbx=%lx rcx=%lx eflags=%x\", $rip, $rsp, $rax, $rdi, $rbx, $rcx, $eflags
end
define request
  here $arg0
  printf \" %s\\n\", *(char**)($rdi + 48)
end
";

#[test]
fn break_print_the_clients_buffer_and_go_back() {
    let _turn = one_at_a_time("gdb at a replay of Redis: breakpoints, steps, and back");
    let recorded = record();
    let file = &recorded.file;
    let mut first = None;
    for layout in [&[][..], &["--layout-seed", "another"]] {
        let (replay, _) = waiting(file, layout);
        let text = gdb(
            file,
            &format!(
                "{SHOW}
                break setCommand
                continue
                request set-0
                backtrace 3
                stepi
                here inside
                reverse-stepi
                request back
                reverse-stepi
                here caller
                echo \\ncalls:
                x/i $rip
                stepi
                request again
                continue
                request set-1
                continue
                request set-2
                reverse-continue
                request set-1-again
                reverse-continue
                request set-0-again
                delete
                continue
                printf \"ended: yes\\n\"
                reverse-stepi
                here last
                x/i $rip
                break setCommand
                reverse-continue
                request set-3
                monitor where
                delete
                detach
                "
            ),
        );
        let ended = replay.wait(LONG).unwrap();
        let sets: Vec<String> = ["set-0", "set-1", "set-2", "set-3"]
            .into_iter()
            .map(|name| whole(&text, name))
            .collect();
        for (number, set) in sets.iter().enumerate() {
            let wanted = format!(" *3 $3 SET $5 key:{number} $7 value-{number}");
            assert!(set.ends_with(&wanted), "{set}\n{text}");
        }
        assert!(text.contains("in setCommand ()"), "{text}");
        assert!(text.contains("in call ()"), "a backtrace:\n{text}");
        assert_eq!(whole(&text, "back"), sets[0]);
        assert_eq!(whole(&text, "again"), sets[0]);
        assert_eq!(whole(&text, "set-1-again"), sets[1]);
        assert_eq!(whole(&text, "set-0-again"), sets[0]);
        let rip = |name| said(&text, name).split(' ').next().unwrap().to_owned();
        assert_ne!(rip("inside"), rip("set-0"));
        assert_ne!(rip("caller"), rip("set-0"));
        assert!(said(&text, "calls").contains("call "), "{text}");
        assert!(text.contains("No more reverse-execution history"), "{text}");
        // The last instruction of all rings the sync device.
        assert!(text.contains("out    %eax,(%dx)"), "{text}");
        same(&ended, &recorded.fingerprint);
        // Nothing of this is the same in another layout but what the program does.
        match &first {
            None => first = Some(rip("set-0")),
            Some(other) => assert_ne!(rip("set-0"), *other),
        }
    }
}

#[test]
fn the_kernel_is_debugged_too_and_changes_are_gone_after_going_back() {
    let _turn = one_at_a_time("gdb at a replay of Redis: the kernel, and what gdb changes");
    let recorded = record();
    let (replay, _) = waiting(&recorded.file, &[]);
    let text = gdb(
        &recorded.file,
        "break handle_syscall
        continue
        continue
        printf \"in-kernel:%lx\\n\", $rip
        set $before = *(long*)$rsp
        set var *(long*)$rsp = 0x1234
        printf \"changed:%lx\\n\", *(long*)$rsp
        set $r15 = 0x4321
        printf \"register:%lx\\n\", $r15
        reverse-continue
        continue
        printf \"restored:%d\\n\", *(long*)$rsp == $before && $r15 != 0x4321
        monitor goto 2
        maintenance flush register-cache
        monitor where
        monitor goto 100000000
        monitor nonsense
        delete
        detach
        ",
    );
    let ended = replay.wait(LONG).unwrap();
    assert!(
        text.contains("handle_syscall () at src/sys/mod.rs"),
        "{text}"
    );
    assert_eq!(said(&text, "changed"), "1234");
    assert_eq!(said(&text, "register"), "4321");
    assert_eq!(said(&text, "restored"), "1");
    assert!(
        text.contains("on the way to boundary 2, at the first instruction"),
        "{text}"
    );
    assert!(text.contains("the recording ends before"), "{text}");
    assert!(text.contains("goto BOUNDARY"), "{text}");
    same(&ended, &recorded.fingerprint);
}

#[test]
fn what_is_no_gdb_ends_its_own_session_only() {
    let _turn = one_at_a_time("garbage at gdb's port");
    let recorded = record();
    let (replay, address) = waiting(&recorded.file, &[]);
    let garbage: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 100_000],
        b"$".to_vec(),
        b"$m0,ffffffffffffffff#00".to_vec(),
        b"$mffffffffffffffff,1000#ff$Mffffffffffffff00,ffff:00#00".to_vec(),
        [b"$X".to_vec(), vec![b'a'; 1 << 20], b"#00".to_vec()].concat(),
        b"$vCont;r0,ffffffffffffffff#00\x03\x03\x03".to_vec(),
        b"$Gzz#00$P0=#00$Z0,zz,1#00$qRcmd,zz#00$qRcmd,676f746f#00".to_vec(),
    ];
    let sessions = garbage.len();
    for bytes in garbage {
        let mut stream = TcpStream::connect(address).unwrap();
        // It may be hung up on meanwhile.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let ends = std::cell::Cell::new(0);
    let all_ended = |line: &str| {
        ends.set(ends.get() + usize::from(line.contains("gdb is gone")));
        ends.get() == sessions
    };
    replay
        .wait_for_line("gdb is gone", 0, LONG, all_ended)
        .unwrap();
    let text = gdb(
        &recorded.file,
        "break setCommand\ncontinue\ndelete\ndetach\n",
    );
    assert!(text.contains("in setCommand ()"), "{text}");
    same(&replay.wait(LONG).unwrap(), &recorded.fingerprint);
}
