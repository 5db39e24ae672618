//! What somebody else may say where agents speak: to the daemon's socket, and to `escp --server`.

use escp_engine_api::{
    Command, Direction, EngineHandle, Event, FileSpec, JobOptions, Listen, Secret, SessionId, Side,
};
use escp_proto::control::Hello;
use escp_sys::seqpacket;
use escp_testkit::clock::Stopwatch;
use escp_testkit::daemon::Daemon;
use escp_testkit::run::{Run, wait_until};
use escp_testkit::{Checked, Host, Plan, Trouble, World, compare, ensure, need_root, processes, tree};
use escp_tests::parts::Part;
use escp_tests::{Way, settle};
use rustix::fs::{Mode, OFlags, open};
use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(15);

fn options(direction: Direction) -> Box<JobOptions> {
    // The one may not be over for the daemon when the other begins.
    let session = SessionId([if direction == Direction::Send { 7 } else { 8 }; 16]);
    Box::new(JobOptions {
        listen: Some(Listen { first_port: 0, last_port: 0 }),
        streams: 1,
        ..JobOptions::new(session, Secret([8; 32]), Side::Far, direction)
    })
}

/// A world with a daemon on the far side, which must be as it was after the test's `abuse`.
fn abused(abuse: impl FnOnce(&World, &Daemon) -> Checked) -> Checked {
    abused_under(&[], abuse)
}

/// As [`abused`], with the daemon under another program.
fn abused_under(words: &[&str], abuse: impl FnOnce(&World, &Daemon) -> Checked) -> Checked {
    let world = Plan::new(Host::Embedded, Host::Daemon).daemons_under(words).start()?;
    tree::file(&world.near.join("f"), 2 * tree::MIB, 1)?;
    settle(&world)?;
    let daemon = world.far_daemon.as_ref().ok_or_else(|| Trouble::new("no daemon"))?;
    let copy = |name: &str| -> Checked {
        Way::Up.escp(&world, &[], &["f"], name).succeed()?;
        wait_until("the worker to be gone", PATIENCE, || daemon.workers().is_empty())?;
        compare::same_sha256(&world.near.join("f"), &world.far.join(name))
    };
    copy("before")?;
    let open = processes::descriptors(daemon.pid()).len();
    abuse(&world, daemon)?;
    wait_until("every worker to be gone", PATIENCE, || daemon.workers().is_empty())?;
    let mut now = 0;
    wait_until("the broker to close what it opened", PATIENCE, || {
        now = processes::descriptors(daemon.pid()).len();
        now <= open
    })
    .map_err(|trouble| Trouble::new(format!("{open} descriptors, then {now}: {trouble:?}")))?;
    copy("after")
}

async fn next(engine: &mut EngineHandle) -> Checked<Event> {
    let event = tokio::time::timeout(PATIENCE, engine.events.recv()).await?;
    event.ok_or_else(|| Trouble::new("the engine is gone without a word"))
}

/// Hands descriptors to a new session of the daemon; returns what is said about each file.
async fn handed_in(
    daemon: &Daemon,
    direction: Direction,
    files: Vec<(&str, Option<OwnedFd>)>,
) -> Checked<BTreeMap<u64, String>> {
    let mut engine = escp_ipc::connect(&daemon.socket).await?;
    engine.commands.send(Command::Open(options(direction))).await?;
    let count = files.len();
    let spec = |number| FileSpec { number, size: 100, direct_alignment: 0, in_memory: false, sparse: false };
    let files =
        (1..).zip(files).map(|(number, (_, descriptor))| (spec(number), descriptor.map(Arc::new))).collect();
    engine.commands.send(Command::AddFiles(files)).await?;
    let mut said = BTreeMap::new();
    while said.len() < count {
        match next(&mut engine).await? {
            Event::Files(reports) => {
                for report in reports {
                    let error = report.outcome.err().map(|error| error.to_string()).unwrap_or_default();
                    said.insert(report.number, error);
                }
            }
            Event::Failed(failure) => {
                return Err(Trouble::new(format!("the session failed: {}", failure.text)));
            }
            _ => {}
        }
    }
    Ok(said)
}

/// Descriptors that no agent would pass, with a word that must be said about each.
fn bad_descriptors(directory: &Path, direction: Direction) -> Checked<Vec<(&'static str, Option<OwnedFd>)>> {
    let file = directory.join("file");
    std::fs::write(&file, [1; 100])?;
    let fifo = directory.join("fifo");
    Run::new("mkfifo", None).arg(&fifo).succeed()?;
    let (right, wrong, not) = match direction {
        Direction::Send => (OFlags::RDONLY, OFlags::WRONLY, "not readable"),
        Direction::Receive => (OFlags::WRONLY, OFlags::RDONLY, "not writable"),
    };
    let opened = |path: &Path, flags| open(path, flags | OFlags::CLOEXEC, Mode::empty());
    let mut bad = vec![
        ("Fifo", Some(opened(&fifo, OFlags::RDWR)?)),
        ("CharacterDevice", Some(opened(Path::new("/dev/null"), right)?)),
        ("Socket", Some(std::os::unix::net::UnixStream::pair()?.0.into())),
        ("O_PATH", Some(opened(&file, OFlags::PATH)?)),
        ("O_APPEND", Some(opened(&file, right | OFlags::APPEND)?)),
        (not, Some(opened(&file, wrong)?)),
        ("without a descriptor", None),
    ];
    if direction == Direction::Send {
        bad.push(("Directory", Some(opened(directory, OFlags::RDONLY)?)));
    }
    Ok(bad)
}

#[test]
fn bad_descriptors_fail_alone_and_do_not_leak() -> Checked {
    need_root!();
    let runtime = tokio::runtime::Runtime::new()?;
    abused(|world, daemon| {
        for (name, direction) in [("send", Direction::Send), ("receive", Direction::Receive)] {
            let directory = world.scratch.directory(name, None, 0o755)?;
            let bad = bad_descriptors(&directory, direction)?;
            let words: Vec<&str> = bad.iter().map(|(word, _)| *word).collect();
            let said = runtime.block_on(handed_in(daemon, direction, bad))?;
            for (number, word) in (1..).zip(words) {
                let text = said.get(&number).cloned().unwrap_or_default();
                ensure!(text.contains(word), "{name}: '{word}' is not in '{text}'");
            }
        }
        Ok(())
    })
}

/// Bytes, and how many descriptors go along.
type Packet = (Vec<u8>, usize);

/// Speaks to the daemon's socket as no escp does: each packet with so many descriptors. Returns the last words
/// of the daemon, which must hang up.
fn speak(daemon: &Daemon, packets: &[Packet]) -> Checked<Vec<u8>> {
    let socket = seqpacket::connect(&daemon.socket)?;
    let mut buffer = vec![0; 65_536];
    let start = Stopwatch::start();
    let mut receive = || -> Checked<Option<Vec<u8>>> {
        loop {
            match seqpacket::receive(&socket, &mut buffer) {
                Ok(packet) if packet.length == 0 => return Ok(None),
                Ok(packet) => return Ok(Some(buffer.get(..packet.length).unwrap_or_default().to_vec())),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error)
                    if error.kind() == std::io::ErrorKind::WouldBlock && start.elapsed() < PATIENCE =>
                {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(Trouble::new(format!("the daemon does not hang up: {error}"))),
            }
        }
    };
    let mut last = receive()?.ok_or_else(|| Trouble::new("no hello"))?;
    let null = open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    for (packet, descriptors) in packets {
        let descriptors: Vec<BorrowedFd<'_>> = (0..*descriptors).map(|_| null.as_fd()).collect();
        match seqpacket::send(&socket, packet, &descriptors) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            sent => sent?,
        }
    }
    while let Some(packet) = receive()? {
        last = packet;
    }
    Ok(last)
}

#[test]
fn frames_that_are_none_end_their_session_with_a_sentence() -> Checked {
    need_root!();
    let mut noise = vec![0; 60_000];
    tree::Noise::new(11).fill(&mut noise);
    let hello = escp_ipc::Hello::ours().encode();
    let other = escp_ipc::Hello::Welcome { version: 999, release: "9.9.9".into() }.encode();
    let after = |packet: Vec<u8>, descriptors| vec![(hello.clone(), 0), (packet, descriptors)];
    // Kind 2 is an encoded command; 2 is "add files", then a count of 2^32 - 1.
    let claims = vec![2, 2, 0xff, 0xff, 0xff, 0xff, 0x0f];
    let message_of_nobody = vec![1; 60_000];
    let cases: Vec<(&str, Vec<Packet>, &str)> = vec![
        // Whoever is no agent of this version gets the hello and no further word.
        ("noise", vec![(noise.clone(), 0)], "escp-ipc"),
        ("a byte", vec![(vec![0], 0)], "escp-ipc"),
        ("another version", vec![(other, 0)], "escp-ipc"),
        ("noise after the hello", after(noise, 0), "the agent sent"),
        ("an unknown kind", after(vec![9, 9, 9], 0), "unknown kind"),
        ("a count of 4 Gi", after(claims, 0), "does not decode"),
        ("a cut frame", after(vec![2, 0, 1, 1], 0), "does not decode"),
        ("a message that is too long", after(message_of_nobody, 0), "exceeds the limit"),
        ("a frame that is too long", after(vec![2; 80_000], 0), "lost"),
        ("a second hello", after(hello.clone(), 0), "the agent sent"),
        ("a lane without its socket", after(vec![2, 1, 0], 0), "0 descriptors where 1"),
        ("descriptors that nobody wants", after(vec![2, 2, 0], 253), "253 descriptors where 0"),
    ];
    abused(|_, daemon| {
        for (name, packets, sentence) in cases {
            let last =
                speak(daemon, &packets).map_err(|trouble| Trouble::new(format!("{name}: {trouble:?}")))?;
            let said = String::from_utf8_lossy(&last).into_owned();
            ensure!(said.contains(sentence), "{name}: '{sentence}' is not in {said:?}");
        }
        Ok(())
    })
}

#[test]
fn the_senders_kernel_refuses_more_descriptors_than_a_packet_may_hold() -> Checked {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    need_root!();
    abused(|_, daemon| {
        let socket = seqpacket::connect(&daemon.socket)?;
        let null = open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let descriptors = vec![null.as_fd(); 254];
        let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(254))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        ensure!(control.push(SendAncillaryMessage::ScmRights(&descriptors)), "no room");
        let bytes = [std::io::IoSlice::new(&[2, 2, 0])];
        let sent = sendmsg(&socket, &bytes, &mut control, SendFlags::empty());
        ensure!(sent == Err(rustix::io::Errno::INVAL), "254 descriptors: {sent:?}");
        Ok(())
    })
}

/// `MSG_CTRUNC`: the worker may have fewer descriptors than come in one packet, and the kernel drops the rest.
#[test]
fn descriptors_that_are_lost_on_their_way_end_the_session() -> Checked {
    need_root!();
    abused_under(&["prlimit", "--nofile=100:100"], |_, daemon| {
        let hello = escp_ipc::Hello::ours().encode();
        // Kind 2 is an encoded command; 2 is "add files".
        let last = speak(daemon, &[(hello, 0), (vec![2, 2, 0], 200)])?;
        let said = String::from_utf8_lossy(&last).into_owned();
        ensure!(said.contains("a descriptor was lost on its way"), "it said {said:?}");
        Ok(())
    })
}

#[test]
fn silent_agents_are_sent_away() -> Checked {
    need_root!();
    abused(|_, daemon| {
        // One that never answers the hello, one that hangs up at once, one that hangs up after it.
        drop(seqpacket::connect(&daemon.socket)?);
        let polite = seqpacket::connect(&daemon.socket)?;
        seqpacket::send(&polite, &escp_ipc::Hello::ours().encode(), &[])?;
        drop(polite);
        let start = Stopwatch::start();
        speak(daemon, &[])?;
        // A hello is due within ten; one more for a busy machine.
        ensure!(start.elapsed() < Duration::from_secs(11), "sent away after {:?}", start.elapsed());
        Ok(())
    })
}

/// `length 4 ‖ body`.
fn frame(body: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

/// `escp --server` behind `wrapper`, through ssh and without a near escp.
fn far_agent<'a>(world: &'a World, wrapper: &str) -> Run<'a> {
    let program = world.programs.join("escp");
    world
        .on_near("ssh")
        .arg("-F")
        .arg(&world.sshd.client_config)
        .args(["far", &format!("exec {wrapper} {} --server", program.display())])
}

#[test]
fn the_far_agent_survives_whoever_speaks_to_it() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    let version = escp_proto::VERSION;
    let hello = Hello {
        lowest: version,
        highest: version,
        features: 0,
        session: [1; 16],
        random: [2; 32],
        machine: [0; 16],
    }
    .encode_frame();
    let after = |bytes: &[u8]| [hello.as_slice(), bytes].concat();
    let mut noise = vec![0; 100_000];
    tree::Noise::new(5).fill(&mut noise);
    // Variant 0, a job: downloads, and a name of an engine that is not UTF-8.
    let not_utf8 = [&[0, 1, 5][..], &[0xff; 5], &[4, 0, 0, 0]].concat();
    let cases: [(&str, Vec<u8>, i32); 11] = [
        ("nothing", Vec::new(), 4),
        ("a claim of 4 GiB", [&[0xff; 4][..], &[1; 500]].concat(), 5),
        ("one more than may be", [&[0, 1, 0, 1][..], &[1; 70_000]].concat(), 5),
        ("no length", vec![0; 4], 5),
        ("a cut hello", hello.get(..30).unwrap_or_default().to_vec(), 5),
        ("noise", noise.clone(), 5),
        ("text", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), 5),
        ("a claim of 4 GiB after the hello", after(&[0xff; 40]), 5),
        ("noise after the hello", after(&frame(noise.get(..60_000).unwrap_or_default())), 5),
        ("a name that is not UTF-8", after(&frame(&not_utf8)), 5),
        ("a cut job", after(frame(&[0; 40]).get(..20).unwrap_or_default()), 5),
    ];
    for (name, bytes, status) in cases {
        let path = world.scratch.path().join("said");
        std::fs::write(&path, bytes)?;
        // An address space of 2 GB: whoever believes a length of 4 GiB is killed for it.
        let outcome = far_agent(&world, "prlimit --as=2000000000")
            .stdin(std::fs::File::open(&path)?)
            .patience(Duration::from_secs(20))
            .end()?;
        let told = format!("{name}: {}", outcome.told());
        ensure!(outcome.code() == status && !outcome.stderr.contains("panicked"), "{told}");
        ensure!(outcome.took < Duration::from_secs(10), "{told}");
    }
    Ok(())
}

#[test]
fn a_far_agent_to_which_nobody_speaks_leaves() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    let (reader, mut writer) = std::io::pipe()?;
    let running = far_agent(&world, "").stdin(reader).patience(Duration::from_secs(50)).start()?;
    // Half a hello, and then nothing.
    writer.write_all(&[0, 0, 0, 68, b'e'])?;
    wait_until("the far agent", PATIENCE, || Part::FarAgent.pid(&world).is_ok())?;
    let pid = Part::FarAgent.pid(&world)?;
    std::thread::sleep(Duration::from_millis(500));
    let taken = processes::peak_kib(pid)?;
    ensure!(taken < 100 * 1024, "it takes {taken} KiB to wait");
    let outcome = running.end()?.expect_status(4)?;
    ensure!(outcome.took < Duration::from_secs(40), "{}", outcome.told());
    world.expect_nothing_running(PATIENCE)
}
