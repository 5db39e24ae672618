//! CRC-64/NVME of blocks, folded by offset into the value of the whole file.
//!
//! The CRC of a concatenation is `shift(crc of the first, length of the second) XOR crc of the second`. The
//! shift is linear but a generic one costs 57 us, three times the CRC of a 1 MiB block; so the shift by a full
//! block is tabulated once per session, and generic ones are left for tails and holes.

use crc_fast::{CrcAlgorithm, checksum_combine};
use std::collections::BTreeMap;

const ALGORITHM: CrcAlgorithm = CrcAlgorithm::Crc64Nvme;
/// The CRC of no bytes.
pub(crate) const EMPTY: u64 = 0;
/// Ranges that may wait for one before them. In a session that behaves they are at most the blocks in flight;
/// it bounds what a peer can make a receiver remember.
const MAX_WAITING: usize = 65_536;

/// The check value of some bytes.
pub(crate) fn crc(bytes: &[u8]) -> u64 {
    crc_fast::checksum(ALGORITHM, bytes)
}

/// The check value of what a receiver decrypted.
pub(crate) fn received(bytes: &[u8]) -> u64 {
    crc(bytes) ^ u64::from(corrupt_on_request())
}

/// In debug builds, tests can make a receiver compute wrong values, to see that somebody notices.
fn corrupt_on_request() -> bool {
    static ASKED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    cfg!(debug_assertions) && *ASKED.get_or_init(|| std::env::var_os("ESCP_TEST_CORRUPT_CHECK").is_some())
}

fn shift(value: u64, length: u64) -> u64 {
    checksum_combine(ALGORITHM, value, 0, length)
}

/// The check value of `length` zeros: the register starts and ends inverted.
pub(crate) fn crc_of_zeros(length: u64) -> u64 {
    !shift(u64::MAX, length)
}

/// A linear map of 64 bits: the images of each.
type Operator = [u64; 64];

fn apply(operator: &[u64], value: u64) -> u64 {
    operator
        .iter()
        .enumerate()
        .filter(|(bit, _)| value & (1 << bit) != 0)
        .fold(0, |acc, (_, image)| acc ^ image)
}

/// The shift by `length` bytes, by squaring: 64 generic shifts would cost 4 ms at every start.
fn operator(length: u32) -> Operator {
    let mut power: Operator = std::array::from_fn(|bit| shift(1 << bit, 1));
    let mut result: Operator = std::array::from_fn(|bit| 1 << bit);
    for bit in 0..u32::BITS - length.leading_zeros() {
        if length & (1 << bit) != 0 {
            result = std::array::from_fn(|i| apply(&power, result[i]));
        }
        power = std::array::from_fn(|i| apply(&power, power[i]));
    }
    result
}

/// The shift by one full block, by table.
pub(crate) struct BlockShift {
    length: u64,
    tables: Box<[[u64; 256]; 8]>,
}

impl std::fmt::Debug for BlockShift {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlockShift({})", self.length)
    }
}

impl BlockShift {
    pub(crate) fn new(block_size: u32) -> Self {
        let length = u64::from(block_size);
        let operator = operator(block_size);
        let mut tables = Box::new([[0_u64; 256]; 8]);
        for (table, bits) in tables.iter_mut().zip(operator.as_chunks::<8>().0) {
            // Linear: the shift of a byte is the XOR of the shifts of its bits.
            for (value, entry) in table.iter_mut().enumerate() {
                *entry = apply(bits, value as u64);
            }
        }
        Self { length, tables }
    }

    fn combine(&self, first: u64, second: u64, second_length: u64) -> u64 {
        if first == EMPTY {
            return second;
        }
        if second_length != self.length {
            return shift(first, second_length) ^ second;
        }
        let shifted = self
            .tables
            .iter()
            .zip(first.to_le_bytes())
            .fold(0, |acc, (table, byte)| acc ^ table[usize::from(byte)]);
        shifted ^ second
    }
}

/// Why a range cannot be folded in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FoldError {
    /// Some of it came before.
    Twice,
    /// Too many ranges wait for one before them.
    TooManyWaiting,
}

/// Which ranges of a file came, and the check value of its beginning.
#[derive(Debug, Default)]
pub(crate) struct Fold {
    end: u64,
    value: u64,
    waiting: BTreeMap<u64, (u64, u64)>,
}

impl Fold {
    /// Adds a range. `offset + length` must not overflow.
    pub(crate) fn add(
        &mut self,
        offset: u64,
        length: u64,
        value: u64,
        block: &BlockShift,
    ) -> Result<(), FoldError> {
        if offset < self.end || self.overlaps_waiting(offset, length) {
            return Err(FoldError::Twice);
        }
        if offset > self.end {
            if self.waiting.len() >= MAX_WAITING {
                return Err(FoldError::TooManyWaiting);
            }
            self.waiting.insert(offset, (length, value));
            return Ok(());
        }
        self.extend(length, value, block);
        while let Some(next) = self.waiting.first_entry() {
            if *next.key() != self.end {
                break;
            }
            let (length, value) = next.remove();
            self.extend(length, value, block);
        }
        Ok(())
    }

    fn extend(&mut self, length: u64, value: u64, block: &BlockShift) {
        self.value = block.combine(self.value, value, length);
        self.end += length;
    }

    fn overlaps_waiting(&self, offset: u64, length: u64) -> bool {
        self.waiting
            .range(..offset + length)
            .next_back()
            .is_some_and(|(&start, &(waiting, _))| start + waiting > offset)
    }

    /// The check value of everything up to where nothing is missing.
    pub(crate) fn value(&self) -> u64 {
        self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u32 = 4096;

    fn data(length: usize) -> Vec<u8> {
        (0..length as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
    }

    #[test]
    fn the_standard_check_value() {
        // CRC-64/NVME, "Check" (NVM Express Command Set Specification 1.0, 5.2.1.3.4).
        assert_eq!(crc(b"123456789"), 0xAE8B_1486_0A79_9888);
        assert_eq!(crc(b""), EMPTY);
    }

    #[test]
    fn blocks_in_any_order_fold_to_the_whole() {
        let block = BlockShift::new(BLOCK);
        let bytes = data(7 * BLOCK as usize + 123);
        let whole = crc(&bytes);
        for order in [[0, 1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1, 0], [3, 0, 7, 1, 6, 2, 5, 4]] {
            let mut fold = Fold::default();
            for index in order {
                let start = index * BLOCK as usize;
                let part = &bytes[start..bytes.len().min(start + BLOCK as usize)];
                fold.add(start as u64, part.len() as u64, crc(part), &block).unwrap();
            }
            assert_eq!((fold.value(), fold.end), (whole, bytes.len() as u64));
            assert!(fold.waiting.is_empty());
        }
    }

    #[test]
    fn zeros_are_known_without_reading_them() {
        for length in [1, 7, 4096, 1_000_003] {
            assert_eq!(crc_of_zeros(length), crc(&vec![0; usize::try_from(length).unwrap()]), "{length}");
        }
        let block = BlockShift::new(BLOCK);
        let mut fold = Fold::default();
        fold.add(0, 5000, crc_of_zeros(5000), &block).unwrap();
        fold.add(5000, 3, crc(b"abc"), &block).unwrap();
        assert_eq!(fold.value(), crc(&[vec![0; 5000], b"abc".to_vec()].concat()));
    }

    #[test]
    fn nothing_counts_twice() {
        let block = BlockShift::new(BLOCK);
        let mut fold = Fold::default();
        fold.add(0, 10, 1, &block).unwrap();
        fold.add(20, 10, 1, &block).unwrap();
        for (offset, length) in [(0, 10), (9, 1), (5, 10), (20, 10), (15, 6), (29, 1), (10, 100), (25, 2)] {
            assert_eq!(fold.add(offset, length, 1, &block), Err(FoldError::Twice), "{offset}+{length}");
        }
        fold.add(10, 10, 1, &block).unwrap();
        assert_eq!(fold.end, 30);
    }

    #[test]
    fn waiting_ranges_are_bounded() {
        let block = BlockShift::new(BLOCK);
        let mut fold = Fold::default();
        for n in 0..MAX_WAITING as u64 {
            fold.add(1 + 2 * n, 1, 0, &block).unwrap();
        }
        assert_eq!(fold.add(1 << 40, 1, 0, &block), Err(FoldError::TooManyWaiting));
    }
}
