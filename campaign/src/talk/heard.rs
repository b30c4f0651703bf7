//! What the client of a trial got to hear.

use super::wire::Ending;

/// Console bytes that are kept of a trial (R10); what is beyond is counted, and makes it differ from a golden run with less.
pub const MAX_CONSOLE_BYTES: usize = 4 << 20;

/// How a conversation went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Course {
    /// It is not over yet.
    #[default]
    Unfinished,
    /// All was said and received, and the guest came to rest.
    Complete,
    /// The client waits for what the guest does not send any more, because it has ended or refused the connection.
    Broken {
        /// On which connection.
        connection: usize,
        /// What is missing, in words.
        why: String,
    },
    /// Nothing came for as long as the client waits.
    Stuck {
        /// What is missing, in words.
        why: String,
    },
}

/// Of one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeardConnection {
    /// The guest's port.
    pub port: u16,
    /// What was received.
    pub bytes: Vec<u8>,
    /// How it ended.
    pub ending: Ending,
    /// Where in [`HeardConnection::bytes`] each of the client's sends came: as many bytes had been received then.
    pub sends: Vec<usize>,
    /// Virtual time at which it was opened, ns from the beginning of the trial.
    pub opened_ns: u64,
    /// Virtual time at which the last byte came.
    pub last_ns: u64,
}

/// What a client got to hear. All of it depends on what the guest released alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// By the number in the conversation.
    pub connections: Vec<HeardConnection>,
    /// What the guest wrote to the console from the beginning of the trial to its end, up to [`MAX_CONSOLE_BYTES`].
    pub console: Vec<u8>,
    /// Bytes of the console beyond the bound.
    pub console_dropped: u64,
    /// How it went.
    pub course: Course,
    /// Boundaries from the beginning of the trial to the end of the conversation (its entry is not given any more).
    pub boundaries: u64,
    /// Virtual time from the beginning of the trial to the end of the conversation, ns.
    pub virtual_ns: u64,
    /// The guest's clock at the beginning of the trial.
    pub began_ns: u64,
    /// Acts of the conversation that were done.
    pub acts: usize,
    /// Connections whose last send was not followed by any byte of an answer.
    pub outstanding: usize,
}

impl Heard {
    /// Names what was heard: BLAKE3 of connections, console and times.
    #[must_use]
    pub fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        for of in &self.connections {
            field(&of.port.to_le_bytes());
            field(&of.bytes);
            field(
                format!(
                    "{:?} {:?} {} {}",
                    of.ending, of.sends, of.opened_ns, of.last_ns
                )
                .as_bytes(),
            );
        }
        field(&self.console);
        field(
            format!(
                "{:?} {} {} {}",
                self.course, self.console_dropped, self.boundaries, self.virtual_ns
            )
            .as_bytes(),
        );
        hasher.finalize()
    }

    /// Bytes received on all connections.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.connections
            .iter()
            .map(|of| of.bytes.len() as u64)
            .sum()
    }
}
