//! Runs the bodies of the fuzz targets for frames over their seeds, and over changed copies of them.
//!
//! The seeds are well-formed packets with the number of their descriptors before them. `ESCP_BLESS=1` writes
//! them anew.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail where it stands")]

#[path = "../../../fuzz/src/ipc.rs"]
#[allow(dead_code, unreachable_pub)]
mod target;

#[path = "../../../fuzz/src/link.rs"]
#[allow(dead_code, unreachable_pub)]
mod link_target;

use escp_engine_api::placement::{Placement, Reason};
use escp_engine_api::{
    Command, Direction, EngineKind, Event, Extent, ExtentKind, Failure, Fault, FileCheck, FileError,
    FileReport, FileSpec, JobOptions, Lane, Listen, Opened, Secret, SessionId, Side, Stage, Summary,
};
use escp_ipc::link::{LogChoice, SessionEnd, Start, ToBroker, ToWorker};
use escp_ipc::{Hello, Outgoing, encode_command, encode_event};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn directory(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target)
}

fn descriptor() -> Arc<OwnedFd> {
    Arc::new(File::open("/dev/null").unwrap().into())
}

fn options() -> Box<JobOptions> {
    Box::new(JobOptions {
        listen: Some(Listen { first_port: 1232, last_port: 1242 }),
        compress: Some(-3),
        rate_limit: Some(1_000_000),
        congestion: Some("bbr".into()),
        cpus: vec![0, 1],
        ..JobOptions::new(SessionId([1; 16]), Secret([0xa5; 32]), Side::Far, Direction::Receive)
    })
}

fn packet(mut outgoing: Vec<Outgoing>) -> Vec<u8> {
    let outgoing = outgoing.remove(0);
    let descriptors = u8::try_from(outgoing.descriptors.len()).unwrap();
    [&[descriptors][..], &outgoing.frame].concat()
}

/// Commands, events and hellos.
fn ipc_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let spec = |number| FileSpec { number, size: 5, direct_alignment: 4096, in_memory: false, sparse: true };
    let extent = Extent { file: 1, offset: 4096, length: 3, kind: ExtentKind::Hole };
    let command = |command| packet(encode_command(command).unwrap());
    let event = |event| packet(encode_event(event).unwrap());
    let failed = FileError { stage: Stage::Write, errno: 28, text: "No space left on device".to_owned() };
    let opened = Opened {
        kind: EngineKind::Posix,
        kind_reason: Some("refused".to_owned()),
        ports: vec![1232],
        port_note: None,
        daemon: true,
    };
    vec![
        ("open", command(Command::Open(options()))),
        (
            "add-lane",
            command(Command::AddLane(Lane { stream: 3, socket: File::open("/dev/null").unwrap().into() })),
        ),
        ("add-files", command(Command::AddFiles(vec![(spec(1), Some(descriptor())), (spec(2), None)]))),
        ("schedule", command(Command::Schedule(vec![extent]))),
        ("drop-files", command(Command::DropFiles(vec![1, u64::MAX]))),
        ("message", command(Command::Message(b"opaque".to_vec()))),
        ("finish", command(Command::Finish(Summary { files: 3, list_hash: [4; 32] }))),
        ("abort", command(Command::Abort { reason: "Ctrl-C".to_owned() })),
        ("opened", event(Event::Opened(opened))),
        (
            "files",
            event(Event::Files(vec![
                FileReport { number: 1, outcome: Ok(FileCheck::Crc64(u64::MAX)) },
                FileReport { number: 2, outcome: Err(failed) },
            ])),
        ),
        ("failed", event(Event::Failed(Failure { fault: Fault::Lost, text: "lost".to_owned() }))),
        ("hello", [&[0][..], &Hello::Refused("too many sessions".to_owned()).encode()].concat()),
    ]
}

/// Messages between broker and worker.
fn link_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let to_worker =
        |descriptors: u8, message: ToWorker| [&[descriptors][..], &message.encode().unwrap()].concat();
    let to_broker = |message: ToBroker| [&[0][..], &message.encode().unwrap()].concat();
    let log = LogChoice { level: 2, json: true, journald: false, file: Some("/var/log/escpd.log".into()) };
    let start = Start {
        log: log.clone(),
        ports: vec![1232, 1233],
        cpus: vec![0, 300],
        memory: 1 << 30,
        rate: Some(1_000_000_000),
    };
    let placement = Placement { reason: Reason::Card, nodes: vec![1], cpus: vec![2, 3, 8] };
    vec![
        ("start", to_worker(3, ToWorker::Start(Box::new(start)))),
        ("registered", to_worker(0, ToWorker::Registered(Ok(())))),
        ("not-registered", to_worker(0, ToWorker::Registered(Err("no such session".to_owned())))),
        ("lane", to_worker(1, ToWorker::Lane([1; 32], [2; 32]))),
        ("log", to_worker(0, ToWorker::Log(log))),
        ("stop", to_worker(0, ToWorker::Stop("escpd was stopped".to_owned()))),
        ("register", to_broker(ToBroker::Register { session: [1; 16], route_key: Secret([2; 32]) })),
        ("placed", to_broker(ToBroker::Placed(placement))),
        ("agreed", to_broker(ToBroker::Ended(SessionEnd::Agreed))),
        ("lost", to_broker(ToBroker::Ended(SessionEnd::Failed(Fault::Lost)))),
    ]
}

/// What a target takes, by the target's name.
type Target = (&'static str, fn(&[u8]), Vec<(&'static str, Vec<u8>)>);

fn targets() -> [Target; 2] {
    [("ipc", target::ipc, ipc_seeds()), ("link", link_target::link, link_seeds())]
}

#[test]
fn seeds_are_what_the_code_makes_of_them() {
    let bless = std::env::var_os("ESCP_BLESS").is_some();
    for (target, _, seeds) in targets() {
        let directory = directory(target);
        if bless {
            std::fs::create_dir_all(&directory).unwrap();
        }
        for (name, bytes) in seeds {
            let path = directory.join(name);
            if bless {
                std::fs::write(&path, &bytes).unwrap();
            }
            let kept = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert_eq!(kept, bytes, "{} differs from what the code encodes", path.display());
        }
    }
}

#[test]
fn the_targets_hold_over_every_seed_and_every_changed_copy() {
    for (target, run, seeds) in targets() {
        for (name, bytes) in seeds {
            let kept = std::fs::read(directory(target).join(name)).unwrap_or(bytes);
            run(&kept);
            for end in 0..kept.len() {
                run(&kept[..end]);
            }
            for bit in 0..kept.len() * 8 {
                let mut copy = kept.clone();
                copy[bit / 8] ^= 1 << (bit % 8);
                run(&copy);
            }
        }
    }
}
