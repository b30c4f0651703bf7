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
journal = "64M"

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
    assert_eq!(campaign.limits.journal_bytes, 64 << 20);
    assert_eq!(campaign.oracle.masks[0].replace, "PID:M");
    assert_eq!(
        campaign.faults[0].when,
        When::Instruction {
            distribution: Distribution::Uniform {
                from: Point::Share(0.0),
                to: Point::Share(1.0)
            }
        }
    );
    assert_eq!(
        campaign.faults[1].when,
        When::Time {
            distribution: Distribution::Normal {
                mean: Point::Share(0.5),
                deviation: Point::Number(1_500_000)
            }
        }
    );
    assert_eq!(campaign.faults[2].name, "clock");
    assert_eq!(campaign.faults[2].copies, [1, 2]);
    assert!(campaign.counts_instructions());
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
        (bad("name = \"x\n"), "?"),
        (bad("[[fault]]\nmodel = \"crash\"\n"), "?"),
        (bad("appliance = \"a.toml\"\n"), "?"),
        (bad("appliance = \"\"\n[[fault]]\nmodel = \"crash\""), "?"),
        (bad("appliance = 5\n[[fault]]\nmodel = \"crash\""), "?"),
        (
            bad("appliance = \"a.toml\"\n\n[fault]\nmodel = \"crash\""),
            "?",
        ),
        (bad_top("replica = 3"), "?"),
        (bad_top("replicas = [1, 0]"), "?"),
        (bad_top("replicas = [1, 3, 1]"), "?"),
        (bad_top("replicas = []"), "?"),
        (bad_top("replicas = \"three\""), "?"),
        (bad_top("replicas = [\n 1,\n 12\n]"), "?"),
        (bad_top("layout = \"randm\""), "?"),
        (bad_top("name = \"a/b\""), "?"),
        (bad_top("seed = \"\""), "?"),
        (bad_top("seed = 4"), "?"),
        (bad_top("zzz = 4"), "?"),
    ];
    check(&cases);
}

#[test]
fn mistakes_in_tables() {
    let cases: Vec<(String, &str)> = vec![
        (bad_table("[workload]\ncomand = [\"x\"]"), "?"),
        (bad_table("[workload]\ncommand = \"client.sh --fast\""), "?"),
        (bad_table("[workload]\ncommand = []"), "?"),
        (
            bad_table("[workload]\ncommand = [\"x\"]\nconversation = \"c\""),
            "?",
        ),
        (bad_table("[workload]\nmode = \"live\""), "?"),
        (bad_table("[workload]\nwarmup = [\"w\"]"), "?"),
        (
            bad_table("[workload]\ncommand = [\"x\"]\ntimeout_s = 0"),
            "?",
        ),
        (
            bad_table("[oracle]\ncompare = [\"client\", \"memory\"]"),
            "?",
        ),
        (bad_table("[oracle]\nerrors = ['(']"), "?"),
        (
            bad_table(
                "[oracle]\ncompare = \"client\"\n[[oracle.mask]]\nwhere = \"disk\"\npattern = \"x\"",
            ),
            "?",
        ),
        (bad_table("[[oracle.mask]]\nwhere = \"client\""), "?"),
        (
            bad_table("[[oracle.mask]]\nwhere = \"client\"\npattern = \"\""),
            "?",
        ),
        (
            bad_table("[[oracle.ignore_sectors]]\nfirst = 8\nlast = 7"),
            "?",
        ),
        (bad_table("[trials]\ncount = 10\nhalf_width = 0.1"), "?"),
        (bad_table("[trials]\ncount = 0"), "?"),
        (bad_table("[trials]\ncount = 1.5"), "?"),
        (bad_table("[trials]\nhalf_width = 1"), "?"),
        (bad_table("[trials]\nconfidence = 95"), "?"),
        (bad_table("[trials]\nmax = 95"), "?"),
        (bad_table("[trials]\ninterval = \"wald\""), "?"),
        (
            bad_table("[trials]\nhalf_width = 0.1\nwatch = [\"silent\"]"),
            "?",
        ),
        (bad_table("[limits]\nhang_ms = -1"), "?"),
        (bad_table("[limits]\njournal = \"64 potatoes\""), "?"),
        (bad_table("[limits]\nhang = 5"), "?"),
        (bad_table("[trials]\ncount = 5\n[trials]\nbatch = 1"), "?"),
    ];
    check(&cases);
}

#[test]
fn mistakes_in_faults() {
    let cases: Vec<(String, &str)> = vec![
        (bad_fault("name = \"regs\""), "?"),
        (bad_fault("modle = \"register\""), "?"),
        (bad_fault("model = \"registers\""), "?"),
        (
            bad_fault(
                "name = \"regs\"\nmodel = \"register\"\nregisters = [\n  \"rbx\",\n  \"rxa\",\n]",
            ),
            "?",
        ),
        (
            bad_fault("model = \"register\"\nregisters = \"vectors of registers\""),
            "?",
        ),
        (
            bad_fault("model = \"register\"\nregisters = [\"general\", \"rax\"]"),
            "?",
        ),
        (bad_fault("model = \"register\"\nbits = 65"), "?"),
        (
            bad_fault("model = \"register\"\nregisters = \"mxcsr\"\nbits = 20"),
            "?",
        ),
        (bad_fault("model = \"register\"\nbits = 2\nburst = 3"), "?"),
        (bad_fault("model = \"register\"\nchange = \"stuck\""), "?"),
        (bad_fault("model = \"register\"\nclass = \"heap\""), "?"),
        (bad_fault("model = \"crash\"\nhow = \"loudly\""), "?"),
        (bad_fault("model = \"memory\""), "?"),
        (bad_fault("model = \"memory\"\nclass = \"heaps\""), "?"),
        (
            bad_fault("model = \"memory\"\nclass = [\"heap\", \"ram\"]"),
            "?",
        ),
        (
            bad_fault("model = \"memory\"\nclass = [\"kernel\", \"kernel-text\"]"),
            "?",
        ),
        (
            bad_fault("model = \"memory\"\nclass = \"heap\"\nplace = \"heap+0x10\""),
            "?",
        ),
        (
            bad_fault("model = \"memory\"\nplace = \"nowhere+0x10\""),
            "?",
        ),
        (
            bad_fault("model = \"block\"\nhow = [\"torn\", \"torn\"]"),
            "?",
        ),
        (bad_fault("model = \"block\"\nmetadata = \"yes\""), "?"),
        (
            bad_fault("model = \"frame\"\nhow = \"drop\"\ndelay = 5"),
            "?",
        ),
        (bad_fault("model = \"clock\"\nhow = \"step\"\nppm = 5"), "?"),
        (
            bad_fault("model = \"clock\"\nhow = \"skew\"\nppm = [9, 5]"),
            "?",
        ),
        (
            bad_fault("model = \"clock\"\nhow = \"skew\"\nppm = [1, 2, 3]"),
            "?",
        ),
        (bad_fault("model = \"stall\"\nmillis = -1"), "?"),
        (bad_fault("model = \"syscall\"\nerrno = \"ENOSPACE\""), "?"),
        (bad_fault("model = \"syscall\"\nerrno = 500"), "?"),
        (bad_fault("model = \"crash\"\ncopies = [1, 10]"), "?"),
        (bad_fault("model = \"crash\"\nweight = 0"), "?"),
        (bad_fault("model = \"crash\"\nweight = 0x1000"), "?"),
        (bad_fault("model = \"crash\"\nwhen = \"boundry\""), "?"),
        (bad_fault("model = \"crash\"\nwhen = \"symbol\""), "?"),
        (
            bad_fault("model = \"crash\"\nwhen = \"time\"\nsymbol = \"main\""),
            "?",
        ),
        (
            bad_fault("model = \"crash\"\nsymbol = \"main\"\nat = 5"),
            "?",
        ),
        (bad_fault("model = \"crash\"\nat = 0"), "?"),
        (bad_fault("model = \"crash\"\nat = \"110%\""), "?"),
        (bad_fault("model = \"crash\"\nat = 1.5"), "?"),
        (bad_fault("model = \"crash\"\nat = 5\nfrom = 3"), "?"),
        (bad_fault("model = \"crash\"\nfrom = 8\nto = 3"), "?"),
        (
            bad_fault("model = \"crash\"\ndistribution = \"gaussian\""),
            "?",
        ),
        (
            bad_fault("model = \"crash\"\ndistribution = \"normal\""),
            "?",
        ),
        (
            bad_fault("model = \"crash\"\ndistribution = \"normal\"\ndeviation = 0"),
            "?",
        ),
        (bad_fault("model = \"crash\"\nmean = 5"), "?"),
        (
            bad_fault("model = \"crash\"\ndistribution = \"burst\"\nwidth = 5"),
            "?",
        ),
        (
            bad_fault("model = \"crash\"\n[[fault]]\nmodel = \"crash\""),
            "?",
        ),
    ];
    check(&cases);
}

fn check(cases: &[(String, &str)]) {
    let got: Vec<&str> = cases.iter().map(|(message, _)| message.as_str()).collect();
    let expected: Vec<&str> = cases.iter().map(|(_, expected)| *expected).collect();
    assert_eq!(got, expected);
}
