//! The bodies of the fuzz targets: each takes foreign bytes and panics when a promise does not hold.
//!
//! They are ordinary functions of stable Rust, so that the same targets run in `cargo test` over the seeds
//! in `fuzz/seeds` (crates/escp-proto/tests/seeds.rs).

pub mod protocol;
