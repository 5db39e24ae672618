//! How a session starts: what is said before anything was heard, and how both ends choose alike.

use super::*;
use escp_proto::agent::Refusal;
use escp_proto::control::LENGTH_LEN;

/// The next frame of a channel, whole.
async fn frame(reader: &mut (impl tokio::io::AsyncRead + Unpin)) -> Vec<u8> {
    let mut frame = vec![0; LENGTH_LEN];
    reader.read_exact(&mut frame).await.unwrap();
    let length = u32::from_be_bytes(frame[..].try_into().unwrap()) as usize;
    frame.resize(LENGTH_LEN + length, 0);
    reader.read_exact(&mut frame[LENGTH_LEN..]).await.unwrap();
    frame
}

#[test]
fn fewer_streams_on_one_machine_keep_as_many_blocks_in_flight() {
    for (streams, on_one_machine, depth, want) in [(4, 2, 8, 16), (4, 4, 8, 8), (32, 1, 8, 64), (1, 2, 2, 2)]
    {
        let job = NearJob { streams, streams_on_one_machine: on_one_machine, depth, ..near_job() };
        assert_eq!(job.on_one_machine(), Streams { count: on_one_machine, depth: want });
    }
}

#[tokio::test]
async fn the_near_side_says_its_job_before_it_has_heard_a_hello() {
    let (near, far) = duplex(1 << 16);
    let far_side = async {
        let (mut reader, mut writer) = split(far);
        let theirs = Hello::decode_body(&frame(&mut reader).await[LENGTH_LEN..]).unwrap();
        let job = ControlMessage::decode(&frame(&mut reader).await[LENGTH_LEN..]).unwrap();
        // Only now the far side says its first word.
        writer.write_all(&hello(VERSION, VERSION, theirs.session).encode_frame()).await.unwrap();
        job
    };
    let ends = async { tokio::join!(near::greet(split(near), near_job(), LONG), far_side) };
    let (greeted, job) = tokio::time::timeout(LONG, ends).await.expect("nobody waits for the other");
    greeted.unwrap();
    let ControlMessage::Job(job) = job else { panic!("{job:?}") };
    assert_eq!((job.engine.as_str(), job.streams), ("uring", Streams { count: 3, depth: 4 }));
}

#[tokio::test]
async fn the_near_side_looks_its_host_up_before_it_has_heard_a_hello() {
    let (near, far) = duplex(1 << 16);
    let far_side = async {
        let (mut reader, mut writer) = split(far);
        let theirs = Hello::decode_body(&frame(&mut reader).await[LENGTH_LEN..]).unwrap();
        // On this one thread, whatever was started has its turn now. An address is looked up in one.
        tokio::task::yield_now().await;
        writer.write_all(&hello(VERSION, VERSION, theirs.session).encode_frame()).await.unwrap();
    };
    let job = NearJob { host: "192.0.2.1".into(), ..near_job() };
    let ends = async { tokio::join!(near::greet(split(near), job, LONG), far_side) };
    let (greeted, ()) = tokio::time::timeout(LONG, ends).await.expect("nobody waits for the other");
    // What was started only now has had no turn yet.
    assert!(greeted.unwrap().name.is_looked_up());
}

#[tokio::test]
async fn a_job_in_a_later_versions_words_is_passed_over_and_the_one_in_ours_is_taken() {
    let newer = hello(VERSION, VERSION + 1, [3; 16]).encode_frame();
    let ours = hello(VERSION, VERSION, [3; 16]).encode_frame();
    let job = job_bytes("posix").split_off(ours.len());
    // No message of this version.
    let foreign = [0, 0, 0, 3, 0xff, 0xff, 0xff];
    let said_again = [newer.as_slice(), &foreign, &job].concat();
    let (_, _, asked) = far_against(&said_again, false).await;
    assert_eq!(asked.options.lock().unwrap().as_ref().unwrap().kind, EngineKind::Posix);
    let (error, _, asked) = far_against(&[ours.as_slice(), &foreign, &job].concat(), false).await;
    assert_eq!(error.status, status::INTEGRITY, "{error}");
    assert!(asked.options.lock().unwrap().is_none());
    // Said once only, it is still due.
    let (error, _, asked) = far_against(&[newer.as_slice(), &job].concat(), false).await;
    assert_eq!(error.status, status::LOST, "{error}");
    assert!(asked.options.lock().unwrap().is_none());
}

#[tokio::test]
async fn both_ends_take_the_streams_of_one_machine_or_neither_does() {
    for from_here in [true, false] {
        let (near_pipe, far_pipe) = duplex(1 << 16);
        let (near_engine, near_asked) = engine(Vec::new(), 0);
        let (far_engine, far_asked) = engine(vec![1], 0);
        let job = NearJob { streams: 6, streams_on_one_machine: 2, ..near_job() };
        let near_side = async {
            let greeted = near::greet(split(near_pipe), job, LONG).await.unwrap();
            near::run(greeted, async || Ok(near_engine), watch::Sender::new(None), Arc::new(Silent)).await
        };
        let settings = FarSettings { from_here, ..far_settings() };
        let stop = watch::Sender::new(None);
        let observer = Arc::new(Silent);
        let far_side = far::serve(split(far_pipe), async || Ok(far_engine), settings, stop, |_| {}, observer);
        let ends = async { tokio::join!(near_side, far_side) };
        // Nothing listens on port 1 of loopback.
        let (near_end, _) = tokio::time::timeout(LONG, Box::pin(ends)).await.unwrap();
        assert_eq!(near_end.unwrap_err().status, status::CONNECT);
        let streams = |asked: &Asked| asked.options.lock().unwrap().as_ref().map(|o| (o.streams, o.depth));
        let due = Some(if from_here { (2, 12) } else { (6, 4) });
        assert_eq!((streams(&near_asked), streams(&far_asked)), (due, due), "from here: {from_here}");
    }
}

/// What an agent told its engine to say.
type Said = Arc<Mutex<Vec<AgentMessage>>>;

/// An engine whose lanes are up once `lanes` were added, and whose peer's agent has said `early` by then. It fails as
/// soon as its agent has said something that `last` knows; until then its peer says nothing more.
fn mute_after(
    lanes: usize,
    early: Vec<AgentMessage>,
    last: fn(&AgentMessage) -> bool,
) -> (EngineHandle, Said) {
    let (handle, mut port) = engine_pair();
    let said = Said::default();
    let kept = Arc::clone(&said);
    tokio::spawn(async move {
        let mut added = 0;
        while let Some(command) = port.commands.recv().await {
            let up = match command {
                Command::Open(options) => {
                    let (kind, ports) = (options.kind, vec![1]);
                    let opened = Opened { kind, kind_reason: None, ports, port_note: None, daemon: false };
                    port.events.send(Event::Opened(opened)).await.unwrap();
                    lanes == 0
                }
                Command::AddLane(_) => {
                    added += 1;
                    added == lanes
                }
                Command::Message(bytes) => {
                    let message = AgentMessage::decode(&bytes).unwrap();
                    let over = last(&message);
                    kept.lock().unwrap().push(message);
                    if over {
                        let failure = Failure { fault: Fault::Lost, text: "the test is over".into() };
                        port.events.send(Event::Failed(failure)).await.unwrap();
                        return;
                    }
                    false
                }
                Command::Abort { .. } => return,
                _ => false,
            };
            if up {
                for message in &early {
                    port.events.send(Event::Message(message.encode().unwrap())).await.unwrap();
                }
                port.events.send(Event::Connected { round_trip: Duration::ZERO }).await.unwrap();
            }
        }
    });
    (handle, said)
}

/// What a near agent says on stream 0 to a far one that has said `early`, until `last`, and how it ends.
async fn said_by_near(
    transfer: NearTransfer,
    early: Vec<AgentMessage>,
    last: fn(&AgentMessage) -> bool,
) -> (Vec<AgentMessage>, SessionError) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listening = ControlMessage::Listening(Listening {
        addresses: vec!["127.0.0.1".parse().unwrap()],
        ports: vec![listener.local_addr().unwrap().port()],
        engine: "uring".into(),
        daemon: false,
        notes: Vec::new(),
    });
    let (near, far) = duplex(1 << 16);
    let job = NearJob { transfer, ..near_job() };
    let (engine, said) = mute_after(4, early, last);
    let near_side = async {
        let greeted = near::greet(split(near), job, LONG).await.unwrap();
        near::run(greeted, async || Ok(engine), watch::Sender::new(None), Arc::new(Silent)).await
    };
    let far_side = async {
        let (mut reader, mut writer) = split(far);
        let theirs = Hello::decode_body(&frame(&mut reader).await[LENGTH_LEN..]).unwrap();
        let mut answer = hello(VERSION, VERSION, theirs.session).encode_frame();
        answer.extend(listening.encode_frame().unwrap());
        writer.write_all(&answer).await.unwrap();
        let mut all = Vec::new();
        let _ = reader.read_to_end(&mut all).await;
    };
    let ended = async {
        tokio::select! {
            ended = near_side => ended,
            () = async { far_side.await; std::future::pending().await } => unreachable!(),
        }
    };
    let ended = tokio::time::timeout(LONG, ended).await.expect("it waits for an answer");
    let said = std::mem::take(&mut *said.lock().unwrap());
    (said, ended.unwrap_err())
}

/// An upload of a file that there is.
fn upload(root: &std::path::Path) -> NearTransfer {
    let path = root.join("file");
    std::fs::write(&path, "content").unwrap();
    let sources = vec![Source::Path(path.into_os_string().into_encoded_bytes())];
    NearTransfer::Upload { sources, target: b"x".to_vec(), directory_required: false }
}

#[tokio::test]
async fn a_near_sender_offers_before_its_request_is_answered() {
    let root = tempfile::tempdir().unwrap();
    let credit = vec![AgentMessage::Credit { entries: 5 }];
    let last = |message: &AgentMessage| matches!(message, AgentMessage::Offer(_));
    let (said, error) = said_by_near(upload(root.path()), credit, last).await;
    assert_eq!(error.text, "the test is over");
    assert!(
        matches!(&said[..], [AgentMessage::Request(_), AgentMessage::Scanned(_), AgentMessage::Offer(_)]),
        "{said:?}"
    );
}

#[tokio::test]
async fn a_refusal_ends_a_near_sender_in_the_far_sides_words() {
    let root = tempfile::tempdir().unwrap();
    let refusal = AgentMessage::Refuse(Refusal { status: 1, text: "x is no directory".into() });
    let early = vec![AgentMessage::Credit { entries: 5 }, refusal];
    let (_, error) = said_by_near(upload(root.path()), early, |_| false).await;
    assert_eq!((error.status, error.text.as_str()), (1, "127.0.0.1: x is no directory"));
    // Without an answer the far side may not go on as if it had said yes.
    let early = vec![AgentMessage::Credit { entries: 5 }, AgentMessage::Ready(vec![1])];
    let (_, error) = said_by_near(upload(root.path()), early, |_| false).await;
    assert_eq!(error.status, status::INTEGRITY, "{error}");
}

#[tokio::test]
async fn a_near_receiver_gives_credit_before_its_request_is_answered() {
    let transfer = NearTransfer::Download {
        sources: vec![b"x".to_vec()],
        target: b"y".to_vec(),
        directory_required: false,
        names: crate::TakenNames::default(),
    };
    let last = |message: &AgentMessage| matches!(message, AgentMessage::Credit { .. });
    let (said, error) = said_by_near(transfer, Vec::new(), last).await;
    assert_eq!(error.text, "the test is over");
    assert!(matches!(&said[..], [AgentMessage::Request(_), AgentMessage::Credit { .. }]), "{said:?}");
}

/// What a far agent says on stream 0 to a near one that has said `early`, until `last`.
async fn said_by_far(
    job: &[u8],
    early: Vec<AgentMessage>,
    last: fn(&AgentMessage) -> bool,
) -> Vec<AgentMessage> {
    let (near, far) = duplex(1 << 16);
    let (_reader, mut writer) = split(near);
    writer.write_all(job).await.unwrap();
    let (engine, said) = mute_after(0, early, last);
    let stop = watch::Sender::new(None);
    let serving = far::serve(split(far), async || Ok(engine), far_settings(), stop, |_| {}, Arc::new(Silent));
    let ended = tokio::time::timeout(LONG, serving).await.expect("it waits for a word");
    assert_eq!(ended.unwrap_err().text, "the test is over");
    said.lock().unwrap().clone()
}

#[tokio::test]
async fn a_far_receiver_gives_credit_before_it_is_asked() {
    let last = |message: &AgentMessage| matches!(message, AgentMessage::Credit { .. });
    let said = said_by_far(&job_bytes("uring"), Vec::new(), last).await;
    assert_eq!(said.len(), 1);
}

#[tokio::test]
async fn a_credit_that_overtakes_the_last_lane_is_used_at_once() {
    let job = ControlMessage::Job(Job { far_sends: true, ..job("dummy") }).encode_frame().unwrap();
    let job = [hello(VERSION, VERSION, [3; 16]).encode_frame(), job].concat();
    let early = vec![download_request(true), AgentMessage::Credit { entries: 5 }];
    let said = said_by_far(&job, early, |message| matches!(message, AgentMessage::Offer(_))).await;
    assert!(
        matches!(&said[..], [AgentMessage::Accept(_), AgentMessage::Scanned(_), AgentMessage::Offer(_)]),
        "{said:?}"
    );
}
