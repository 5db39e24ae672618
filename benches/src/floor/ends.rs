//! The floor's two processes: how the sending one starts the receiving one, and how its streams reach it.

use escp_sys::congestion;
use escp_testkit::{Checked, Trouble};
use rustix::process::{Signal, set_parent_process_death_signal};
use socket2::{Domain, Socket, Type};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

/// The receiving process, as the sending one sees it.
pub(super) struct Receiver(Child);

impl Receiver {
    /// Starts this program once more, with the same words, as the receiving end, through a command line if there is one.
    /// Returns where it listens.
    pub(super) fn start(through: &[String]) -> Checked<(Self, SocketAddr)> {
        let program = std::env::current_exe()?;
        let mut command = match through {
            [] => Command::new(program),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        };
        command.args(std::env::args_os().skip(1).take_while(|word| word != "--")).arg("--receive");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let mut line = String::new();
        if let Some(stdout) = &mut child.stdout {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        match line.trim_end().parse() {
            Ok(address) => Ok((Self(child), address)),
            // It has ended, and says why.
            Err(_) => Err(Trouble::new(
                told(child)?.unwrap_or_else(|| "it did not say where it listens".to_owned()),
            )),
        }
    }

    /// Waits for its end, when `sent` came of this process's own work. Whoever failed first makes the other fail: both say why.
    pub(super) fn end(self, sent: Checked) -> Checked {
        match (sent, told(self.0)?) {
            (sent, None) => sent,
            (Ok(()), Some(theirs)) => Err(Trouble::new(theirs)),
            (Err(ours), Some(theirs)) => Err(Trouble::new(format!("the sending end: {ours:?}\n{theirs}"))),
        }
    }

    /// Ends it, since not all of its streams will come.
    pub(super) fn give_up(mut self, trouble: &Trouble) -> Checked {
        let _ = self.0.kill();
        let theirs = told(self.0)?.unwrap_or_default();
        Err(Trouble::new(format!("the sending end: {trouble:?}\n{theirs}")))
    }
}

/// Waits for the end of the receiving process; if it failed, what it says about that.
fn told(mut child: Child) -> Checked<Option<String>> {
    let mut text = String::new();
    if let Some(stderr) = &mut child.stderr {
        stderr.read_to_string(&mut text)?;
    }
    let status = child.wait()?;
    Ok((!status.success()).then(|| format!("the receiving end ({status}): {}", text.trim_end())))
}

/// Connects all streams to the receiving process, each with its number in front.
pub(super) fn connect(address: SocketAddr, streams: u16) -> Checked<Vec<TcpStream>> {
    let connect = |stream: u16| -> Checked<TcpStream> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        congestion::before_connecting(&socket, address.ip(), None);
        socket.connect(&address.into())?;
        let mut socket = TcpStream::from(socket);
        socket.write_all(&stream.to_be_bytes())?;
        Ok(socket)
    };
    (0..streams).map(connect).collect()
}

/// Says where it listens and takes all streams, in the order of their numbers.
pub(super) fn accept(address: IpAddr, streams: u16) -> Checked<Vec<TcpStream>> {
    let listener = TcpListener::bind((address, 0))?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", listener.local_addr()?)?;
    stdout.flush()?;
    let accept = |_| -> Checked<(u16, TcpStream)> {
        let (mut socket, _) = listener.accept()?;
        let mut number = [0; 2];
        socket.read_exact(&mut number)?;
        Ok((u16::from_be_bytes(number), socket))
    };
    let mut sockets = (0..streams).map(accept).collect::<Checked<Vec<_>>>()?;
    sockets.sort_by_key(|(number, _)| *number);
    Ok(sockets.into_iter().map(|(_, socket)| socket).collect())
}

/// This process, the receiving one, is killed when the sending one ends. Where that has ended before, telling it where
/// this one listens fails.
pub(super) fn end_with_the_sender() -> Checked {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}
