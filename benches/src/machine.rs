//! What the machine says about a run: time, CPU, memory, bytes on the wire.

use escp_testkit::network::Network;
use escp_testkit::{Checked, Trouble, processes};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often memory is looked at: often enough for runs of a second, and well under 1 % of a core.
const SAMPLE: Duration = Duration::from_millis(40);
/// How long what a program left behind (a worker that wipes its keys, a shell of sshd) may take to end.
const STRAGGLERS: Duration = Duration::from_secs(3);

/// A control group that everything of this measurement runs in: it knows the CPU time of its processes to the
/// nanosecond, whatever else the machine does. Work of kernel threads is not in it.
#[derive(Debug)]
pub(crate) struct Group {
    directory: PathBuf,
    parent: PathBuf,
}

impl Group {
    /// Makes one and moves this process into it; `None` where that is not to be had.
    pub(crate) fn join() -> Option<Self> {
        let parent = accounting_group()?;
        let directory = parent.join(format!("escp-bench-{}", std::process::id()));
        std::fs::create_dir(&directory).ok()?;
        let group = Self { directory, parent };
        group.usage()?;
        move_to(&group.directory).ok()?;
        Some(group)
    }

    /// CPU seconds of all its processes so far.
    fn usage(&self) -> Option<f64> {
        if let Ok(text) = std::fs::read_to_string(self.directory.join("cpuacct.usage")) {
            return Some(text.trim().parse::<f64>().ok()? / 1e9);
        }
        let text = std::fs::read_to_string(self.directory.join("cpu.stat")).ok()?;
        let micros = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
        Some(micros.trim().parse::<f64>().ok()? / 1e6)
    }

    fn processes(&self) -> BTreeSet<u32> {
        let text = std::fs::read_to_string(self.directory.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A group can be removed when the last process has left it.
        let _ = move_to(&self.parent);
        for _ in 0..50 {
            if std::fs::remove_dir(&self.directory).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn move_to(group: &Path) -> std::io::Result<()> {
    std::fs::write(group.join("cgroup.procs"), std::process::id().to_string())
}

/// Our group in the hierarchy that accounts for CPU time: of cpuacct, else the unified one.
fn accounting_group() -> Option<PathBuf> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let mount = |kind: &str, option: &str| {
        mounts.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let fits = fields.get(2) == Some(&kind)
                && fields.get(3)?.split(',').any(|o| option.is_empty() || o == option);
            fits.then(|| PathBuf::from(fields.get(1).copied().unwrap_or_default()))
        })
    };
    let path = |controller: &str| {
        own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let fits = fields.next()?.split(',').any(|name| name == controller);
            fits.then(|| fields.next().unwrap_or("/").trim_start_matches('/').to_owned())
        })
    };
    let first = mount("cgroup", "cpuacct").zip(path("cpuacct"));
    let (mount, path) = first.or_else(|| mount("cgroup2", "").zip(path("")))?;
    Some(mount.join(path))
}

/// CPU seconds that all processors of the machine have worked so far, for whomever.
fn machine_cpu() -> Checked<f64> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().ok_or_else(|| Trouble::new("/proc/stat is empty"))?;
    let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    let &[user, nice, system, _idle, _iowait, interrupts, soft, ..] = ticks.as_slice() else {
        return Err(Trouble::new("/proc/stat is of another form"));
    };
    #[expect(clippy::cast_precision_loss, reason = "ticks of a machine's life are far below 2^52")]
    let busy = (user + nice + system + interrupts + soft) as f64;
    #[expect(clippy::cast_precision_loss, reason = "a hundred or a thousand")]
    let hertz = rustix::param::clock_ticks_per_second() as f64;
    Ok(busy / hertz)
}

/// Bytes that went over the interfaces of a network so far.
fn wire(network: &Network) -> Checked<u64> {
    let text = network.inside(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
    let interface = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let (received, sent) = (numbers.first()?, numbers.get(8)?);
        // What goes over loopback is sent and received there.
        Some(if name.trim() == "lo" { *received } else { received + sent })
    };
    let all: Option<u64> = text.lines().skip(2).map(interface).sum();
    all.ok_or_else(|| Trouble::new("/proc/net/dev is of another form"))
}

/// What a run cost.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub(crate) struct Cost {
    /// From the start of the program to its end.
    pub(crate) seconds: f64,
    /// CPU seconds of the whole machine.
    pub(crate) cpu: f64,
    /// CPU seconds of the processes that took part; `None` where no group can be made.
    pub(crate) own_cpu: Option<f64>,
    /// Peak of the memory of all processes that took part, together, in MiB.
    pub(crate) peak_mib: f64,
    /// The same of the one process that had the highest.
    pub(crate) peak_process_mib: f64,
    /// MiB over the interfaces of the near host.
    pub(crate) wire_mib: f64,
    /// Of a run that was several at once: how long each took, in seconds.
    pub(crate) parts: Vec<f64>,
}

/// Measures one run.
#[derive(Debug)]
pub(crate) struct Meter<'a> {
    group: Option<Arc<Group>>,
    network: &'a Network,
    start: Instant,
    cpu: f64,
    own: Option<f64>,
    wire: u64,
    /// What ran before: sshd, the daemons, this process.
    standing: BTreeSet<u32>,
    over: Arc<AtomicBool>,
    /// Resident bytes: the highest sum, and the highest of one process.
    peak: Arc<[AtomicU64; 2]>,
    sampler: Option<JoinHandle<()>>,
}

impl<'a> Meter<'a> {
    /// Begins. The memory of the processes in `involved` counts though they ran before.
    pub(crate) fn begin(group: Option<&Arc<Group>>, network: &'a Network, involved: &[u32]) -> Checked<Self> {
        let standing = running(group);
        let (over, peak) = (Arc::new(AtomicBool::new(false)), Arc::<[AtomicU64; 2]>::default());
        let sampler = std::thread::spawn({
            let ignored: BTreeSet<u32> =
                standing.iter().copied().filter(|pid| !involved.contains(pid)).collect();
            let (group, over, peak) = (group.cloned(), Arc::clone(&over), Arc::clone(&peak));
            move || {
                while !over.load(Ordering::Relaxed) {
                    let pids = running(group.as_ref());
                    let sizes: Vec<u64> =
                        pids.difference(&ignored).filter_map(|&pid| resident(pid)).collect();
                    peak[0].fetch_max(sizes.iter().sum(), Ordering::Relaxed);
                    peak[1].fetch_max(sizes.into_iter().max().unwrap_or(0), Ordering::Relaxed);
                    std::thread::sleep(SAMPLE);
                }
            }
        });
        let wire = wire(network)?;
        let (group, own, cpu) = (group.cloned(), group.and_then(|group| group.usage()), machine_cpu()?);
        let start = Instant::now();
        Ok(Self { group, network, start, cpu, own, wire, standing, over, peak, sampler: Some(sampler) })
    }

    /// When it began.
    pub(crate) fn start(&self) -> Instant {
        self.start
    }

    /// Ends, as soon as no process is left that was not there at the beginning; the run itself took until
    /// `ended`.
    pub(crate) fn end(mut self, ended: Instant) -> Checked<Cost> {
        let deadline = Instant::now() + STRAGGLERS;
        while running(self.group.as_ref()).difference(&self.standing).next().is_some()
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(2));
        }
        let own_cpu = self.group.as_ref().and_then(|group| group.usage()).zip(self.own).map(|(a, b)| a - b);
        let cpu = machine_cpu()? - self.cpu;
        self.stop();
        Ok(Cost {
            seconds: ended.duration_since(self.start).as_secs_f64(),
            cpu,
            own_cpu,
            peak_mib: mib(self.peak[0].load(Ordering::Relaxed)),
            peak_process_mib: mib(self.peak[1].load(Ordering::Relaxed)),
            wire_mib: mib(wire(self.network)? - self.wire),
            parts: Vec::new(),
        })
    }

    fn stop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(sampler) = self.sampler.take() {
            let _ = sampler.join();
        }
    }
}

impl Drop for Meter<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The processes that take part: those of the group, else all that this process started.
pub(crate) fn running(group: Option<&Arc<Group>>) -> BTreeSet<u32> {
    group.map_or_else(
        || processes::descendants(std::process::id()).into_iter().collect(),
        |group| group.processes(),
    )
}

/// Resident bytes of a process.
fn resident(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Bytes in MiB.
#[expect(clippy::cast_precision_loss, reason = "no machine moves 2^53 bytes in a run")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
