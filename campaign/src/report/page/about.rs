//! How the shares were estimated, and how all of it can be done again.

use maud::{Markup, html};

use super::super::data::Report;
use super::super::text::{count, nanoseconds, percent, shown, shown_lines};
use super::section;

/// Methods, strata, seeds.
pub fn statistics(report: &Report) -> Markup {
    let part = &report.statistics;
    let weight = |name: &str| part.strata.iter().find(|stratum| stratum.name == name);
    section(
        "statistics",
        "Statistics",
        html! {
            dl.list {
                dt { "intervals" }
                dd { "Two-sided, " (percent(part.confidence)) " confidence. Exact (Clopper–Pearson): covers at least that often, whatever the true share is. Wilson's score interval, in report.json beside it, is narrower and covers that often on average." }
                @if part.interval_confidence != part.confidence {
                    dt { "level" }
                    dd { "Each interval is made at " (percent(part.interval_confidence)) ", so that looking several times leaves " (percent(part.confidence)) "." }
                }
                dt { "by weight" }
                dd {
                    @for of in &report.outcomes {
                        @let w = &of.visible_weighted;
                        "N = " (of.replicas) ": " (percent(w.share)) " visible (" (percent(w.low)) " – " (percent(w.high)) ")"
                        @if w.unknown > 0.0 { ", nothing known of " (percent(w.unknown)) " of the weights" }
                        br;
                    }
                }
                dt { "denominator" }
                dd { "Trials in which the fault was injected as drawn. The injector's failures are counted apart." }
                @for note in &part.notes { dt { (shown(&note.name)) } dd { (shown_lines(&note.text)) } }
                dt { "seed" } dd { (shown(&report.campaign.seed)) ": every draw follows from it and its own number" }
                dt { "digest" } dd { code { (shown(&report.golden.digest)) } " of image, kernel, conversation, warm-up and seed" }
                dt { "golden run" }
                dd {
                    (count(report.golden.boundaries)) " boundaries, " (count(report.golden.calls)) " system calls, "
                    (nanoseconds(report.golden.virtual_ns as f64)) " of virtual time"
                    @if let Some(n) = report.golden.instructions { ", " (count(n)) " instructions" }
                }
            }
            div.scroll {
                table {
                    caption { div { "Strata: visible faults for each number of replicas." } }
                    thead { tr {
                        th scope="col" { "stratum" } th.num scope="col" { "weight" } th.num scope="col" { "N" } th.num scope="col" { "trials" }
                        th.num scope="col" { "visible" } th.num scope="col" { "share" } th.num scope="col" { "exact interval" } th.num scope="col" { "Wilson" }
                    } }
                    tbody {
                        @for group in report.strata.chunk_by(|a, b| a.name == b.name) {
                            @for (n, part) in group.iter().enumerate() {
                                @let e = &part.visible;
                                tr.first[n == 0] {
                                    @if n == 0 {
                                        th scope="rowgroup" rowspan=(group.len()) { (shown(&part.name)) }
                                        td.num rowspan=(group.len()) { @if let Some(stratum) = weight(&part.name) { (percent(stratum.weight)) } @else { "–" } }
                                    }
                                    td.num { (part.replicas) }
                                    td.num { (count(part.counts.trials())) }
                                    td.num.zero[e.count == 0] { (count(e.count)) }
                                    td.num { (percent(e.share)) }
                                    td.num { (percent(e.exact_low)) " – " (percent(e.exact_high)) }
                                    td.num { (percent(e.wilson_low)) " – " (percent(e.wilson_high)) }
                                }
                            }
                        }
                    }
                }
            }
        },
    )
}

/// Commands.
pub fn reproduce(report: &Report) -> Markup {
    section(
        "reproduce",
        "How to reproduce it",
        html! {
            p.note {
                @if report.campaign.staged { "Trials run in virtual time and follow from image, kernel, conversation and seed: the same campaign gives the same outcome table on any machine. Only times differ." }
                @else { "The client was run for each trial, in real time: the same draws give the same faults, but no two runs are the same." }
            }
            dl.list {
                @for command in &report.reproduce { dt { (shown(&command.name)) } dd.again { code { (shown(&command.text)) } } }
            }
        },
    )
}

/// The campaign as it was read, and the machine.
pub fn details(report: &Report) -> Markup {
    let machine = &report.machine;
    let rows = [
        ("quorate", &machine.quorate),
        ("processor", &machine.cpu),
        ("KVM", &machine.kvm),
        ("kernel", &machine.kernel),
        ("date", &machine.date),
        ("campaign file", &report.campaign.file),
    ];
    section(
        "details",
        "Campaign and machine",
        html! {
            dl.list { @for (name, value) in rows { dt { (name) } dd { (shown(value)) } } }
            details { summary { "The campaign, in full" } pre { (shown_lines(&report.campaign.canonical)) } }
        },
    )
}
