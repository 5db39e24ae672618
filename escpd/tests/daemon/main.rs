//! The daemon as a whole: real processes, a real socket, real engines.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test's helpers fail the test, and say what they skip"
)]

mod harness;
mod limits;
mod manager;
mod restart;
mod rights;
mod transfer;
