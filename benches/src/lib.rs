//! Benchmarks of escp.
