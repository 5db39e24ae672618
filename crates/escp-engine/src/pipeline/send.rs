//! The sending side of a data lane.

use super::compress::Compression;
use super::{BODY, Lane, LaneError, PAYLOAD, RECORD, padded, refuses_direct};
use crate::check;
use crate::disk::DiskOp;
use crate::files::File;
use crate::meter::Counter;
use crate::net::Wait;
use crate::plan::{Next, Work};
use escp_buf::Buf;
use escp_crypto::Sealer;
use escp_engine_api::Stage;
use escp_proto::block::{BlockHeader, HEADER_LEN, HOLE, PACKED, ZSTD};
use escp_proto::message::{EngineMessage, Message};
use escp_proto::record::{IV_LEN, Iv, Kind, TAG_LEN};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// An idle lane says so this often, so that the peer knows it from a dead one.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// A record's worth of work whose read may be in flight.
enum Staged {
    Block { file: Arc<File>, offset: u64, length: u32, read: DiskOp },
    Hole { file: Arc<File>, offset: u64, length: u64, buf: Buf },
    Pack { files: Vec<Arc<File>>, buf: Buf },
}

impl Staged {
    fn is_done_at_once(&self) -> bool {
        !matches!(self, Self::Block { read: DiskOp::Ring(_), .. })
    }
}

/// A record ready to be sealed: a header and data at [`BODY`].
struct Record {
    buf: Buf,
    header: BlockHeader,
    data_len: usize,
    /// Files it moves on, and by how many bytes.
    moves: Moves,
}

enum Moves {
    One(Arc<File>, u64),
    Many(Vec<Arc<File>>),
}

struct Sending {
    lane: Lane,
    sealer: Sealer,
    window: VecDeque<Staged>,
    compression: Option<Compression>,
}

/// Sends what the plan has until it is over, then closes the lane.
pub(crate) async fn send_lane(lane: Lane, sealer: Sealer) -> Result<(), LaneError> {
    let compression = lane
        .shared
        .adapt
        .as_ref()
        .map(|adapt| Compression::new(adapt.join()))
        .transpose()
        .map_err(|e| LaneError { fault: escp_engine_api::Fault::Local, text: format!("zstd: {e}") })?;
    let mut sending = Sending { lane, sealer, window: VecDeque::new(), compression };
    sending.run().await?;
    sending.close().await
}

impl Sending {
    async fn run(&mut self) -> Result<(), LaneError> {
        loop {
            let over = self.fill();
            let mut staged = match self.window.pop_front() {
                Some(staged) => staged,
                None if over => return Ok(()),
                None => {
                    self.idle().await?;
                    continue;
                }
            };
            self.await_read(&mut staged).await?;
            if let Some(record) = self.prepare(staged).await {
                self.transmit_block(record).await?;
            }
            if self.lane.shared.is_failed() {
                return Err(LaneError::closed());
            }
        }
    }

    /// Starts reads until the window is full. Returns whether the plan is over.
    ///
    /// A read that is done at once (memory, plain calls) is never ahead of its turn: it would only push the
    /// block before it out of the cache.
    fn fill(&mut self) -> bool {
        while self.window.len() < usize::from(self.lane.shared.options.depth) {
            if self.window.back().is_some_and(Staged::is_done_at_once) {
                return false;
            }
            let work = match self.lane.shared.plan.next() {
                Next::Work(work) => work,
                Next::Wait => return false,
                Next::Over => return true,
            };
            let Some(buf) = self.lane.pool.take() else {
                // The pool is sized so that this cannot be; the work must not be lost all the same.
                self.lane.shared.fail(escp_engine_api::Fault::Local, "the buffer pool is used up");
                return false;
            };
            self.window.push_back(self.stage(work, buf));
            self.lane.state.disk_busy(self.reading());
        }
        false
    }

    /// Reads in flight.
    fn reading(&self) -> usize {
        self.window.iter().filter(|staged| !staged.is_done_at_once()).count()
    }

    fn stage(&self, work: Work, buf: Buf) -> Staged {
        // A plain call waits for the disk right here.
        self.lane.state.enter(Stage::Read, self.lane.shared.now());
        match work {
            Work::Block { file, offset, length } => {
                self.lane.pool.prefer_huge_pages();
                let want = padded(length as usize, file.alignment()).min(buf.body_len());
                let read = self.lane.read(&file, buf, BODY..BODY + want, offset);
                Staged::Block { file, offset, length, read }
            }
            Work::Hole { file, offset, length } => Staged::Hole { file, offset, length, buf },
            Work::Pack(files) => Staged::Pack { files, buf },
        }
    }

    /// Waits for work, saying now and then that this lane lives.
    async fn idle(&mut self) -> Result<(), LaneError> {
        let shared = Arc::clone(&self.lane.shared);
        let changed = shared.plan.changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        // Work that came before `enable` would not wake it.
        if self.fill() || !self.window.is_empty() {
            return Ok(());
        }
        if shared.is_failed() {
            return Err(LaneError::closed());
        }
        self.lane.state.enter(Stage::Idle, shared.now());
        let since = Instant::now();
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(KEEPALIVE) => self.transmit_message(EngineMessage::Keepalive).await?,
        }
        if let Some(compression) = &mut self.compression {
            compression.idled(since.elapsed());
        }
        Ok(())
    }

    /// Waits for a block's read, saying now and then that this lane lives: a disk may take its time.
    async fn await_read(&mut self, staged: &mut Staged) -> Result<(), LaneError> {
        self.lane.state.enter(Stage::Read, self.lane.shared.now());
        if let Staged::Block { read, .. } = staged
            && matches!(read, DiskOp::Ring(_))
        {
            let output = self.wait_alive(&mut *read).await?;
            *read = DiskOp::Done(Some(output));
        }
        Ok(())
    }

    /// Finishes the read, and checks and compresses what it brought. `None` when there is nothing to send:
    /// the file failed.
    async fn prepare(&mut self, staged: Staged) -> Option<Record> {
        match staged {
            Staged::Block { file, offset, length, read } => {
                let record = self.prepare_block(&file, offset, length, read).await;
                if record.is_none() && file.end(0) {
                    self.lane.shared.hand_on(vec![file]);
                }
                record
            }
            Staged::Hole { file, offset, length, buf } => {
                let header = BlockHeader {
                    file: file.spec().number,
                    offset,
                    plain_len: 0,
                    flags: HOLE,
                    check: length,
                };
                self.claim(&file, offset, length, None);
                Some(Record { buf, header, data_len: 0, moves: Moves::One(file, length) })
            }
            Staged::Pack { files, buf } => self.prepare_pack(files, buf),
        }
    }

    async fn prepare_block(
        &mut self,
        file: &Arc<File>,
        offset: u64,
        length: u32,
        read: DiskOp,
    ) -> Option<Record> {
        let lane = &self.lane;
        let buf = finish_read(lane, file, offset, length as usize, read).await?;
        lane.shared.count_disk(Counter::BytesDiskRead, length.into());
        let data = &buf.bytes()[BODY..BODY + length as usize];
        let check = if lane.shared.options.checksum { check::crc(data) } else { 0 };
        self.claim(file, offset, length.into(), Some(check));
        let header = BlockHeader { file: file.spec().number, offset, plain_len: length, flags: 0, check };
        let moves = Moves::One(Arc::clone(file), length.into());
        Some(self.compress(Record { buf, header, data_len: length as usize, moves }))
    }

    /// Folds a range's check value into its file's. The plan covers each byte once, so a refusal is an
    /// agent's mistake; it fails the file.
    fn claim(&self, file: &File, offset: u64, length: u64, check: Option<u64>) {
        let shared = &self.lane.shared;
        let claimed = match check {
            Some(check) => file.claim(offset, length, check),
            None if shared.options.checksum => file.claim_hole(offset, length),
            None => file.claim(offset, length, 0),
        };
        if claimed.is_err() {
            file.fail(Stage::Read, 0, format!("bytes from {offset} on were scheduled twice"));
        }
    }

    fn prepare_pack(&mut self, files: Vec<Arc<File>>, mut buf: Buf) -> Option<Record> {
        let lane = &self.lane;
        lane.plain.set(true);
        let reserved = files.len() * HEADER_LEN;
        let (headers, data) = buf.bytes_mut()[BODY..].split_at_mut(reserved);
        let mut end = 0;
        let mut packed = Vec::with_capacity(files.len());
        for file in files {
            #[expect(clippy::cast_possible_truncation, reason = "packed files are at most 128 KiB")]
            let length = file.spec().size as usize;
            let into = &mut data[end..end + length];
            if read_small(lane, &file, into) {
                let check = if lane.shared.options.checksum { check::crc(into) } else { 0 };
                self.claim(&file, 0, length as u64, Some(check));
                #[expect(clippy::cast_possible_truncation, reason = "packed files are at most 128 KiB")]
                let plain_len = length as u32;
                let header = BlockHeader { file: file.spec().number, offset: 0, plain_len, flags: 0, check };
                let at = packed.len() * HEADER_LEN;
                headers[at..at + HEADER_LEN].copy_from_slice(&header.encode());
                end += length;
                packed.push(file);
            } else if file.end(0) {
                lane.shared.hand_on(vec![file]);
            }
        }
        if packed.is_empty() {
            return None;
        }
        lane.shared.count_disk(Counter::BytesDiskRead, end as u64);
        // Files that failed left room between the headers and the data.
        let used = packed.len() * HEADER_LEN;
        if used < reserved {
            buf.bytes_mut().copy_within(BODY + reserved..BODY + reserved + end, BODY + used);
        }
        let data_len = used + end;
        let plain_len = u32::try_from(data_len).unwrap_or(u32::MAX);
        let header = BlockHeader { file: packed.len() as u64, offset: 0, plain_len, flags: PACKED, check: 0 };
        Some(self.compress(Record { buf, header, data_len, moves: Moves::Many(packed) }))
    }

    /// Compresses a record's data where that pays.
    fn compress(&mut self, record: Record) -> Record {
        let Some(compression) = self.compression.as_mut() else { return record };
        let Some(mut packed) = self.lane.pool.take() else { return record };
        let plain = &record.buf.bytes()[BODY..BODY + record.data_len];
        match compression.compress(plain, &mut packed.bytes_mut()[BODY..]) {
            Some(data_len) => {
                let header = BlockHeader { flags: record.header.flags | ZSTD, ..record.header };
                Record { buf: packed, header, data_len, moves: record.moves }
            }
            None => record,
        }
    }

    async fn transmit_block(&mut self, record: Record) -> Result<(), LaneError> {
        let Record { mut buf, header, data_len, moves } = record;
        let waited = self.wait_for_the_rate(data_len).await?;
        buf.bytes_mut()[PAYLOAD..BODY].copy_from_slice(&header.encode());
        self.transmit(buf, Kind::File, PAYLOAD..BODY + data_len).await?;
        if let Some(compression) = &mut self.compression {
            compression.sent(header.plain_len as usize, data_len, waited, &self.lane.socket);
        }
        let shared = &self.lane.shared;
        shared.meter.add(Counter::BytesCompressedOut, header.file_bytes(data_len));
        match moves {
            Moves::One(file, length) => {
                if file.end(length) {
                    shared.hand_on(vec![file]);
                }
                self.lane.register_when_worth_it();
            }
            Moves::Many(mut files) => {
                files.retain(|file| file.end(file.spec().size));
                shared.hand_on(files);
            }
        }
        Ok(())
    }

    /// Waits until the session's rate, and the one it shares, admit a record; at low rates that may take long.
    /// Returns how long.
    async fn wait_for_the_rate(&mut self, data_len: usize) -> Result<Duration, LaneError> {
        let wire_len = (IV_LEN + HEADER_LEN + data_len + TAG_LEN) as u64;
        let start = Instant::now();
        self.lane.state.enter(Stage::Idle, self.lane.shared.now());
        let delay = self.lane.shared.rate.admit(wire_len, start);
        if !delay.is_zero() {
            self.wait_alive(tokio::time::sleep(delay)).await?;
        }
        let shared = Arc::clone(&self.lane.shared);
        if let Some(pace) = shared.pace.as_ref().filter(|pace| pace.is_limited()) {
            let turn = async {
                let _turn = shared.turn.lock().await;
                tokio::time::sleep(pace.admit(wire_len)).await;
            };
            self.wait_alive(turn).await?;
        } else if delay.is_zero() {
            return Ok(Duration::ZERO);
        }
        Ok(start.elapsed())
    }

    /// Waits for something, saying now and then that this lane lives.
    async fn wait_alive<T>(&mut self, what: impl Future<Output = T>) -> Result<T, LaneError> {
        tokio::pin!(what);
        let stage = self.lane.state.stage();
        loop {
            if let Ok(output) = tokio::time::timeout(KEEPALIVE, &mut what).await {
                return Ok(output);
            }
            self.transmit_message(EngineMessage::Keepalive).await?;
            self.lane.state.enter(stage, self.lane.shared.now());
        }
    }

    async fn transmit_message(&mut self, message: EngineMessage) -> Result<(), LaneError> {
        let payload = Message::Engine(message).encode()?;
        let Some(mut buf) = self.lane.pool.take() else { return Ok(()) };
        let range = PAYLOAD..PAYLOAD + payload.len();
        buf.bytes_mut()[range.clone()].copy_from_slice(&payload);
        self.transmit(buf, Kind::Metadata, range).await
    }

    /// Seals the payload in place and sends the record as one range.
    async fn transmit(&mut self, mut buf: Buf, kind: Kind, payload: Range<usize>) -> Result<(), LaneError> {
        let sequence = self.sealer.next_sequence()?;
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let iv = Iv { kind, length, sequence: sequence.number() }.encode()?;
        let tag = self.sealer.seal(sequence, iv, &mut buf.bytes_mut()[payload.clone()])?;
        let record = payload.start - IV_LEN..payload.end + TAG_LEN;
        debug_assert_eq!(record.start, RECORD);
        buf.bytes_mut()[record.start..payload.start].copy_from_slice(&iv.to_be_bytes());
        buf.bytes_mut()[payload.end..record.end].copy_from_slice(&tag);
        let (shared, state) = (&self.lane.shared, &self.lane.state);
        state.enter(Stage::Send, shared.now());
        state.network_beside(self.reading());
        let wire_len = record.len() as u64;
        let wait = if self.reading() == 0 { self.lane.wait() } else { Wait::Task };
        let (result, _buf) = self.lane.socket.send(buf, record, wait).await;
        result.map_err(|error| LaneError::network("sending", &error))?;
        shared.meter.add(Counter::BytesNetworkOut, wire_len);
        state.records.fetch_add(1, Relaxed);
        Ok(())
    }

    async fn close(&mut self) -> Result<(), LaneError> {
        let records = self.sealer.count();
        self.transmit_message(EngineMessage::Close { records }).await?;
        self.lane.state.closed.store(true, Relaxed);
        self.lane.state.enter(Stage::Idle, self.lane.shared.now());
        Ok(())
    }
}

/// Waits for a read and goes on until it has `length` bytes. `None` when the file failed.
async fn finish_read(lane: &Lane, file: &Arc<File>, offset: u64, length: usize, read: DiskOp) -> Option<Buf> {
    let (mut result, mut buf) = read.await;
    let mut got = 0;
    loop {
        match result {
            Ok(0) => {
                let missing = file.spec().size.saturating_sub(offset + got as u64);
                file.fail(
                    Stage::Read,
                    0,
                    format!("the file is {missing} bytes shorter than when it was opened"),
                );
                return None;
            }
            Ok(count) => got += count,
            Err(error) if refuses_direct(&error) && file.alignment() > 1 => lane.shared.fall_back(file),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                lane.shared.meter.add(Counter::ErrorsDisk, 1);
                file.fail_os(Stage::Read, &error);
                return None;
            }
        }
        if got >= length {
            return Some(buf);
        }
        // An O_DIRECT read that stopped at an unaligned offset stopped at the end of the file.
        if got > 0 && !got.is_multiple_of(file.alignment()) {
            lane.shared.fall_back(file);
        }
        let want = padded(length - got, file.alignment()).min(buf.body_len() - got);
        (result, buf) = lane.disk.read(file, buf, BODY + got..BODY + got + want, offset + got as u64).await;
    }
}

/// Reads a whole small file. False when it failed.
fn read_small(lane: &Lane, file: &File, into: &mut [u8]) -> bool {
    match lane.disk.read_small(file, into) {
        Ok(got) if got == into.len() => true,
        Ok(got) => {
            let missing = into.len() - got;
            file.fail(Stage::Read, 0, format!("the file is {missing} bytes shorter than when it was opened"));
            false
        }
        Err(error) => {
            lane.shared.meter.add(Counter::ErrorsDisk, 1);
            file.fail_os(Stage::Read, &error);
            false
        }
    }
}
