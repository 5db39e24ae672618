//! How a session ends once all is agreed.

use super::*;
use crate::control::Monitor;
use crate::link::Link;
use crate::near::conclude;
use crate::send::send_files;
use escp_testkit::stalling::Stalling;
use escp_testkit::{Checked, need_root, skip};

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

/// A session that ends early closes what it has open, on a thread that may wait.
#[test]
fn a_source_that_waits_to_be_closed_holds_up_no_end() -> Checked {
    need_root!();
    let directory = tempfile::tempdir()?;
    let Some(disk) = Stalling::new(&directory.path().join("disk"), 4096)? else {
        skip!("no /dev/fuse here, so no disk can be made to stall");
    };
    disk.stall_closing();
    let source = Source::Path(disk.file().into_os_string().into_encoded_bytes());
    let (ended, end) = std::sync::mpsc::channel();
    // A thread of its own: where it hangs, no timeout of its runtime would come.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let outcome = runtime.block_on(cut_after_the_offer(source));
        ended.send(outcome.unwrap_err().text).unwrap();
    });
    let told = end.recv_timeout(LONG);
    disk.go_on();
    assert_eq!(told.as_deref(), Ok("cut"));
    Ok(())
}

async fn cut_after_the_offer(source: Source) -> Result<Tally, SessionError> {
    let (engine, mut port) = engine_pair();
    let (hang_up, hung_up) = watch::channel(None);
    let mut link = Link::new(engine, Duration::ZERO, hung_up);
    tokio::spawn(async move {
        let credit = AgentMessage::Credit { entries: 8 }.encode().unwrap();
        port.events.send(Event::Message(credit)).await.unwrap();
        while let Some(command) = port.commands.recv().await {
            let Command::Message(bytes) = command else { continue };
            if matches!(AgentMessage::decode(&bytes), Ok(AgentMessage::Offer(_))) {
                hang_up.send_replace(Some(HangUp { status: status::LOST, text: "cut".into() }));
            }
        }
    });
    send_files(&mut link, vec![source], TransferOptions::default(), Arc::new(Silent), "").await
}
