//! How a session ends once all is agreed.

use super::*;
use crate::control::Monitor;
use crate::near::conclude;

#[tokio::test]
async fn whoever_is_told_to_stop_when_all_is_agreed_says_goodbye_and_waits_for_nobody() {
    let (near, mut far) = duplex(1 << 16);
    let (reader, writer) = split(near);
    let stop = watch::Sender::new(None);
    let mut told = stop.subscribe();
    let reader = ControlReader::new(reader, escp_proto::Side::Near);
    let mut monitor = Monitor::start(reader, "far".into(), stop.clone());
    raise(&stop, HangUp { status: status::INTERRUPTED, text: "interrupted".into() });
    let tally = Tally { files: 3, ..Tally::default() };
    let mut writer = ControlWriter::new(writer);
    let ended = tokio::select! {
        biased;
        ended = conclude(Ok(tally.clone()), "far", &mut writer, (&mut monitor, &mut told)) => ended,
        () = std::future::ready(()) => panic!("it waits for the far side, which stays"),
    };
    assert_eq!(ended.unwrap(), tally);
    let goodbye = ControlMessage::Bye.encode_frame().unwrap();
    let mut said = vec![0; goodbye.len()];
    far.read_exact(&mut said).await.unwrap();
    assert_eq!(said, goodbye);
}
