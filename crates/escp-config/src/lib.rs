//! The strict YAML configuration that `escp` and `escpd` share, `/etc/escp.conf`.
//!
//! One table, [`KEYS`], defines every key once: its name, what it accepts, what it means, whom it concerns
//! and when a change of it applies. The loader, the reference table of the documentation, the shipped
//! `config/escp.conf`, the suggestion after a misspelt key and the report after a reload all read it.
//!
//! Strict means: an unknown or repeated key, a value out of its range and a value of another form are
//! errors that name file, line and key. A missing default file means the defaults; a missing file that was
//! asked for is an error.

mod check;
mod error;
mod keys;
mod load;
mod mask;
mod ports;
mod quantity;
mod reference;
mod settings;
mod value;

pub use check::{Finding, Findings, Weight, check};
pub use error::ConfigError;
pub use keys::{Applies, KEYS, Key, Reader};
pub use mask::{CpuMask, NodeMask};
pub use ports::PortRange;
pub use quantity::{format_duration, format_rate, format_size, parse_duration, parse_rate, parse_size};
pub use reference::{reference, sample};
pub use settings::{
    Change, Config, Engine, Limits, Log, LogFormat, LogLevel, LogTarget, MAX_BLOCK_SIZE, MAX_STREAMS,
    MIN_BLOCK_SIZE,
};

/// Where the configuration is when nothing else is said.
pub const DEFAULT_PATH: &str = "/etc/escp.conf";
