//! A block as a record, in place: IV, header, body and tag are one range of its slot.

use crc_fast::{CrcAlgorithm, checksum};
use escp_buf::BODY;
use escp_crypto::{Opener, Sealer, StreamSecret};
use escp_proto::block::{BlockHeader, HEADER_LEN};
use escp_proto::record::{IV_LEN, Iv, Kind, TAG_LEN};
use escp_testkit::{Checked, Trouble};
use std::ops::Range;

const RECORD: usize = BODY - HEADER_LEN - IV_LEN;
const PAYLOAD: usize = RECORD + IV_LEN;

/// Where the record of a block of `length` bytes lies in its slot.
pub(super) fn record(length: usize) -> Range<usize> {
    RECORD..BODY + length + TAG_LEN
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
        let header = BlockHeader { file: 1, offset, plain_len, flags: 0, check }.encode();
        slot[PAYLOAD..BODY].copy_from_slice(&header);
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
        let iv = u64::from_be_bytes(std::array::from_fn(|i| slot[RECORD + i]));
        let sequence = Iv::decode(iv, HEADER_LEN + length)?.sequence;
        self.opener.open(sequence, iv, &mut slot[PAYLOAD..BODY + length + TAG_LEN])?;
        let header = BlockHeader::decode(&slot[PAYLOAD..BODY + length], length, self.block)?;
        let check = checksum(CrcAlgorithm::Crc64Nvme, &slot[BODY..BODY + length]);
        if header.check != check || header.offset != offset {
            return Err(Trouble::new(format!("the block at {offset} arrived altered")));
        }
        // Behind the data lies the tag, which padding must not carry along.
        slot[BODY + length..BODY + padded(length)].fill(0);
        Ok(())
    }
}

/// Bytes that reading or writing `length` bytes takes, of whatever file.
pub(super) fn padded(length: usize) -> usize {
    length.next_multiple_of(crate::bare::ALIGNMENT)
}
