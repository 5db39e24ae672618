//! The data plane of escp.
//!
//! [`spawn`] starts an engine in this process and returns the agent's end of it. See
//! `docs/ARCHITECTURE.md`, "the way of a byte", for how a block travels through this crate.

mod adapt;
mod barrier;
mod check;
mod clock;
mod control_stream;
mod deadlines;
mod disk;
mod files;
mod finish;
pub mod gate;
mod intake;
mod lane;
mod listen;
pub mod meter;
mod net;
pub mod pace;
mod pipeline;
mod placement;
mod plan;
mod rate;
mod session;
mod share;
mod shared;
mod standstill;
mod uring;
mod way;
mod worker;

/// The version of the protocol that this engine speaks.
pub use escp_proto::VERSION as PROTOCOL_VERSION;

use escp_engine_api::placement::Placement;
use escp_engine_api::{EngineHandle, engine_pair};
use escp_sys::counters::CounterPage;
use pace::Pace;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Where an engine lives, and what its host provides.
#[derive(Debug)]
pub struct Host {
    /// How accepted lanes reach the engine.
    pub lanes: LaneSource,
    /// Where to count; `None`: a page of its own.
    pub counters: Option<Arc<CounterPage>>,
    /// The host is escpd.
    pub daemon: bool,
    /// Bytes of buffers that a session's blocks in flight may take (`limits.memory_per_session`); `None`: what it
    /// asks for. One that cannot work within them is refused.
    pub memory: Option<u64>,
    /// A rate shared with other sessions, beside the job's own, and how many there are.
    pub pace: Option<Pace>,
    /// Who wants to know where the session's data threads run; told once, with the first data lane.
    pub placed: Option<oneshot::Sender<Placement>>,
}

impl Host {
    /// The agent's own process: the engine listens for itself and shares nothing.
    #[must_use]
    pub fn embedded() -> Self {
        Self { lanes: LaneSource::Own, counters: None, daemon: false, memory: None, pace: None, placed: None }
    }
}

/// How lanes that the peer dialled reach an engine.
#[derive(Debug)]
pub enum LaneSource {
    /// The engine binds the ports of [`escp_engine_api::Listen`] itself and proves strangers away with its
    /// own [`gate`].
    Own,
    /// A broker accepts and proves; the engine registers its session with it.
    Routed {
        /// The broker's ports.
        ports: Vec<u16>,
        /// Where to register the session.
        register: mpsc::Sender<Registration>,
        /// Lanes proven to belong to the session.
        lanes: mpsc::Receiver<AcceptedLane>,
    },
}

/// A session to route lanes to.
#[derive(Debug)]
pub struct Registration {
    /// The session's id.
    pub session: [u8; 16],
    /// The key that proves its first packets.
    pub route_key: [u8; 32],
    /// The broker's answer: registered, or why not.
    pub done: oneshot::Sender<Result<(), String>>,
}

/// A connection whose first packet was read and proven.
#[derive(Debug)]
pub struct AcceptedLane {
    /// The first packet.
    pub packet: [u8; 64],
    /// The connection, positioned after it.
    pub socket: OwnedFd,
}

/// Starts an engine. Its control task runs on the current tokio runtime, its data threads are its own.
///
/// # Panics
/// Outside a tokio runtime.
#[must_use]
pub fn spawn(host: Host) -> EngineHandle {
    let (handle, port) = engine_pair();
    tokio::spawn(session::run(host, port));
    handle
}
