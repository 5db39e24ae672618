//! What an agent hands in, checked before anything believes it.

use crate::files::{File, Known};
use crate::meter::Counter;
use crate::shared::Shared;
use escp_engine_api::{
    Direction, EngineKind, Extent, Failure, Fault, FileSpec, JobOptions, MAX_BATCH, MAX_BLOCK_SIZE,
    MAX_STREAMS, MIN_BLOCK_SIZE, Stage,
};
use escp_sys::passed::{self, Access};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Largest file, in bytes: what a file offset can hold (`off_t`).
const MAX_FILE_SIZE: u64 = i64::MAX as u64;

/// Checks a job's numbers.
pub(crate) fn check_options(options: &JobOptions) -> Result<(), Failure> {
    let wrong = if options.streams == 0 || options.streams > MAX_STREAMS {
        format!("{} streams: 1 to {MAX_STREAMS} are possible", options.streams)
    } else if !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&options.block_size)
        || !options.block_size.is_multiple_of(4096)
    {
        format!(
            "a block size of {}: a multiple of 4096 from {MIN_BLOCK_SIZE} to {MAX_BLOCK_SIZE} is possible",
            options.block_size
        )
    } else if !(2..=64).contains(&options.depth) {
        format!("{} blocks in flight per stream: 2 to 64 are possible", options.depth)
    } else {
        return Ok(());
    };
    Err(Failure { fault: Fault::Local, text: wrong })
}

/// Checks that a job's blocks in flight fit into a session's memory. Both sides have to agree about streams and block
/// size, so that a host that allows less can only refuse; of blocks in flight there are as many as fit.
pub(crate) fn check_memory(options: &JobOptions, memory: Option<u64>) -> Result<(), Failure> {
    const MIB: u64 = 1 << 20;
    let need = u64::from(options.streams) * u64::from(options.depth) * u64::from(options.block_size);
    match memory {
        Some(memory) if need > memory => {
            let text = format!(
                "{} data connections with {} blocks of {} KiB each take {} MiB, and limits.memory_per_session of \
                 escpd allows {} MiB: ask for fewer connections (-t) or smaller blocks (--blocksize)",
                options.streams,
                options.depth,
                options.block_size / 1024,
                need.div_ceil(MIB),
                memory / MIB
            );
            Err(Failure { fault: Fault::Local, text })
        }
        _ => Ok(()),
    }
}

/// Takes files over. One that cannot be is reported; the rest go on.
pub(crate) fn add_files(shared: &Arc<Shared>, files: Vec<(FileSpec, Option<Arc<OwnedFd>>)>) {
    if files.len() > MAX_BATCH {
        shared.fail(Fault::Local, format!("{} files in one batch, {MAX_BATCH} are possible", files.len()));
        return;
    }
    let mut over = Vec::new();
    for (spec, descriptor) in files {
        let accepted = accept(shared, &spec, descriptor.as_deref());
        let file = Arc::new(File::new(spec, descriptor));
        if !shared.files.add(&file) {
            shared.fail(Fault::Local, format!("file number {} came twice", spec.number));
            return;
        }
        match accepted {
            Err(text) => {
                shared.meter.add(Counter::ErrorsDisk, 1);
                file.fail(Stage::Accept, 0, text);
            }
            Ok(direct) if !direct || !direct_fits(shared, &spec) => shared.fall_back(&file),
            Ok(_) => {}
        }
        if file.settle_now() {
            over.push(file);
        }
    }
    shared.hand_on(over);
}

/// Whether a file is O_DIRECT if it wants to be, or why it cannot be taken over.
fn accept(shared: &Shared, spec: &FileSpec, descriptor: Option<&OwnedFd>) -> Result<bool, String> {
    if spec.size > MAX_FILE_SIZE {
        return Err(format!("{} bytes is more than a file can have", spec.size));
    }
    let access = match shared.options.direction {
        Direction::Send => Access::Read,
        Direction::Receive => Access::Write,
    };
    match (descriptor, shared.kind) {
        (_, EngineKind::Dummy) => Ok(true),
        (None, _) => Err("it came without a descriptor".into()),
        (Some(descriptor), _) => match passed::check(descriptor, access) {
            Ok(true) if spec.direct_alignment == 0 => {
                Err("it is O_DIRECT, and its alignment is not told".into())
            }
            Ok(direct) => Ok(direct || spec.direct_alignment == 0),
            Err(refused) => Err(refused.to_string()),
        },
    }
}

/// Whether blocks and buffers of this session are aligned enough for a file's O_DIRECT.
fn direct_fits(shared: &Shared, spec: &FileSpec) -> bool {
    let alignment = spec.direct_alignment;
    alignment == 0 || (alignment.is_power_of_two() && shared.options.block_size.is_multiple_of(alignment))
}

/// Puts extents on the plan.
pub(crate) fn schedule(shared: &Shared, extents: &[Extent]) {
    if shared.options.direction != Direction::Send {
        shared.fail(Fault::Local, "a receiving engine has nothing to schedule");
        return;
    }
    let mut planned = Vec::with_capacity(extents.len());
    for extent in extents {
        match shared.files.find(extent.file) {
            Known::File(file) => {
                let end = extent.offset.checked_add(extent.length);
                if extent.length == 0 || end.is_none_or(|end| end > file.spec().size) {
                    shared.fail(Fault::Local, format!("file {} has no such extent: {extent:?}", extent.file));
                    return;
                }
                planned.push((file, *extent));
            }
            Known::Dropped => {}
            Known::Unknown => {
                shared.fail(Fault::Local, format!("file {} was scheduled but never added", extent.file));
                return;
            }
        }
    }
    shared.plan.add(planned);
}

/// Gives files up.
pub(crate) fn drop_files(shared: &Shared, numbers: &[u64]) {
    for &number in numbers {
        if let Known::File(file) = shared.files.find(number) {
            file.fail(Stage::Dropped, 0, "given up".into());
            if file.settle_now() {
                shared.hand_on(vec![file]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use escp_engine_api::{Secret, SessionId, Side};

    #[test]
    fn a_job_beyond_the_memory_of_a_session_is_refused_with_the_limit() {
        let usual = JobOptions::new(SessionId([1; 16]), Secret([2; 32]), Side::Near, Direction::Send);
        let job = |streams, block_size| JobOptions { streams, block_size, depth: 2, ..usual.clone() };
        assert!(check_memory(&job(256, 8 << 20), None).is_ok());
        assert!(check_memory(&job(64, 2 << 20), Some(256 << 20)).is_ok());
        let refused = check_memory(&job(256, 8 << 20), Some(256 << 20)).unwrap_err();
        for part in ["4096 MiB", "memory_per_session", "256 MiB", "-t", "--blocksize"] {
            assert!(refused.text.contains(part), "{part} is not in {refused}");
        }
    }
}
