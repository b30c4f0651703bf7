//! The report as data: what `report.json` holds and `report.html` shows. The schema is documented in docs/campaigns.md, and a
//! test holds the two together.

use serde::{Serialize, Serializer};

use crate::model::{GoldenFacts, Outcome};

use super::estimate::Estimate;
use super::sketch::Sketch;
use super::tally::{Counts, Hits};
use super::{Machine, Named, Stratum};

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
