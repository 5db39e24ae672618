//! The target for the frames between escpd's broker and its workers: a worker is trusted less than the broker.

use escp_ipc::link::{MAX_CPUS, ToBroker, ToWorker};

/// One packet, as from either; its first byte is the number of descriptors.
pub fn link(bytes: &[u8]) {
    let Some((&descriptors, packet)) = bytes.split_first() else { return };
    if let Ok(message) = ToBroker::decode(packet, descriptors.into()) {
        assert_eq!(descriptors, 0);
        if let ToBroker::Placed(placement) = &message {
            assert!(placement.nodes.len() <= MAX_CPUS && placement.cpus.len() <= MAX_CPUS);
        }
        let again = message.encode().unwrap_or_default();
        assert!(!again.is_empty() && again.len() <= packet.len(), "the shortest encoding is written");
        let same = ToBroker::decode(&again, 0).and_then(|message| message.encode());
        assert_eq!(same, Ok(again));
    }
    if let Ok(message) = ToWorker::decode(packet, descriptors.into()) {
        let again = message.encode().unwrap_or_default();
        assert!(!again.is_empty() && again.len() <= packet.len(), "the shortest encoding is written");
        let same = ToWorker::decode(&again, descriptors.into()).and_then(|message| message.encode());
        assert_eq!(same, Ok(again));
    }
}
