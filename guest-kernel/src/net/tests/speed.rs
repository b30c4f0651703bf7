//! How long the guest's side of a request takes. Run it with
//! `cargo test --release --lib net::tests::speed -- --ignored --nocapture`.

use super::*;
use std::time::{Duration, Instant};

#[test]
#[ignore = "measures, and asserts nothing but that it works"]
fn request_and_reply() {
    let mut world = World::new();
    let server = world.server(80, 511);
    let connections: Vec<(FlowId, i32)> = (0..500).map(|_| world.connection(server, 80)).collect();
    for (active, size) in [(1, 50), (50, 50), (500, 50), (50, 4000), (4, 60_000)] {
        let mut spent = Duration::ZERO;
        let rounds = 200_000 / active / (1 + size / 1000);
        let request = vec![b'q'; size];
        for _ in 0..rounds {
            for (peer, _) in &connections[..active] {
                world.peer_send(*peer, &request);
            }
            world.peer.flush(time::now_ns());
            let frames: Vec<Vec<u8>> = world
                .to_guest
                .packets
                .borrow_mut()
                .drain(..)
                .map(|p| frame(&p))
                .collect();
            let start = Instant::now();
            for frame in &frames {
                receive(frame);
            }
            let mut buffer = [0u8; 65536];
            for (_, fd) in &connections[..active] {
                let args = [*fd as u64, buffer.as_mut_ptr() as u64, 65536, 0];
                assert_eq!(call(45, &args), Ok(size as u64));
                assert_eq!(
                    call(44, &[*fd as u64, buffer.as_ptr() as u64, size as u64, 0]),
                    Ok(size as u64)
                );
            }
            flush();
            spent += start.elapsed();
            world.settle();
            for (peer, _) in &connections[..active] {
                assert_eq!(world.peer_receive(*peer).len(), size);
            }
            time::set(time::now_ns() + 50_000, 0);
        }
        let each = spent.as_nanos() / (rounds * active) as u128;
        println!("{active:4} connections, {size:6} bytes: {each} ns per request");
    }
}
