//! `report.html`.

mod about;
mod outcomes;
mod places;
mod times;
mod trials;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

use crate::model::Outcome;

use super::data::Report;
use super::tally::Counts;
use super::text::{count, percent, shown};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// The page.
#[must_use]
pub fn page(report: &Report) -> Markup {
    let name = shown(&report.campaign.name);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(policy());
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="referrer" content="no-referrer";
                title { (name) " – fault campaign" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                (head(report, &name))
                main {
                    (outcomes::summary(report))
                    (outcomes::groups(report))
                    (places::bits(report))
                    (places::map(report))
                    (times::detection(report))
                    (times::recovery(report))
                    (trials::correlated(report))
                    (trials::worst(report))
                    (about::statistics(report))
                    (times::timing(report))
                    (about::reproduce(report))
                    (about::details(report))
                }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    }
}

/// Nothing may be loaded from anywhere, and only the one script may run.
fn policy() -> String {
    format!(
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        base64(&Sha256::digest(SCRIPT.as_bytes()))
    )
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let word = (0..3).fold(0usize, |word, i| {
            word << 8 | usize::from(chunk.get(i).copied().unwrap_or(0))
        });
        for i in 0..4 {
            out.push(match i <= chunk.len() {
                true => char::from(DIGITS[word >> (18 - 6 * i) & 63]),
                false => '=',
            });
        }
    }
    out
}

fn head(report: &Report, name: &str) -> Markup {
    let campaign = &report.campaign;
    let machine = &report.machine;
    let (first, rest) = match report.headline.split_first() {
        Some((first, rest)) => (first.as_str(), rest),
        None => ("", &[][..]),
    };
    html! {
        header {
            p.kicker { "Quorate fault campaign" }
            h1 { (name) }
            @if !campaign.description.is_empty() { p.also { (shown(&campaign.description)) } }
            p.lead { (first) }
            @for (n, sentence) in rest.iter().enumerate() { p.also.second[n == 0] { (sentence) } }
            dl.facts {
                div { dt { "trials" } dd { (count(campaign.trials)) } }
                div { dt { "draws" } dd { (count(campaign.draws)) } }
                div { dt { "appliance" } dd { (shown(&campaign.appliance)) } }
                div { dt { "seed" } dd { (shown(&campaign.seed)) } }
                div { dt { "confidence" } dd { (percent(report.statistics.confidence)) } }
                div { dt { "machine" } dd { (shown(&machine.cpu)) ", " (machine.cores) " cores" } }
                div { dt { "date" } dd { (shown(&machine.date)) } }
            }
            nav aria-label="Sections" {
                @for (id, title) in SECTIONS { a href=(format!("#{id}")) { (title) } }
            }
        }
    }
}

const SECTIONS: [(&str, &str); 11] = [
    ("outcomes", "Outcomes"),
    ("groups", "Models and locations"),
    ("bits", "Bits"),
    ("map", "Address space"),
    ("detection", "Detection"),
    ("recovery", "Recovery"),
    ("correlated", "Correlated faults"),
    ("worst", "Worst trials"),
    ("statistics", "Statistics"),
    ("time", "Time"),
    ("reproduce", "Reproduce"),
];

/// A section with its title.
fn section(id: &str, title: &str, body: Markup) -> Markup {
    html! {
        section id=(id) aria-labelledby=(format!("{id}-title")) {
            h2 id=(format!("{id}-title")) { (title) }
            (body)
        }
    }
}

/// What an outcome is called for readers.
fn called(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Masked => "masked",
        Outcome::Corrected => "corrected",
        Outcome::Stopped => "stopped",
        Outcome::ClientError => "client error",
        Outcome::Hang => "hang",
        Outcome::Crash => "crash",
        Outcome::SilentCorruption => "silent corruption",
        Outcome::InjectorFailure => "not injected",
    }
}

/// What it means, in one line.
fn meaning(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Masked => "no output differed, no replica was stopped",
        Outcome::Corrected => "a replica was stopped and came back; no output differed",
        Outcome::Stopped => "the set noticed and stopped rather than release anything wrong",
        Outcome::ClientError => "the client got an error or lost its connection",
        Outcome::Hang => "the client was not answered any more",
        Outcome::Crash => "the only replica, or all of them, crashed",
        Outcome::SilentCorruption => "something wrong was released and nobody said so",
        Outcome::InjectorFailure => "the fault could not be injected as drawn; says nothing",
    }
}

/// A bar of outcomes. Every outcome that occurred is at least a sliver.
fn bar(counts: &Counts, label: &str) -> Markup {
    let trials = counts.trials();
    let parts = Outcome::ALL.map(|outcome| (outcome, counts.of(outcome)));
    let some = || parts.iter().filter(|(_, n)| *n > 0);
    let text: Vec<String> = some()
        .map(|(outcome, n)| format!("{} {}", count(*n), called(*outcome)))
        .collect();
    html! {
        div.bar role="img" aria-label=(format!("{label}: {}", text.join(", "))) {
            @for (outcome, n) in some() {
                span.(format!("o-{}", outcome.name())) style=(format!("flex:{n} 0 0")) title=(format!("{}: {} of {} ({})", called(*outcome), count(*n), count(trials), percent(*n as f64 / trials.max(1) as f64))) {}
            }
        }
    }
}

/// The key to the colours and patterns of the bars.
fn legend() -> Markup {
    html! {
        ul.legend {
            @for outcome in Outcome::ALL {
                li title=(meaning(outcome)) { span.key.(format!("o-{}", outcome.name())) {} (called(outcome)) }
            }
        }
    }
}

/// Panes of which one is shown at a time, without any script; all of them in print. The one with the title `first` is shown
/// first, if there is one.
fn tabs(group: &str, first: &str, panes: &[(String, Markup)]) -> Markup {
    let first = panes.iter().position(|(title, _)| title == first);
    let first = first.unwrap_or(0);
    html! {
        div.tabs {
            @for (n, (title, pane)) in panes.iter().enumerate() {
                input type="radio" name=(group) id=(format!("{group}-{n}")) checked[n == first];
                label for=(format!("{group}-{n}")) { (title) }
                div.pane { h3.printed { (title) } (pane) }
            }
        }
    }
}

/// `1 replica`, `3 replicas`.
fn so_many(replicas: u8) -> String {
    match replicas {
        1 => "1 replica (alone)".to_owned(),
        n => format!("{n} replicas"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        let cases = [
            "", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy",
        ];
        for (n, wanted) in cases.iter().enumerate() {
            assert_eq!(base64(&b"foobar"[..n]), *wanted);
        }
    }

    #[test]
    fn style_and_script_fit_into_html_and_load_nothing() {
        for text in [STYLE, SCRIPT] {
            assert!(!text.contains("</"), "would end its element");
            for word in [
                "http:",
                "https:",
                "//cdn",
                "@import",
                "url(\"",
                "fetch(",
                "XMLHttp",
                "eval(",
                "innerHTML",
            ] {
                assert!(!text.contains(word), "{word}");
            }
        }
    }
}
