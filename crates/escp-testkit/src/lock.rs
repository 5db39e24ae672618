//! One at a time, across processes.

use crate::Checked;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Directory for what test processes share.
const DIRECTORY: &str = "/tmp/escp-test-shared";

/// Held until dropped; the kernel releases it when the process dies.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// The directory that test processes share; readable by every user.
///
/// # Errors
/// When it cannot be made.
pub fn shared_directory() -> Checked<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let path = PathBuf::from(DIRECTORY);
    if !path.is_dir() {
        std::fs::create_dir_all(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    }
    Ok(path)
}

/// Waits for the lock called `name`.
///
/// # Errors
/// When the lock file cannot be opened.
pub fn hold(name: &str) -> Checked<Lock> {
    hold_at(&shared_directory()?.join(format!("{name}.lock")))
}

/// Waits for the lock at `path`.
///
/// # Errors
/// When the lock file cannot be opened.
pub fn hold_at(path: &Path) -> Checked<Lock> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o644).open(path)?;
    file.lock()?;
    Ok(Lock { _file: file })
}
