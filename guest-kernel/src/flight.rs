//! The flight recorder: the last calls, for whoever looks at this machine's memory from outside (see [`quorate_abi::flight`]).
//! Nothing in here is ever read by the kernel, so its addresses reach no output (R8); but for what a fault injector writes.

use crate::arch::TrapFrame;
use crate::errno::{EINVAL, Errno};
use crate::{boundary, fingerprint, mm, sched};
use core::cell::UnsafeCell;
use quorate_abi::flight::{
    CAPACITY, EXCEPTION, FLIGHT_MAGIC, FLIGHT_VERSION, NEVER, Record, Recorder, STOP_PORT, can_fail,
};

#[repr(C, align(64))]
struct Ring(UnsafeCell<[Record; CAPACITY]>);
// SAFETY: one vCPU, no interrupts; written by `put` only, which does not call itself.
unsafe impl Sync for Ring {}

#[repr(transparent)]
pub(crate) struct Place(UnsafeCell<Recorder>);
// SAFETY: as `Ring`.
unsafe impl Sync for Place {}

static RING: Ring = Ring(UnsafeCell::new(
    [Record {
        call: 0,
        digest: 0,
        number: 0,
        tid: 0,
        pid: 0,
        root: 0,
        boundary: 0,
        content_len: 0,
        args: [0; 6],
        result: 0,
        rip: 0,
        rsp: 0,
        content: [0; quorate_abi::flight::CONTENT_LEN],
    }; CAPACITY],
));

/// The kernel's header says where this is.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) static FLIGHT_RECORDER: Place = Place(UnsafeCell::new(Recorder {
    magic: FLIGHT_MAGIC,
    version: FLIGHT_VERSION,
    record_bytes: size_of::<Record>() as u32,
    capacity: CAPACITY as u64,
    written: 0,
    records: 0,
    stop_at: NEVER,
    kernel_stack: 0,
    thread: 0,
    free_pages: 0,
    roots: 0,
    root_count: 0,
    fail_at: NEVER,
    fail_errno: 0,
    failed: 0,
    tables: 0,
}));

/// Notes where things are. Before that nothing is recorded.
pub fn init() {
    let (roots, root_count) = mm::paging::roots_at();
    // SAFETY: nothing else refers to it; one vCPU.
    let recorder = unsafe { &mut *FLIGHT_RECORDER.0.get() };
    recorder.kernel_stack = &raw const crate::arch::entry::ENTRY_KERNEL_STACK as u64;
    recorder.thread = sched::current_at();
    recorder.free_pages = mm::frames::free_list_at();
    recorder.roots = roots;
    recorder.root_count = root_count;
    recorder.records = RING.0.get() as u64;
}

/// The error that a fault injector wants the call that begins now to have, if it wants one.
#[inline]
pub fn wanted_failure(number: u64) -> Option<Errno> {
    // SAFETY: a field of the static; it is changed from outside.
    let fail_at = unsafe { (&raw const (*FLIGHT_RECORDER.0.get()).fail_at).read_volatile() };
    if fail_at == NEVER {
        return None;
    }
    failure(number, fail_at)
}

#[cold]
fn failure(number: u64, fail_at: u64) -> Option<Errno> {
    let (_, calls) = fingerprint::current();
    if calls + 1 < fail_at || !can_fail(number) {
        return None;
    }
    // SAFETY: nothing else refers to it; one vCPU.
    let recorder = unsafe { &mut *FLIGHT_RECORDER.0.get() };
    recorder.fail_at = NEVER;
    recorder.failed = calls + 1;
    Some(Errno(
        i32::try_from(recorder.fail_errno).unwrap_or(EINVAL.0),
    ))
}

/// Notes that a page has become a page table.
#[inline]
pub fn table_made() {
    // SAFETY: a field of the static; one vCPU.
    unsafe { (*FLIGHT_RECORDER.0.get()).tables += 1 };
}

/// Notes a call that is complete; `result` is what the program sees.
#[inline]
pub fn call(number: u64, args: [u64; 6], result: u64, rip: u64, rsp: u64) {
    put(
        u32::try_from(number).unwrap_or(EXCEPTION - 1),
        args,
        result,
        rip,
        rsp,
    );
}

/// Notes an exception that becomes a signal.
pub fn exception(frame: &TrapFrame, vector: u64, error: u64, address: u64) {
    let args = [vector, error, address, 0, 0, 0];
    put(EXCEPTION, args, 0, frame.rip, frame.rsp);
}

#[inline]
fn put(number: u32, args: [u64; 6], result: u64, rip: u64, rsp: u64) {
    let noted = fingerprint::take_noted();
    // SAFETY: one vCPU, no interrupts, and nothing that is called in here records.
    let (recorder, ring) = unsafe { (&mut *FLIGHT_RECORDER.0.get(), &mut *RING.0.get()) };
    let place = recorder.written as usize % CAPACITY;
    ring[place] = Record {
        call: noted.calls,
        digest: noted.digest,
        number,
        tid: sched::current(),
        pid: sched::pid(),
        root: (mm::paging::current() >> 12) as u32,
        boundary: boundary::count() as u32,
        content_len: noted.content_len,
        args,
        result,
        rip,
        rsp,
        content: noted.content,
    };
    recorder.written += 1;
    // A replay changes it from outside.
    // SAFETY: a field of the static.
    let stop_at = unsafe { (&raw const recorder.stop_at).read_volatile() };
    if noted.calls == stop_at {
        stop();
    }
}

/// A replay wants to look at the machine here.
#[cold]
fn stop() {
    // SAFETY: the VMM knows the port; nothing changes in the guest.
    unsafe { crate::arch::outl(STOP_PORT, 1) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_calls_are_kept_with_what_they_carried() {
        let _guard = crate::cell::test_lock();
        let read = |back: usize| {
            // SAFETY: the lock keeps other tests away.
            let (recorder, ring) = unsafe { (&*FLIGHT_RECORDER.0.get(), &*RING.0.get()) };
            ring[(recorder.written as usize - back) % CAPACITY]
        };
        for number in 0..CAPACITY as u64 + 3 {
            fingerprint::content(&number.to_le_bytes());
            fingerprint::content(b"more");
            fingerprint::call(number, 7);
            call(number, [number; 6], 7, 0x1000, 0x2000);
        }
        let last = read(1);
        assert_eq!(u64::from(last.number), CAPACITY as u64 + 2);
        assert_eq!(last.content[..8], (CAPACITY as u64 + 2).to_le_bytes());
        assert_eq!(last.content[8..], [0; 8], "only the first content");
        assert_eq!((last.content_len, last.args[5]), (12, CAPACITY as u64 + 2));
        let ([digest, _], calls) = fingerprint::current();
        assert_eq!((last.digest, last.call), (digest, calls));
        assert_eq!(read(2).call, calls - 1);
        fingerprint::call(1, 0);
        call(1, [0; 6], 0, 0, 0);
        assert_eq!(read(1).content_len, 0, "content belongs to one call");
    }

    #[test]
    fn the_call_that_is_to_fail_fails_once_and_only_if_it_can() {
        let _guard = crate::cell::test_lock();
        // SAFETY: the lock keeps other tests away.
        let recorder = || unsafe { &mut *FLIGHT_RECORDER.0.get() };
        let (_, calls) = fingerprint::current();
        assert_eq!(wanted_failure(1), None);
        (recorder().fail_at, recorder().fail_errno) = (calls + 3, 5);
        assert_eq!(wanted_failure(1), None, "two calls too early");
        fingerprint::call(1, 0);
        assert_eq!(wanted_failure(1), None, "one call too early");
        fingerprint::call(1, 0);
        for never in [12, 15, 39, 60, 231] {
            assert_eq!(wanted_failure(never), None, "call {never} cannot fail");
        }
        assert_eq!(recorder().failed, 0);
        assert_eq!(wanted_failure(0), Some(Errno(5)));
        assert_eq!(recorder().failed, calls + 3);
        assert_eq!(wanted_failure(0), None, "once");
        // A blocked call of another thread took the number meanwhile: the next one that begins it is.
        recorder().fail_at = 1;
        assert_eq!(wanted_failure(0), Some(Errno(5)));
        (recorder().fail_at, recorder().fail_errno) = (1, u64::MAX);
        assert_eq!(wanted_failure(0), Some(EINVAL));
        recorder().failed = 0;
    }
}
