//! escp: secure copy at the speed of the hardware.

fn main() {}
