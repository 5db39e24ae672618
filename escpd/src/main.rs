//! The escp data-transfer daemon.

fn main() {}
