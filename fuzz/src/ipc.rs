//! The target for the frames between an agent and escpd: any local user may send them.

use escp_engine_api::{MAX_BATCH, MAX_MESSAGE};
use escp_ipc::{CommandFrame, Hello, decode_command, decode_event, encode_event};

/// One packet of the socket, as command, event and hello; its first byte is the number of descriptors.
pub fn ipc(bytes: &[u8]) {
    let Some((&descriptors, packet)) = bytes.split_first() else { return };
    match decode_command(packet, descriptors.into()) {
        Ok(CommandFrame::AddFiles(files)) => {
            assert!(files.len() <= MAX_BATCH);
            assert_eq!(files.iter().filter(|(_, has)| *has).count(), usize::from(descriptors));
        }
        Ok(CommandFrame::AddLane { .. }) => assert_eq!(descriptors, 1),
        Ok(CommandFrame::Message(message)) => assert!(message.len() <= MAX_MESSAGE),
        Ok(_) => assert_eq!(descriptors, 0),
        Err(_) => {}
    }
    if let Ok(event) = decode_event(packet, descriptors.into()) {
        assert_eq!(descriptors, 0);
        let frames = encode_event(event).unwrap_or_default();
        assert!(frames.iter().all(|frame| decode_event(&frame.frame, 0).is_ok()));
    }
    if let Ok(hello) = Hello::decode(packet) {
        assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
    }
}
