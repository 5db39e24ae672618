//! Finding an address and port of the far engine that answers, and connecting a session's lanes to it.
//!
//! Addresses and ports are tried as RFC 8305 says (happy eyeballs): families alternate, a new attempt starts
//! every 250 ms or as soon as one is refused, and the first that connects wins. The other lanes go to the
//! winner, all at once; those to the first candidate, which mostly wins, are dialled beside it.

use crate::link::SessionError;
use crate::status;
use escp_sys::congestion;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

/// Time for all lanes together: three repetitions of a lost SYN, and the user knows within ten seconds.
pub const DEADLINE: Duration = Duration::from_secs(8);
/// Head start of one attempt over the next (RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);
/// Every candidate gets its turn within this time, however many there are.
const ALL_TRIED_WITHIN: Duration = Duration::from_secs(6);
/// Pause before a lane that was refused is dialled again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Most addresses that are tried.
const MAX_ADDRESSES: usize = 32;

/// Which family of addresses may be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Family {
    /// Either.
    #[default]
    Any,
    /// IPv4 only (`-4`).
    V4,
    /// IPv6 only (`-6`).
    V6,
}

impl Family {
    fn has(self, address: &IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Any => "usable",
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// Where the far engine may be reached, and how.
#[derive(Debug, Clone, Default)]
pub struct Targets {
    /// The host as the user named it, for messages.
    pub host: String,
    /// Addresses, best first; the ports in them do not count (an IPv6 scope does).
    pub addresses: Vec<SocketAddr>,
    /// Ports, all equal, first choice first.
    pub ports: Vec<u16>,
    /// Family to keep to.
    pub family: Family,
    /// Congestion control that is asked for.
    pub congestion: Option<Arc<str>>,
}

impl Targets {
    /// Every address and port in the order of trial: the first port of all addresses, then the second...
    fn candidates(&self) -> VecDeque<SocketAddr> {
        let addresses = interleaved(&self.addresses, self.family);
        let mut all = VecDeque::new();
        for &port in &self.ports {
            for address in &addresses {
                let mut candidate = *address;
                candidate.set_port(port);
                all.push_back(candidate);
            }
        }
        all
    }
}

/// What a host's name means on this one, looked up beside other things.
#[derive(Debug)]
pub(crate) struct HostName {
    name: String,
    lookup: JoinHandle<io::Result<Vec<SocketAddr>>>,
}

impl HostName {
    /// Starts looking up a host as the user named it.
    pub(crate) fn look_up(host: &str) -> Self {
        let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let asked = name.clone();
        let lookup = tokio::spawn(async move { Ok(lookup_host((asked.as_str(), 0)).await?.collect()) });
        Self { name, lookup }
    }

    /// Whether nobody would have to wait for it.
    #[cfg(test)]
    pub(crate) fn is_looked_up(&self) -> bool {
        self.lookup.is_finished()
    }

    /// Its addresses; none where it has none, or is still being looked up in `patience` from now.
    pub(crate) async fn addresses(self, patience: Duration) -> Vec<SocketAddr> {
        let Self { name, lookup } = self;
        let looked_up =
            timeout(patience, lookup).await.map(|ended| ended.map_err(io::Error::other).flatten());
        match looked_up {
            Ok(Ok(addresses)) => return addresses,
            Ok(Err(error)) => tracing::debug!("{name} does not resolve here: {error}"),
            Err(_) => tracing::debug!("{name} does not resolve in time"),
        }
        Vec::new()
    }
}

/// Addresses of the family, without repetitions, families taking turns, the first one's family first.
fn interleaved(addresses: &[SocketAddr], family: Family) -> Vec<SocketAddr> {
    let mut distinct: Vec<SocketAddr> = Vec::new();
    for address in addresses.iter().filter(|address| family.has(&address.ip())) {
        let known = distinct.iter().any(|seen| seen.ip() == address.ip());
        if !known && distinct.len() < MAX_ADDRESSES {
            distinct.push(*address);
        }
    }
    let Some(first) = distinct.first().copied() else { return Vec::new() };
    let (own, other): (Vec<_>, Vec<_>) =
        distinct.into_iter().partition(|address| address.is_ipv4() == first.is_ipv4());
    let (mut own, mut other) = (own.into_iter(), other.into_iter());
    let mut out = Vec::new();
    loop {
        let pair = [own.next(), other.next()];
        if pair == [None, None] {
            return out;
        }
        out.extend(pair.into_iter().flatten());
    }
}

/// Connected lanes, all to one address and port.
#[derive(Debug)]
pub struct Lanes {
    /// Where they lead.
    pub to: SocketAddr,
    /// The sockets, in blocking mode, one per lane asked for.
    pub sockets: Vec<OwnedFd>,
}

/// Connects `count` lanes within [`DEADLINE`].
///
/// # Errors
/// Status 3 and a sentence that names host, addresses and ports and says what to do.
pub async fn dial(targets: &Targets, count: usize) -> Result<Lanes, SessionError> {
    dial_within(targets, count, DEADLINE).await
}

async fn dial_within(targets: &Targets, count: usize, time: Duration) -> Result<Lanes, SessionError> {
    let candidates = targets.candidates();
    if candidates.is_empty() {
        let text = format!(
            "{} offers no {} address for data (ssh itself works); leave -4 or -6 away, or name the host by an \
             address of that family",
            targets.host,
            targets.family.name()
        );
        return Err(SessionError { status: status::CONNECT, text });
    }
    let deadline = Instant::now() + time;
    let mut refusals = Vec::new();
    let more = count.saturating_sub(1);
    let favourite = candidates.front().copied();
    // Dropped, it gives up what it dialled.
    let mut bet = JoinSet::new();
    if let Some(to) = favourite {
        bet.spawn(others(to, more, deadline, targets.congestion.clone()));
    }
    let first = timeout_at(deadline, race(candidates, targets.congestion.as_ref(), &mut refusals))
        .await
        .ok()
        .flatten();
    let Some((to, first)) = first else { return Err(unreachable(targets, &refusals, time)) };
    tracing::debug!("data goes to {to}");
    let mut sockets = vec![handed_over(first, to)?];
    let won = if favourite == Some(to) { bet.join_next().await.and_then(Result::ok) } else { None };
    drop(bet);
    sockets.extend(match won {
        Some(others) => others?,
        None => others(to, more, deadline, targets.congestion.clone()).await?,
    });
    Ok(Lanes { to, sockets })
}

/// Races the candidates; `None` when all were refused. What each failure was is left in `refusals`.
async fn race(
    mut candidates: VecDeque<SocketAddr>,
    congestion: Option<&Arc<str>>,
    refusals: &mut Vec<(SocketAddr, io::Error)>,
) -> Option<(SocketAddr, TcpStream)> {
    let total = u32::try_from(candidates.len()).unwrap_or(u32::MAX).max(1);
    let stagger = STAGGER.min(ALL_TRIED_WITHIN / total);
    let mut attempts = JoinSet::new();
    let mut next_at = Instant::now();
    loop {
        if attempts.is_empty() && candidates.is_empty() {
            return None;
        }
        tokio::select! {
            Some(ended) = attempts.join_next() => match ended {
                Ok((to, Ok(stream))) => return Some((to, stream)),
                Ok((to, Err(error))) => {
                    refusals.push((to, error));
                    next_at = Instant::now();
                }
                Err(_) => {}
            },
            () = sleep_until(next_at), if !candidates.is_empty() => {
                if let Some(to) = candidates.pop_front() {
                    let congestion = congestion.cloned();
                    attempts.spawn(async move { (to, connect(to, congestion.as_deref()).await) });
                }
                next_at = Instant::now() + stagger;
            }
        }
    }
}

/// Connects the other lanes to where the first one succeeded. A full backlog refuses for a moment, so each
/// is tried until the deadline.
async fn others(
    to: SocketAddr,
    count: usize,
    deadline: Instant,
    congestion: Option<Arc<str>>,
) -> Result<Vec<OwnedFd>, SessionError> {
    let mut attempts = JoinSet::new();
    for _ in 0..count {
        let congestion = congestion.clone();
        attempts.spawn(async move {
            loop {
                match timeout_at(deadline, connect(to, congestion.as_deref())).await {
                    Err(_) => return Err(io::Error::from(io::ErrorKind::TimedOut)),
                    Ok(Ok(stream)) => return Ok(stream),
                    Ok(Err(error)) if Instant::now() + RETRY_PAUSE > deadline => return Err(error),
                    Ok(Err(_)) => sleep(RETRY_PAUSE).await,
                }
            }
        });
    }
    let mut sockets = Vec::with_capacity(count);
    while let Some(ended) = attempts.join_next().await {
        let connected = ended.map_err(|_| io::Error::from(io::ErrorKind::Interrupted)).flatten();
        let stream = connected.map_err(|error| SessionError {
            status: status::CONNECT,
            text: format!(
                "{to} accepted {} of {} data connections, then no more: {error}; try fewer streams (-t)",
                sockets.len() + 1,
                count + 1
            ),
        })?;
        sockets.push(handed_over(stream, to)?);
    }
    Ok(sockets)
}

async fn connect(to: SocketAddr, congestion: Option<&str>) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    congestion::before_connecting(&socket, to.ip(), congestion);
    socket.connect(to).await
}

/// The socket in blocking mode: an engine chooses its own mode, and io_uring wants this one.
fn handed_over(stream: TcpStream, to: SocketAddr) -> Result<OwnedFd, SessionError> {
    let blocking = stream.into_std().and_then(|stream| {
        stream.set_nonblocking(false)?;
        Ok(stream.into())
    });
    blocking.map_err(|error| SessionError {
        status: status::CONNECT,
        text: format!("the connection to {to} could not be set up: {error}"),
    })
}

/// Why no candidate connected, and what to do about it.
fn unreachable(targets: &Targets, refusals: &[(SocketAddr, io::Error)], time: Duration) -> SessionError {
    let candidates = targets.candidates();
    let mut addresses: Vec<String> = Vec::new();
    for candidate in &candidates {
        let shown = candidate.ip().to_string();
        if !addresses.contains(&shown) {
            addresses.push(shown);
        }
    }
    let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    let all_refused = refusals.len() == candidates.len() && refusals.iter().all(|(_, error)| refused(error));
    let how = if all_refused {
        "refused the connection".to_owned()
    } else if refusals.len() < candidates.len() {
        format!("did not answer within {} s, as behind a firewall", time.as_secs())
    } else {
        let telling = refusals.iter().map(|(_, error)| error).find(|error| !refused(error));
        telling.map_or_else(|| "cannot be reached".into(), |error| format!("cannot be reached ({error})"))
    };
    let text = format!(
        "{host} answers ssh, but TCP {ports} on {addresses} {how}; open the port to this host, or choose others \
         with --escp_port (--tunnel, to send data through ssh, is not in this version)",
        host = targets.host,
        ports = ports_shown(&targets.ports),
        addresses = addresses.join(", "),
    );
    SessionError { status: status::CONNECT, text }
}

/// "port 1232", "ports 1232-1242", "ports 1232, 1240".
fn ports_shown(ports: &[u16]) -> String {
    let mut sorted = ports.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let runs = sorted.chunk_by(|a, b| a.checked_add(1) == Some(*b)).map(|run| match run {
        [first, .., last] if run.len() > 2 => format!("{first}-{last}"),
        few => few.iter().map(u16::to_string).collect::<Vec<_>>().join(", "),
    });
    let word = if sorted.len() == 1 { "port" } else { "ports" };
    format!("{word} {}", runs.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn targets(addresses: &[&str], ports: &[u16], family: Family) -> Targets {
        let addresses = addresses.iter().map(|a| SocketAddr::new(a.parse().unwrap(), 0)).collect();
        Targets { host: "box".into(), addresses, ports: ports.to_vec(), family, congestion: None }
    }

    #[test]
    fn families_take_turns_and_every_address_comes_before_the_second_port() {
        let targets = targets(&["2001:db8::1", "2001:db8::2", "10.0.0.1", "10.0.0.1"], &[7, 8], Family::Any);
        let order: Vec<_> = targets.candidates().iter().map(SocketAddr::to_string).collect();
        assert_eq!(
            order,
            [
                "[2001:db8::1]:7",
                "10.0.0.1:7",
                "[2001:db8::2]:7",
                "[2001:db8::1]:8",
                "10.0.0.1:8",
                "[2001:db8::2]:8"
            ]
        );
    }

    #[tokio::test]
    async fn a_name_is_looked_up_before_anybody_waits_for_it() {
        let ips = async |host: &str, patience| {
            let name = HostName::look_up(host);
            while !name.is_looked_up() {
                tokio::task::yield_now().await;
            }
            let addresses: Vec<_> = name.addresses(patience).await.iter().map(SocketAddr::ip).collect();
            addresses
        };
        // No time is left, and none is needed.
        assert_eq!(ips("192.0.2.1", Duration::ZERO).await, [IpAddr::from([192, 0, 2, 1])]);
        assert_eq!(ips("[2001:db8::1]", Duration::ZERO).await.len(), 1);
        assert!(ips("localhost", Duration::ZERO).await.iter().any(IpAddr::is_loopback));
        assert!(ips("no host\0", Duration::ZERO).await.is_empty());
    }

    #[test]
    fn ports_are_shown_as_ranges() {
        assert_eq!(ports_shown(&[1232]), "port 1232");
        assert_eq!(ports_shown(&[1233, 1232, 1234, 1240]), "ports 1232-1234, 1240");
        assert_eq!(ports_shown(&[1, 2]), "ports 1, 2");
    }

    #[tokio::test]
    async fn a_dead_address_costs_a_quarter_second_and_all_lanes_go_to_the_live_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // TEST-NET-1 (RFC 5737) answers nowhere: it times out, or has no route.
        let targets = targets(&["192.0.2.1", "127.0.0.1"], &[port], Family::Any);
        let start = Instant::now();
        let lanes = dial(&targets, 5).await.unwrap();
        // Long before the dead one is given up.
        assert!(start.elapsed() < ALL_TRIED_WITHIN, "{:?}", start.elapsed());
        assert_eq!(lanes.sockets.len(), 5);
        assert_eq!(lanes.to, SocketAddr::from(([127, 0, 0, 1], port)));
    }

    /// A port of loopback that is taken, so that nobody else gets it, and refuses connections.
    fn closed() -> (TcpSocket, u16) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = socket.local_addr().unwrap().port();
        (socket, port)
    }

    #[tokio::test]
    async fn a_refused_port_gives_way_to_the_next_at_once() {
        let (_closed, closed_port) = closed();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let targets = targets(&["127.0.0.1"], &[closed_port, port], Family::V4);
        let mut quickest = Duration::MAX;
        // A busy machine may be slow for once, but not always.
        for _ in 0..10 {
            let start = Instant::now();
            let lanes = dial(&targets, 2).await.unwrap();
            quickest = quickest.min(start.elapsed());
            assert_eq!(lanes.to.port(), port);
        }
        assert!(quickest < STAGGER, "{quickest:?}");
    }

    #[tokio::test]
    async fn refused_ports_are_named() {
        let (_closed, port) = closed();
        let error = dial(&targets(&["127.0.0.1"], &[port], Family::Any), 2).await.unwrap_err();
        assert_eq!(error.status, status::CONNECT);
        assert!(
            error.text.starts_with(&format!("box answers ssh, but TCP port {port} on 127.0.0.1 refused")),
            "{}",
            error.text
        );
    }

    /// A listener whose backlog is full drops further SYNs, as a firewall does.
    #[tokio::test]
    async fn a_filtered_port_is_named_at_the_deadline() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let to = listener.local_addr().unwrap();
        // As many as the queue holds, and one more; how many that is, is the kernel's affair.
        let mut held = vec![TcpStream::connect(to).await.unwrap(), TcpStream::connect(to).await.unwrap()];
        while let Ok(Ok(stream)) = timeout(Duration::from_millis(200), TcpStream::connect(to)).await {
            held.push(stream);
        }
        let targets = targets(&["127.0.0.1"], &[to.port()], Family::Any);
        let start = Instant::now();
        let error = dial_within(&targets, 2, Duration::from_secs(1)).await.unwrap_err();
        assert!(start.elapsed() < DEADLINE, "{:?}", start.elapsed());
        assert_eq!(error.status, status::CONNECT);
        for word in ["box answers ssh", "did not answer within 1 s", "--tunnel", "not in this version"] {
            assert!(error.text.contains(word), "{word}: {}", error.text);
        }
    }

    #[tokio::test]
    async fn no_address_of_the_family_is_said() {
        let error = dial(&targets(&["127.0.0.1"], &[1], Family::V6), 2).await.unwrap_err();
        assert_eq!(error.status, status::CONNECT);
        assert!(error.text.contains("no IPv6 address"), "{}", error.text);
    }
}
