//! B9: what distance costs.

use crate::args::MeasureArgs;
use crate::contender::{Contender, Role, Trip};
use crate::ground::{Ground, Medium};
use crate::iperf;
use crate::login;
use crate::series::{Series, median};
use crate::workload::{Unit, Workload, files, gib};
use escp_testkit::{Checked, tree};
use std::time::Duration;

/// Workloads between hosts that are apart: the round trip, and bits per second where there is a limit.
pub(crate) const LINKS: [(&str, Duration, Option<u64>); 3] = [
    ("B9", Duration::from_millis(100), Some(1_000_000_000)),
    ("B9-fast", Duration::from_millis(50), None),
    ("B9-small", Duration::from_millis(100), None),
];

const NOWHERE: &str = "escp at 0 ms";

fn link(name: &str) -> (Duration, Option<u64>) {
    LINKS.iter().find(|(known, ..)| *known == name).map_or_else(Default::default, |link| (link.1, link.2))
}

/// One file.
pub(crate) fn file(name: &str, ground: &Ground, args: &MeasureArgs) -> Checked<Workload> {
    let (round_trip, rate) = link(name);
    // As between two machines: the hosts of a way have addresses of their own.
    let streams = args.streams.unwrap_or_else(|| escp_config::Config::default().streams);
    let trip = Trip { medium: Medium::Tmpfs, name: "random".to_owned(), tree: false };
    let source = ground.source(&trip);
    tree::file(&source, args.size, 1)?;
    ground.own(&source)?;
    let mut contenders = vec![Contender::escp("escp", args, &[]), login::one(), floor(streams)];
    contenders.extend(iperf::limit(args, streams));
    let rate =
        rate.map_or_else(|| "as fast as it goes".to_owned(), |rate| format!("{} Mb/s", rate / 1_000_000));
    let title = format!("one random file over {} ms, {rate}, tmpfs", round_trip.as_millis());
    let near = Workload::new(name, title, gib(args.size), trip, contenders, args.runs);
    Ok(Workload { round_trip: Some(round_trip), ..near })
}

/// Many small files.
pub(crate) fn small(name: &str, ground: &Ground, args: &MeasureArgs) -> Checked<Workload> {
    let (round_trip, _) = link(name);
    let trip = Trip { medium: Medium::Tmpfs, name: "small".to_owned(), tree: true };
    let source = ground.source(&trip);
    files(&source, args.files, 1 << 10, 16 << 10)?;
    ground.own(&source)?;
    let contenders = vec![
        Contender::escp("escp", args, &[]),
        Contender::escp(NOWHERE, args, &[]).in_role(Role::Peer).at(Duration::ZERO),
        login::one(),
    ];
    let title = format!("{} files of 1 to 16 KiB over {} ms, tmpfs", args.files, round_trip.as_millis());
    let near = Workload::new(name, title, Unit::Files(args.files), trip, contenders, args.runs);
    Ok(Workload { round_trip: Some(round_trip), ..near })
}

/// The floor over the same path, its receiving end started through ssh as escp's is.
fn floor(streams: u16) -> Contender {
    let paths = "--from {source} --to {out}/{name}";
    let command = format!(
        "{{bench}} floor --streams {streams} --address {{address}} {paths} -- ssh -F {{config}} {{far}}"
    );
    Contender::peer("floor, through ssh", &command).in_role(Role::Floor)
}

/// How escp's time for small files stands to what the distance allows, in a sentence for the table.
pub(crate) fn verdict(workload: &Workload, all: &[Series]) -> Option<String> {
    let round_trip = workload.round_trip?.as_secs_f64();
    let of = |name: &str| all.iter().find(|series| series.contender.name == name);
    let (escp, login) = (of("escp")?, of(login::ONE)?);
    // In the rounds in which all of them ran.
    let rounds = |other: &Series, value: fn(f64, f64, f64, f64) -> f64| {
        let runs = escp.runs.iter().zip(&login.runs).zip(&other.runs);
        let seconds = runs.filter_map(|((escp, login), other)| {
            Some((escp.as_ref()?.seconds, login.as_ref()?.seconds, other.as_ref()?.seconds))
        });
        median(seconds.map(|(escp, login, other)| value(escp, login, other, round_trip)))
    };
    let nowhere = of(NOWHERE)?;
    let allowed = rounds(nowhere, |_, login, nowhere, trip| login + 2.0 * nowhere + 10.0 * trip);
    let part = rounds(nowhere, |escp, login, nowhere, trip| escp / (login + 2.0 * nowhere + 10.0 * trip));
    Some(format!(
        "{part:.2} of the time of '{}', twice that at 0 ms and ten round trips, which is {allowed:.2} s",
        login::ONE
    ))
}
