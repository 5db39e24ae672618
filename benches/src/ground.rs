//! Where the measuring happens: a world with daemons on both ends, and a place on tmpfs and one on a disk.

use crate::args::MeasureArgs;
use crate::machine::Group;
use escp_testkit::scratch::give;
use escp_testkit::wan::{self, Link};
use escp_testkit::{Checked, Host, Plan, Trouble, World};
use std::fs::Permissions;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// Directories that this instrument makes begin with it, and go on with its process id.
const PREFIX: &str = "escp-bench-";
/// `f_type` of tmpfs (linux/magic.h).
const TMPFS: i64 = 0x0102_1994;
/// Bytes that escpd.service lets a daemon lock, and an ordinary shell does not.
const MEMORY_LOCK: u64 = 16 << 30;

/// On what a workload's files lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Medium {
    Tmpfs,
    Disk,
    /// There are no files.
    None,
}

impl Medium {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tmpfs => "tmpfs",
            Self::Disk => "disk",
            Self::None => "",
        }
    }
}

/// A directory for each user on one medium.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) near: PathBuf,
    pub(crate) far: PathBuf,
    _directory: TempDir,
}

/// Everything a measurement stands on.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) world: World,
    pub(crate) group: Option<Arc<Group>>,
    /// This program, where every user can run it.
    pub(crate) instrument: PathBuf,
    tmpfs: Place,
    disk: Place,
}

impl Ground {
    /// Starts the world, whose hosts share a network or have `distance` between them, and makes the places.
    /// The caller is in `group` already, and so is what is started here.
    pub(crate) fn lay(
        args: &MeasureArgs,
        group: Option<Arc<Group>>,
        distance: Option<Link>,
    ) -> Checked<Self> {
        let plan = Plan::new(Host::Daemon, Host::Daemon);
        let plan = match distance {
            Some(link) => plan.over(link),
            None => plan,
        };
        let world = with_memory_lock(|| plan.start())?;
        let instrument = world.scratch.path().join("escp-bench");
        std::fs::copy(std::env::current_exe()?, &instrument)?;
        std::fs::set_permissions(&instrument, Permissions::from_mode(0o755))?;
        let tmpfs = Place::make(&args.tmpfs, &world)?;
        let disk = Place::make(&args.disk, &world)?;
        if !is_tmpfs(&args.tmpfs)? {
            return Err(Trouble::new(format!("{} is no tmpfs; name one with --tmpfs", args.tmpfs.display())));
        }
        if is_tmpfs(&args.disk)? {
            return Err(Trouble::new(format!("{} is a tmpfs; name a disk with --disk", args.disk.display())));
        }
        Ok(Self { world, group, instrument, tmpfs, disk })
    }

    /// The directories on a medium.
    pub(crate) fn place(&self, medium: Medium) -> &Place {
        if medium == Medium::Disk { &self.disk } else { &self.tmpfs }
    }

    /// Where the near host reaches the far one.
    pub(crate) fn address(&self) -> Ipv4Addr {
        if self.world.wan.is_some() { wan::FAR } else { Ipv4Addr::LOCALHOST }
    }

    /// Process ids of the daemons.
    pub(crate) fn daemons(&self) -> Vec<u32> {
        self.world.daemons().map(escp_testkit::daemon::Daemon::pid).collect()
    }

    /// Hands what was made in a near directory to its user.
    pub(crate) fn own(&self, path: &Path) -> Checked {
        give(path, &self.world.users.near)
    }
}

impl Place {
    fn make(base: &Path, world: &World) -> Checked<Self> {
        remove_abandoned(base);
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let directory = tempfile::Builder::new()
            .prefix(&prefix)
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in(base)
            .map_err(|error| Trouble::new(format!("{}: {error}", base.display())))?;
        let make = |name: &str, user| -> Checked<PathBuf> {
            let path = directory.path().join(name);
            std::fs::create_dir(&path)?;
            give(&path, user)?;
            Ok(path)
        };
        let near = make("near", &world.users.near)?;
        let far = make("far", &world.users.far)?;
        Ok(Self { near, far, _directory: directory })
    }
}

/// What `work` starts may lock as much memory as the service; what is started later may not.
pub(crate) fn with_memory_lock<T>(work: impl FnOnce() -> Checked<T>) -> Checked<T> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let usual = getrlimit(Resource::Memlock);
    if usual.maximum.is_some_and(|maximum| maximum < MEMORY_LOCK) {
        let _ =
            setrlimit(Resource::Memlock, Rlimit { current: Some(MEMORY_LOCK), maximum: Some(MEMORY_LOCK) });
    }
    let made = work();
    let _ = setrlimit(Resource::Memlock, usual);
    made
}

/// Removes what a run left that was killed: gigabytes of memory, on tmpfs.
fn remove_abandoned(base: &Path) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok());
        if pid.is_some_and(|pid: u32| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn is_tmpfs(path: &Path) -> Checked<bool> {
    Ok(rustix::fs::statfs(path)?.f_type == TMPFS)
}

/// Writes back what is dirty and forgets what is cached.
pub(crate) fn drop_caches() -> Checked {
    rustix::fs::sync();
    Ok(std::fs::write("/proc/sys/vm/drop_caches", "3")?)
}
