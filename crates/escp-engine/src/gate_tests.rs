//! The gate with real sockets on loopback.

use super::*;
use escp_crypto::MasterSecret;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream as Plain};
use tokio::sync::mpsc;

const SESSION: [u8; 16] = [7; 16];

struct OneSession {
    key: RouteKey,
    lanes: mpsc::UnboundedSender<AcceptedLane>,
}

impl Routes for OneSession {
    fn find(&self, session: &[u8; 16]) -> Option<RouteKey> {
        (*session == SESSION).then(|| self.key.clone())
    }

    fn deliver(&self, session: &[u8; 16], lane: AcceptedLane) -> bool {
        assert_eq!(*session, SESSION);
        self.lanes.send(lane).is_ok()
    }
}

struct Harness {
    address: SocketAddr,
    lanes: mpsc::UnboundedReceiver<AcceptedLane>,
    refused: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Harness {
    fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    async fn lane(&mut self) -> AcceptedLane {
        tokio::time::timeout(Duration::from_secs(10), self.lanes.recv()).await.unwrap().unwrap()
    }
}

fn key() -> RouteKey {
    MasterSecret::from_bytes([3; 32]).route_key(&SESSION)
}

fn packet(session: [u8; 16], key: &RouteKey) -> [u8; 64] {
    let nonce = [9; 16];
    let proof = key.proof(&[&FirstPacket::proven(1, &session, &nonce)]);
    FirstPacket { stream: 1, session, nonce, proof }.encode()
}

fn open(limits: AcceptLimits) -> Harness {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, lanes) = mpsc::unbounded_channel();
    let refused = Arc::new(AtomicU64::new(0));
    let routes = Arc::new(OneSession { key: key(), lanes: sender });
    let task = tokio::spawn(accept_lanes(vec![listener], routes, limits, Arc::clone(&refused)));
    Harness { address, lanes, refused, task }
}

/// For those who must not be shut out, however slow the machine is.
fn patient() -> AcceptLimits {
    AcceptLimits { first_packet_timeout: Duration::from_secs(60), ..AcceptLimits::default() }
}

/// For those who must be.
fn short() -> AcceptLimits {
    AcceptLimits { first_packet_timeout: Duration::from_millis(600), ..AcceptLimits::default() }
}

/// What a stranger sees: the bytes that came before the connection ended, and how long it took.
async fn seen_by(address: SocketAddr, said: Vec<u8>) -> (usize, Duration) {
    tokio::task::spawn_blocking(move || {
        let mut stream = Plain::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let start = Instant::now();
        stream.write_all(&said).unwrap();
        let mut got = [0; 64];
        let count = match stream.read(&mut got) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
            Err(error) => panic!("not closed: {error}"),
        };
        (count, start.elapsed())
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn a_proven_connection_arrives_with_its_packet_and_nothing_more_read() {
    let mut gate = open(patient());
    let mut client = Plain::connect(gate.address).unwrap();
    let first = packet(SESSION, &key());
    client.write_all(&first).unwrap();
    client.write_all(b"and a record").unwrap();
    let lane = gate.lane().await;
    assert_eq!(lane.packet, first);
    let mut socket = Plain::from(lane.socket);
    assert!(socket.nodelay().unwrap());
    let mut rest = [0; 12];
    // Blocking mode: the read waits instead of failing with EAGAIN.
    socket.read_exact(&mut rest).unwrap();
    assert_eq!(&rest, b"and a record");
    assert_eq!(gate.refused(), 0);
}

#[tokio::test]
async fn a_first_packet_in_dribbles_is_accepted_within_the_deadline_only() {
    let (mut gate, strict) = (open(patient()), open(short()));
    let dribble = |address: SocketAddr, pause: u64| {
        tokio::task::spawn_blocking(move || {
            let mut stream = Plain::connect(address).unwrap();
            stream.set_nodelay(true).unwrap();
            for byte in packet(SESSION, &key()) {
                if stream.write_all(&[byte]).is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(pause));
            }
            stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            // Open connections time out here; closed ones end.
            !matches!(stream.read(&mut [0; 1]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
        })
    };
    let fast = dribble(gate.address, 2);
    let _kept = gate.lane().await;
    assert!(!fast.await.unwrap());
    assert!(dribble(strict.address, 40).await.unwrap());
    assert_eq!((gate.refused(), strict.refused()), (0, 1));
    let Harness { mut lanes, .. } = strict;
    assert!(lanes.try_recv().is_err());
}

#[tokio::test]
async fn strangers_get_silence_and_an_end_whatever_they_say() {
    let gate = open(short());
    let other = MasterSecret::from_bytes([4; 32]).route_key(&SESSION);
    let unknown = MasterSecret::from_bytes([3; 32]).route_key(&[8; 16]);
    let mut bad_padding = packet(SESSION, &key());
    bad_padding[63] = 1;
    let mut bad_version = packet(SESSION, &key());
    bad_version[5] ^= 1;
    let cases: [(&str, Vec<u8>); 8] = [
        ("nothing", Vec::new()),
        ("wrong proof", packet(SESSION, &other).to_vec()),
        ("unknown session", packet([8; 16], &unknown).to_vec()),
        ("padding", bad_padding.to_vec()),
        ("version", bad_version.to_vec()),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n".to_vec()),
        ("TLS", [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[0x55; 300]].concat()),
        ("random", (0..1000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()),
    ];
    for (count, (name, said)) in (1..).zip(cases) {
        let (bytes, took) = seen_by(gate.address, said).await;
        assert_eq!(bytes, 0, "{name}");
        // Not as long as a gate of another deadline would have waited.
        assert!(took < AcceptLimits::default().first_packet_timeout, "{name} took {took:?}");
        assert_eq!(gate.refused(), count, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_connection_gets_in_while_strangers_hold_hundreds() {
    let limits = AcceptLimits { unproven_total: 64, unproven_per_address: 32, ..patient() };
    let mut gate = open(limits);
    let address = gate.address;
    let strangers = tokio::task::spawn_blocking(move || {
        (0..500).map(|_| Plain::connect(address).unwrap()).collect::<Vec<_>>()
    })
    .await
    .unwrap();
    let first = packet(SESSION, &key());
    let mut client = Plain::connect(address).unwrap();
    client.write_all(&first).unwrap();
    assert_eq!(gate.lane().await.packet, first);
    // All but the newest strangers were closed to make room, without waiting for their deadline.
    for _ in 0..1000 {
        if gate.refused() >= 500 - 32 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!((500 - 32..500).contains(&gate.refused()), "{}", gate.refused());
    let mut oldest = &strangers[0];
    oldest.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(oldest.read(&mut [0; 1]).unwrap(), 0);
    let mut newest = &strangers[499];
    newest.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert_eq!(newest.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn at_the_cap_the_oldest_goes_and_a_slow_newcomer_stays() {
    let limits = AcceptLimits { unproven_total: 2, unproven_per_address: 2, ..patient() };
    let mut gate = open(limits);
    let first = Plain::connect(gate.address).unwrap();
    let mut second = Plain::connect(gate.address).unwrap();
    let _third = Plain::connect(gate.address).unwrap();
    while gate.refused() < 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::task::spawn_blocking(move || assert_eq!((&first).read(&mut [0; 1]).unwrap(), 0)).await.unwrap();
    second.write_all(&packet(SESSION, &key())).unwrap();
    gate.lane().await;
    assert_eq!(gate.refused(), 1);
}

#[tokio::test]
async fn dropping_the_gate_closes_ports_and_strangers() {
    let limits = AcceptLimits { unproven_total: 1, ..patient() };
    let gate = open(limits);
    let _evicted = Plain::connect(gate.address).unwrap();
    let mut stranger = Plain::connect(gate.address).unwrap();
    // The first one goes when the second one is let in.
    while gate.refused() < 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    gate.task.abort();
    let _ = gate.task.await;
    tokio::task::spawn_blocking(move || {
        stranger.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(stranger.read(&mut [0; 1]).unwrap(), 0);
        assert!(Plain::connect(gate.address).is_err());
    })
    .await
    .unwrap();
}

#[test]
fn addresses_are_counted_by_network() {
    let net = |text: &str| network(text.parse().unwrap());
    assert_eq!(net("::ffff:192.0.2.7"), net("192.0.2.7"));
    assert_eq!(net("2001:db8:0:1::5"), net("2001:db8:0:1:ffff::9"));
    assert_ne!(net("2001:db8:0:1::5"), net("2001:db8:0:2::5"));
}

#[test]
fn log_lines_are_limited_and_lose_no_count() {
    let mut log = Log::default();
    let start = Instant::now();
    assert_eq!(log.due(start), Some(1));
    for _ in 0..99 {
        assert_eq!(log.due(start + Duration::from_secs(1)), None);
    }
    assert_eq!(log.due(start + LOG_INTERVAL), Some(100));
}
