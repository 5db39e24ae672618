//! The escp data-transfer daemon.

mod http;
mod ledger;
mod logging;
mod metrics;
mod notify;
mod reload;

fn main() {}
