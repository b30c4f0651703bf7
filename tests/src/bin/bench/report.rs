//! The run as Markdown, which is readable on a terminal too.

use std::fmt::Write;

use crate::load::{LOADS, Sample, median};
use crate::results::{Measured, Results};
use crate::server::Kind;

/// Set whose throughput is held against what the processors allow.
const LIMITED: u8 = 3;
/// Least ratio of N=1 to native at -P 16 that the project aims at.
const AIM_SINGLE: f64 = 0.8;
/// Least share of what the processors allow that it aims at for N=3.
const AIM_LIMIT: f64 = 0.7;
/// Longest boot of N=3 that it aims at, seconds.
const AIM_BOOT_S: f64 = 0.5;

/// Share of the processors that other processes may have without a warning.
const TOO_MUCH: f64 = 0.1;

/// The whole report.
pub fn markdown(results: &Results) -> String {
    let mut text = String::new();
    head(&mut text, results);
    for section in [
        throughput, latency, costs, voted, limits, boots, memory, boundary, aims,
    ] {
        section(&mut text, results);
        text.push('\n');
    }
    went_wrong(&mut text, &results.failures);
    text
}

/// The report about the relaxed discipline, without the lines about the machine.
pub fn relaxed(results: &Results) -> String {
    let mut text = String::new();
    undisturbed(&mut text, results);
    for section in [throughput, latency, costs, boots, memory] {
        section(&mut text, results);
        text.push('\n');
    }
    went_wrong(&mut text, &results.failures);
    text
}

/// What failed; nothing if nothing did.
pub fn went_wrong(text: &mut String, failures: &[String]) {
    if failures.is_empty() {
        return;
    }
    text.push_str("**Not everything went well; figures beside a failure do not count:**\n\n");
    for failure in failures {
        line(text, format_args!("- {}", failure.replace('\n', "\n  ")));
    }
}

/// Writing to a string does not fail.
fn line(text: &mut String, words: std::fmt::Arguments<'_>) {
    let _ = writeln!(text, "{words}");
}

fn head(text: &mut String, results: &Results) {
    let host = &results.host;
    line(
        text,
        format_args!(
            "Measured {} at commit {}, with `bench{}`: medians of {} rounds of {} s for each load, 50 connections, all on \
             loopback; servers in turns. Load average before: {}.",
            host.date,
            host.commit,
            if results.quick { " --quick" } else { "" },
            results.rounds,
            results.seconds,
            host.load
        ),
    );
    line(text, format_args!("Machine: {}.\n", host.line()));
    undisturbed(text, results);
}

/// How much of the machine others had meanwhile.
fn undisturbed(text: &mut String, results: &Results) {
    let foreign = foreign(results);
    let most = foreign.iter().copied().fold(0.0, f64::max);
    line(
        text,
        format_args!(
            "Other processes had {:.0} % of the processors meanwhile (median; {:.0} % at most).{}\n",
            100.0 * median(foreign.iter().copied()),
            100.0 * most,
            if most > TOO_MUCH {
                " **That is too much: do not rely on these figures.**"
            } else {
                ""
            }
        ),
    );
}

/// What other processes had of the processors, sample by sample.
fn foreign(results: &Results) -> Vec<f64> {
    let samples = results.servers.iter().flat_map(|server| &server.samples);
    samples.flatten().map(|sample| sample.foreign).collect()
}

/// A table with a row per load and a column per server.
fn per_load(text: &mut String, results: &Results, cell: impl Fn(Kind, usize, Sample) -> String) {
    let kinds = || results.servers.iter().map(|server| server.kind);
    let head = std::iter::once("load".to_owned());
    let mut rows = vec![head.chain(kinds().map(Kind::name)).collect::<Vec<_>>()];
    for (index, load) in LOADS.into_iter().enumerate() {
        let cells = kinds().map(|kind| {
            results
                .sample(kind, index)
                .map_or_else(|| "-".to_owned(), |sample| cell(kind, index, sample))
        });
        rows.push(std::iter::once(load.name()).chain(cells).collect());
    }
    table(text, &rows);
}

fn throughput(text: &mut String, results: &Results) {
    line(
        text,
        format_args!("Requests per second, and the ratio to native:\n"),
    );
    per_load(text, results, |kind, load, sample| {
        let rps = thousands(sample.rps);
        match (kind, results.ratio(kind, load)) {
            (Kind::Replicas(_) | Kind::Relaxed(_), Some(ratio)) => format!("{rps} ({ratio:.3})"),
            _ => rps,
        }
    });
}

fn latency(text: &mut String, results: &Results) {
    line(text, format_args!("Latency in milliseconds, p50 / p99:\n"));
    per_load(text, results, |_, _, sample| {
        format!("{:.2} / {:.2}", sample.p50_ms, sample.p99_ms)
    });
}

fn costs(text: &mut String, results: &Results) {
    line(
        text,
        format_args!(
            "Processor time per request in microseconds: client + all replicas' threads + gateway (relaxed: front) + other threads:\n"
        ),
    );
    per_load(text, results, |kind, _, sample| {
        let cpu = sample.server_us;
        match kind {
            Kind::Native => format!("{:.2} + {:.2}", sample.client_us, cpu.total()),
            Kind::Replicas(_) | Kind::Relaxed(_) => format!(
                "{:.2} + {:.2} + {:.2} + {:.2}",
                sample.client_us, cpu.guests, cpu.gateway, cpu.other
            ),
        }
    });
}

fn voted(text: &mut String, results: &Results) {
    line(
        text,
        format_args!("Voted per request: boundaries / ballots / bytes in ballots:\n"),
    );
    per_load(text, results, |kind, _, sample| match kind {
        Kind::Native | Kind::Relaxed(_) => "-".to_owned(),
        Kind::Replicas(_) => format!(
            "{:.4} / {:.4} / {:.0}",
            sample.voted.boundaries, sample.voted.ballots, sample.voted.bytes
        ),
    });
}

fn limits(text: &mut String, results: &Results) {
    line(
        text,
        format_args!(
            "What {} cores allow for N={LIMITED}, in requests per second, and the share of it that was reached. \"Native cost\": \
             cores / (client + {LIMITED} x native server). \"Own cost\": cores / (client + shared threads + {LIMITED} x replica), as \
             measured at N=1.\n",
            results.host.cpus
        ),
    );
    let mut rows = vec![
        [
            "load",
            "reached",
            "limit at native cost",
            "share",
            "limit at own cost",
            "share",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for (index, load) in LOADS.into_iter().enumerate() {
        let limit = results.limit(LIMITED, index);
        let sample = results.sample(Kind::Replicas(LIMITED), index);
        if let (Some(limit), Some(sample)) = (limit, sample) {
            rows.push(vec![
                load.name(),
                thousands(sample.rps),
                thousands(limit.native_cost),
                format!("{:.2}", sample.rps / limit.native_cost),
                thousands(limit.own_cost),
                format!("{:.2}", sample.rps / limit.own_cost),
            ]);
        }
    }
    table(text, &rows);
}

fn boots(text: &mut String, results: &Results) {
    line(
        text,
        format_args!("From starting the process to the first PONG, seconds:\n"),
    );
    let mut rows = vec![
        ["server", "median", "fastest", "slowest", "starts"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for measured in &results.servers {
        let boots = &measured.boots;
        if let Some(median) = measured.boot() {
            let fastest = boots.iter().copied().fold(f64::INFINITY, f64::min);
            let slowest = boots.iter().copied().fold(0.0, f64::max);
            rows.push(vec![
                measured.kind.name(),
                format!("{median:.3}"),
                format!("{fastest:.3}"),
                format!("{slowest:.3}"),
                boots.len().to_string(),
            ]);
        }
    }
    table(text, &rows);
}

fn memory(text: &mut String, results: &Results) {
    line(
        text,
        format_args!(
            "Resident memory of the process after the loads, MiB, and idle processor time (share of one core):\n"
        ),
    );
    let mut rows = vec![
        [
            "server",
            "guest RAM",
            "image",
            "all else",
            "all else per replica",
            "one more replica costs",
            "idle",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    let mib = |bytes: f64| format!("{:.1}", bytes / f64::from(1 << 20));
    let beyond = |measured: &Measured| measured.memory().map(|memory| memory.beyond as f64);
    let single = |kind| {
        let single = match kind {
            Kind::Relaxed(_) => Kind::Relaxed(1),
            _ => Kind::Replicas(1),
        };
        results.of(single).and_then(beyond)
    };
    for measured in &results.servers {
        let (Kind::Replicas(replicas) | Kind::Relaxed(replicas), Some(memory)) =
            (measured.kind, measured.memory())
        else {
            continue;
        };
        let replicas = f64::from(replicas);
        let all = memory.beyond as f64;
        let more = match single(measured.kind) {
            Some(single) if replicas > 1.0 => mib((all - single) / (replicas - 1.0)),
            _ => "-".to_owned(),
        };
        rows.push(vec![
            measured.kind.name(),
            mib(memory.guest as f64),
            mib(memory.image as f64),
            mib(all),
            mib(all / replicas),
            more,
            format!("{:.1} %", 100.0 * median(measured.idle.iter().copied())),
        ]);
    }
    table(text, &rows);
}

fn boundary(text: &mut String, results: &Results) {
    let Some(boundary) = &results.boundary else {
        line(
            text,
            format_args!("Cost of a boundary: not measured in this run."),
        );
        return;
    };
    line(
        text,
        format_args!(
            "Cost of a boundary: bare KVM exit {:.2} us; with VMM and devices {:.2} us, so {:.2} us beyond the exit. The set on top, \
             measured without machines:\n",
            boundary.bare_us,
            boundary.whole_us,
            boundary.whole_us - boundary.bare_us
        ),
    );
    let mut rows = vec![vec!["set".to_owned(), "us per boundary".to_owned()]];
    rows.extend(
        boundary
            .set_us
            .iter()
            .map(|(what, us)| vec![what.clone(), format!("{us:.2}")]),
    );
    table(text, &rows);
}

fn aims(text: &mut String, results: &Results) {
    line(text, format_args!("Aims:\n"));
    let disturbed = foreign(results).into_iter().any(|share| share > TOO_MUCH);
    let mut rows = vec![
        ["aim", "at least / most", "measured", ""]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut row = |aim: String, bound: f64, measured: Option<f64>, good: fn(f64, f64) -> bool| {
        let verdict = match measured {
            None => "not measured",
            Some(_) if disturbed => "not reliable",
            Some(value) if good(value, bound) => "met",
            Some(_) => "missed",
        };
        rows.push(vec![
            aim,
            format!("{bound:.2}"),
            measured.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}")),
            verdict.to_owned(),
        ]);
    };
    let at_least = |value: f64, bound: f64| value >= bound;
    for (index, load) in LOADS.into_iter().enumerate() {
        let name = load.name();
        if load.pipeline == 16 {
            let ratio = results.ratio(Kind::Replicas(1), index);
            row(
                format!("N=1, {name}: ratio to native"),
                AIM_SINGLE,
                ratio,
                at_least,
            );
        }
    }
    for (index, load) in LOADS.into_iter().enumerate() {
        let name = load.name();
        let reached = results
            .sample(Kind::Replicas(LIMITED), index)
            .map(|sample| sample.rps);
        let limit = results.limit(LIMITED, index);
        let share = |bound: Option<f64>| Some(reached? / bound?);
        row(
            format!("N={LIMITED}, {name}: share of the limit at native cost"),
            AIM_LIMIT,
            share(limit.map(|limit| limit.native_cost)),
            at_least,
        );
        row(
            format!("N={LIMITED}, {name}: share of the limit at own cost"),
            AIM_LIMIT,
            share(limit.map(|limit| limit.own_cost)),
            at_least,
        );
    }
    let boot = results.of(Kind::Replicas(LIMITED)).and_then(Measured::boot);
    row(
        format!("N={LIMITED} up, seconds"),
        AIM_BOOT_S,
        boot,
        |value, bound| value < bound,
    );
    table(text, &rows);
}

/// A Markdown table whose columns line up. The first row is the head.
pub fn table(text: &mut String, rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |row: &[String], column: usize| row.get(column).cloned().unwrap_or_default();
    let width = |column: usize| {
        let widths = rows.iter().map(|row| cell(row, column).chars().count());
        widths.max().unwrap_or(0).max(3)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<String> = widths
            .iter()
            .enumerate()
            .map(|(column, &width)| format!("{:<width$}", cell(row, column)))
            .collect();
        line(text, format_args!("| {} |", cells.join(" | ")));
        if index == 0 {
            let rule: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
            line(text, format_args!("| {} |", rule.join(" | ")));
        }
    }
}

/// `1234567.8` as `1,234,568`.
pub fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(thousands(0.4), "0");
        assert_eq!(thousands(999.0), "999");
        assert_eq!(thousands(1_234_567.8), "1,234,568");
    }

    #[test]
    fn columns_line_up() {
        let mut text = String::new();
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        table(&mut text, &[row("load", "N"), row("SET -P 1", "12,345")]);
        assert_eq!(
            text,
            "| load     | N      |\n| -------- | ------ |\n| SET -P 1 | 12,345 |\n"
        );
    }
}
