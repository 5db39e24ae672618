//! One at a time, across processes.

use crate::{Checked, Trouble};
use rustix::process::geteuid;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
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
/// When it cannot be made, or when another user could put programs into it that this one would run.
pub fn shared_directory() -> Checked<PathBuf> {
    let path = PathBuf::from(DIRECTORY);
    match DirBuilder::new().mode(0o755).create(&path) {
        // The umask may have narrowed it.
        Ok(()) => std::fs::set_permissions(&path, Permissions::from_mode(0o755))?,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error.into()),
    }
    nobody_else_writes(&path)?;
    Ok(path)
}

/// Insists on a directory that belongs to root or to this user, and that nobody else may write to.
fn nobody_else_writes(path: &Path) -> Checked {
    let meta = path.symlink_metadata()?;
    let (owner, mode) = (meta.uid(), meta.mode() & 0o7777);
    if meta.is_dir() && (owner == 0 || owner == geteuid().as_raw()) && mode & 0o022 == 0 {
        return Ok(());
    }
    let kind = if meta.is_dir() { "a directory" } else { "no directory" };
    Err(Trouble::new(format!(
        "{} is {kind} of user {owner} with mode {mode:o}: programs that are run from there could be replaced by others; \
         see whose it is, and remove it",
        path.display()
    )))
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

#[cfg(test)]
mod tests {
    use super::nobody_else_writes;
    use crate::{Checked, Trouble, ensure};
    use std::fs::{Permissions, create_dir, set_permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    #[test]
    fn a_directory_that_others_could_fill_is_refused() -> Checked {
        let scratch = crate::scratch::Scratch::new()?;
        let (path, link) = (scratch.path().join("shared"), scratch.path().join("link"));
        create_dir(&path)?;
        symlink(&path, &link)?;
        for (mode, good) in [(0o755, true), (0o700, true), (0o775, false), (0o757, false), (0o1777, false)] {
            set_permissions(&path, Permissions::from_mode(mode))?;
            ensure!(nobody_else_writes(&path).is_ok() == good, "{mode:o}");
        }
        set_permissions(&path, Permissions::from_mode(0o755))?;
        let why = nobody_else_writes(&link).err().ok_or_else(|| Trouble::new("a link was trusted"))?;
        ensure!(format!("{why:?}").contains("is no directory of user"), "{why:?}");
        ensure!(nobody_else_writes(&scratch.path().join("absent")).is_err(), "nothing was trusted");
        if crate::users::is_root() {
            chown(&path, Some(64_993), None)?;
            ensure!(nobody_else_writes(&path).is_err(), "another user's was trusted");
        }
        Ok(())
    }
}
