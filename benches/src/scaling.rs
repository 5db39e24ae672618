//! What a data-transfer node needs for a rate and a distance, from what bytes and files cost here. docs/SCALING.md
//! explains the model; nothing here measures.

/// CPU seconds of one core, as measured on this machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Coefficients {
    /// Starting and ending a transfer, both ends with their daemons and ssh.
    pub(crate) start: f64,
    /// Moving a GiB from memory to memory, both ends.
    pub(crate) moving: f64,
    /// Beyond that, reading a GiB from the page cache and writing it to new pages.
    pub(crate) pages: f64,
    /// Beyond moving, reading a GiB from a disk and writing it to one with O_DIRECT, durable.
    pub(crate) direct: f64,
    /// One small file, beyond its bytes: found, created, published.
    pub(crate) file: f64,
}

impl Coefficients {
    /// CPU seconds of a transfer of `gib` in one file whose ends cost `ends` a GiB beside the moving.
    pub(crate) fn transfer(&self, gib: f64, ends: f64) -> f64 {
        self.start + gib * (self.moving + ends)
    }

    /// CPU seconds of a transfer of many small files in memory.
    pub(crate) fn tree(&self, files: f64, gib: f64) -> f64 {
        self.transfer(gib, self.pages) + files * self.file
    }
}

/// What a node is to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Task {
    /// Gbit/s of file data, one way.
    pub(crate) gigabits: f64,
    /// Round trip of the path in seconds.
    pub(crate) round_trip: f64,
}

/// What it needs for that, at each end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Needs {
    /// Cores that are busy, with the headroom of [`UTILISATION`].
    pub(crate) cores: f64,
    /// Data streams.
    pub(crate) streams: f64,
    /// Buffers of the engine, in MiB.
    pub(crate) pool: f64,
    /// Bytes under way, in MiB: the bandwidth-delay product.
    pub(crate) under_way: f64,
    /// Largest socket buffer a stream needs, in MiB: what tcp_rmem and tcp_wmem have to allow.
    pub(crate) socket_buffer: f64,
}

/// Part of a core's time that is planned with: at more, queues grow.
const UTILISATION: f64 = 0.8;
/// MiB of window that one stream is asked to keep under way at most: losses cost a stream half of its window.
const WINDOW: f64 = 64.0;
/// Of a receive buffer the kernel advertises half as window (tcp_adv_win_scale 1, ip-sysctl).
const BUFFER_PER_WINDOW: f64 = 2.0;
/// escp's own defaults: blocks in flight per stream, and MiB of each.
const DEPTH: f64 = 8.0;
const BLOCK: f64 = 2.0;

/// Gbit/s in GiB/s.
fn gib_per_second(gigabits: f64) -> f64 {
    gigabits * 1e9 / 8.0 / f64::from(1 << 30)
}

/// The model: each end does half of the moving and half of the disks' work.
pub(crate) fn needs(task: Task, costs: &Coefficients) -> Needs {
    let rate = gib_per_second(task.gigabits);
    let busy = rate * (costs.moving + costs.direct) / 2.0;
    let cores = (busy / UTILISATION).max(1.0);
    let under_way = rate * 1024.0 * task.round_trip;
    let streams = cores.max(under_way / WINDOW).ceil();
    let socket_buffer = BUFFER_PER_WINDOW * under_way / streams;
    Needs { cores, streams, pool: streams * DEPTH * BLOCK, under_way, socket_buffer }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSTS: Coefficients = Coefficients { start: 0.2, moving: 0.6, pages: 0.5, direct: 0.2, file: 1e-4 };

    fn near(value: f64, wanted: f64) {
        assert!((value - wanted).abs() < wanted.abs() * 1e-3 + 1e-9, "{value}, not {wanted}");
    }

    #[test]
    fn a_transfer_is_its_start_and_its_bytes() {
        near(COSTS.transfer(4.0, 0.0), 0.2 + 4.0 * 0.6);
        near(COSTS.tree(1000.0, 0.0), 0.2 + 0.1);
    }

    #[test]
    fn a_node_at_100_gigabits() {
        // 12.5e9 bytes/s are 11.642 GiB/s; 0.4 core-seconds a GiB at each end; at 50 ms 625e6 bytes are under way.
        let found = needs(Task { gigabits: 100.0, round_trip: 0.05 }, &COSTS);
        near(found.cores, 11.642 * 0.4 / 0.8);
        near(found.under_way, 625e6 / 1_048_576.0);
        near(found.streams, 10.0);
        near(found.socket_buffer, 2.0 * 596.046 / 10.0);
        near(found.pool, 160.0);
    }

    #[test]
    fn short_and_slow_paths_need_one_stream() {
        let found = needs(Task { gigabits: 1.0, round_trip: 0.001 }, &COSTS);
        near(found.cores, 1.0);
        near(found.streams, 1.0);
    }
}
