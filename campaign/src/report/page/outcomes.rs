//! Outcomes: in all, by what was done and by where.

use maud::{Markup, html};

use crate::model::Outcome;

use super::super::data::{GroupPart, OutcomePart, Report};
use super::super::plot::{Whisker, intervals};
use super::super::tally::Counts;
use super::super::text::{count, percent, shown};
use super::{bar, called, legend, meaning, section};

/// The table of outcomes and the plot of what was visible.
pub fn summary(report: &Report) -> Markup {
    let whiskers: Vec<Whisker> = report.outcomes.iter().map(whisker).collect();
    section(
        "outcomes",
        "What became of the faults",
        html! {
            p.note {
                "The same draws are made for each number of replicas N. A fault is " em { "visible" }
                " unless it was masked or corrected. Intervals hold with " (percent(report.statistics.confidence))
                " confidence (exact, Clopper–Pearson; “below” is the one-sided bound). The plot is of faults that hit one replica only."
            }
            div.scroll { (intervals(&whiskers, "Share of visible faults with its exact interval, for each number of replicas")) }
            div.bars {
                @for part in &report.outcomes {
                    @let counts = counts(part);
                    span.n { "N = " (part.replicas) }
                    (bar(&counts, &format!("{} replicas", part.replicas)))
                    span.of { (count(part.trials)) }
                }
            }
            (legend())
            (table(report))
        },
    )
}

fn whisker(part: &OutcomePart) -> Whisker {
    let seen = &part.visible_single;
    let note = match seen.count {
        0 => format!("0 of {}: below {}", count(seen.of), percent(seen.below)),
        _ => format!(
            "{} of {}: {} ({} to {})",
            count(seen.count),
            count(seen.of),
            percent(seen.share),
            percent(seen.exact_low),
            percent(seen.exact_high)
        ),
    };
    Whisker {
        name: format!("N = {}", part.replicas),
        share: seen.share,
        low: seen.exact_low,
        high: if seen.count == 0 {
            seen.below
        } else {
            seen.exact_high
        },
        note,
    }
}

fn counts(part: &OutcomePart) -> Counts {
    let mut counts = Counts::default();
    for row in &part.rows {
        counts.0[row.outcome as usize] = row.estimate.count;
    }
    counts
}

fn table(report: &Report) -> Markup {
    html! {
        div.scroll {
            table.outcomes {
                caption { div { "Outcomes for each number of replicas: trials, share, exact interval. Percentages are of the trials that say something, all faults, correlated ones too." } }
                thead {
                    tr {
                        th scope="col" { "outcome" }
                        @for part in &report.outcomes { th.num scope="col" colspan="2" { "N = " (part.replicas) } }
                    }
                }
                tbody {
                    @for (n, outcome) in Outcome::ALL.iter().enumerate() {
                        tr {
                            th.named scope="row" { span.key.(format!("o-{}", outcome.name())) {} (called(*outcome)) span.meaning { (meaning(*outcome)) } }
                            @for part in &report.outcomes {
                                @if let Some(row) = part.rows.get(n) {
                                    @let e = &row.estimate;
                                    td.num.zero[e.count == 0] { (count(e.count)) }
                                    td.num.interval {
                                        @if e.count > 0 { b { (percent(e.share)) } br; }
                                        @if e.count == 0 { "< " (percent(e.below)) }
                                        @else { (percent(e.exact_low)) " – " (percent(e.exact_high)) }
                                    }
                                }
                            }
                        }
                    }
                }
                tfoot {
                    tr {
                        th scope="row" { "trials" }
                        @for part in &report.outcomes { td.num { (count(part.trials)) } td.num {} }
                    }
                    tr {
                        th.named scope="row" { "full strength at the end" span.meaning { "all replicas vote (one: it still answers)" } }
                        @for part in &report.outcomes {
                            td.num { (count(part.full_strength)) }
                            td.num { (percent(part.full_strength as f64 / part.valid.max(1) as f64)) }
                        }
                    }
                }
            }
        }
    }
}

/// Bars by fault model and by location.
pub fn groups(report: &Report) -> Markup {
    section(
        "groups",
        "By what was done and where",
        html! {
            (legend())
            div.columns {
                div { h3 { "Fault model" } (grouped(&report.models)) }
                div { h3 { "Location" } (grouped(&report.locations)) }
            }
        },
    )
}

/// The most vulnerable first, by what was visible with the fewest replicas.
fn grouped(parts: &[GroupPart]) -> Markup {
    let mut groups: Vec<&[GroupPart]> = parts.chunk_by(|a, b| a.name == b.name).collect();
    let visible = |group: &[GroupPart]| group.first().map_or(0.0, |part| part.visible.share);
    groups.sort_by(|a, b| visible(b).total_cmp(&visible(a)));
    html! {
        @for group in groups {
            @if let Some(first) = group.first() {
                div.group {
                    h4 { (shown(&first.name)) span.of { (count(first.counts.trials())) " draws" } }
                    div.bars {
                        @for part in group {
                            span.n { "N = " (part.replicas) }
                            (bar(&part.counts, &format!("{}, {} replicas", shown(&part.name), part.replicas)))
                            span.of title="visible" {
                                @if part.visible.count == 0 { "< " (percent(part.visible.below)) }
                                @else { (percent(part.visible.share)) }
                            }
                        }
                    }
                }
            }
        }
    }
}
