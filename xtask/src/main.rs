//! The project's own tasks: demo, test, bench, tidy.

fn main() {}
