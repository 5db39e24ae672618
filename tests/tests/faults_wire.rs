//! What the network can do to a session: altered, repeated, cut and foreign bytes, through a proxy that knows
//! where records begin.

use escp_engine_api::{Direction, JobOptions, Secret, SessionId, Side};
use escp_proto::block::HEADER_LEN;
use escp_testkit::clock::Stopwatch;
use escp_testkit::proxy::{Action, Unit};
use escp_testkit::run::{Outcome, wait_until};
use escp_testkit::{
    Checked, FAR_PORTS, Host, Plan, Trouble, World, compare, daemon, ensure, need_root, tree,
};
use escp_tests::{Way, parts, settle};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SIZE: u64 = 6 * tree::MIB + 77;
/// What takes more than a minute while the proxy holds it.
const LARGE: u64 = 64 * tree::MIB;
/// Time for the survivors of a broken session to be gone.
const GONE: Duration = Duration::from_secs(10);
/// Time for a broken session to end by itself, on a busy machine.
const QUICK: Duration = Duration::from_secs(15);

/// Two hosts with a tampering network between them, a file on the sender's and an older one on the receiver's.
struct Rig {
    world: World,
    way: Way,
    /// Streams of the copies, as -t takes it.
    streams: &'static str,
}

/// Which unit is struck.
type Which = fn(&Unit<'_>) -> bool;
/// What happens to it.
type Blow = fn(&[u8]) -> Action;

impl Rig {
    fn new(way: Way, host: Host) -> Checked<Self> {
        Self::of_size(way, host, SIZE)
    }

    fn of_size(way: Way, host: Host, size: u64) -> Checked<Self> {
        let world = Plan::new(host, host).apart().start()?;
        tree::file(&way.source(&world).join("big"), size, 5)?;
        std::fs::create_dir(way.target(&world).join("target"))?;
        std::fs::write(way.target(&world).join("target/big"), "old")?;
        settle(&world)?;
        Ok(Self { world, way, streams: "2" })
    }

    /// With a single stream for the data, so that what a cut keeps back cannot have gone over another.
    fn with_one_stream(way: Way, host: Host) -> Checked<Self> {
        Ok(Self { streams: "1", ..Self::new(way, host)? })
    }

    fn target(&self) -> PathBuf {
        self.way.target(&self.world).join("target")
    }

    /// Copies while the first unit of which `which` is true suffers `blow`, and insists on all that holds
    /// after every fault.
    #[track_caller]
    fn strike(&self, which: Which, blow: Blow) -> Checked<Outcome> {
        // A strike that failed may have left another file there.
        std::fs::write(self.target().join("big"), "old")?;
        let struck = Arc::new(AtomicBool::new(false));
        let to_far = self.way == Way::Up;
        let hit = Arc::clone(&struck);
        self.world.proxy()?.tamper(move |unit| {
            let data = unit.stream == 0 || unit.to_far == to_far;
            if data && which(unit) && !hit.swap(true, Ordering::Relaxed) {
                blow(unit.bytes)
            } else {
                Action::Pass
            }
        });
        let before = compare::sha256(&self.way.source(&self.world).join("big"))?;
        let outcome = self.way.escp(&self.world, &["-t", self.streams], &["big"], "target/big").end()?;
        self.world.proxy()?.tamper(|_| Action::Pass);
        let told = |text: &str| Trouble::new(format!("{text}\n{}", outcome.told()));
        if !struck.load(Ordering::Relaxed) {
            return Err(told("nothing was struck"));
        }
        let whole = std::fs::read_to_string(self.target().join("big")).unwrap_or_default();
        if whole != "old" {
            return Err(told("the old file was touched"));
        }
        self.world.expect_nothing_running(GONE).map_err(|trouble| told(&format!("{trouble:?}")))?;
        compare::holds_only(&self.target(), &["big"]).map_err(|trouble| told(&format!("{trouble:?}")))?;
        ensure!(compare::sha256(&self.way.source(&self.world).join("big"))? == before, "the source changed");
        Ok(outcome)
    }

    /// After the faults, the same hosts still serve.
    fn serves(&self) -> Checked {
        self.way.escp(&self.world, &["-t", "2"], &["big"], "target/big").succeed()?;
        compare::same_sha256(&self.way.source(&self.world).join("big"), &self.target().join("big"))
    }
}

fn flip(bytes: &[u8], at: usize, mask: u8) -> Action {
    let mut bytes = bytes.to_vec();
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= mask;
    }
    Action::Replace(bytes)
}

/// The IV of a record with another payload length.
fn with_length(bytes: &[u8], length: u64) -> Action {
    let mut bytes = bytes.to_vec();
    if let Some(iv) = bytes.first_chunk_mut::<8>() {
        *iv = (u64::from_be_bytes(*iv) & !(0xff_ffff << 38) | length << 38).to_be_bytes();
    }
    Action::Replace(bytes)
}

fn second_file_record(unit: &Unit<'_>) -> bool {
    unit.is_file_record() && unit.index == 2
}

fn control_to_far(unit: &Unit<'_>) -> bool {
    unit.stream == 0 && unit.to_far && unit.index == 1
}

fn control_to_near(unit: &Unit<'_>) -> bool {
    unit.stream == 0 && !unit.to_far && unit.index == 1
}

const RECORDS: [(&str, Which); 3] =
    [("data", second_file_record), ("control to far", control_to_far), ("control to near", control_to_near)];

impl Rig {
    /// Strikes each kind of record with each blow, and insists on the exit status and a sentence.
    fn strike_all(
        &self,
        blows: &[(&str, Blow)],
        records: &[(&str, Which)],
        status: i32,
        says: &[&str],
    ) -> Checked {
        let mut wrong = String::new();
        for (blow_name, blow) in blows {
            for (record, which) in records {
                match self.strike(*which, *blow) {
                    Ok(outcome) => {
                        let said = says.iter().any(|text| outcome.stderr.contains(text));
                        if outcome.code() != status || !said || outcome.took > QUICK {
                            wrong.push_str(&format!("== {blow_name} of {record}: {}\n", outcome.told()));
                        }
                    }
                    Err(trouble) => wrong.push_str(&format!("== {blow_name} of {record}: {trouble:?}\n")),
                }
            }
        }
        if !wrong.is_empty() {
            return Err(Trouble::new(format!("expected status {status} and one of {says:?}\n{wrong}")));
        }
        self.serves()
    }
}

/// What alters a record or its place ends with 5.
fn altered(way: Way, host: Host, blows: &[(&str, Blow)], records: &[(&str, Which)]) -> Checked {
    need_root!();
    Rig::new(way, host)?.strike_all(blows, records, 5, &ALTERED)
}

/// What cuts a connection ends with 4.
fn cut(way: Way, host: Host) -> Checked {
    need_root!();
    Rig::with_one_stream(way, host)?.strike_all(&CUTS, &RECORDS, 4, &LOST)
}

const FLIPS: [(&str, Blow); 5] = [
    ("a bit of the kind", |bytes| flip(bytes, 0, 0x40)),
    ("a bit of the length", |bytes| flip(bytes, 3, 0x40)),
    ("a bit of the number", |bytes| flip(bytes, 7, 0x01)),
    ("a bit of the ciphertext", |bytes| flip(bytes, 20, 0x10)),
    ("a bit of the tag", |bytes| flip(bytes, bytes.len() - 1, 0x80)),
];
const ALTERED: [&str; 2] = ["altered on the network", "broke the protocol"];

#[test]
fn flipped_bits_going_up() -> Checked {
    altered(Way::Up, Host::Embedded, &FLIPS, &RECORDS)
}

#[test]
fn flipped_bits_coming_down() -> Checked {
    altered(Way::Down, Host::Embedded, &FLIPS, &RECORDS)
}

#[test]
fn flipped_bits_between_daemons() -> Checked {
    altered(Way::Up, Host::Daemon, &FLIPS, &RECORDS)
}

const PLACES: [(&str, Blow); 3] = [
    ("a repetition", |_| Action::Twice),
    ("a swap with the next", |_| Action::Swap),
    ("a loss", |_| Action::Drop),
];

#[test]
fn records_out_of_place_going_up() -> Checked {
    altered(Way::Up, Host::Embedded, &PLACES, &RECORDS)
}

#[test]
fn records_out_of_place_coming_down() -> Checked {
    altered(Way::Down, Host::Daemon, &PLACES, &RECORDS)
}

#[test]
fn a_record_of_another_stream_is_refused() -> Checked {
    need_root!();
    for way in Way::BOTH {
        let rig = Rig::new(way, Host::Embedded)?;
        let (to_far, spliced) = (way == Way::Up, Arc::new(AtomicBool::new(false)));
        let (mut kept, done) = (HashMap::new(), Arc::clone(&spliced));
        rig.world.proxy()?.tamper(move |unit| {
            if unit.to_far != to_far || !unit.is_file_record() || done.load(Ordering::Relaxed) {
                return Action::Pass;
            }
            // Of the same place in the other stream: number and length fit.
            match kept.insert(unit.index, (unit.stream, unit.bytes.to_vec())) {
                Some((stream, bytes)) if stream != unit.stream && bytes.len() == unit.bytes.len() => {
                    done.store(true, Ordering::Relaxed);
                    Action::Replace(bytes)
                }
                _ => Action::Pass,
            }
        });
        let flags = ["-t", "2", "--blocksize", "256K"];
        let outcome = way.escp(&rig.world, &flags, &["big"], "target/big").end()?;
        ensure!(spliced.load(Ordering::Relaxed), "no two records had one place\n{}", outcome.told());
        ensure!(ALTERED.iter().any(|text| outcome.stderr.contains(text)), "{}", outcome.told());
        outcome.expect_status(5)?;
        rig.world.proxy()?.tamper(|_| Action::Pass);
        rig.world.expect_nothing_running(GONE)?;
        compare::holds_only(&rig.target(), &["big"])?;
        ensure!(std::fs::read_to_string(rig.target().join("big"))? == "old", "the old file was touched");
        rig.serves()?;
    }
    Ok(())
}

const CUTS: [(&str, Blow); 4] = [
    ("a cut before", |_| Action::CutAfter(0)),
    ("a cut inside", |_| Action::CutAfter(13)),
    ("a cut after", |bytes| Action::CutAfter(bytes.len())),
    ("a reset", |_| Action::Reset),
];
const LOST: [&str; 3] = ["closed before the end", "connection was lost", "reset"];

#[test]
fn cut_connections_going_up() -> Checked {
    cut(Way::Up, Host::Embedded)
}

#[test]
fn cut_connections_coming_down() -> Checked {
    cut(Way::Down, Host::Embedded)
}

#[test]
fn cut_connections_between_daemons() -> Checked {
    cut(Way::Down, Host::Daemon)
}

/// The payload of a file record with a whole block: its header and the block.
const GREATEST: u64 = HEADER_LEN as u64 + tree::BLOCK;
/// What is said about a length that is refused before anything is read.
const REFUSED: [&str; 1] = ["broke the protocol"];
const LENGTHS: [(&str, Blow); 4] = [
    ("no length", |bytes| with_length(bytes, 0)),
    ("the greatest length", |bytes| with_length(bytes, GREATEST)),
    ("one more", |bytes| with_length(bytes, GREATEST + 1)),
    ("the greatest number", |bytes| with_length(bytes, 0xff_ffff)),
];

#[test]
fn lengths_that_cannot_be() -> Checked {
    need_root!();
    ensure!(
        u64::from(
            JobOptions::new(SessionId([0; 16]), Secret([0; 32]), Side::Near, Direction::Send).block_size
        ) == tree::BLOCK,
        "the default block has another size"
    );
    // The greatest length is a whole block's own, and far too much for a control record.
    let up = Rig::new(Way::Up, Host::Embedded)?;
    up.strike_all(&LENGTHS[..1], &RECORDS, 5, &REFUSED)?;
    up.strike_all(&LENGTHS[2..], &RECORDS, 5, &REFUSED)?;
    let down = Rig::new(Way::Down, Host::Embedded)?;
    down.strike_all(&LENGTHS[1..], &RECORDS[1..], 5, &REFUSED)?;
    down.strike_all(&LENGTHS[2..], &RECORDS[..1], 5, &REFUSED)
}

#[test]
fn a_first_packet_that_is_altered_is_a_stranger() -> Checked {
    need_root!();
    for way in Way::BOTH {
        let rig = Rig::new(way, Host::Embedded)?;
        for blow in [|bytes: &[u8]| flip(bytes, 30, 1), |bytes: &[u8]| flip(bytes, 12, 1)] {
            let start = Stopwatch::start();
            // Of every stream, in either direction, the first unit.
            let outcome = rig.strike(|unit| unit.stream == 0 && unit.index == 0, blow)?;
            let (quick, told) = (start.elapsed() < Duration::from_secs(20), outcome.told());
            outcome.expect_status(3)?;
            ensure!(quick, "{told}");
        }
        rig.serves()?;
    }
    Ok(())
}

/// What strangers say first.
fn babble() -> Vec<(&'static str, Vec<u8>)> {
    let mut noise = vec![0; 4096];
    tree::Noise::new(3).fill(&mut noise);
    // A TLS 1.2 record of a client hello with an absurd body.
    let tls = [&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 508]].concat();
    vec![
        ("noise", noise),
        (
            "HTTP",
            b"GET / HTTP/1.1\r\nHost: x\r\nUser-Agent: y\r\nAccept: */*\r\nConnection: close\r\n\r\n"
                .to_vec(),
        ),
        ("TLS", tls),
        ("a first packet of nobody", [b"ESCP\0\x02\0\0".as_slice(), &[9; 56]].concat()),
        ("a port scan", Vec::new()),
    ]
}

/// Says something and waits for the end, which must be a silent one in time.
fn is_shut_out(mut stranger: TcpStream, words: &[u8], within: Duration) -> Checked {
    let start = Stopwatch::start();
    stranger.set_read_timeout(Some(within + Duration::from_secs(5)))?;
    // It may be closed before it took all of it.
    let _ = stranger.write_all(words);
    let mut answer = Vec::new();
    match stranger.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => return Err(Trouble::new(format!("not closed within {within:?}: {error}"))),
    }
    ensure!(answer.is_empty(), "a stranger got {answer:x?}");
    ensure!(start.elapsed() <= within, "closed after {:?}, not within {within:?}", start.elapsed());
    Ok(())
}

/// Strangers are gone within 5 s; a busy machine gets one more to see it.
const FIRST_PACKET: Duration = Duration::from_secs(6);

#[test]
fn strangers_get_silence_and_disturb_nobody() -> Checked {
    need_root!();
    for host in [Host::Embedded, Host::Daemon] {
        let rig = Rig::of_size(Way::Up, host, LARGE)?;
        let proxy = rig.world.proxy()?;
        // Its ports are open as long as the session lasts.
        proxy.hold();
        let session = rig.way.escp(&rig.world, &["-t", "2"], &["big"], "target/big").start()?;
        parts::wait_until_moving(&rig.target())?;
        let strangers: Vec<_> = babble()
            .into_iter()
            .map(|(_, words)| proxy.dial_far(FAR_PORTS.0).map(|stranger| (stranger, words)))
            .collect::<Checked<_>>()?;
        let slow = proxy.dial_far(FAR_PORTS.0)?;
        let ended: Vec<Checked> = std::thread::scope(|scope| {
            let handles: Vec<_> = strangers
                .into_iter()
                .map(|(stranger, words)| scope.spawn(move || is_shut_out(stranger, &words, FIRST_PACKET)))
                .chain(std::iter::once(scope.spawn(move || a_byte_per_second(slow))))
                .collect();
            handles
                .into_iter()
                .map(|handle| handle.join().unwrap_or_else(|_| Err(Trouble::new("panic"))))
                .collect()
        });
        ended.into_iter().collect::<Checked<Vec<()>>>()?;
        proxy.release();
        session.end()?.expect_status(0)?;
        compare::same_sha256(&rig.world.near.join("big"), &rig.target().join("big"))?;
    }
    Ok(())
}

#[test]
fn a_recorded_connection_that_is_played_again_is_refused() -> Checked {
    need_root!();
    for host in [Host::Embedded, Host::Daemon] {
        let rig = Rig::of_size(Way::Up, host, LARGE)?;
        let proxy = rig.world.proxy()?;
        proxy.record();
        proxy.hold();
        let session = rig.way.escp(&rig.world, &["-t", "2"], &["big"], "target/big").start()?;
        parts::wait_until_moving(&rig.target())?;
        let recorded = proxy.recorded();
        ensure!(recorded.len() == 3, "{} connections were recorded", recorded.len());
        for (stream, bytes) in recorded.iter().enumerate() {
            let told = |trouble| Trouble::new(format!("stream {stream} of {host:?}: {trouble:?}"));
            is_shut_out(proxy.dial_far(FAR_PORTS.0)?, bytes, FIRST_PACKET).map_err(told)?;
        }
        proxy.release();
        session.end()?.expect_status(0)?;
        compare::same_sha256(&rig.world.near.join("big"), &rig.target().join("big"))?;
    }
    Ok(())
}

/// The right magic, a byte at a time: as slow as can be, and still not past the deadline.
fn a_byte_per_second(mut stranger: TcpStream) -> Checked {
    let mut writer = stranger.try_clone()?;
    let talk = std::thread::spawn(move || {
        for byte in b"ESCP\0\x02\0\0aaaaaaaaaaaa" {
            if writer.write_all(&[*byte]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    });
    let start = Stopwatch::start();
    stranger.set_read_timeout(Some(Duration::from_secs(15)))?;
    let mut answer = [0; 1];
    let got = stranger.read(&mut answer);
    ensure!(!matches!(got, Ok(1)), "a slow stranger was answered");
    ensure!(start.elapsed() <= FIRST_PACKET, "a slow stranger was kept for {:?}: {got:?}", start.elapsed());
    drop(stranger);
    let _ = talk.join();
    Ok(())
}

const STRANGERS: usize = 10_000;

/// Opens connections until there are as many as wanted; those that are refused or closed are strangers too.
fn crowd(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut open = Vec::with_capacity(count);
    while open.len() < count {
        match TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
            Ok(stranger) => open.push(stranger),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    open
}

#[test]
fn ten_thousand_strangers_keep_nobody_out() -> Checked {
    use rustix::process::{Resource, Rlimit, setrlimit};
    need_root!();
    setrlimit(Resource::Nofile, Rlimit { current: Some(16_384), maximum: Some(16_384) })?;
    let mut world = World::start(Host::Embedded, Host::Daemon)?;
    tree::file(&world.near.join("f"), tree::MIB, 1)?;
    settle(&world)?;
    let address = SocketAddr::from(([127, 0, 0, 1], FAR_PORTS.0));
    let network = &world.near_network;
    let seen = std::thread::scope(|scope| -> Checked<usize> {
        let crowds: Vec<_> =
            (0..4).map(|_| scope.spawn(move || network.inside(|| crowd(address, STRANGERS / 4)))).collect();
        // A session amid the rush, and one when all are there.
        world.escp().arg(world.near.join("f")).arg(world.remote("during")).succeed()?;
        let mut open = Vec::new();
        for crowd in crowds {
            open.extend(crowd.join().map_err(|_| Trouble::new("panic"))??);
        }
        world.escp().arg(world.near.join("f")).arg(world.remote("after")).succeed()?;
        Ok(open.len())
    })?;
    ensure!(seen == STRANGERS, "only {seen} strangers came");
    for name in ["during", "after"] {
        compare::same_sha256(&world.near.join("f"), &world.far.join(name))?;
    }
    let daemon = world.far_daemon.as_mut().ok_or_else(|| Trouble::new("no daemon"))?;
    wait_until("all strangers to be counted", Duration::from_secs(20), || {
        network.inside(|| daemon::get(daemon.metrics, "/metrics")).is_ok_and(|text| {
            text.is_ok_and(|text| {
                daemon::sum(&text, "escp_connections_refused_total", &[]) >= STRANGERS as f64
            })
        })
    })?;
    let lines = daemon.log()?.lines().count();
    ensure!(lines < 200, "{lines} lines of log for {STRANGERS} strangers");
    Ok(())
}
