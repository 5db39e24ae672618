//! What the sending streams do next: blocks of one file go to whichever stream asks.

use crate::files::File;
use crate::share::Share;
use escp_engine_api::{Extent, ExtentKind};
use escp_proto::block::{HEADER_LEN, MAX_PACKED_FILE_LEN, MAX_PACKED_FILES};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Most bytes of a record of small files. A full block would save nothing more, and this stays in a core's cache; and
/// it is what every slot of a session with small files comes to hold, however many and however fast they come.
const PACK: u64 = 512 * 1024;

/// The queue of extents of a sending session.
#[derive(Debug)]
pub(crate) struct Plan {
    queue: Mutex<Queue>,
    /// Woken when there is work, or when there will be no more.
    pub(crate) changed: Notify,
    share: Share,
    /// There are no files, only memory.
    dummy: bool,
}

#[derive(Debug, Default)]
struct Queue {
    extents: VecDeque<(Arc<File>, Extent)>,
    closed: bool,
}

/// One record's worth of work.
#[derive(Debug)]
pub(crate) enum Work {
    /// Read and send these bytes.
    Block { file: Arc<File>, offset: u64, length: u32 },
    /// Say that these bytes are zeros.
    Hole { file: Arc<File>, offset: u64, length: u64 },
    /// Read and send these small files whole, in one record.
    Pack(Vec<Arc<File>>),
}

/// An answer to a stream that asks for work.
#[derive(Debug)]
pub(crate) enum Next {
    Work(Work),
    /// Nothing now; wait for [`Plan::changed`].
    Wait,
    /// Nothing ever again.
    Over,
}

impl Plan {
    pub(crate) fn new(share: Share, dummy: bool) -> Self {
        Self { queue: Mutex::default(), changed: Notify::new(), share, dummy }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A poisoned queue is still a queue: its operations do not leave it half changed.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, extents: impl IntoIterator<Item = (Arc<File>, Extent)>) {
        self.lock().extents.extend(extents);
        self.changed.notify_waiters();
    }

    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_waiters();
    }

    /// Takes all files out, at the end.
    pub(crate) fn take_all(&self) -> Vec<Arc<File>> {
        self.lock().extents.drain(..).map(|(file, _)| file).collect()
    }

    /// Takes the next record's worth. The files in it have one more operation in flight each.
    pub(crate) fn next(&self) -> Next {
        let mut queue = self.lock();
        while queue.extents.front().is_some_and(|(file, _)| file.is_failed()) {
            queue.extents.pop_front();
        }
        let Some((file, extent)) = queue.extents.front().cloned() else {
            return if queue.closed { Next::Over } else { Next::Wait };
        };
        Next::Work(if packable(&file, &extent) {
            Work::Pack(self.pack(&mut queue))
        } else {
            self.cut(&mut queue, file, extent)
        })
    }

    /// Cuts the next block off the first extent. Blocks end at multiples of their size, so that
    /// blocks of a file with holes are aligned again after the first.
    fn cut(&self, queue: &mut Queue, file: Arc<File>, extent: Extent) -> Work {
        let in_memory = self.dummy || file.spec().in_memory;
        let block = if in_memory { self.share.in_cache() } else { self.share.whole() };
        let to_boundary = block - extent.offset % block;
        let length = match extent.kind {
            ExtentKind::Data => extent.length.min(to_boundary),
            ExtentKind::Hole => extent.length,
        };
        if length == extent.length {
            queue.extents.pop_front();
        } else if let Some((_, front)) = queue.extents.front_mut() {
            front.offset += length;
            front.length -= length;
        }
        file.begin();
        match extent.kind {
            #[expect(clippy::cast_possible_truncation, reason = "at most the block size, a u32")]
            ExtentKind::Data => Work::Block { file, offset: extent.offset, length: length as u32 },
            ExtentKind::Hole => Work::Hole { file, offset: extent.offset, length },
        }
    }

    /// Takes small files from the front until a record is full.
    fn pack(&self, queue: &mut Queue) -> Vec<Arc<File>> {
        let mut files = Vec::new();
        let mut room = self.share.whole().min(PACK);
        while let Some((file, extent)) = queue.extents.front() {
            let need = extent.length + HEADER_LEN as u64;
            if !packable(file, extent) || need > room || files.len() as u64 >= MAX_PACKED_FILES {
                break;
            }
            room -= need;
            let Some((file, _)) = queue.extents.pop_front() else { break };
            if !file.is_failed() {
                file.begin();
                files.push(file);
            }
        }
        files
    }
}

fn packable(file: &File, extent: &Extent) -> bool {
    extent.kind == ExtentKind::Data
        && extent.offset == 0
        && extent.length == file.spec().size
        && extent.length <= MAX_PACKED_FILE_LEN
}

#[cfg(test)]
mod tests {
    use super::*;
    use escp_engine_api::{Direction, FileSpec, JobOptions, Secret, SessionId, Side};

    const BLOCK: u32 = 262_144;

    fn plan() -> Plan {
        let job = JobOptions::new(SessionId([1; 16]), Secret([2; 32]), Side::Near, Direction::Send);
        Plan::new(Share::new(None, &JobOptions { block_size: BLOCK, ..job }), false)
    }

    fn file(number: u64, size: u64) -> Arc<File> {
        let spec = FileSpec { number, size, direct_alignment: 0, in_memory: false, sparse: false };
        Arc::new(File::new(spec, None))
    }

    fn whole(file: &Arc<File>) -> (Arc<File>, Extent) {
        let FileSpec { number, size, .. } = *file.spec();
        (Arc::clone(file), Extent { file: number, offset: 0, length: size, kind: ExtentKind::Data })
    }

    #[test]
    fn a_large_file_is_cut_into_blocks_and_its_tail() {
        let plan = plan();
        plan.add([whole(&file(1, 2 * u64::from(BLOCK) + 5))]);
        let mut ranges = Vec::new();
        while let Next::Work(Work::Block { offset, length, .. }) = plan.next() {
            ranges.push((offset, length));
        }
        assert_eq!(ranges, [(0, BLOCK), (BLOCK.into(), BLOCK), (2 * u64::from(BLOCK), 5)]);
        assert!(matches!(plan.next(), Next::Wait));
        plan.close();
        assert!(matches!(plan.next(), Next::Over));
    }

    #[test]
    fn blocks_after_a_hole_are_aligned_again() {
        let plan = plan();
        let file = file(1, 10 * u64::from(BLOCK));
        let extent = Extent { file: 1, offset: 4096, length: u64::from(BLOCK), kind: ExtentKind::Data };
        plan.add([(file, extent)]);
        let Next::Work(Work::Block { length, .. }) = plan.next() else { panic!("no block") };
        assert_eq!(length, BLOCK - 4096);
        let Next::Work(Work::Block { offset, length, .. }) = plan.next() else { panic!("no block") };
        assert_eq!((offset, length), (BLOCK.into(), 4096));
    }

    #[test]
    fn small_files_share_a_record_and_never_overfill_it() {
        let plan = plan();
        let files: Vec<_> = (1..=9).map(|n| file(n, 100_000)).collect();
        plan.add(files.iter().map(whole));
        let mut packs = Vec::new();
        while let Next::Work(Work::Pack(pack)) = plan.next() {
            packs.push(pack.len());
        }
        assert_eq!(packs, [2, 2, 2, 2, 1]);
    }

    #[test]
    fn a_failed_file_is_not_worked_on() {
        let plan = plan();
        let (bad, good) = (file(1, 10 * u64::from(BLOCK)), file(2, 3));
        plan.add([whole(&bad), whole(&good)]);
        assert!(matches!(plan.next(), Next::Work(Work::Block { .. })));
        bad.fail(escp_engine_api::Stage::Read, 5, "input/output error".into());
        let Next::Work(Work::Pack(pack)) = plan.next() else { panic!("no pack") };
        assert_eq!(pack[0].spec().number, 2);
    }
}
