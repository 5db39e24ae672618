//! The error of a test's own machinery.

use std::fmt;
use std::panic::Location;

/// What a test returns.
pub type Checked<T = ()> = Result<T, Trouble>;

/// Why a test could not be carried out, or what it found, with the place in the source.
pub struct Trouble(String);

impl Trouble {
    /// A finding in the test's own words.
    #[track_caller]
    #[must_use]
    pub fn new(text: impl fmt::Display) -> Self {
        Self(format!("{text}\n    at {}", Location::caller()))
    }
}

impl<E: std::error::Error> From<E> for Trouble {
    #[track_caller]
    fn from(error: E) -> Self {
        Self::new(error)
    }
}

// A test that returns an error prints it with Debug.
impl fmt::Debug for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
