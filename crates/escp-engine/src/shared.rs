//! What the control task and the data threads of one session share.

use crate::adapt::SharedAdapt;
use crate::files::{File, FileTable};
use crate::meter::{Counter, Meter};
use crate::pace::Pace;
use crate::plan::Plan;
use crate::rate::RateLimit;
use crate::share::Share;
use escp_engine_api::placement::Placement;
use escp_engine_api::{Direction, EngineKind, Failure, Fault, JobOptions, Stage};
use escp_proto::block::HEADER_LEN;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;
use tokio::sync::{Notify, mpsc};

/// One session's shared state.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: JobOptions,
    /// The kind in use, after any fallback.
    pub(crate) kind: EngineKind,
    pub(crate) meter: Meter,
    pub(crate) files: FileTable,
    pub(crate) plan: Plan,
    pub(crate) rate: RateLimit,
    /// A rate that other sessions keep too; one lane of this session waits for it at a time, so that each session
    /// gets as much of it, however many streams it has.
    pub(crate) pace: Option<Pace>,
    pub(crate) turn: tokio::sync::Mutex<()>,
    /// Where compression is wanted: which level, for all lanes that send.
    pub(crate) adapt: Option<Arc<SharedAdapt>>,
    /// Where data threads run; known with the first data lane.
    pub(crate) placement: OnceLock<Placement>,
    /// Files that are through, or failed with nothing in flight.
    pub(crate) over: mpsc::UnboundedSender<Vec<Arc<File>>>,
    /// Groups of received files that are being made durable now.
    pub(crate) settling: AtomicU32,
    /// Woken when the session fails.
    pub(crate) failing: Notify,
    /// A file fell back from O_DIRECT, and that was said.
    fell_back: AtomicBool,
    started: Instant,
    failed: AtomicBool,
    failure: Mutex<Option<Failure>>,
    lanes: Mutex<Vec<Arc<LaneState>>>,
}

/// One data lane, as the control task sees it.
#[derive(Debug)]
pub(crate) struct LaneState {
    pub(crate) stream: u16,
    /// To end its operations from outside.
    socket: std::net::TcpStream,
    /// Records sent, or received and through.
    pub(crate) records: AtomicU64,
    /// Sender: records the peer says are through.
    pub(crate) acknowledged: AtomicU64,
    /// When something last came or went, in milliseconds of the session.
    heard: AtomicU64,
    /// What it waits for. Only for the network does silence count.
    stage: AtomicU8,
    /// Closed by both sides' agreement.
    pub(crate) closed: AtomicBool,
    /// Most disk operations that were in flight at once.
    pub(crate) peak_disk: AtomicU32,
    /// Most disk operations that were in flight when one on the network began.
    pub(crate) peak_beside: AtomicU32,
    /// Disk operations on registered buffers.
    pub(crate) fixed: AtomicU64,
}

const STAGES: [Stage; 5] = [Stage::Idle, Stage::Read, Stage::Send, Stage::Receive, Stage::Write];

impl Shared {
    pub(crate) fn new(
        options: JobOptions,
        kind: EngineKind,
        meter: Meter,
        pace: Option<Pace>,
        over: mpsc::UnboundedSender<Vec<Arc<File>>>,
    ) -> Self {
        let started = Instant::now();
        Self {
            adapt: options.compress.map(|highest| Arc::new(SharedAdapt::new(highest, started))),
            plan: Plan::new(Share::new(pace.clone(), &options), kind == EngineKind::Dummy),
            rate: RateLimit::new(options.rate_limit),
            pace,
            turn: tokio::sync::Mutex::default(),
            kind,
            meter,
            files: FileTable::default(),
            placement: OnceLock::new(),
            over,
            settling: AtomicU32::new(0),
            failing: Notify::new(),
            fell_back: AtomicBool::new(false),
            started,
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
            lanes: Mutex::default(),
            options,
        }
    }

    /// Milliseconds since the session was opened.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Largest payload of a file record in this session.
    pub(crate) fn max_file_payload(&self) -> usize {
        HEADER_LEN + self.options.block_size as usize
    }

    /// Counts bytes of files that were read or written, where there are files.
    pub(crate) fn count_disk(&self, counter: Counter, bytes: u64) {
        if self.kind != EngineKind::Dummy {
            self.meter.add(counter, bytes);
        }
    }

    /// Turns O_DIRECT off for a file that wanted it, and counts that.
    pub(crate) fn fall_back(&self, file: &File) {
        match file.clear_direct() {
            Ok(true) => {
                self.meter.add(Counter::DirectFallbacks, 1);
                if !self.fell_back.swap(true, Relaxed) {
                    // One word for all of a session's files, which mostly lie on one file system.
                    tracing::info!(
                        file = file.spec().number,
                        "O_DIRECT is refused: buffered I/O for this file and its like"
                    );
                }
            }
            Ok(false) => {}
            Err(error) => file.fail_os(Stage::Accept, &error),
        }
    }

    /// Ends the session; the first reason stays.
    pub(crate) fn fail(&self, fault: Fault, text: impl Into<String>) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if failure.is_none() {
            let counter = match fault {
                Fault::Integrity => Some(Counter::ErrorsProtocol),
                Fault::Lost | Fault::Connect => Some(Counter::ErrorsNetwork),
                Fault::PeerAborted | Fault::Local => None,
            };
            counter.into_iter().for_each(|counter| self.meter.add(counter, 1));
            *failure = Some(Failure { fault, text: text.into() });
            self.failed.store(true, Relaxed);
        }
        drop(failure);
        self.failing.notify_waiters();
        self.failing.notify_one();
        self.plan.changed.notify_waiters();
        for lane in self.lanes() {
            // Ends the lane's operations in the kernel; a lane that is gone already is fine.
            let _ = lane.socket.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn is_failed(&self) -> bool {
        self.failed.load(Relaxed)
    }

    pub(crate) fn failure(&self) -> Option<Failure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn lanes(&self) -> Vec<Arc<LaneState>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn add_lane(&self, stream: u16, socket: std::net::TcpStream) -> Arc<LaneState> {
        let lane = Arc::new(LaneState {
            stream,
            socket,
            records: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            heard: AtomicU64::new(self.now()),
            stage: AtomicU8::new(0),
            closed: AtomicBool::new(false),
            peak_disk: AtomicU32::new(0),
            peak_beside: AtomicU32::new(0),
            fixed: AtomicU64::new(0),
        });
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&lane));
        lane
    }

    /// Hands files on that are through or have failed: those of one record together, so that what follows is done
    /// once for all of them.
    pub(crate) fn hand_on(&self, files: Vec<Arc<File>>) {
        if !files.is_empty() {
            // The control task is gone only when the session is over: nobody wants the report then.
            let _ = self.over.send(files);
        }
    }

    /// Where a session that is silent waits, for the user.
    pub(crate) fn stage(&self) -> Stage {
        let lanes = self.lanes();
        let at = |stage| lanes.iter().any(|lane| lane.stage() == stage);
        [Stage::Write, Stage::Read, Stage::Send].into_iter().find(|&stage| at(stage)).unwrap_or(
            match self.options.direction {
                Direction::Send => Stage::Idle,
                Direction::Receive => Stage::Receive,
            },
        )
    }
}

impl LaneState {
    /// Notes that so many disk operations are in flight.
    pub(crate) fn disk_busy(&self, operations: usize) {
        self.peak_disk.fetch_max(u32::try_from(operations).unwrap_or(u32::MAX), Relaxed);
    }

    /// Notes that an operation on the network begins beside so many on disks.
    pub(crate) fn network_beside(&self, operations: usize) {
        self.peak_beside.fetch_max(u32::try_from(operations).unwrap_or(u32::MAX), Relaxed);
    }

    pub(crate) fn enter(&self, stage: Stage, now: u64) {
        let index = STAGES.iter().position(|&known| known == stage).unwrap_or(0);
        self.stage.store(u8::try_from(index).unwrap_or(0), Relaxed);
        self.heard.store(now, Relaxed);
    }

    pub(crate) fn stage(&self) -> Stage {
        STAGES.get(usize::from(self.stage.load(Relaxed))).copied().unwrap_or(Stage::Idle)
    }

    /// How long nothing came on this lane from the peer's kernel, not even an answer to a probe: a record of a slow
    /// path, and a peer that waits for its disk, may take longer than any deadline.
    pub(crate) fn silent_for(&self) -> std::time::Duration {
        escp_sys::socket::since_last_sign(&self.socket).unwrap_or_default()
    }

    /// Bytes that the kernel saw arrive, here or at the peer.
    pub(crate) fn moved(&self) -> u64 {
        escp_sys::socket::bytes_moved(&self.socket).unwrap_or_default()
    }

    /// What the kernel knows about this lane's way.
    pub(crate) fn way(&self) -> Option<escp_sys::socket::Way> {
        escp_sys::socket::way(&self.socket).ok()
    }

    pub(crate) fn heard(&self) -> u64 {
        self.heard.load(Relaxed)
    }
}
