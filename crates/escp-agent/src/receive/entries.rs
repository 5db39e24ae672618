//! What was offered and is not done with.

use super::create::Made;
use super::directory::Directory;
use crate::path::PathNode;
use escp_engine_api::FileCheck;
use escp_proto::agent::{Attributes, ROOT};
use escp_proto::numbered::{self, Numbered};
use std::sync::Arc;

/// A file under way.
#[derive(Debug)]
pub(super) struct Incoming {
    parent: u64,
    pub(super) node: Arc<PathNode>,
    pub(super) size: u64,
    pub(super) attributes: Attributes,
    /// What it is written to, until it is published or discarded.
    pub(super) made: Option<Box<Made>>,
    /// The engine has it; until it reports it, the engine may still use it.
    pub(super) reported: bool,
    /// Check value of what the engine wrote.
    pub(super) check: Option<FileCheck>,
    /// Check value of what the sender read.
    pub(super) digest: Option<FileCheck>,
    /// It failed, and its temporary file is being removed.
    pub(super) failing: bool,
    /// The sender was told how it ended.
    pub(super) answered: bool,
}

impl Incoming {
    pub(super) fn new(parent: u64, node: Arc<PathNode>, size: u64, attributes: Attributes) -> Self {
        Self {
            parent,
            node,
            size,
            attributes,
            made: None,
            // Nothing to wait for until the engine gets it.
            reported: true,
            check: None,
            digest: None,
            failing: false,
            answered: false,
        }
    }
}

/// A directory under way.
#[derive(Debug)]
pub(super) struct DirectoryState {
    /// Number of the directory it lies in.
    pub(super) parent: u64,
    pub(super) directory: Arc<Directory>,
    /// What it lies in.
    pub(super) place: Arc<Directory>,
    /// `None` for the target itself.
    pub(super) attributes: Option<Attributes>,
    /// Children that are not done with, and one while the directory itself is being made.
    children: u64,
    /// Number of its end, once that was offered.
    end: Option<u64>,
    /// It could not be made.
    pub(super) failed: bool,
    finishing: bool,
}

impl DirectoryState {
    pub(super) fn new(
        parent: u64,
        directory: Arc<Directory>,
        place: Arc<Directory>,
        attributes: Option<Attributes>,
    ) -> Self {
        Self { parent, directory, place, attributes, children: 0, end: None, failed: false, finishing: false }
    }

    /// A directory that is being made, until [`Entries::directory_made`].
    pub(super) fn being_made(self) -> Self {
        Self { children: 1, ..self }
    }

    /// A directory that was refused; its children are refused in silence.
    pub(super) fn failed(parent: u64, node: Arc<PathNode>, attributes: Attributes) -> Self {
        let directory = Directory::promised(node);
        let place = Arc::clone(&directory);
        // Nobody may wait for it.
        drop(super::directory::Promise(Arc::clone(&directory)));
        Self { failed: true, ..Self::new(parent, directory, place, Some(attributes)) }
    }
}

/// Everything that was offered and is not done with.
#[derive(Debug)]
pub(super) struct Entries {
    /// Boxed, so that the table stays small.
    files: Numbered<Box<Incoming>>,
    directories: Numbered<DirectoryState>,
}

impl Entries {
    /// For at most `most` entries at a time.
    pub(super) fn with_room(most: u64) -> Self {
        Self { files: numbered::with_room(most), directories: Numbered::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.directories.is_empty()
    }

    pub(super) fn file(&mut self, number: u64) -> Option<&mut Incoming> {
        self.files.get_mut(&number).map(Box::as_mut)
    }

    /// Takes what was made for the files that are under way, at the end of a session.
    pub(super) fn abandon(&mut self) -> Vec<Made> {
        self.files.drain().filter_map(|(_, file)| file.made).map(|made| *made).collect()
    }

    pub(super) fn directory(&self, number: u64) -> Option<&DirectoryState> {
        self.directories.get(&number)
    }

    pub(super) fn add_file(&mut self, number: u64, file: Incoming) {
        self.one_more_child(file.parent);
        self.files.insert(number, Box::new(file));
    }

    pub(super) fn add_directory(&mut self, number: u64, state: DirectoryState) {
        self.one_more_child(state.parent);
        self.directories.insert(number, state);
    }

    /// The engine gets this file.
    pub(super) fn added(&mut self, number: u64) {
        if let Some(file) = self.files.get_mut(&number) {
            file.reported = false;
        }
    }

    /// The directory was made, or could not be.
    pub(super) fn directory_made(&mut self, number: u64) {
        self.one_less_child(number);
    }

    /// The last child of `directory` was offered; `number` is that of its end.
    pub(super) fn end(&mut self, directory: u64, number: u64) {
        if let Some(state) = self.directories.get_mut(&directory) {
            state.end = Some(number);
        }
    }

    /// Something could not be made: for messages, where it was to lie.
    pub(super) fn fail_directory_or_file(&mut self, number: u64) -> Option<Arc<PathNode>> {
        if let Some(state) = self.directories.get_mut(&number) {
            state.failed = true;
            return Some(Arc::clone(&state.directory.node));
        }
        self.files.get(&number).map(|file| Arc::clone(&file.node))
    }

    /// Removes a file and says what it lay in.
    pub(super) fn remove_file(&mut self, number: u64) -> Option<u64> {
        let file = self.files.remove(&number)?;
        self.one_less_child(file.parent);
        Some(file.parent)
    }

    /// The directory, if all its children are done with and its end was offered; once.
    pub(super) fn take_full(&mut self, number: u64) -> Option<&DirectoryState> {
        let state = self.directories.get_mut(&number)?;
        if state.children > 0 || state.end.is_none() || state.finishing {
            return None;
        }
        state.finishing = true;
        Some(state)
    }

    /// Removes a directory; its state and the number of its end.
    pub(super) fn remove_directory(&mut self, number: u64) -> Option<(DirectoryState, u64)> {
        let state = self.directories.remove(&number)?;
        self.one_less_child(state.parent);
        let end = state.end?;
        Some((state, end))
    }

    fn one_more_child(&mut self, parent: u64) {
        if parent != ROOT
            && let Some(state) = self.directories.get_mut(&parent)
        {
            state.children += 1;
        }
    }

    fn one_less_child(&mut self, parent: u64) {
        if let Some(state) = self.directories.get_mut(&parent) {
            state.children = state.children.saturating_sub(1);
        }
    }
}
