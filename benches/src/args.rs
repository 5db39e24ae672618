//! What was typed.

use crate::{bare, floor};
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Parser)]
#[command(
    name = "escp-bench",
    about = "Measures escp beside its peers and the limits of the machine.",
    args_conflicts_with_subcommands = true
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) task: Option<Task>,
    #[command(flatten)]
    pub(crate) measure: MeasureArgs,
}

/// Limits of the machine, as programs of their own: so that they cost and are measured like any other.
#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// Our own primitives in a minimal loop, without any protocol
    Floor(floor::FloorArgs),
    /// A copy with O_DIRECT, durable at the end
    Copy(bare::CopyArgs),
    /// Copies of many small files: create, write, barrier, rename
    Create(bare::CreateArgs),
}

/// What to measure and how.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct MeasureArgs {
    /// Workloads: B1,B3,...; all that are known unless given
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub(crate) only: Vec<String>,
    /// Rounds; in each, everything runs once, in turn
    #[arg(long, default_value_t = 5, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) runs: u32,
    /// Size of the big file of B1, B2, B5, B10 and B11: bytes, or 256M, 4G; B4 and B6 change in proportion
    #[arg(long, default_value = "4G", value_name = "SIZE", value_parser = escp_config::parse_size)]
    pub(crate) size: u64,
    /// Files of B3
    #[arg(long, default_value_t = 10_000, value_name = "NUMBER")]
    pub(crate) files: u32,
    /// Files of B8
    #[arg(long, default_value_t = 1_000_000, value_name = "NUMBER")]
    pub(crate) many: u32,
    /// Data streams of escp and of the floor; escp's own default unless given
    #[arg(long, value_name = "NUMBER")]
    pub(crate) streams: Option<u16>,
    /// Run only contenders whose name holds one of these words (escp and the limits always run)
    #[arg(long, value_delimiter = ',', value_name = "WORDS")]
    pub(crate) peers: Option<Vec<String>>,
    /// Another peer, NAME=COMMAND: a shell command with {source}, {target}, {far} (a host that ssh knows by
    /// -F {config}), {address} and {port} (the same for what knows no aliases); may be repeated
    #[arg(long = "peer", value_name = "NAME=COMMAND")]
    pub(crate) more_peers: Vec<String>,
    /// Extra flags for escp, such as "--depth 8"
    #[arg(long, default_value = "", value_name = "FLAGS", allow_hyphen_values = true)]
    pub(crate) flags: String,
    /// Directory on a tmpfs
    #[arg(long, default_value = "/dev/shm", value_name = "DIRECTORY")]
    pub(crate) tmpfs: PathBuf,
    /// Directory on a disk
    #[arg(long, default_value = "/var/tmp", value_name = "DIRECTORY")]
    pub(crate) disk: PathBuf,
    /// Do not touch memory before the first round, nor keep the host of a virtual machine from taking it back
    #[arg(long)]
    pub(crate) cold: bool,
    /// How long one run may take before it is given up, in seconds
    #[arg(long, default_value = "900", value_name = "SECONDS", value_parser = seconds)]
    pub(crate) patience: Duration,
    /// Then run escp and the floor once more under perf: a flame graph and a list in target/bench
    #[arg(long)]
    pub(crate) profile: bool,
    /// Recompute the model of docs/SCALING.md: what bytes and files cost here, how well that predicts other runs,
    /// and what nodes of 10 to 400 Gb/s need
    #[arg(long, conflicts_with_all = ["only", "json", "profile", "history"])]
    pub(crate) model: bool,
    /// Print the results as JSON; the tables go to standard error then
    #[arg(long)]
    pub(crate) json: bool,
    /// File to append the results to, one JSON object per line; target/bench/results.jsonl unless given
    #[arg(long, value_name = "FILE")]
    pub(crate) results: Option<PathBuf>,
    /// Append the medians to the history in docs/benchmarks.md: for quiet machines only
    #[arg(long)]
    pub(crate) history: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_secs).map_err(|_| "not a number of seconds".to_owned())
}
