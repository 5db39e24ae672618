//! How a session starts: what is said before anything was heard, and how both ends choose alike.

use super::*;
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
        let (near_end, _) = tokio::time::timeout(LONG, ends).await.unwrap();
        assert_eq!(near_end.unwrap_err().status, status::CONNECT);
        let streams = |asked: &Asked| asked.options.lock().unwrap().as_ref().map(|o| (o.streams, o.depth));
        let due = Some(if from_here { (2, 12) } else { (6, 4) });
        assert_eq!((streams(&near_asked), streams(&far_asked)), (due, due), "from here: {from_here}");
    }
}
