//! Runs the bodies of the fuzz targets over their seeds, and over changed copies of them.
//!
//! The seeds are well-formed bytes of each kind. `ESCP_BLESS=1` writes them anew.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail where it stands")]

#[path = "../../../fuzz/src/protocol.rs"]
#[allow(dead_code, unreachable_pub)]
mod protocol;

#[path = "samples/mod.rs"]
#[allow(dead_code)]
mod samples;

use std::path::{Path, PathBuf};

fn directory(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target)
}

/// Every seed of a target, by file name.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    match target {
        "record" => samples::records(),
        "block" => samples::blocks(),
        "message" => samples::messages(),
        "agent_message" => samples::agent_messages(),
        "conversation" => samples::conversations(),
        "control" => samples::control_channels(),
        "first_packet" => samples::first_packets(),
        other => panic!("no seeds for {other}"),
    }
}

#[test]
fn seeds_are_what_the_code_makes_of_them() {
    let bless = std::env::var_os("ESCP_BLESS").is_some();
    for (target, _) in protocol::TARGETS {
        let directory = directory(target);
        if bless {
            std::fs::create_dir_all(&directory).unwrap();
        }
        for (name, bytes) in seeds(target) {
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
fn targets_hold_over_every_seed_and_every_changed_copy() {
    for (target, body) in protocol::TARGETS {
        let mut count = 0;
        for entry in std::fs::read_dir(directory(target)).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            body(&bytes);
            changed_copies(&bytes, body);
            count += 1;
        }
        assert!(count > 0, "no seeds for {target}");
    }
}

/// Every prefix, and every bit of the first 256 bytes changed.
fn changed_copies(bytes: &[u8], body: fn(&[u8])) {
    let near = bytes.len().min(256);
    for end in 0..near {
        body(&bytes[..end]);
    }
    for bit in 0..near * 8 {
        let mut copy = bytes.to_vec();
        copy[bit / 8] ^= 1 << (bit % 8);
        body(&copy);
    }
}
