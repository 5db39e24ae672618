//! The receiving half: where things go, and the conversation that puts them there.

use crate::link::{Link, Observer, SessionError, TransferOptions};
use crate::tally::Tally;
use std::sync::Arc;

/// Where received files go: resolved once, before the first byte.
#[derive(Debug)]
pub struct Target {
    path: Vec<u8>,
}

impl Target {
    /// Resolves `path` (empty: the working directory) by scp's naming rules.
    ///
    /// `directory_required`: the user named several sources or asked for a directory. `sources`: top-level
    /// sources after expansion (0: unknown, as the far side of an upload sees it).
    ///
    /// # Errors
    /// Status 1 and a sentence when the target cannot be used at all.
    pub fn resolve(path: &[u8], directory_required: bool, sources: u32) -> Result<Self, SessionError> {
        let _ = (directory_required, sources);
        Ok(Self { path: path.to_vec() })
    }

    /// A target that takes no files: `--ioengine dummy`.
    #[must_use]
    pub fn dummy() -> Self {
        Self { path: Vec::new() }
    }
}

/// Receives into `target`: from after Request and Accept until both engines agreed on the end.
///
/// `peer_host` is the name of the other host in messages to the user; empty when unknown.
///
/// # Errors
/// A [`SessionError`] when the session was lost or the peer broke the protocol. Failures of single files
/// are in the tally instead.
pub async fn receive_files(
    link: &mut Link,
    target: Target,
    options: TransferOptions,
    observer: Arc<dyn Observer>,
    peer_host: &str,
) -> Result<Tally, SessionError> {
    let _ = (link, target.path, options, observer, peer_host);
    Err(SessionError { status: 4, text: "receiving is not in this build".into() })
}
