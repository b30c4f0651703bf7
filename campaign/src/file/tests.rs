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
