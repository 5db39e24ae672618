//! The sending half: what to send, and the conversation that sends it.

use crate::link::{Link, Observer, SessionError, TransferOptions};
use crate::tally::Tally;
use std::sync::Arc;

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

/// Expands `patterns` as the far side of a download does: scp's globs, without a shell; `~` and relative
/// paths start at the home directory (the working directory of a program that ssh starts).
///
/// A pattern without a match becomes a [`Source::Missing`], so the count of sources is that of
/// the result.
#[must_use]
pub fn expand_sources(patterns: &[Vec<u8>]) -> Vec<Source> {
    patterns.iter().cloned().map(Source::Path).collect()
}

/// Sends `sources`: from after Request and Accept until both engines agreed on the end.
///
/// `peer_host` is the name of the other host in messages to the user; empty when unknown.
///
/// # Errors
/// A [`SessionError`] when the session was lost or the peer broke the protocol. Failures of single files
/// are in the tally instead.
pub async fn send_files(
    link: &mut Link,
    sources: Vec<Source>,
    options: TransferOptions,
    observer: Arc<dyn Observer>,
    peer_host: &str,
) -> Result<Tally, SessionError> {
    let _ = (link, sources, options, observer, peer_host);
    Err(SessionError { status: 4, text: "sending is not in this build".into() })
}
