//! What runs as the user on either host.
//!
//! An agent owns everything that needs the user's rights: names, walking, opening, creating, modes, times,
//! renames. It drives an engine (through `escp_engine_api`, so it cannot tell a daemon from an embedded
//! engine) and talks to the other agent in sealed messages. The near agent is the `escp` command itself;
//! the far one is `escp --server` under ssh.

pub mod control;
pub mod dial;
pub mod escape;
mod establish;
pub mod far;
pub mod link;
pub mod near;
pub mod receive;
pub mod send;
pub mod status;
pub mod tally;

pub use receive::{Target, receive_files};
pub use send::{Source, expand_sources, send_files};
