//! The first packets of a lane: who is there, and the keys of the stream.

use crate::placement::cores;
use crate::shared::Shared;
use escp_crypto::{Flow, MasterSecret, Opener, Sealer, StreamContext};
use escp_engine_api::{JobOptions, Side, Stage};
use escp_proto::first_packet::{ANSWER_LEN, Answer, FIRST_PACKET_LEN, FirstPacket};
use escp_sys::congestion;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer that takes longer is none: the other engine is there, or it is not. Longer than the gate's
/// deadline, so that a slow path is the gate's to judge.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The kernel gives stream 0 up when data stays unacknowledged this long: the session's own limit.
const SILENCE_LIMIT: Duration = Duration::from_secs(180);
/// A data lane's kernel asks the peer's for a sign of life after so much silence, and then as often.
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// Bytes of a socket buffer where a connection does not leave this machine and each core has a stream. The way has no
/// length that more bytes could fill: they would only wait, and have left the cache when their turn comes. The kernel
/// doubles it, for its own book-keeping (socket(7)). Measured: docs/decisions/0009-on-one-machine.md.
const BUFFER_ON_ONE_MACHINE: usize = 128 * 1024;

/// A lane whose other end proved that it knows the session's secret.
pub(crate) struct ProvenLane {
    pub(crate) stream: u16,
    pub(crate) socket: TcpStream,
    pub(crate) sealer: Sealer,
    pub(crate) opener: Opener,
}

/// Why a lane did not come up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("{}", crate::files::describe(.0))]
    Io(#[from] io::Error),
    #[error("no answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Timeout,
    #[error("the other end does not know this session")]
    Closed,
    #[error("{0}")]
    Protocol(#[from] escp_proto::ProtocolError),
    #[error("{0}")]
    Crypto(#[from] escp_crypto::CryptoError),
}

fn nonce() -> io::Result<[u8; 16]> {
    let mut bytes = [0_u8; 16];
    // At most 256 bytes are never cut short once the pool is initialised (getrandom(2)).
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if got == bytes.len() { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn socket(shared: &Shared, descriptor: OwnedFd) -> io::Result<TcpStream> {
    let socket = std::net::TcpStream::from(descriptor);
    let options = socket2::SockRef::from(&socket);
    options.set_tcp_nodelay(true)?;
    options.set_tcp_user_timeout(Some(SILENCE_LIMIT))?;
    if let Some(name) = &shared.options.congestion {
        congestion::set(&socket, name)?;
    }
    socket.set_nonblocking(true)?;
    TcpStream::from_std(socket)
}

/// Introduces this session on a lane that the agent dialled.
pub(crate) async fn introduce(
    shared: &Shared,
    master: &MasterSecret,
    stream: u16,
    descriptor: OwnedFd,
) -> Result<ProvenLane, HandshakeError> {
    let mut socket = socket(shared, descriptor)?;
    let session = shared.options.session.0;
    let route = master.route_key(&session);
    let nonce = nonce()?;
    let proof = route.proof(&[&FirstPacket::proven(stream, &session, &nonce)]);
    let packet = FirstPacket { stream, session, nonce, proof }.encode();
    let mut answer = [0_u8; ANSWER_LEN];
    tokio::time::timeout(ANSWER_TIMEOUT, async {
        socket.write_all(&packet).await?;
        socket.read_exact(&mut answer).await
    })
    .await
    .map_err(|_| HandshakeError::Timeout)?
    .map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => HandshakeError::Closed,
        _ => HandshakeError::Io(error),
    })?;
    let answer = Answer::decode(&answer);
    route.verify(&[&packet, &answer.nonce], &answer.proof)?;
    let context = StreamContext { session, stream, nonce, answer_nonce: answer.nonce };
    proven(shared, master, &context, socket)
}

/// Answers on a lane that the peer dialled. The gate proved the packet already; the keys depend on it, so it is
/// proven again where they are made.
pub(crate) async fn answer(
    shared: &Shared,
    master: &MasterSecret,
    packet: [u8; FIRST_PACKET_LEN],
    descriptor: OwnedFd,
) -> Result<ProvenLane, HandshakeError> {
    let mut socket = socket(shared, descriptor)?;
    if shared.options.congestion.is_none() && !stays_here((socket.peer_addr()?, socket.local_addr()?)) {
        congestion::leave_to_the_host(&socket)?;
    }
    let first = FirstPacket::decode(&packet)?;
    let session = shared.options.session.0;
    let route = master.route_key(&session);
    route.verify(&[&FirstPacket::proven(first.stream, &session, &first.nonce)], &first.proof)?;
    let answer_nonce = nonce()?;
    let proof = route.proof(&[&packet, &answer_nonce]);
    let answer = Answer { nonce: answer_nonce, proof }.encode();
    tokio::time::timeout(ANSWER_TIMEOUT, socket.write_all(&answer))
        .await
        .map_err(|_| HandshakeError::Timeout)??;
    let context = StreamContext { session, stream: first.stream, nonce: first.nonce, answer_nonce };
    proven(shared, master, &context, socket)
}

fn proven(
    shared: &Shared,
    master: &MasterSecret,
    context: &StreamContext,
    socket: TcpStream,
) -> Result<ProvenLane, HandshakeError> {
    let (out, back) = match shared.options.side {
        Side::Near => (Flow::NearToFar, Flow::FarToNear),
        Side::Far => (Flow::FarToNear, Flow::NearToFar),
    };
    Ok(ProvenLane {
        stream: context.stream,
        socket,
        sealer: Sealer::new(master.stream_secret(context, out))?,
        opener: Opener::new(master.stream_secret(context, back))?,
    })
}

/// Makes a proven data lane known to the session's control.
pub(crate) fn admit(
    shared: &Shared,
    lane: ProvenLane,
) -> io::Result<(std::net::TcpStream, std::sync::Arc<crate::shared::LaneState>, Sealer, Opener)> {
    let socket = lane.socket.into_std()?;
    watch_the_way(&socket)?;
    fit_to_one_machine(&shared.options, &socket)?;
    let state = shared.add_lane(lane.stream, socket.try_clone()?);
    state.enter(Stage::Idle, shared.now());
    Ok((socket, state, lane.sealer, lane.opener))
}

/// Fits a connection that does not leave this machine to its cores. Where each of them has a stream, it runs either end
/// of it in turn, and little may wait in between. With fewer streams, the two ends of one work at the same time, and
/// the kernel's own sizes keep them from waiting for each other.
fn fit_to_one_machine(job: &JobOptions, socket: &std::net::TcpStream) -> io::Result<()> {
    let ends = (socket.peer_addr()?, socket.local_addr()?);
    if stays_here(ends) && usize::from(job.streams) >= cores(&job.cpus) {
        let socket = socket2::SockRef::from(socket);
        socket.set_send_buffer_size(BUFFER_ON_ONE_MACHINE)?;
        socket.set_recv_buffer_size(BUFFER_ON_ONE_MACHINE)?;
    }
    Ok(())
}

/// Whether a connection between two addresses does not leave this machine.
fn stays_here((peer, own): (SocketAddr, SocketAddr)) -> bool {
    peer.ip() == own.ip()
}

/// Lets silence on a data lane mean that its way is dead, and nothing else: a peer's process may wait for its disk, on
/// this very lane, for as long as it takes.
fn watch_the_way(socket: &std::net::TcpStream) -> io::Result<()> {
    let options = socket2::SockRef::from(socket);
    let probes = socket2::TcpKeepalive::new().with_time(PROBE_EVERY).with_interval(PROBE_EVERY);
    options.set_tcp_keepalive(&probes)?;
    // It would also end a connection whose peer says for that long that it has no room, which is what a slow disk does.
    options.set_tcp_user_timeout(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use escp_engine_api::{Direction, Secret, SessionId};
    use socket2::SockRef;
    use std::io::{Read, Write};

    #[test]
    fn connections_of_one_machine_fit_its_cores() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = |job: &JobOptions| {
            let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            fit_to_one_machine(job, &near).unwrap();
            near
        };
        let usual = JobOptions::new(SessionId([1; 16]), Secret([2; 32]), Side::Near, Direction::Send);
        let each_core = JobOptions { streams: 2, cpus: vec![0, 1], ..usual.clone() };
        // The kernel doubles what is asked for, socket(7).
        let small = connect(&each_core);
        assert_eq!(SockRef::from(&small).send_buffer_size().unwrap(), 2 * BUFFER_ON_ONE_MACHINE);
        assert_eq!(SockRef::from(&small).recv_buffer_size().unwrap(), 2 * BUFFER_ON_ONE_MACHINE);
        let untouched = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let few = connect(&JobOptions { streams: 1, ..each_core });
        let size = |socket: &std::net::TcpStream| SockRef::from(socket).send_buffer_size().unwrap();
        assert_eq!(size(&few), size(&untouched));
    }

    #[test]
    fn a_peer_that_has_no_room_keeps_its_lane() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        // As short as the test wants it; what a lane has from its handshake.
        SockRef::from(&near).set_tcp_user_timeout(Some(Duration::from_secs(1))).unwrap();
        watch_the_way(&near).unwrap();
        near.set_nonblocking(true).unwrap();
        while near.write(&[0; 65_536]).is_ok() {}
        std::thread::sleep(Duration::from_secs(4));
        far.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        while far.read(&mut [0; 65_536]).is_ok_and(|count| count > 0) {}
        near.write_all(b"and on").unwrap();
    }
}
