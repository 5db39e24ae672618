//! A digest of the list of files a session moved.

use ring::digest;

/// XOR over the files of SHA-256(number 8 ‖ size 8 ‖ check 8), and their count.
///
/// Numbers are unique in a session and the value travels sealed, so XOR is enough to notice any difference
/// between what the two sides believe; it needs no order and no memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ListDigest {
    files: u64,
    hash: [u8; 32],
}

impl ListDigest {
    /// Adds a file that was published: its number, size in bytes and check value.
    pub fn add(&mut self, number: u64, size: u64, check: u64) {
        let mut item = [0_u8; 24];
        item[0..8].copy_from_slice(&number.to_be_bytes());
        item[8..16].copy_from_slice(&size.to_be_bytes());
        item[16..24].copy_from_slice(&check.to_be_bytes());
        let digest = digest::digest(&digest::SHA256, &item);
        for (byte, other) in self.hash.iter_mut().zip(digest.as_ref()) {
            *byte ^= other;
        }
        self.files += 1;
    }

    /// Files added.
    #[must_use]
    pub fn files(&self) -> u64 {
        self.files
    }

    /// The digest.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_matter_but_every_field_does() {
        let list = |files: &[(u64, u64, u64)]| {
            let mut digest = ListDigest::default();
            files.iter().for_each(|&(number, size, check)| digest.add(number, size, check));
            digest
        };
        let whole = list(&[(1, 2, 3), (4, 5, 6)]);
        assert_eq!(whole, list(&[(4, 5, 6), (1, 2, 3)]));
        for other in [
            list(&[(1, 2, 3)]),
            list(&[(9, 2, 3), (4, 5, 6)]),
            list(&[(1, 9, 3), (4, 5, 6)]),
            list(&[(1, 2, 9), (4, 5, 6)]),
        ] {
            assert_ne!(whole, other);
        }
    }
}
