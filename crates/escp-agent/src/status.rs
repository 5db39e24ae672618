//! Exit statuses, and which of two is the graver.

use escp_engine_api::Fault;

/// Everything verified and durable.
pub const GOOD: u8 = 0;
/// Some files failed.
pub const SOME_FAILED: u8 = 1;
/// The command line or the configuration cannot be followed.
pub const USAGE: u8 = 2;
/// Could not connect or log in.
pub const CONNECT: u8 = 3;
/// The connection was lost.
pub const LOST: u8 = 4;
/// Data was altered, or the protocol broken.
pub const INTEGRITY: u8 = 5;
/// Ended by SIGHUP.
pub const HUNG_UP: u8 = 129;
/// Ended by SIGINT.
pub const INTERRUPTED: u8 = 130;
/// Ended by SIGTERM.
pub const TERMINATED: u8 = 143;

/// Whether `a` outweighs `b`: signals, then 5, 4, 3, 2, 1, 0.
#[must_use]
pub fn graver(a: u8, b: u8) -> bool {
    a > b
}

/// The graver of two statuses.
#[must_use]
pub fn gravest(a: u8, b: u8) -> u8 {
    if graver(a, b) { a } else { b }
}

/// What a status that the other side named means here: its signals and whatever it made up are a lost
/// connection, because nobody interrupted this side.
#[must_use]
pub fn from_peer(status: u8) -> u8 {
    if (SOME_FAILED..=INTEGRITY).contains(&status) { status } else { LOST }
}

/// What a fault of the engine calls for; `moving`: after the streams were connected.
#[must_use]
pub fn of_fault(fault: Fault, moving: bool) -> u8 {
    match fault {
        Fault::Integrity => INTEGRITY,
        Fault::Connect => CONNECT,
        Fault::Local if !moving => CONNECT,
        Fault::Local | Fault::Lost | Fault::PeerAborted => LOST,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gravest_wins() {
        let order = [GOOD, SOME_FAILED, USAGE, CONNECT, LOST, INTEGRITY, HUNG_UP, INTERRUPTED, TERMINATED];
        for (at, &lighter) in order.iter().enumerate() {
            for &heavier in &order[at..] {
                assert_eq!(gravest(lighter, heavier), heavier);
                assert_eq!(gravest(heavier, lighter), heavier);
            }
        }
    }

    #[test]
    fn a_peer_can_claim_neither_success_nor_a_signal() {
        for status in 0..=u8::MAX {
            assert!((SOME_FAILED..=INTEGRITY).contains(&from_peer(status)));
        }
        assert_eq!(from_peer(3), CONNECT);
        assert_eq!(from_peer(130), LOST);
    }
}
