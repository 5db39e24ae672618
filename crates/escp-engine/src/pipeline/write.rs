//! Writes of a receiving lane that are in flight, oldest first.

use super::{BODY, Lane, padded, refuses_direct};
use crate::disk::DiskOp;
use crate::files::File;
use crate::meter::Counter;
use escp_buf::Buf;
use escp_engine_api::Stage;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// One record that came and is not through.
pub(super) enum Pending {
    Write(Write),
    /// Nothing to wait for, but not to be acknowledged before those in front of it.
    Through,
}

/// A block on its way to disk.
pub(super) struct Write {
    file: Arc<File>,
    offset: u64,
    length: usize,
    /// Bytes written so far, padding included.
    put: usize,
    op: DiskOp,
}

/// The queue, bounded by the session's depth.
pub(super) struct Writes {
    queue: VecDeque<Pending>,
    depth: usize,
}

impl Writes {
    pub(super) fn new(depth: usize) -> Self {
        Self { queue: VecDeque::with_capacity(depth + 1), depth }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Queues a record; one with nothing to wait for and nothing in front of it is through at once.
    pub(super) fn push(&mut self, lane: &Lane, pending: Pending) {
        if matches!(pending, Pending::Through) && self.queue.is_empty() {
            lane.state.records.fetch_add(1, Relaxed);
        } else {
            self.queue.push_back(pending);
        }
    }

    /// Starts to write a block that lies at [`BODY`] of `buf`.
    pub(super) fn start(&mut self, lane: &Lane, file: Arc<File>, mut buf: Buf, offset: u64, length: usize) {
        let alignment = file.alignment();
        let last = offset + length as u64 == file.spec().size;
        if !offset.is_multiple_of(alignment as u64) || !(last || length.is_multiple_of(alignment)) {
            // Only the end of the file may be padded: anywhere else, padding would lie on the next block.
            lane.shared.fall_back(&file);
        }
        // Behind the data lies the record's tag; padding must not carry it to disk.
        let padded = padded(length, file.alignment());
        buf.bytes_mut()[BODY + length..BODY + padded].fill(0);
        let op = submit(lane, &file, buf, offset, length, 0);
        self.queue.push_back(Pending::Write(Write { file, offset, length, put: 0, op }));
        lane.state.disk_busy(self.in_flight());
    }

    /// Writes in flight.
    pub(super) fn in_flight(&self) -> usize {
        let in_flight = |p: &&Pending| matches!(p, Pending::Write(Write { op: DiskOp::Ring(_), .. }));
        self.queue.iter().filter(in_flight).count()
    }

    /// Waits until there is room for one more; what is through already (memory, plain calls) is let go of
    /// at once, so that its slot is used again while it is in cache.
    pub(super) async fn make_room(&mut self, lane: &Lane) {
        while let Some(Pending::Through | Pending::Write(Write { op: DiskOp::Done(_), .. })) =
            self.queue.front()
        {
            self.finish_oldest(lane).await;
        }
        while self.queue.len() >= self.depth {
            lane.state.enter(Stage::Write, lane.shared.now());
            self.finish_oldest(lane).await;
        }
    }

    /// Waits for the oldest to be through. Cancelling this loses nothing.
    pub(super) async fn finish_oldest(&mut self, lane: &Lane) {
        if let Some(Pending::Write(write)) = self.queue.front_mut() {
            let mut output = (&mut write.op).await;
            // From here to `pop_front`, waiting happens only to go on with a short or refused write; its new
            // operation is put in the old one's place first, so that it is not lost on cancellation.
            while let Some(buf) = go_on(lane, write, output) {
                write.op = submit(lane, &write.file, buf, write.offset, write.length, write.put);
                output = (&mut write.op).await;
            }
        }
        if let Some(Pending::Write(write)) = self.queue.pop_front() {
            let written = if write.file.is_failed() { 0 } else { write.length as u64 };
            lane.shared.count_disk(Counter::BytesDiskWritten, written);
            if write.file.end(written) {
                lane.shared.hand_on(vec![write.file]);
            }
        }
        lane.state.records.fetch_add(1, Relaxed);
    }

    /// Waits for all of them.
    pub(super) async fn drain(&mut self, lane: &Lane) {
        while !self.queue.is_empty() {
            lane.state.enter(Stage::Write, lane.shared.now());
            self.finish_oldest(lane).await;
        }
    }
}

/// Submits what is left of a block from `from` on, padded where the file is O_DIRECT.
fn submit(lane: &Lane, file: &Arc<File>, buf: Buf, offset: u64, length: usize, from: usize) -> DiskOp {
    let padded = padded(length - from, file.alignment());
    lane.write(file, buf, BODY + from..BODY + from + padded, offset + from as u64)
}

/// Looks at a write's result. Returns the buffer to go on with, unless it is through or failed.
fn go_on(lane: &Lane, write: &mut Write, output: (io::Result<usize>, Buf)) -> Option<Buf> {
    let (result, buf) = output;
    let file = &write.file;
    match result {
        Ok(0) => file.fail_os(Stage::Write, &io::ErrorKind::WriteZero.into()),
        Ok(count) => {
            write.put += count;
            if write.put >= write.length {
                return None;
            }
            if !write.put.is_multiple_of(file.alignment()) {
                lane.shared.fall_back(file);
            }
            return Some(buf);
        }
        Err(error) if refuses_direct(&error) && file.alignment() > 1 => {
            lane.shared.fall_back(file);
            return Some(buf);
        }
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Some(buf),
        Err(error) => {
            lane.shared.meter.add(Counter::ErrorsDisk, 1);
            file.fail_os(Stage::Write, &error);
        }
    }
    None
}
