//! What became of the files of a session.

/// Names of failed files that are kept; beyond it they are only counted.
pub const MAX_KEPT: usize = 1000;

/// A file (or directory) that did not arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedFile {
    /// Host it failed on, empty for this one.
    pub host: String,
    /// Path as the user would write it, raw bytes.
    pub path: Vec<u8>,
    /// What and why.
    pub text: String,
    /// Data was altered: exit status 5.
    pub integrity: bool,
}

/// Results of a session, bounded whatever the number of files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Files verified and published.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Directories made or found.
    pub directories: u64,
    /// The first [`MAX_KEPT`] failures.
    pub kept: Vec<FailedFile>,
    /// All failures.
    pub failed: u64,
    /// Whether any failure was one of integrity.
    pub integrity: bool,
}

impl Tally {
    /// Records a failure.
    pub fn fail(&mut self, failure: FailedFile) {
        self.failed += 1;
        self.integrity |= failure.integrity;
        if self.kept.len() < MAX_KEPT {
            self.kept.push(failure);
        }
    }

    /// Adds the results of another session.
    pub fn add(&mut self, other: Self) {
        self.files += other.files;
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.directories += other.directories;
        self.failed += other.failed;
        self.integrity |= other.integrity;
        let room = MAX_KEPT.saturating_sub(self.kept.len());
        self.kept.extend(other.kept.into_iter().take(room));
    }

    /// The exit status these results call for: 5, 1 or 0.
    #[must_use]
    pub fn status(&self) -> u8 {
        match (self.integrity, self.failed) {
            (true, _) => 5,
            (false, 0) => 0,
            (false, _) => 1,
        }
    }
}
