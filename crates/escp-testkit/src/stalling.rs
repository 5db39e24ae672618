//! A disk that stops and goes on again: a file system (FUSE, fuse(4)) whose server answers when it is told to.

use crate::Checked;
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Largest write the kernel sends in one request.
const MAX_WRITE: usize = 128 * 1024;
const IN_HEADER: usize = 40;
const OUT_HEADER: u32 = 16;
const ROOT: u64 = 1;
const ONLY_FILE: u64 = 2;

/// A mounted file system with one file, `file`, that reads as zeros and forgets what is written. Unmounted when dropped.
#[derive(Debug)]
pub struct Stalling {
    path: PathBuf,
    gates: Arc<Gates>,
}

/// What is answered.
#[derive(Debug, Default)]
struct Gates {
    data: Gate,
    closing: Gate,
}

/// Whether requests of some kind are answered.
#[derive(Debug, Default)]
struct Gate {
    stalled: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn set(&self, stalled: bool) {
        *self.stalled.lock().unwrap_or_else(PoisonError::into_inner) = stalled;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let stalled = self.stalled.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(stalled, |stalled| *stalled));
    }
}

impl Stalling {
    /// Mounts it on `path`, a directory to be made, with a file of `size` bytes. `None` where the kernel has no FUSE.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn new(path: &Path, size: u64) -> Checked<Option<Self>> {
        let device = match File::options().read(true).write(true).open("/dev/fuse") {
            Ok(device) => device,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        std::fs::create_dir(path)?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("stalling", path, "fuse", flags, CString::new(options)?.as_c_str())?;
        let gates = Arc::new(Gates::default());
        let server = Server { device, size, gates: Arc::clone(&gates) };
        // Ends with the mount, when the device has nothing more to say.
        std::thread::spawn(move || server.run());
        Ok(Some(Self { path: path.to_path_buf(), gates }))
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.path.join("file")
    }

    /// From here on, no read and no write is answered.
    pub fn stall(&self) {
        self.gates.data.set(true);
    }

    /// From here on, whoever closes the file waits (FUSE_FLUSH).
    pub fn stall_closing(&self) {
        self.gates.closing.set(true);
    }

    /// All are answered again.
    pub fn go_on(&self) {
        self.gates.data.set(false);
        self.gates.closing.set(false);
    }
}

impl Drop for Stalling {
    fn drop(&mut self) {
        self.go_on();
        // Nobody is left to tell; the test's directory is removed with what lies in it.
        let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH);
    }
}

struct Server {
    device: File,
    size: u64,
    gates: Arc<Gates>,
}

impl Server {
    fn run(self) {
        let mut request = vec![0; MAX_WRITE + 4096];
        while let Ok(length) = (&self.device).read(&mut request) {
            let word = |at| u32::from_ne_bytes(std::array::from_fn(|i| request[at + i]));
            let long = |at| u64::from_ne_bytes(std::array::from_fn(|i| request[at + i]));
            let (opcode, unique, node) = (word(4), long(8), long(16));
            debug_assert!(length >= IN_HEADER, "the kernel sends whole requests");
            // Of READ and WRITE: how many bytes.
            let size = word(IN_HEADER + 16);
            if let Some(answer) = self.answer(opcode, node, size) {
                let (error, body) = answer.map_or_else(|errno| (-errno, Vec::new()), |body| (0, body));
                let length = OUT_HEADER + u32::try_from(body.len()).unwrap_or(0);
                let reply = [&length.to_ne_bytes()[..], &error.to_ne_bytes(), &unique.to_ne_bytes(), &body];
                // A request that was given up meanwhile wants no answer.
                let _ = (&self.device).write(&reply.concat());
            }
        }
    }

    /// What to say; `None` where nothing is to be said. Numbers and layouts: linux/fuse.h.
    fn answer(&self, opcode: u32, node: u64, size: u32) -> Option<Result<Vec<u8>, i32>> {
        const ENOSYS: i32 = 38;
        Some(match opcode {
            // FORGET, INTERRUPT, BATCH_FORGET
            2 | 36 | 42 => return None,
            // LOOKUP, of any name
            1 => {
                Ok([longs(&[ONLY_FILE, 0, 3600, 3600]), words(&[0, 0]), self.attributes(ONLY_FILE)].concat())
            }
            // GETATTR, SETATTR
            3 | 4 => Ok([longs(&[3600]), words(&[0, 0]), self.attributes(node)].concat()),
            // OPEN, with FOPEN_DIRECT_IO: nothing is cached
            14 => Ok([longs(&[0]), words(&[1, 0])].concat()),
            // READ
            15 => {
                self.gates.data.wait();
                Ok(vec![0; size as usize])
            }
            // WRITE
            16 => {
                self.gates.data.wait();
                Ok(words(&[size, 0]))
            }
            // RELEASE, FSYNC
            18 | 20 => Ok(Vec::new()),
            // FLUSH
            25 => {
                self.gates.closing.wait();
                Ok(Vec::new())
            }
            // INIT: version 7.31, background requests, largest write
            26 => {
                let sizes = words(&[7, 31, 0, 0, 64 | (48 << 16), 128 * 1024, 1]);
                Ok([sizes, vec![0; 36]].concat())
            }
            _ => Err(ENOSYS),
        })
    }

    fn attributes(&self, node: u64) -> Vec<u8> {
        let (mode, size) = if node == ROOT { (0o040_755, 0) } else { (0o100_666, self.size) };
        [longs(&[node, size, size / 512, 0, 0, 0]), words(&[0, 0, 0, mode, 1, 0, 0, 0, 4096, 0])].concat()
    }
}

fn words(all: &[u32]) -> Vec<u8> {
    all.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn longs(all: &[u64]) -> Vec<u8> {
    all.iter().flat_map(|long| long.to_ne_bytes()).collect()
}
