//! epoll, poll, select, timerfd.

use crate::errno::*;
use crate::file::{flags::*, ready};
use crate::fs::testing::*;
use crate::time;

const IN: u32 = ready::IN;
const OUT: u32 = ready::OUT;
const ONESHOT: u32 = 1 << 30;
const ET: u32 = 1 << 31;
const EXCLUSIVE: u32 = 1 << 28;

fn pipe() -> (u64, u64) {
    let mut fds = [0i32; 2];
    sys(293, &[fds.as_mut_ptr() as u64, u64::from(O_NONBLOCK)]).unwrap();
    (fds[0] as u64, fds[1] as u64)
}

fn epoll() -> u64 {
    sys(291, &[0]).unwrap()
}

fn ctl(epfd: u64, op: u64, fd: u64, events: u32, data: u64) -> Result<u64> {
    let mut event = [0u8; 12];
    event[..4].copy_from_slice(&events.to_le_bytes());
    event[4..].copy_from_slice(&data.to_le_bytes());
    sys(233, &[epfd, op, fd, event.as_ptr() as u64])
}

/// What is ready now: (events, data).
fn wait(epfd: u64, most: u64) -> Vec<(u32, u64)> {
    let mut buf = [0u8; 12 * 16];
    let n = sys(232, &[epfd, buf.as_mut_ptr() as u64, most, 0]).unwrap() as usize;
    buf.chunks_exact(12)
        .take(n)
        .map(|e| {
            (
                u32::from_le_bytes(e[..4].try_into().unwrap()),
                u64::from_le_bytes(e[4..].try_into().unwrap()),
            )
        })
        .collect()
}

#[test]
fn level_triggered_tells_as_long_as_it_is_so() {
    let _guard = setup();
    let (ep, (r, w)) = (epoll(), pipe());
    ctl(ep, 1, r, IN, 77).unwrap();
    assert_eq!(wait(ep, 8), []);
    write(w, b"ab").unwrap();
    assert_eq!(wait(ep, 8), [(IN, 77)]);
    read(r, 1).unwrap();
    assert_eq!(wait(ep, 8), [(IN, 77)]);
    read(r, 1).unwrap();
    assert_eq!(wait(ep, 8), []);
    close(w);
    // HUP needs no asking.
    assert_eq!(wait(ep, 8), [(ready::HUP, 77)]);
}

#[test]
fn edge_triggered_tells_once_per_change() {
    let _guard = setup();
    let (ep, (r, w)) = (epoll(), pipe());
    write(w, b"before").unwrap();
    ctl(ep, 1, r, IN | ET, 1).unwrap();
    assert_eq!(wait(ep, 8), [(IN, 1)]);
    assert_eq!(wait(ep, 8), []);
    write(w, b"more").unwrap();
    assert_eq!(wait(ep, 8), [(IN, 1)]);
    // Reading a part is no edge; nor is the end of the data.
    read(r, 3).unwrap();
    assert_eq!(wait(ep, 8), []);
    read(r, 100).unwrap();
    assert_eq!(wait(ep, 8), []);
    // The writing end: full, then room again.
    ctl(ep, 1, w, OUT | ET, 2).unwrap();
    assert_eq!(wait(ep, 8), [(OUT, 2)]);
    write(w, &[0; 65536]).unwrap();
    assert_eq!(wait(ep, 8), [(IN, 1)]);
    read(r, 65536).unwrap();
    assert_eq!(wait(ep, 8), [(OUT, 2)]);
}

#[test]
fn one_shot_tells_once_until_it_is_armed_again() {
    let _guard = setup();
    let (ep, (r, w)) = (epoll(), pipe());
    ctl(ep, 1, r, IN | ONESHOT, 1).unwrap();
    write(w, b"x").unwrap();
    assert_eq!(wait(ep, 8), [(IN, 1)]);
    write(w, b"y").unwrap();
    assert_eq!(wait(ep, 8), []);
    close(w);
    assert_eq!(wait(ep, 8), []);
    ctl(ep, 3, r, IN | ONESHOT, 2).unwrap();
    assert_eq!(wait(ep, 8), [(IN | ready::HUP, 2)]);
    assert_eq!(wait(ep, 8), []);
}

#[test]
fn many_ready_files_take_turns() {
    let _guard = setup();
    let ep = epoll();
    let pipes: Vec<_> = (0..6).map(|_| pipe()).collect();
    for (i, (r, w)) in pipes.iter().enumerate() {
        ctl(ep, 1, *r, IN, i as u64).unwrap();
        write(*w, b"x").unwrap();
    }
    let order = |v: Vec<(u32, u64)>| v.iter().map(|e| e.1).collect::<Vec<_>>();
    assert_eq!(order(wait(ep, 4)), [0, 1, 2, 3]);
    assert_eq!(order(wait(ep, 4)), [4, 5, 0, 1]);
    assert_eq!(order(wait(ep, 16)), [2, 3, 4, 5, 0, 1]);
}

#[test]
fn a_closed_file_leaves_the_set_and_a_duplicate_keeps_it() {
    let _guard = setup();
    let (ep, (r, w)) = (epoll(), pipe());
    ctl(ep, 1, r, IN, 1).unwrap();
    let copy = sys(32, &[r]).unwrap();
    write(w, b"x").unwrap();
    close(r);
    // The description lives on in the duplicate.
    assert_eq!(wait(ep, 8), [(IN, 1)]);
    // The same descriptor number, another file: both are in the set.
    let again = open("/dev/console", O_RDWR).unwrap();
    assert_eq!(again, r);
    ctl(ep, 1, again, OUT, 2).unwrap();
    assert_eq!(wait(ep, 8), [(IN, 1), (OUT, 2)]);
    close(copy);
    assert_eq!(wait(ep, 8), [(OUT, 2)]);
    assert_eq!(error(ctl(ep, 2, copy, 0, 0)), EBADF);
    close(again);
    assert_eq!(wait(ep, 8), []);
    // Dropping the set lets go of the files.
    let (r, w) = pipe();
    ctl(ep, 1, r, IN, 3).unwrap();
    close(ep);
    write(w, b"y").unwrap();
}

#[test]
fn control_refuses_what_linux_refuses() {
    let _guard = setup();
    let (ep, (r, _w)) = (epoll(), pipe());
    ctl(ep, 1, r, IN, 1).unwrap();
    assert_eq!(error(ctl(ep, 1, r, IN, 1)), EEXIST);
    assert_eq!(error(ctl(ep, 1, ep, IN, 1)), EINVAL);
    assert_eq!(error(ctl(r, 1, ep, IN, 1)), EINVAL);
    assert_eq!(error(ctl(ep, 1, 99, IN, 1)), EBADF);
    assert_eq!(error(ctl(ep, 9, r, IN, 1)), EINVAL);
    assert_eq!(
        error(ctl(ep, 1, open("/etc/motd", 0).unwrap(), IN, 1)),
        EPERM
    );
    assert_eq!(
        error(ctl(ep, 1, open("/dev/null", 0).unwrap(), IN, 1)),
        EPERM
    );
    ctl(ep, 2, r, 0, 0).unwrap();
    assert_eq!(error(ctl(ep, 2, r, 0, 0)), ENOENT);
    assert_eq!(error(ctl(ep, 3, r, IN, 0)), ENOENT);
    ctl(ep, 1, r, IN | EXCLUSIVE, 0).unwrap();
    assert_eq!(error(ctl(ep, 3, r, IN, 0)), EINVAL);
    assert_eq!(error(sys(232, &[ep, 0, 0, 0])), EINVAL);
    assert_eq!(error(sys(232, &[r, 0, 1, 0])), EINVAL);
    assert_eq!(error(sys(213, &[0])), EINVAL);
}

#[test]
fn sets_can_watch_sets_but_not_in_circles() {
    let _guard = setup();
    let (outer, inner, (r, w)) = (epoll(), epoll(), pipe());
    ctl(outer, 1, inner, IN, 9).unwrap();
    ctl(inner, 1, r, IN, 1).unwrap();
    assert_eq!(wait(outer, 8), []);
    write(w, b"x").unwrap();
    assert_eq!(wait(outer, 8), [(IN, 9)]);
    assert_eq!(wait(inner, 8), [(IN, 1)]);
    assert_eq!(wait(outer, 8), [(IN, 9)]);
    read(r, 1).unwrap();
    assert_eq!(wait(outer, 8), []);
    assert_eq!(error(ctl(inner, 1, outer, IN, 0)), ELOOP);
}

#[test]
fn poll_and_select_see_the_same() {
    let _guard = setup();
    let (r, w) = pipe();
    let motd = open("/etc/motd", 0).unwrap();
    let mut fds: [[i16; 4]; 5] = [
        [r as i16, 0, 1, -1],
        [w as i16, 0, 4, -1],
        [99, 0, 1, -1],
        [-1, -1, 1, -1],
        [motd as i16, 0, 1, -1],
    ];
    let poll = |fds: &mut [[i16; 4]]| sys(7, &[fds.as_mut_ptr() as u64, fds.len() as u64, 0]);
    assert_eq!(poll(&mut fds).unwrap(), 3);
    assert_eq!(fds.map(|f| f[3]), [0, 4, 0x20, 0, 1]);
    write(w, b"x").unwrap();
    assert_eq!(poll(&mut fds).unwrap(), 4);
    assert_eq!(fds.map(|f| f[3]), [1, 4, 0x20, 0, 1]);
    assert_eq!(poll(&mut fds[3..4]).unwrap(), 0);
    let zero = [0i64; 2];
    let select = |read: &mut [u64; 16], write: &mut [u64; 16]| {
        let (read, write) = (read.as_mut_ptr() as u64, write.as_mut_ptr() as u64);
        sys(23, &[64, read, write, 0, zero.as_ptr() as u64])
    };
    let (mut rs, mut ws) = ([0u64; 16], [0u64; 16]);
    rs[0] = 1 << r | 1 << motd;
    ws[0] = 1 << w;
    assert_eq!(select(&mut rs, &mut ws).unwrap(), 3);
    read(r, 1).unwrap();
    assert_eq!(select(&mut rs, &mut ws).unwrap(), 2);
    assert_eq!((rs[0], ws[0]), (1 << motd, 1 << w));
    rs[0] = 1 << r;
    ws[0] = 0;
    assert_eq!(select(&mut rs, &mut ws).unwrap(), 0);
    assert_eq!(rs[0], 0);
    rs[0] = 1 << 50;
    assert_eq!(error(select(&mut rs, &mut ws)), EBADF);
}

/// Sets the clock this far ahead and fires what is due, as a boundary does.
fn advance(ns: u64) {
    let now = time::now_ns() + ns;
    time::set(now, now + 1_000_000_000_000);
    time::fire_due();
}

fn settime(fd: u64, how: u64, value_ns: u64, interval_ns: u64) {
    let spec = [
        0,
        interval_ns,
        value_ns / 1_000_000_000,
        value_ns % 1_000_000_000,
    ];
    sys(286, &[fd, how, spec.as_ptr() as u64, 0]).unwrap();
}

fn left(fd: u64) -> (u64, u64) {
    let mut spec = [0u64; 4];
    sys(287, &[fd, spec.as_mut_ptr() as u64]).unwrap();
    (
        spec[2] * 1_000_000_000 + spec[3],
        spec[0] * 1_000_000_000 + spec[1],
    )
}

#[test]
fn timers_expire_once_or_again_and_again() {
    let _guard = setup();
    advance(1);
    let fd = sys(283, &[1, u64::from(O_NONBLOCK)]).unwrap();
    let ep = epoll();
    ctl(ep, 1, fd, IN, 5).unwrap();
    assert_eq!(left(fd), (0, 0));
    settime(fd, 0, 1000, 0);
    assert_eq!(left(fd), (1000, 0));
    assert_eq!(error(read(fd, 8)), EAGAIN);
    advance(999);
    assert_eq!(wait(ep, 8), []);
    advance(1);
    assert_eq!(wait(ep, 8), [(IN, 5)]);
    assert_eq!(read(fd, 8).unwrap(), 1u64.to_le_bytes());
    assert_eq!(error(read(fd, 8)), EAGAIN);
    assert_eq!(left(fd), (0, 0));
    settime(fd, 0, 100, 30);
    advance(100 + 65);
    assert_eq!(read(fd, 8).unwrap(), 3u64.to_le_bytes());
    assert_eq!(left(fd), (25, 30));
    advance(25);
    assert_eq!(wait(ep, 8), [(IN, 5)]);
    // Absolute, on either clock, also in the past.
    settime(fd, 1, time::now_ns() + 10, 0);
    assert_eq!(error(read(fd, 8)), EAGAIN);
    advance(10);
    assert_eq!(read(fd, 8).unwrap(), 1u64.to_le_bytes());
    settime(fd, 1, 1, 0);
    assert_eq!(wait(ep, 8), [(IN, 5)]);
    let wall = sys(283, &[0, u64::from(O_NONBLOCK)]).unwrap();
    settime(wall, 1, time::realtime_ns() + 50, 0);
    advance(49);
    assert_eq!(error(read(wall, 8)), EAGAIN);
    advance(1);
    assert_eq!(read(wall, 8).unwrap(), 1u64.to_le_bytes());
    // Disarmed, and closed while armed.
    settime(fd, 0, 100, 100);
    settime(fd, 0, 0, 0);
    advance(1000);
    assert_eq!(error(read(fd, 8)), EAGAIN);
    settime(fd, 0, 100, 100);
    close(fd);
    assert_eq!(time::next_deadline_ns(), None);
    assert_eq!(error(sys(283, &[3, 0])), EINVAL);
}
