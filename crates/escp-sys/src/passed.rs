//! Checks on a descriptor that another process passed.
//!
//! A passed descriptor may refer to anything, on any file system, a hung one included. So: its flags first
//! (answered without the file system), then one statx(2) that asks no server, and never a size from it.

use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags};
use std::fmt;
use std::io;
use std::os::fd::AsFd;

/// What the descriptor is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Writing.
    Write,
}

/// Why a passed descriptor is refused.
#[derive(Debug)]
pub enum Refused {
    /// Opened with O_PATH: no I/O is possible.
    PathOnly,
    /// Opened with O_APPEND: offsets would be ignored.
    Append,
    /// Not opened for what it is wanted for.
    WrongAccess(Access),
    /// Not a regular file.
    NotRegular(FileType),
    /// The kernel refused to tell.
    Kernel(io::Error),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PathOnly => f.write_str("the descriptor is O_PATH"),
            Self::Append => f.write_str("the descriptor is O_APPEND"),
            Self::WrongAccess(Access::Read) => f.write_str("the descriptor is not readable"),
            Self::WrongAccess(Access::Write) => f.write_str("the descriptor is not writable"),
            Self::NotRegular(kind) => write!(f, "the descriptor is a {kind:?}, not a regular file"),
            Self::Kernel(error) => write!(f, "the descriptor cannot be examined: {error}"),
        }
    }
}

/// Checks a passed descriptor and tells whether it is O_DIRECT.
///
/// # Errors
/// [`Refused`], with the reason.
pub fn check(descriptor: impl AsFd, access: Access) -> Result<bool, Refused> {
    let flags = rustix::fs::fcntl_getfl(&descriptor).map_err(|e| Refused::Kernel(e.into()))?;
    if flags.contains(OFlags::PATH) {
        return Err(Refused::PathOnly);
    }
    if flags.contains(OFlags::APPEND) {
        return Err(Refused::Append);
    }
    let mode = flags & OFlags::RWMODE;
    let wanted = match access {
        Access::Read => OFlags::RDONLY,
        Access::Write => OFlags::WRONLY,
    };
    if mode != wanted && mode != OFlags::RDWR {
        return Err(Refused::WrongAccess(access));
    }
    let status =
        rustix::fs::statx(&descriptor, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE)
            .map_err(|e| Refused::Kernel(e.into()))?;
    match FileType::from_raw_mode(status.stx_mode.into()) {
        FileType::RegularFile => Ok(flags.contains(OFlags::DIRECT)),
        kind => Err(Refused::NotRegular(kind)),
    }
}

/// Takes O_DIRECT off a descriptor's open file description.
///
/// # Errors
/// Those of fcntl(2).
pub fn clear_direct(descriptor: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&descriptor)?;
    rustix::fs::fcntl_setfl(&descriptor, flags - OFlags::DIRECT)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    fn open(flags: OFlags) -> OwnedFd {
        let path = std::env::temp_dir().join(format!("escp-passed-{}", std::process::id()));
        std::fs::write(&path, b"x").unwrap();
        let opened = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).unwrap();
        std::fs::remove_file(&path).unwrap();
        opened
    }

    #[test]
    fn regular_files_of_the_right_mode_pass() {
        assert!(!check(open(OFlags::RDONLY), Access::Read).unwrap());
        assert!(!check(open(OFlags::RDWR), Access::Write).unwrap());
    }

    #[test]
    fn everything_else_is_refused() {
        let refuse = |fd: OwnedFd, access| check(fd, access).unwrap_err().to_string();
        assert!(refuse(open(OFlags::PATH), Access::Read).contains("O_PATH"));
        assert!(refuse(open(OFlags::WRONLY | OFlags::APPEND), Access::Write).contains("O_APPEND"));
        assert!(refuse(open(OFlags::WRONLY), Access::Read).contains("not readable"));
        assert!(refuse(open(OFlags::RDONLY), Access::Write).contains("not writable"));
        let directory = rustix::fs::open("/", OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
        assert!(refuse(directory, Access::Read).contains("Directory"));
        let null = rustix::fs::open("/dev/null", OFlags::RDWR, rustix::fs::Mode::empty()).unwrap();
        assert!(refuse(null, Access::Write).contains("CharacterDevice"));
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert!(refuse(reader, Access::Read).contains("Fifo"));
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(refuse(socket.into(), Access::Read).contains("Socket"));
    }

    #[test]
    fn o_direct_is_seen_and_can_be_cleared() {
        let path = std::env::current_dir().unwrap().join(format!("direct-{}", std::process::id()));
        std::fs::write(&path, b"x").unwrap();
        let opened = rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECT, rustix::fs::Mode::empty());
        std::fs::remove_file(&path).unwrap();
        let Ok(file) = opened else {
            let why = "O_DIRECT is refused by the file system here";
            return escp_testkit::say_skipped(&escp_testkit::test_name(), why);
        };
        assert!(check(&file, Access::Read).unwrap());
        clear_direct(&file).unwrap();
        assert!(!check(&file, Access::Read).unwrap());
    }
}
