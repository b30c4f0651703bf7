//! What the processors allow. Client and replicas share them, so N replicas cannot be as fast as one server, however good
//! the system is: each request costs the client's time once and the server's N times.

use serde_json::{Value, json};

use crate::load::Sample;

/// Upper bounds of requests per second.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// If a replica cost no more than the native server, and agreeing cost nothing: `cores / (c + N * s)` with the
    /// processor time per request of the client and of the native server. No system can pass it.
    pub native_cost: f64,
    /// With what Quorate's own replica costs: `cores / (c + g + N * r)` with the time per request of the client, the shared
    /// threads (gateway and so on) and the replica's thread, all measured at N = 1. It assumes that a request costs at N
    /// what it does at 1; larger batches make it cheaper, waiting for each other dearer.
    pub own_cost: f64,
}

impl Limit {
    /// The bounds for a set of `replicas` on `cores` processors. One thread each serves a client and a replica, so neither
    /// can use more than one of them.
    pub fn new(cores: usize, replicas: u8, native: &Sample, single: &Sample) -> Limit {
        let bound = |client: f64, shared: f64, replica: f64| {
            let all = cores as f64 / (client + shared + f64::from(replicas) * replica);
            1e6 * all.min(1.0 / client).min(1.0 / replica)
        };
        Limit {
            native_cost: bound(native.client_us, 0.0, native.server_us.total()),
            own_cost: bound(
                single.client_us,
                single.server_us.gateway + single.server_us.other,
                single.server_us.guests,
            ),
        }
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        json!({ "native_cost_rps": self.native_cost, "own_cost_rps": self.own_cost })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::Cpu;

    fn sample(client_us: f64, guests: f64, gateway: f64) -> Sample {
        Sample {
            client_us,
            server_us: Cpu {
                guests,
                gateway,
                other: 0.0,
            },
            ..Sample::default()
        }
    }

    #[test]
    fn the_processors_are_shared() {
        let (native, single) = (sample(2.0, 2.0, 0.0), sample(2.0, 5.0, 3.0));
        let limit = Limit::new(2, 3, &native, &single);
        assert!((limit.native_cost - 2e6 / 8.0).abs() < 1.0, "{limit:?}");
        assert!((limit.own_cost - 2e6 / 20.0).abs() < 1.0, "{limit:?}");
    }

    #[test]
    fn a_thread_has_one_processor() {
        let limit = Limit::new(16, 1, &sample(1.0, 2.0, 0.0), &sample(4.0, 2.0, 0.0));
        assert!((limit.native_cost - 5e5).abs() < 1.0, "{limit:?}");
        assert!((limit.own_cost - 2.5e5).abs() < 1.0, "{limit:?}");
    }
}
