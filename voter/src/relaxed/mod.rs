//! The pure logic of the relaxed discipline: what free-running replicas say on each channel goes in, what they agree on
//! comes out.
//!
//! No thread, clock or I/O: time is told, in nanoseconds on any monotonic scale. One matcher per channel:
//! [`StreamMatcher`] for a connection, [`BlockMatcher`] for a disk.
//!
//! | rule | where |
//! | --- | --- |
//! | R2 quorum | `stream::judge`: positions are counted per version of the stream, compared as bytes in `stream::bytes`, as digests with the run's secret in `stream::history` |
//! | R3 order | a stream is released as one growing prefix |
//! | R5 blame | `stream::judge`: only who departs from a released version is reported; `undecided` blames nobody |
//! | R7 replay | `stream::core`: who comes back is compared from its position on |
//! | R10 memory | [`StreamLimits`], [`DIGESTS_KEPT`], [`DIFFERENCES_KEPT`], [`REQUESTS_KEPT`] |

mod block;
mod console;
mod datagram;
mod difference;
mod mask;
mod pool;
mod stream;
mod voters;

pub use block::{
    BlockFinding, BlockLimits, BlockMatcher, Digest, Digester, Standing, TooFarAhead, Unconfirmed,
    UnconfirmedBy, UnconfirmedPolicy, Wrote,
};
pub use console::{CONSOLE_LINE, ConsoleMatcher};
pub use datagram::{DatagramMatcher, FlowDatagram};
pub use difference::{
    DIFFERENCE_EXCERPT_BYTES, DIFFERENCES_KEPT, Departure, Difference, REQUEST_EXCERPT_BYTES,
    REQUESTS_KEPT, Request, Side, Undecided,
};
pub use mask::{
    HEADER_BOUND, MAX_MASKS, MIN_TOKEN, Mask, MaskError, MaskRule, MaskSet, PATTERN_BOUND,
    TRANSLATIONS_KEPT, Translation, Translator,
};
pub use pool::index::{AsIs, ContentHash, ContentMap, content_hash};
pub use pool::{Confirmed, ENTRY_OVERHEAD, Pool, PoolFull, PoolLimits, PoolStats, Pushed};
pub use stream::{
    DIGEST_STEP, DIGESTS_KEPT, EndOfStream, Full, MARKS_OF_MASKS, StreamLimits, StreamMatcher,
    StreamStats, Taken,
};
pub use voters::{Policy, Role, Voters, VotersError};
