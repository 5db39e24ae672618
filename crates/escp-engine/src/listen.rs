//! Listening for lanes without a daemon.

use crate::gate::{AcceptLimits, Routes, accept_lanes};
use crate::{AcceptedLane, LaneSource, Registration};
use escp_crypto::RouteKey;
use escp_engine_api::{Failure, Fault, Listen};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// Lanes that wait to be answered.
const LANE_QUEUE: usize = 64;

/// Where lanes come from, once the session is known there.
pub(crate) struct Lanes {
    pub(crate) ports: Vec<u16>,
    pub(crate) note: Option<String>,
    pub(crate) accepted: mpsc::Receiver<AcceptedLane>,
    gate: Option<JoinHandle<()>>,
}

impl Drop for Lanes {
    fn drop(&mut self) {
        if let Some(gate) = &self.gate {
            gate.abort();
        }
    }
}

/// Makes the session reachable.
pub(crate) async fn listen(
    source: LaneSource,
    listen: Option<&Listen>,
    session: [u8; 16],
    route_key: RouteKey,
) -> Result<Lanes, Failure> {
    match (source, listen) {
        (_, None) => {
            let (_, accepted) = mpsc::channel(1);
            Ok(Lanes { ports: Vec::new(), note: None, accepted, gate: None })
        }
        (LaneSource::Own, Some(listen)) => {
            let (listener, note) = bind(listen).map_err(|error| Failure {
                fault: Fault::Local,
                text: format!("no TCP port can be listened on: {}", crate::files::describe(&error)),
            })?;
            let port = listener.local_addr().map_or(0, |address| address.port());
            let (deliver, accepted) = mpsc::channel(LANE_QUEUE);
            let route = Arc::new(OneSession { session, route_key, deliver });
            let gate =
                accept_lanes(vec![listener], route, AcceptLimits::default(), Arc::new(AtomicU64::new(0)));
            Ok(Lanes { ports: vec![port], note, accepted, gate: Some(tokio::spawn(gate)) })
        }
        (LaneSource::Routed { ports, register, lanes }, Some(_)) => {
            let (done, answer) = oneshot::channel();
            let registration = Registration { session, route_key: *route_key.expose(), done };
            let gone = || Failure { fault: Fault::Lost, text: "escpd's broker is gone".into() };
            register.send(registration).await.map_err(|_| gone())?;
            let refused = |text| Failure { fault: Fault::Local, text };
            answer.await.map_err(|_| gone())?.map_err(refused)?;
            Ok(Lanes { ports, note: None, accepted: lanes, gate: None })
        }
    }
}

/// The first free port of the range, or any free one.
fn bind(listen: &Listen) -> io::Result<(TcpListener, Option<String>)> {
    for port in listen.first_port..=listen.last_port {
        match bind_port(port) {
            Ok(listener) => return Ok((listener, None)),
            Err(error) => tracing::debug!(port, %error, "data port not free"),
        }
    }
    let listener = bind_port(0)?;
    let port = listener.local_addr()?.port();
    let note = format!(
        "ports {}-{} are all taken on this host: listening on {port}",
        listen.first_port, listen.last_port
    );
    Ok((listener, Some(note)))
}

fn bind_port(port: u16) -> io::Result<TcpListener> {
    let dual = bind_address(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
    match dual {
        // A host without IPv6.
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            bind_address(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
        }
        result => result,
    }
}

fn bind_address(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

/// The one session behind an embedded engine's gate.
struct OneSession {
    session: [u8; 16],
    route_key: RouteKey,
    deliver: mpsc::Sender<AcceptedLane>,
}

impl Routes for OneSession {
    fn find(&self, session: &[u8; 16]) -> Option<RouteKey> {
        (*session == self.session).then(|| self.route_key.clone())
    }

    fn deliver(&self, _session: &[u8; 16], lane: AcceptedLane) -> bool {
        self.deliver.try_send(lane).is_ok()
    }
}
