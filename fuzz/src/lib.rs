//! The bodies of the fuzz targets: each takes foreign bytes and panics when a promise does not hold.
//!
//! They are ordinary functions of stable Rust, so that the same targets run in `cargo test` over the seeds
//! in `fuzz/seeds` (`tests/seeds.rs` of escp-proto and of escp-ipc). `cargo xtask test` fuzzes each for some
//! seconds with what coverage libFuzzer has of a stable compiler. For longer, or with a sanitizer:
//!
//! ```text
//! cargo xtask fuzz 600
//! cargo +nightly fuzz run record fuzz/corpus/record fuzz/seeds/record -- -max_total_time=600
//! ```

pub mod ipc;
pub mod link;
pub mod protocol;
