//! Taking what is offered: where each entry goes, and who makes it.

use super::create::Wanted;
use super::crew::{Item, Job};
use super::directory::{Directory, Promise};
use super::entries::{DirectoryState, Incoming};
use super::session::Receiver;
use super::target::Placement;
use crate::escape::escaped;
use crate::path::{PathNode, is_component};
use escp_engine_api::FileSpec;
use escp_proto::agent::{Attributes, Entry, EntryKind, ROOT};
use std::sync::Arc;

/// Entries made by one thread in one go.
const MAKE_TOGETHER: usize = 128;

/// Where an entry goes, whatever it lies in.
enum Placed {
    At { parent: Arc<Directory>, name: Vec<u8>, node: Arc<PathNode>, user_named: bool },
    Itself(Arc<Directory>),
    Refused { node: Arc<PathNode>, text: String },
}

impl Receiver<'_> {
    pub(super) fn offered(&mut self, entries: Vec<Entry>) {
        let mut items = Vec::new();
        for entry in entries {
            if let Err(what) = self.take(entry, &mut items) {
                self.violation = Some(what);
                return;
            }
        }
        let mut items = items.into_iter();
        loop {
            let together: Vec<Item> = items.by_ref().take(MAKE_TOGETHER).collect();
            if together.is_empty() {
                break;
            }
            self.pool.give(Job::Make(together));
        }
    }

    /// Takes one offered entry; what has to be made for it goes to `items`. An error is the peer's fault.
    fn take(&mut self, entry: Entry, items: &mut Vec<Item>) -> Result<(), String> {
        let Entry { number, parent, name, kind } = entry;
        let (directory, size, sparse, attributes) = match kind {
            EntryKind::DirectoryEnd => {
                self.entries.end(parent, number);
                self.finish_if_full(parent);
                return Ok(());
            }
            EntryKind::Directory { attributes } => (true, 0, false, attributes),
            EntryKind::File { size, sparse, attributes } => (false, size, sparse, attributes),
        };
        if directory && !self.options.recursive {
            return Err("it sent a directory that was not asked for".into());
        }
        if self.options.dummy {
            return self.take_dummy(number, name, size, attributes, directory);
        }
        let itself = parent == ROOT && directory && name.is_empty();
        if !itself && !is_component(&name) {
            return Err(format!("it sent the name '{}'", escaped(&name)));
        }
        let (place, name, node, user_named) = match self.place(parent, &name, directory)? {
            Placed::At { parent, name, node, user_named } => (parent, name, node, user_named),
            Placed::Itself(itself) => {
                self.entries
                    .add_directory(number, DirectoryState::new(parent, Arc::clone(&itself), itself, None));
                self.answer(number, Ok(0));
                self.tally.directories += 1;
                return Ok(());
            }
            Placed::Refused { node, text } => {
                if directory {
                    let state = DirectoryState::failed(parent, node.clone(), attributes);
                    self.entries.add_directory(number, state);
                }
                self.reject(number, &node, text);
                return Ok(());
            }
        };
        if directory {
            let made = Directory::promised(node);
            let state = DirectoryState::new(parent, Arc::clone(&made), Arc::clone(&place), Some(attributes));
            self.entries.add_directory(number, state.being_made());
            items.push(Item::Directory { number, promise: Promise(made), parent: place, name });
        } else {
            self.entries.add_file(number, Incoming::new(parent, node, size, attributes));
            items.push(Item::File(Wanted { number, parent: place, name, size, sparse, user_named }));
        }
        Ok(())
    }

    /// Where an entry goes.
    fn place(&mut self, parent: u64, name: &[u8], directory: bool) -> Result<Placed, String> {
        if parent != ROOT {
            // The conversation knows this directory as open.
            let Some(state) = self.entries.directory(parent) else {
                return Err("it sent an entry of an unknown directory".into());
            };
            let node = PathNode::child(&state.directory.node, name);
            if state.failed {
                return Ok(Placed::Refused { node, text: String::new() });
            }
            let parent = Arc::clone(&state.directory);
            return Ok(Placed::At { parent, name: name.to_vec(), node, user_named: false });
        }
        match self.target.place(name, directory) {
            Placement::Unasked => Err(format!("it sent '{}', which was not asked for", escaped(name))),
            Placement::Itself(directory) => Ok(Placed::Itself(directory)),
            Placement::Refused { node, text } => Ok(Placed::Refused { node, text }),
            Placement::Make { parent, name, node, user_named } => {
                Ok(Placed::At { parent, name, node, user_named })
            }
        }
    }

    fn take_dummy(
        &mut self,
        number: u64,
        name: Vec<u8>,
        size: u64,
        attributes: Attributes,
        directory: bool,
    ) -> Result<(), String> {
        if directory {
            return Err("it sent a directory to a session without files".into());
        }
        self.entries.add_file(number, Incoming::new(ROOT, PathNode::root(name), size, attributes));
        let spec = FileSpec { number, size, direct_alignment: 0, in_memory: false, sparse: false };
        self.open(vec![(spec, None)]);
        Ok(())
    }
}
