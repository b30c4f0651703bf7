//! Pipes, eventfd, vectors.

use crate::errno::*;
use crate::file::{self, flags::*, ready};
use crate::fs::testing::*;

fn pipe(how: u32) -> (u64, u64) {
    let mut fds = [0i32; 2];
    sys(293, &[fds.as_mut_ptr() as u64, u64::from(how)]).unwrap();
    (fds[0] as u64, fds[1] as u64)
}

fn poll_of(fd: u64) -> u32 {
    file::get(fd as i32).unwrap().file.poll()
}

#[test]
fn a_pipe_holds_its_capacity_and_writes_small_pieces_whole() {
    let _guard = setup();
    let (r, w) = pipe(O_NONBLOCK);
    assert_eq!(error(read(r, 10)), EAGAIN);
    assert_eq!(write(w, &[1; 65536 - 100]).unwrap(), 65436);
    // Up to PIPE_BUF all or nothing, more is partial.
    assert_eq!(error(write(w, &[2; 101])), EAGAIN);
    assert_eq!(write(w, &[2; 5000]).unwrap(), 100);
    assert_eq!(error(write(w, &[3; 1])), EAGAIN);
    assert_eq!(poll_of(w), 0);
    let mut left = 0i32;
    sys(16, &[r, 0x541b, (&raw mut left) as u64]).unwrap();
    assert_eq!(left, 65536);
    assert_eq!(read(r, 65436).unwrap(), vec![1; 65436]);
    assert_eq!(read(r, 1000).unwrap(), vec![2; 100]);
    assert_eq!(poll_of(w), ready::OUT | ready::WRNORM);
    assert_eq!(sys(72, &[w, 1032, 0]).unwrap(), 65536);
    assert_eq!(sys(72, &[w, 1031, 5000]).unwrap(), 8192);
    assert_eq!(write(w, &[1; 10000]).unwrap(), 8192);
    assert_eq!(error(sys(72, &[w, 1031, 4096])), EBUSY);
    assert_eq!(error(sys(72, &[w, 1031, 1 << 30])), EPERM);
}

#[test]
fn what_goes_through_a_pipe_may_be_an_address() {
    let _guard = setup();
    // R8: two replicas pass different addresses to their threads and stay the same. Of such files the length is
    // digested only; all else in full, unless all replicas have it from the start.
    let (r, w) = pipe(0);
    for fd in [r, w, sys(290, &[0, 0]).unwrap()] {
        assert!(!file::get(fd as i32).unwrap().file.digested());
    }
    let of = |path: &[u8]| crate::fs::open(path, 0, 0).unwrap().file.digested();
    assert!(!of(b"/proc/self/maps") && !of(b"/proc/self/auxv"));
    assert!(!of(b"/etc/motd"));
    spit("/etc/motd", b"changed").unwrap();
    assert!(of(b"/etc/motd") && of(b"/proc/self/status") && of(b"/dev/urandom"));
}

#[test]
fn the_ends_notice_when_the_other_is_gone() {
    let _guard = setup();
    let (r, w) = pipe(0);
    let copy = sys(32, &[w]).unwrap();
    write(w, b"last").unwrap();
    close(w);
    assert_eq!(poll_of(r), ready::IN | ready::RDNORM);
    close(copy);
    assert_eq!(poll_of(r), ready::IN | ready::RDNORM | ready::HUP);
    assert_eq!(read(r, 10).unwrap(), b"last");
    assert_eq!(read(r, 10).unwrap(), b"");
    let (r, w) = pipe(0);
    close(r);
    assert_eq!(poll_of(w), ready::OUT | ready::WRNORM | ready::ERR);
    assert_eq!(error(write(w, b"x")), EPIPE);
    assert_eq!(error(read(w, 1)), EBADF);
    assert_eq!(error(sys(8, &[w, 0, 0])), ESPIPE);
}

#[test]
fn a_named_pipe_connects_whoever_opens_it() {
    let _guard = setup();
    sys(133, &[c("/tmp/fifo"), 0o010_600]).unwrap();
    assert_eq!(error(open("/tmp/fifo", O_WRONLY | O_NONBLOCK)), ENXIO);
    let r = open("/tmp/fifo", O_RDONLY | O_NONBLOCK).unwrap();
    assert_eq!(poll_of(r), 0);
    let w = open("/tmp/fifo", O_WRONLY).unwrap();
    write(w, b"hi").unwrap();
    close(w);
    assert_eq!(poll_of(r), ready::IN | ready::RDNORM | ready::HUP);
    assert_eq!(read(r, 10).unwrap(), b"hi");
    let both = open("/tmp/fifo", O_RDWR).unwrap();
    write(both, b"me").unwrap();
    assert_eq!(read(both, 10).unwrap(), b"me");
}

#[test]
fn vectors_are_gathered_and_scattered() {
    let _guard = setup();
    let (r, w) = pipe(O_NONBLOCK);
    let parts = [b"ab".as_slice(), b"", b"cdef"];
    let vectors: Vec<[u64; 2]> = parts
        .iter()
        .map(|p| [p.as_ptr() as u64, p.len() as u64])
        .collect();
    assert_eq!(sys(20, &[w, vectors.as_ptr() as u64, 3]).unwrap(), 6);
    let (mut a, mut b) = ([0u8; 3], [0u8; 10]);
    let into = [[a.as_mut_ptr() as u64, 3], [b.as_mut_ptr() as u64, 10]];
    assert_eq!(sys(19, &[r, into.as_ptr() as u64, 2]).unwrap(), 6);
    assert_eq!((&a, &b[..3]), (b"abc", b"def".as_slice()));
    let fd = open("/tmp/v", O_CREAT | O_RDWR).unwrap();
    let many: Vec<[u64; 2]> = (0..20).map(|i| vectors[i % 3]).collect();
    assert_eq!(
        sys(20, &[fd, many.as_ptr() as u64, 20]).unwrap(),
        7 * 2 + 6 * 4
    );
    assert_eq!(slurp("/tmp/v").unwrap().len(), 38);
    assert_eq!(sys(295, &[fd, into.as_ptr() as u64, 2, 30]).unwrap(), 8);
    assert_eq!(
        &a,
        b"ab"[..]
            .iter()
            .chain(b"c")
            .copied()
            .collect::<Vec<_>>()
            .as_slice()
    );
    assert_eq!(error(sys(20, &[fd, many.as_ptr() as u64, 1025])), EINVAL);
    let huge = [[0u64, u64::MAX], [0, 1]];
    assert_eq!(error(sys(20, &[fd, huge.as_ptr() as u64, 2])), EINVAL);
}

#[test]
fn eventfd_counts_or_is_a_semaphore() {
    let _guard = setup();
    let fd = sys(290, &[3, u64::from(O_NONBLOCK)]).unwrap();
    write(fd, &4u64.to_le_bytes()).unwrap();
    assert_eq!(read(fd, 8).unwrap(), 7u64.to_le_bytes());
    assert_eq!(error(read(fd, 8)), EAGAIN);
    assert_eq!(error(read(fd, 7)), EINVAL);
    assert_eq!(error(write(fd, &u64::MAX.to_le_bytes())), EINVAL);
    write(fd, &(u64::MAX - 1).to_le_bytes()).unwrap();
    assert_eq!(error(write(fd, &1u64.to_le_bytes())), EAGAIN);
    assert_eq!(poll_of(fd), ready::IN | ready::RDNORM);
    let long = sys(290, &[0, 0]).unwrap();
    assert_eq!(write(long, &[1; 16]).unwrap(), 8);
    assert_eq!(read(long, 16).unwrap(), [1; 8]);
    let fd = sys(290, &[2, u64::from(1 | O_NONBLOCK)]).unwrap();
    assert_eq!(read(fd, 8).unwrap(), 1u64.to_le_bytes());
    assert_eq!(read(fd, 8).unwrap(), 1u64.to_le_bytes());
    assert_eq!(error(read(fd, 8)), EAGAIN);
}

#[test]
fn copying_between_descriptors() {
    let _guard = setup();
    let source = open("/data/big", O_RDONLY).unwrap();
    let out = open("/tmp/copy", O_CREAT | O_RDWR).unwrap();
    let mut offset = 5000u64;
    let at = (&raw mut offset) as u64;
    assert_eq!(sys(40, &[out, source, at, 6000]).unwrap(), 6000);
    assert_eq!(offset, 11000);
    assert_eq!(slurp("/tmp/copy").unwrap(), big()[5000..11000]);
    assert_eq!(
        sys(326, &[source, 0, out, 0, 1 << 20, 0]).unwrap(),
        big().len() as u64
    );
    let mut expected = big()[5000..11000].to_vec();
    expected.extend(big());
    assert_eq!(slurp("/tmp/copy").unwrap(), expected);
    let (r, w) = pipe(O_NONBLOCK);
    sys(8, &[source, 10, 0]).unwrap();
    assert_eq!(sys(40, &[w, source, 0, 100]).unwrap(), 100);
    assert_eq!(read(r, 1000).unwrap(), big()[10..110]);
    assert_eq!(error(sys(40, &[out, r, 0, 10])), EINVAL);
    assert_eq!(error(sys(326, &[out, 0, out, at, 1 << 20, 0])), EINVAL);
}
