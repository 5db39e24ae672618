//! Where received files go, by scp's naming rules.

use super::directory::Directory;
use crate::escape::escaped;
use crate::glob::{Requested, home_expanded};
use crate::link::SessionError;
use crate::path::{PathNode, is_component, split_last};
use crate::reason::why;
use rustix::fs::{AtFlags, CWD, FileType, statat};
use rustix::io::Errno;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Where received files go: resolved once, before the first byte.
#[derive(Debug)]
pub struct Target {
    place: Place,
    /// Top-level entries that may come; 0: any number.
    sources: u32,
    /// What was asked for; `None`: whatever comes.
    requested: Option<Requested>,
    taken: TakenNames,
    came: u32,
}

/// Names that top-level entries got in a target directory. Clones are one set: sessions with several hosts that fill one
/// directory share it, so that none overwrites what another one brought.
#[derive(Debug, Clone, Default)]
pub struct TakenNames(Arc<Mutex<HashSet<Vec<u8>>>>);

/// Most names in a [`TakenNames`]: about 100 MB. The other side decides how many come.
pub(crate) const MAX_TAKEN: usize = 1_000_000;

impl TakenNames {
    /// Takes a name.
    ///
    /// # Errors
    /// Why it cannot be had.
    fn take(&self, name: &[u8], limit: usize) -> Result<(), String> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.contains(name) {
            return Err("another source has the same name and came first".into());
        }
        if taken.len() >= limit {
            return Err(format!("{limit} sources came before it, the most of one run; {IN_PARTS}"));
        }
        taken.insert(name.to_vec());
        Ok(())
    }
}

/// What to do about more than [`MAX_TAKEN`] sources.
pub(crate) const IN_PARTS: &str = "copy their directory as a whole with -r, or part of them at a time";

#[derive(Debug)]
enum Place {
    /// Below an existing directory, by their own names.
    Into(Arc<Directory>),
    /// The one source gets this name.
    Named {
        parent: Arc<Directory>,
        name: Vec<u8>,
        node: Arc<PathNode>,
        /// The user's path ends in a slash: only a directory can have that name.
        slash: bool,
    },
    /// Nowhere.
    Dummy,
}

/// Where one top-level entry goes.
#[derive(Debug)]
pub(super) enum Placement {
    /// It gets `name` in `parent`.
    Make { parent: Arc<Directory>, name: Vec<u8>, node: Arc<PathNode>, user_named: bool },
    /// A directory without a name of its own: the target directory itself.
    Itself(Arc<Directory>),
    /// Refused, and why.
    Refused { node: Arc<PathNode>, text: String },
    /// The other side sends what was not asked for.
    Unasked,
}

impl Target {
    /// Resolves `path` by scp's naming rules. Blocks on the file system.
    ///
    /// An existing directory takes the sources under their own names; anything else is the name for the one
    /// source. `sources` is 0 for an upload, as its far side sees it: then `~` is expanded, an empty path is
    /// the working directory, and a directory that is required is made. For a download it is the number of
    /// top-level sources after expansion: a directory that is required (several sources on the command line)
    /// must exist, one that is only needed (one pattern, several matches) is made; `durable`: so that it outlives
    /// a crash.
    ///
    /// # Errors
    /// Status 1 and a sentence when the target cannot be used at all.
    pub fn resolve(
        path: &[u8],
        directory_required: bool,
        sources: u32,
        durable: bool,
    ) -> Result<Self, SessionError> {
        let upload = sources == 0;
        let refuse = |text: String| SessionError { status: 1, text: format!("{}: {text}", escaped(path)) };
        let expanded = if upload { home_expanded(path).map_err(refuse)? } else { path.to_vec() };
        let many = directory_required || sources > 1;
        let node = PathNode::root(expanded.clone());
        let open = |node| Directory::open_named(&expanded, node).map_err(|error| refuse(why(error)));
        let place = match statat(CWD, expanded.as_slice(), AtFlags::empty()) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                Place::Into(open(node)?)
            }
            Ok(_) if many => return Err(refuse(why(Errno::NOTDIR))),
            Err(Errno::NOENT) if many && (upload || !directory_required) => {
                Directory::make_named(&expanded, durable)
                    .map_err(|error| refuse(format!("cannot be made: {}", why(error))))?;
                Place::Into(open(node)?)
            }
            Ok(_) => Self::named(&expanded, node).map_err(refuse)?,
            Err(Errno::NOENT) if !many => Self::named(&expanded, node).map_err(refuse)?,
            Err(error) => return Err(refuse(why(error))),
        };
        Ok(Self::new(place, sources))
    }

    /// A target that takes no files: `--ioengine dummy`.
    #[must_use]
    pub fn dummy() -> Self {
        Self::new(Place::Dummy, 0)
    }

    /// For a download: what was asked for, as it was asked. Top-level entries that no pattern can have led
    /// to, and more of them than there are sources, end the session.
    #[must_use]
    pub fn requested(mut self, patterns: &[Vec<u8>]) -> Self {
        self.requested = Some(Requested::new(patterns));
        self
    }

    /// With names that other sessions have taken, or may take.
    #[must_use]
    pub fn beside(mut self, taken: TakenNames) -> Self {
        self.taken = taken;
        self
    }

    fn new(place: Place, sources: u32) -> Self {
        Self { place, sources, requested: None, taken: TakenNames::default(), came: 0 }
    }

    fn named(path: &[u8], node: Arc<PathNode>) -> Result<Place, String> {
        let (before, name) = split_last(path);
        if name.len() > escp_proto::agent::MAX_NAME {
            return Err(why(Errno::NAMETOOLONG));
        }
        if !is_component(name) {
            // `missing/.` and the like.
            return Err(why(Errno::NOENT));
        }
        let before = if before.is_empty() { b"." } else { before };
        let parent = Directory::open_named(before, PathNode::root(before.to_vec()));
        let parent = parent.map_err(|error| format!("the directory it is to lie in: {}", why(error)))?;
        Ok(Place::Named { parent, name: name.to_vec(), node, slash: path.ends_with(b"/") })
    }

    /// The directory in which top-level names are made.
    pub(super) fn directory(&self) -> Option<&Arc<Directory>> {
        match &self.place {
            Place::Into(directory) => Some(directory),
            Place::Named { parent, .. } => Some(parent),
            Place::Dummy => None,
        }
    }

    /// Finds the place of a top-level entry whose source is called `name`.
    pub(super) fn place(&mut self, name: &[u8], is_directory: bool) -> Placement {
        self.came = self.came.saturating_add(1);
        if self.sources > 0 && self.came > self.sources {
            return Placement::Unasked;
        }
        match &self.place {
            Place::Dummy => Placement::Unasked,
            Place::Into(directory) => {
                if self.requested.as_ref().is_some_and(|requested| !requested.may_be_named(name)) {
                    return Placement::Unasked;
                }
                if name.is_empty() {
                    return Placement::Itself(Arc::clone(directory));
                }
                let node = PathNode::child(&directory.node, name);
                if let Err(text) = self.taken.take(name, MAX_TAKEN) {
                    return Placement::Refused { node, text };
                }
                let parent = Arc::clone(directory);
                Placement::Make { parent, name: name.to_vec(), node, user_named: false }
            }
            Place::Named { parent, name, node, slash } => {
                let node = Arc::clone(node);
                if self.came > 1 {
                    let text = "is the name of one source, and another came first".into();
                    return Placement::Refused { node, text };
                }
                if *slash && !is_directory {
                    return Placement::Refused { node, text: why(Errno::NOTDIR) };
                }
                let parent = Arc::clone(parent);
                Placement::Make { parent, name: name.clone(), node, user_named: true }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    fn resolve(path: &std::path::Path, required: bool, sources: u32) -> Result<Target, SessionError> {
        Target::resolve(path.as_os_str().as_bytes(), required, sources, true)
    }

    fn named(target: &mut Target, name: &[u8], directory: bool) -> Option<Vec<u8>> {
        match target.place(name, directory) {
            Placement::Make { name, .. } => Some(name),
            _ => None,
        }
    }

    #[test]
    fn names_follow_scp() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        std::fs::create_dir(at("dir")).unwrap();
        std::fs::write(at("file"), b"").unwrap();
        std::os::unix::fs::symlink("dir", at("link")).unwrap();
        std::os::unix::fs::symlink("nothing", at("dangling")).unwrap();

        for into in ["dir", "dir/", "link", "dir/."] {
            let mut target = resolve(&at(into), false, 1).unwrap();
            assert_eq!(named(&mut target, b"x", false).as_deref(), Some(&b"x"[..]), "{into}");
        }
        for (path, name) in [("file", "file"), ("new", "new"), ("dangling", "dangling")] {
            let mut target = resolve(&at(path), false, 0).unwrap();
            assert_eq!(named(&mut target, b"x", false).as_deref(), Some(name.as_bytes()), "{path}");
        }
        let mut slash = resolve(&at("new/"), false, 0).unwrap();
        assert_eq!(named(&mut slash, b"x", false), None);
        let mut slash = resolve(&at("new/"), false, 0).unwrap();
        assert_eq!(named(&mut slash, b"x", true).as_deref(), Some(&b"new"[..]));

        for refused in ["file/", "missing/new", "missing/.", "missing/.."] {
            assert_eq!(resolve(&at(refused), false, 0).unwrap_err().status, 1, "{refused}");
        }
        assert!(resolve(&at(&"x".repeat(256)), false, 0).unwrap_err().text.contains("too long"));
    }

    #[test]
    fn several_sources_need_a_directory() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        std::fs::write(at("file"), b"").unwrap();
        assert!(resolve(&at("file"), true, 0).is_err());
        assert!(resolve(&at("file"), true, 2).is_err());
        assert!(resolve(&at("file"), false, 2).is_err());
        assert!(resolve(&at("absent"), true, 2).is_err(), "several arguments of a download");
        assert!(!at("absent").exists());
        assert!(resolve(&at("made"), true, 0).is_ok(), "an upload makes it");
        assert!(at("made").is_dir());
        assert!(resolve(&at("matches"), false, 2).is_ok(), "one pattern, several matches");
        assert!(at("matches").is_dir());
    }

    #[test]
    fn only_what_was_asked_for_may_come() {
        let root = tempfile::tempdir().unwrap();
        let asked = [b"dir/*.txt".to_vec(), b"one".to_vec()];
        let mut target = resolve(root.path(), true, 2).unwrap().requested(&asked);
        assert!(matches!(target.place(b".bashrc", false), Placement::Unasked));
        let mut target = resolve(root.path(), true, 3).unwrap().requested(&asked);
        assert!(matches!(target.place(b"a.txt", false), Placement::Make { .. }));
        assert!(matches!(target.place(b"a.txt", false), Placement::Refused { .. }));
        assert!(matches!(target.place(b"one", true), Placement::Make { .. }));
        assert!(matches!(target.place(b"one", true), Placement::Unasked), "more than there are sources");
    }

    #[test]
    fn names_are_taken_once_by_all_sessions_and_not_without_end() {
        let (one, other) = {
            let names = TakenNames::default();
            (names.clone(), names)
        };
        assert_eq!(one.take(b"a", 2), Ok(()));
        assert!(other.take(b"a", 2).unwrap_err().contains("same name"));
        assert_eq!(other.take(b"b", 2), Ok(()));
        let full = one.take(b"c", 2).unwrap_err();
        assert!(full.contains("2 sources came before it") && full.contains("-r"), "{full}");
        assert!(one.take(b"b", 2).unwrap_err().contains("same name"), "what it is, it is");

        let root = tempfile::tempdir().unwrap();
        let names = TakenNames::default();
        let mut targets = [1, 2].map(|_| resolve(root.path(), true, 1).unwrap().beside(names.clone()));
        assert!(matches!(targets[0].place(b"x", false), Placement::Make { .. }));
        assert!(matches!(targets[1].place(b"x", false), Placement::Refused { .. }));
    }
}
