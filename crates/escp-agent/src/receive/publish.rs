//! Giving complete files their final name, and finishing directories.

use super::create::{Made, PlacedAt};
use super::directory::{Directory, Held, Sync, finish, times};
use super::space::{Space, free};
use crate::link::TransferOptions;
use crate::pool::Pulse;
use crate::reason::why;
use escp_engine_api::FileCheck;
use escp_proto::agent::Attributes;
use rustix::fs::{Mode, fchmod, fstat, futimens, renameat};
use rustix::io::Errno;
use std::sync::Arc;

/// Mode bits of a file that are taken from its source: scp's, without set-user-ID and its kin.
const FILE_MODE: u32 = 0o777;

/// A file whose bytes are complete, durable where asked, and verified.
#[derive(Debug)]
pub(super) struct Complete {
    pub(super) number: u64,
    pub(super) made: Made,
    pub(super) attributes: Attributes,
    /// Its check value.
    pub(super) check: FileCheck,
}

/// A directory whose children are all done with.
#[derive(Debug)]
pub(super) struct Full {
    /// The directory's own number.
    pub(super) number: u64,
    pub(super) directory: Arc<Directory>,
    /// What it lies in.
    pub(super) parent: Arc<Directory>,
    /// `None` for the target itself, whose mode and times are not the sender's to set.
    pub(super) attributes: Option<Attributes>,
}

/// Publishes files: mode, times, name; then the directories are made durable, each once.
///
/// Once the pulse is stopped no further file gets its name: the rest is removed, and nothing is answered, since
/// nobody listens any more.
pub(super) fn publish(
    files: Vec<Complete>,
    options: &TransferOptions,
    umask: u32,
    space: &Space,
    pulse: &Pulse,
) -> Vec<(u64, Result<FileCheck, String>)> {
    let mut placed = Vec::with_capacity(files.len());
    let mut files = files.into_iter().peekable();
    while !pulse.is_stopped()
        && let Some(parent) = files.peek().map(|file| Arc::clone(&file.made.parent))
    {
        let held = parent.wait();
        let turn = parent.turn();
        while let Some(file) = files.next_if(|file| Arc::ptr_eq(&file.made.parent, &parent)) {
            let Complete { number, made, attributes, check } = file;
            space.release(number);
            let outcome = held.ok_or_else(String::new).and_then(|held| {
                dress(&made, &attributes, options.preserve, umask)?;
                name(made, held)
            });
            placed.push((number, check, Arc::clone(&parent), outcome));
            pulse.beat();
            if pulse.is_stopped() {
                break;
            }
        }
        drop(turn);
    }
    if pulse.is_stopped() {
        remove(files.map(|file| file.made), pulse);
        return Vec::new();
    }
    let sync = if options.durable {
        let good = placed.iter().filter(|(_, _, _, outcome)| outcome.is_ok());
        Sync::run(good.filter_map(|(_, _, parent, _)| parent.wait()))
    } else {
        Sync::default()
    };
    placed
        .into_iter()
        .map(|(number, check, parent, outcome)| {
            let durable = || parent.wait().map_or(Ok(()), |held| sync.of(held));
            (number, outcome.and_then(|()| durable()).map(|()| check))
        })
        .collect()
}

/// Removes what was made for files that will not be published.
pub(super) fn remove<T>(made: impl IntoIterator<Item = T>, pulse: &Pulse) {
    for made in made {
        // Dropping what was made removes the temporary file.
        drop(made);
        pulse.beat();
    }
}

/// Gives a file its mode and times.
fn dress(made: &Made, attributes: &Attributes, preserve: bool, umask: u32) -> Result<(), String> {
    let source = attributes.mode & FILE_MODE;
    let wanted = match (preserve, made.old_mode, &made.place) {
        (true, _, _) => Some(source),
        // Kept by being left alone.
        (false, _, PlacedAt::Existing) => None,
        (false, Some(old), _) => Some(old),
        (false, None, _) => Some(source & !umask),
    };
    if let Some(mode) = wanted {
        match fchmod(&made.file, Mode::from_raw_mode(mode)) {
            Ok(()) => {}
            // A file system without modes: nobody asked for this one.
            Err(Errno::PERM | Errno::OPNOTSUPP) if !preserve => {}
            Err(error) => return Err(format!("its mode cannot be set: {}", why(error))),
        }
    }
    if preserve {
        futimens(&made.file, &times(attributes))
            .map_err(|error| format!("its times cannot be set: {}", why(error)))?;
    }
    Ok(())
}

/// Gives a file its final name, if it is still the file that was written.
fn name(made: Made, held: &Held) -> Result<(), String> {
    let stat = fstat(&made.file).map_err(why)?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if size != made.spec.size {
        return Err(format!(
            "has {size} bytes where {} were written: someone else changed it",
            made.spec.size
        ));
    }
    match made.place {
        PlacedAt::Existing => Ok(()),
        PlacedAt::New(own) | PlacedAt::Temporary(own) if !own.leads_to(held, &stat) => {
            // Whatever has that name now is not this session's to remove.
            own.keep();
            Err("its temporary file was removed or replaced before it was complete".into())
        }
        PlacedAt::New(own) => {
            own.keep();
            Ok(())
        }
        PlacedAt::Temporary(own) => {
            renameat(held.as_fd(), own.name.as_slice(), held.as_fd(), made.name.as_slice()).map_err(why)?;
            own.keep();
            Ok(())
        }
    }
}

/// Gives directories their mode and times, and makes them durable.
pub(super) fn finish_all(
    full: Vec<Full>,
    options: &TransferOptions,
    umask: u32,
) -> Vec<(u64, Result<(), String>)> {
    let finished: Vec<_> = full
        .into_iter()
        .map(|full| {
            let outcome = match (full.directory.wait(), &full.attributes) {
                (Some(held), Some(attributes)) => finish(held, attributes, options.preserve, umask),
                _ => Ok(()),
            };
            (full, outcome)
        })
        .collect();
    let sync = if options.durable {
        let both = finished.iter().flat_map(|(full, _)| [full.directory.wait(), full.parent.wait()]);
        Sync::run(both.flatten())
    } else {
        Sync::default()
    };
    let durable = |directory: &Directory| directory.wait().map_or(Ok(()), |held| sync.of(held));
    finished
        .into_iter()
        .map(|(full, outcome)| {
            let outcome =
                outcome.and_then(|()| durable(&full.directory)).and_then(|()| durable(&full.parent));
            (full.number, outcome)
        })
        .collect()
}

/// Numbers for an error of a full disk or a quota, taken before the failed file is removed.
pub(super) fn with_numbers(text: &str, errno: i32, made: &Made) -> String {
    let full = [Errno::NOSPC, Errno::DQUOT].iter().any(|error| error.raw_os_error() == errno);
    match made.parent.wait().and_then(free) {
        Some(free) if full => format!("{text} ({} bytes needed, {free} available)", made.spec.size),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::create::{Batch, Wanted, make};
    use super::super::directory::Promise;
    use super::super::temporary::OwnNames;
    use super::*;
    use crate::path::PathNode;
    use crate::storage::Memory;
    use escp_proto::agent::Timestamp;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;
    use std::time::Duration;

    fn open(path: &Path) -> Arc<Directory> {
        let path = path.as_os_str().as_bytes();
        Directory::open_named(path, PathNode::root(path.to_vec())).unwrap()
    }

    /// An empty file that can be published.
    fn complete(number: u64, parent: &Arc<Directory>, name: &str, space: &Space) -> Complete {
        let wanted = Wanted {
            number,
            parent: Arc::clone(parent),
            name: name.into(),
            size: 0,
            sparse: false,
            user_named: false,
        };
        let own = OwnNames::new(None);
        let made =
            make(wanted, &TransferOptions::default(), space, &Memory::default(), &mut Batch::new(&own))
                .unwrap();
        let time = Timestamp { seconds: 0, nanoseconds: 0 };
        let attributes = Attributes { mode: 0o644, mtime: time, atime: time };
        Complete { number, made, attributes, check: FileCheck::Crc64(0) }
    }

    #[test]
    fn a_stop_leaves_what_is_published_and_removes_the_rest() {
        let root = tempfile::tempdir().unwrap();
        let sub = root.path().join("sub");
        std::fs::create_dir(&sub).unwrap();
        let (top, space, pulse) = (open(root.path()), Space::default(), Pulse::default());
        let mut files = vec![complete(1, &top, "one", &space), complete(2, &open(&sub), "two", &space)];
        files.extend((3..100).map(|number| complete(number, &top, &format!("f{number}"), &space)));
        // The second waits for its directory, and so for the stop.
        let late = Directory::promised(PathNode::child(&top.node, b"sub"));
        files[1].made.parent = Arc::clone(&late);
        let told = std::thread::scope(|scope| {
            let publishing = scope.spawn(|| publish(files, &TransferOptions::default(), 0, &space, &pulse));
            while !root.path().join("one").exists() {
                std::thread::sleep(Duration::from_millis(1));
            }
            pulse.stop();
            Promise(late).make(top.wait().unwrap(), b"sub").unwrap();
            publishing.join().unwrap()
        });
        assert_eq!(told, []);
        let names = |path: &Path| -> Vec<_> {
            let entries = std::fs::read_dir(path).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        let mut there = names(root.path());
        there.sort();
        assert_eq!((there, names(&sub)), (vec!["one".into(), "sub".into()], vec!["two".to_owned()]));
    }
}
