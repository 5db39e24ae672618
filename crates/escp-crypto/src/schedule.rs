//! From the hellos of the two agents to the keys of each record.
//!
//! ```text
//! master        = HKDF-Extract(salt = SHA-256(near hello ‖ far hello), input = near random ‖ far random)
//! route key     = HKDF-Expand(master, "escp2 route" ‖ session id, 32)
//! stream secret = HKDF-Expand(master, "escp2 stream" ‖ session id ‖ stream ‖ flow ‖ nonce ‖ answer nonce, 32)
//! key, iv, next = HKDF-Expand(secret of the epoch, "escp2 key" | "escp2 iv" | "escp2 next", 16 | 12 | 32)
//! ```
//!
//! HKDF is RFC 5869 with SHA-256. Integers are big-endian.

use crate::CryptoError;
use ring::{aead, digest, hkdf, hmac};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

const LABEL_ROUTE: &[u8] = b"escp2 route";
const LABEL_STREAM: &[u8] = b"escp2 stream";
const LABEL_KEY: &[u8] = b"escp2 key";
const LABEL_IV: &[u8] = b"escp2 iv";
const LABEL_NEXT: &[u8] = b"escp2 next";

/// Which way a key's records travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// From the near engine to the far one.
    NearToFar,
    /// From the far engine to the near one.
    FarToNear,
}

impl Flow {
    fn octet(self) -> u8 {
        match self {
            Self::NearToFar => 0,
            Self::FarToNear => 1,
        }
    }
}

/// What ties a stream's keys to that stream alone.
#[derive(Debug, Clone, Copy)]
pub struct StreamContext {
    /// Session id.
    pub session: [u8; 16],
    /// Stream number.
    pub stream: u16,
    /// Nonce of the first packet, by the end that dialled.
    pub nonce: [u8; 16],
    /// Nonce of the answer.
    pub answer_nonce: [u8; 16],
}

/// The secret of a session. Wiped when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct MasterSecret([u8; 32]);

impl std::fmt::Debug for MasterSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MasterSecret(..)")
    }
}

impl MasterSecret {
    /// Binds the two random contributions to the exact bytes of both hello frames, so that nobody who
    /// altered a frame (to lower a version, say) ends up with the same secret on both sides.
    #[must_use]
    pub fn from_hellos(
        near_hello: &[u8],
        far_hello: &[u8],
        near_random: &[u8; 32],
        far_random: &[u8; 32],
    ) -> Self {
        let mut transcript = digest::Context::new(&digest::SHA256);
        transcript.update(near_hello);
        transcript.update(far_hello);
        let salt = transcript.finish();
        let mut input = Zeroizing::new([0_u8; 64]);
        input[..32].copy_from_slice(near_random);
        input[32..].copy_from_slice(far_random);
        // HKDF-Extract(salt, IKM) is HMAC(key = salt, IKM) (RFC 5869, 2.2); ring keeps its own result
        // opaque, and this one has to cross a socket.
        let extracted = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, salt.as_ref()), &input[..]);
        let mut secret = [0_u8; 32];
        secret.copy_from_slice(extracted.as_ref());
        Self(secret)
    }

    /// Takes a master secret that an agent computed.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The secret itself, to hand it to an engine.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key that proves a stream's first packet belongs to `session`. It gives access to nothing else,
    /// so a broker may hold it.
    #[must_use]
    pub fn route_key(&self, session: &[u8; 16]) -> RouteKey {
        RouteKey(expand(&self.0, &[LABEL_ROUTE, session]))
    }

    /// The first secret of one stream and direction.
    #[must_use]
    pub fn stream_secret(&self, context: &StreamContext, flow: Flow) -> StreamSecret {
        StreamSecret(expand(
            &self.0,
            &[
                LABEL_STREAM,
                &context.session,
                &context.stream.to_be_bytes(),
                &[flow.octet()],
                &context.nonce,
                &context.answer_nonce,
            ],
        ))
    }
}

/// Proves and checks the first packets of a stream. Wiped when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct RouteKey([u8; 32]);

impl std::fmt::Debug for RouteKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RouteKey(..)")
    }
}

impl RouteKey {
    /// Takes a routing key that a worker registered.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key itself, to register it with a broker.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// HMAC-SHA-256 over the concatenation of `parts`, cut to 16 bytes (RFC 2104, section 5).
    #[must_use]
    pub fn proof(&self, parts: &[&[u8]]) -> [u8; 16] {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &self.0));
        for part in parts {
            context.update(part);
        }
        let mut proof = [0_u8; 16];
        proof.copy_from_slice(&context.sign().as_ref()[..16]);
        proof
    }

    /// Compares a proof in constant time.
    ///
    /// # Errors
    /// [`CryptoError::WrongProof`].
    pub fn verify(&self, parts: &[&[u8]], proof: &[u8; 16]) -> Result<(), CryptoError> {
        let due = self.proof(parts);
        // Every byte is looked at whatever the first ones were.
        let difference = due.iter().zip(proof).fold(0_u8, |acc, (a, b)| acc | (a ^ b));
        if std::hint::black_box(difference) == 0 { Ok(()) } else { Err(CryptoError::WrongProof) }
    }
}

/// The secret of one stream, direction and epoch. Wiped when dropped.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct StreamSecret([u8; 32]);

impl std::fmt::Debug for StreamSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StreamSecret(..)")
    }
}

impl StreamSecret {
    /// The next epoch's secret. The old one is dropped, and with it the means to read its records.
    #[must_use]
    pub fn next_epoch(self) -> Self {
        Self(expand(&self.0, &[LABEL_NEXT]))
    }

    /// The AES-128 key of this epoch.
    #[must_use]
    pub fn key(&self) -> Zeroizing<[u8; 16]> {
        Zeroizing::new(expand(&self.0, &[LABEL_KEY]))
    }

    /// The 96-bit IV base of this epoch.
    #[must_use]
    pub fn iv_base(&self) -> [u8; 12] {
        expand(&self.0, &[LABEL_IV])
    }

    pub(crate) fn aead_key(&self) -> Option<aead::LessSafeKey> {
        let key = self.key();
        Some(aead::LessSafeKey::new(aead::UnboundKey::new(&aead::AES_128_GCM, &key[..]).ok()?))
    }
}

struct OutputLen(usize);

impl hkdf::KeyType for OutputLen {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-Expand. `N` is at most 32 here, far below the 255 × 32 bytes at which it would fail.
fn expand<const N: usize>(secret: &[u8; 32], info: &[&[u8]]) -> [u8; N] {
    let prk = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, secret);
    let mut output = [0_u8; N];
    #[expect(clippy::expect_used, reason = "HKDF refuses only outputs over 8160 bytes (RFC 5869, 2.3)")]
    prk.expand(info, OutputLen(N))
        .and_then(|okm| okm.fill(&mut output))
        .expect("HKDF-Expand of at most 32 bytes");
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(stream: u16) -> StreamContext {
        StreamContext { session: [1; 16], stream, nonce: [2; 16], answer_nonce: [3; 16] }
    }

    #[test]
    fn every_input_of_the_schedule_matters() {
        let master = MasterSecret::from_hellos(b"near", b"far", &[4; 32], &[5; 32]);
        let others = [
            MasterSecret::from_hellos(b"neaR", b"far", &[4; 32], &[5; 32]),
            MasterSecret::from_hellos(b"near", b"faR", &[4; 32], &[5; 32]),
            MasterSecret::from_hellos(b"near", b"far", &[0; 32], &[5; 32]),
            MasterSecret::from_hellos(b"near", b"far", &[4; 32], &[0; 32]),
            MasterSecret::from_hellos(b"near", b"far", &[5; 32], &[4; 32]),
        ];
        for other in &others {
            assert_ne!(master.expose(), other.expose());
        }
        let secret = |context: StreamContext, flow| master.stream_secret(&context, flow).0;
        let base = secret(context(1), Flow::NearToFar);
        assert_ne!(base, secret(context(2), Flow::NearToFar));
        assert_ne!(base, secret(context(1), Flow::FarToNear));
        assert_ne!(base, secret(StreamContext { session: [9; 16], ..context(1) }, Flow::NearToFar));
        assert_ne!(base, secret(StreamContext { nonce: [9; 16], ..context(1) }, Flow::NearToFar));
        assert_ne!(base, secret(StreamContext { answer_nonce: [9; 16], ..context(1) }, Flow::NearToFar));
    }

    #[test]
    fn epochs_differ_and_do_not_repeat() {
        let master = MasterSecret::from_bytes([7; 32]);
        let first = master.stream_secret(&context(1), Flow::NearToFar);
        let (key, iv) = (*first.key(), first.iv_base());
        let second = first.next_epoch();
        assert_ne!(key, *second.key());
        assert_ne!(iv, second.iv_base());
    }

    #[test]
    fn a_proof_with_any_bit_changed_is_refused() {
        let key = MasterSecret::from_bytes([7; 32]).route_key(&[1; 16]);
        let proof = key.proof(&[b"a", b"packet"]);
        assert_eq!(key.verify(&[b"a packet".as_slice()], &proof), Err(CryptoError::WrongProof));
        assert_eq!(key.verify(&[b"apacket".as_slice()], &proof), Ok(()));
        for bit in 0..128 {
            let mut wrong = proof;
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(key.verify(&[b"apacket"], &wrong), Err(CryptoError::WrongProof));
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let master = MasterSecret::from_bytes([0xab; 32]);
        let shown = format!("{master:?} {:?}", master.stream_secret(&context(1), Flow::NearToFar));
        assert!(!shown.contains("171") && !shown.contains("ab,"), "{shown}");
    }
}
