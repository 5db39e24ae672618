//! A byte-exact TCP proxy between two hosts, which can tamper with what passes.
//!
//! The ssh connection passes untouched. On data connections it knows where records begin and end (the first
//! packet and its answer, then `IV 8 | payload | tag 16`, the length in the IV) and asks a rule about each.

use crate::Checked;
use crate::network::Network;
use std::fmt;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

const FIRST_PACKET: usize = 64;
const ANSWER: usize = 32;
const IV: usize = 8;
const TAG: usize = 16;
/// How often a held connection lets a record go, so that nobody takes it for dead.
pub const TRICKLE: Duration = Duration::from_secs(2);

/// A first packet, an answer or a record on its way.
#[derive(Debug)]
pub struct Unit<'a> {
    /// Counts data connections, from 0.
    pub connection: usize,
    /// Stream number, from the first packet.
    pub stream: u16,
    /// Towards the far host.
    pub to_far: bool,
    /// 0 is the first packet (or its answer), 1 the first record, and so on.
    pub index: usize,
    /// All of it.
    pub bytes: &'a [u8],
}

impl Unit<'_> {
    /// Whether it is a file record (kind 1 in the IV's two highest bits).
    #[must_use]
    pub fn is_file_record(&self) -> bool {
        self.index > 0 && self.bytes.first().is_some_and(|byte| byte >> 6 == 1)
    }
}

/// What becomes of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It goes on as it is.
    Pass,
    /// This goes on in its place.
    Replace(Vec<u8>),
    /// Nothing goes on.
    Drop,
    /// It goes on twice.
    Twice,
    /// It is held back until after the next one of its connection and direction.
    Swap,
    /// This many bytes of it go on, then both sides see the connection end.
    CutAfter(usize),
    /// Both sides see a reset.
    Reset,
    /// Nothing more passes on this connection, and it stays open.
    Stall,
}

type Rule = Box<dyn FnMut(&Unit<'_>) -> Action + Send>;

struct Shared {
    rule: Mutex<Option<Rule>>,
    connections: AtomicUsize,
    /// What was sent towards the far host, per data connection, while recording.
    recorded: Mutex<Vec<Vec<u8>>>,
    recording: AtomicBool,
    held: Mutex<bool>,
    released: Condvar,
    over: AtomicBool,
}

/// A running proxy. Stopped when dropped.
pub struct Proxy {
    shared: Arc<Shared>,
    dial: Sender<(SocketAddr, Sender<std::io::Result<TcpStream>>)>,
    dialler: Option<JoinHandle<()>>,
    /// Listeners, and whether they are for data.
    open: Mutex<Vec<(u16, bool, TcpListener)>>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").finish_non_exhaustive()
    }
}

impl Proxy {
    /// Listens on 127.0.0.1 of `near`, on the ssh port and all data ports, and passes on to the same ports of
    /// 127.0.0.1 of `far`.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn start(near: &Network, far: &Network, ssh_port: u16, data: (u16, u16)) -> Checked<Self> {
        let shared = Arc::new(Shared {
            rule: Mutex::new(None),
            connections: AtomicUsize::new(0),
            recorded: Mutex::new(Vec::new()),
            recording: AtomicBool::new(false),
            held: Mutex::new(false),
            released: Condvar::new(),
            over: AtomicBool::new(false),
        });
        let (dial, requests) = channel();
        // Sockets belong to the namespace of the thread that makes them, so one thread stays in `far`.
        let dialler = far.inside(|| std::thread::Builder::new().spawn(move || serve_dials(&requests)))??;
        let proxy = Self { shared, dial, dialler: Some(dialler), open: Mutex::new(Vec::new()) };
        for port in std::iter::once(ssh_port).chain(data.0..=data.1) {
            let listener = near.inside(|| TcpListener::bind(("127.0.0.1", port)))??;
            proxy.serve(listener, port, port != ssh_port)?;
        }
        Ok(proxy)
    }

    /// Sets the rule for every first packet, answer and record of data connections from now on.
    pub fn tamper(&self, rule: impl FnMut(&Unit<'_>) -> Action + Send + 'static) {
        *lock(&self.shared.rule) = Some(Box::new(rule));
    }

    /// Keeps what is sent towards the far host.
    pub fn record(&self) {
        self.shared.recording.store(true, Ordering::Relaxed);
    }

    /// What was kept, one item per data connection.
    #[must_use]
    pub fn recorded(&self) -> Vec<Vec<u8>> {
        lock(&self.shared.recorded).clone()
    }

    /// Data connections so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// From now on each file record but the first of its connection waits for [`Proxy::release`], or for
    /// [`TRICKLE`]: data has begun to move, and the transfer cannot end however fast or slow the machine is.
    pub fn hold(&self) {
        *lock(&self.shared.held) = true;
    }

    /// Lets go on what [`Proxy::hold`] holds.
    pub fn release(&self) {
        *lock(&self.shared.held) = false;
        self.shared.released.notify_all();
    }

    /// Opens a connection to a port of the far host, past every rule.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn dial_far(&self, port: u16) -> Checked<TcpStream> {
        Ok(dial(&self.dial, port)?)
    }

    /// Stops listening on every data port: connections to them are refused from now on.
    pub fn close_data_ports(&self) {
        lock(&self.open).retain(|(_, data, listener)| {
            if *data {
                let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
            }
            !data
        });
    }

    /// Listens on the data ports of another address of the near host.
    ///
    /// # Errors
    /// When one is taken.
    pub fn open_data_ports_on(&self, near: &Network, address: &str, data: (u16, u16)) -> Checked {
        for port in data.0..=data.1 {
            let listener = near.inside(|| TcpListener::bind((address, port)))??;
            self.serve(listener, port, true)?;
        }
        Ok(())
    }

    fn serve(&self, listener: TcpListener, port: u16, data: bool) -> Checked {
        let (shared, dials) = (Arc::clone(&self.shared), self.dial.clone());
        lock(&self.open).push((port, data, listener.try_clone()?));
        std::thread::Builder::new().spawn(move || {
            for near in listener.incoming() {
                if shared.over.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(near) = near else { return };
                let (shared, dials) = (Arc::clone(&shared), dials.clone());
                std::thread::spawn(move || {
                    if let Ok(far) = dial(&dials, port) {
                        join(&shared, near, far, data);
                    }
                });
            }
        })?;
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        self.release();
        for (_, _, listener) in lock(&self.open).drain(..) {
            // Wakes the thread that accepts.
            let _ = rustix::net::shutdown(&listener, rustix::net::Shutdown::Both);
        }
        // Its threads end with their sockets, or with the process; the dialler with the last sender.
        drop(self.dialler.take());
    }
}

/// Ports of an address on which connections are neither accepted nor refused, as behind a firewall that drops:
/// the queue of each listener is full, so the kernel ignores who else comes.
#[derive(Debug)]
pub struct Filtered {
    _sockets: Vec<std::os::fd::OwnedFd>,
    _fillers: Vec<TcpStream>,
}

impl Filtered {
    /// Takes the ports of 127.0.0.1 in a network namespace.
    ///
    /// # Errors
    /// When one is taken.
    pub fn new(network: &Network, ports: (u16, u16)) -> Checked<Self> {
        Self::at(network, Ipv4Addr::LOCALHOST.into(), ports)
    }

    /// Takes the ports of an address of a network namespace.
    ///
    /// # Errors
    /// When one is taken, or the address is another host's.
    pub fn at(network: &Network, address: IpAddr, ports: (u16, u16)) -> Checked<Self> {
        network.inside(|| {
            use rustix::net::{AddressFamily, SocketType, bind, listen, socket, sockopt};
            let (mut sockets, mut fillers) = (Vec::new(), Vec::new());
            for port in ports.0..=ports.1 {
                let address = SocketAddr::new(address, port);
                let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
                let listener = socket(family, SocketType::STREAM, None)?;
                sockopt::set_socket_reuseaddr(&listener, true)?;
                bind(&listener, &address)?;
                listen(&listener, 0)?;
                // A backlog of 0 holds one; the next one is never answered.
                fillers.push(TcpStream::connect_timeout(&address, Duration::from_secs(20))?);
                while let Ok(filler) = TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
                    fillers.push(filler);
                }
                sockets.push(listener);
            }
            Ok(Self { _sockets: sockets, _fillers: fillers })
        })?
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve_dials(requests: &Receiver<(SocketAddr, Sender<std::io::Result<TcpStream>>)>) {
    while let Ok((address, answer)) = requests.recv() {
        let _ = answer.send(TcpStream::connect_timeout(&address, Duration::from_secs(10)));
    }
}

fn dial(
    requests: &Sender<(SocketAddr, Sender<std::io::Result<TcpStream>>)>,
    port: u16,
) -> std::io::Result<TcpStream> {
    let (answer, wait) = channel();
    let gone = |_| std::io::Error::other("the proxy is over");
    requests.send((SocketAddr::from(([127, 0, 0, 1], port)), answer)).map_err(|_| gone(()))?;
    wait.recv().map_err(|_| gone(()))?
}

fn join(shared: &Arc<Shared>, near: TcpStream, far: TcpStream, data: bool) {
    let _ = near.set_nodelay(true);
    let _ = far.set_nodelay(true);
    let (Ok(near_2), Ok(far_2)) = (near.try_clone(), far.try_clone()) else { return };
    if !data {
        let back = std::thread::spawn(move || relay(far_2, near_2));
        relay(near, far);
        let _ = back.join();
        return;
    }
    let connection = shared.connections.fetch_add(1, Ordering::Relaxed);
    let stream = Arc::new(AtomicUsize::new(0));
    let back = Way { shared: Arc::clone(shared), connection, stream: Arc::clone(&stream), to_far: false };
    let there = Way { shared: Arc::clone(shared), connection, stream, to_far: true };
    let back = std::thread::spawn(move || back.carry(far_2, near_2));
    there.carry(near, far);
    let _ = back.join();
}

fn relay(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

/// One direction of a data connection.
struct Way {
    shared: Arc<Shared>,
    connection: usize,
    stream: Arc<AtomicUsize>,
    to_far: bool,
}

impl Way {
    fn carry(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut held: Option<Vec<u8>> = None;
        for index in 0.. {
            let Some(unit) = self.read(&mut from, index) else { break };
            self.keep(&unit);
            self.wait(index, &unit);
            let Some(out) = self.decide(index, unit, &mut held, &from, &to) else { return };
            if to.write_all(&out).is_err() {
                let _ = from.shutdown(Shutdown::Both);
                return;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    }

    /// Waits while file records are held.
    fn wait(&self, index: usize, unit: &[u8]) {
        if index > 1 && unit.first().is_some_and(|byte| byte >> 6 == 1) {
            let held = lock(&self.shared.held);
            let wait = self.shared.released.wait_timeout_while(held, TRICKLE, |held| *held);
            drop(wait.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Bytes to pass on now; `None` when the connection is over.
    fn decide(
        &self,
        index: usize,
        unit: Vec<u8>,
        held: &mut Option<Vec<u8>>,
        from: &TcpStream,
        to: &TcpStream,
    ) -> Option<Vec<u8>> {
        #[expect(clippy::cast_possible_truncation, reason = "it was read from 16 bits")]
        let stream = self.stream.load(Ordering::Relaxed) as u16;
        let seen = Unit { connection: self.connection, stream, to_far: self.to_far, index, bytes: &unit };
        let action = lock(&self.shared.rule).as_mut().map_or(Action::Pass, |rule| rule(&seen));
        let mut out = match action {
            Action::Pass => unit,
            Action::Replace(other) => other,
            Action::Drop => Vec::new(),
            Action::Twice => [unit.clone(), unit].concat(),
            Action::Swap => {
                *held = Some(unit);
                return Some(Vec::new());
            }
            Action::CutAfter(length) => {
                let mut to = to;
                let _ = to.write_all(unit.get(..length).unwrap_or(&unit));
                let _ = to.shutdown(Shutdown::Both);
                let _ = from.shutdown(Shutdown::Both);
                return None;
            }
            Action::Reset => {
                for socket in [from, to] {
                    let linger = Some(Duration::ZERO);
                    let _ = rustix::net::sockopt::set_socket_linger(socket, linger);
                    let _ = socket.shutdown(Shutdown::Both);
                }
                return None;
            }
            Action::Stall => {
                while !self.shared.over.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(100));
                }
                return None;
            }
        };
        if let Some(late) = held.take() {
            out.extend_from_slice(&late);
        }
        Some(out)
    }

    /// The next unit; a part of one, or nothing, when the sender is done.
    fn read(&self, from: &mut TcpStream, index: usize) -> Option<Vec<u8>> {
        let mut unit = Vec::new();
        if index == 0 {
            grow(from, &mut unit, if self.to_far { FIRST_PACKET } else { ANSWER })?;
            if self.to_far
                && let Some(&[high, low]) = unit.get(6..8)
            {
                self.stream.store(usize::from(u16::from_be_bytes([high, low])), Ordering::Relaxed);
            }
            return Some(unit);
        }
        grow(from, &mut unit, IV)?;
        if let Ok(iv) = <[u8; IV]>::try_from(unit.as_slice()) {
            let length = u64::from_be_bytes(iv) >> 38 & 0xff_ffff;
            let _ = grow(from, &mut unit, usize::try_from(length).unwrap_or(0) + TAG);
        }
        Some(unit)
    }

    fn keep(&self, unit: &[u8]) {
        if self.to_far && self.shared.recording.load(Ordering::Relaxed) {
            let mut recorded = lock(&self.shared.recorded);
            while recorded.len() <= self.connection {
                recorded.push(Vec::new());
            }
            if let Some(bytes) = recorded.get_mut(self.connection) {
                bytes.extend_from_slice(unit);
            }
        }
    }
}

/// Appends `length` bytes, or what comes before the end; `None` when that is nothing.
fn grow(from: &mut TcpStream, unit: &mut Vec<u8>, length: usize) -> Option<()> {
    let start = unit.len();
    let read = from.take(length as u64).read_to_end(unit).ok();
    if unit.len() > start || length == 0 { read.map(drop) } else { None }
}
