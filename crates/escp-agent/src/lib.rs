//! What runs as the user on either host.
//!
//! An agent owns everything that needs the user's rights: names, walking, opening, creating, modes, times,
//! renames. It drives an engine (through `escp_engine_api`, so it cannot tell a daemon from an embedded
//! engine) and talks to the other agent in sealed messages. The near agent is the `escp` command itself;
//! the far one is `escp --server` under ssh.

mod check;
pub mod control;
pub mod dial;
pub mod escape;
mod establish;
mod exchange;
pub mod far;
mod glob;
mod limits;
pub mod link;
pub mod near;
mod path;
mod pool;
mod reason;
pub mod receive;
pub mod send;
pub mod status;
mod storage;
pub mod tally;

pub use receive::{TakenNames, Target, receive_files};
pub use send::{Source, expand_sources, send_files};
