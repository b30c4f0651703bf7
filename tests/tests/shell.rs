//! Shell scripts in the guest: pipelines, subshells, jobs, traps and what they start, the same in three replicas as a shell says
//! anywhere.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::process::Command;
use std::time::Duration;

use quorate_tests::one_at_a_time;
use quorate_tests::process::{Ended, run};
use quorate_tests::set::quorate;

const LONG: Duration = Duration::from_secs(120);
const APPLETS: [&str; 26] = [
    "sh", "ls", "cat", "find", "xargs", "sort", "wc", "seq", "grep", "sleep", "kill", "head",
    "tail", "tr", "sed", "awk", "uniq", "mkdir", "rm", "mv", "dd", "printf", "basename", "env",
    "cut", "tee",
];

/// Runs a script with busybox' shell.
fn script(text: &str, replicas: usize) -> Ended {
    let directory = tempfile::tempdir().unwrap();
    let links: Vec<String> = APPLETS
        .iter()
        .map(|name| format!("{{ path = \"/bin/{name}\", link = \"busybox\" }}"))
        .collect();
    std::fs::write(directory.path().join("script"), text).unwrap();
    let appliance = format!(
        "version = 1\nname = \"shell\"\n[image]\npackages = [\"busybox-static\"]\n\
         files = [{}, {{ path = \"/script\", source = \"script\" }}]\n\
         [program]\ncommand = [\"/bin/sh\", \"/script\", \"one\", \"two words\"]\n\
         [machine]\nmemory = \"64M\"\nreplicas = {replicas}\nlayout = \"random\"\n",
        links.join(", ")
    );
    let path = directory.path().join("shell.toml");
    std::fs::write(&path, appliance).unwrap();
    let mut command = Command::new(quorate().unwrap());
    command
        .arg("run")
        .arg(&path)
        .arg("--control")
        .arg(directory.path().join("control.sock"));
    run(command, LONG).unwrap()
}

fn says(text: &str, expected: &str) {
    let ended = script(text, 3);
    let out = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert_eq!(out, expected, "{}", ended.stderr);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(!ended.stderr.contains("verdict"), "{}", ended.stderr);
}

#[test]
fn pipelines_and_substitutions() {
    let _alone = one_at_a_time("pipelines and substitutions of a shell");
    says(
        r#"
echo "$# arguments: $1, $2"
i=0; while [ $i -lt 12 ]; do i=$((i+1)); printf '%s ' "$(echo $i | tr 0-9 a-j)"; done; echo
seq 1 1000 | grep 7 | sort -r | head -3
seq 1 2000 | awk '{ s += $1 } END { print s }'
mkdir -p /tmp/a/b; for f in 3 1 2; do echo $f > /tmp/a/b/$f; done
find /tmp/a -type f | sort | xargs cat | tr '\n' ' '; echo
find /tmp/a -type f -exec cat {} + | sort | uniq -c | wc -l
dd if=/dev/zero bs=1k count=300 2>/dev/null | wc -c
cat <<END | sed s/a/b/
banana $((6 * 7))
END
x=$(cat /tmp/a/b/* | tee /tmp/all | wc -l); echo "$x $(cat /tmp/all | sort | tr -d '\n')"
(cd /tmp/a && ls) && ls /tmp/a/b | tail -1
env -i A=5 B=six env | sort
echo done
"#,
        "2 arguments: one, two words\n\
         b c d e f g h i j ba bb bc \n\
         997\n987\n979\n\
         2001000\n\
         1 2 3 \n\
         3\n\
         307200\n\
         bbnana 42\n\
         3 123\n\
         b\n3\n\
         A=5\nB=six\n\
         done\n",
    );
}

#[test]
fn jobs_statuses_and_signals() {
    let _alone = one_at_a_time("jobs, statuses and signals of a shell");
    says(
        r#"
(exit 3); echo $?
sh -c 'kill -9 $$'; echo $?
false || echo no
sleep 0.2 & first=$!; sleep 0.1 & wait $!; echo "second $?"; wait $first; echo "first $?"
( sleep 0.05; echo late ) & echo early; wait
trap 'echo caught' USR1; kill -USR1 $$; sh -c "kill -USR1 $$"; sleep 0.01; echo after
sh -c 'sleep 100' & victim=$!; kill -TERM $victim; wait $victim; echo "victim $?"
sh -c 'trap "" TERM; kill -TERM $$; echo survived'
yes_no() { while echo y; do :; done 2>/dev/null; }; yes_no | head -2
exec 3>/tmp/three; echo three >&3; exec 3>&-; cat /tmp/three
[ "$(sh -c 'echo $PPID')" = "$$" ] && echo parent
for i in 1 2 3 4 5 6 7 8; do (echo $i > /tmp/par.$i) & done; wait; cat /tmp/par.* | tr -d '\n'; echo
exec sh -c 'echo last'
"#,
        "3\nKilled\n137\nno\nsecond 0\nfirst 0\nearly\nlate\ncaught\ncaught\nafter\nTerminated\nvictim 143\nsurvived\n\
         y\ny\nthree\nparent\n12345678\nlast\n",
    );
}
