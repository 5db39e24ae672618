//! iperf3: what the kernel's TCP moves, in clear, from memory to memory.

use crate::args::MeasureArgs;
use crate::contender::Contender;
use crate::ground::Ground;
use crate::machine::Cost;
use escp_testkit::run::{Run, Running};
use escp_testkit::{Checked, Trouble};
use std::time::Duration;

/// The limit, where iperf3 is installed.
pub(crate) fn limit(args: &MeasureArgs, streams: u16) -> Option<Contender> {
    // Its -n is the sum over all streams.
    let command = format!("iperf3 -c {{address}} -P {streams} -n {} -J", args.size);
    escp_testkit::run::program("iperf3")
        .ok()
        .map(|_| Contender::limit_without_files("iperf3, clear", &command))
}

/// A server for one client. It goes with the value.
pub(crate) fn server(ground: &Ground) -> Checked<Running> {
    let world = &ground.world;
    let server = Run::new("iperf3", Some(&world.users.far)).network(world.far_network());
    let server = server.args(["-s", "-1"]).patience(Duration::from_secs(3600)).start()?;
    // It answers nobody but a client, so that it listens can only be seen.
    for _ in 0..200 {
        let listening =
            world.far_network().inside(|| std::fs::read_to_string("/proc/thread-self/net/tcp6"))??;
        let plain = world.far_network().inside(|| std::fs::read_to_string("/proc/thread-self/net/tcp"))??;
        // 5201, its port.
        if listening.contains(":1451 ") || plain.contains(":1451 ") {
            return Ok(server);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(Trouble::new("iperf3 does not listen"))
}

/// What the whole would have cost: iperf3 ends as soon as its kernel has taken the last byte, and what is on its way
/// then never arrives.
pub(crate) fn whole(mut cost: Cost, report: &str) -> Checked<Cost> {
    let report: serde_json::Value = serde_json::from_str(report)?;
    let bytes = |sum: &str| report["end"][sum]["bytes"].as_f64().filter(|bytes| *bytes > 0.0);
    let (Some(sent), Some(received)) = (bytes("sum_sent"), bytes("sum_received")) else {
        return Err(Trouble::new("iperf3 does not say how much it sent, and how much arrived"));
    };
    let missing = (sent / received).max(1.0);
    cost.seconds *= missing;
    cost.cpu *= missing;
    cost.own_cpu = cost.own_cpu.map(|cpu| cpu * missing);
    Ok(cost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_arrive_still_has_to_be_moved() {
        let cost = Cost { seconds: 8.0, cpu: 4.0, own_cpu: Some(2.0), peak_mib: 1.0, ..Cost::default() };
        let report = r#"{"end": {"sum_sent": {"bytes": 1000}, "sum_received": {"bytes": 800}}}"#;
        let cost = whole(cost, report).unwrap();
        assert_eq!((cost.seconds, cost.cpu, cost.own_cpu, cost.peak_mib), (10.0, 5.0, Some(2.5), 1.0));
        assert!(whole(cost.clone(), "{}").is_err() && whole(cost, "iperf3: error").is_err());
    }
}
