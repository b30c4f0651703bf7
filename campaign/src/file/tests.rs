//! Good and bad campaign files.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use super::*;

fn parse(text: &str) -> Result<Campaign, String> {
    Campaign::parse(text, Path::new("campaign.toml")).map_err(|e| e.to_string())
}

#[test]
fn the_shortest_campaign_has_defaults_for_all() {
    let campaign = parse("appliance = \"redis.toml\"\n[[fault]]\nmodel = \"register\"\n").unwrap();
    assert_eq!(campaign.name, "campaign");
    assert_eq!(campaign.replicas, [1, 3]);
    let json = serde_json::to_string(&campaign).unwrap();
    let mut again: Campaign = serde_json::from_str(&json).unwrap();
    again.path = campaign.path.clone();
    assert_eq!(again, campaign);
}

/// As the ready campaign for redis has it.
const REDIS: &str = r#"
name = "redis"
description = "Single-bit faults on Debian's Redis"
appliance = "../images/appliances/redis.toml"
seed = "redis 1"
replicas = [1, 2, 3, 5]

[workload]
warmup = ["./redis-warmup.sh"]
command = ["./redis-client.sh", "--pipe"]
timeout_s = 30

[oracle]
compare = ["client", "console"]
errors = ['^-ERR', '^-LOADING']
[[oracle.mask]]
where = "console"
pattern = '\d+:M'
replace = "PID:M"

[trials]
half_width = 0.01
confidence = 0.99
max = 20000
interval = "wilson"
batch = 500

[limits]
hang_ms = 3000
boundaries = 5000

[[fault]]
name = "regs"
model = "register"
registers = ["general", "flags", "xmm3"]
split = true
when = "instruction"

[[fault]]
name = "heap"
model = "memory"
class = ["heap", "stack"]
burst = 4
weight = 3
when = "time"
distribution = "normal"
mean = "50%"
deviation = 1.5

[[fault]]
model = "clock"
how = "step"
step_us = [-500, 500]
copies = [1, 2]
symbol = "setCommand"
hit = [1, 10]
"#;

#[test]
fn a_complete_campaign() {
    let campaign = parse(REDIS).unwrap();
    assert_eq!(campaign.trials.count, None);
    assert_eq!(campaign.limits.boundaries, 5000);
    assert_eq!(campaign.oracle.masks[0].replace, "PID:M");
    assert_eq!(
        campaign.faults[0].when,
        When::Instruction {
            distribution: Distribution::Uniform {
                from: Point::Share(0),
                to: Point::Share(Point::WHOLE)
            }
        }
    );
    assert_eq!(
        campaign.faults[1].when,
        When::Time {
            distribution: Distribution::Normal {
                mean: Point::Share(Point::WHOLE / 2),
                deviation: Point::Number(1_500_000)
            }
        }
    );
    assert_eq!(campaign.faults[2].name, "clock");
    assert_eq!(campaign.faults[2].copies, [1, 2]);
    assert!(campaign.counts_instructions());
    let json = serde_json::to_string(&campaign).unwrap();
    let again: Campaign = serde_json::from_str(&json).unwrap();
    assert_eq!(again.digest(), campaign.digest());
}

/// A good file but for what is put into it: `(after which line, what)`.
fn bad(text: &str) -> String {
    match parse(text) {
        Ok(_) => panic!("this was taken:\n{text}"),
        Err(message) => message,
    }
}

/// `[[fault]]` keys in line 3 and after, of a file that is good otherwise.
fn bad_fault(keys: &str) -> String {
    bad(&format!("appliance = \"a.toml\"\n[[fault]]\n{keys}\n"))
}

/// Tables in line 4 and after, of a file that is good otherwise.
fn bad_table(tables: &str) -> String {
    bad(&format!(
        "appliance = \"a.toml\"\n[[fault]]\nmodel = \"crash\"\n{tables}\n"
    ))
}

/// Keys at the top level in line 2.
fn bad_top(line: &str) -> String {
    bad(&format!(
        "appliance = \"a.toml\"\n{line}\n[[fault]]\nmodel = \"crash\"\n"
    ))
}

#[test]
fn mistakes_at_the_top_level() {
    let cases: Vec<(String, &str)> = vec![
        (
            bad("name = \"x\n"),
            "campaign.toml:1: not TOML: invalid basic string, expected `\"`",
        ),
        (
            bad("[[fault]]\nmodel = \"crash\"\n"),
            "campaign.toml:1: missing key `appliance` at the top level: write `appliance = \"redis.toml\"`",
        ),
        (
            bad("appliance = \"a.toml\"\n"),
            "campaign.toml:1: no [[fault]]: write at least one, such as `[[fault]]` with `model = \"register\"`",
        ),
        (
            bad("appliance = \"\"\n[[fault]]\nmodel = \"crash\""),
            "campaign.toml:1: key `appliance` at the top level: is empty or has a NUL character",
        ),
        (
            bad("appliance = 5\n[[fault]]\nmodel = \"crash\""),
            "campaign.toml:1: key `appliance` at the top level: this is a whole number, not text in quotes",
        ),
        (
            bad("appliance = \"a.toml\"\n\n[fault]\nmodel = \"crash\""),
            "campaign.toml:3: key `fault` at the top level: write `[[fault]]` with two brackets: there can be several",
        ),
        (
            bad_top("replica = 3"),
            "campaign.toml:2: unknown key `replica` at the top level; did you mean \"replicas\"?",
        ),
        (
            bad_top("replicas = [1, 0]"),
            "campaign.toml:2: key `replicas` at the top level: 0 is not possible: 1 to 9",
        ),
        (
            bad_top("replicas = [1, 3, 1]"),
            "campaign.toml:2: key `replicas` at the top level: 1 is there twice",
        ),
        (
            bad_top("replicas = []"),
            "campaign.toml:2: key `replicas` at the top level: the list is empty",
        ),
        (
            bad_top("replicas = \"three\""),
            "campaign.toml:2: key `replicas` at the top level: this is text, not a whole number",
        ),
        (
            bad_top("replicas = [\n 1,\n 12\n]"),
            "campaign.toml:4: key `replicas` at the top level: 12 is not possible: 1 to 9",
        ),
        (
            bad_top("layout = \"randm\""),
            "campaign.toml:2: key `layout` at the top level: unknown value \"randm\"; did you mean \"random\"? possible: \"random\" and \"same\"",
        ),
        (
            bad_top("name = \"a/b\""),
            "campaign.toml:2: key `name` at the top level: \"a/b\" is not a name: use 1 to 63 letters, digits, `-`, `_` and `.`, a letter or digit first",
        ),
        (
            bad_top("seed = \"\""),
            "campaign.toml:2: key `seed` at the top level: is empty or has a NUL character",
        ),
        (
            bad_top("seed = 4"),
            "campaign.toml:2: key `seed` at the top level: this is a whole number, not text in quotes",
        ),
        (
            bad_top("zzz = 4"),
            "campaign.toml:2: unknown key `zzz` at the top level; possible: \"name\", \"description\", \"appliance\", \"seed\", \"replicas\", \"layout\", \"workload\", \"oracle\", \"trials\", \"limits\" and \"fault\"",
        ),
    ];
    check(&cases);
}

#[test]
fn mistakes_in_tables() {
    let cases: Vec<(String, &str)> = vec![
        (
            bad_table("[workload]\ncomand = [\"x\"]"),
            "campaign.toml:5: unknown key `comand` in [workload]; did you mean \"command\"? possible: \"warmup\", \"command\", \"conversation\", \"timeout_s\" and \"mode\"",
        ),
        (
            bad_table("[workload]\ncommand = \"client.sh --fast\""),
            "campaign.toml:5: key `command` in [workload]: this is text, not a list of words: write `[\"client.sh\", \"--fast\"]`",
        ),
        (
            bad_table("[workload]\ncommand = []"),
            "campaign.toml:5: key `command` in [workload]: the list is empty",
        ),
        (
            bad_table("[workload]\ncommand = [\"x\"]\nconversation = \"c\""),
            "campaign.toml:6: key `conversation` in [workload]: goes in place of `command`: give only one of the two",
        ),
        (
            bad_table("[workload]\nmode = \"live\""),
            "campaign.toml:5: key `mode` in [workload]: \"live\" runs a client for each trial: give a `command`",
        ),
        (
            bad_table("[workload]\nwarmup = [\"w\"]"),
            "campaign.toml:5: key `warmup` in [workload]: goes with `command` or `conversation` only, and neither is there",
        ),
        (
            bad_table("[workload]\ncommand = [\"x\"]\ntimeout_s = 0"),
            "campaign.toml:6: key `timeout_s` in [workload]: 0 is not possible: 1 to 86400",
        ),
        (
            bad_table("[oracle]\ncompare = [\"client\", \"memory\"]"),
            "campaign.toml:5: key `compare` in [oracle]: unknown value \"memory\"; possible: \"client\", \"disk\" and \"console\"",
        ),
        (
            bad_table("[oracle]\nerrors = ['(']"),
            "campaign.toml:5: key `errors` in [oracle]: \"(\" is not a regular expression: unclosed group",
        ),
        (
            bad_table(
                "[oracle]\ncompare = \"client\"\n[[oracle.mask]]\nwhere = \"disk\"\npattern = \"x\"",
            ),
            "campaign.toml:7: key `where` in [[oracle.mask]]: that is not in `compare`, so the mask would do nothing",
        ),
        (
            bad_table("[[oracle.mask]]\nwhere = \"client\""),
            "campaign.toml:4: missing key `pattern` in [[oracle.mask]]: write `pattern = '\\d+'`",
        ),
        (
            bad_table("[[oracle.mask]]\nwhere = \"client\"\npattern = \"\""),
            "campaign.toml:6: key `pattern` in [[oracle.mask]]: an empty pattern matches everywhere",
        ),
        (
            bad_table("[[oracle.ignore_sectors]]\nfirst = 8\nlast = 7"),
            "campaign.toml:6: key `last` in [[oracle.ignore_sectors]]: 7 is less than `first`, 8",
        ),
        (
            bad_table("[trials]\ncount = 10\nhalf_width = 0.1"),
            "campaign.toml:6: key `half_width` in [trials]: decides how many trials there are, as `count` does: give only one of the two",
        ),
        (
            bad_table("[trials]\ncount = 0"),
            "campaign.toml:5: key `count` in [trials]: 0 is not possible: 1 to 100000000",
        ),
        (
            bad_table("[trials]\ncount = 1.5"),
            "campaign.toml:5: key `count` in [trials]: this is a number with a fraction, not a whole number",
        ),
        (
            bad_table("[trials]\nhalf_width = 1"),
            "campaign.toml:5: key `half_width` in [trials]: 1 is not possible: above 0 and below 0.5, such as 0.01 for one per cent either way",
        ),
        (
            bad_table("[trials]\nconfidence = 95"),
            "campaign.toml:5: key `confidence` in [trials]: 95 is not possible: from 0.5 to below 1, such as 0.95",
        ),
        (
            bad_table("[trials]\nmax = 95"),
            "campaign.toml:5: key `max` in [trials]: goes with `half_width` only",
        ),
        (
            bad_table("[trials]\ninterval = \"wald\""),
            "campaign.toml:5: key `interval` in [trials]: unknown value \"wald\"; possible: \"clopper-pearson\" and \"wilson\"",
        ),
        (
            bad_table("[trials]\nhalf_width = 0.1\nwatch = [\"silent\"]"),
            "campaign.toml:6: key `watch` in [trials]: unknown value \"silent\"; did you mean \"silent-corruption\"?",
        ),
        (
            bad_table("[limits]\nhang_ms = -1"),
            "campaign.toml:5: key `hang_ms` in [limits]: -1 is not possible: 1 to 86400000",
        ),
        (
            bad_table("[limits]\nboundaries = \"64 potatoes\""),
            "campaign.toml:5: key `boundaries` in [limits]: this is text, not a whole number",
        ),
        (
            bad_table("[limits]\nhang = 5"),
            "campaign.toml:5: unknown key `hang` in [limits]; did you mean \"hang_ms\"? possible: \"hang_ms\", \"cpu_ms\", \"lag_ms\" and \"boundaries\"",
        ),
        (
            bad_table("[trials]\ncount = 5\n[trials]\nbatch = 1"),
            "campaign.toml:6: not TOML: duplicate key",
        ),
    ];
    check(&cases);
}

#[test]
fn mistakes_in_faults() {
    let cases: Vec<(String, &str)> = vec![
        (
            bad_fault("name = \"regs\""),
            "campaign.toml:2: missing key `model` in [[fault]] \"regs\": write `model = \"register\"`",
        ),
        (
            bad_fault("modle = \"register\""),
            "campaign.toml:3: unknown key `modle` in [[fault]] number 1; did you mean \"model\"?",
        ),
        (
            bad_fault("model = \"registers\""),
            "campaign.toml:3: key `model` in [[fault]] number 1: unknown value \"registers\"; did you mean \"register\"?",
        ),
        (
            bad_fault(
                "name = \"regs\"\nmodel = \"register\"\nregisters = [\n  \"rbx\",\n  \"rxa\",\n]",
            ),
            "campaign.toml:7: key `registers` in [[fault]] \"regs\": unknown register \"rxa\"; did you mean \"rax\"?",
        ),
        (
            bad_fault("model = \"register\"\nregisters = \"vectors of registers\""),
            "campaign.toml:4: key `registers` in [[fault]] number 1: unknown register \"vectors of registers\"; did you mean \"vector\"?",
        ),
        (
            bad_fault("model = \"register\"\nregisters = [\"general\", \"rax\"]"),
            "campaign.toml:4: key `registers` in [[fault]] number 1: rax is there twice: in \"general\" and \"rax\"",
        ),
        (
            bad_fault("model = \"register\"\nbits = 65"),
            "campaign.toml:4: key `bits` in [[fault]] number 1: 65 is not possible: 1 to 64",
        ),
        (
            bad_fault("model = \"register\"\nregisters = \"mxcsr\"\nbits = 20"),
            "campaign.toml:4: key `registers` in [[fault]] number 1: mxcsr has 16 bits that can be hit, fewer than the 20 asked for",
        ),
        (
            bad_fault("model = \"register\"\nbits = 2\nburst = 3"),
            "campaign.toml:5: key `burst` in [[fault]] number 1: says how many bits side by side, `bits` how many anywhere: give only one of the two",
        ),
        (
            bad_fault("model = \"register\"\nchange = \"stuck\""),
            "campaign.toml:4: key `change` in [[fault]] number 1: unknown value \"stuck\"; did you mean \"stuck-at-1\"? possible: \"flip\", \"stuck-at-0\" and \"stuck-at-1\"",
        ),
        (
            bad_fault("model = \"register\"\nclass = \"heap\""),
            "campaign.toml:4: key `class` in [[fault]] number 1: does not go with model \"register\"; its own keys: \"registers\", \"bits\", \"burst\", \"change\" and \"split\"",
        ),
        (
            bad_fault("model = \"crash\"\nhow = \"loudly\""),
            "campaign.toml:4: key `how` in [[fault]] number 1: does not go with model \"crash\"; it has no keys of its own",
        ),
        (
            bad_fault("model = \"memory\""),
            "campaign.toml:2: missing key `class` in [[fault]] number 1: write `class = \"heap\"`",
        ),
        (
            bad_fault("model = \"memory\"\nclass = \"heaps\""),
            "campaign.toml:4: key `class` in [[fault]] number 1: unknown class \"heaps\"; did you mean \"heap\"?",
        ),
        (
            bad_fault("model = \"memory\"\nclass = [\"heap\", \"ram\"]"),
            "campaign.toml:4: key `class` in [[fault]] number 1: \"ram\" is all there is: it goes alone",
        ),
        (
            bad_fault("model = \"memory\"\nclass = [\"kernel\", \"kernel-text\"]"),
            "campaign.toml:4: key `class` in [[fault]] number 1: kernel-text is there twice: in \"kernel\" and \"kernel-text\"",
        ),
        (
            bad_fault("model = \"memory\"\nclass = \"heap\"\nplace = \"heap+0x10\""),
            "campaign.toml:5: key `place` in [[fault]] number 1: goes in place of `class`: give only one of the two",
        ),
        (
            bad_fault("model = \"memory\"\nplace = \"nowhere+0x10\""),
            "campaign.toml:4: key `place` in [[fault]] number 1: \"nowhere\" is no region: one of kernel, kernel_dynamic, program, libraries, mmap, threads, heap, stack",
        ),
        (
            bad_fault("model = \"block\"\nhow = [\"torn\", \"torn\"]"),
            "campaign.toml:4: key `how` in [[fault]] number 1: \"torn\" is there twice",
        ),
        (
            bad_fault("model = \"block\"\nmetadata = \"yes\""),
            "campaign.toml:4: key `metadata` in [[fault]] number 1: this is text, not true or false",
        ),
        (
            bad_fault("model = \"frame\"\nhow = \"drop\"\ndelay = 5"),
            "campaign.toml:5: key `delay` in [[fault]] number 1: goes with `how = \"delay\"` only",
        ),
        (
            bad_fault("model = \"clock\"\nhow = \"step\"\nppm = 5"),
            "campaign.toml:5: key `ppm` in [[fault]] number 1: goes with `how = \"skew\"` only",
        ),
        (
            bad_fault("model = \"clock\"\nhow = \"skew\"\nppm = [9, 5]"),
            "campaign.toml:5: key `ppm` in [[fault]] number 1: the range [9, 5] is empty: write the lesser number first",
        ),
        (
            bad_fault("model = \"clock\"\nhow = \"skew\"\nppm = [1, 2, 3]"),
            "campaign.toml:5: key `ppm` in [[fault]] number 1: write a number, or a range as [least, most]",
        ),
        (
            bad_fault("model = \"stall\"\nmillis = -1"),
            "campaign.toml:4: key `millis` in [[fault]] number 1: -1 is not possible: 0 to 60000",
        ),
        (
            bad_fault("model = \"syscall\"\nerrno = \"ENOSPACE\""),
            "campaign.toml:4: key `errno` in [[fault]] number 1: unknown error \"ENOSPACE\"; did you mean \"ENOSPC\"?",
        ),
        (
            bad_fault("model = \"syscall\"\nerrno = 500"),
            "campaign.toml:4: key `errno` in [[fault]] number 1: 500 is not possible: 1 to 133",
        ),
        (
            bad_fault("model = \"crash\"\ncopies = [1, 10]"),
            "campaign.toml:4: key `copies` in [[fault]] number 1: 10 is not possible: 1 to 9",
        ),
        (
            bad_fault("model = \"crash\"\nweight = 0"),
            "campaign.toml:4: key `weight` in [[fault]] number 1: 0 is not possible: 1 to 1000",
        ),
        (
            bad_fault("model = \"crash\"\nweight = 0x1000"),
            "campaign.toml:4: key `weight` in [[fault]] number 1: 4096 is not possible: 1 to 1000",
        ),
        (
            bad_fault("model = \"crash\"\nwhen = \"boundry\""),
            "campaign.toml:4: key `when` in [[fault]] number 1: unknown value \"boundry\"; did you mean \"boundary\"? possible: \"boundary\", \"time\", \"syscall\", \"instruction\" and \"symbol\"",
        ),
        (
            bad_fault("model = \"crash\"\nwhen = \"symbol\""),
            "campaign.toml:2: missing key `symbol` in [[fault]] number 1: write `symbol = \"main\"`",
        ),
        (
            bad_fault("model = \"crash\"\nwhen = \"time\"\nsymbol = \"main\""),
            "campaign.toml:5: key `symbol` in [[fault]] number 1: goes with when = \"symbol\" only",
        ),
        (
            bad_fault("model = \"crash\"\nsymbol = \"main\"\nat = 5"),
            "campaign.toml:5: key `at` in [[fault]] number 1: does not go with when = \"symbol\"; its own keys: \"symbol\" and \"hit\"",
        ),
        (
            bad_fault("model = \"crash\"\nat = 0"),
            "campaign.toml:4: key `at` in [[fault]] number 1: 0 is not possible: boundaries and system calls count from 1",
        ),
        (
            bad_fault("model = \"crash\"\nat = \"110%\""),
            "campaign.toml:4: key `at` in [[fault]] number 1: \"110%\" is not a share of the trial: write \"0%\" to \"100%\", or a number without quotes",
        ),
        (
            bad_fault("model = \"crash\"\nat = 1.5"),
            "campaign.toml:4: key `at` in [[fault]] number 1: this is a number with a fraction, not a whole number",
        ),
        (
            bad_fault("model = \"crash\"\nat = 5\nfrom = 3"),
            "campaign.toml:5: key `from` in [[fault]] number 1: does not go with `at`, which is certain",
        ),
        (
            bad_fault("model = \"crash\"\nfrom = 8\nto = 3"),
            "campaign.toml:5: key `to` in [[fault]] number 1: there is nothing from 8 to 3",
        ),
        (
            bad_fault("model = \"crash\"\ndistribution = \"gaussian\""),
            "campaign.toml:4: key `distribution` in [[fault]] number 1: unknown value \"gaussian\"; possible: \"uniform\", \"normal\", \"exponential\" and \"burst\"",
        ),
        (
            bad_fault("model = \"crash\"\ndistribution = \"normal\""),
            "campaign.toml:2: missing key `deviation` in [[fault]] number 1: write `deviation = \"10%\"`",
        ),
        (
            bad_fault("model = \"crash\"\ndistribution = \"normal\"\ndeviation = 0"),
            "campaign.toml:5: key `deviation` in [[fault]] number 1: 0 is not possible: it is a length",
        ),
        (
            bad_fault("model = \"crash\"\nmean = 5"),
            "campaign.toml:4: key `mean` in [[fault]] number 1: does not go with distribution \"uniform\"; its own keys: \"from\" and \"to\"",
        ),
        (
            bad_fault("model = \"crash\"\ndistribution = \"burst\"\nwidth = 5"),
            "campaign.toml:2: missing key `centres` in [[fault]] number 1: write `centres = [\"25%\", \"75%\"]`",
        ),
        (
            bad_fault("model = \"crash\"\n[[fault]]\nmodel = \"crash\""),
            "campaign.toml:4: there are two [[fault]] called \"crash\": give one of them another name, such as `name = \"crash-2\"`",
        ),
    ];
    check(&cases);
}

fn check(cases: &[(String, &str)]) {
    let got: Vec<&str> = cases.iter().map(|(message, _)| message.as_str()).collect();
    let expected: Vec<&str> = cases.iter().map(|(_, expected)| *expected).collect();
    assert_eq!(got, expected);
}

#[test]
fn files_that_are_not_there() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("c.toml");
    let message = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let message = Campaign::load(&file).unwrap_err().to_string();
        message.replace(&format!("{}", directory.path().display()), "DIR")
    };
    let shortest = "[[fault]]\nmodel = \"crash\"\n";
    assert_eq!(
        message(&format!("\nappliance = \"a.toml\"\n{shortest}")),
        "DIR/c.toml:2: key `appliance` at the top level: DIR/a.toml: cannot read the appliance: No such file or directory (os error 2)"
    );
    let redis = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/appliances/redis.toml");
    let good = format!(
        "appliance = \"{}\"\n{shortest}[workload]\n",
        redis.display()
    );
    assert_eq!(
        message(&format!("{good}command = [\"./client.sh\"]")),
        "DIR/c.toml:5: key `command` in [workload]: program \"./client.sh\" is neither beside the campaign file nor in PATH"
    );
    assert_eq!(
        message(&format!("{good}conversation = \"kept\"")),
        "DIR/c.toml:5: key `conversation` in [workload]: DIR/kept: no such file"
    );
    std::fs::write(directory.path().join("client.sh"), "").unwrap();
    std::fs::write(
        &file,
        format!("{good}command = [\"client.sh\"]\nwarmup = [\"sh\"]"),
    )
    .unwrap();
    let campaign = Campaign::load(&file).unwrap();
    assert_eq!(
        campaign.program("client.sh"),
        directory.path().join("client.sh")
    );
    assert_eq!(campaign.program("sh"), Path::new("sh"));
    let missing = directory.path().join("none.toml");
    let error = Campaign::load(&missing).unwrap_err().to_string();
    assert!(
        error.ends_with(
            "none.toml: cannot read the campaign: No such file or directory (os error 2)"
        ),
        "{error}"
    );
}

#[test]
fn the_digest_follows_what_trials_depend_on() {
    let base = "appliance = \"a.toml\"\n[[fault]]\nmodel = \"memory\"\nclass = \"heap\"\n";
    let digest = |text: &str| parse(text).unwrap().digest();
    let same = [
        format!("name = \"other\"\ndescription = \"d\"\nreplicas = 5\n{base}"),
        format!("{base}[trials]\nhalf_width = 0.01\nconfidence = 0.9\n"),
        // Defaults that are written down.
        format!("seed = \"1\"\n{base}weight = 1\nfrom = \"0%\"\n[limits]\ncpu_ms = 400\n"),
    ];
    for text in same {
        assert_eq!(digest(&text), digest(base), "{text}");
    }
    let other = [
        format!("seed = \"2\"\n{base}"),
        format!("layout = \"same\"\n{base}"),
        base.replace("heap", "stack"),
        format!("{base}bits = 2\n"),
        format!("{base}burst = 1\n"),
        format!("{base}change = \"stuck-at-0\"\n"),
        format!("{base}copies = 2\n"),
        format!("{base}split = true\n"),
        format!("{base}weight = 2\n"),
        format!("{base}name = \"m\"\n"),
        format!("{base}from = \"0.0000001%\"\n"),
        format!("{base}when = \"time\"\n"),
        format!("{base}[[fault]]\nmodel = \"crash\"\n"),
        format!("{base}[workload]\ncommand = [\"x\"]\n"),
        format!("{base}[oracle]\nerrors = [\"x\"]\n"),
        format!("{base}[limits]\ncpu_ms = 401\n"),
    ];
    let mut seen = vec![digest(base)];
    for text in other {
        let digest = digest(&text);
        assert!(!seen.contains(&digest), "{text}");
        seen.push(digest);
    }
}
