//! File systems of a test's own, on loop devices or in memory.

use crate::run::{Run, program};
use crate::users::User;
use crate::{Checked, scratch};
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::fs::{File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ext4 on a loop device.
    Ext4,
    /// xfs on a loop device, 300 MiB at least.
    Xfs,
    /// btrfs on a loop device, 109 MiB at least.
    Btrfs,
    /// tmpfs.
    Tmpfs,
    /// NTFS through FUSE (ntfs-3g), whose names have 255 characters of up to 3 bytes. It has no modes and owners here.
    Ntfs,
}

/// A mounted file system. Unmounted when dropped.
#[derive(Debug)]
pub struct Mount {
    /// Where it is mounted; belongs to the owner given.
    pub path: PathBuf,
    image: Option<PathBuf>,
}

impl Kind {
    /// Those with modes, owners and names of 255 bytes.
    pub const ALL: [Self; 4] = [Self::Ext4, Self::Xfs, Self::Btrfs, Self::Tmpfs];

    /// As mount(8) calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Tmpfs => "tmpfs",
            Self::Ntfs => "ntfs",
        }
    }

    fn smallest_mib(self) -> u64 {
        match self {
            Self::Xfs => 300,
            Self::Btrfs => 128,
            Self::Ext4 | Self::Tmpfs | Self::Ntfs => 1,
        }
    }
}

impl Mount {
    /// Makes a file system of at least `mib` MiB and mounts it on `path`, a directory to be made. `options`
    /// are mount's, and may be empty.
    ///
    /// # Errors
    /// When it cannot be made or mounted.
    pub fn new(kind: Kind, path: &Path, mib: u64, owner: &User, options: &str) -> Checked<Self> {
        let mib = mib.max(kind.smallest_mib());
        std::fs::create_dir(path)?;
        let image = match kind {
            Kind::Tmpfs => {
                let options = format!("size={mib}m{}{options}", if options.is_empty() { "" } else { "," });
                mount(&["-t", "tmpfs", "-o", &options, "tmpfs"], path)?;
                None
            }
            Kind::Ntfs => {
                let image = image(path, mib)?;
                Run::new(program("mkntfs")?, None).args(["-q", "-Q", "-F"]).arg(&image).succeed()?;
                let options = format!("uid={},gid={},umask=022{options}", owner.uid, owner.gid);
                // Mounts the image itself and stays as its server, in the background.
                let server = Run::new(program("ntfs-3g")?, None).arg(&image).arg(path).args(["-o", &options]);
                server.succeed()?;
                return Ok(Self { path: path.to_path_buf(), image: Some(image) });
            }
            _ => {
                let image = image(path, mib)?;
                let quiet: &[&str] = match kind {
                    // Half the inodes in bytes of data each: a small image holds many small files.
                    Kind::Ext4 => &["-q", "-F", "-i", "4096"],
                    _ => &["-q"],
                };
                let tool = program(&format!("mkfs.{}", kind.name()))?;
                Run::new(tool, None).args(quiet).arg(&image).succeed()?;
                let options = format!("loop{}{options}", if options.is_empty() { "" } else { "," });
                mount(&["-t", kind.name(), "-o", &options, &image.to_string_lossy()], path)?;
                Some(image)
            }
        };
        let mounted = Self { path: path.to_path_buf(), image };
        std::fs::set_permissions(path, Permissions::from_mode(0o755))?;
        let lost = path.join("lost+found");
        if lost.is_dir() {
            std::fs::remove_dir(lost)?;
        }
        scratch::give(path, owner)?;
        Ok(mounted)
    }

    /// Mounts it again with other options, such as `ro`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remount(&self, options: &str) -> Checked {
        Run::new(program("mount")?, None)
            .args(["-o", &format!("remount,{options}")])
            .arg(&self.path)
            .succeed()
            .map(drop)
    }

    /// Stops every write to it (fsfreeze(8)) until the answer is dropped: a disk that takes its time, however fast the
    /// one below is.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn freeze(&self) -> Checked<Frozen<'_>> {
        Run::new(program("fsfreeze")?, None).arg("--freeze").arg(&self.path).succeed()?;
        Ok(Frozen(self))
    }
}

/// A file system that takes no writes. Goes on when dropped.
#[derive(Debug)]
pub struct Frozen<'a>(&'a Mount);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // Whoever writes would wait for good, and the test's own time limit says so.
        let _ = std::process::Command::new("fsfreeze").arg("--unfreeze").arg(&self.0.path).status();
    }
}

/// A file system that never answers: FUSE (fuse(4)) whose server does not even take the first request, as a server that
/// hangs does not. Whoever looks below it waits until this is dropped.
#[derive(Debug)]
pub struct Hung {
    path: PathBuf,
    /// Closing it fails every request with ENOTCONN.
    server: Option<File>,
}

impl Hung {
    /// Mounts it on `path`, a directory to be made. `None` where the kernel has no FUSE.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn new(path: &Path) -> Checked<Option<Self>> {
        let server = match File::options().read(true).write(true).open("/dev/fuse") {
            Ok(server) => server,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        std::fs::create_dir(path)?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", server.as_raw_fd());
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("hung", path, "fuse", flags, CString::new(options)?.as_c_str())?;
        Ok(Some(Self { path: path.to_path_buf(), server: Some(server) }))
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        drop(self.server.take());
        // Nobody is left to tell; the test's directory is removed with what lies in it.
        let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH);
    }
}

/// A file of `mib` MiB beside `path`, to make a file system in.
fn image(path: &Path, mib: u64) -> Checked<PathBuf> {
    let image = path.with_extension("img");
    File::create(&image)?.set_len(mib * 1024 * 1024)?;
    Ok(image)
}

fn mount(arguments: &[&str], path: &Path) -> Checked {
    Run::new(program("mount")?, None).args(arguments).arg(path).succeed().map(drop)
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A process that still writes keeps it busy for a moment; after that it goes when the last user goes.
        for last in [false, false, false, true] {
            let mut command = std::process::Command::new("umount");
            if last {
                command.arg("--lazy");
            }
            let done = command.arg(&self.path).stderr(std::process::Stdio::null()).status();
            if done.is_ok_and(|status| status.success()) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        if let Some(image) = &self.image {
            let _ = std::fs::remove_file(image);
        }
    }
}
