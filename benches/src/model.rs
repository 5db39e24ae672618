//! `--model`: measures what the model of docs/SCALING.md stands on, checks it against runs that it was not made from,
//! and prints what nodes need.

use crate::args::MeasureArgs;
use crate::catalogue;
use crate::contender::Contender;
use crate::ground::Ground;
use crate::machine::Group;
use crate::round;
use crate::scaling::{Coefficients, Task, needs};
use crate::series::{Series, own};
use crate::workload::{self, Unit};
use escp_buf::{BODY, Pool};
use escp_crypto::{Flow, MasterSecret, Opener, Sealer, StreamContext};
use escp_proto::record::{IV_LEN, Iv, Kind, TAG_LEN};
use escp_testkit::tree::Noise;
use escp_testkit::{Checked, Trouble};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Records of a stage's measurement, of a MiB each.
const RECORDS: u32 = 1024;
const MIB: usize = 1 << 20;

/// One escp run that was measured: medians of CPU seconds and seconds.
#[derive(Debug, Clone, Copy)]
struct Seen {
    cpu: f64,
    seconds: f64,
    unit: Unit,
}

struct Bench<'a> {
    args: &'a MeasureArgs,
    ground: &'a Ground,
    interrupted: &'a AtomicBool,
}

/// Measures, checks, and returns what to print.
pub(crate) fn run(
    args: &MeasureArgs,
    group: Option<Arc<Group>>,
    interrupted: &AtomicBool,
) -> Checked<String> {
    let ground = Ground::lay(args, group.clone(), None)?;
    let bench = Bench { args, ground: &ground, interrupted };
    let mut out = stages()?;
    let (costs, shown) = bench.coefficients()?;
    out.push_str(&shown);
    out.push_str("\nChecked against runs that it was not made from\n");
    out.push_str(&bench.check("half as large", &costs, cores())?);
    drop(ground);
    let _pinned = Pinned::to_one()?;
    let ground = Ground::lay(args, group, None)?;
    let bench = Bench { args, ground: &ground, interrupted };
    out.push_str(&bench.check("on one core", &costs, 1)?);
    out.push_str(&nodes(&costs));
    Ok(out)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// This thread, and whatever it starts, on one core for a while.
struct Pinned(rustix::thread::CpuSet);

impl Pinned {
    fn to_one() -> Checked<Self> {
        let before = rustix::thread::sched_getaffinity(None)?;
        let first = (0..rustix::thread::CpuSet::MAX_CPU).find(|&cpu| before.is_set(cpu));
        let mut one = rustix::thread::CpuSet::new();
        one.set(first.ok_or_else(|| Trouble::new("no CPU to run on"))?);
        rustix::thread::sched_setaffinity(None, &one)?;
        Ok(Self(before))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // It was in force before.
        let _ = rustix::thread::sched_setaffinity(None, &self.0);
    }
}

/// The stages of a byte's way that are ours alone, on one core with a block in cache, in CPU seconds a GiB.
fn stages() -> Checked<String> {
    let mut buf = Pool::new(1, MIB)?.take().ok_or_else(|| Trouble::new("an empty pool"))?;
    Noise::new(1).fill(&mut buf.bytes_mut()[BODY..BODY + MIB]);
    let secret = || {
        let context = StreamContext { session: [1; 16], stream: 1, nonce: [2; 16], answer_nonce: [3; 16] };
        MasterSecret::from_bytes([4; 32]).stream_secret(&context, Flow::NearToFar)
    };
    let (mut sealer, mut opener) = (Sealer::new(secret())?, Opener::new(secret())?);
    let [mut check, mut seal, mut open] = [0.0; 3];
    let mut last = 0;
    for _ in 0..RECORDS {
        let bytes = &mut buf.bytes_mut()[BODY - IV_LEN..BODY + MIB + TAG_LEN];
        let (data, tag) = bytes[IV_LEN..].split_at_mut(MIB);
        let start = Instant::now();
        last ^= crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, data);
        check += start.elapsed().as_secs_f64();
        let start = Instant::now();
        let sequence = sealer.next_sequence()?;
        let iv =
            Iv { kind: Kind::File, length: u32::try_from(MIB)?, sequence: sequence.number() }.encode()?;
        tag[..TAG_LEN].copy_from_slice(&sealer.seal(sequence, iv, data)?);
        seal += start.elapsed().as_secs_f64();
        let start = Instant::now();
        opener.open(Iv::decode(iv, MIB)?.sequence, iv, &mut bytes[IV_LEN..])?;
        open += start.elapsed().as_secs_f64();
    }
    std::hint::black_box(last);
    let per_gib = 1024.0 / f64::from(RECORDS);
    Ok(format!(
        "One core, a block in cache, CPU-s/GiB: check {:.3} (at each end), seal {:.3}, open {:.3}\n",
        check * per_gib,
        seal * per_gib,
        open * per_gib
    ))
}

impl Bench<'_> {
    /// escp alone in a workload: the medians of its first contender.
    fn see(&self, name: &str, args: &MeasureArgs) -> Checked<Seen> {
        let mut workload = catalogue::prepare(name, self.ground, args)?;
        workload.contenders.retain(Contender::is_escp);
        let all = round::run(&workload, self.ground, args, self.interrupted)?;
        if !workload.trip.name.is_empty() {
            round::remove(&self.ground.source(&workload.trip))?;
        }
        let series: &Series = all.first().ok_or_else(|| Trouble::new(format!("{name}: nothing ran")))?;
        if let Some(failure) = &series.failure {
            return Err(Trouble::new(format!("{name}: {failure}")));
        }
        let (cpu, seconds) = (series.median(own), series.median(|cost| cost.seconds));
        Ok(Seen { cpu, seconds, unit: workload.unit })
    }

    /// As many streams as escp takes on one machine.
    fn dummy(&self, args: &MeasureArgs) -> Checked<Seen> {
        self.see("B11", &MeasureArgs { streams: Some(workload::streams(args)), ..args.clone() })
    }

    fn coefficients(&self) -> Checked<(Coefficients, String)> {
        let args = self.args;
        let start = self.see("B7", args)?.cpu;
        let dummy = self.dummy(args)?;
        let amount = dummy.unit.amount();
        let moving = (dummy.cpu - start) / amount;
        let beyond = |seen: Seen| (seen.cpu - start) / seen.unit.amount() - moving;
        let pages = beyond(self.see("B1", args)?);
        let direct = beyond(self.see("B2", args)?);
        let tree = self.see("B3", args)?;
        let bytes = f64::from(args.files) * MEAN_FILE;
        let file = (tree.cpu - start - bytes * (moving + pages)) / f64::from(args.files);
        let costs = Coefficients { start, moving, pages, direct, file };
        let shown = format!(
            "Both ends together: start {start:.3} CPU-s; memory to memory {moving:.3} CPU-s/GiB; the page cache \
             {pages:.3} more; disks {direct:.3} more;\na small file {:.1} CPU-us beside its bytes\n",
            file * 1e6
        );
        Ok((costs, shown))
    }

    /// Runs of another size or on other cores, beside what the model says of them. The time is the CPU's where
    /// nothing else is waited for.
    fn check(&self, what: &str, costs: &Coefficients, cores: usize) -> Checked<String> {
        let half = MeasureArgs { size: self.args.size / 2, files: self.args.files / 2, ..self.args.clone() };
        let mut out = String::new();
        for (name, seen, ends) in [
            ("memory to memory", self.dummy(&half)?, 0.0),
            ("a file in memory", self.see("B1", &half)?, costs.pages),
        ] {
            let cpu = costs.transfer(seen.unit.amount(), ends);
            out.push_str(&compared(what, name, seen, cpu, cores));
        }
        let tree = self.see("B3", &half)?;
        let files = f64::from(half.files);
        out.push_str(&compared(what, "small files", tree, costs.tree(files, files * MEAN_FILE), cores));
        Ok(out)
    }
}

/// GiB of B3's mean file, from 1 to 16 KiB with every length as likely.
const MEAN_FILE: f64 = 8.5 / (1024.0 * 1024.0);

fn compared(what: &str, name: &str, seen: Seen, cpu: f64, cores: usize) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a number of cores")]
    let seconds = cpu / cores as f64;
    format!(
        "  {what}, {name}: {:.2} CPU-s, the model says {cpu:.2} ({:+.0} %); {:.2} s, at least {seconds:.2} by the CPU\n",
        seen.cpu,
        (cpu / seen.cpu - 1.0) * 100.0,
        seen.seconds
    )
}

fn nodes(costs: &Coefficients) -> String {
    let mut out = String::from(
        "\nWhat each end needs, with cores like these\n  Gbit/s  round trip  cores  streams  engine MiB  under way MiB  \
         tcp_rmem, tcp_wmem up to\n",
    );
    for gigabits in [10.0, 100.0, 400.0] {
        for round_trip in [0.001, 0.05, 0.15] {
            let need = needs(Task { gigabits, round_trip }, costs);
            let _ = writeln!(
                out,
                "  {gigabits:>6}  {:>7} ms  {:>5.1}  {:>7}  {:>10}  {:>13.0}  {:>8.0} MiB",
                round_trip * 1e3,
                need.cores,
                need.streams,
                need.pool,
                need.under_way,
                need.socket_buffer.max(1.0)
            );
        }
    }
    out
}
