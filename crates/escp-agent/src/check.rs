//! Check values of whole files between the engine's interface and the agents' messages of this version, whose
//! one word has room for a CRC-64 (docs/PROTOCOL.md, section 9, says what another one takes).

use escp_engine_api::FileCheck;

/// As `Digests` and `Done` carry it: 0 where checksums are off.
pub(crate) fn to_wire(check: FileCheck) -> u64 {
    match check {
        FileCheck::Crc64(crc) => crc,
        _ => 0,
    }
}

/// What the other side's word stands for, where checksums are on or off.
pub(crate) fn from_wire(word: u64, checksum: bool) -> FileCheck {
    if checksum { FileCheck::Crc64(word) } else { FileCheck::Off }
}
