//! A workload, and what several of them are made of.

use crate::args::MeasureArgs;
use crate::contender::{Contender, Trip};
use escp_testkit::Checked;
use escp_testkit::tree::Noise;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

/// In what a workload is counted.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Unit {
    /// So many GiB of data.
    Gib(f64),
    /// So many files.
    Files(u32),
    /// Once; what counts is the time.
    Start,
}

/// One workload, with its source in place.
#[derive(Debug)]
pub(crate) struct Workload {
    /// `B1` and so on; what lies on several media has the medium behind it.
    pub(crate) name: String,
    /// For the table's head.
    pub(crate) title: String,
    pub(crate) unit: Unit,
    pub(crate) trip: Trip,
    pub(crate) contenders: Vec<Contender>,
    /// What the network takes, in the words of tc(8); `None`: all that the machine can.
    pub(crate) rate: Option<&'static str>,
    /// How many: what is over quickly is repeated more than was asked for, and what takes minutes less.
    pub(crate) rounds: u32,
    /// The distance between the hosts, if there is one.
    pub(crate) round_trip: Option<Duration>,
}

impl Workload {
    /// One whose hosts share a network that takes all it can.
    pub(crate) fn new(
        name: &str,
        title: String,
        unit: Unit,
        trip: Trip,
        contenders: Vec<Contender>,
        rounds: u32,
    ) -> Self {
        let name = name.to_owned();
        Self { name, title, unit, trip, contenders, rounds, rate: None, round_trip: None }
    }
}

#[expect(clippy::cast_precision_loss, reason = "sizes of files are far below 2^53")]
pub(crate) fn gib(bytes: u64) -> Unit {
    Unit::Gib(bytes as f64 / f64::from(1 << 30))
}

pub(crate) fn streams(args: &MeasureArgs) -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let on_one_machine = u16::try_from(cores).unwrap_or(u16::MAX);
    args.streams.unwrap_or_else(|| on_one_machine.clamp(1, escp_config::Config::default().streams))
}

/// Makes `count` files of `least` to `most` bytes, small ones as likely as big ones, in directories of 500.
/// Returns their bytes.
pub(crate) fn files(root: &Path, count: u32, least: u64, most: u64) -> Checked<u64> {
    let mut noise = Noise::new(u64::from(count));
    let mut block = vec![0; 1 << 20];
    noise.fill(&mut block);
    #[expect(clippy::cast_precision_loss, reason = "a part of a whole")]
    let part = |number: u64| (number >> 11) as f64 / (1_u64 << 53) as f64;
    #[expect(clippy::cast_precision_loss, reason = "sizes below 2^53")]
    let ratio = if least == 0 { 1.0 } else { most as f64 / least as f64 };
    let mut total = 0;
    for index in 0..count {
        let directory = root.join(format!("d{}", index / 500));
        if index % 500 == 0 {
            std::fs::create_dir_all(&directory)?;
        }
        // Up to a few KiB apart, sizes are spread evenly; over magnitudes, evenly in their logarithm.
        let chance = part(noise.number());
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "between least and most"
        )]
        let size = if ratio > 64.0 {
            (least as f64 * ratio.powf(chance)) as u64
        } else {
            least + ((most - least) as f64 * chance) as u64
        };
        let mut file = std::io::BufWriter::new(std::fs::File::create(directory.join(format!("f{index}")))?);
        block[..4].copy_from_slice(&index.to_le_bytes());
        let mut left = usize::try_from(size)?;
        while left > 0 {
            let length = left.min(block.len());
            file.write_all(&block[..length])?;
            left -= length;
        }
        file.flush()?;
        total += size;
    }
    Ok(total)
}
