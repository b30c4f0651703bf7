//! `epoll`. Items whose file may be ready are on a list, in the order in which they got there, so a wait costs what is
//! ready and not what is watched. A file that is not ready after all is taken off when the list is looked at.

use super::anon::{self, Anonymous};
use super::wait_for::Deadline;
use crate::errno::*;
use crate::file::{self, File, OpenFile, Stat, flags, ready};
use crate::wait::{SubscriptionId, WaitQueue, Watcher};
use crate::{fingerprint, sched, user};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::cell::{Cell, RefCell};

const EPOLL_CTL_ADD: u32 = 1;
const EPOLL_CTL_DEL: u32 = 2;
const EPOLL_CTL_MOD: u32 = 3;

const EPOLLEXCLUSIVE: u32 = 1 << 28;
const EPOLLWAKEUP: u32 = 1 << 29;
const EPOLLONESHOT: u32 = 1 << 30;
const EPOLLET: u32 = 1 << 31;
/// Bits that say how, not what.
const HOW: u32 = EPOLLEXCLUSIVE | EPOLLWAKEUP | EPOLLONESHOT | EPOLLET;
/// Bits allowed beside EPOLLEXCLUSIVE.
const EXCLUSIVE_OK: u32 =
    ready::IN | ready::OUT | ready::ERR | ready::HUP | EPOLLET | EPOLLWAKEUP | EPOLLEXCLUSIVE;

/// Bytes of a `struct epoll_event` (packed on x86-64).
const EVENT_SIZE: usize = 12;
/// Longest chain of epoll sets that watch each other (`ELOOP` beyond), as in Linux.
const MAX_NESTING: u32 = 5;
/// Most events of one wait: the limit that Linux has.
const MAX_EVENTS: usize = i32::MAX as usize / EVENT_SIZE;
/// Most events that one wait gives at a time, so that a huge buffer is not populated for nothing.
const BATCH: usize = 4096;

/// One watched file.
struct Item {
    /// Its key in the set: descriptor and order of addition.
    key: (i32, u64),
    /// The description: the item must not keep it open.
    open: Weak<OpenFile>,
    /// What is asked for; only HOW bits after a one-shot event.
    events: Cell<u32>,
    data: Cell<u64>,
    queued: Cell<bool>,
    removed: Cell<bool>,
    set: Weak<Core>,
    me: Weak<Item>,
    subscription: Cell<Option<SubscriptionId>>,
}

impl Watcher for Item {
    fn notify(&self) {
        if self.queued.get() || self.removed.get() || self.events.get() & !HOW == 0 {
            return;
        }
        let Some(set) = self.set.upgrade() else {
            return;
        };
        if let Some(me) = self.me.upgrade() {
            set.requeue(me);
            set.queue.wake_one();
        }
    }
}

impl Item {
    /// Ends the subscription on the file.
    fn detach(&self) {
        self.removed.set(true);
        if let (Some(open), Some(id)) = (self.open.upgrade(), self.subscription.take())
            && let Some(queue) = open.file.wait_queue()
        {
            queue.unsubscribe(id);
        }
    }

    /// What of the events asked for has happened.
    fn ready(&self, open: &OpenFile) -> u32 {
        let wanted = self.events.get();
        if wanted & !HOW == 0 {
            return 0;
        }
        open.file.poll() & (wanted | ready::ERR | ready::HUP)
    }
}

struct Core {
    /// By descriptor, then by order of addition: a descriptor can be closed and used again while a
    /// duplicate keeps the first file in the set.
    items: RefCell<BTreeMap<(i32, u64), Rc<Item>>>,
    next: Cell<u64>,
    ready: RefCell<VecDeque<Rc<Item>>>,
    queue: WaitQueue,
}

impl Core {
    /// Takes the first item off the ready list. None: there is nothing to it any more, its file was closed (then it
    /// also leaves the set) or it was removed.
    fn pop_ready(&self) -> Option<(Rc<Item>, Rc<OpenFile>)> {
        let item = self.ready.borrow_mut().pop_front()?;
        item.queued.set(false);
        if item.removed.get() {
            return None;
        }
        let open = item.open.upgrade();
        if open.is_none() {
            self.items.borrow_mut().remove(&item.key);
        }
        Some((item, open?))
    }

    /// Puts an item at the end of the ready list, if it is not on it.
    fn requeue(&self, item: Rc<Item>) {
        if !item.queued.replace(true) {
            self.ready.borrow_mut().push_back(item);
        }
    }

    /// Gives up to `most` events to `emit` (flags, user data). Level-triggered ones go to the end of the list.
    fn collect(&self, most: usize, emit: &mut dyn FnMut(usize, &Item, u32)) -> usize {
        let mut count = 0;
        // Items that are put back must not be looked at again in this round.
        let mut left = self.ready.borrow().len();
        while count < most && left > 0 {
            left -= 1;
            let Some((item, open)) = self.pop_ready() else {
                continue;
            };
            let events = item.ready(&open);
            if events == 0 {
                continue;
            }
            emit(count, &item, events);
            count += 1;
            let how = item.events.get();
            if how & EPOLLONESHOT != 0 {
                item.events.set(how & HOW);
            } else if how & EPOLLET == 0 {
                self.requeue(item);
            }
        }
        count
    }

    fn any_ready(&self) -> bool {
        while !self.ready.borrow().is_empty() {
            if let Some((item, open)) = self.pop_ready()
                && item.ready(&open) != 0
            {
                // Put back in front: looking must not change the order.
                item.queued.set(true);
                self.ready.borrow_mut().push_front(item);
                return true;
            }
        }
        false
    }
}

/// An epoll set.
pub struct Epoll {
    core: Rc<Core>,
    identity: Anonymous,
}

impl Drop for Epoll {
    fn drop(&mut self) {
        let items = core::mem::take(&mut *self.core.items.borrow_mut());
        for item in items.values() {
            item.detach();
        }
    }
}

impl File for Epoll {
    fn poll(&self) -> u32 {
        if self.core.any_ready() {
            ready::IN | ready::RDNORM
        } else {
            0
        }
    }

    fn wait_queue(&self) -> Option<&WaitQueue> {
        Some(&self.core.queue)
    }

    fn stat(&self) -> Result<Stat> {
        Ok(self.identity.stat())
    }

    fn path(&self) -> Vec<u8> {
        b"anon_inode:[eventpoll]".to_vec()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// How deep sets are nested below `open`; `ELOOP` if `target` is among them or it is too deep.
fn nesting(open: &OpenFile, target: &Epoll, depth: u32) -> Result<()> {
    let Some(epoll) = open.file.as_any().downcast_ref::<Epoll>() else {
        return Ok(());
    };
    if core::ptr::eq(epoll, target) || depth >= MAX_NESTING {
        return Err(ELOOP);
    }
    let inner: Vec<_> = epoll
        .core
        .items
        .borrow()
        .values()
        .filter_map(|item| item.open.upgrade())
        .collect();
    inner
        .iter()
        .try_for_each(|open| nesting(open, target, depth + 1))
}

impl Epoll {
    fn find(&self, fd: i32, open: &Rc<OpenFile>) -> Option<Rc<Item>> {
        let items = self.core.items.borrow();
        items
            .range((fd, 0)..=(fd, u64::MAX))
            .find(|(_, item)| core::ptr::eq(item.open.as_ptr(), Rc::as_ptr(open)))
            .map(|(_, item)| item.clone())
    }

    fn add(&self, fd: i32, open: &Rc<OpenFile>, events: u32, data: u64) -> Result<()> {
        if self.find(fd, open).is_some() {
            return Err(EEXIST);
        }
        if events & EPOLLEXCLUSIVE != 0 {
            let nested = open.file.as_any().is::<Epoll>();
            if nested || events & !EXCLUSIVE_OK != 0 {
                return Err(EINVAL);
            }
        }
        nesting(open, self, 0)?;
        let queue = open.file.wait_queue().ok_or(EPERM)?;
        // What an earlier file with this descriptor left behind when it was closed; so there are never more items
        // than descriptors and duplicates (R10).
        self.core
            .items
            .borrow_mut()
            .retain(|key, item| key.0 != fd || item.open.strong_count() > 0);
        let key = (fd, self.core.next.get());
        self.core.next.set(key.1 + 1);
        let item = Rc::new_cyclic(|me| Item {
            key,
            open: Rc::downgrade(open),
            events: Cell::new(events),
            data: Cell::new(data),
            queued: Cell::new(false),
            removed: Cell::new(false),
            set: Rc::downgrade(&self.core),
            me: me.clone(),
            subscription: Cell::new(None),
        });
        self.core.items.borrow_mut().insert(key, item.clone());
        item.subscription.set(Some(queue.subscribe(item.clone())));
        self.offer(&item, open);
        Ok(())
    }

    /// Puts an item on the list if its file is ready now.
    fn offer(&self, item: &Rc<Item>, open: &OpenFile) {
        if item.ready(open) != 0 {
            self.core.requeue(item.clone());
            self.core.queue.wake_one();
        }
    }
}

fn with<T>(epfd: i32, act: impl FnOnce(&Epoll, &Rc<OpenFile>) -> Result<T>) -> Result<T> {
    let open = file::get(epfd)?;
    match open.file.as_any().downcast_ref::<Epoll>() {
        Some(epoll) => act(epoll, &open),
        None => Err(EINVAL),
    }
}

/// `epoll_create1(2)`.
pub fn epoll_create1(how: u32) -> SysResult {
    if how & !flags::O_CLOEXEC != 0 {
        return Err(EINVAL);
    }
    let core = Rc::new(Core {
        items: RefCell::new(BTreeMap::new()),
        next: Cell::new(0),
        ready: RefCell::new(VecDeque::new()),
        queue: WaitQueue::new(),
    });
    let identity = Anonymous::new();
    let open = OpenFile::new(Rc::new(Epoll { core, identity }), flags::O_RDWR);
    anon::install(open, how & flags::O_CLOEXEC != 0)
}

/// `epoll_create(2)`.
pub fn epoll_create(size: i32) -> SysResult {
    if size <= 0 {
        return Err(EINVAL);
    }
    epoll_create1(0)
}

/// `epoll_ctl(2)`.
pub fn epoll_ctl(epfd: i32, operation: u32, fd: i32, event: u64) -> SysResult {
    let (events, data) = match operation {
        EPOLL_CTL_DEL => (0, 0),
        _ => {
            let raw: [u8; EVENT_SIZE] = user::read(event)?;
            let (events, data) = raw.split_at(4);
            (
                u32::from_le_bytes(events.try_into().unwrap_or_default()),
                u64::from_le_bytes(data.try_into().unwrap_or_default()),
            )
        }
    };
    fingerprint::number(u64::from(operation) << 32 | u64::from(fd as u32));
    fingerprint::number(u64::from(events));
    let open = file::get(fd)?;
    with(epfd, |epoll, epoll_open| {
        if Rc::ptr_eq(epoll_open, &open) {
            return Err(EINVAL);
        }
        match operation {
            EPOLL_CTL_ADD => epoll.add(fd, &open, events, data)?,
            EPOLL_CTL_DEL => {
                let item = epoll.find(fd, &open).ok_or(ENOENT)?;
                epoll.core.items.borrow_mut().remove(&item.key);
                item.detach();
            }
            EPOLL_CTL_MOD => {
                let item = epoll.find(fd, &open).ok_or(ENOENT)?;
                if (events | item.events.get()) & EPOLLEXCLUSIVE != 0 {
                    return Err(EINVAL);
                }
                item.events.set(events);
                item.data.set(data);
                epoll.offer(&item, &open);
            }
            _ => return Err(EINVAL),
        }
        Ok(0)
    })
}

/// `epoll_wait(2)` with the deadline already worked out.
pub fn wait(epfd: i32, events: u64, most: i32, mut deadline: Deadline) -> SysResult {
    let most = usize::try_from(most).map_err(|_| EINVAL)?;
    if most == 0 || most > MAX_EVENTS {
        return Err(EINVAL);
    }
    let most = most.min(BATCH);
    let open = file::get(epfd)?;
    let Some(epoll) = open.file.as_any().downcast_ref::<Epoll>() else {
        return Err(EINVAL);
    };
    loop {
        let may_be_ready = epoll.core.ready.borrow().len();
        if may_be_ready > 0 {
            let room = most.min(may_be_ready);
            let out = user::bytes_mut(events, room * EVENT_SIZE)?;
            let count = epoll.core.collect(room, &mut |index, item, happened| {
                let at = index * EVENT_SIZE;
                out[at..at + 4].copy_from_slice(&happened.to_le_bytes());
                out[at + 4..at + EVENT_SIZE].copy_from_slice(&item.data.get().to_le_bytes());
                // The data word is often an address (R8): the descriptor stands for it.
                fingerprint::number(u64::from(item.key.0 as u32) << 32 | u64::from(happened));
            });
            if count > 0 {
                // More than one thread can wait here: the others take what is left.
                if epoll.core.queue.threads() > 0 && !epoll.core.ready.borrow().is_empty() {
                    epoll.core.queue.wake_one();
                }
                return Ok(count as u64);
            }
        }
        if !deadline.wait(&[&epoll.core.queue])? {
            return Ok(0);
        }
    }
}

/// `epoll_pwait(2)`: `timeout_ms` below 0 means for ever.
pub fn epoll_pwait(args: [u64; 6]) -> SysResult {
    let [epfd, events, most, timeout_ms, mask, mask_size] = args;
    set_mask(mask, mask_size)?;
    epoll_wait(epfd as i32, events, most as i32, timeout_ms as i32)
}

/// `epoll_pwait2(2)`: the timeout is a `struct timespec`, or null for ever.
pub fn epoll_pwait2(args: [u64; 6]) -> SysResult {
    let [epfd, events, most, timeout, mask, mask_size] = args;
    let deadline = Deadline::from_timespec(timeout)?;
    set_mask(mask, mask_size)?;
    wait(epfd as i32, events, most as i32, deadline)
}

/// `epoll_wait(2)`.
pub fn epoll_wait(epfd: i32, events: u64, most: i32, timeout_ms: i32) -> SysResult {
    wait(epfd, events, most, Deadline::from_ms(timeout_ms))
}

/// Replaces the signal mask for the time of a call if the program gave one.
///
/// # Errors
/// `EINVAL` for another size than the kernel's `sigset_t`, `EFAULT`.
pub fn set_mask(mask: u64, size: u64) -> Result<()> {
    if mask == 0 {
        return Ok(());
    }
    if size != 8 {
        return Err(EINVAL);
    }
    sched::set_temporary_mask(user::read(mask)?);
    Ok(())
}
