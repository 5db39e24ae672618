//! The payload of a file record: a 32-byte header, then at most one block of data.
//!
//! ```text
//! file 8 | offset 8 | plain length 4 | flags 4 | check 8 | data
//! ```
//!
//! * Plain: `data` is `plain length` bytes of `file` at `offset`; `check` is their CRC-64/NVME (0 when the
//!   session runs without checksums).
//! * [`ZSTD`]: `data` is one zstd frame that expands to exactly `plain length` bytes; `check` is of the
//!   expanded bytes.
//! * [`HOLE`]: no data, `plain length` is 0, and the last field is the hole's length in bytes.
//! * [`PACKED`]: `file` is a count, `offset` and `check` are 0, and the (expanded) data is that many headers,
//!   each of one whole small file, followed by their data in the same order.
//!
//! All integers are big-endian.

use crate::ProtocolError;

/// Bytes of a block header.
pub const HEADER_LEN: usize = 32;
/// The data is one zstd frame.
pub const ZSTD: u32 = 1;
/// The header stands for a hole.
pub const HOLE: u32 = 2;
/// The data is several small files.
pub const PACKED: u32 = 4;
/// Most files of one packed record.
pub const MAX_PACKED_FILES: u64 = 1024;
/// Largest file that may travel in a packed record, in bytes.
pub const MAX_PACKED_FILE_LEN: u64 = 128 * 1024;

/// A block header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockHeader {
    /// File number (or count of packed files).
    pub file: u64,
    /// Offset of the first byte.
    pub offset: u64,
    /// Bytes of plain data.
    pub plain_len: u32,
    /// [`ZSTD`], [`HOLE`], [`PACKED`].
    pub flags: u32,
    /// CRC-64/NVME of the plain data, or a hole's length.
    pub check: u64,
}

impl BlockHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0_u8; HEADER_LEN];
        out[0..8].copy_from_slice(&self.file.to_be_bytes());
        out[8..16].copy_from_slice(&self.offset.to_be_bytes());
        out[16..20].copy_from_slice(&self.plain_len.to_be_bytes());
        out[20..24].copy_from_slice(&self.flags.to_be_bytes());
        out[24..32].copy_from_slice(&self.check.to_be_bytes());
        out
    }

    /// Reads a header's fields and checks those that can be checked without knowing the file: flags that
    /// exclude each other, offsets that overflow, lengths beyond the block size, and `data_len` (what
    /// follows the header in the record) against what the header says.
    ///
    /// # Errors
    /// [`ProtocolError`] of the matching kind.
    pub fn decode(bytes: &[u8], data_len: usize, block_size: u32) -> Result<Self, ProtocolError> {
        let header = Self::fields(bytes)?;
        header.check_flags()?;
        header.check_lengths(data_len, block_size)?;
        Ok(header)
    }

    /// How many of a record's `data_len` bytes of data are file data as it travels. The headers of packed files
    /// are not, except in a compressed record, where nothing can be told apart.
    #[must_use]
    pub fn file_bytes(&self, data_len: usize) -> u64 {
        let headers = if self.flags == PACKED { self.file.saturating_mul(HEADER_LEN as u64) } else { 0 };
        (data_len as u64).saturating_sub(headers)
    }

    fn fields(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let short = ProtocolError::Length { what: "block header", got: bytes.len(), need: HEADER_LEN };
        let bytes: &[u8; HEADER_LEN] =
            bytes.get(..HEADER_LEN).and_then(|b| b.try_into().ok()).ok_or(short)?;
        let word = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| bytes[at + i]));
        let half = |at: usize| u32::from_be_bytes(std::array::from_fn(|i| bytes[at + i]));
        Ok(Self { file: word(0), offset: word(8), plain_len: half(16), flags: half(20), check: word(24) })
    }

    fn check_flags(&self) -> Result<(), ProtocolError> {
        let known = matches!(self.flags, 0 | ZSTD | HOLE | PACKED) || self.flags == PACKED | ZSTD;
        if known {
            Ok(())
        } else {
            Err(ProtocolError::Unknown { what: "block flags", value: self.flags.into() })
        }
    }

    fn check_lengths(&self, data_len: usize, block_size: u32) -> Result<(), ProtocolError> {
        if self.plain_len > block_size {
            return Err(ProtocolError::TooLarge {
                what: "block",
                got: self.plain_len.into(),
                limit: block_size.into(),
            });
        }
        let length = if self.flags & HOLE != 0 { self.check } else { self.plain_len.into() };
        if length == 0 || self.offset.checked_add(length).is_none() {
            return Err(ProtocolError::Malformed("block range"));
        }
        let plain = self.plain_len as usize;
        let fits = match self.flags {
            HOLE => self.plain_len == 0 && data_len == 0,
            flags if flags & ZSTD != 0 => data_len > 0 && data_len < plain,
            _ => data_len == plain,
        };
        if !fits {
            return Err(ProtocolError::Length { what: "block data", got: data_len, need: plain });
        }
        if self.flags & PACKED != 0 {
            if self.file == 0 || self.file > MAX_PACKED_FILES {
                return Err(ProtocolError::TooLarge {
                    what: "packed file count",
                    got: self.file,
                    limit: MAX_PACKED_FILES,
                });
            }
            if self.offset != 0 || self.check != 0 {
                return Err(ProtocolError::Malformed("packed header"));
            }
        }
        Ok(())
    }
}

/// Expands the data of [`ZSTD`] blocks.
pub struct Expander(zstd::bulk::Decompressor<'static>);

impl Expander {
    /// An expander for any number of blocks.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new() -> std::io::Result<Self> {
        zstd::bulk::Decompressor::new().map(Self)
    }

    /// Expands a block's `data` into the first bytes of `into`, exactly as many as its header declares, and writes
    /// nothing beyond them.
    ///
    /// # Errors
    /// [`ProtocolError`] when the data expands to more or less, or is no zstd, or when `into` is too short. What is in
    /// `into` then is not data.
    pub fn expand(
        &mut self,
        header: &BlockHeader,
        data: &[u8],
        into: &mut [u8],
    ) -> Result<(), ProtocolError> {
        let (room, declared) = (into.len(), header.plain_len as usize);
        let into = into.get_mut(..declared).ok_or(ProtocolError::TooLarge {
            what: "expanded block",
            got: declared as u64,
            limit: room as u64,
        })?;
        match self.0.decompress_to_buffer(data, into) {
            Ok(length) if length == declared => Ok(()),
            Ok(length) => Err(ProtocolError::Length { what: "expanded block", got: length, need: declared }),
            // zstd has one word for what is malformed and another for what does not fit; both are the peer's doing.
            Err(_) => Err(ProtocolError::Malformed("compressed block")),
        }
    }
}

impl std::fmt::Debug for Expander {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Expander")
    }
}

/// One file of a packed record, checked: its data lies in the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedFile {
    /// File number.
    pub file: u64,
    /// CRC-64/NVME of its data.
    pub check: u64,
    /// Where its data starts in the expanded payload.
    pub start: usize,
    /// Its length, and the file's.
    pub length: usize,
}

/// Takes the (expanded) data of a packed record apart. `count` is the outer header's `file`.
///
/// # Errors
/// [`ProtocolError`] unless the headers and the data fill `data` exactly.
pub fn unpack(count: u64, data: &[u8]) -> Result<Vec<PackedFile>, ProtocolError> {
    if count == 0 || count > MAX_PACKED_FILES {
        return Err(ProtocolError::TooLarge {
            what: "packed file count",
            got: count,
            limit: MAX_PACKED_FILES,
        });
    }
    #[expect(clippy::cast_possible_truncation, reason = "bounded by MAX_PACKED_FILES")]
    let count = count as usize;
    let mut start = count * HEADER_LEN;
    let mut files = Vec::with_capacity(count);
    for index in 0..count {
        let header = BlockHeader::fields(data.get(index * HEADER_LEN..).unwrap_or_default())?;
        let length = header.plain_len as usize;
        if header.flags != 0 || header.offset != 0 || length == 0 {
            return Err(ProtocolError::Malformed("packed file header"));
        }
        if length as u64 > MAX_PACKED_FILE_LEN {
            return Err(ProtocolError::TooLarge {
                what: "packed file",
                got: length as u64,
                limit: MAX_PACKED_FILE_LEN,
            });
        }
        files.push(PackedFile { file: header.file, check: header.check, start, length });
        start += length;
    }
    if start != data.len() {
        return Err(ProtocolError::Length { what: "packed data", got: data.len(), need: start });
    }
    Ok(files)
}
