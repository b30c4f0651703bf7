//! Distributions: detection, recovery, and where the trials' own time went.

use maud::{Markup, html};

use super::super::data::{DetectionPart, Distribution, Report, TimingPart};
use super::super::plot::{Labels, distribution};
use super::super::text::{count, nanoseconds, percent, shown, three};
use super::{section, so_many, tabs};

/// From injection to stop.
pub fn detection(report: &Report) -> Markup {
    let panes: Vec<(String, Markup)> = (report.detection.iter())
        .map(|part| (so_many(part.replicas), detected(part)))
        .collect();
    section(
        "detection",
        "How fast faults were found",
        html! {
            @if panes.is_empty() {
                p.none { "No fault was found by a set: nothing was outvoted or stopped." }
            } @else {
                p.note {
                    "From the injection to the verdict that stopped the replica, over trials in which one was stopped. Virtual time is what the guest's clock shows, a boundary is a place at which the set votes; both are the same in every run of a staged campaign. The line is the cumulative share."
                }
                (tabs("detection", &so_many(3), &panes))
            }
        },
    )
}

fn detected(part: &DetectionPart) -> Markup {
    let all: u64 = part.how.iter().map(|how| how.count).sum();
    html! {
        div.columns {
            (distribution(&part.virtual_ns, &Labels { title: "Detection latency in virtual time", axis: "virtual time from injection to stop", show: &nanoseconds }))
            (distribution(&part.boundaries, &Labels { title: "Detection latency in boundaries", axis: "boundaries from injection to stop", show: &three }))
        }
        ul.chips {
            @for how in &part.how {
                li { b { (shown(&how.name)) } " " (count(how.count)) " (" (percent(how.count as f64 / all.max(1) as f64)) ")" }
            }
        }
        (quantiles(&[("virtual time", &part.virtual_ns, &nanoseconds), ("boundaries", &part.boundaries, &three)]))
    }
}

type Row<'a> = (&'a str, &'a Distribution, &'a dyn Fn(f64) -> String);

fn quantiles(rows: &[Row<'_>]) -> Markup {
    html! {
        div.scroll {
            table {
                thead { tr {
                    th scope="col" {} th.num scope="col" { "values" } th.num scope="col" { "smallest" } th.num scope="col" { "median" }
                    th.num scope="col" { "90 %" } th.num scope="col" { "99 %" } th.num scope="col" { "largest" }
                } }
                tbody {
                    @for (name, of, show) in rows {
                        tr {
                            th scope="row" { (name) }
                            td.num { (count(of.count)) }
                            @for value in [of.min, of.median, of.p90, of.p99, of.max] { td.num { (show(value as f64)) } }
                        }
                    }
                }
            }
        }
    }
}

/// From stop to vote.
pub fn recovery(report: &Report) -> Markup {
    let micros = |us: f64| nanoseconds(us * 1000.0);
    let parts = &report.recovery;
    let mut panes: Vec<(String, Markup)> = Vec::new();
    for of_replicas in parts.chunk_by(|a, b| a.replicas == b.replicas) {
        let Some(first) = of_replicas.first() else {
            continue;
        };
        let names: Vec<String> = (of_replicas.iter())
            .map(|part| format!("by {}", shown(&part.step)))
            .collect();
        let rows: Vec<Row<'_>> = (of_replicas.iter().zip(&names))
            .map(|(part, name)| {
                (
                    name.as_str(),
                    &part.micros,
                    &micros as &dyn Fn(f64) -> String,
                )
            })
            .collect();
        panes.push((
            so_many(first.replicas),
            html! {
                div.columns {
                    @for part in of_replicas.iter().filter(|part| part.micros.count >= 5) {
                        @let title = format!("Recovery time by {}", shown(&part.step));
                        (distribution(&part.micros, &Labels { title: &title, axis: &format!("real time from stop to vote, by {}", shown(&part.step)), show: &micros }))
                    }
                }
                (quantiles(&rows))
            },
        ));
    }
    section(
        "recovery",
        "How fast replicas came back",
        html! {
            @if panes.is_empty() {
                p.none { "No replica had to come back." }
            } @else {
                p.note { "Real time on this machine, which was running the campaign's other trials too; not the same in two runs. Steps seen fewer than five times are in the table only." }
                (tabs("recovery", &so_many(3), &panes))
            }
        },
    )
}

/// Where the time of the trials went.
pub fn timing(report: &Report) -> Markup {
    let most = report
        .timing
        .iter()
        .map(|part| part.total_us)
        .fold(1.0, f64::max);
    section(
        "time",
        "Where the time went",
        html! {
            @if let Some(seconds) = report.campaign.wall_seconds {
                p.note {
                    (count(report.campaign.trials)) " trials in " (nanoseconds(seconds * 1e9))
                    @if let Some(jobs) = report.campaign.jobs { " with " (jobs) " at a time" }
                    @if seconds > 0.0 { ": " (three(report.campaign.trials as f64 / seconds)) " trials per second in all." }
                }
            }
            div.bars.times {
                @for part in &report.timing {
                    span.n { "N = " (part.replicas) }
                    (time_bar(part, most))
                    span.of { (nanoseconds(part.total_us * 1000.0)) }
                }
            }
            ul.legend { @for (n, (name, _)) in parts(&TimingPart::default()).iter().enumerate() { li { span.key.(format!("t{n}")) {} (name) } } }
            div.scroll {
                table {
                    caption { div { "Means per trial, real time." } }
                    thead { tr {
                        th scope="col" { "replicas" } th.num scope="col" { "trials" }
                        @for (name, _) in parts(&TimingPart::default()) { th.num scope="col" { (name) } }
                        th.num scope="col" { "in all" } th.num scope="col" { "pages put back" } th.num scope="col" { "per second and job" }
                    } }
                    tbody {
                        @for part in &report.timing {
                            tr {
                                th scope="row" { (part.replicas) }
                                td.num { (count(part.trials)) }
                                @for (_, us) in parts(part) { td.num { (nanoseconds(us * 1000.0)) } }
                                td.num { (nanoseconds(part.total_us * 1000.0)) }
                                td.num { (three(part.reset_pages)) }
                                td.num { (three(part.per_second)) }
                            }
                        }
                    }
                }
            }
        },
    )
}

fn parts(of: &TimingPart) -> [(&'static str, f64); 6] {
    [
        ("reset", of.reset_us),
        ("inject", of.inject_us),
        ("run", of.run_us),
        ("settle", of.settle_us),
        ("judge", of.judge_us),
        ("other", of.other_us),
    ]
}

fn time_bar(part: &TimingPart, most: f64) -> Markup {
    html! {
        div.bar.plain role="img" aria-label=(format!("mean trial with {} replicas: {}", part.replicas, nanoseconds(part.total_us * 1000.0))) {
            @for (n, (name, us)) in parts(part).iter().enumerate().filter(|(_, (_, us))| *us > 0.0) {
                span.(format!("t{n}")) style=(format!("flex:{us:.1} 0 0")) title=(format!("{name}: {}", nanoseconds(us * 1000.0))) {}
            }
            span.rest style=(format!("flex:{:.1} 0 0", (most - part.total_us).max(0.0))) {}
        }
    }
}
