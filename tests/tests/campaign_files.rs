//! The ready campaigns run, their templates for clusters do what they say, and wrong campaign files are refused by line and key.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use quorate_tests::campaign::{
    CAMPAIGN_TIMEOUT, all_ready, campaign, command, outcomes, ready, table, trials, trials_of,
};
use quorate_tests::process::run;
use quorate_tests::set::quorate;
use quorate_tests::{one_at_a_time, repository};

/// Draws of each ready campaign.
const EACH: u64 = 8;

#[test]
fn each_ready_campaign_runs() {
    let _turn = one_at_a_time("each ready campaign with a few trials");
    let files = all_ready().unwrap();
    assert!(files.len() >= 6, "{files:?}");
    for file in files {
        let out = tempfile::tempdir().unwrap();
        let out = out.path().join("out");
        let begun = std::time::Instant::now();
        let found = trials_of(&file, &out, &["--trials", &EACH.to_string()]).unwrap();
        println!(
            "{}: {:?} in {:.1} s",
            file.display(),
            outcomes(found.iter()),
            begun.elapsed().as_secs_f64()
        );
        assert!(!found.is_empty());
        let failed = found.iter().filter(|t| t.outcome() == "injector-failure");
        assert!(failed.count() * 2 <= found.len(), "{found:#?}");
        for name in ["report.html", "report.json", "trials.csv", "campaign.json"] {
            let path = out.join(name);
            assert!(path.is_file(), "{}", path.display());
        }
        // They hold the guest's memory and the seeds.
        assert_eq!(out.metadata().unwrap().mode() & 0o777, 0o700);
        let secret = out.join("trials.jsonl");
        assert_eq!(secret.metadata().unwrap().mode() & 0o777, 0o600);
    }
}

#[test]
fn the_kernel_that_checks_itself_does() {
    let kernel = repository().join("campaigns/compute");
    let built = run(Command::new(kernel.join("build")), Duration::from_secs(120)).unwrap();
    assert_eq!(built.code, 0, "{}", built.stderr);
    let ask = |rounds: &str, seed: &str| {
        let mut command = Command::new(kernel.join("root/bin/compute"));
        command.args([rounds, seed]);
        run(command, Duration::from_secs(20)).unwrap()
    };
    // The same numbers, worked out here without vectors and checksums.
    for (rounds, seed) in [(1, 1), (7, 3), (40, 99)] {
        let ended = ask(&rounds.to_string(), &seed.to_string());
        let expected = format!("{rounds} {seed} {:016x} check ok\n", digest(rounds, seed));
        assert_eq!(String::from_utf8(ended.stdout).unwrap(), expected);
        assert_eq!(ended.code, 0);
    }
    assert_ne!(ask("0", "1").code, 0);
}

/// The compute kernel's digest.
fn digest(rounds: u64, seed: u64) -> u64 {
    const SIZE: usize = 16;
    const MODULUS: u64 = 251;
    let mut state = seed * 2 + 1;
    let mut next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % MODULUS
    };
    let mut matrix = || [[0; SIZE]; SIZE].map(|row: [u64; SIZE]| row.map(|_| next()));
    let (mut left, right) = (matrix(), matrix());
    for _ in 0..rounds {
        let product = |i: usize, j: usize| (0..SIZE).map(|k| left[i][k] * right[k][j]).sum::<u64>();
        left = std::array::from_fn(|i| std::array::from_fn(|j| product(i, j) % MODULUS));
    }
    left.iter()
        .flatten()
        .fold(0xcbf2_9ce4_8422_2325, |digest: u64, value| {
            (digest ^ value).wrapping_mul(0x100_0000_01b3)
        })
}

/// A campaign file, the line that must be named, and words of the message.
struct Wrong {
    text: &'static str,
    line: usize,
    says: &'static [&'static str],
}

const WRONG: &[Wrong] = &[
    Wrong {
        text: "appliance = \"APPLIANCE\"\n[[fault]]\nmodel = \"registers\"\n",
        line: 3,
        says: &["model", "registers", "register"],
    },
    Wrong {
        text: "appliance = \"APPLIANCE\"\n\n[[fault]]\nmodel = \"register\"\nregister = \"rax\"\n",
        line: 5,
        says: &["register", "registers"],
    },
    Wrong {
        text: "appliance = \"APPLIANCE\"\nreplicas = [1, 3, 12]\n[[fault]]\nmodel = \"crash\"\n",
        line: 2,
        says: &["replicas", "12", "9"],
    },
    Wrong {
        text: "appliance = \"no-such.toml\"\n[[fault]]\nmodel = \"crash\"\n",
        line: 1,
        says: &["appliance", "no-such.toml"],
    },
    Wrong {
        text: "appliance = \"APPLIANCE\"\n[workload]\ncommand = [\"./no-such-client\"]\n[[fault]]\nmodel = \"crash\"\n",
        line: 3,
        says: &["command", "no-such-client"],
    },
    Wrong {
        text: "appliance = \"APPLIANCE\"\n[[fault]]\nmodel = \"memory\"\nclass = \"haep\"\n",
        line: 4,
        says: &["class", "haep", "heap"],
    },
    Wrong {
        text: "appliance = \"APPLIANCE\"\n[oracle]\nerrors = [\"(\"]\n[[fault]]\nmodel = \"crash\"\n",
        line: 3,
        says: &["errors", "("],
    },
    Wrong {
        text: "appliance = \"APPLIANCE\"\n[[fault]]\nmodel = \"memory\"\nclass = \"heap\"\nat = \"110%\"\n",
        line: 5,
        says: &["at", "110%"],
    },
    Wrong {
        text: "appliance = \"APPLIANCE\"\n[[fault]\nmodel = \"crash\"\n",
        line: 2,
        says: &["array table"],
    },
];

#[test]
fn wrong_campaign_files_are_refused_by_line_and_key() {
    let _turn = one_at_a_time("campaign files with mistakes");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("wrong.toml");
    let appliance = repository().join("images/appliances/busybox.toml");
    let appliance = appliance.canonicalize().unwrap().display().to_string();
    for Wrong { text, line, says } in WRONG {
        std::fs::write(&file, text.replace("APPLIANCE", &appliance)).unwrap();
        let out = directory.path().join("out");
        let words = [file.to_str().unwrap(), "--out", out.to_str().unwrap()];
        let ended = campaign(&words).unwrap();
        println!("{}", ended.stderr.trim_end());
        assert_eq!(ended.code, 3, "{text}\n{}", ended.stderr);
        let place = format!("wrong.toml:{line}");
        assert!(ended.stderr.contains(&place), "{place}: {}", ended.stderr);
        for word in *says {
            assert!(ended.stderr.contains(word), "{word}: {}", ended.stderr);
        }
        assert!(!out.exists(), "nothing is made of a wrong file");
    }
    let ended = campaign(&["no-such-campaign.toml"]).unwrap();
    assert_eq!(ended.code, 3, "{}", ended.stderr);
    assert!(
        ended.stderr.contains("no-such-campaign.toml"),
        "{}",
        ended.stderr
    );
    for words in [
        &["--shard", "4/3"][..],
        &["--shard", "0/3"],
        &["--half-width", "2"],
    ] {
        let file = ready("redis").display().to_string();
        let mut all = vec![file.as_str()];
        all.extend(words);
        let ended = campaign(&all).unwrap();
        assert_eq!(ended.code, 2, "{words:?}: {}", ended.stderr);
    }
}

fn deploy(name: &str) -> PathBuf {
    repository().join("campaigns/deploy").join(name)
}

/// A directory with `quorate` in it, for PATH.
fn programs(directory: &Path) -> std::ffi::OsString {
    let bin = directory.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    std::os::unix::fs::symlink(quorate().unwrap(), bin.join("quorate")).unwrap();
    // With the clients that `command` puts there.
    let command = command(&[]).unwrap();
    let path = command.get_envs().find(|(name, _)| *name == "PATH");
    let path = path.and_then(|(_, value)| value).unwrap();
    std::env::join_paths(std::iter::once(bin).chain(std::env::split_paths(path))).unwrap()
}

/// The script of each container of the template: what follows `- |`, without its indentation.
fn scripts(text: &str) -> Vec<String> {
    let mut scripts = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line.trim() != "- |" {
            continue;
        }
        let indent = line.len() - line.trim_start().len() + 2;
        let mut script = String::new();
        while let Some(line) = lines.next_if(|line| {
            line.trim().is_empty() || line.len() - line.trim_start().len() >= indent
        }) {
            script.push_str(line.get(indent..).unwrap_or_default());
            script.push('\n');
        }
        scripts.push(script);
    }
    scripts
}

#[test]
fn the_kubernetes_template_does_a_campaign_in_shards() {
    let _turn = one_at_a_time("the command lines of the Kubernetes template");
    let text = std::fs::read_to_string(deploy("kubernetes-job.yaml")).unwrap();
    for needed in [
        "completionMode: Indexed",
        "completions: 8",
        "value: \"8\"",
        "path: /dev/kvm",
        "kind: PersistentVolumeClaim",
        "suspend: true",
    ] {
        assert!(text.contains(needed), "{needed}");
    }
    let scripts = scripts(&text);
    let [shard, merge] = scripts.as_slice() else {
        panic!("{scripts:?}");
    };
    let directory = tempfile::tempdir().unwrap();
    let path = programs(directory.path());
    let out = directory.path().join("results");
    let run_script = |script: &str, variables: &BTreeMap<&str, String>| {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-ec", script])
            .envs(variables)
            .env("PATH", &path)
            .env("OUT", &out);
        let ended = run(command, CAMPAIGN_TIMEOUT).unwrap();
        assert_eq!(ended.code, 0, "{script}\n{}", ended.stderr);
    };
    let file = ready("compute").display().to_string();
    let mut variables = BTreeMap::from([
        ("CAMPAIGN", file.clone()),
        ("TRIALS", EACH.to_string()),
        ("SHARDS", "2".to_owned()),
        ("JOBS", "1".to_owned()),
    ]);
    for index in 0..2 {
        variables.insert("JOB_COMPLETION_INDEX", index.to_string());
        run_script(shard, &variables);
    }
    run_script(merge, &variables);
    let whole = directory.path().join("whole");
    let expected = trials_of(Path::new(&file), &whole, &["--trials", &EACH.to_string()]).unwrap();
    let merged = trials(&out.join("merged")).unwrap();
    assert_eq!(table(&merged).unwrap(), table(&expected).unwrap());
}

/// Does what `sbatch` does with the script that it is given, at once: the tasks of an array one after another, a dependent job if
/// those before it succeeded.
const SBATCH: &str = r#"#!/bin/bash
set -eu
array= script= dependency=
while [ -z "$script" ]; do
  case $1 in
    --array=*) array=${1#*=} ;;
    --dependency=afterok:*) dependency=${1##*:} ;;
    --parsable | --output=* | --cpus-per-task=* | --mem=*) ;;
    -*) echo "sbatch: unknown option $1" >&2; exit 2 ;;
    *) script=$1 ;;
  esac
  shift
done
if [ -n "$dependency" ] && [ ! -e "$SPOOL/$dependency.ok" ]; then
  echo "sbatch: job $dependency has failed" >&2
  exit 1
fi
job=$(($(ls "$SPOOL" | wc -l) + 100))
# On a node, the script has another name.
cp "$script" "$SPOOL/$job.script"
export SLURM_JOB_ID=$job SLURM_CPUS_PER_TASK=1
if [ -n "$array" ]; then
  last=${array#1-}
  export SLURM_ARRAY_JOB_ID=$job SLURM_ARRAY_TASK_COUNT=$last SLURM_ARRAY_TASK_MIN=1
  for ((task = 1; task <= last; task++)); do
    SLURM_ARRAY_TASK_ID=$task "$SPOOL/$job.script" "$@" >&2
  done
else
  "$SPOOL/$job.script" "$@" >&2
fi
touch "$SPOOL/$job.ok"
echo "$job;cluster"
"#;

#[test]
fn the_slurm_template_does_a_campaign_in_shards() {
    let _turn = one_at_a_time("the Slurm template with an sbatch that works at once");
    let script = deploy("slurm-array.sh");
    let mut syntax = Command::new("bash");
    syntax.arg("-n").arg(&script);
    assert_eq!(run(syntax, Duration::from_secs(20)).unwrap().code, 0);
    let directory = tempfile::tempdir().unwrap();
    let path = programs(directory.path());
    let sbatch = directory.path().join("bin/sbatch");
    std::fs::write(&sbatch, SBATCH).unwrap();
    std::fs::set_permissions(&sbatch, std::fs::Permissions::from_mode(0o755)).unwrap();
    let spool = directory.path().join("spool");
    std::fs::create_dir(&spool).unwrap();
    let out = directory.path().join("results");
    let file = ready("compute").display().to_string();
    let mut submit = Command::new(&script);
    submit
        .args([file.as_str(), "2", out.to_str().unwrap(), "--trials"])
        .arg(EACH.to_string())
        .env("PATH", &path)
        .env("SPOOL", &spool);
    let ended = run(submit, CAMPAIGN_TIMEOUT).unwrap();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let said = String::from_utf8(ended.stdout).unwrap();
    assert!(said.contains("merged/report.html"), "{said}");
    let whole = directory.path().join("whole");
    let expected = trials_of(Path::new(&file), &whole, &["--trials", &EACH.to_string()]).unwrap();
    let merged = trials(&out.join("merged")).unwrap();
    assert_eq!(table(&merged).unwrap(), table(&expected).unwrap());
    // Called wrongly it says how.
    let mut bare = Command::new(&script);
    bare.arg(&file);
    assert_eq!(run(bare, Duration::from_secs(20)).unwrap().code, 2);
}
