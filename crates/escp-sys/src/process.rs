//! What a process gives up and takes before it works.

use rustix::process::{DumpableBehavior, Pid, Resource, Rlimit, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets, CpuSet};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::sync::atomic::{AtomicBool, Ordering};

/// The first descriptor a service manager passes (sd_listen_fds(3)).
const FIRST_PASSED: RawFd = 3;
/// The most that are taken: far more than ports and sockets of one service.
const MAX_PASSED: i32 = 1024;

/// Keeps other processes of the same user out of this one: no core dump, no ptrace(2), and `/proc/PID`
/// belongs to root. An execve(2) undoes it.
///
/// # Errors
/// Those of prctl(2).
pub fn forbid_dumping() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Whether this process may be dumped.
///
/// # Errors
/// Those of prctl(2).
pub fn is_dumpable() -> io::Result<bool> {
    Ok(rustix::process::dumpable_behavior()? != DumpableBehavior::NotDumpable)
}

/// No program that this thread, or a thread or process it starts later, executes will gain a right by it.
///
/// # Errors
/// Those of prctl(2).
pub fn forbid_new_privileges() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// Gives up every capability of this thread and of what it starts later. The bounding set is emptied only
/// where the thread has the capability to do so (CAP_SETPCAP); with [`forbid_new_privileges`] it means
/// nothing any more.
///
/// # Errors
/// Those of capset(2) and prctl(2).
pub fn drop_capabilities() -> io::Result<()> {
    rustix::thread::clear_ambient_capability_set()?;
    // Ends with EINVAL past the kernel's last capability, or with EPERM at the first.
    (0..64).take_while(|number| drop_bounding(*number)).for_each(drop);
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

fn drop_bounding(number: libc::c_ulong) -> bool {
    // SAFETY: PR_CAPBSET_DROP takes one number and touches no memory.
    unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) == 0 }
}

/// Has the kernel send SIGKILL to this process when the thread that started it ends.
///
/// # Errors
/// `NotFound` when `parent`, the process id of whoever started this one, is not the parent any more: it
/// ended before the kernel knew. Those of prctl(2).
pub fn die_with_parent(parent: u32) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    if now.and_then(|pid| u32::try_from(pid).ok()) == Some(parent) {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::NotFound, "the process that started this one has ended"))
    }
}

/// Has the kernel send SIGTERM to the process that this command starts when the thread that starts it ends, however
/// that comes. Its own children do not inherit that.
pub fn terminate_with_parent(command: &mut std::process::Command) {
    let parent = rustix::process::getpid();
    let ask = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
        // It may have ended before the kernel knew.
        let alive = rustix::process::getppid() == Some(parent);
        if alive { Ok(()) } else { Err(io::Error::from(rustix::io::Errno::SRCH)) }
    };
    // SAFETY: between fork(2) and execve(2) this makes two system calls and allocates nothing.
    unsafe {
        command.pre_exec(ask);
    }
}

/// Raises the soft limit of open files to the hard one, and returns it.
///
/// # Errors
/// Those of setrlimit(2).
pub fn raise_descriptor_limit() -> io::Result<u64> {
    raise(Resource::Nofile)
}

/// Raises the soft limit of locked memory to the hard one, and returns it in bytes; `u64::MAX` is no limit.
///
/// # Errors
/// Those of setrlimit(2).
pub fn raise_locked_memory_limit() -> io::Result<u64> {
    raise(Resource::Memlock)
}

fn raise(resource: Resource) -> io::Result<u64> {
    let Rlimit { current, maximum } = rustix::process::getrlimit(resource);
    if current != maximum {
        rustix::process::setrlimit(resource, Rlimit { current: maximum, maximum })?;
    }
    Ok(maximum.unwrap_or(u64::MAX))
}

/// Marks every descriptor from `first` on to be closed by execve(2), whoever opened it.
///
/// # Errors
/// Those of close_range(2), which Linux has with this flag since 5.11.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: with CLOSE_RANGE_CLOEXEC the call closes nothing; it sets a flag on open descriptors.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes over the descriptors that the service manager passed, with their names, and marks them to be
/// closed on exec (sd_listen_fds(3)). Empty when there are none, they are not for this process, or they were
/// taken before. To be called at the start of the program, before anything else opens a descriptor.
#[must_use]
pub fn take_passed_descriptors() -> Vec<(OwnedFd, String)> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(std::process::id()) || TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let count = i32::try_from(number("LISTEN_FDS").unwrap_or(0)).unwrap_or(0).min(MAX_PASSED);
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').chain(std::iter::repeat(""));
    let passed = (FIRST_PASSED..FIRST_PASSED + count).zip(names);
    passed.filter_map(|(raw, name)| Some((take_open(raw)?, name.to_owned()))).collect()
}

fn take_open(raw: RawFd) -> Option<OwnedFd> {
    // SAFETY: F_SETFD on a number changes a flag of that descriptor or fails with EBADF.
    if unsafe { libc::fcntl(raw, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return None;
    }
    // SAFETY: it is open, and by the protocol of the environment variables, which name this very process,
    // it was opened before the program started and for it to take; `TAKEN` keeps it from being taken twice.
    Some(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Keeps this thread, and those it starts later, on these CPUs.
///
/// # Errors
/// `InvalidInput` when a number is beyond what the kernel counts, or none of them can be used; those of
/// sched_setaffinity(2).
pub fn run_on_cpus(cpus: &[u16]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        let cpu = usize::from(*cpu);
        if cpu >= CpuSet::MAX_CPU {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        set.set(cpu);
    }
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// Kills a process of this user at once (SIGKILL).
///
/// # Errors
/// `InvalidInput` when it is no process id; those of kill(2).
pub fn kill(pid: u32) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    Ok(rustix::process::kill_process(pid.ok_or(io::ErrorKind::InvalidInput)?, Signal::KILL)?)
}

/// This process's effective user.
#[must_use]
pub fn effective_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, AsRawFd};

    /// Runs one test of this binary again in a process of its own: what it changes cannot be undone.
    fn alone(name: &str, body: fn()) {
        if std::env::var_os("ESCP_SYS_ALONE").is_some_and(|value| value == name) {
            return body();
        }
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("process::tests::{name}"), "--nocapture"])
            .env("ESCP_SYS_ALONE", name)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn status(field: &str) -> String {
        let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim_start_matches(':').trim().to_owned()
    }

    #[test]
    fn privileges_are_gone_for_good() {
        alone("privileges_are_gone_for_good", || {
            forbid_dumping().unwrap();
            forbid_new_privileges().unwrap();
            drop_capabilities().unwrap();
            assert!(!is_dumpable().unwrap());
            assert_eq!(status("NoNewPrivs"), "1");
            for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
                assert_eq!(u64::from_str_radix(&status(set), 16).unwrap(), 0, "{set}");
            }
            if effective_uid() == 0 {
                assert_eq!(u64::from_str_radix(&status("CapBnd"), 16).unwrap(), 0);
            }
        });
    }

    #[test]
    fn limits_are_raised_to_the_hard_ones() {
        alone("limits_are_raised_to_the_hard_ones", || {
            let hard = rustix::process::getrlimit(Resource::Nofile).maximum;
            rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum: hard })
                .unwrap();
            assert_eq!(raise_descriptor_limit().unwrap(), hard.unwrap_or(u64::MAX));
            assert_eq!(rustix::process::getrlimit(Resource::Nofile).current, hard);
            raise_locked_memory_limit().unwrap();
        });
    }

    #[test]
    fn inherited_descriptors_close_on_exec() {
        alone("inherited_descriptors_close_on_exec", || {
            let (reader, _writer) = rustix::pipe::pipe().unwrap();
            let flags = || rustix::io::fcntl_getfd(reader.as_fd()).unwrap();
            assert!(!flags().contains(rustix::io::FdFlags::CLOEXEC));
            let above = u32::try_from(reader.as_raw_fd()).unwrap() + 1;
            close_on_exec_from(above).unwrap();
            assert!(!flags().contains(rustix::io::FdFlags::CLOEXEC));
            close_on_exec_from(above - 1).unwrap();
            assert!(flags().contains(rustix::io::FdFlags::CLOEXEC));
        });
    }

    #[test]
    fn a_parent_that_is_not_ours_is_noticed() {
        alone("a_parent_that_is_not_ours_is_noticed", || {
            let parent = rustix::process::getppid().unwrap().as_raw_nonzero().get();
            die_with_parent(u32::try_from(parent).unwrap()).unwrap();
            assert_eq!(die_with_parent(u32::MAX).unwrap_err().kind(), io::ErrorKind::NotFound);
        });
    }

    #[test]
    fn a_child_ends_with_the_thread_that_started_it() {
        let mut command = std::process::Command::new("sleep");
        command.arg("60");
        terminate_with_parent(&mut command);
        let mut child = std::thread::spawn(move || command.spawn().unwrap()).join().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGTERM));
    }

    #[test]
    fn affinity_can_be_narrowed_and_nonsense_is_refused() {
        alone("affinity_can_be_narrowed_and_nonsense_is_refused", || {
            run_on_cpus(&[0]).unwrap();
            assert_eq!(rustix::thread::sched_getaffinity(None).unwrap().count(), 1);
            assert!(run_on_cpus(&[u16::MAX]).is_err());
            assert!(run_on_cpus(&[]).is_err());
        });
    }
}
