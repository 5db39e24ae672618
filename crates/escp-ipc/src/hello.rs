//! The first packet of each side, in a layout that no later version may change.
//!
//! ```text
//! magic 8 | version 2 | status 1 | text, UTF-8, up to 1024 bytes
//! ```
//!
//! Status 0: welcome; the text is the release that speaks. Status 1: no session; the text says why.

use crate::frame::cut;
use escp_sys::seqpacket;
use std::os::fd::AsFd;

/// The version of the frames that follow the hello. Any change to them, or to what they mean, takes the next one.
pub const VERSION: u16 = 4;

const MAGIC: [u8; 8] = *b"escp-ipc";
const HEADER: usize = MAGIC.len() + 3;
const MAX_TEXT: usize = 1024;
const WELCOME: u8 = 0;
const REFUSED: u8 = 1;

/// What one side says first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// Let us talk.
    Welcome {
        /// Version of the frames.
        version: u16,
        /// The release, such as `0.1.0`.
        release: String,
    },
    /// No session, and why, in one sentence.
    Refused(String),
}

/// Why a hello cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what answers on the socket is not escpd")]
pub struct HelloError;

impl Hello {
    /// This build's hello.
    #[must_use]
    pub fn ours() -> Self {
        Self::Welcome { version: VERSION, release: env!("CARGO_PKG_VERSION").to_owned() }
    }

    /// The packet's bytes. A text is cut at 1024 bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (version, status, text) = match self.clone() {
            Self::Welcome { version, release } => (version, WELCOME, release),
            Self::Refused(why) => (VERSION, REFUSED, why),
        };
        let mut packet = MAGIC.to_vec();
        packet.extend(version.to_be_bytes());
        packet.push(status);
        packet.extend(cut(text, MAX_TEXT).into_bytes());
        packet
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// [`HelloError`] when it is no hello.
    pub fn decode(packet: &[u8]) -> Result<Self, HelloError> {
        let (header, text) = packet.split_first_chunk::<HEADER>().ok_or(HelloError)?;
        let [magic @ .., high, low, status] = header;
        if *magic != MAGIC || text.len() > MAX_TEXT {
            return Err(HelloError);
        }
        let text = std::str::from_utf8(text).map_err(|_| HelloError)?.to_owned();
        match *status {
            WELCOME => Ok(Self::Welcome { version: u16::from_be_bytes([*high, *low]), release: text }),
            REFUSED => Ok(Self::Refused(text)),
            _ => Err(HelloError),
        }
    }
}

/// Turns a fresh connection away with one sentence, without waiting for anything. The caller closes it.
pub fn refuse(connection: impl AsFd, why: &str) {
    // An agent that hung up in the meantime has no need of it.
    let _ = seqpacket::send(connection, &Hello::Refused(why.to_owned()).encode(), &[]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_layout_stays() {
        let packet = Hello::Welcome { version: 0x0102, release: "9.8.7".to_owned() }.encode();
        assert_eq!(packet, b"escp-ipc\x01\x02\x009.8.7");
        assert_eq!(Hello::Refused("no".to_owned()).encode(), b"escp-ipc\x00\x04\x01no");
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let packet = Hello::Refused("ü".repeat(1000)).encode();
        assert_eq!(Hello::decode(&packet), Ok(Hello::Refused("ü".repeat(512))));
    }

    proptest! {
        #[test]
        fn decoding_never_panics_and_inverts_encoding(bytes in prop::collection::vec(any::<u8>(), 0..1200)) {
            let _ = Hello::decode(&bytes);
            let magic = [&MAGIC[..], &bytes].concat();
            if let Ok(hello) = Hello::decode(&magic) {
                prop_assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
            }
        }
    }
}
