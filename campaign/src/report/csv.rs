//! `trials.csv`: one line per trial. The columns are documented in docs/campaigns.md, and a test holds the two together.

use std::io::{self, Write};

use crate::model::{Outcome, TrialRecord};

use super::label;

/// The columns, in order.
pub const COLUMNS: [&str; 32] = [
    "draw",
    "replicas",
    "stratum",
    "outcome",
    "injected",
    "visible",
    "copies",
    "victims",
    "model",
    "location",
    "fault",
    "fault_json",
    "trigger",
    "trigger_value",
    "place",
    "region",
    "offset",
    "detected_how",
    "detected_boundaries",
    "detected_virtual_ns",
    "detected_us",
    "recovered_step",
    "recovered_us",
    "full_strength",
    "evidence",
    "reset_us",
    "reset_pages",
    "run_us",
    "inject_us",
    "settle_us",
    "judge_us",
    "total_us",
];

/// Writes the line with the names of the columns.
///
/// # Errors
/// Those of writing.
pub fn header(out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}", COLUMNS.join(","))
}

/// Writes the line of a trial.
///
/// # Errors
/// Those of writing.
pub fn line(out: &mut impl Write, record: &TrialRecord) -> io::Result<()> {
    let drawn = &record.drawn;
    let (trigger, value) = label::trigger_parts(&drawn.trigger);
    let (region, offset) = match &record.location {
        Some((region, offset)) => (region.as_str(), offset.to_string()),
        None => ("", String::new()),
    };
    let found = record.detected.as_ref();
    let back = record.recovered.as_ref();
    let or_empty = |n: Option<u64>| n.map(|n| n.to_string()).unwrap_or_default();
    let time = &record.timing;
    let fault_json = serde_json::to_string(&drawn.fault).map_err(io::Error::other)?;
    let injected = record.outcome != Outcome::InjectorFailure;
    let visible = injected && !matches!(record.outcome, Outcome::Masked | Outcome::Corrected);
    let victims: Vec<String> = (drawn.victims(record.replicas).iter())
        .map(usize::to_string)
        .collect();
    let cells: [String; COLUMNS.len()] = [
        drawn.draw.to_string(),
        record.replicas.to_string(),
        cell(&drawn.stratum),
        record.outcome.name().to_owned(),
        injected.to_string(),
        visible.to_string(),
        drawn.copies.to_string(),
        victims.join(" "),
        cell(label::model(&drawn.fault)),
        cell(&label::location(record)),
        cell(&label::fault(drawn)),
        cell(&fault_json),
        trigger.to_owned(),
        cell(&value),
        cell(&record.place),
        cell(region),
        offset,
        cell(found.map_or("", |f| f.how.as_str())),
        or_empty(found.map(|f| f.boundaries)),
        or_empty(found.map(|f| f.virtual_ns)),
        or_empty(found.map(|f| f.micros)),
        cell(back.map_or("", |b| b.step.as_str())),
        or_empty(back.map(|b| b.micros)),
        record.full_strength.to_string(),
        cell(&record.evidence),
        time.reset.to_string(),
        time.pages.to_string(),
        time.run.to_string(),
        time.inject.to_string(),
        time.settle.to_string(),
        time.judge.to_string(),
        time.total.to_string(),
    ];
    writeln!(out, "{}", cells.join(","))
}

/// A cell of text: quoted where RFC 4180 asks for it, control characters as escapes, and what a spreadsheet would take for a
/// formula made into text by an apostrophe: the text may come from a guest.
fn cell(text: &str) -> String {
    let mut plain = String::new();
    if text.starts_with(['=', '+', '-', '@']) {
        plain.push('\'');
    }
    for c in text.chars() {
        if c.is_control() {
            plain.extend(c.escape_unicode());
        } else {
            plain.push(c);
        }
    }
    if plain.contains([',', '"']) {
        plain = format!("\"{}\"", plain.replace('"', "\"\""));
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_quoted_and_are_no_formulas() {
        assert_eq!(cell("plain text"), "plain text");
        assert_eq!(cell("a,b"), "\"a,b\"");
        assert_eq!(cell("say \"hi\""), "\"say \"\"hi\"\"\"");
        assert_eq!(cell("=HYPERLINK(1)"), "'=HYPERLINK(1)");
        assert_eq!(cell("a\r\nb"), r"a\u{d}\u{a}b");
    }
}
