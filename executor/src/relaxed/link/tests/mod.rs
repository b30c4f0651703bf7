//! The endpoint against smoltcp as the guest's TCP, in told time.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod boot;
mod guest;
mod hostile;
mod order;
mod saving;
mod streams;
mod timers;

use super::*;

fn conn_open(link: &mut Link, conn: ConnId, guest_port: u16, now: u64) {
    link.input(ToGuest::Open { conn, guest_port }, now);
}

fn data(link: &mut Link, conn: ConnId, bytes: &[u8], now: u64) {
    let bytes = bytes.into();
    link.input(ToGuest::Data { conn, bytes }, now);
}

fn frames(link: &mut Link, now: u64) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    link.poll(now, usize::MAX, &mut frames);
    frames
}
