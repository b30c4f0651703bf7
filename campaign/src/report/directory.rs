//! The report on the directory that a campaign's trials are in.

use std::fs;
use std::io;
use std::path::Path;

use crate::file::Mode;
use crate::run::results::{self, Reader};
use crate::run::{Goal, Manifest};
use crate::stats::Confidence;
use crate::stats::sequential::Correction;

use super::text::{count, percent, shell};
use super::{Machine, Named, Records, ReportError, ReportInput, Stratum, Written, write};

/// Writes `report.html`, `report.json` and `trials.csv` into the directory of a campaign, from its `campaign.json` and
/// `trials.jsonl`. Trials that are not there yet are not waited for; the report says if the campaign is not complete.
///
/// # Errors
/// When the directory holds no results, or they cannot be read, or the files not be written.
pub fn of_directory(directory: &Path) -> Result<Written, ReportError> {
    let manifest = Manifest::must(directory)?;
    let trials = directory.join(results::FILE);
    let records = || -> Records<'_> {
        match Reader::open(&trials) {
            Ok(reader) => Box::new(reader.map(|record| record.map_err(io::Error::other))),
            Err(error) => Box::new(std::iter::once(Err(io::Error::other(error)))),
        }
    };
    let input = input(&manifest, &records);
    write(directory, &input)
}

fn input<'a>(manifest: &Manifest, records: &'a dyn Fn() -> Records<'a>) -> ReportInput<'a> {
    let campaign = &manifest.campaign;
    let whole = Confidence::new(campaign.trials.confidence).unwrap_or_default();
    let all: f64 = manifest.strata.iter().map(|(_, weight)| weight).sum();
    let strata = manifest.strata.iter().map(|(name, weight)| Stratum {
        name: name.clone(),
        weight: if all > 0.0 { weight / all } else { 0.0 },
    });
    let file = manifest.file.display().to_string();
    ReportInput {
        name: campaign.name.clone(),
        description: campaign.description.clone(),
        canonical: serde_json::to_string_pretty(campaign).unwrap_or_default(),
        appliance: campaign.appliance.display().to_string(),
        staged: campaign.workload.mode == Mode::Staged,
        seed: campaign.seed.clone(),
        golden: manifest.golden.clone(),
        machine: machine(&manifest.quorate),
        confidence: stopped_at(manifest).unwrap_or(whole),
        stated: whole,
        notes: notes(manifest),
        unfinished: unfinished(manifest),
        strata: strata.collect(),
        wall_seconds: (manifest.wall_seconds > 0.0).then_some(manifest.wall_seconds),
        jobs: (manifest.jobs > 0).then_some(manifest.jobs),
        command: Some(command(manifest, &file)),
        file,
        records,
    }
}

/// The confidence of the look that a campaign was stopped at: repeated looks share the chance to miss.
fn stopped_at(manifest: &Manifest) -> Option<Confidence> {
    let Goal::Looks(schedule) = &manifest.goal else {
        return None;
    };
    let done = manifest.complete?;
    let look = schedule.looks.iter().find(|look| look.draws == done)?;
    Some(look.confidence)
}

fn command(manifest: &Manifest, file: &str) -> String {
    let file = shell(file);
    match &manifest.goal {
        Goal::Draws(draws) => format!("quorate campaign {file} --trials {draws} --out DIR"),
        Goal::Looks(schedule) => format!(
            "quorate campaign {file} --half-width {} --out DIR",
            schedule.half_width
        ),
    }
}

fn unfinished(manifest: &Manifest) -> Vec<String> {
    let mut sentences = Vec::new();
    if let Some(shard) = &manifest.shard {
        sentences.push(format!(
            "This is part {shard} of the campaign; quorate campaign merge puts the parts together."
        ));
    }
    if manifest.complete.is_none() && manifest.shard.is_none() {
        sentences.push(format!(
            "The campaign is not complete ({} draws at most are wanted): what is shown may change.",
            count(manifest.goal.most())
        ));
    }
    sentences
}

fn notes(manifest: &Manifest) -> Vec<Named> {
    let named = |name: &str, text: String| Named {
        name: name.to_owned(),
        text,
    };
    let mut notes = Vec::new();
    notes.push(match &manifest.goal {
        Goal::Draws(draws) => named(
            "number of draws",
            format!("Fixed beforehand: {}, each at every number of replicas.", count(*draws)),
        ),
        Goal::Looks(schedule) => named(
            "sequential stopping",
            format!(
                "Stopped when no interval of {} is wider than ±{}, looked at after {} draws. {}",
                match schedule.watch.as_slice() {
                    [] => "any outcome".to_owned(),
                    watch => watch.iter().map(|o| o.name()).collect::<Vec<_>>().join(", "),
                },
                percent(schedule.half_width),
                schedule.looks.iter().map(|look| count(look.draws)).collect::<Vec<_>>().join(", "),
                match schedule.correction {
                    Correction::Spending => "The chance to miss is shared among the looks: intervals are made at the level of the look that it stopped at.",
                    Correction::None => "Without a correction for looking repeatedly: the intervals miss more often than they say.",
                }
            ),
        ),
    });
    notes.push(named(
        "stratification",
        "Draws go round the strata in a fixed order, each as often as its weight says. Shares of all trials are therefore those of the weights, up to one round; the weighted estimate takes the rest away (Zou, Huang and Zhang 2009).".to_owned(),
    ));
    notes.push(named("campaign digest", manifest.digest.clone()));
    notes
}

/// What the report is made on.
fn machine(quorate: &str) -> Machine {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_owned())
    });
    let there = |module: &str| Path::new("/sys/module").join(module).exists();
    let system = rustix::system::uname();
    Machine {
        quorate: quorate.to_owned(),
        cpu: model.unwrap_or_else(|| "unknown processor".to_owned()),
        cores: std::thread::available_parallelism().map_or(0, |n| n.get() as u64),
        kvm: match (there("kvm_intel"), there("kvm_amd")) {
            (true, _) => "Intel VT-x".to_owned(),
            (_, true) => "AMD-V".to_owned(),
            _ => "not known".to_owned(),
        },
        kernel: format!(
            "{} {}",
            system.sysname().to_string_lossy(),
            system.release().to_string_lossy()
        ),
        date: today(),
    }
}

/// Date and time in UTC, `2026-11-22 17:05 UTC`.
fn today() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    date(since.map_or(0, |since| since.as_secs()))
}

/// The proleptic Gregorian calendar counts from 1 March: then the day that a leap year has more is a year's last.
fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    format!(
        "{}-{month:02}-{:02} {:02}:{:02} UTC",
        year + era * 400 + u64::from(month <= 2),
        of_year - (153 * shifted + 2) / 5 + 1,
        rest / 3600,
        rest / 60 % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(date(951_868_800), "2000-03-01 00:00 UTC");
        assert_eq!(date(1_795_366_980), "2026-11-22 17:03 UTC");
        assert_eq!(date(4_107_542_399), "2100-02-28 23:59 UTC");
        assert_eq!(date(4_107_542_400), "2100-03-01 00:00 UTC");
    }
}
