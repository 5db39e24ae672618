//! For tests only: real users, a real sshd, real daemons, file systems, and faults on the way between them.
//!
//! A test makes a [`World`]: two hosts that share this machine's kernel, each with a user, a private
//! directory and, where asked for, a running `escpd`; between them a real sshd with throwaway keys. Every
//! world has a network namespace and a directory of its own, so tests run beside each other, and all of it
//! goes when the value is dropped.
//!
//! Most of it needs root. Tests begin with [`need_root!`] and say so visibly where they cannot run.

pub mod clock;
pub mod compare;
pub mod daemon;
pub mod interruption;
pub mod lock;
pub mod mount;
pub mod network;
pub mod processes;
pub mod programs;
pub mod proxy;
pub mod run;
pub mod scratch;
pub mod sshd;
pub mod stalling;
pub mod terminal;
pub mod tree;
mod trouble;
pub mod users;
pub mod wan;
mod world;

pub use trouble::{Checked, Trouble};
pub use world::{FAR_PORTS, Host, NEAR_PORTS, Plan, World};

use std::io::Write;

/// Tells the person who runs the tests that a test did not run, and why.
///
/// The line goes to standard error and, because test runners hide what a passing test prints, is appended to
/// the file that `$ESCP_SKIP_LOG` names.
pub fn say_skipped(test: &str, why: &str) {
    let line = format!("SKIP {test}: {why}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("ESCP_SKIP_LOG")
        && let Ok(mut file) = std::fs::OpenOptions::new().append(true).open(path)
    {
        let _ = file.write_all(line.as_bytes());
    }
}

/// The name of the running test: the test harness names its thread after it.
#[must_use]
pub fn test_name() -> String {
    std::thread::current().name().unwrap_or("a test").to_owned()
}

/// Leaves a test that returns [`Checked`] with a visible line that says why it did not run.
#[macro_export]
macro_rules! skip {
    ($($why:tt)+) => {{
        $crate::say_skipped(&$crate::test_name(), &format!($($why)+));
        return Ok(());
    }};
}

/// Skips a test visibly unless it runs as root.
#[macro_export]
macro_rules! need_root {
    () => {
        if !$crate::users::is_root() {
            $crate::skip!("needs root (users, mounts, network namespaces)");
        }
    };
}

/// Skips a test visibly where a program is not installed.
#[macro_export]
macro_rules! need_program {
    ($name:literal) => {
        if $crate::run::program($name).is_err() {
            $crate::skip!("{} is not installed", $name);
        }
    };
}

/// Skips a test visibly where there can be no [`wan::Wan`].
#[macro_export]
macro_rules! need_wan {
    () => {
        if let Some(why) = $crate::wan::missing() {
            $crate::skip!("{why}");
        }
    };
}

/// Fails a test that returns [`Checked`] with a formatted text unless a condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::Trouble::new(format!($($text)+)));
        }
    };
}
