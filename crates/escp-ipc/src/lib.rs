//! An escp engine behind `escpd`'s Unix socket, both ends; and the [`link`] of the daemon's own processes.
//!
//! The socket is AF_UNIX SOCK_SEQPACKET: one packet is one frame, and files and lanes travel as descriptors
//! attached to the frame that names them. The daemon speaks first, with a [`Hello`] that names its version
//! or says why there is no session; the agent answers with its own, and from then on sends
//! [`escp_engine_api::Command`]s and gets [`escp_engine_api::Event`]s. An agent uses [`connect`], a worker
//! [`serve`]; neither can tell from the [`escp_engine_api::EngineHandle`] that there is a socket in between.
//!
//! Rules that hold on both ends:
//!
//! * A full socket makes the sender wait; nothing is dropped.
//! * A frame that does not decode, the wrong number of descriptors, or a descriptor lost on the way ends
//!   the session with a sentence. What arrived of the descriptors is closed.
//! * The hang-up of the agent is the end of its session.
//! * Frames are wiped after use: one of them carries the session's secret.

#![forbid(unsafe_code)]

mod channel;
mod client;
mod frame;
mod hello;
pub mod link;
mod server;

pub use channel::{Channel, FrameBuffer, Listener, MAX_FRAME};
pub use client::{ConnectError, connect};
pub use frame::{
    CommandFrame, Frame, FrameError, Outgoing, decode_command, decode_event, encode_command, encode_event,
};
pub use hello::{Hello, HelloError, VERSION, refuse};
pub use server::{ServeEnd, serve};
