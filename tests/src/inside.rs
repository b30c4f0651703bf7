//! A replica set in this process, recorded: everything that its machines were given, so that one machine can be given it again.

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quorate_devices::Entry;
use quorate_executor::console::Console;
use quorate_executor::egress::Item;
use quorate_executor::events::Event;
use quorate_executor::exit::Failure;
use quorate_executor::launch::{Hooks, Options, Plan, Running};
use quorate_executor::replay::{ReplayError, Replayed, replay};
use quorate_executor::scratch::Scratch;
use quorate_executor::set::Summary;
use quorate_images::Appliance;
use quorate_vmm::open_kvm;

use crate::Error;

/// What the guest's console has said so far.
#[derive(Clone, Default)]
pub struct Said(Arc<(Mutex<Vec<u8>>, Condvar)>);

impl Said {
    /// All of it.
    #[must_use]
    pub fn text(&self) -> String {
        let said = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&said).into_owned()
    }

    /// Waits until `wanted` has been said; false if it is not within the time.
    #[must_use]
    pub fn wait_for(&self, wanted: &str, within: Duration) -> bool {
        let deadline = Instant::now() + quorate_executor::patience::patient(within);
        let mut said = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !String::from_utf8_lossy(&said).contains(wanted) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.0.1.wait_timeout(said, left);
            said = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut said = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        said.extend_from_slice(bytes);
        self.0.1.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A set that was run to its end.
pub struct Recorded {
    /// What was run.
    pub plan: Plan,
    /// How it ended.
    pub summary: Summary,
    /// What happened.
    pub events: Vec<Event>,
    /// The console.
    pub said: Said,
    /// The entries, from that of boundary 0 on.
    pub entries: Vec<Arc<Entry>>,
    /// The disks as they were before.
    pub before: Scratch,
}

/// The plan for the appliance whose text is `text`; relative paths in it start at `directory`.
///
/// # Errors
/// As [`Plan::new`].
pub fn plan(text: &str, directory: &Path, options: &Options) -> Result<Plan, Error> {
    let appliance = Appliance::parse(text, &directory.join("appliance.toml"))
        .map_err(crate::native::NativeError::from)?;
    Plan::new(&appliance, options, &|_| {}).map_err(failed)
}

fn failed(failure: Failure) -> Error {
    Error::Unexpected(failure.to_string())
}

/// Runs a set to its end; `meanwhile` may do something to it.
///
/// # Errors
/// When it cannot be started.
pub fn record(plan: &Plan, meanwhile: impl FnOnce(&Running, &Said)) -> Result<Recorded, Error> {
    let before = plan.scratch().map_err(failed)?;
    let entries = Arc::<Mutex<Vec<Arc<Entry>>>>::default();
    let events = Arc::<Mutex<Vec<Event>>>::default();
    let said = Said::default();
    let (to_entries, to_events) = (Arc::clone(&entries), Arc::clone(&events));
    let console = Console::start(said.clone()).map_err(|source| Error::Io {
        what: "a console".to_owned(),
        source,
    })?;
    let running = plan
        .clone()
        .start(Hooks {
            events: Box::new(move |logged| {
                let mut events = to_events.lock().unwrap_or_else(PoisonError::into_inner);
                events.push(logged.event.clone());
            }),
            console: Arc::new(console),
            recorder: None,
            tap: Some(Box::new(move |item| {
                if let Item::Entry { entry, .. } = item {
                    let mut entries = to_entries.lock().unwrap_or_else(PoisonError::into_inner);
                    entries.push(Arc::clone(entry));
                }
            })),
        })
        .map_err(failed)?;
    meanwhile(&running, &said);
    let summary = running.wait();
    let entries = entries.lock().unwrap_or_else(PoisonError::into_inner);
    let events = events.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Recorded {
        plan: plan.clone(),
        summary,
        events: events.clone(),
        said,
        entries: entries.clone(),
        before,
    })
}

impl Recorded {
    /// Gives one healthy machine, in the layout of replica `number`, what the set was given; what it made of that, and its disks.
    ///
    /// # Errors
    /// When there is no KVM, or no machine can be built.
    pub fn replay(self, number: usize) -> Result<(Result<Replayed, ReplayError>, Scratch), Error> {
        let kvm = open_kvm().map_err(|error| Error::Unexpected(error.to_string()))?;
        let mut scratch = self.before;
        let mut machine = self
            .plan
            .build(&kvm, number, self.plan.layout_seed(number))
            .map_err(failed)?;
        let replayed = replay(&mut machine, &self.entries, &mut scratch);
        Ok((replayed, scratch))
    }

    /// Events that say that a replica was stopped, as text.
    #[must_use]
    pub fn stopped(&self) -> Vec<usize> {
        let stopped = self.events.iter().filter_map(|event| match event {
            Event::ReplicaStopped { replica, .. } => Some(*replica),
            _ => None,
        });
        stopped.collect()
    }
}
