//! What can be wrong with a configuration, and where.

use std::fmt;
use std::path::{Path, PathBuf};

/// A configuration that cannot be used: which file, which line, which key, and why.
///
/// Its `Display` is one line, `FILE:LINE: KEY: REASON`, without what is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    file: Option<PathBuf>,
    line: Option<usize>,
    key: Option<String>,
    reason: String,
}

impl ConfigError {
    /// An error that belongs to no file yet.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self { file: None, line: None, key: None, reason: reason.into() }
    }

    /// Adds the key, such as `limits.sessions`.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Adds the line, counted from 1.
    #[must_use]
    pub fn line(mut self, line: Option<usize>) -> Self {
        self.line = line;
        self
    }

    /// Adds the file.
    #[must_use]
    pub fn file(mut self, file: &Path) -> Self {
        self.file = Some(file.to_path_buf());
        self
    }

    /// The line it was found in, counted from 1; `None` for problems of the file as a whole.
    #[must_use]
    pub fn line_number(&self) -> Option<usize> {
        self.line
    }

    /// The key it concerns.
    #[must_use]
    pub fn key_name(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// Why, without file, line and key.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            // A path may hold anything; what reaches a terminal or a log may not.
            write!(f, "{}", file.to_string_lossy().escape_debug())?;
            if let Some(line) = self.line {
                write!(f, ":{line}")?;
            }
            f.write_str(": ")?;
        }
        if let Some(key) = &self.key {
            write!(f, "{}: ", key.escape_debug())?;
        }
        f.write_str(&self.reason)
    }
}
