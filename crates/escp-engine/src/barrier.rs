//! One barrier for many small files: syncfs(2) for all of them instead of fdatasync(2) for each, for half of the time and
//! of the CPU time (docs/decisions/0004-durability-of-small-files.md).
//!
//! syncfs waits for everybody's data on the file system, and says of no file that it is the one that was lost. So it is
//! used where little of the host's memory waits for a disk, and each file is asked afterwards.

use crate::files::File;
use escp_sys::writeback;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::thread;

/// Threads that sync files one by one. Each waits for the disk nearly all the time, and the file system commits together
/// what they wait for.
pub(crate) const THREADS: usize = 8;
/// From so many files of a file system on; fewer are synced sooner by themselves.
const FROM: usize = 16;
/// Bytes of other people's data that files may come to wait for: a fraction of a second of a slow disk.
const OF_OTHERS: u64 = 256 << 20;
/// File systems on whose disk everything is after syncfs(2), by their magic numbers (statfs(2)): ext2 to ext4, XFS, btrfs,
/// F2FS. Others write pages out and leave it at that (FUSE), or wait for what other hosts have written.
const WITH_BARRIERS: [u64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010];

/// Makes files durable, several with one call where that can be. What became of each, in their order; a file without a
/// descriptor has nothing to lose.
pub(crate) fn sync(files: &[&File]) -> Vec<io::Result<()>> {
    let mut results: Vec<io::Result<()>> = files.iter().map(|_| Ok(())).collect();
    for (allowed, members) in by_file_system(files) {
        let descriptors: Vec<_> =
            members.iter().filter_map(|&index| files.get(index)?.descriptor()).collect();
        let bytes = members.iter().filter_map(|&index| files.get(index)).map(|file| file.spec().size).sum();
        let together = allowed && descriptors.len() >= FROM && is_quiet(bytes);
        let done = match descriptors.len() {
            _ if together => by_barrier(&descriptors),
            0..=2 => in_turn(&descriptors),
            _ => each(&descriptors),
        };
        for (index, result) in members.into_iter().zip(done) {
            if let Some(place) = results.get_mut(index) {
                *place = result;
            }
        }
    }
    results
}

/// The places of files on each file system, and whether it has barriers.
fn by_file_system(files: &[&File]) -> Vec<(bool, Vec<usize>)> {
    let mut places: BTreeMap<Option<u64>, (bool, Vec<usize>)> = BTreeMap::new();
    for (index, file) in files.iter().enumerate() {
        let Some(descriptor) = file.descriptor() else { continue };
        let device = (files.len() >= FROM).then(|| rustix::fs::fstat(descriptor).ok()).flatten();
        let device = device.map(|stat| stat.st_dev);
        let place = places
            .entry(device)
            .or_insert_with(|| (device.is_some() && has_barriers(descriptor), Vec::new()));
        place.1.push(index);
    }
    places.into_values().collect()
}

fn has_barriers(descriptor: BorrowedFd<'_>) -> bool {
    // Negative on some machines: only the low half counts.
    rustix::fs::fstatfs(descriptor).is_ok_and(|fs| WITH_BARRIERS.contains(&(fs.f_type as u64 & 0xffff_ffff)))
}

/// Whether little that is not ours waits for a disk: `bytes` are.
fn is_quiet(bytes: u64) -> bool {
    std::fs::read_to_string("/proc/meminfo").is_ok_and(|text| is_quiet_by(&text, bytes))
}

fn is_quiet_by(meminfo: &str, bytes: u64) -> bool {
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    let waiting =
        kib("Dirty").zip(kib("Writeback")).map(|(dirty, writeback)| dirty.saturating_add(writeback));
    waiting.is_some_and(|kib| kib.saturating_mul(1024) <= bytes.saturating_add(OF_OTHERS))
}

/// Syncs each file, several at a time.
fn each(descriptors: &[BorrowedFd<'_>]) -> Vec<io::Result<()>> {
    let share = descriptors.len().div_ceil(THREADS).max(2);
    thread::scope(|scope| {
        let start =
            |part| thread::Builder::new().name("escp-sync".into()).spawn_scoped(scope, move || in_turn(part));
        let parts: Vec<_> = descriptors.chunks(share).map(|part| (part, start(part))).collect();
        let ended = parts.into_iter().map(|(part, thread)| match thread {
            Ok(thread) => thread.join().unwrap_or_else(|_| {
                // Asking again might hear that all is well, after the error was said once.
                part.iter().map(|_| Err(io::Error::other("a thread that synced it broke down"))).collect()
            }),
            Err(_) => in_turn(part),
        });
        ended.flatten().collect()
    })
}

fn in_turn(descriptors: &[BorrowedFd<'_>]) -> Vec<io::Result<()>> {
    descriptors.iter().map(|descriptor| Ok(rustix::fs::fdatasync(descriptor)?)).collect()
}

fn by_barrier(descriptors: &[BorrowedFd<'_>]) -> Vec<io::Result<()>> {
    let Some((first, rest)) = descriptors.split_first() else { return Vec::new() };
    if let Err(error) = rustix::fs::syncfs(first) {
        // Whose data was lost, and whether it was ours, only each file can tell.
        tracing::debug!(%error, "a file system cannot be synced: each file is");
        return each(descriptors);
    }
    // Before Linux 5.17 syncfs did not say when the file system itself had failed; this always did.
    let first = rustix::fs::fdatasync(first);
    if first.is_err() {
        let results = each(rest).into_iter();
        return std::iter::once(first.map_err(io::Error::from)).chain(results).collect();
    }
    let asked = rest.iter().map(|descriptor| match writeback::wait(descriptor) {
        Err(error)
            if [Errno::INVAL, Errno::NOSYS].contains(&Errno::from_io_error(&error).unwrap_or(Errno::IO)) =>
        {
            Ok(rustix::fs::fdatasync(descriptor)?)
        }
        asked => asked,
    });
    std::iter::once(Ok(())).chain(asked).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_data_is_waited_for_only_if_it_is_little() {
        let memory = |dirty: u64, writeback: u64| {
            format!(
                "MemTotal:  1 kB\nDirty:   {dirty} kB\nWriteback:     {writeback} kB\nWritebackTmp: 9 kB\n"
            )
        };
        let limit = OF_OTHERS / 1024;
        assert!(is_quiet_by(&memory(0, 0), 0) && is_quiet_by(&memory(limit - 1, 1), 0));
        assert!(!is_quiet_by(&memory(limit, 1), 0) && is_quiet_by(&memory(limit, 1), 1024));
        assert!(!is_quiet_by(&memory(u64::MAX, u64::MAX), 0));
        assert!(!is_quiet_by("Dirty: 5 kB\n", 0) && !is_quiet_by("Dirty: x kB\nWriteback: 0 kB\n", 0));
    }
}
