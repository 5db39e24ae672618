//! Data threads: each with its own runtime and buffer pool, each with some of the session's lanes.

use crate::disk::Disk;
use crate::net::Socket;
use crate::pipeline::{Lane, LaneError, SLOTS_BESIDE_DEPTH, receive_lane, send_lane};
use crate::placement::cores;
use crate::shared::{LaneState, Shared};
use crate::uring;
use escp_buf::Pool;
use escp_crypto::{Opener, Sealer};
use escp_engine_api::placement::{Placement, Reason};
use escp_engine_api::{EngineKind, Fault, JobOptions};
use escp_sys::process::run_on_cpus;
use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::thread;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet};

/// A lane that is proven, on its way to its thread.
pub(crate) struct NewLane {
    pub(crate) socket: std::net::TcpStream,
    pub(crate) state: Arc<LaneState>,
    pub(crate) key: LaneKey,
}

/// What a lane does with records.
pub(crate) enum LaneKey {
    Seal(Sealer),
    Open(Opener),
}

/// How a lane ended.
#[derive(Debug)]
pub(crate) struct LaneOver {
    pub(crate) result: Result<(), LaneError>,
}

/// The data threads of a session.
pub(crate) struct Workers {
    queues: Vec<mpsc::UnboundedSender<NewLane>>,
}

/// The kind that can be had, and why it is another than the one asked for.
pub(crate) fn resolve(asked: EngineKind) -> (EngineKind, Option<String>) {
    // Who asked for another kind may have reasons not to touch io_uring at all.
    match (asked == EngineKind::Uring).then(uring::probe) {
        Some(Err(error)) => {
            let reason = format!(
                "io_uring is refused here ({}): using plain system calls",
                crate::files::describe(&error)
            );
            (EngineKind::Posix, Some(reason))
        }
        _ => (asked, None),
    }
}

/// Threads for a job: one per stream where plain calls move its data, which hold up their thread; with a ring, no
/// more than there are cores.
fn thread_count(kind: EngineKind, options: &JobOptions) -> usize {
    let streams = usize::from(options.streams.max(1));
    match kind {
        EngineKind::Posix | EngineKind::Dummy => streams,
        EngineKind::Uring => streams.min(cores(&options.cpus)),
    }
}

impl Workers {
    /// Starts the data threads of a session.
    ///
    /// # Errors
    /// Those of pthread_create(3).
    pub(crate) fn start(shared: &Arc<Shared>, over: &mpsc::UnboundedSender<LaneOver>) -> io::Result<Self> {
        let threads = thread_count(shared.kind, &shared.options);
        let queues = (0..threads)
            .map(|index| {
                let (queue, lanes) = mpsc::unbounded_channel();
                let lanes_here = usize::from(shared.options.streams.max(1)).div_ceil(threads);
                let thread = Thread { shared: Arc::clone(shared), over: over.clone(), lanes_here };
                thread::Builder::new().name(format!("escp-data-{index}")).spawn(move || thread.run(lanes))?;
                Ok(queue)
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { queues })
    }

    /// Gives a lane to its thread.
    pub(crate) fn give(&self, lane: NewLane) {
        let index = usize::from(lane.state.stream.saturating_sub(1)) % self.queues.len().max(1);
        if let Some(queue) = self.queues.get(index) {
            // A thread that is gone has failed the session and said why.
            let _ = queue.send(lane);
        }
    }
}

struct Thread {
    shared: Arc<Shared>,
    over: mpsc::UnboundedSender<LaneOver>,
    lanes_here: usize,
}

impl Thread {
    fn run(self, lanes: mpsc::UnboundedReceiver<NewLane>) {
        let shared = Arc::clone(&self.shared);
        if let Err(error) = self.run_on_a_runtime(lanes) {
            shared
                .fail(Fault::Local, format!("a data thread cannot work: {}", crate::files::describe(&error)));
        }
    }

    fn run_on_a_runtime(self, lanes: mpsc::UnboundedReceiver<NewLane>) -> io::Result<()> {
        if !self.shared.options.cpus.is_empty() {
            run_on_cpus(&self.shared.options.cpus)?;
        }
        let slots = self.lanes_here * (usize::from(self.shared.options.depth) + SLOTS_BESIDE_DEPTH);
        let pool = Pool::new(slots, self.shared.options.block_size as usize)?;
        let with_ring = match self.shared.kind {
            EngineKind::Uring => true,
            EngineKind::Dummy => uring::probe().is_ok(),
            EngineKind::Posix => false,
        };
        if let Some(runtime) = with_ring.then(ring_or_not).flatten() {
            runtime.block_on(self.serve(lanes, pool, true));
        } else {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            LocalSet::new().block_on(&runtime, self.serve(lanes, pool, false));
        }
        Ok(())
    }

    /// Moves to where the session's placement says, before the first buffer is touched. A mask was obeyed from
    /// the start.
    fn go_near_the_card(&self) {
        if let Some(Placement { reason: Reason::Card, cpus, .. }) = self.shared.placement.get()
            && let Err(error) = run_on_cpus(cpus)
        {
            tracing::debug!(%error, "a data thread stays where it is");
        }
    }

    /// Runs lanes until the session lets go of this thread and the last one is over.
    async fn serve(self, mut lanes: mpsc::UnboundedReceiver<NewLane>, pool: Pool, ring: bool) {
        let mut running = JoinSet::new();
        loop {
            tokio::select! {
                Some(lane) = lanes.recv() => {
                    self.go_near_the_card();
                    let here = Here { ring, pool: pool.clone(), alone: self.lanes_here == 1 };
                    running.spawn_local(run_lane(lane, Arc::clone(&self.shared), here));
                }
                Some(ended) = running.join_next() => {
                    let result = ended.unwrap_or_else(|panic| {
                        Err(LaneError { fault: Fault::Local, text: format!("a data lane broke down: {panic}") })
                    });
                    // The control task is gone only when the session is over.
                    let _ = self.over.send(LaneOver { result });
                }
                else => return,
            }
        }
    }
}

/// A runtime with a ring of this thread's own. Rings count as locked memory, over all processes of a user: a
/// probe that went well says little about the next one, and a thread that gets none works without.
fn ring_or_not() -> Option<uring::Runtime> {
    uring::runtime()
        .inspect_err(|error| {
            tracing::info!(
                "a data thread gets no ring and uses plain system calls: {}",
                crate::files::describe(error)
            );
        })
        .ok()
}

/// What a lane finds on its thread.
struct Here {
    ring: bool,
    pool: Pool,
    /// It shares the thread with no other lane.
    alone: bool,
}

async fn run_lane(lane: NewLane, shared: Arc<Shared>, here: Here) -> Result<(), LaneError> {
    let NewLane { socket, state, key } = lane;
    let Here { ring, pool, alone } = here;
    let socket =
        Socket::new(socket, ring).map_err(|error| LaneError::network("taking over a lane", &error))?;
    let disk = match Disk::of(shared.kind) {
        Disk::Uring if !ring => Disk::Posix,
        disk => disk,
    };
    let lane =
        Lane { disk, shared, state, socket, pool, alone, plain: Cell::default(), blocks: Cell::default() };
    match key {
        LaneKey::Seal(sealer) => send_lane(lane, sealer).await,
        LaneKey::Open(opener) => receive_lane(lane, opener).await,
    }
}
