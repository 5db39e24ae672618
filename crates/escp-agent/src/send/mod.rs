//! The sending half: what to send, and the conversation that sends it.

mod crew;
mod gate;
mod holes;
mod open;
mod session;
mod walk;

pub use crate::glob::expand_sources;
pub use session::send_files;

/// One thing to send, as the user named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file or directory, raw bytes; relative paths are relative to the working directory.
    Path(Vec<u8>),
    /// A source that cannot be sent, such as a pattern without a match. It is reported and counted.
    Missing {
        /// As the user wrote it, raw bytes.
        path: Vec<u8>,
        /// Why.
        text: String,
    },
    /// No file: `size` bytes made up by the dummy engine.
    Dummy {
        /// Name to report it by.
        name: Vec<u8>,
        /// Bytes.
        size: u64,
    },
}
