//! A directory of a test's own.

use crate::Checked;
use crate::users::User;
use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// A directory that is removed with everything in it when dropped. `$ESCP_KEEP` keeps it, for looking into.
#[derive(Debug)]
pub struct Scratch {
    directory: tempfile::TempDir,
}

impl Scratch {
    /// Makes one that every user may enter. The path is short: Unix sockets lie in it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> Checked<Self> {
        let mut directory = tempfile::Builder::new().prefix("escp-").rand_bytes(6).tempdir_in("/tmp")?;
        directory.disable_cleanup(std::env::var_os("ESCP_KEEP").is_some());
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755))?;
        Ok(Self { directory })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Makes a directory in it that belongs to `owner`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn directory(&self, name: &str, owner: Option<&User>, mode: u32) -> Checked<PathBuf> {
        let path = self.path().join(name);
        std::fs::create_dir(&path)?;
        std::fs::set_permissions(&path, Permissions::from_mode(mode))?;
        if let Some(owner) = owner {
            give(&path, owner)?;
        }
        Ok(path)
    }
}

/// Makes `path`, and all below it, belong to `owner`. Links are not followed.
///
/// # Errors
/// When it cannot be walked or changed.
pub fn give(path: &Path, owner: &User) -> Checked {
    if !crate::users::is_root() {
        return Ok(());
    }
    let kind = path.symlink_metadata()?.file_type();
    if kind.is_symlink() {
        std::os::unix::fs::lchown(path, Some(owner.uid), Some(owner.gid))?;
        return Ok(());
    }
    chown(path, Some(owner.uid), Some(owner.gid))?;
    if kind.is_dir() {
        for entry in std::fs::read_dir(path)? {
            give(&entry?.path(), owner)?;
        }
    }
    Ok(())
}
