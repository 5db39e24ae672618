//! Small files as the body of one record.
//!
//! ```text
//! check 8 | length 4 | mode 4 | length of the name 2 | name | data     and so on, to the end of the body
//! ```
//!
//! What has the mode of a directory has no data; its name is relative to the top, and what follows lies in it.

use super::blocking::send_whole;
use super::record::Sealing;
use crc_fast::{CrcAlgorithm, checksum};
use escp_buf::{BODY, Buf, Pool};
use escp_proto::block::MAX_PACKED_FILES;
use escp_testkit::{Checked, Trouble};
use rustix::fs::FileType;
use std::net::TcpStream;

/// Most bytes of a pack, as of the engine's.
pub(super) const PACK: u32 = 512 << 10;
/// Bytes of an entry before its name.
const HEAD: usize = 18;

/// Memory for one, of the thread that asks.
pub(super) fn slot() -> Checked<Buf> {
    Pool::new(1, PACK as usize)?.take().ok_or_else(|| Trouble::new("an empty pool"))
}

/// A pack that is being filled.
pub(super) struct Pack {
    buf: Buf,
    length: usize,
    count: u64,
}

impl Pack {
    pub(super) fn new() -> Checked<Self> {
        Ok(Self { buf: slot()?, length: 0, count: 0 })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether there is room for one more with a name and data of so many bytes.
    pub(super) fn has_room(&self, name: usize, data: usize) -> bool {
        let all = [HEAD, name, data].iter().try_fold(self.length, |sum, part| sum.checked_add(*part));
        self.count < MAX_PACKED_FILES && all.is_some_and(|all| all <= PACK as usize)
    }

    /// Adds what there is room for; `fill` brings its data.
    pub(super) fn add(
        &mut self,
        name: &[u8],
        mode: u32,
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> Checked,
    ) -> Checked {
        let entry = &mut self.buf.bytes_mut()[BODY + self.length..][..HEAD + name.len() + length];
        let (head, rest) = entry.split_at_mut(HEAD);
        let (called, data) = rest.split_at_mut(name.len());
        fill(data)?;
        called.copy_from_slice(name);
        head[..8].copy_from_slice(&check(data).to_be_bytes());
        head[8..12].copy_from_slice(&u32::try_from(length)?.to_be_bytes());
        head[12..16].copy_from_slice(&mode.to_be_bytes());
        head[16..].copy_from_slice(&u16::try_from(name.len())?.to_be_bytes());
        self.length += HEAD + name.len() + length;
        self.count += 1;
        Ok(())
    }

    /// Seals and sends it, and is empty then.
    pub(super) fn send(&mut self, sealing: &mut Sealing, socket: &TcpStream) -> Checked {
        sealing.seal_pack(self.buf.bytes_mut(), self.count, self.length)?;
        send_whole(socket, &self.buf, self.length)?;
        (self.length, self.count) = (0, 0);
        Ok(())
    }
}

/// What a pack holds.
#[derive(Debug)]
pub(super) enum Entry<'a> {
    /// What follows lies in it: names with slashes between them, or nothing for the top.
    Directory(&'a [u8]),
    /// A file, whose data is as it was when it was read.
    File { name: &'a [u8], mode: u32, data: &'a [u8] },
}

/// Takes the body of a pack apart.
pub(super) struct Entries<'a>(&'a [u8]);

impl<'a> Entries<'a> {
    pub(super) fn of(body: &'a [u8]) -> Self {
        Self(body)
    }

    fn take(&mut self, length: usize) -> Checked<&'a [u8]> {
        let (taken, rest) =
            self.0.split_at_checked(length).ok_or_else(|| Trouble::new("a pack ends within a file"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn entry(&mut self) -> Checked<Entry<'a>> {
        let head = self.take(HEAD)?;
        let word = |at: usize| u32::from_be_bytes(std::array::from_fn(|i| head[at + i]));
        let (sent, mode) = (u64::from_be_bytes(std::array::from_fn(|i| head[i])), word(12));
        let name = self.take(usize::from(u16::from_be_bytes([head[16], head[17]])))?;
        let data = self.take(usize::try_from(word(8))?)?;
        let called = || String::from_utf8_lossy(name);
        if check(data) != sent {
            return Err(Trouble::new(format!("{} arrived altered", called())));
        }
        match FileType::from_raw_mode(mode) {
            FileType::Directory if data.is_empty() && (name.is_empty() || is_path(name)) => {
                Ok(Entry::Directory(name))
            }
            FileType::RegularFile if is_name(name) => Ok(Entry::File { name, mode, data }),
            _ => Err(Trouble::new(format!("nothing that is called {:?} can be made", called()))),
        }
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Checked<Entry<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        (!self.0.is_empty()).then(|| self.entry())
    }
}

/// The engine's check value.
fn check(data: &[u8]) -> u64 {
    checksum(CrcAlgorithm::Crc64Nvme, data)
}

/// Leads nowhere but down.
fn is_path(name: &[u8]) -> bool {
    name.split(|byte| *byte == b'/').all(is_name)
}

fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: u32 = 0o100_640;
    const DIRECTORY: u32 = 0o040_755;

    /// The body of a pack of these.
    fn body(entries: &[(&str, u32, &str)]) -> Vec<u8> {
        let mut pack = Pack::new().unwrap();
        for (name, mode, data) in entries {
            assert!(pack.has_room(name.len(), data.len()));
            let fill = |into: &mut [u8]| {
                into.copy_from_slice(data.as_bytes());
                Ok(())
            };
            pack.add(name.as_bytes(), *mode, data.len(), fill).unwrap();
        }
        pack.buf.bytes()[BODY..BODY + pack.length].to_vec()
    }

    fn taken_apart(body: &[u8]) -> Checked<Vec<String>> {
        let text = |entry: Checked<Entry<'_>>| Ok(format!("{:?}", entry?));
        Entries::of(body).map(text).collect()
    }

    #[test]
    fn it_holds_what_was_put_in() {
        let body = body(&[("", DIRECTORY, ""), ("a", FILE, "1"), ("b/c", DIRECTORY, ""), ("...", FILE, "")]);
        let entries: Vec<_> = Entries::of(&body).map(Result::unwrap).collect();
        assert!(matches!(
            entries[..],
            [
                Entry::Directory(b""),
                Entry::File { name: b"a", mode: FILE, data: b"1" },
                Entry::Directory(b"b/c"),
                Entry::File { name: b"...", mode: FILE, data: b"" },
            ]
        ));
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["", ".", "..", "/", "a/b", "../a"] {
            taken_apart(&body(&[(name, FILE, "x")])).unwrap_err();
        }
        for name in [".", "..", "/", "/a", "a/", "a//b", "a/../b"] {
            taken_apart(&body(&[(name, DIRECTORY, "")])).unwrap_err();
        }
        taken_apart(&body(&[("a", DIRECTORY, "x")])).unwrap_err();
        taken_apart(&body(&[("a", 0o120_777, "x")])).unwrap_err();
    }

    #[test]
    fn what_was_altered_or_cut_off_is_refused() {
        let whole = body(&[("name", FILE, "data"), ("other", FILE, "more")]);
        taken_apart(&whole).unwrap();
        let first = HEAD + "name".len() + "data".len();
        for length in (1..whole.len()).filter(|length| *length != first) {
            taken_apart(&whole[..length]).unwrap_err();
        }
        // Data and check value; names are the cipher's to protect.
        for altered in [0, first - 1] {
            let mut body = whole.clone();
            body[altered] ^= 1;
            taken_apart(&body).unwrap_err();
        }
    }

    #[test]
    fn it_is_full_before_it_overflows() {
        let mut pack = Pack::new().unwrap();
        let most = PACK as usize - HEAD - 1;
        assert!(pack.has_room(1, most) && !pack.has_room(1, most + 1) && !pack.has_room(1, usize::MAX));
        for _ in 0..MAX_PACKED_FILES {
            assert!(pack.has_room(1, 0));
            pack.add(b"x", FILE, 0, |_| Ok(())).unwrap();
        }
        assert!(!pack.has_room(1, 0));
    }
}
