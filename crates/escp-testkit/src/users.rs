//! Real unprivileged users, made once per machine and kept.

use crate::clock::Stopwatch;
use crate::{Checked, Trouble, lock};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// A user of the system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Home directory.
    pub home: PathBuf,
}

/// Who takes part in a transfer.
#[derive(Debug, Clone)]
pub struct Users {
    /// Runs the CLI.
    pub near: User,
    /// Logs in on the far side.
    pub far: User,
    /// Runs the daemons; may reach nobody's files.
    pub daemon: User,
    /// Has nothing to do with the transfer.
    pub stranger: User,
}

const NEAR: &str = "escp-alice";
const FAR: &str = "escp-bob";
const DAEMON: &str = "escp-daemon";
const STRANGER: &str = "escp-mallory";

/// Whether this process runs as root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The users, made if they are not there yet; they stay.
///
/// # Errors
/// When one cannot be made.
pub fn users() -> Checked<Users> {
    let _one_at_a_time = lock::hold("users")?;
    let mark = mark()?;
    if mark.exists() {
        std::fs::remove_file(mark)?;
    }
    all()
}

/// The users, for a task that leaves nothing behind: [`give_back`] removes those that are not there yet, or that
/// an earlier such task could not give back.
///
/// # Errors
/// When one cannot be made.
pub fn borrow() -> Checked<Users> {
    let _one_at_a_time = lock::hold("users")?;
    let mut there = false;
    for name in [NEAR, FAR, DAEMON, STRANGER] {
        there |= find(name)?.is_some();
    }
    if !there {
        std::fs::write(mark()?, "")?;
    }
    all()
}

/// Removes users that were made by [`borrow`], with their homes, unless a test has come to use them since.
///
/// # Errors
/// When one cannot be removed.
pub fn give_back() -> Checked {
    let _one_at_a_time = lock::hold("users")?;
    let mark = mark()?;
    if !mark.exists() {
        return Ok(());
    }
    for name in [NEAR, FAR, DAEMON, STRANGER] {
        remove(name)?;
    }
    Ok(std::fs::remove_file(mark)?)
}

/// Lies there as long as the users are to be removed.
fn mark() -> Checked<PathBuf> {
    Ok(lock::shared_directory()?.join("users-are-borrowed"))
}

fn all() -> Checked<Users> {
    Ok(Users { near: user(NEAR)?, far: user(FAR)?, daemon: user(DAEMON)?, stranger: user(STRANGER)? })
}

fn remove(name: &str) -> Checked {
    let start = Stopwatch::start();
    while find(name)?.is_some() {
        let done = Command::new("userdel").args(["--remove", name]).output()?;
        // A process of the user's may not have ended yet.
        if start.elapsed() > Duration::from_secs(20) {
            return Err(Trouble::new(format!("userdel {name}: {}", String::from_utf8_lossy(&done.stderr))));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn user(name: &str) -> Checked<User> {
    if let Some(user) = find(name)? {
        return Ok(user);
    }
    // '*' as the password: no password fits, and unlike useradd's '!' the account is not locked, which sshd
    // without PAM would refuse.
    let made = Command::new("useradd")
        .args(["--create-home", "--shell", "/bin/sh", "--password", "*", "--user-group", name])
        .output()?;
    if !made.status.success() {
        return Err(Trouble::new(format!("useradd {name}: {}", String::from_utf8_lossy(&made.stderr))));
    }
    find(name)?.ok_or_else(|| Trouble::new(format!("useradd made no {name}")))
}

/// The user this process runs as.
///
/// # Errors
/// When the user database does not know it.
pub fn current() -> Checked<User> {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let passwd = std::fs::read_to_string("/etc/passwd")?;
    let name = passwd
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)? == uid).then_some(name)
        })
        .ok_or_else(|| Trouble::new(format!("/etc/passwd knows no user {uid}")))?;
    find(name)?.ok_or_else(|| Trouble::new("the user is gone"))
}

/// Looks a user up by name.
///
/// # Errors
/// When the user database cannot be read.
pub fn find(name: &str) -> Checked<Option<User>> {
    let passwd = std::fs::read_to_string("/etc/passwd")?;
    Ok(passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let mut fields = fields.skip(1);
        Some(User {
            name: name.to_owned(),
            uid: fields.next()?.parse().ok()?,
            gid: fields.next()?.parse().ok()?,
            home: fields.nth(1)?.into(),
        })
    }))
}
