//! Where escp's bytes sit.
//!
//! A [`Pool`] is one anonymous mapping cut into slots; a [`Buf`] is the right to one slot. A slot is laid out
//! so that a whole record is one contiguous range around a page-aligned body:
//!
//! ```text
//! | headroom 4096 ........ IV, header | body (block size) | tailroom 4096: tag |
//! ```
//!
//! so the body can be the target of O_DIRECT and the record can be sent and received without a copy.
//!
//! The budget of a pool is written down where it is made: streams of its thread × (depth + what the stages
//! hold). A pool belongs to one thread. Memory is touched, and so counted, only when a slot is first used.

mod pool;
mod registered;

pub use pool::{BODY, Buf, HEADROOM, Pool, TAILROOM};
