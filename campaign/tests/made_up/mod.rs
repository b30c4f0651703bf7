//! A report with made-up trials.

use std::path::Path;

use quorate_campaign::model::GoldenFacts;
use quorate_campaign::report::{
    self, Machine, Named, Records, ReportInput, Stratum, Written, synthetic,
};
use quorate_campaign::stats::Confidence;

/// Text that a guest or a file could bring.
pub const HOSTILE: &str = "</script><script>console.error('hostile')</script><img src=x onerror=console.error(1)>\u{202e}\"'`${7*7}";

/// The input of a report without hostile text.
pub fn input<'a>(records: &'a dyn Fn() -> Records<'a>) -> ReportInput<'a> {
    let stratum = |name: &str, weight: f64| Stratum {
        name: name.to_owned(),
        weight,
    };
    let note = |name: &str, text: &str| Named {
        name: name.to_owned(),
        text: text.to_owned(),
    };
    ReportInput {
        name: "redis (made-up trials)".to_owned(),
        description: "Invented outcomes, to look at the report.".to_owned(),
        file: "campaigns/redis.toml".to_owned(),
        canonical: "name = \"redis\"\nseed = \"2026\"\n\n[[fault]]\nmodel = \"register\"\n"
            .to_owned(),
        appliance: "redis".to_owned(),
        staged: true,
        seed: "2026".to_owned(),
        golden: GoldenFacts {
            boundaries: 231,
            calls: 1874,
            virtual_ns: 231_000_000,
            instructions: Some(4_210_377),
            digest: "9c1185a5c5e9fc54612808977ee8f548b2258d31f0f5b2c1b9c8a8f7d6e5c4b3".to_owned(),
        },
        machine: Machine {
            quorate: "0.1.0".to_owned(),
            cpu: "made-up processor".to_owned(),
            cores: 2,
            kvm: "VT-x".to_owned(),
            kernel: "Linux 6.1".to_owned(),
            date: "2026-11-22 17:00 UTC".to_owned(),
        },
        confidence: Confidence::P95,
        stated: Confidence::P95,
        unfinished: vec![],
        notes: vec![note("stopping", "after a fixed number of draws")],
        strata: vec![
            stratum("registers", 0.45),
            stratum("memory", 0.45),
            stratum("pages", 0.04),
            stratum("network", 0.03),
            stratum("disk", 0.03),
        ],
        wall_seconds: Some(318.4),
        jobs: Some(2),
        command: Some("quorate campaign campaigns/redis.toml --trials 1500 --out DIR".to_owned()),
        records,
    }
}

/// Writes it: so many draws, each with 1, 2, 3 and 5 replicas, and one more whose texts are hostile.
pub fn write(dir: &Path, draws: u64) -> Written {
    let records = || -> Records<'_> {
        let mut hostile = synthetic::records(200, &[3], 5).last().unwrap();
        hostile.drawn.draw = draws;
        hostile.drawn.stratum = HOSTILE.to_owned();
        hostile.place = HOSTILE.to_owned();
        hostile.evidence = HOSTILE.to_owned();
        hostile.location = Some((HOSTILE.to_owned(), 1 << 40));
        hostile.outcome = quorate_campaign::model::Outcome::InjectorFailure;
        let all = synthetic::records(draws, &[1, 2, 3, 5], 2026).chain([hostile]);
        Box::new(all.map(Ok))
    };
    report::write(dir, &input(&records)).unwrap()
}
