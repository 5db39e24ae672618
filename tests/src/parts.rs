//! The processes of a session that runs, and how far it is.

use crate::Way;
use escp_testkit::run::{Run, wait_until};
use escp_testkit::users::User;
use escp_testkit::{Checked, Trouble, World, processes, tree};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a session may take to get under way on a busy machine.
const START: Duration = Duration::from_secs(30);

/// A part of a session that has a process of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The `escp` that the user typed.
    Cli,
    /// The ssh that it started.
    Ssh,
    /// `escp --server`.
    FarAgent,
    /// The worker of the near host's daemon.
    NearWorker,
    /// The worker of the far host's daemon.
    FarWorker,
    /// The near host's daemon.
    NearBroker,
    /// The far host's daemon.
    FarBroker,
}

impl Part {
    /// Its process id in the one session of `world`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(self, world: &World) -> Checked<u32> {
        let of = |user: &User, word: &str, not: &str| {
            world.leftovers().into_iter().find(|process| {
                let mut words = process.command.split(' ');
                let program = words.next().unwrap_or_default();
                program.rsplit('/').next() == Some(word)
                    && !words.any(|word| word == not)
                    && processes::status(process.pid, "Uid")
                        .is_ok_and(|line| line.starts_with(&format!("{}\t", user.uid)))
            })
        };
        let daemon = |near: bool| if near { &world.near_daemon } else { &world.far_daemon };
        let found = match self {
            Self::Cli => of(&world.users.near, "escp", "--server").map(|process| process.pid),
            Self::Ssh => of(&world.users.near, "ssh", "").map(|process| process.pid),
            Self::FarAgent => of(&world.users.far, "escp", "").map(|process| process.pid),
            Self::NearWorker | Self::FarWorker => {
                let daemon = daemon(self == Self::NearWorker).as_ref();
                daemon.and_then(|daemon| daemon.workers().first().copied())
            }
            Self::NearBroker | Self::FarBroker => {
                daemon(self == Self::NearBroker).as_ref().map(escp_testkit::daemon::Daemon::pid)
            }
        };
        found.ok_or_else(|| Trouble::new(format!("no {self:?} runs: {:#?}", world.leftovers())))
    }
}

/// Temporary files in a directory.
///
/// # Errors
/// When it cannot be read.
pub fn temporaries(directory: &Path) -> Checked<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(".escp-") {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Waits until bytes of a (random) file have reached the receiver's disk below `directory`.
///
/// # Errors
/// When none do in half a minute.
pub fn wait_until_moving(directory: &Path) -> Checked {
    let moving = |path: PathBuf| {
        let Ok(file) = std::fs::File::open(path) else { return false };
        let size = file.metadata().map_or(0, |meta| meta.len());
        let mut piece = [0; 4096];
        (0..size.div_ceil(tree::MIB)).any(|block| {
            file.read_at(&mut piece, block * tree::MIB)
                .is_ok_and(|length| piece[..length].iter().any(|&b| b != 0))
        })
    };
    wait_until("bytes to arrive", START, || {
        temporaries(directory).is_ok_and(|found| found.into_iter().any(moving))
    })
}

/// A program for `-D` that runs the real one behind other words, such as `strace -f`.
///
/// # Errors
/// When it cannot be written.
pub fn far_program(world: &World, words: &str) -> Checked<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let path = world.scratch.path().join("far-escp");
    let program = world.programs.join("escp");
    std::fs::write(&path, format!("#!/bin/sh\nexec {words} {} \"$@\"\n", program.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// As [`Way::escp`], where both hosts' escp run behind other words.
///
/// # Errors
/// When the far side's program cannot be written.
pub fn both_behind<'a>(
    world: &'a World,
    way: Way,
    wrapper: (&str, &[&str]),
    flags: &[&str],
    file: (&str, &str),
) -> Checked<Run<'a>> {
    let (program, words) = wrapper;
    let far = far_program(world, &format!("{program} {}", words.join(" ")))?;
    let run = world.escp_with(&far).args(flags);
    let run = way.operands(world, run, &[file.0], file.1);
    Ok(run.under(program, words).network(&world.near_network).as_user(&world.users.near))
}
