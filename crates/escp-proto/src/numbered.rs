//! Tables by file and entry number.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A table by number. Entries are numbered one after the other, which [`crate::conversation`] insists on, so nobody can
/// choose numbers that collide, and a hash that withstands that is not needed. (An agent could, at its own engine: to the
/// harm of its own session.)
pub type Numbered<V> = HashMap<u64, V, BuildHasherDefault<NumberHasher>>;

/// A table that never grows while it holds at most `most` entries at a time, so that a long session takes no more
/// memory than a short one. What is removed leaves marks that count until the table is cleaned, and one more than half
/// full grows instead: hence twice the room.
#[must_use]
pub fn with_room<V>(most: u64) -> Numbered<V> {
    let room = usize::try_from(most.saturating_mul(2)).unwrap_or_default();
    Numbered::with_capacity_and_hasher(room, BuildHasherDefault::default())
}

/// Spreads a number over all bits of a hash (Fibonacci hashing).
#[derive(Debug, Default, Clone, Copy)]
pub struct NumberHasher(u64);

/// 2^64 divided by the golden ratio.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(FACTOR);
    }

    fn finish(&self) -> u64 {
        // The table takes its place from the low bits and a tag from the high ones.
        self.0 ^ (self.0 >> 32)
    }
}
