//! The control channel: frames over ssh's standard input and output.
//!
//! ```text
//! length 4 (big-endian, of what follows) | body
//! ```
//!
//! The first frame each way is a [`Hello`] of fixed layout, so that versions can be told apart forever; then
//! come [`ControlMessage`]s in postcard. No file name and no file data travels here.

mod bounds;
pub mod dialogue;
mod reader;

pub use reader::FrameReader;

use crate::ProtocolError;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Largest frame body, in bytes.
pub const MAX_FRAME: usize = 64 * 1024;
/// Bytes of a frame's length.
pub const LENGTH_LEN: usize = 4;
/// Fewest bytes of a hello body: what every version has.
pub const HELLO_LEN: usize = 68;
/// Bytes of a hello body with the machine.
pub const FULL_HELLO_LEN: usize = HELLO_LEN + 16;
/// First bytes of a hello body.
pub const MAGIC: [u8; 8] = *b"escp-ctl";

/// Largest hello body, in bytes: what later versions may append is bounded too.
pub const MAX_HELLO: usize = 1024;
/// Longest text of a [`ControlMessage`], in bytes. Longer ones are cut when they are encoded.
pub const MAX_TEXT: usize = 2048;
/// Longest name of an engine kind, in bytes.
pub const MAX_ENGINE: usize = 32;
/// Longest name of a congestion control, in bytes: Linux has room for a NUL behind it (`TCP_CA_NAME_MAX`).
pub const MAX_CONGESTION: usize = 15;
/// Most addresses or notes of a [`Listening`]; more are left out when it is encoded.
pub const MAX_ITEMS: usize = 16;
/// Most ports of a [`Listening`]; more are left out when it is encoded.
pub const MAX_PORTS: usize = 256;
/// Most data streams of a session.
pub const MAX_STREAMS: u16 = 256;
/// Smallest block size, in bytes. Block sizes are multiples of [`BLOCK_UNIT`].
pub const MIN_BLOCK_SIZE: u32 = 256 * 1024;
/// Largest block size, in bytes.
pub const MAX_BLOCK_SIZE: u32 = 8 * 1024 * 1024;
/// What a block size is a multiple of, in bytes.
pub const BLOCK_UNIT: u32 = 4096;
/// Fewest blocks in flight per stream.
pub const MIN_DEPTH: u16 = 2;
/// Most blocks in flight per stream.
pub const MAX_DEPTH: u16 = 64;
/// The most that a far agent can be asked to say.
pub const MAX_VERBOSE: u8 = 4;

/// The first frame each way.
///
/// ```text
/// magic 8 | lowest version 2 | highest version 2 | features 8 | session id 16 | random 32 | machine 16
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Hello {
    /// Lowest protocol version spoken.
    pub lowest: u16,
    /// Highest protocol version spoken.
    pub highest: u16,
    /// Feature bits; unknown ones are ignored. None is assigned yet.
    pub features: u64,
    /// The session's id, chosen by the near agent and echoed by the far one.
    pub session: [u8; 16],
    /// This side's contribution to the master secret.
    pub random: [u8; 32],
    /// A mark of the machine this side runs on, of this session only, so that the near side learns whether both
    /// ends share their cores. Zeros: not to be told.
    pub machine: [u8; 16],
}

/// What follows a hello.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlMessage {
    /// Near to far: open your engine like this.
    Job(Job),
    /// Far to near: dial here.
    Listening(Listening),
    /// Either way: it cannot go on.
    Failed(ControlFailure),
    /// Near to far, last: all is said; the far agent may exit.
    Bye,
}

/// Parameters of the far engine. No names: those travel sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The far engine sends file data (a download).
    pub far_sends: bool,
    /// `uring`, `posix` or `dummy`.
    pub engine: String,
    /// Data streams between two machines.
    pub streams: Streams,
    /// Data streams where both hellos have the same machine.
    pub streams_on_one_machine: Streams,
    /// Bytes of a full block.
    pub block_size: u32,
    /// Highest zstd level, if the sender is to compress.
    pub compress: Option<i32>,
    /// Compute check values.
    pub checksum: bool,
    /// Make data durable.
    pub durable: bool,
    /// Total bits per second of the sender.
    pub rate_limit: Option<u64>,
    /// TCP congestion control of data streams, as the kernel calls it; `None`: the host's own.
    pub congestion: Option<String>,
    /// Ports for an embedded far engine, first and last; `None`: the far configuration's.
    pub ports: Option<(u16, u16)>,
    /// How much the far agent says on stderr: 0 errors only, 1 warnings too, 2 remarks, 3 decisions, 4 everything.
    pub verbose: u8,
}

/// Data streams of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    /// How many.
    pub count: u16,
    /// Blocks in flight on each.
    pub depth: u16,
}

/// Where the far engine can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// Addresses to try, best first; may be empty, then the near side uses the name it gave ssh.
    pub addresses: Vec<IpAddr>,
    /// Ports, all equal.
    pub ports: Vec<u16>,
    /// Engine kind in use.
    pub engine: String,
    /// The engine runs in escpd.
    pub daemon: bool,
    /// One-line remarks for `-v`.
    pub notes: Vec<String>,
}

/// Why a side gives up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlFailure {
    /// Exit status.
    pub status: u8,
    /// One sentence.
    pub text: String,
}

impl ControlMessage {
    /// The whole frame: length and body. Texts for people are cut to [`MAX_TEXT`], and lists of a
    /// [`Listening`] to their bounds.
    ///
    /// # Errors
    /// [`ProtocolError::TooLarge`] or [`ProtocolError::Malformed`] for a value the peer would refuse.
    pub fn encode_frame(&self) -> Result<Vec<u8>, ProtocolError> {
        let mut message = self.clone();
        message.clip();
        message.check()?;
        let frame = postcard::to_extend(&message, vec![0; LENGTH_LEN])
            .map_err(|_| ProtocolError::Malformed("control message to encode"))?;
        bounds::with_length(frame)
    }

    /// Reads a frame's body and checks every bound of this module. Memory is bounded by a small multiple of
    /// [`MAX_FRAME`] whatever the bytes claim.
    ///
    /// # Errors
    /// [`ProtocolError::TooLarge`] for a size, count or parameter beyond its bound,
    /// [`ProtocolError::Malformed`] for anything else that is not exactly one well-formed message.
    pub fn decode(body: &[u8]) -> Result<Self, ProtocolError> {
        bounds::at_most("control frame", body.len(), MAX_FRAME)?;
        let (message, rest) = postcard::take_from_bytes::<Self>(body)
            .map_err(|_| ProtocolError::Malformed("control message"))?;
        if !rest.is_empty() {
            return Err(ProtocolError::Malformed("control message: bytes after its end"));
        }
        message.check()?;
        Ok(message)
    }
}

impl std::fmt::Debug for Hello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hello")
            .field("lowest", &self.lowest)
            .field("highest", &self.highest)
            .field("features", &self.features)
            .field("random", &"..")
            .finish_non_exhaustive()
    }
}

impl Hello {
    /// The whole frame, as it enters the transcript.
    #[must_use]
    pub fn encode_frame(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(LENGTH_LEN + FULL_HELLO_LEN);
        #[expect(clippy::cast_possible_truncation, reason = "a constant")]
        out.extend_from_slice(&(FULL_HELLO_LEN as u32).to_be_bytes());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.lowest.to_be_bytes());
        out.extend_from_slice(&self.highest.to_be_bytes());
        out.extend_from_slice(&self.features.to_be_bytes());
        out.extend_from_slice(&self.session);
        out.extend_from_slice(&self.random);
        out.extend_from_slice(&self.machine);
        out
    }

    /// Reads a hello body. A hello may end before the machine, and a later version may append fields, so more
    /// bytes, up to [`MAX_HELLO`], are fine.
    ///
    /// # Errors
    /// [`ProtocolError`] when it is not a hello.
    pub fn decode_body(body: &[u8]) -> Result<Self, ProtocolError> {
        bounds::at_most("hello", body.len(), MAX_HELLO)?;
        let Some(fields) = body.first_chunk::<HELLO_LEN>() else {
            return Err(ProtocolError::Length { what: "hello", got: body.len(), need: HELLO_LEN });
        };
        if fields[..8] != MAGIC {
            return Err(ProtocolError::Malformed("hello"));
        }
        let lowest = u16::from_be_bytes([fields[8], fields[9]]);
        let highest = u16::from_be_bytes([fields[10], fields[11]]);
        if lowest > highest {
            return Err(ProtocolError::Malformed("hello: version range"));
        }
        Ok(Self {
            lowest,
            highest,
            features: u64::from_be_bytes(std::array::from_fn(|i| fields[12 + i])),
            session: std::array::from_fn(|i| fields[20 + i]),
            random: std::array::from_fn(|i| fields[36 + i]),
            machine: body[HELLO_LEN..].first_chunk().copied().unwrap_or_default(),
        })
    }

    /// The frame of a body that [`FrameReader::next`] returned, as it enters the transcript.
    ///
    /// # Errors
    /// [`ProtocolError::TooLarge`] over [`MAX_HELLO`].
    pub fn frame_of(body: &[u8]) -> Result<Vec<u8>, ProtocolError> {
        bounds::at_most("hello", body.len(), MAX_HELLO)?;
        let mut frame = vec![0; LENGTH_LEN];
        frame.extend_from_slice(body);
        bounds::with_length(frame)
    }

    /// Whether both sides run on one machine, as far as both tell. Both find the same, from the same two hellos.
    #[must_use]
    pub fn shares_machine_with(&self, peer: &Self) -> bool {
        self.machine == peer.machine && self.machine != [0; 16]
    }

    /// The highest version both sides speak.
    ///
    /// # Errors
    /// [`ProtocolError::Version`] when there is none.
    pub fn agree(&self, peer: &Self) -> Result<u16, ProtocolError> {
        let highest = self.highest.min(peer.highest);
        if highest < self.lowest.max(peer.lowest) {
            let range = if peer.lowest == peer.highest {
                peer.highest.to_string()
            } else {
                format!("{} to {}", peer.lowest, peer.highest)
            };
            return Err(ProtocolError::Version { peer: range, ours: self.highest });
        }
        Ok(highest)
    }
}
