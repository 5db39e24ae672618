//! The floor for many small files: as many to a record as the engine packs, each with its name, mode and check value.
//!
//! ```text
//! sender:    open → read → check, until a record is full → seal → send
//! receiver:  receive → open; each file: check → create → write → (barrier →) rename
//! ```
//!
//! The list of files is made once and dealt to the streams, neighbours to the same one.

use super::blocking::{closed_early, receive_some};
use super::ends;
use super::pack::{Entries, Entry, PACK, Pack, slot};
use super::part::{Crew, Names, Part, Target, Through, Written, publish};
use super::record::{Opening, Sealing, iv, record};
use super::{Durable, End, FloorArgs};
use crate::listing::Listing;
use escp_buf::{BODY, Buf};
use escp_proto::record::IV_LEN;
use escp_testkit::{Checked, Trouble};
use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use std::ffi::OsStr;
use std::fs::File;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The sending end.
pub(super) fn send_all(args: &FloorArgs) -> Checked {
    let from = given(args.from.as_ref())?;
    let listing = Arc::new(Listing::of(&from)?);
    args.to_receiver(None, move |end| send(&end, &from, &listing))
}

/// The receiving end.
pub(super) fn receive_all(args: &FloorArgs) -> Checked {
    let target = Arc::new(Target::make(given(args.to.as_ref())?)?);
    let sockets = ends::accept(args.address, args.streams())?;
    let into = Arc::clone(&target);
    match args.durable {
        None => {
            return args.each_stream(sockets, None, move |end| receive_share(&end, &into, Through::AtOnce));
        }
        Some(Durable::Each) => {
            let (crew, turns) = Crew::start();
            let share = move |end: End| receive_share(&end, &into, Through::Crew(turns.clone(), Vec::new()));
            let received = args.each_stream(sockets, None, share);
            // What it says is why the streams failed, if they did.
            crew.end()?;
            received?;
        }
        Some(Durable::Barrier) => {
            let written = Written::default();
            let all = Arc::clone(&written);
            let share =
                move |end: End| receive_share(&end, &into, Through::Barrier(Arc::clone(&all), Vec::new()));
            args.each_stream(sockets, None, share)?;
            target.sync_contents()?;
            publish(&written, args.streams().into())?;
        }
    }
    target.sync_names()
}

fn given(path: Option<&PathBuf>) -> Checked<PathBuf> {
    path.cloned().ok_or_else(|| Trouble::new("--files needs --from and --to"))
}

/// Sends one stream's share; the first stream tells of all directories before, so that those without files come to be.
fn send(end: &End, from: &Path, listing: &Listing) -> Checked {
    let mut sending =
        Sending { pack: Pack::new()?, sealing: Sealing::new(end.secret())?, socket: &end.socket };
    if end.stream == 0 {
        listing.directories.iter().try_for_each(|name| sending.directory(name))?;
    }
    let share = listing.share(end.stream.into(), end.streams.into());
    for neighbours in share.chunk_by(|a, b| a.directory == b.directory) {
        let Some(name) = neighbours.first().and_then(|file| listing.directories.get(file.directory)) else {
            continue;
        };
        sending.directory(name)?;
        let held: OwnedFd = File::open(from.join(name))?.into();
        for file in neighbours {
            sending.file(&held, &file.name).map_err(|trouble| {
                Trouble::new(format!("{}: {trouble:?}", from.join(listing.path(file)).display()))
            })?;
        }
    }
    sending.send()
}

/// One stream, as its sending end sees it.
struct Sending<'a> {
    pack: Pack,
    sealing: Sealing,
    socket: &'a TcpStream,
}

impl Sending<'_> {
    /// Says where the next files lie.
    fn directory(&mut self, name: &Path) -> Checked {
        let name = name.as_os_str();
        self.make_room(name, 0)?;
        self.pack.add(name.as_bytes(), FileType::Directory.as_raw_mode(), 0, |_| Ok(()))
    }

    fn file(&mut self, directory: &OwnedFd, name: &OsStr) -> Checked {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file: File = openat(directory, name, flags, Mode::empty())?.into();
        let stat = fstat(&file)?;
        let length = usize::try_from(stat.st_size)?;
        self.make_room(name, length)?;
        self.pack.add(name.as_bytes(), stat.st_mode, length, |into| Ok(file.read_exact_at(into, 0)?))
    }

    /// Sends what there is if there is no room beside it.
    fn make_room(&mut self, name: &OsStr, length: usize) -> Checked {
        if !self.pack.has_room(name.len(), length) {
            self.send()?;
        }
        if self.pack.has_room(name.len(), length) {
            Ok(())
        } else {
            Err(Trouble::new(format!("{length} bytes do not fit into a record of {PACK}")))
        }
    }

    fn send(&mut self) -> Checked {
        if self.pack.is_empty() { Ok(()) } else { self.pack.send(&mut self.sealing, self.socket) }
    }
}

/// Makes what one stream brings.
fn receive_share(end: &End, target: &Target, mut through: Through) -> Checked {
    let mut buf = slot()?;
    let mut opening = Opening::new(end.secret(), PACK)?;
    let mut names = Names::new()?;
    let mut inside = Arc::new(target.directory(b"")?);
    while let Some(length) = receive_pack(&end.socket, &mut opening, &mut buf)? {
        for entry in Entries::of(&buf.bytes()[BODY..BODY + length]) {
            match entry? {
                Entry::Directory(name) => inside = Arc::new(target.directory(name)?),
                Entry::File { name, mode, data } => {
                    through.publish(Part::make(&inside, names.next(), name, mode, data)?)?;
                }
            }
        }
    }
    through.end()
}

/// Receives the next pack. Returns how long it is; `None` when the other end closed the stream instead.
fn receive_pack(socket: &TcpStream, opening: &mut Opening, buf: &mut Buf) -> Checked<Option<usize>> {
    let slot = buf.bytes_mut();
    match receive_some(socket, &mut slot[iv()])? {
        0 => return Ok(None),
        IV_LEN => {}
        _ => return Err(closed_early()),
    }
    let length = opening.length(slot)?;
    let rest = iv().end..record(length).end;
    if receive_some(socket, &mut slot[rest.clone()])? < rest.len() {
        return Err(closed_early());
    }
    opening.open_pack(slot, length)?;
    Ok(Some(length))
}
