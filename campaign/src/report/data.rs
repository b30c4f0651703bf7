//! The report as data: what `report.json` holds and `report.html` shows. The schema is documented in docs/campaigns.md, and a
//! test holds the two together.

use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

use crate::model::{GoldenFacts, Outcome, TrialRecord};
use crate::stats::strata::{self, combine};
use crate::stats::{Confidence, Method};

use super::estimate::Estimate;
use super::label;
use super::sketch::Sketch;
use super::tally::{Counts, Hits, OfReplicas, Tally};
use super::text::{count, percent, replicas, shell};
use super::{Machine, Named, ReportInput, Stratum};

/// Version of the schema of `report.json` and `trials.csv`; another one means that a key changed its meaning or went away.
pub const SCHEMA_VERSION: u32 = 1;

/// Everything in the report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Always `quorate-campaign-report`.
    pub schema: &'static str,
    /// See [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The conclusion, in sentences.
    pub headline: Vec<String>,
    /// What was run.
    pub campaign: CampaignPart,
    /// Where.
    pub machine: Machine,
    /// The trial without a fault.
    pub golden: GoldenFacts,
    /// How the shares were estimated.
    pub statistics: StatisticsPart,
    /// Outcomes, for each number of replicas.
    pub outcomes: Vec<OutcomePart>,
    /// By fault model.
    pub models: Vec<GroupPart>,
    /// By location.
    pub locations: Vec<GroupPart>,
    /// By stratum.
    pub strata: Vec<GroupPart>,
    /// By register or class of memory, and bit.
    pub bits: Vec<BitPart>,
    /// By place in the address space.
    pub map: Vec<MapPart>,
    /// From injection to stop.
    pub detection: Vec<DetectionPart>,
    /// From stop to vote.
    pub recovery: Vec<RecoveryPart>,
    /// The same fault in several replicas.
    pub correlated: Vec<CorrelatedPart>,
    /// The worst trials.
    pub worst: Vec<WorstPart>,
    /// Where the time went.
    pub timing: Vec<TimingPart>,
    /// How to do all of it again.
    pub reproduce: Vec<Named>,
}

/// What was run.
#[derive(Clone, Debug, Serialize)]
pub struct CampaignPart {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Its file, as it was given.
    pub file: String,
    /// Its canonical form.
    pub canonical: String,
    /// The appliance.
    pub appliance: String,
    /// Trials ran in virtual time, and are the same in every run; else a client was run for each.
    pub staged: bool,
    /// Its seed.
    pub seed: String,
    /// Draws of which there are records, at the number of replicas that has most.
    pub draws: u64,
    /// Records.
    pub trials: u64,
    /// Real seconds that the trials took, if that is known.
    pub wall_seconds: Option<f64>,
    /// Trials at a time.
    pub jobs: Option<u64>,
}

/// How the shares were estimated.
#[derive(Clone, Debug, Serialize)]
pub struct StatisticsPart {
    /// Confidence of the intervals, whatever made the campaign stop.
    pub confidence: f64,
    /// Confidence that they are made at: greater if the campaign was stopped at one of several looks.
    pub interval_confidence: f64,
    /// What was done, by name.
    pub notes: Vec<Named>,
    /// Strata with their weights.
    pub strata: Vec<Stratum>,
}

/// Trials by outcome; as a map by the outcome's name in files.
impl Serialize for Counts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(Outcome::ALL.map(|outcome| (outcome.name(), self.of(outcome))))
    }
}

/// Outcomes at one number of replicas.
#[derive(Clone, Debug, Serialize)]
pub struct OutcomePart {
    /// Replicas.
    pub replicas: u8,
    /// All trials.
    pub trials: u64,
    /// Trials that say something: without the injector's failures.
    pub valid: u64,
    /// Valid trials at whose end all replicas voted.
    pub full_strength: u64,
    /// What could be noticed: neither masked nor corrected.
    pub visible: Estimate,
    /// The same of faults that hit one replica only.
    pub visible_single: Estimate,
    /// The share of visible faults by the strata's weights, whatever the numbers of their trials.
    pub visible_weighted: Weighted,
    /// Each outcome.
    pub rows: Vec<OutcomeRow>,
}

/// A share by the strata's weights.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Weighted {
    /// The share.
    pub share: f64,
    /// Lower end of its interval.
    pub low: f64,
    /// Upper end of it.
    pub high: f64,
    /// Share of the weights in strata of which there is no trial: the interval is wider by it.
    pub unknown: f64,
}

/// One outcome.
#[derive(Clone, Debug, Serialize)]
pub struct OutcomeRow {
    /// Its name.
    pub outcome: Outcome,
    /// How often.
    #[serde(flatten)]
    pub estimate: Estimate,
}

/// Outcomes of a group of trials.
#[derive(Clone, Debug, Serialize)]
pub struct GroupPart {
    /// The group.
    pub name: String,
    /// Replicas.
    pub replicas: u8,
    /// Trials by outcome.
    pub counts: Counts,
    /// What could be noticed.
    pub visible: Estimate,
}

/// A row of the map of bits.
#[derive(Clone, Debug, Serialize)]
pub struct BitPart {
    /// Register or class of memory.
    pub row: String,
    /// Replicas.
    pub replicas: u8,
    /// Bits 0 to 63.
    pub bits: Vec<Hits>,
}

impl Serialize for Hits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map([
            ("trials", self.trials),
            ("unmasked", self.unmasked),
            ("visible", self.visible),
        ])
    }
}

/// A region of the address space.
#[derive(Clone, Debug, Serialize)]
pub struct MapPart {
    /// Its name.
    pub region: String,
    /// Replicas.
    pub replicas: u8,
    /// Bytes per bin.
    pub bin_bytes: u64,
    /// Bins in which there was a trial.
    pub bins: Vec<MapBin>,
}

/// A bin of a region.
#[derive(Clone, Debug, Serialize)]
pub struct MapBin {
    /// Offset of its first byte in the region.
    pub offset: u64,
    /// What came of the trials there.
    #[serde(flatten)]
    pub hits: Hits,
}

/// A distribution.
#[derive(Clone, Debug, Serialize)]
pub struct Distribution {
    /// Values.
    pub count: u64,
    /// The smallest.
    pub min: u64,
    /// Half of them are not larger.
    pub median: u64,
    /// 90 % of them are not larger.
    pub p90: u64,
    /// 99 % of them are not larger.
    pub p99: u64,
    /// The largest.
    pub max: u64,
    /// Histogram on a logarithmic axis.
    pub bins: Vec<Bin>,
    /// For the cumulative plot.
    #[serde(skip)]
    pub sketch: Sketch,
}

/// A bin of a histogram.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Bin {
    /// Lower edge, in the bin.
    pub low: f64,
    /// Upper edge, not in the bin.
    pub high: f64,
    /// Values.
    pub count: u64,
}

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

/// From injection to stop.
#[derive(Clone, Debug, Serialize)]
pub struct DetectionPart {
    /// Replicas.
    pub replicas: u8,
    /// How faults were found, most frequent first.
    pub how: Vec<Tallied>,
    /// Virtual nanoseconds.
    pub virtual_ns: Distribution,
    /// Boundaries.
    pub boundaries: Distribution,
}

/// So many of a name.
#[derive(Clone, Debug, Serialize)]
pub struct Tallied {
    /// The name.
    pub name: String,
    /// How many.
    pub count: u64,
}

/// From stop to vote.
#[derive(Clone, Debug, Serialize)]
pub struct RecoveryPart {
    /// Replicas.
    pub replicas: u8,
    /// Step of the ladder.
    pub step: String,
    /// Real microseconds.
    pub micros: Distribution,
}

/// The same fault in several replicas.
#[derive(Clone, Debug, Serialize)]
pub struct CorrelatedPart {
    /// In how many, at most.
    pub copies: u8,
    /// Of how many.
    pub replicas: u8,
    /// Trials by outcome.
    pub counts: Counts,
    /// Silent corruptions among them.
    pub silent: Estimate,
    /// Those that stopped the set.
    pub stopped: Estimate,
}

/// A trial that is listed.
#[derive(Clone, Debug, Serialize)]
pub struct WorstPart {
    /// Number of the draw.
    pub draw: u64,
    /// Replicas.
    pub replicas: u8,
    /// What became of it.
    pub outcome: Outcome,
    /// All replicas voted at its end.
    pub full_strength: bool,
    /// What was done.
    pub fault: String,
    /// When.
    pub trigger: String,
    /// Where, exactly.
    pub place: String,
    /// What shows it.
    pub evidence: String,
    /// The command that does it again and records it.
    pub replay: String,
    /// The command that explains the recording.
    pub explain: String,
}

/// Where the time of trials went: means per trial.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TimingPart {
    /// Replicas.
    pub replicas: u8,
    /// Trials.
    pub trials: u64,
    /// Microseconds for putting machines back.
    pub reset_us: f64,
    /// Pages put back.
    pub reset_pages: f64,
    /// Microseconds of running, without injecting.
    pub run_us: f64,
    /// Microseconds of reaching the trigger and injecting.
    pub inject_us: f64,
    /// Microseconds until full strength.
    pub settle_us: f64,
    /// Microseconds of judging.
    pub judge_us: f64,
    /// Microseconds in none of these.
    pub other_us: f64,
    /// Microseconds in all.
    pub total_us: f64,
    /// Trials per second of one job.
    pub per_second: f64,
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
