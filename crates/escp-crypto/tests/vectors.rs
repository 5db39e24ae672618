//! Golden vectors: `tests/vectors/*.json` are byte for byte what the code makes of fixed inputs, and a second
//! decoder (`tests/vectors/decode.py`, its own ciphers, its own parsers) recomputes everything in them.
//!
//! `ESCP_BLESS=1` writes the files anew. A change in them is a change of the protocol, with one exception:
//! a new zstd may compress the same bytes otherwise.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail where it stands")]

#[path = "vectors/messages.rs"]
mod messages;
#[path = "vectors/records.rs"]
mod records;
#[path = "../../escp-proto/tests/samples/mod.rs"]
#[allow(dead_code)]
mod samples;
#[path = "vectors/schedule.rs"]
mod schedule;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn check(name: &str, value: &Value) {
    let path = directory().join(name);
    let text = serde_json::to_string_pretty(value).unwrap() + "\n";
    if std::env::var_os("ESCP_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap();
    let line = kept.lines().zip(text.lines()).position(|(kept, made)| kept != made);
    assert!(kept == text, "{name} differs from what the code makes, first in line {:?}", line.map(|n| n + 1));
}

#[test]
fn the_key_schedule_is_as_published() {
    check("schedule.json", &schedule::vectors());
}

#[test]
fn sealed_records_of_each_kind_are_as_published() {
    check("records.json", &records::vectors());
}

#[test]
fn control_and_agent_messages_are_as_published() {
    check("messages.json", &messages::vectors());
}

/// Runs the second decoder over the vectors in a directory; `None` where Python or its packages are missing.
fn second_decoder(vectors: &Path) -> Option<(bool, String)> {
    let python = std::env::var("ESCP_PYTHON").unwrap_or_else(|_| "/usr/bin/python3".to_owned());
    let imports = Command::new(&python).args(["-c", "import cryptography, zstandard"]).output();
    if !imports.is_ok_and(|output| output.status.success()) {
        let why =
            format!("{python} lacks cryptography or zstandard (python3-cryptography, python3-zstandard)");
        escp_testkit::say_skipped(&escp_testkit::test_name(), &why);
        return None;
    }
    let output = Command::new(&python).arg("-B").arg(vectors.join("decode.py")).output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Some((output.status.success(), said))
}

#[test]
fn a_second_decoder_agrees() {
    let Some((agrees, said)) = second_decoder(&directory()) else { return };
    assert!(agrees && said.contains("all vectors agree"), "{said}");
}

/// The text with one hexadecimal digit changed, the one at `at` of those in long strings.
fn with_a_digit_changed(text: &str, at: usize) -> String {
    let mut digits = Vec::new();
    let mut start = 0;
    for piece in text.split('"') {
        if piece.len() >= 16 && piece.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            digits.extend(start..start + piece.len());
        }
        start += piece.len() + 1;
    }
    let place = digits[at % digits.len()];
    let digit = if &text[place..=place] == "0" { "1" } else { "0" };
    format!("{}{digit}{}", &text[..place], &text[place + 1..])
}

#[test]
fn a_second_decoder_notices_any_changed_digit() {
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("changed-vectors");
    std::fs::create_dir_all(&copy).unwrap();
    let names = ["decode.py", "schedule.json", "records.json", "messages.json"];
    for (file, at) in names[1..].iter().flat_map(|file| [0, 499, 1009, 2003].map(|at| (file, at))) {
        for name in names {
            std::fs::copy(directory().join(name), copy.join(name)).unwrap();
        }
        let text = std::fs::read_to_string(directory().join(file)).unwrap();
        std::fs::write(copy.join(file), with_a_digit_changed(&text, at)).unwrap();
        let Some((agrees, said)) = second_decoder(&copy) else { return };
        assert!(!agrees, "{file}, digit {at}: {said}");
    }
}
