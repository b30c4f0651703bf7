//! Processes: what each has of its own, how they are related, how they end and are waited for.
//!
//! A process is found through [`current`] (the one whose thread runs) or by its id. The objects live for ever and are used again, so that
//! they can be referred to without counting; ids are not used again until all others have been.

pub mod end;
pub mod wait;

use crate::cell::Global;
use crate::errno::*;
use crate::file::FdTable;
use crate::fs::state::{Place, Program};
use crate::mm::{self, SpaceRef};
use crate::signal::ProcessSignals;
use crate::sys::{clock::RealTimer, ident::Limits};
use crate::wait::WaitQueue;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

/// Id of the first process, with which the set ends, and of its first thread. Not 1: programs treat pid 1 as a container's init.
pub const FIRST: u32 = 100;
/// Most processes, those included that have ended and were not waited for (R10): `fork` gets `EAGAIN` beyond.
pub const MAX_PROCESSES: usize = 1024;
/// Highest id of a process or thread; then numbering starts again where Linux does.
const MAX_ID: u32 = 4_194_303;
/// First id after a wrap.
const ID_AGAIN: u32 = 300;

/// How far a process is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// Runs.
    Alive,
    /// Its threads are ending.
    Ending,
    /// Has ended, and waits to be waited for.
    Zombie,
}

/// User, groups.
#[derive(Clone, Default)]
pub struct Ids {
    /// User (real = effective = saved).
    pub uid: u32,
    /// Group (real = effective = saved).
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// A process.
pub struct Process {
    /// Its id: that of its first thread.
    pub pid: Cell<u32>,
    /// Who waits for it; 0 for the first process.
    pub parent: Cell<u32>,
    /// Process group.
    pub group: Cell<u32>,
    /// Session.
    pub session: Cell<u32>,
    /// Children, in the order in which they were made (adopted ones last).
    pub children: RefCell<Vec<u32>>,
    /// Threads that have not ended.
    pub threads: RefCell<BTreeSet<u32>>,
    /// How far it is.
    pub life: Cell<Life>,
    /// Wait status, once it is ending.
    pub status: Cell<u32>,
    /// The thread that makes all others end, for `execve`; 0 if none does.
    pub sole: Cell<u32>,
    /// Woken when one of its threads ends.
    pub thread_ended: WaitQueue,
    /// Woken when a child ends.
    pub child_ended: WaitQueue,
    /// Its parent waits for it to leave the common address space.
    pub borrows_space: Cell<bool>,
    /// Woken when it has.
    pub space_left: WaitQueue,
    /// Signal that its parent gets when it ends.
    pub exit_signal: Cell<u32>,
    /// Nobody waits for it: gone as soon as it has ended.
    pub unwaited: Cell<bool>,
    /// PR_SET_PDEATHSIG.
    pub death_signal: Cell<u32>,
    /// PR_SET_CHILD_SUBREAPER.
    pub reaper: Cell<bool>,
    /// Was somebody else's child before.
    pub orphaned: Cell<bool>,
    /// Has made an `execve`, after which its parent can no longer change its group.
    pub executed: Cell<bool>,
    /// PR_SET_DUMPABLE was given 0 since the last `execve`; nothing is ever dumped.
    pub undumpable: Cell<bool>,
    /// Nice value.
    pub nice: Cell<i32>,
    /// Processor time used, up to the last switch.
    pub cpu_ns: Cell<u64>,
    /// Processor time of children that were waited for.
    pub children_cpu_ns: Cell<u64>,
    /// Descriptors.
    pub files: Global<FdTable>,
    /// Root, working directory, umask.
    pub place: Global<Option<Place>>,
    /// What `/proc` says of its program.
    pub program: Global<Program>,
    /// Signal handlers, pending signals.
    pub signals: Global<ProcessSignals>,
    /// User and groups.
    pub ids: Global<Ids>,
    /// Resource limits.
    pub limits: Global<Limits>,
    /// ITIMER_REAL.
    pub alarm: Global<RealTimer>,
    space: Cell<Option<SpaceRef>>,
}

/// A reference to a process. It stays valid, but after a wait it may be another one's: look it up again by its id.
pub type ProcessRef = &'static Process;

struct Table {
    all: BTreeMap<u32, ProcessRef>,
    free: Vec<ProcessRef>,
    current: Option<ProcessRef>,
    next_id: u32,
    /// Processes that were ever made.
    made: u64,
}

static TABLE: Global<Table> = Global::new(Table {
    all: BTreeMap::new(),
    free: Vec::new(),
    current: None,
    next_id: FIRST,
    made: 0,
});

impl Process {
    fn blank() -> Self {
        Self {
            pid: Cell::new(0),
            parent: Cell::new(0),
            group: Cell::new(0),
            session: Cell::new(0),
            children: RefCell::new(Vec::new()),
            threads: RefCell::new(BTreeSet::new()),
            life: Cell::new(Life::Alive),
            status: Cell::new(0),
            sole: Cell::new(0),
            thread_ended: WaitQueue::new(),
            child_ended: WaitQueue::new(),
            borrows_space: Cell::new(false),
            space_left: WaitQueue::new(),
            exit_signal: Cell::new(0),
            unwaited: Cell::new(false),
            death_signal: Cell::new(0),
            reaper: Cell::new(false),
            orphaned: Cell::new(false),
            executed: Cell::new(false),
            undumpable: Cell::new(false),
            nice: Cell::new(0),
            cpu_ns: Cell::new(0),
            children_cpu_ns: Cell::new(0),
            files: Global::new(FdTable::new()),
            place: Global::new(None),
            program: Global::new(Program::default()),
            signals: Global::new(ProcessSignals::new()),
            ids: Global::new(Ids::default()),
            limits: Global::new(Limits::new()),
            alarm: Global::new(RealTimer::new()),
            space: Cell::new(None),
        }
    }

    /// Whether it is the one with which the set ends.
    pub fn is_first(&self) -> bool {
        self.pid.get() == FIRST
    }

    /// Whether it has not begun to end.
    pub fn is_alive(&self) -> bool {
        self.life.get() == Life::Alive
    }

    /// Its address space; None for one that has ended.
    pub fn space(&self) -> Option<SpaceRef> {
        self.space.get()
    }

    /// Puts another address space in the place of its own, which is returned.
    pub fn set_space(&self, space: Option<SpaceRef>) -> Option<SpaceRef> {
        self.space.replace(space)
    }

    /// Ids of its threads, ascending.
    pub fn thread_ids(&self) -> Vec<u32> {
        self.threads.borrow().iter().copied().collect()
    }

    /// Whether `tid`, one of its threads, has to end.
    pub fn ends_thread(&self, tid: u32) -> bool {
        self.life.get() != Life::Alive || !matches!(self.sole.get(), 0) && self.sole.get() != tid
    }

    /// The common address space is no longer in use by it: its parent goes on.
    pub fn leave_space(&self) {
        if self.borrows_space.replace(false) {
            self.space_left.wake_all();
        }
    }

    fn inherit(&self, parent: &Self) {
        self.group.set(parent.group.get());
        self.session.set(parent.session.get());
        self.nice.set(parent.nice.get());
        self.undumpable.set(parent.undumpable.get());
        *self.files.borrow_mut() = parent.files.borrow().clone();
        *self.place.borrow_mut() = parent.place.borrow().clone();
        *self.program.borrow_mut() = parent.program.borrow().clone();
        *self.signals.borrow_mut() = parent.signals.borrow().inherited();
        *self.ids.borrow_mut() = parent.ids.borrow().clone();
        *self.limits.borrow_mut() = parent.limits.borrow().clone();
    }

    /// Back to what a new object has.
    fn reset(&self) {
        let new = Self::blank();
        for (old, new) in [
            (&self.pid, &new.pid),
            (&self.parent, &new.parent),
            (&self.group, &new.group),
            (&self.session, &new.session),
            (&self.status, &new.status),
            (&self.sole, &new.sole),
            (&self.exit_signal, &new.exit_signal),
            (&self.death_signal, &new.death_signal),
        ] {
            old.set(new.get());
        }
        self.life.set(Life::Alive);
        self.nice.set(0);
        self.cpu_ns.set(0);
        self.children_cpu_ns.set(0);
        for flag in [
            &self.borrows_space,
            &self.unwaited,
            &self.reaper,
            &self.orphaned,
            &self.executed,
            &self.undumpable,
        ] {
            flag.set(false);
        }
        self.children.replace(Vec::new());
        self.threads.replace(BTreeSet::new());
        *self.files.borrow_mut() = FdTable::new();
        *self.place.borrow_mut() = None;
        *self.program.borrow_mut() = Program::default();
        *self.signals.borrow_mut() = ProcessSignals::new();
        *self.limits.borrow_mut() = Limits::new();
        *self.alarm.borrow_mut() = RealTimer::new();
    }
}

/// The process whose thread runs. Before there is any, the first one, which is made then.
pub fn current() -> ProcessRef {
    let known = TABLE.borrow().current;
    match known {
        Some(process) => process,
        None => begin(),
    }
}

#[cold]
#[inline(never)]
fn begin() -> ProcessRef {
    let first: ProcessRef = Box::leak(Box::new(Process::blank()));
    let id = next_id();
    first.pid.set(id);
    first.group.set(id);
    first.session.set(id);
    first.executed.set(true);
    let mut table = TABLE.borrow_mut();
    table.all.insert(id, first);
    table.current = Some(first);
    table.made = 1;
    first
}

/// From now on a thread of `process` runs.
pub fn switch_to(process: ProcessRef) {
    TABLE.borrow_mut().current = Some(process);
    if let Some(space) = process.space() {
        mm::switch_space(space);
    }
}

/// The process with an id, one that has ended and was not waited for included.
pub fn find(pid: u32) -> Option<ProcessRef> {
    TABLE.borrow().all.get(&pid).copied()
}

/// All processes, by id.
pub fn all() -> Vec<ProcessRef> {
    TABLE.borrow().all.values().copied().collect()
}

/// How many there are, and how many were ever made.
pub fn counts() -> (usize, u64) {
    let table = TABLE.borrow();
    (table.all.len(), table.made)
}

/// An id for a new process or thread: the next one that nobody has.
pub fn next_id() -> u32 {
    loop {
        let mut table = TABLE.borrow_mut();
        let id = table.next_id;
        table.next_id = if id >= MAX_ID { ID_AGAIN } else { id + 1 };
        let taken = |p: &ProcessRef| {
            p.pid.get() == id
                || p.group.get() == id
                || p.session.get() == id
                || p.threads.borrow().contains(&id)
        };
        // Only after a wrap can an id be taken.
        if table.made < u64::from(ID_AGAIN) || !table.all.values().any(taken) {
            return id;
        }
    }
}

/// A new process, child of `parent`, with an address space but no thread yet.
///
/// # Errors
/// `EAGAIN` at [`MAX_PROCESSES`].
pub fn new(of: ProcessRef, parent: ProcessRef, space: SpaceRef) -> Result<ProcessRef> {
    if TABLE.borrow().all.len() >= MAX_PROCESSES && !end::forget_an_orphan() {
        return Err(EAGAIN);
    }
    let pid = next_id();
    let mut table = TABLE.borrow_mut();
    let child = match table.free.pop() {
        Some(process) => process,
        None => Box::leak(Box::new(Process::blank())),
    };
    child.pid.set(pid);
    child.parent.set(parent.pid.get());
    child.inherit(of);
    child.space.set(Some(space));
    table.all.insert(pid, child);
    table.made += 1;
    parent.children.borrow_mut().push(pid);
    Ok(child)
}

/// Undoes [`new`]: the process never ran.
pub fn undo(child: ProcessRef) {
    let files = child.files.borrow_mut().take_all();
    drop(files);
    if let Some(space) = child.set_space(None) {
        mm::release_space(space);
    }
    remove(child);
}

/// Takes a process that has ended out of the table and out of its parent's children.
fn remove(process: ProcessRef) {
    let pid = process.pid.get();
    if let Some(parent) = find(process.parent.get()) {
        parent.children.borrow_mut().retain(|c| *c != pid);
    }
    process.reset();
    let mut table = TABLE.borrow_mut();
    table.all.remove(&pid);
    table.free.push(process);
}
