//! Runs the body of the fuzz target for frames over its seeds, and over changed copies of them.
//!
//! The seeds are well-formed packets with the number of their descriptors before them. `ESCP_BLESS=1` writes
//! them anew.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail where it stands")]

#[path = "../../../fuzz/src/ipc.rs"]
#[allow(dead_code, unreachable_pub)]
mod target;

use escp_engine_api::{
    Command, Direction, EngineKind, Event, Extent, ExtentKind, Failure, Fault, FileCheck, FileError,
    FileReport, FileSpec, JobOptions, Lane, Listen, Opened, Secret, SessionId, Side, Stage, Summary,
};
use escp_ipc::{Hello, Outgoing, encode_command, encode_event};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/ipc")
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

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
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

#[test]
fn seeds_are_what_the_code_makes_of_them() {
    let bless = std::env::var_os("ESCP_BLESS").is_some();
    if bless {
        std::fs::create_dir_all(directory()).unwrap();
    }
    for (name, bytes) in seeds() {
        let path = directory().join(name);
        if bless {
            std::fs::write(&path, &bytes).unwrap();
        }
        let kept = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(kept, bytes, "{} differs from what the code encodes", path.display());
    }
}

#[test]
fn the_target_holds_over_every_seed_and_every_changed_copy() {
    for (name, bytes) in seeds() {
        let kept = std::fs::read(directory().join(name)).unwrap_or(bytes);
        target::ipc(&kept);
        for end in 0..kept.len() {
            target::ipc(&kept[..end]);
        }
        for bit in 0..kept.len() * 8 {
            let mut copy = kept.clone();
            copy[bit / 8] ^= 1 << (bit % 8);
            target::ipc(&copy);
        }
    }
}
