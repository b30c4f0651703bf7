#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use crate::talk::heard::HeardConnection;

fn heard(replies: &[&str]) -> Heard {
    let mut connection = HeardConnection {
        port: 6379,
        ending: Ending::ByClient,
        ..HeardConnection::default()
    };
    for reply in replies {
        connection.sends.push(connection.bytes.len());
        connection.bytes.extend_from_slice(reply.as_bytes());
    }
    Heard {
        connections: vec![connection],
        console: b"ready at 12:00\n".to_vec(),
        course: Course::Complete,
        ..Heard::default()
    }
}

fn oracle() -> Oracle {
    Oracle {
        compare: vec![Channel::Client, Channel::Disk, Channel::Console],
        masks: vec![
            Mask {
                channel: Channel::Client,
                pattern: "time:[0-9]+".to_owned(),
                replace: "time:T".to_owned(),
            },
            Mask {
                channel: Channel::Console,
                pattern: "[0-9]+:[0-9]+".to_owned(),
                replace: "T".to_owned(),
            },
        ],
        errors: vec!["(?m)^-[A-Z]+ ".to_owned()],
        ignore_sectors: vec![Sectors {
            disk: Some("data".to_owned()),
            first: 9,
            last: 9,
        }],
    }
}

fn content(sectors: &[(u64, u8)]) -> Vec<DiskContent> {
    let written = sectors
        .iter()
        .map(|(sector, byte)| (sector * 512, vec![*byte; 512]))
        .collect();
    vec![DiskContent { written }]
}

fn judge() -> (Judge, File) {
    let base = tempfile::tempfile().unwrap();
    base.set_len(1 << 20).unwrap();
    let golden = heard(&[
        "+OK\r\n",
        "time:17\r\n",
        "-ERR usual\r\n",
        "$5\r\nhello\r\n",
    ]);
    let disks = vec![("data".to_owned(), base.try_clone().unwrap())];
    (
        Judge::of(&oracle(), golden, content(&[(3, 7)]), End::Stopped, disks).unwrap(),
        base,
    )
}

struct Case {
    heard: Heard,
    disks: Vec<DiskContent>,
    end: End,
    over: bool,
    spun: Option<Spun>,
    events: Vec<Event>,
    replicas: u8,
}

fn healthy() -> Case {
    Case {
        heard: heard(&[
            "+OK\r\n",
            "time:99\r\n",
            "-ERR usual\r\n",
            "$5\r\nhello\r\n",
        ]),
        disks: content(&[(3, 7)]),
        end: End::Stopped,
        over: true,
        spun: None,
        events: Vec::new(),
        replicas: 1,
    }
}

fn decide(case: &Case) -> (Outcome, String) {
    let (judge, _base) = judge();
    let judgement = judge.judge(&Trial {
        replicas: case.replicas,
        not_injected: None,
        heard: &case.heard,
        disks: &case.disks,
        end: &case.end,
        over: case.over,
        spun: case.spun,
        events: &case.events,
    });
    assert!(!judgement.evidence.contains('\n'));
    (judgement.outcome, judgement.evidence)
}

fn stopped(replica: usize, reason: &str) -> Event {
    Event::ReplicaStopped {
        replica,
        boundary: 5,
        reason: reason.to_owned(),
    }
}

#[test]
fn what_a_mask_hides_is_not_a_deviation_and_what_it_does_not_hide_is() {
    assert_eq!(decide(&healthy()).0, Outcome::Masked);
    let mut case = healthy();
    case.heard = heard(&[
        "+OK\r\n",
        "time:x7\r\n",
        "-ERR usual\r\n",
        "$5\r\nhello\r\n",
    ]);
    let (outcome, evidence) = decide(&case);
    assert_eq!(outcome, Outcome::SilentCorruption);
    assert!(
        evidence.contains("connection 0 (port 6379), byte 10") && evidence.contains("78 37"),
        "{evidence}"
    );
    let mut case = healthy();
    case.heard.console = b"ready at 23:59\n".to_vec();
    assert_eq!(decide(&case).0, Outcome::Masked);
    case.heard.console = b"reedy at 23:59\n".to_vec();
    assert_eq!(decide(&case).0, Outcome::SilentCorruption);
}

#[test]
fn a_wrong_byte_is_silent_unless_its_reply_or_one_before_says_so() {
    let of = |replies: &[&str]| {
        decide(&Case {
            heard: heard(replies),
            ..healthy()
        })
    };
    let (outcome, evidence) = of(&["+OK\r\n", "time:9\r\n", "-ERR usual\r\n", "$5\r\nhellp\r\n"]);
    assert_eq!(outcome, Outcome::SilentCorruption);
    assert!(
        evidence.contains("\"p\\r\\n\" (70 0d 0a) instead of \"o\\r\\n\" (6f 0d 0a)"),
        "{evidence}"
    );
    let (outcome, evidence) = of(&[
        "+OK\r\n",
        "time:9\r\n",
        "-ERR usual\r\n",
        "-OOM no memory\r\n",
    ]);
    assert_eq!(outcome, Outcome::ClientError);
    assert!(evidence.contains("-OOM no memory"), "{evidence}");
    // The error comes after the wrong byte: the client has used that already.
    let (outcome, _) = of(&[
        "+KO\r\n",
        "time:9\r\n",
        "-ERR usual\r\n",
        "-OOM no memory\r\n",
    ]);
    assert_eq!(outcome, Outcome::SilentCorruption);
    // An error that is in the golden run announces nothing.
    let (outcome, _) = of(&["+OK\r\n", "time:9\r\n", "-ERR usual\r\n", "$5\r\nhallo\r\n"]);
    assert_eq!(outcome, Outcome::SilentCorruption);
    let (outcome, _) = of(&[
        "+OK\r\n",
        "time:9\r\n",
        "-ERR usual\r\n",
        "$5\r\nhello\r\nmore",
    ]);
    assert_eq!(outcome, Outcome::SilentCorruption);
}

#[test]
fn disks_are_compared_by_what_is_on_them() {
    let of = |sectors: &[(u64, u8)]| {
        decide(&Case {
            disks: content(sectors),
            ..healthy()
        })
    };
    assert_eq!(
        of(&[(3, 7), (5, 0)]).0,
        Outcome::Masked,
        "zeros where zeros were"
    );
    assert_eq!(of(&[(3, 7), (9, 1)]).0, Outcome::Masked, "ignored");
    let (outcome, evidence) = of(&[(3, 7), (10, 1)]);
    assert_eq!(outcome, Outcome::SilentCorruption);
    assert!(
        evidence.starts_with("disk data, sector 10, byte 0"),
        "{evidence}"
    );
    assert_eq!(of(&[]).0, Outcome::SilentCorruption, "a lost write");
    let crashed = Case {
        disks: content(&[]),
        end: End::Exited {
            wait_status: 11,
            requested: false,
        },
        over: false,
        ..healthy()
    };
    assert_eq!(
        decide(&crashed).0,
        Outcome::Crash,
        "a run that was cut off has another disk"
    );
}

#[test]
fn ends_have_their_classes() {
    let cut = || {
        let mut heard = heard(&["+OK\r\n", "time:9"]);
        heard.course = Course::Unfinished;
        heard
    };
    let quorum = |detail: &str| End::NoQuorum {
        detail: detail.to_owned(),
    };
    let of = |replicas, end, events| {
        decide(&Case {
            heard: cut(),
            over: false,
            replicas,
            end,
            events,
            ..healthy()
        })
        .0
    };
    assert_eq!(
        of(
            1,
            End::Exited {
                wait_status: 139,
                requested: false
            },
            vec![]
        ),
        Outcome::Crash
    );
    assert_eq!(
        of(1, quorum("none"), vec![stopped(0, "crashed: triple fault")]),
        Outcome::Crash
    );
    assert_eq!(
        of(1, quorum("none"), vec![stopped(0, "did not keep up: 5 ms")]),
        Outcome::Hang
    );
    assert_eq!(of(2, quorum("two halves"), vec![]), Outcome::Stopped);
    assert_eq!(
        of(
            2,
            quorum("none"),
            vec![stopped(0, "crashed: x"), stopped(1, "crashed: x")]
        ),
        Outcome::Crash
    );
    assert_eq!(
        of(
            3,
            quorum("none"),
            vec![stopped(0, "crashed: x"), stopped(1, "outvoted")]
        ),
        Outcome::Stopped
    );
    let failed = End::Failed {
        code: quorate_executor::exit::ExitCode::Host,
        detail: "no memory".to_owned(),
    };
    assert_eq!(of(3, failed, vec![]), Outcome::InjectorFailure);
    let spun = Some(Spun {
        boundary: 3,
        replica: 0,
        stalled: false,
    });
    assert_eq!(
        decide(&Case {
            heard: cut(),
            over: false,
            spun,
            ..healthy()
        })
        .0,
        Outcome::Hang
    );

    let course = |course: Course| {
        let mut heard = cut();
        heard.course = course;
        decide(&Case { heard, ..healthy() }).0
    };
    assert_eq!(
        course(Course::Stuck {
            why: "w".to_owned()
        }),
        Outcome::Hang
    );
    assert_eq!(
        course(Course::Broken {
            connection: 0,
            why: "w".to_owned()
        }),
        Outcome::ClientError
    );
    let mut case = healthy();
    case.heard.connections[0].ending = Ending::ByGuest;
    assert_eq!(decide(&case).0, Outcome::ClientError);
    let case = Case {
        replicas: 3,
        events: vec![stopped(2, "outvoted at 5")],
        ..healthy()
    };
    assert_eq!(decide(&case).0, Outcome::Corrected);
}

#[test]
fn a_wrong_byte_before_a_crash_is_silent_all_the_same() {
    let mut wrong = heard(&["+OK\r\n", "tame:9\r\n"]);
    wrong.course = Course::Unfinished;
    let case = Case {
        heard: wrong,
        over: false,
        end: End::Exited {
            wait_status: 139,
            requested: false,
        },
        ..healthy()
    };
    assert_eq!(decide(&case).0, Outcome::SilentCorruption);
}

#[test]
fn what_was_not_injected_says_nothing() {
    let (judge, _base) = judge();
    let case = healthy();
    let trial = Trial {
        replicas: 1,
        not_injected: Some("no such symbol"),
        heard: &case.heard,
        disks: &case.disks,
        end: &case.end,
        over: true,
        spun: None,
        events: &[],
    };
    assert_eq!(judge.judge(&trial).outcome, Outcome::InjectorFailure);
}
