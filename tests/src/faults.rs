//! Faults put into a set one after another, at random times and in random replicas, while clients work: each must be followed by full
//! strength, with the layout that the replica had.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Error;
use crate::load::Load;
use crate::random::Random;
use crate::set::Set;
use crate::watch::{Watch, state, wait_whole};
use crate::writes::Writers;

/// Upper bound for what takes a second at most.
const LONG: Duration = Duration::from_secs(60);
/// Longest progress that is waited for between two faults.
const MOST_BETWEEN: usize = 400;
/// Progress after which a fault without effect is left alone.
const NO_EFFECT_AFTER: usize = 300;

/// Clients at work meanwhile.
pub trait Clients {
    /// Waits until they have got `more` right answers.
    ///
    /// # Errors
    /// When one of them saw something that it must not see, or nothing comes any more.
    fn go_on(&self, more: usize) -> Result<(), Error>;
}

impl Clients for Load {
    fn go_on(&self, more: usize) -> Result<(), Error> {
        if self.wait_for_progress(more as u64, LONG) {
            Ok(())
        } else {
            Err(Error::Unexpected(format!(
                "the clients do not go on: {:?}",
                self.so_far()
            )))
        }
    }
}

impl Clients for Writers {
    fn go_on(&self, more: usize) -> Result<(), Error> {
        self.wait_for(more)
    }
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The machine crashes.
    Crash,
    /// The guest spins.
    Hang,
    /// The vCPU's thread stalls.
    Freeze,
    /// A wrong byte in a frame.
    WrongOutput,
    /// A wrong byte in a block write.
    WrongWrite,
    /// The replica falls behind. No failure.
    Slow,
    /// A bit of a register.
    FlipRegister,
    /// A bit of memory.
    FlipMemory,
    /// `quorate kill`.
    Kill,
}

/// Those that a set without a disk can have.
pub const KINDS: [Kind; 8] = [
    Kind::Crash,
    Kind::Hang,
    Kind::Freeze,
    Kind::WrongOutput,
    Kind::Slow,
    Kind::FlipRegister,
    Kind::FlipMemory,
    Kind::Kill,
];

/// All of them.
pub const KINDS_WITH_DISK: [Kind; 9] = [
    Kind::WrongWrite,
    Kind::Crash,
    Kind::Hang,
    Kind::Freeze,
    Kind::WrongOutput,
    Kind::Slow,
    Kind::FlipRegister,
    Kind::FlipMemory,
    Kind::Kill,
];

impl Kind {
    /// Whether the replica is certain to be stopped by it.
    #[must_use]
    pub fn is_certain(self) -> bool {
        !matches!(self, Kind::Slow | Kind::FlipRegister | Kind::FlipMemory)
    }

    /// Puts it into a replica.
    ///
    /// # Errors
    /// When it is refused.
    pub fn inject(self, set: &Set, replica: usize) -> Result<(), Error> {
        let words: &[&str] = match self {
            Kind::Crash => &["crash"],
            Kind::Hang => &["hang"],
            Kind::Freeze => &["freeze"],
            Kind::WrongOutput => &["wrong-output"],
            Kind::WrongWrite => &["wrong-write"],
            Kind::Slow => &["slow", "3", "60"],
            Kind::FlipRegister => &["flip-register", "random"],
            Kind::FlipMemory => &["flip-memory", "random"],
            Kind::Kill => return set.kill(replica),
        };
        set.inject(replica, words).map(|_| ())
    }
}

/// How many faults, and which.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Faults.
    pub faults: usize,
    /// They come in turns, each round in another order.
    pub kinds: Vec<Kind>,
    /// Seed of everything random.
    pub seed: u64,
    /// No further fault after this time.
    pub within: Duration,
}

/// What a fault was followed by.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The fault.
    pub kind: Kind,
    /// Milliseconds from the fault until a replica was stopped; none if it has not been stopped.
    pub found_ms: Option<u64>,
    /// Milliseconds from then to full strength.
    pub strength_ms: Option<u64>,
}

/// What came of all of them.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// One by one.
    pub outcomes: Vec<Outcome>,
    /// Replicas that were stopped, be it by this fault or by an earlier one that had waited.
    pub stopped: usize,
    /// Recoveries that kept the layout, got a new one, got that of another replica.
    pub layouts: [usize; 3],
    /// Recoveries by step of the ladder.
    pub steps: BTreeMap<String, usize>,
    /// Steps that failed, as the events tell them.
    pub failed_steps: Vec<String>,
    /// Faults that were refused because the replica had just been stopped by an earlier one.
    pub refused: usize,
}

impl Report {
    /// Recoveries in all.
    #[must_use]
    pub fn recovered(&self) -> usize {
        self.layouts.iter().sum()
    }

    /// Whether as many kept their layout as are promised: 95 of 100, and all but one of a few.
    #[must_use]
    pub fn keeps_layouts(&self) -> bool {
        let recovered = self.recovered();
        recovered - self.layouts[0] <= (recovered / 20).max(1)
    }

    /// Times from the stop to full strength, milliseconds, in order.
    #[must_use]
    pub fn strength_ms(&self) -> Vec<u64> {
        let mut times: Vec<u64> = self
            .outcomes
            .iter()
            .filter_map(|outcome| outcome.strength_ms)
            .collect();
        times.sort_unstable();
        times
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kinds = BTreeMap::<Kind, (usize, usize, u64)>::new();
        for outcome in &self.outcomes {
            let of = kinds.entry(outcome.kind).or_default();
            of.0 += 1;
            of.1 += usize::from(outcome.found_ms.is_some());
            of.2 = of.2.max(outcome.found_ms.unwrap_or(0));
        }
        writeln!(
            f,
            "  {} faults, {} replicas stopped, {} recovered: layout kept {}, new {}, copied {}; steps {:?}; {} refused",
            self.outcomes.len(),
            self.stopped,
            self.recovered(),
            self.layouts[0],
            self.layouts[1],
            self.layouts[2],
            self.steps,
            self.refused
        )?;
        for (kind, (injected, failed, found_ms)) in kinds {
            writeln!(
                f,
                "    {kind:?}: {injected}, of which {failed} failed, found within {found_ms} ms"
            )?;
        }
        for failed in &self.failed_steps {
            writeln!(f, "    failed: {failed}")?;
        }
        let times = self.strength_ms();
        if let (Some(most), Some(middle)) = (times.last(), times.get(times.len() / 2)) {
            write!(
                f,
                "    from the stop to full strength: median {middle} ms, most {most} ms"
            )?;
        }
        Ok(())
    }
}

/// Waits until every replica has taken so many checkpoints; the clients keep the set at work.
///
/// # Errors
/// When one of them saw something, or the set does not answer.
pub fn wait_checkpoints(set: &Set, clients: &dyn Clients, each: u64) -> Result<(), Error> {
    loop {
        let state = state(set)?;
        let mut replicas = state["replicas"].as_array().into_iter().flatten();
        if replicas.all(|replica| replica["checkpoints"]["taken"].as_u64() >= Some(each)) {
            return Ok(());
        }
        clients.go_on(100)?;
    }
}

/// Puts the faults of the plan into `set`, one after the other, once every replica has a checkpoint.
///
/// # Errors
/// When a client saw something, the set does not come back to full strength, or a layout is not what its event says.
pub fn run(set: &Set, clients: &dyn Clients, plan: &Plan) -> Result<Report, Error> {
    let started = Instant::now();
    let mut random = Random::new(plan.seed);
    let mut report = Report::default();
    wait_checkpoints(set, clients, 1)?;
    let mut before = wait_whole(set, LONG)?;
    let replicas = before["size"].as_u64().unwrap_or(0) as usize;
    let mut watch = Watch::new(set)?;
    let mut round: Vec<Kind> = Vec::new();
    while report.outcomes.len() < plan.faults && started.elapsed() < plan.within {
        if round.is_empty() {
            round = shuffled(&plan.kinds, &mut random);
        }
        let (Some(kind), victim) = (round.pop(), random.below(replicas)) else {
            return Err(Error::Unexpected("no kind of fault".to_owned()));
        };
        clients.go_on(1 + random.below(MOST_BETWEEN))?;
        let number = report.outcomes.len();
        let after = one(set, clients, &mut watch, kind, victim, &before, &mut report);
        before = after.map_err(|error| {
            let lines: Vec<String> = set.process().lines().into_iter().map(|l| l.text).collect();
            let last = lines[lines.len().saturating_sub(30)..].join("\n  ");
            Error::Unexpected(format!(
                "fault {number}, {kind:?} in replica {victim}, seed {}: {error}\n{report}\n  last lines:\n  {last}",
                plan.seed
            ))
        })?;
    }
    clients.go_on(MOST_BETWEEN)?;
    // Whatever waited in memory and has come to light in the end.
    before = wait_whole(set, LONG).and_then(|after| {
        account(&watch.rest()?, &before, &after, &mut report)?;
        Ok(after)
    })?;
    let counted = &before["recovery"]["recoveries"];
    for (step, count) in &report.steps {
        if counted[step] != *count {
            return Err(Error::Unexpected(format!(
                "the status counts {counted}, the events {:?}",
                report.steps
            )));
        }
    }
    Ok(report)
}

fn shuffled(kinds: &[Kind], random: &mut Random) -> Vec<Kind> {
    let mut left = kinds.to_vec();
    let mut shuffled = Vec::new();
    while !left.is_empty() {
        shuffled.push(left.swap_remove(random.below(left.len())));
    }
    shuffled
}

/// One fault, and full strength after it; the state then.
fn one(
    set: &Set,
    clients: &dyn Clients,
    watch: &mut Watch<'_>,
    kind: Kind,
    victim: usize,
    before: &Value,
    report: &mut Report,
) -> Result<Value, Error> {
    let mut events = Vec::new();
    if let Err(error) = kind.inject(set, victim) {
        // An earlier flip may have come to light at this very moment; else it is no reason to refuse.
        let stopped = watch.rest()?;
        if !stopped.iter().any(|event| is_stop(event, victim)) {
            return Err(error);
        }
        report.refused += 1;
        let after = wait_whole(set, LONG)?;
        events.extend(stopped);
        events.extend(watch.rest()?);
        account(&events, before, &after, report)?;
        return Ok(after);
    }
    if kind.is_certain() {
        events.extend(watch.next_of("replica-stopped", victim, LONG)?);
    } else {
        clients.go_on(NO_EFFECT_AFTER)?;
    }
    let after = wait_whole(set, LONG)?;
    events.extend(watch.rest()?);
    account(&events, before, &after, report)?;
    let at = |name: &str| {
        let event = events.iter().find(|event| event["event"] == name);
        event.and_then(|event| event["at_ms"].as_u64())
    };
    let stopped = at("replica-stopped");
    let last = events
        .iter()
        .rfind(|event| event["event"] == "full-strength");
    let strength = last.and_then(|event| event["at_ms"].as_u64());
    // `kill` is no fault that is injected: what follows it is found at once.
    let injected = at("injected").or(stopped);
    report.outcomes.push(Outcome {
        kind,
        found_ms: stopped
            .zip(injected)
            .map(|(stopped, injected)| stopped.saturating_sub(injected)),
        strength_ms: stopped
            .zip(strength)
            .map(|(stopped, strength)| strength.saturating_sub(stopped)),
    });
    if stopped.is_some() && strength.is_none() {
        return Err(Error::Unexpected(format!(
            "no event says that the set is at full strength: {events:#?}"
        )));
    }
    Ok(after)
}

fn is_stop(event: &Value, replica: usize) -> bool {
    event["event"] == "replica-stopped" && event["replica"] == replica
}

/// Counts recoveries, and compares what is said about layouts with the layouts.
fn account(
    events: &[Value],
    before: &Value,
    after: &Value,
    report: &mut Report,
) -> Result<(), Error> {
    let mut said = BTreeMap::<usize, Vec<&str>>::new();
    for event in events {
        let name = event["event"].as_str().unwrap_or_default();
        match name {
            "replica-stopped" => report.stopped += 1,
            "step-failed" => report.failed_steps.push(event.to_string()),
            "recovered" => {
                let replica = event["replica"].as_u64().unwrap_or(u64::MAX) as usize;
                let layout = event["layout"].as_str().unwrap_or_default();
                let step = event["step"].as_str().unwrap_or_default();
                *report.steps.entry(step.to_owned()).or_default() += 1;
                let kinds = ["kept", "new", "copied"];
                let kind = kinds.iter().position(|kind| *kind == layout);
                let kind = kind.ok_or_else(|| {
                    Error::Unexpected(format!("what became of the layout? {event}"))
                })?;
                report.layouts[kind] += 1;
                said.entry(replica).or_default().push(layout);
            }
            _ => {}
        }
    }
    for (replica, layouts) in said {
        let [was, is] = [before, after].map(|state| &state["replicas"][replica]["layout"]);
        if (was == is) != layouts.iter().all(|layout| *layout == "kept") {
            return Err(Error::Unexpected(format!(
                "replica {replica} is said to have its layout {layouts:?}; it was {was}, it is {is}"
            )));
        }
    }
    Ok(())
}
