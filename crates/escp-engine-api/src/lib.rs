//! The interface between an agent and an engine.
//!
//! An *agent* runs as the user and owns everything that needs the user's rights; an *engine* moves bytes
//! between descriptors the agent hands over and sockets the agent dialled. The two talk through a pair of
//! queues: [`Command`]s one way, [`Event`]s the other. There are two implementations: the in-process engine
//! (`escp_engine::spawn`) and the one behind `escpd`'s Unix socket (`escp_ipc::connect`). An agent is
//! written once against [`EngineHandle`] and cannot tell them apart.
//!
//! Invariants every implementation keeps:
//!
//! * [`Command::Open`] comes first and once. [`Event::Opened`] or [`Event::Failed`] answers it.
//! * A descriptor handed over belongs to the engine; it is closed when the file is reported or dropped.
//! * Each file added is reported exactly once in an [`Event::Files`], unless the session fails first.
//! * [`Event::Failed`] and [`Event::Ended`] are final: the event queue closes after either.
//! * Commands are never answered out of the blue: an engine never opens a path, never connects anywhere.

mod command;
mod event;
mod options;
pub mod placement;

pub use command::{Command, Extent, ExtentKind, FileSpec, Lane, MAX_BATCH, MAX_MESSAGE, Summary};
pub use event::{
    Counters, Event, Failure, Fault, FileCheck, FileError, FileReport, Opened, PEER_GAVE_UP, Progress, Stage,
};
pub use options::{
    Direction, EngineKind, JobOptions, Listen, MAX_BLOCK_SIZE, MAX_CONGESTION, MAX_STREAMS, MIN_BLOCK_SIZE,
    Secret, SessionId, Side,
};

use tokio::sync::mpsc;

/// Commands an agent may have queued before [`EngineHandle::commands`] makes it wait.
pub const COMMAND_QUEUE: usize = 64;
/// Events an engine may have queued before it waits for the agent.
pub const EVENT_QUEUE: usize = 256;

/// An agent's end of an engine.
///
/// Dropping both queues aborts the session: the engine stops moving data at once and releases every
/// descriptor.
///
/// An agent must keep draining `events` while it waits for room in `commands`; an engine handles a
/// command without waiting for room in `events`, so the pair cannot deadlock as long as the agent's two
/// directions run in different tasks or in one `select!`.
#[derive(Debug)]
pub struct EngineHandle {
    /// What the agent asks for.
    pub commands: mpsc::Sender<Command>,
    /// What the engine reports.
    pub events: mpsc::Receiver<Event>,
}

/// An engine's end of an [`EngineHandle`].
#[derive(Debug)]
pub struct EnginePort {
    /// What the agent asks for; closed when the agent is gone.
    pub commands: mpsc::Receiver<Command>,
    /// What the engine reports; closed when the agent is gone.
    pub events: mpsc::Sender<Event>,
}

/// Makes the two ends of an engine interface.
#[must_use]
pub fn engine_pair() -> (EngineHandle, EnginePort) {
    let (command_tx, command_rx) = mpsc::channel(COMMAND_QUEUE);
    let (event_tx, event_rx) = mpsc::channel(EVENT_QUEUE);
    (
        EngineHandle { commands: command_tx, events: event_rx },
        EnginePort { commands: command_rx, events: event_tx },
    )
}
