//! The rig against programs that know nothing of it.

use super::{FAR, Link, NEAR, Wan};
use crate::network::Network;
use crate::run::{Outcome, Run, program, wait_until};
use crate::{Checked, Trouble, ensure, need_wan, skip};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

struct Rig {
    wan: Wan,
    near: Network,
    far: Network,
}

impl Rig {
    fn new(round_trip_ms: u64, rate: Option<u64>) -> Checked<Self> {
        let (near, far) = (Network::new()?, Network::new()?);
        let wan = Wan::join(&near, &far, Link::new(Duration::from_millis(round_trip_ms), rate))?;
        Ok(Self { wan, near, far })
    }

    fn ping(&self, words: &[&str]) -> Checked<Outcome> {
        Run::new(program("ping")?, None).network(&self.near).args(words).arg(FAR.to_string()).end()
    }

    /// Sends bytes to the far host by TCP, and says what came.
    fn send(&self, bytes: &[u8]) -> Checked<Vec<u8>> {
        let listener = self.far.inside(|| TcpListener::bind((FAR, 0)))??;
        let port = listener.local_addr()?.port();
        std::thread::scope(|scope| {
            let received = scope.spawn(move || {
                let (mut stream, peer) = listener.accept()?;
                assert_eq!(peer.ip(), NEAR);
                let mut all = Vec::new();
                stream.read_to_end(&mut all)?;
                Ok::<_, std::io::Error>(all)
            });
            let mut stream = self.near.inside(|| TcpStream::connect((FAR, port)))??;
            stream.write_all(bytes)?;
            drop(stream);
            Ok(received.join().map_err(|_| Trouble::new("the receiver panicked"))??)
        })
    }

    /// Segments that the far host dropped because of their checksum.
    fn checksum_errors(&self) -> Checked<u64> {
        let text = self.far.inside(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))??;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let column = names.split(' ').position(|name| name == "InCsumErrors");
        let value = column.and_then(|column| values.split(' ').nth(column));
        Ok(value.ok_or_else(|| Trouble::new("no InCsumErrors"))?.parse()?)
    }
}

fn average_ms(ping: &Outcome) -> Checked<f64> {
    // rtt min/avg/max/mdev = 50.1/50.3/50.9/0.2 ms
    let values = ping.stdout.lines().find_map(|line| line.split_once(" = ")).map(|(_, values)| values);
    let average = values.and_then(|values| values.split('/').nth(1));
    Ok(average.ok_or_else(|| Trouble::new(ping.told()))?.parse()?)
}

#[test]
fn ping_sees_the_distance_and_its_change() -> Checked {
    need_wan!();
    if program("ping").is_err() {
        skip!("needs ping");
    }
    let rig = Rig::new(60, None)?;
    for round_trip in [60, 10] {
        rig.wan.change(|link| link.delay = Duration::from_millis(round_trip) / 2);
        let average = average_ms(&rig.ping(&["-c", "10", "-i", "0.05"])?)?;
        // A busy machine is late, never early.
        let expected = round_trip as f64;
        ensure!((expected..expected + 20.0).contains(&average), "{average} ms in place of {expected}");
    }
    Ok(())
}

#[test]
fn ping_sees_loss_and_a_partition() -> Checked {
    need_wan!();
    if program("ping").is_err() {
        skip!("needs ping");
    }
    let rig = Rig::new(0, None)?;
    rig.wan.change_to_far(|link| link.loss = 0.5);
    let lossy = rig.ping(&["-c", "100", "-i", "0.005"])?;
    let answers = lossy.stdout.lines().filter(|line| line.contains("bytes from")).count();
    ensure!((20..=80).contains(&answers), "half were to be lost: {}", lossy.told());
    ensure!(rig.wan.counts().lost >= 20, "{:?}", rig.wan.counts());
    rig.wan.change(|link| (link.loss, link.cut) = (0.0, true));
    ensure!(
        rig.ping(&["-c", "3", "-i", "0.05", "-W", "1"])?.code() == 1,
        "an answer came through a partition"
    );
    rig.wan.change(|link| link.cut = false);
    rig.ping(&["-c", "1"])?.expect_status(0)?;
    Ok(())
}

#[test]
fn iperf3_sees_the_rate() -> Checked {
    need_wan!();
    let Ok(iperf) = program("iperf3") else { skip!("needs iperf3") };
    let rig = Rig::new(10, Some(200_000_000))?;
    let server = Run::new(&iperf, None).network(&rig.far).args(["-s", "-1"]).start()?;
    let mut rate = None;
    wait_until("iperf3 to measure", Duration::from_secs(20), || {
        let client = Run::new(&iperf, None).network(&rig.near);
        let measured = client.args(["-c", &FAR.to_string(), "-t", "2", "-P", "2", "-f", "k"]).end();
        // [SUM]   0.00-2.01   sec  46.6 MBytes  194812 Kbits/sec                  receiver
        let line = |outcome: Outcome| {
            let line = outcome.stdout.lines().rfind(|line| line.starts_with("[SUM]"))?.to_owned();
            line.split_once(" Kbits/sec")?.0.rsplit(' ').next()?.parse::<f64>().ok()
        };
        rate = measured.ok().and_then(line);
        rate.is_some()
    })?;
    drop(server);
    let rate = rate.unwrap_or(0.0);
    ensure!((120_000.0..=200_000.0).contains(&rate), "{rate} kbit/s in place of 200000");
    Ok(())
}

#[test]
fn a_flipped_bit_is_found_by_the_checksum_unless_that_fits() -> Checked {
    need_wan!();
    let rig = Rig::new(2, None)?;
    let sent: Vec<u8> = (0..8_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
    ensure!(rig.send(&sent)? == sent, "the way alters bytes by itself");
    ensure!(rig.checksum_errors()? == 0, "checksums do not fit");
    rig.wan.change_to_far(|link| link.flips = 0.1);
    ensure!(rig.send(&sent)? == sent, "damage came through TCP's checksum");
    let flipped = rig.wan.counts().flipped;
    ensure!(flipped > 0 && rig.checksum_errors()? == flipped, "{flipped} flipped");
    rig.wan.change_to_far(|link| link.flips_fit_checksum = true);
    let came = rig.send(&sent)?;
    let wrong = came.iter().zip(&sent).filter(|(came, sent)| came != sent).count();
    ensure!(came.len() == sent.len() && wrong > 0, "{wrong} bytes of {} differ", came.len());
    ensure!(rig.checksum_errors()? == flipped, "the checksum did not fit");
    Ok(())
}
