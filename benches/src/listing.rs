//! What a tree holds, found once.

use escp_testkit::{Checked, Trouble};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The directories and files of a tree.
#[derive(Debug)]
pub(crate) struct Listing {
    /// Relative to the top, which is the first and has no name; each is behind the one it lies in.
    pub(crate) directories: Vec<PathBuf>,
    /// Those of one directory follow each other.
    pub(crate) files: Vec<Listed>,
}

/// A file of a tree.
#[derive(Debug)]
pub(crate) struct Listed {
    /// Which of the listing's directories it lies in.
    pub(crate) directory: usize,
    /// Its name there.
    pub(crate) name: OsString,
}

impl Listing {
    /// Looks at the tree below `top`, which holds nothing but directories and regular files.
    pub(crate) fn of(top: &Path) -> Checked<Self> {
        let mut listing = Self { directories: vec![PathBuf::new()], files: Vec::new() };
        let mut directory = 0;
        while let Some(inner) = listing.directories.get(directory).cloned() {
            let path = top.join(&inner);
            let entries =
                std::fs::read_dir(&path).map_err(|e| Trouble::new(format!("{}: {e}", path.display())))?;
            for entry in entries {
                let entry = entry?;
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    listing.directories.push(inner.join(entry.file_name()));
                } else if kind.is_file() {
                    listing.files.push(Listed { directory, name: entry.file_name() });
                } else {
                    let path = entry.path();
                    return Err(Trouble::new(format!("{}: no file and no directory", path.display())));
                }
            }
            directory += 1;
        }
        Ok(listing)
    }

    /// Where a file lies, relative to the top.
    pub(crate) fn path(&self, file: &Listed) -> PathBuf {
        self.directories.get(file.directory).map_or_else(PathBuf::new, |inner| inner.join(&file.name))
    }

    /// One of `count` shares of the files, neighbours together.
    pub(crate) fn share(&self, number: usize, count: usize) -> &[Listed] {
        let step = self.files.len().div_ceil(count.max(1)).max(1);
        self.files.chunks(step).nth(number).unwrap_or_default()
    }
}
