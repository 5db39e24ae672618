use super::*;
use escp_engine_api::{
    Direction, EngineKind, ExtentKind, Fault, FileError, Listen, Opened, Progress, Secret, SessionId, Side,
    Stage,
};
use proptest::prelude::*;
use std::fs::File;
use std::time::Duration;

fn descriptor() -> Arc<OwnedFd> {
    Arc::new(File::open("/dev/null").unwrap().into())
}

fn spec(number: u64) -> FileSpec {
    FileSpec { number, size: u64::MAX, direct_alignment: u32::MAX, in_memory: true, sparse: true }
}

fn options() -> Box<JobOptions> {
    Box::new(JobOptions {
        listen: Some(Listen { first_port: 1232, last_port: 1242 }),
        compress: Some(-3),
        rate_limit: Some(1_000_000),
        congestion: Some("bbr".into()),
        cpus: vec![0, 1],
        ..JobOptions::new(SessionId([1; 16]), Secret([0xa5; 32]), Side::Far, Direction::Receive)
    })
}

/// Encodes, decodes and joins again, as the two ends of a socket do.
fn round_trip(command: Command) -> Vec<Command> {
    encode_command(command)
        .unwrap()
        .into_iter()
        .map(|outgoing| {
            assert!(outgoing.frame.len() <= MAX_FRAME);
            let count = outgoing.descriptors.len();
            // The kernel gives the other end descriptors of its own.
            let passed = outgoing.descriptors.iter().map(|passed| passed.try_clone().unwrap());
            decode_command(&outgoing.frame, count).unwrap().with_descriptors(passed.collect()).unwrap()
        })
        .collect()
}

#[test]
fn commands_survive_the_way() {
    let shown = |command: &Command| format!("{command:?}");
    let extent = Extent { file: 1, offset: 2, length: 3, kind: ExtentKind::Hole };
    let summary = Summary { files: 3, list_hash: [4; 32] };
    let cases: [fn() -> Command; 4] = [
        || Command::Open(options()),
        || Command::DropFiles(vec![0, 1, u64::MAX]),
        || Command::Message(vec![0; MAX_MESSAGE]),
        || Command::Abort { reason: "Ctrl-C".to_owned() },
    ];
    for case in cases {
        assert_eq!(shown(&round_trip(case())[0]), shown(&case()));
    }
    let arrived = round_trip(Command::Schedule(vec![extent]));
    assert!(matches!(&arrived[..], [Command::Schedule(extents)] if extents[..] == [extent]));
    assert!(matches!(round_trip(Command::Scheduled)[..], [Command::Scheduled]));
    let arrived = round_trip(Command::Finish(summary));
    assert!(matches!(&arrived[..], [Command::Finish(got)] if *got == summary));
    let arrived = round_trip(Command::Open(options()));
    assert!(matches!(&arrived[..], [Command::Open(got)] if got.secret.0 == [0xa5; 32]));
    let arrived =
        round_trip(Command::AddLane(Lane { stream: 9, socket: File::open("/dev/null").unwrap().into() }));
    assert!(matches!(&arrived[..], [Command::AddLane(lane)] if lane.stream == 9));
}

#[test]
fn large_commands_are_split_and_nothing_is_lost() {
    let extents: Vec<_> = (0..5000)
        .map(|file| Extent {
            file: u64::MAX - file,
            offset: u64::MAX,
            length: u64::MAX,
            kind: ExtentKind::Data,
        })
        .collect();
    let mut arrived = Vec::new();
    for command in round_trip(Command::Schedule(extents.clone())) {
        let Command::Schedule(part) = command else { panic!("{command:?}") };
        arrived.extend(part);
    }
    assert_eq!(arrived, extents);

    let numbers: Vec<_> = (0..20_000).map(|number| u64::MAX - number).collect();
    let arrived: Vec<_> = round_trip(Command::DropFiles(numbers.clone()))
        .into_iter()
        .flat_map(|command| match command {
            Command::DropFiles(part) => part,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(arrived, numbers);

    let files = (0..600).map(|number| (spec(number), (number % 3 != 0).then(descriptor))).collect();
    let batches = round_trip(Command::AddFiles(files));
    assert_eq!(batches.len(), 3);
    let mut next = 0;
    for batch in batches {
        let Command::AddFiles(files) = batch else { panic!("{batch:?}") };
        for (got, descriptor) in files {
            assert_eq!((got, descriptor.is_some()), (spec(next), next % 3 != 0));
            next += 1;
        }
    }
    assert_eq!(next, 600);
    assert!(encode_command(Command::Message(vec![0; MAX_MESSAGE + 1])).is_err());
}

#[test]
fn events_survive_the_way_and_long_ones_are_split_or_cut() {
    let decode = |event: Event| -> Vec<Event> {
        let frames = encode_event(event).unwrap();
        frames.iter().map(|outgoing| decode_event(&outgoing.frame, 0).unwrap()).collect()
    };
    let opened = Opened {
        kind: EngineKind::Posix,
        kind_reason: Some("io_uring is refused".to_owned()),
        ports: vec![1232, 1233],
        port_note: None,
        daemon: true,
    };
    for event in [
        Event::Opened(opened),
        Event::Connected { round_trip: Duration::from_micros(50_100) },
        Event::Message(b"hello".to_vec()),
        Event::Progress(Progress::default()),
        Event::Silent { seconds: 10, stage: Stage::Write },
        Event::Failed(Failure { fault: Fault::Lost, text: "gone".to_owned() }),
    ] {
        let shown = format!("{event:?}");
        assert_eq!(format!("{:?}", decode(event)[0]), shown);
    }
    let error = FileError { stage: Stage::Sync, errno: 28, text: "ü".repeat(10_000) };
    let reports: Vec<_> = (0..300).map(|number| FileReport { number, outcome: Err(error.clone()) }).collect();
    let mut next = 0;
    for event in decode(Event::Files(reports)) {
        let Event::Files(part) = event else { panic!("{event:?}") };
        for report in part {
            assert_eq!(report.number, next);
            assert_eq!(report.outcome.unwrap_err().text, "ü".repeat(512));
            next += 1;
        }
    }
    assert_eq!(next, 300);
    assert!(
        matches!(&decode(Event::Note("x".repeat(1 << 20)))[..], [Event::Note(text)] if text.len() == 4096)
    );
}

#[test]
fn the_number_of_descriptors_must_be_the_one_named() {
    let lane = structured(&CommandFrame::AddLane { stream: 1 }, Vec::new()).unwrap().frame;
    assert_eq!(decode_command(&lane, 0).unwrap_err(), FrameError::Descriptors { got: 0, need: 1 });
    assert_eq!(decode_command(&lane, 2).unwrap_err(), FrameError::Descriptors { got: 2, need: 1 });
    let finish = structured(&CommandFrame::DropFiles(vec![1]), Vec::new()).unwrap().frame;
    assert_eq!(decode_command(&finish, 1).unwrap_err(), FrameError::Descriptors { got: 1, need: 0 });
    let files = (0..254).map(|number| (spec(number), true)).collect();
    let files = structured(&CommandFrame::AddFiles(files), Vec::new()).unwrap().frame;
    assert!(matches!(decode_command(&files, 254), Err(FrameError::TooLarge { got: 254, .. })));
    let event = encode_event(Event::Connected { round_trip: Duration::ZERO }).unwrap().remove(0).frame;
    assert!(decode_event(&event, 1).is_err());
}

#[test]
fn what_is_no_frame_is_refused_within_bounds() {
    assert_eq!(decode_command(&[], 0).unwrap_err(), FrameError::Malformed);
    assert_eq!(decode_command(&[9, 0], 0).unwrap_err(), FrameError::Kind(9));
    // A list that claims 2^32 entries and ends there.
    assert!(decode_command(&[STRUCTURED, 3, 0xff, 0xff, 0xff, 0xff, 0x0f], 0).is_err());
    assert!(decode_command(&vec![MESSAGE; MAX_MESSAGE + 2], 0).is_err());
    assert!(decode_event(&vec![MESSAGE; MAX_MESSAGE + 2], 0).is_err());
    assert!(decode_event(&vec![MESSAGE; MAX_FRAME + 1], 0).is_err());
    // An agent message has one encoding only.
    let twice = lone(&Event::Message(b"x".to_vec())).unwrap().frame;
    assert!(decode_event(&twice, 0).is_err());
    let mut trailing = lone(&CommandFrame::DropFiles(vec![1])).unwrap().frame.to_vec();
    trailing.push(0);
    assert_eq!(decode_command(&trailing, 0).unwrap_err(), FrameError::Malformed);
    let not_utf8 = [STRUCTURED, 6, 2, 0xff, 0xfe];
    assert_eq!(decode_command(&not_utf8, 0).unwrap_err(), FrameError::Malformed);
}

#[test]
fn a_cut_frame_never_decodes_to_another_one() {
    for command in [Command::Open(options()), Command::AddFiles(vec![(spec(1), Some(descriptor()))])] {
        let outgoing = encode_command(command).unwrap().remove(0);
        for length in 0..outgoing.frame.len() {
            assert!(decode_command(&outgoing.frame[..length], outgoing.descriptors.len()).is_err());
        }
    }
}

proptest! {
    #[test]
    fn decoders_take_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..2000), count in 0_usize..300) {
        let _ = decode_event(&bytes, count);
        let _ = decode_command(&bytes, count);
        for kind in [MESSAGE, STRUCTURED] {
            let framed = [&[kind], &bytes[..]].concat();
            let _ = decode_event(&framed, 0);
            let _ = decode_command(&framed, count);
        }
    }

    #[test]
    fn decoders_take_frames_with_a_changed_byte(at in 0_usize..200, to in any::<u8>()) {
        let mut frame = encode_command(Command::Open(options())).unwrap().remove(0).frame.to_vec();
        let at = at % frame.len();
        frame[at] = to;
        let _ = decode_command(&frame, 0);
    }

    #[test]
    fn messages_are_carried_as_they_are(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let command = encode_command(Command::Message(bytes.clone())).unwrap().remove(0);
        let decoded = decode_command(&command.frame, 0);
        prop_assert!(matches!(decoded, Ok(CommandFrame::Message(got)) if got == bytes));
        let event = encode_event(Event::Message(bytes.clone())).unwrap().remove(0);
        let decoded = decode_event(&event.frame, 0);
        prop_assert!(matches!(decoded, Ok(Event::Message(got)) if got == bytes));
    }
}
