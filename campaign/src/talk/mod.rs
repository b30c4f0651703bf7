//! What the client of an appliance says and hears: recorded once, then played to every trial, and judged.

mod cache;
mod conversation;
mod file;
mod golden;
mod heard;
mod judge;
mod live;
mod player;
mod record;
mod wire;

#[cfg(test)]
mod tests;

pub use conversation::{
    Act, Conversation, Event, Log, MAX_CONNECTIONS, MAX_RECEIVED_BYTES, MAX_SENT_BYTES, Received,
};
pub use file::{ConversationError, Recorded};
pub use golden::{Golden, GoldenError};
pub use heard::{Course, Heard, HeardConnection, MAX_CONSOLE_BYTES};
pub use judge::{Judge, JudgeError, Judgement, Trial, how};
pub use player::{
    FIRST_PORT, HANG_NS, MAX_BOUNDARIES, Player, PlayerSettings, STEP_NS, WARM_FIRST_PORT,
};
pub use record::{MAX_PRINTED_BYTES, RecordError, RecordSettings, record};
pub use wire::Ending;
