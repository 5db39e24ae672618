//! What became of a file's pages on their way to disk.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Waits for pages of a file that are being written, and says whether one of them was lost since the file was opened.
/// Starts nothing and flushes nothing: it is for files whose pages something else has written (`file_fdatawait_range` of
/// mm/filemap.c, which sync_file_range(2) calls with `SYNC_FILE_RANGE_WAIT_BEFORE`). As fsync(2), it reports a lost page
/// once.
///
/// # Errors
/// Those of sync_file_range(2).
pub fn wait(file: impl AsFd) -> io::Result<()> {
    // SAFETY: no memory is passed, and the descriptor is open for as long as the borrow.
    let result =
        unsafe { libc::sync_file_range(file.as_fd().as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WAIT_BEFORE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Write, pipe};

    #[test]
    fn a_file_that_is_well_says_so_and_a_pipe_cannot() {
        let path = std::env::temp_dir().join(format!("escp-writeback-{}", std::process::id()));
        let mut file = std::fs::File::create_new(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(b"x").unwrap();
        wait(&file).unwrap();
        let (pipe, _other) = pipe().unwrap();
        assert_eq!(wait(&pipe).unwrap_err().raw_os_error(), Some(libc::ESPIPE));
    }
}
