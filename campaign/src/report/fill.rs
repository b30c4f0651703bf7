//! How the report's data come from what was tallied.

use std::collections::BTreeMap;

use crate::model::{Outcome, TrialRecord};
use crate::stats::strata::{self, combine};
use crate::stats::{Confidence, Method};

use super::data::*;
use super::estimate::Estimate;
use super::label;
use super::sketch::Sketch;
use super::tally::{Counts, OfReplicas, Tally};
use super::text::{count, percent, replicas, shell};
use super::{Named, ReportInput};

impl Distribution {
    fn new(sketch: &Sketch, per_decade: u32) -> Distribution {
        let bins = sketch.bins(per_decade).into_iter();
        Distribution {
            count: sketch.count(),
            min: sketch.min(),
            median: sketch.quantile(0.5),
            p90: sketch.quantile(0.9),
            p99: sketch.quantile(0.99),
            max: sketch.max(),
            bins: bins
                .map(|(low, high, count)| Bin { low, high, count })
                .collect(),
            sketch: sketch.clone(),
        }
    }
}

impl Report {
    /// The report on what was tallied.
    #[must_use]
    pub fn new(input: &ReportInput<'_>, tally: &Tally) -> Report {
        let confidence = input.confidence;
        let each = || tally.by.iter().map(|(n, of)| (*n, of));
        Report {
            schema: "quorate-campaign-report",
            schema_version: SCHEMA_VERSION,
            headline: headline(input, tally),
            campaign: campaign(input, tally),
            machine: input.machine.clone(),
            golden: input.golden.clone(),
            statistics: StatisticsPart {
                confidence: input.stated.get(),
                interval_confidence: confidence.get(),
                notes: input.notes.clone(),
                strata: input.strata.clone(),
            },
            outcomes: each().map(|(n, of)| outcome(n, of, input)).collect(),
            models: groups(tally, confidence, |of| &of.models),
            locations: groups(tally, confidence, |of| &of.locations),
            strata: groups(tally, confidence, |of| &of.strata),
            bits: each().flat_map(|(n, of)| bits(n, of)).collect(),
            map: each().flat_map(|(n, of)| map(n, of)).collect(),
            detection: each().filter_map(|(n, of)| detection(n, of)).collect(),
            recovery: each().flat_map(|(n, of)| recovery(n, of)).collect(),
            correlated: correlated(tally, confidence),
            worst: worst(input, tally),
            timing: each().map(|(n, of)| timing(n, of)).collect(),
            reproduce: reproduce(input),
        }
    }
}

fn campaign(input: &ReportInput<'_>, tally: &Tally) -> CampaignPart {
    let trials = tally.by.values().map(|of| of.all.trials());
    CampaignPart {
        name: input.name.clone(),
        description: input.description.clone(),
        file: input.file.clone(),
        canonical: input.canonical.clone(),
        appliance: input.appliance.clone(),
        staged: input.staged,
        seed: input.seed.clone(),
        draws: trials.clone().max().unwrap_or(0),
        trials: trials.sum(),
        wall_seconds: input.wall_seconds,
        jobs: input.jobs,
    }
}

/// The conclusion. Faults that hit one replica are what voting promises to mask; correlated ones are told apart.
fn headline(input: &ReportInput<'_>, tally: &Tally) -> Vec<String> {
    let (confidence, level) = (input.confidence, percent(input.stated.get()));
    let mut sentences = Vec::new();
    // Three is the set that one would run; beside it what the program does alone.
    let mut sets: Vec<(&u8, &OfReplicas)> = tally.by.iter().collect();
    sets.sort_by_key(|(n, _)| match **n {
        3 => 0,
        1 => 1,
        n => n,
    });
    for (n, of) in sets {
        if of.single.valid() == 0 {
            continue;
        }
        let seen = Estimate::new(of.single.visible(), of.single.valid(), confidence);
        let so_many = format!("{} of {} faults", count(seen.count), count(seen.of));
        let (high, low) = (percent(seen.exact_high), percent(seen.exact_low));
        sentences.push(match seen.count {
            0 => format!(
                "{}, {so_many} were visible: the share is below {} at {level} confidence.",
                replicas(*n),
                percent(seen.below)
            ),
            _ => format!(
                "{}, {so_many} were visible, {} ({level} interval {low} to {high}){}.",
                replicas(*n),
                percent(seen.share),
                kinds(&of.single)
            ),
        });
    }
    if sentences.is_empty() {
        sentences.push("There are no trials to conclude anything from.".to_owned());
    }
    sentences.extend(input.unfinished.iter().cloned());
    let alone = tally.by.get(&1).filter(|of| of.single.valid() > 0);
    if alone.is_some_and(|of| of.single.visible() == 0) {
        sentences.push(
            "The same faults did no harm to a single machine either: this campaign says nothing about what voting masks."
                .to_owned(),
        );
    }
    // Two replicas cannot outvote one: they stop, as they should.
    for (n, of) in tally.by.iter().filter(|(n, _)| **n > 2) {
        let (trials, whole) = (of.single.valid(), of.single_full);
        match trials - whole.min(trials) {
            _ if trials == 0 => {}
            0 => sentences.push(format!(
                "{}, all of them voted again after every such fault.",
                replicas(*n)
            )),
            weak => sentences.push(format!(
                "{}, not all of them voted again after {} of {} faults.",
                replicas(*n),
                count(weak),
                count(trials)
            )),
        }
    }
    let failed: u64 = (tally.by.values())
        .map(|of| of.all.of(Outcome::InjectorFailure))
        .sum();
    if failed > 0 {
        sentences.push(format!(
            "{} faults could not be injected as drawn and count neither way.",
            count(failed)
        ));
    }
    sentences
}

/// `, of which 5 crashes, 3 hangs`.
fn kinds(counts: &Counts) -> String {
    let named = [
        (Outcome::SilentCorruption, "silent corruptions"),
        (Outcome::ClientError, "client errors"),
        (Outcome::Crash, "crashes"),
        (Outcome::Hang, "hangs"),
        (Outcome::Stopped, "stopped sets"),
    ];
    let some = named.iter().filter(|(outcome, _)| counts.of(*outcome) > 0);
    let parts: Vec<String> = some
        .map(|(outcome, name)| format!("{} {name}", count(counts.of(*outcome))))
        .collect();
    match parts.is_empty() {
        true => String::new(),
        false => format!(": {}", parts.join(", ")),
    }
}

fn outcome(replicas: u8, of: &OfReplicas, input: &ReportInput<'_>) -> OutcomePart {
    let (all, single, confidence) = (&of.all, &of.single, input.confidence);
    // The injector's failures are a share of all trials, everything else of those that say something.
    let total = |outcome| match outcome {
        Outcome::InjectorFailure => all.trials(),
        _ => all.valid(),
    };
    OutcomePart {
        replicas,
        trials: all.trials(),
        valid: all.valid(),
        full_strength: of.full_strength,
        visible: Estimate::new(all.visible(), all.valid(), confidence),
        visible_single: Estimate::new(single.visible(), single.valid(), confidence),
        visible_weighted: weighted(of, input),
        rows: Outcome::ALL
            .map(|outcome| OutcomeRow {
                outcome,
                estimate: Estimate::new(all.of(outcome), total(outcome), confidence),
            })
            .to_vec(),
    }
}

fn weighted(of: &OfReplicas, input: &ReportInput<'_>) -> Weighted {
    let parts = input.strata.iter().map(|stratum| {
        let counts = of.strata.get(&stratum.name).copied().unwrap_or_default();
        strata::Stratum {
            weight: stratum.weight,
            events: counts.visible(),
            trials: counts.valid(),
        }
    });
    let parts: Vec<strata::Stratum> = parts.collect();
    let combined = combine(&parts, Method::Exact, input.confidence);
    Weighted {
        share: combined.rate,
        low: combined.interval.low,
        high: combined.interval.high,
        unknown: combined.unknown,
    }
}

/// Groups in the order of their names, and in each the numbers of replicas.
fn groups(
    tally: &Tally,
    confidence: Confidence,
    map: impl Fn(&OfReplicas) -> &BTreeMap<String, Counts>,
) -> Vec<GroupPart> {
    let mut parts: Vec<GroupPart> = (tally.by.iter())
        .flat_map(|(n, of)| map(of).iter().map(move |(name, counts)| (*n, name, counts)))
        .map(|(replicas, name, counts)| GroupPart {
            name: name.clone(),
            replicas,
            counts: *counts,
            visible: Estimate::new(counts.visible(), counts.valid(), confidence),
        })
        .collect();
    parts.sort_by(|a, b| (&a.name, a.replicas).cmp(&(&b.name, b.replicas)));
    parts
}

fn bits(replicas: u8, of: &OfReplicas) -> Vec<BitPart> {
    let mut rows: Vec<BitPart> = (of.bits.iter())
        .map(|(row, bits)| BitPart {
            row: row.clone(),
            replicas,
            bits: bits.clone(),
        })
        .collect();
    rows.sort_by_key(|part| label::row_rank(&part.row));
    rows
}

fn map(replicas: u8, of: &OfReplicas) -> Vec<MapPart> {
    let regions = of.strips.iter().map(|(region, strip)| MapPart {
        region: region.clone(),
        replicas,
        bin_bytes: strip.width(),
        bins: (strip.bins())
            .filter(|(_, hits)| hits.trials > 0)
            .map(|(offset, hits)| MapBin { offset, hits })
            .collect(),
    });
    regions.collect()
}

fn detection(replicas: u8, of: &OfReplicas) -> Option<DetectionPart> {
    let mut how: Vec<Tallied> = (of.found.iter())
        .map(|(name, count)| Tallied {
            name: name.clone(),
            count: *count,
        })
        .collect();
    how.sort_by_key(|tallied| std::cmp::Reverse(tallied.count));
    (of.latency_ns.count() > 0).then(|| DetectionPart {
        replicas,
        how,
        virtual_ns: Distribution::new(&of.latency_ns, 5),
        boundaries: Distribution::new(&of.latency_boundaries, 5),
    })
}

fn recovery(replicas: u8, of: &OfReplicas) -> Vec<RecoveryPart> {
    let steps = of.recovery.iter().map(|(step, sketch)| RecoveryPart {
        replicas,
        step: step.clone(),
        micros: Distribution::new(sketch, 10),
    });
    steps.collect()
}

/// Empty if no fault was meant for more than one replica.
fn correlated(tally: &Tally, confidence: Confidence) -> Vec<CorrelatedPart> {
    let all = tally.by.iter().flat_map(|(n, of)| {
        of.copies.iter().map(|(copies, counts)| CorrelatedPart {
            copies: *copies,
            replicas: *n,
            counts: *counts,
            silent: Estimate::new(
                counts.of(Outcome::SilentCorruption),
                counts.valid(),
                confidence,
            ),
            stopped: Estimate::new(counts.of(Outcome::Stopped), counts.valid(), confidence),
        })
    });
    let mut parts: Vec<CorrelatedPart> = all.collect();
    parts.sort_by_key(|part| (part.copies, part.replicas));
    if parts.iter().all(|part| part.copies <= 1) {
        parts.clear();
    }
    parts
}

/// How bad an outcome is, the worst first.
#[must_use]
pub fn badness(outcome: Outcome) -> usize {
    const ORDER: [Outcome; 8] = [
        Outcome::SilentCorruption,
        Outcome::ClientError,
        Outcome::Crash,
        Outcome::Hang,
        Outcome::Stopped,
        Outcome::Corrected,
        Outcome::Masked,
        Outcome::InjectorFailure,
    ];
    (ORDER.iter().position(|o| *o == outcome)).unwrap_or(ORDER.len())
}

fn worst(input: &ReportInput<'_>, tally: &Tally) -> Vec<WorstPart> {
    let mut records: Vec<&TrialRecord> = tally.worst.values().flatten().collect();
    // What came through the vote is worse than what came from a single machine.
    records.sort_by_key(|r| {
        (
            badness(r.outcome),
            std::cmp::Reverse(r.replicas),
            r.drawn.draw,
        )
    });
    let parts = records.into_iter().map(|record| {
        let (draw, n) = (record.drawn.draw, record.replicas);
        let file = format!("trial-{draw}-{n}.rec");
        WorstPart {
            draw,
            replicas: n,
            outcome: record.outcome,
            full_strength: record.full_strength,
            fault: label::fault(&record.drawn),
            trigger: label::trigger(&record.drawn.trigger),
            place: record.place.clone(),
            evidence: record.evidence.clone(),
            replay: format!(
                "quorate campaign {} --only {draw} --replicas {n} --record {file}",
                shell(&input.file)
            ),
            explain: format!("quorate explain {file}"),
        }
    });
    parts.collect()
}

fn timing(replicas: u8, of: &OfReplicas) -> TimingPart {
    let sum = &of.times;
    let mean = |total: u64| match sum.trials {
        0 => 0.0,
        trials => total as f64 / trials as f64,
    };
    let known = sum.reset + sum.run + sum.inject + sum.settle + sum.judge;
    let total = mean(sum.total);
    TimingPart {
        replicas,
        trials: sum.trials,
        reset_us: mean(sum.reset),
        reset_pages: mean(sum.pages),
        run_us: mean(sum.run),
        inject_us: mean(sum.inject),
        settle_us: mean(sum.settle),
        judge_us: mean(sum.judge),
        other_us: mean(sum.total.saturating_sub(known)),
        total_us: total,
        per_second: if total > 0.0 { 1e6 / total } else { 0.0 },
    }
}

fn reproduce(input: &ReportInput<'_>) -> Vec<Named> {
    let file = shell(&input.file);
    let named = |name: &str, text: String| Named {
        name: name.to_owned(),
        text,
    };
    let mut all = vec![named(
        "The whole campaign",
        input
            .command
            .clone()
            .unwrap_or_else(|| format!("quorate campaign {file} --out DIR")),
    )];
    all.push(named(
        "One trial",
        format!("quorate campaign {file} --only DRAW --replicas N"),
    ));
    all.push(named(
        "One trial, recorded and explained",
        format!(
            "quorate campaign {file} --only DRAW --replicas N --record trial.rec && quorate explain trial.rec"
        ),
    ));
    all
}
