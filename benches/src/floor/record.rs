//! A block, or several small files, as a record, in place: IV, header, body and tag are one range of its slot.

use crc_fast::{CrcAlgorithm, checksum};
use escp_buf::BODY;
use escp_crypto::{Opener, Sealer, StreamSecret};
use escp_proto::block::{BlockHeader, HEADER_LEN, PACKED};
use escp_proto::record::{IV_LEN, Iv, Kind, TAG_LEN};
use escp_testkit::{Checked, Trouble};
use std::ops::Range;

const RECORD: usize = BODY - HEADER_LEN - IV_LEN;
const PAYLOAD: usize = RECORD + IV_LEN;

/// Where the record of a block of `length` bytes lies in its slot.
pub(super) fn record(length: usize) -> Range<usize> {
    RECORD..BODY + length + TAG_LEN
}

/// Where its first bytes lie, which say how long it is.
pub(super) fn iv() -> Range<usize> {
    RECORD..PAYLOAD
}

/// Makes the records of one stream.
pub(super) struct Sealing(Sealer);

impl Sealing {
    pub(super) fn new(secret: StreamSecret) -> Checked<Self> {
        Ok(Self(Sealer::new(secret)?))
    }

    /// Checks and seals the block of `length` bytes in a slot.
    pub(super) fn seal(&mut self, slot: &mut [u8], offset: u64, length: usize) -> Checked {
        let check = checksum(CrcAlgorithm::Crc64Nvme, &slot[BODY..BODY + length]);
        let plain_len = u32::try_from(length)?;
        self.seal_as(BlockHeader { file: 1, offset, plain_len, flags: 0, check }, slot, length)
    }

    /// Seals `length` bytes of `count` files, which have check values of their own.
    pub(super) fn seal_pack(&mut self, slot: &mut [u8], count: u64, length: usize) -> Checked {
        let plain_len = u32::try_from(length)?;
        self.seal_as(BlockHeader { file: count, offset: 0, plain_len, flags: PACKED, check: 0 }, slot, length)
    }

    fn seal_as(&mut self, header: BlockHeader, slot: &mut [u8], length: usize) -> Checked {
        slot[PAYLOAD..BODY].copy_from_slice(&header.encode());
        let sequence = self.0.next_sequence()?;
        let payload = u32::try_from(HEADER_LEN + length)?;
        let iv = Iv { kind: Kind::File, length: payload, sequence: sequence.number() }.encode()?;
        let tag = self.0.seal(sequence, iv, &mut slot[PAYLOAD..BODY + length])?;
        slot[RECORD..PAYLOAD].copy_from_slice(&iv.to_be_bytes());
        slot[BODY + length..BODY + length + TAG_LEN].copy_from_slice(&tag);
        Ok(())
    }
}

/// Takes the records of one stream apart.
pub(super) struct Opening {
    opener: Opener,
    /// Bytes of the largest block.
    block: u32,
}

impl Opening {
    pub(super) fn new(secret: StreamSecret, block: u32) -> Checked<Self> {
        Ok(Self { opener: Opener::new(secret)?, block })
    }

    /// Opens and checks the record in a slot, which must be of the `length` bytes at `offset`. Zeros follow them then,
    /// up to where an O_DIRECT write ends.
    pub(super) fn open(&mut self, slot: &mut [u8], offset: u64, length: usize) -> Checked {
        let header = self.header(slot, length)?;
        let check = checksum(CrcAlgorithm::Crc64Nvme, &slot[BODY..BODY + length]);
        if header.check != check || header.offset != offset {
            return Err(Trouble::new(format!("the block at {offset} arrived altered")));
        }
        // Behind the data lies the tag, which padding must not carry along.
        slot[BODY + length..BODY + padded(length)].fill(0);
        Ok(())
    }

    /// How many bytes the record has whose IV is in a slot; no more than the largest block.
    pub(super) fn length(&self, slot: &[u8]) -> Checked<usize> {
        let payload = Iv::decode(iv_in(slot), HEADER_LEN + self.block as usize)?.length as usize;
        payload.checked_sub(HEADER_LEN).ok_or_else(|| Trouble::new("a record without a header"))
    }

    /// Opens the record in a slot, which must be of `length` bytes of several files.
    pub(super) fn open_pack(&mut self, slot: &mut [u8], length: usize) -> Checked {
        let header = self.header(slot, length)?;
        if header.flags == PACKED { Ok(()) } else { Err(Trouble::new("a record that is no pack")) }
    }

    fn header(&mut self, slot: &mut [u8], length: usize) -> Checked<BlockHeader> {
        let iv = iv_in(slot);
        let sequence = Iv::decode(iv, HEADER_LEN + length)?.sequence;
        self.opener.open(sequence, iv, &mut slot[PAYLOAD..BODY + length + TAG_LEN])?;
        Ok(BlockHeader::decode(&slot[PAYLOAD..BODY + length], length, self.block)?)
    }
}

fn iv_in(slot: &[u8]) -> u64 {
    u64::from_be_bytes(std::array::from_fn(|i| slot[RECORD + i]))
}

/// Bytes that reading or writing `length` bytes takes, of whatever file.
pub(super) fn padded(length: usize) -> usize {
    length.next_multiple_of(crate::bare::ALIGNMENT)
}
