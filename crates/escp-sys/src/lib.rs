//! What escp asks of the kernel: one small safe function per call.
//!
//! This crate and `escp-buf` are the only ones with `unsafe` code; see `docs/ARCHITECTURE.md`.

pub mod account;
pub mod congestion;
pub mod counters;
pub mod heap;
pub mod interface;
pub mod passed;
pub mod process;
pub mod seqpacket;
pub mod socket;
#[cfg(feature = "tun")]
pub mod tun;
pub mod writeback;
