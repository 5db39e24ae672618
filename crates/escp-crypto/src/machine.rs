//! How two ends find out that they run on one machine, and nobody else learns anything.

use ring::digest::{Context, SHA256};

/// SHA-256("escp2 machine" ‖ boot id ‖ session id), cut to 16 bytes.
///
/// Equal on both ends only under one kernel since its boot. A boot id has 122 random bits (random(4)) and the
/// session id is fresh, so a peer can neither find the boot id nor tell that two sessions came from one machine.
#[must_use]
pub fn machine_mark(boot_id: &[u8], session: &[u8; 16]) -> [u8; 16] {
    let mut context = Context::new(&SHA256);
    for part in [b"escp2 machine".as_slice(), boot_id, session] {
        context.update(part);
    }
    let digest = context.finish();
    digest.as_ref().first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::machine_mark;

    #[test]
    fn a_mark_tells_machines_and_sessions_apart() {
        let mark = machine_mark(b"boot", &[1; 16]);
        // printf 'escp2 machineboot' followed by sixteen bytes 01, through sha256sum.
        assert_eq!(mark, MARK);
        assert_ne!(mark, machine_mark(b"boat", &[1; 16]));
        assert_ne!(mark, machine_mark(b"boot", &[2; 16]));
    }

    const MARK: [u8; 16] =
        [0xde, 0x3e, 0xc3, 0x43, 0xc6, 0x2f, 0x3c, 0xce, 0xc0, 0x83, 0x93, 0x72, 0xcc, 0x22, 0x42, 0x2a];
}
