//! The recorder, with bash as the client and a server of a few lines as the appliance.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::talk::conversation::{Act, Conversation};
use crate::talk::record::{RecordError, RecordSettings, record};

/// Answers each line of each connection with `+LINE`, one byte at a time if `slowly`; for so many connections.
fn server(connections: usize, slowly: bool) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let mut threads = Vec::new();
        for _ in 0..connections {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            threads.push(std::thread::spawn(move || {
                let (mut line, mut byte) = (vec![b'+'], [0]);
                while stream.read(&mut byte).unwrap_or(0) == 1 {
                    line.push(byte[0]);
                    if byte[0] != b'\n' {
                        continue;
                    }
                    for piece in line.chunks(if slowly { 1 } else { usize::MAX }) {
                        if stream.write_all(piece).is_err() {
                            return;
                        }
                        std::thread::yield_now();
                    }
                    line.truncate(1);
                }
            }));
        }
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    });
    (at, thread)
}

fn bash(script: &str) -> Vec<String> {
    ["bash", "-c", script].map(str::to_owned).to_vec()
}

fn recorded(script: &str, connections: usize, slowly: bool) -> Conversation {
    let (at, thread) = server(connections, slowly);
    let recorded = record(&bash(script), &[(7000, at)], &RecordSettings::default()).unwrap();
    thread.join().unwrap();
    recorded.conversation.check().unwrap();
    recorded.conversation
}

const SEQUENTIAL: &str = r#"
exec 3<>/dev/tcp/$QUORATE_HOST/$QUORATE_PORT_7000
for text in one two three; do printf '%s\n' $text >&3; read -r answer <&3; [ "$answer" = "+$text" ]; done
exec 3>&-
exec 4<>/dev/tcp/$QUORATE_HOST/$QUORATE_PORT
echo four >&4; read -r answer <&4; echo "$answer"
"#;

#[test]
fn a_client_says_the_same_however_its_bytes_are_cut() {
    let whole = recorded(SEQUENTIAL, 2, false);
    assert_eq!(whole, recorded(SEQUENTIAL, 2, true), "the server's pieces");
    let pieces = SEQUENTIAL.replace(
        r"printf '%s\n' $text >&3",
        r"for ((i=0; i<${#text}; i++)); do printf '%s' ${text:i:1} >&3; done; echo >&3",
    );
    assert_ne!(pieces, SEQUENTIAL);
    assert_eq!(whole, recorded(&pieces, 2, false), "the client's pieces");
    let pauses = SEQUENTIAL.replace(
        "printf '%s\\n' $text >&3",
        "printf '%s' $text >&3; sleep 0.02; echo >&3",
    );
    assert_ne!(pauses, SEQUENTIAL);
    assert_eq!(whole, recorded(&pauses, 2, true), "pauses");

    assert_eq!(whole.connections, [7000, 7000]);
    let sends: Vec<&Act> = whole.events.iter().map(|event| &event.act).collect();
    assert_eq!(sends[1], &Act::Send(b"one\n".to_vec()));
    assert_eq!(whole.events[2].after[0].bytes, 5);
    assert_eq!((whole.events.len(), sends[4]), (8, &Act::Shut));
    assert_eq!(whole.end[0].bytes, 5 + 5 + 7);
}

#[test]
fn a_client_with_connections_side_by_side_says_the_same_each_time() {
    let script = r#"
talk() { exec 3<>/dev/tcp/$QUORATE_HOST/$QUORATE_PORT_7000; for n in 1 2 3; do echo "$1 $n" >&3; read -r answer <&3; done; }
talk a & talk b & talk c & wait
"#;
    let first = recorded(script, 3, false);
    assert_eq!(first.connections.len(), 3);
    assert_eq!(first, recorded(script, 3, true));
    assert_eq!(first, recorded(script, 3, false));
}

#[test]
fn a_client_that_fails_shows_what_it_said() {
    let (at, _server) = server(0, false);
    let fail = |script: &str, settings: &RecordSettings| {
        record(&bash(script), &[(7000, at)], settings).unwrap_err()
    };
    let error = fail("echo nothing here >&2; exit 3", &RecordSettings::default());
    assert!(matches!(error, RecordError::Failed { .. }));
    let text = error.to_string();
    assert!(
        text.contains("nothing here") && text.contains('3'),
        "{text}"
    );
    let short = RecordSettings {
        timeout: Duration::from_millis(300),
        ..RecordSettings::default()
    };
    let error = fail("echo waiting; sleep 100", &short).to_string();
    assert!(
        error.contains("did not end")
            && error.contains("waiting")
            && error.contains("not connected"),
        "{error}"
    );
    let error = record(&["/no/such/program".to_owned()], &[(7000, at)], &short).unwrap_err();
    assert!(error.to_string().contains("/no/such/program"));
    assert!(matches!(record(&[], &[], &short), Err(RecordError::Empty)));
}

#[test]
fn the_environment_names_all_ports() {
    let settings = RecordSettings::default();
    let at: SocketAddr = "127.0.0.1:9".parse().unwrap();
    let script = r#"[ "$QUORATE_PORT" = "$QUORATE_PORT_80" ] && [ -n "$QUORATE_PORT_81" ] && [ "$QUORATE_HOST" = 127.0.0.1 ] && echo fine"#;
    let recorded = record(&bash(script), &[(80, at), (81, at)], &settings).unwrap();
    assert_eq!(
        (recorded.stdout.as_slice(), recorded.status),
        (b"fine\n".as_slice(), 0)
    );
    assert_eq!(recorded.conversation, Conversation::default());
}
