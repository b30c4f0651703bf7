//! Correlated faults, and the list of the worst trials.

use maud::{Markup, html};

use crate::model::Outcome;

use super::super::data::{CorrelatedPart, Report, WorstPart};
use super::super::text::{count, percent, shown};
use super::{bar, called, legend, section};

/// The same fault in several replicas: where voting ends.
pub fn correlated(report: &Report) -> Markup {
    section(
        "correlated",
        "Correlated faults: where voting ends",
        html! {
            @if report.correlated.is_empty() {
                p.none { "Every fault of this campaign hit one replica only." }
            } @else {
                p.note { "The same fault, at the same moment, in several replicas. A majority that is wrong in the same way is right for the vote: nothing can mask that. Where the victims disagree with each other, no majority is left and the set stops. Shaded: half of the set or more is hit. *: drawn for more replicas than the set has." }
                div.scroll {
                    table.correlated {
                        thead { tr {
                            th scope="col" { "hit" } th scope="col" { "of" } th.spread scope="col" { "outcomes" } th.num scope="col" { "trials" }
                            th.num scope="col" { "masked" } th.num scope="col" { "corrected" } th.num scope="col" { "stopped" }
                            th.num scope="col" { "other visible" } th.num scope="col" { "silent corruption" }
                        } }
                        tbody { @for part in &report.correlated { (correlated_row(part)) } }
                    }
                }
                (legend())
            }
        },
    )
}

fn correlated_row(part: &CorrelatedPart) -> Markup {
    let of = |outcome| part.counts.of(outcome);
    let other = of(Outcome::ClientError) + of(Outcome::Hang) + of(Outcome::Crash);
    let hit = part.copies.min(part.replicas);
    html! {
        tr.edge[2 * hit >= part.replicas && part.replicas > 1] {
            td { (hit) @if part.copies > part.replicas { span.dim title=(format!("drawn for {}", part.copies)) { "*" } } }
            td { (part.replicas) }
            td.spread { (bar(&part.counts, &format!("{hit} of {} replicas hit", part.replicas))) }
            td.num { (count(part.counts.trials())) }
            @for n in [of(Outcome::Masked), of(Outcome::Corrected), of(Outcome::Stopped), other] { td.num.zero[n == 0] { (count(n)) } }
            td.num.zero[part.silent.count == 0] {
                (count(part.silent.count)) " "
                span.interval {
                    @if part.silent.count == 0 { "(< " (percent(part.silent.below)) ")" }
                    @else { "(" (percent(part.silent.share)) ")" }
                }
            }
        }
    }
}

/// The list of the worst trials.
pub fn worst(report: &Report) -> Markup {
    section(
        "worst",
        "The worst trials",
        html! {
            @if report.worst.is_empty() {
                p.none { "There is none: every fault was masked or corrected, and all replicas voted at the end." }
            } @else {
                p.note { "At most " (super::super::tally::LISTED) " of each outcome and number of replicas, by number of the draw; all trials are in " code { "trials.csv" } ". Each can be done again, recorded and explained by its commands." }
                div.filter {
                    label { "outcome " select id="by-outcome" {
                        option value="" { "all" }
                        @for outcome in outcomes(&report.worst) { option value=(outcome.name()) { (called(outcome)) } }
                    } }
                    label { "replicas " select id="by-replicas" {
                        option value="" { "all" }
                        @for n in replicas(&report.worst) { option { (n) } }
                    } }
                    label { "text " input id="by-text" type="search" placeholder="register, place, evidence"; }
                    span id="shown" aria-live="polite" {}
                }
                div.scroll.tall {
                    table.worst id="trials" {
                        thead { tr {
                            th.num scope="col" { "draw" } th.num scope="col" { "N" } th scope="col" { "outcome" } th scope="col" { "fault" }
                            th scope="col" { "place" } th scope="col" { "evidence" } th scope="col" { "again" }
                        } }
                        tbody { @for part in &report.worst { (worst_row(part)) } }
                    }
                }
            }
        },
    )
}

fn worst_row(part: &WorstPart) -> Markup {
    html! {
        tr data-outcome=(part.outcome.name()) data-replicas=(part.replicas) {
            td.num { (part.draw) }
            td.num { (part.replicas) }
            td { span.key.(format!("o-{}", part.outcome.name())) {} (called(part.outcome)) @if part.replicas > 1 && !part.full_strength { span.dim { " not at full strength" } } }
            td { (shown(&part.fault)) span.dim { (shown(&part.trigger)) } }
            td.code { (shown(&part.place)) }
            td.code { (shown(&part.evidence)) }
            td.again { code { (shown(&part.replay)) } code { (shown(&part.explain)) } }
        }
    }
}

/// Outcomes that are listed, in their order.
fn outcomes(parts: &[WorstPart]) -> Vec<Outcome> {
    let mut all: Vec<Outcome> = parts.iter().map(|part| part.outcome).collect();
    all.dedup();
    all
}

fn replicas(parts: &[WorstPart]) -> Vec<u8> {
    let mut all: Vec<u8> = parts.iter().map(|part| part.replicas).collect();
    all.sort_unstable();
    all.dedup();
    all
}
