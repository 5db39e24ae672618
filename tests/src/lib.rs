//! What the whole-program tests share: a copy in either direction between the two hosts of a world.

pub mod calls;
pub mod parts;

use escp_testkit::run::{Outcome, Run};
use escp_testkit::{Checked, Host, World, compare};
use std::path::PathBuf;

/// Which way file data flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the near host to the far one.
    Up,
    /// From the far host to the near one.
    Down,
}

impl Way {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Up, Self::Down];

    /// The directory of the sending user.
    #[must_use]
    pub fn source(self, world: &World) -> PathBuf {
        if self == Self::Up { world.near.clone() } else { world.far.clone() }
    }

    /// The directory of the receiving user.
    #[must_use]
    pub fn target(self, world: &World) -> PathBuf {
        if self == Self::Up { world.far.clone() } else { world.near.clone() }
    }

    /// A command line of escp that copies `sources` (paths below the sender's directory) to `target` (below
    /// the receiver's); `flags` come first.
    #[must_use]
    pub fn escp<'a>(self, world: &'a World, flags: &[&str], sources: &[&str], target: &str) -> Run<'a> {
        self.operands(world, world.escp().args(flags), sources, target)
    }

    /// The same for scp.
    #[must_use]
    pub fn scp<'a>(self, world: &'a World, flags: &[&str], sources: &[&str], target: &str) -> Run<'a> {
        self.operands(world, world.scp().args(flags), sources, target)
    }

    /// Adds sources and target to a command line.
    #[must_use]
    pub fn operands<'a>(self, world: &World, mut run: Run<'a>, sources: &[&str], target: &str) -> Run<'a> {
        let near = |below: &str| world.near.join(below).into_os_string();
        let far = |below: &str| world.remote(below).into();
        for source in sources {
            run = run.arg(if self == Self::Up { near(source) } else { far(source) });
        }
        run.arg(if self == Self::Up { far(target) } else { near(target) })
    }
}

/// Makes everything below both users' directories theirs.
///
/// # Errors
/// The file system's.
pub fn settle(world: &World) -> Checked {
    world.own_near()?;
    world.own_far()
}

/// Engines of both hosts.
pub const PAIRS: [(Host, Host); 4] = [
    (Host::Embedded, Host::Embedded),
    (Host::Daemon, Host::Daemon),
    (Host::Daemon, Host::Embedded),
    (Host::Embedded, Host::Daemon),
];

/// Copies `source` with `flags` and insists that it arrived whole as `target` and that nothing else is left.
///
/// # Errors
/// When escp fails or the trees differ.
#[track_caller]
pub fn copy_and_compare(
    world: &World,
    way: Way,
    flags: &[&str],
    source: &str,
    target: &str,
) -> Checked<Outcome> {
    let outcome = way.escp(world, flags, &[source], target).succeed()?;
    compare::same(&way.source(world).join(source), &way.target(world).join(target))?;
    Ok(outcome)
}
