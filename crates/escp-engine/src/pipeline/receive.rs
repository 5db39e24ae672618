//! The receiving side of a data lane.

use super::write::{Pending, Writes};
use super::{BODY, Lane, LaneError, PAYLOAD, RECORD};
use crate::check;
use crate::files::{File, Known};
use crate::meter::Counter;
use crate::net::{Received, Wait};
use escp_buf::Buf;
use escp_crypto::Opener;
use escp_engine_api::{FileError, Stage};
use escp_proto::block::{BlockHeader, Expander, HEADER_LEN, HOLE, PACKED, ZSTD, unpack};
use escp_proto::message::Message;
use escp_proto::record::{IV_LEN, Iv, Kind, TAG_LEN};
use escp_proto::stream::{Inbound, PeerRole, Received as Came, State};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

struct Receiving {
    lane: Lane,
    opener: Opener,
    inbound: Inbound,
    writes: Writes,
    expander: Expander,
}

/// Receives until the peer closes the lane, and waits for the last write.
pub(crate) async fn receive_lane(lane: Lane, opener: Opener) -> Result<(), LaneError> {
    let expander = Expander::new()
        .map_err(|e| LaneError { fault: escp_engine_api::Fault::Local, text: format!("zstd: {e}") })?;
    let writes = Writes::new(usize::from(lane.shared.options.depth));
    let inbound = Inbound::new(lane.state.stream, PeerRole::Sender);
    let mut receiving = Receiving { lane, opener, inbound, writes, expander };
    let result = receiving.run().await;
    // Writes that are in flight own their buffers; they are waited for whatever happened.
    receiving.writes.drain(&receiving.lane).await;
    receiving.lane.state.enter(Stage::Idle, receiving.lane.shared.now());
    if result.is_ok() {
        receiving.lane.state.closed.store(true, Relaxed);
    }
    result
}

impl Receiving {
    async fn run(&mut self) -> Result<(), LaneError> {
        loop {
            self.writes.make_room(&self.lane).await;
            let Some(buf) = self.lane.pool.take() else {
                self.writes.finish_oldest(&self.lane).await;
                continue;
            };
            let (iv, buf) = self.receive(buf).await?;
            let (buf, length) = self.open(iv, buf)?;
            match iv.kind {
                Kind::Metadata => {
                    let last = self.message(&buf.bytes()[PAYLOAD..PAYLOAD + length])?;
                    self.writes.push(&self.lane, Pending::Through);
                    if last {
                        return Ok(());
                    }
                }
                Kind::File => {
                    self.inbound.on(Came::File)?;
                    self.block(buf, length)?;
                }
            }
            if self.lane.shared.is_failed() {
                return Err(LaneError::closed());
            }
        }
    }

    /// Receives one record into its place in the slot: the IV, then, its length being known and bounded, all
    /// the rest at once. Writes are finished meanwhile.
    async fn receive(&mut self, buf: Buf) -> Result<(Iv, Buf), LaneError> {
        let (shared, state) = (&self.lane.shared, &self.lane.state);
        state.enter(self.waits_for(), shared.now());
        state.network_beside(self.writes.in_flight());
        let socket = self.lane.socket.clone();
        let max = shared.max_file_payload();
        let wait = if self.writes.is_empty() { self.lane.wait() } else { Wait::Task };
        let record = async {
            let (result, buf) = socket.receive(buf, RECORD..PAYLOAD, wait).await;
            whole(result)?;
            let iv = u64::from_be_bytes(std::array::from_fn(|i| buf.bytes()[RECORD + i]));
            let iv = Iv::decode(iv, max)?;
            let end = PAYLOAD + iv.length as usize + TAG_LEN;
            let (result, buf) = socket.receive(buf, PAYLOAD..end, wait).await;
            whole(result)?;
            Ok::<_, LaneError>((iv, buf))
        };
        tokio::pin!(record);
        let received = loop {
            tokio::select! {
                biased;
                received = &mut record => break received,
                () = self.writes.finish_oldest(&self.lane), if !self.writes.is_empty() => {
                    state.enter(self.waits_for(), shared.now());
                }
            }
        };
        if let Ok((iv, _)) = &received {
            let wire_len = IV_LEN + iv.length as usize + TAG_LEN;
            shared.meter.add(Counter::BytesNetworkIn, wire_len as u64);
            // From here on it works on what came, which takes a wait for the disk at most.
            state.enter(Stage::Write, shared.now());
        }
        received
    }

    /// What the next record is late for: a disk that takes its time is not the network's silence.
    fn waits_for(&self) -> Stage {
        if self.writes.is_empty() { Stage::Receive } else { Stage::Write }
    }

    fn open(&mut self, iv: Iv, mut buf: Buf) -> Result<(Buf, usize), LaneError> {
        let length = iv.length as usize;
        let sealed = &mut buf.bytes_mut()[PAYLOAD..PAYLOAD + length + TAG_LEN];
        self.opener.open(iv.sequence, iv.encode()?, sealed)?;
        Ok((buf, length))
    }

    /// Handles a control record on a data lane. Returns whether it was the last.
    fn message(&mut self, payload: &[u8]) -> Result<bool, LaneError> {
        let message = Message::decode(payload)?;
        Ok(self.inbound.on(Came::Message(&message))? == State::Closed)
    }

    fn block(&mut self, buf: Buf, payload_len: usize) -> Result<(), LaneError> {
        let data_len = payload_len.saturating_sub(HEADER_LEN);
        let block_size = self.lane.shared.options.block_size;
        let header = BlockHeader::decode(&buf.bytes()[PAYLOAD..PAYLOAD + payload_len], data_len, block_size)?;
        self.lane.shared.meter.add(Counter::BytesCompressedIn, header.file_bytes(data_len));
        if header.flags & HOLE != 0 {
            self.hole(&header)?;
            self.writes.push(&self.lane, Pending::Through);
            return Ok(());
        }
        let buf = if header.flags & ZSTD != 0 { self.expand(buf, data_len, &header)? } else { buf };
        if header.flags & PACKED != 0 {
            self.packed(&buf, &header)?;
            self.writes.push(&self.lane, Pending::Through);
            return Ok(());
        }
        self.plain(buf, &header)
    }

    /// Expands a record's data into another slot, never beyond what its header declared.
    fn expand(&mut self, buf: Buf, data_len: usize, header: &BlockHeader) -> Result<Buf, LaneError> {
        let Some(mut plain) = self.lane.pool.take() else {
            return Err(LaneError {
                fault: escp_engine_api::Fault::Local,
                text: "the buffer pool is used up".into(),
            });
        };
        self.expander.expand(header, &buf.bytes()[BODY..BODY + data_len], &mut plain.bytes_mut()[BODY..])?;
        Ok(plain)
    }

    /// Looks a file up and makes sure a range lies inside it. `None`: it failed here before.
    fn file(&self, number: u64, offset: u64, length: u64) -> Result<Option<Arc<File>>, LaneError> {
        let file = match self.lane.shared.files.find(number) {
            Known::File(file) => file,
            Known::Dropped => return Ok(None),
            Known::Unknown => {
                return Err(LaneError::integrity(format!(
                    "the peer broke the protocol: it sent a block of file {number}, which is not open"
                )));
            }
        };
        let size = file.spec().size;
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(LaneError::integrity(format!(
                "the peer broke the protocol: it sent {length} bytes at {offset} of file {number}, which has {size}"
            )));
        }
        Ok(Some(file))
    }

    /// Compares a block's check value, and makes sure none of it came before. False when the file fails here.
    fn verify(&self, file: &File, header: &BlockHeader, data: &[u8]) -> Result<bool, LaneError> {
        let shared = &self.lane.shared;
        let check = if shared.options.checksum { check::received(data) } else { 0 };
        if file.claim(header.offset, data.len() as u64, check).is_err() {
            return Err(LaneError::integrity(format!(
                "the peer broke the protocol: bytes from {} on of file {} came twice",
                header.offset, header.file
            )));
        }
        if check != header.check {
            shared.meter.add(Counter::ErrorsProtocol, 1);
            let text = format!(
                "the block at {} arrived with check value {check:016x}, sent with {:016x}",
                header.offset, header.check
            );
            file.fail(Stage::Verify, 0, text);
            return Ok(false);
        }
        Ok(!file.is_failed())
    }

    fn hole(&self, header: &BlockHeader) -> Result<(), LaneError> {
        let length = header.check;
        let Some(file) = self.file(header.file, header.offset, length)? else { return Ok(()) };
        file.begin();
        let shared = &self.lane.shared;
        let claimed = if shared.options.checksum {
            file.claim_hole(header.offset, length)
        } else {
            file.claim(header.offset, length, 0)
        };
        if claimed.is_err() {
            return Err(LaneError::integrity(format!(
                "the peer broke the protocol: bytes from {} on of file {} came twice",
                header.offset, header.file
            )));
        }
        fail_if(&file, file.prepare_once(|| Ok(())));
        if file.end(length) {
            shared.hand_on(vec![file]);
        }
        Ok(())
    }

    fn packed(&self, buf: &Buf, header: &BlockHeader) -> Result<(), LaneError> {
        let data = &buf.bytes()[BODY..BODY + header.plain_len as usize];
        let shared = &self.lane.shared;
        self.lane.plain.set(true);
        let mut over = Vec::new();
        for item in unpack(header.file, data)? {
            let length = item.length as u64;
            let Some(file) = self.file(item.file, 0, length)? else { continue };
            if length != file.spec().size {
                return Err(LaneError::integrity(format!(
                    "the peer broke the protocol: it packed {length} bytes of file {}, which has {}",
                    item.file,
                    file.spec().size
                )));
            }
            file.begin();
            let part = &data[item.start..item.start + item.length];
            let header =
                BlockHeader { file: item.file, offset: 0, plain_len: 0, flags: 0, check: item.check };
            let mut written = 0;
            if self.verify(&file, &header, part)? {
                match self.write_small(&file, part) {
                    Ok(()) => written = length,
                    Err(error) => {
                        shared.meter.add(Counter::ErrorsDisk, 1);
                        file.fail_os(Stage::Write, &error);
                    }
                }
            }
            shared.count_disk(Counter::BytesDiskWritten, written);
            if file.end(written) {
                over.push(file);
            }
        }
        shared.hand_on(over);
        Ok(())
    }

    fn write_small(&self, file: &File, data: &[u8]) -> std::io::Result<()> {
        // Small files are not worth O_DIRECT, whose padding and length these bytes do not have.
        if file.alignment() > 1 {
            file.clear_direct()?;
        }
        self.lane.disk.write_small(file, data)
    }

    fn plain(&mut self, buf: Buf, header: &BlockHeader) -> Result<(), LaneError> {
        let length = header.plain_len as usize;
        let Some(file) = self.file(header.file, header.offset, length as u64)? else {
            self.writes.push(&self.lane, Pending::Through);
            return Ok(());
        };
        file.begin();
        if !self.verify(&file, header, &buf.bytes()[BODY..BODY + length])? {
            if file.end(0) {
                self.lane.shared.hand_on(vec![file]);
            }
            self.writes.push(&self.lane, Pending::Through);
            return Ok(());
        }
        self.lane.pool.prefer_huge_pages();
        fail_if(&file, file.prepare_once(|| preallocate(&file)));
        self.writes.start(&self.lane, file, buf, header.offset, length);
        self.lane.register_when_worth_it();
        Ok(())
    }
}

fn whole(result: std::io::Result<Received>) -> Result<(), LaneError> {
    match result {
        Ok(Received::All) => Ok(()),
        Ok(Received::Eof(_)) => Err(LaneError::closed()),
        Err(error) => Err(LaneError::network("receiving", &error)),
    }
}

fn fail_if(file: &File, result: Result<(), FileError>) {
    if let Err(FileError { stage, errno, text }) = result {
        file.fail(stage, errno, text);
    }
}

/// Reserves a file's space, so that it does not run out in the middle and so that O_DIRECT writes do not
/// extend the file, which the kernel would hand to a worker thread (seven times the CPU on ext4).
fn preallocate(file: &File) -> Result<(), FileError> {
    let spec = file.spec();
    let Some(descriptor) = file.descriptor() else { return Ok(()) };
    if spec.sparse || spec.in_memory {
        return Ok(());
    }
    match rustix::fs::fallocate(descriptor, rustix::fs::FallocateFlags::empty(), 0, spec.size) {
        Err(error @ (rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT | rustix::io::Errno::FBIG)) => {
            let text = format!("{} bytes: {}", spec.size, crate::files::describe(&error.into()));
            Err(FileError { stage: Stage::Preallocate, errno: error.raw_os_error(), text })
        }
        // Not supported here, or not now: writing will tell.
        _ => Ok(()),
    }
}
