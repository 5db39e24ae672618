//! Sealing and opening the records of one stream and direction.

use crate::{CryptoError, MAX_SEQUENCE, RECORDS_PER_EPOCH, StreamSecret, TAG_LEN};
use ring::aead::{Aad, LessSafeKey, Nonce};

/// A sequence number drawn from a [`Sealer`]. It cannot be made otherwise, copied or used twice, so no
/// two records are sealed under one nonce.
#[derive(Debug)]
#[must_use = "a drawn sequence number that is not sealed leaves a gap no receiver accepts"]
pub struct Sequence(u64);

impl Sequence {
    /// The number, for composing the record's IV.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.0
    }
}

/// The keys of the current epoch, and the way to the next.
struct Epoch {
    number: u64,
    secret: Option<StreamSecret>,
    key: LessSafeKey,
    iv_base: [u8; 12],
}

impl Epoch {
    fn first(secret: StreamSecret) -> Result<Self, CryptoError> {
        let key = secret.aead_key().ok_or(CryptoError::Exhausted)?;
        Ok(Self { number: 0, iv_base: secret.iv_base(), key, secret: Some(secret) })
    }

    /// Moves on to the epoch that `sequence` lies in. Sequence numbers rise one by one, so that is this
    /// epoch or the next.
    fn advance_to(&mut self, sequence: u64) -> Result<(), CryptoError> {
        while self.number < sequence / RECORDS_PER_EPOCH {
            let next = self.secret.take().ok_or(CryptoError::Exhausted)?.next_epoch();
            self.key = next.aead_key().ok_or(CryptoError::Exhausted)?;
            self.iv_base = next.iv_base();
            self.secret = Some(next);
            self.number += 1;
        }
        Ok(())
    }

    /// base XOR (32 zero bits ‖ the 64-bit IV).
    fn nonce(&self, iv: u64) -> Nonce {
        let mut nonce = self.iv_base;
        for (byte, iv_byte) in nonce[4..].iter_mut().zip(iv.to_be_bytes()) {
            *byte ^= iv_byte;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Seals the records of one stream and direction, in order.
pub struct Sealer {
    epoch: Epoch,
    next: u64,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").field("next", &self.next).finish_non_exhaustive()
    }
}

impl Sealer {
    /// Starts at sequence number 0.
    ///
    /// # Errors
    /// None that can happen with a secret of this crate.
    pub fn new(secret: StreamSecret) -> Result<Self, CryptoError> {
        Ok(Self { epoch: Epoch::first(secret)?, next: 0 })
    }

    /// Draws the next sequence number.
    ///
    /// # Errors
    /// [`CryptoError::Exhausted`] after 2^38 records.
    pub fn next_sequence(&mut self) -> Result<Sequence, CryptoError> {
        if self.next >= MAX_SEQUENCE {
            return Err(CryptoError::Exhausted);
        }
        let sequence = Sequence(self.next);
        self.next += 1;
        Ok(sequence)
    }

    /// Records drawn so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.next
    }

    /// Encrypts `payload` in place and returns its tag. `iv` is the record's IV with `sequence` in it; it
    /// is authenticated too.
    ///
    /// # Errors
    /// [`CryptoError::Exhausted`] if records are sealed out of order across an epoch.
    pub fn seal(
        &mut self,
        sequence: Sequence,
        iv: u64,
        payload: &mut [u8],
    ) -> Result<[u8; TAG_LEN], CryptoError> {
        self.epoch.advance_to(sequence.0)?;
        let tag = self
            .epoch
            .key
            .seal_in_place_separate_tag(self.epoch.nonce(iv), Aad::from(iv.to_be_bytes()), payload)
            .map_err(|_| CryptoError::Exhausted)?;
        let mut out = [0_u8; TAG_LEN];
        out.copy_from_slice(tag.as_ref());
        Ok(out)
    }
}

/// Opens the records of one stream and direction; they must come in order.
pub struct Opener {
    epoch: Epoch,
    next: u64,
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opener").field("next", &self.next).finish_non_exhaustive()
    }
}

impl Opener {
    /// Starts at sequence number 0.
    ///
    /// # Errors
    /// None that can happen with a secret of this crate.
    pub fn new(secret: StreamSecret) -> Result<Self, CryptoError> {
        Ok(Self { epoch: Epoch::first(secret)?, next: 0 })
    }

    /// Records opened so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.next
    }

    /// Decrypts a payload followed by its tag, in place, and returns the plain payload. `sequence` is what
    /// the record's IV claims.
    ///
    /// # Errors
    /// [`CryptoError::OutOfOrder`] if `sequence` is not the next one; [`CryptoError::Forged`] if the tag
    /// does not match, and then the bytes are garbage; [`CryptoError::Exhausted`] after 2^38 records.
    pub fn open<'a>(
        &mut self,
        sequence: u64,
        iv: u64,
        payload_and_tag: &'a mut [u8],
    ) -> Result<&'a mut [u8], CryptoError> {
        if sequence != self.next {
            return Err(CryptoError::OutOfOrder { expected: self.next, got: sequence });
        }
        if sequence >= MAX_SEQUENCE {
            return Err(CryptoError::Exhausted);
        }
        self.epoch.advance_to(sequence)?;
        let plain = self
            .epoch
            .key
            .open_in_place(self.epoch.nonce(iv), Aad::from(iv.to_be_bytes()), payload_and_tag)
            .map_err(|_| CryptoError::Forged)?;
        self.next += 1;
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Flow, MasterSecret, StreamContext};

    fn pair() -> (Sealer, Opener) {
        let context = StreamContext { session: [1; 16], stream: 1, nonce: [2; 16], answer_nonce: [3; 16] };
        let secret = || MasterSecret::from_bytes([7; 32]).stream_secret(&context, Flow::NearToFar);
        (Sealer::new(secret()).unwrap(), Opener::new(secret()).unwrap())
    }

    fn seal(sealer: &mut Sealer, plain: &[u8]) -> (u64, u64, Vec<u8>) {
        let sequence = sealer.next_sequence().unwrap();
        let number = sequence.number();
        let iv = (1 << 62) | ((plain.len() as u64) << 38) | number;
        let mut bytes = plain.to_vec();
        let tag = sealer.seal(sequence, iv, &mut bytes).unwrap();
        bytes.extend_from_slice(&tag);
        (number, iv, bytes)
    }

    #[test]
    fn opens_what_was_sealed_across_epochs() {
        let (mut sealer, mut opener) = pair();
        for index in 0..(2 * RECORDS_PER_EPOCH + 3) {
            let (number, iv, mut bytes) = seal(&mut sealer, &index.to_be_bytes());
            assert_eq!(opener.open(number, iv, &mut bytes).unwrap(), index.to_be_bytes());
        }
    }

    #[test]
    fn refuses_any_changed_bit_of_iv_payload_or_tag() {
        let (mut sealer, _) = pair();
        let (number, iv, bytes) = seal(&mut sealer, b"some payload");
        for bit in 0..bytes.len() * 8 {
            let (_, mut opener) = pair();
            let mut wrong = bytes.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(opener.open(number, iv, &mut wrong).unwrap_err(), CryptoError::Forged);
        }
        for bit in 0..64 {
            let (_, mut opener) = pair();
            let mut copy = bytes.clone();
            assert_eq!(opener.open(number, iv ^ (1 << bit), &mut copy).unwrap_err(), CryptoError::Forged);
        }
    }

    #[test]
    fn refuses_replayed_dropped_and_swapped_records() {
        let (mut sealer, mut opener) = pair();
        let records: Vec<_> = (0..3_u8).map(|n| seal(&mut sealer, &[n])).collect();
        let mut open = |n: usize| {
            let (number, iv, mut bytes) = records[n].clone();
            opener.open(number, iv, &mut bytes).map(|plain| plain.to_vec())
        };
        assert_eq!(open(1), Err(CryptoError::OutOfOrder { expected: 0, got: 1 }));
        assert_eq!(open(0), Ok(vec![0]));
        assert_eq!(open(0), Err(CryptoError::OutOfOrder { expected: 1, got: 0 }));
        assert_eq!(open(2), Err(CryptoError::OutOfOrder { expected: 1, got: 2 }));
        assert_eq!(open(1), Ok(vec![1]));
    }

    #[test]
    fn ends_at_the_last_sequence_number() {
        let (mut sealer, mut opener) = pair();
        sealer.next = MAX_SEQUENCE;
        opener.next = MAX_SEQUENCE;
        assert_eq!(sealer.next_sequence().unwrap_err(), CryptoError::Exhausted);
        assert_eq!(opener.open(MAX_SEQUENCE, 0, &mut [0; 32]).unwrap_err(), CryptoError::Exhausted);
    }
}
