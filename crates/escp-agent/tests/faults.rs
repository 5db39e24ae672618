//! Files that change, peers that lie, sessions that break off.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's helpers fail the test")]
#![allow(dead_code, reason = "the pair serves several tests")]

mod pair;

use escp_agent::link::{HangUp, SessionError};
use escp_agent::{receive_files, send_files};
use escp_engine_api::{Command, Event, Failure, Fault, FileCheck, FileReport, engine_pair};
use escp_proto::agent::{
    AgentMessage, Attributes, Entry, EntryKind, EntryResult, FileDigest, ROOT, SourceFailure, Timestamp,
};
use escp_testkit::{say_skipped, test_name};
use pair::{Faults, Options, Recorder, converse, leftovers, link, options, source, target, upload};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

fn place() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("to")).unwrap();
    fs::create_dir(root.path().join("from")).unwrap();
    for name in ["a", "b", "c"] {
        fs::write(root.path().join("from").join(name), format!("content of {name}")).unwrap();
    }
    // So that a write during the test gets another time stamp.
    std::thread::sleep(Duration::from_millis(20));
    root
}

/// Sends from/{a,b,c} while `change` is done to the tree just before `a` is read.
async fn while_a_is_read(change: impl Fn(&Path) + Send + 'static) -> (tempfile::TempDir, pair::Outcome) {
    let root = place();
    fs::write(root.path().join("to/a"), b"old").unwrap();
    let from = root.path().join("from");
    let sources = ["a", "b", "c"].map(|name| source(from.join(name))).to_vec();
    let mut changed = false;
    let before_read = move |number| {
        if number == 1 && !std::mem::replace(&mut changed, true) {
            change(&from);
        }
    };
    let faults = Faults { before_read: Some(Box::new(before_read)), ..Faults::default() };
    let to = target(root.path().join("to"));
    let outcome = converse(sources, to, options(), faults, Faults::default()).await;
    (root, outcome)
}

fn only_a_failed(root: &Path, outcome: &pair::Outcome, why: &str) {
    let (sent, received) = outcome.tallies();
    assert_eq!((sent.files, sent.failed, received.failed, sent.status()), (2, 1, 1, 1));
    let told = &outcome.sender.0.lock().unwrap().failed;
    let failure = told.first().unwrap();
    assert!(failure.path.ends_with(b"from/a") && failure.text.contains(why), "{failure:?}");
    let (path, text) = outcome.failures().first().unwrap().clone();
    assert!(path.ends_with("to/a") && text.starts_with("near:") && text.contains(why), "{path} {text}");
    assert_eq!(fs::read(root.join("to/a")).unwrap(), b"old", "the old file is untouched");
    assert_eq!(leftovers(root), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_cut_fails_alone() {
    let (root, outcome) = while_a_is_read(|from| fs::write(from.join("a"), b"less").unwrap()).await;
    only_a_failed(root.path(), &outcome, "ended early");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_grows_fails_alone() {
    let (root, outcome) =
        while_a_is_read(|from| fs::write(from.join("a"), b"content of a and more").unwrap()).await;
    only_a_failed(root.path(), &outcome, "changed while it was read: its size went from 12 to 21 bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_rewritten_in_place_fails_alone() {
    let (root, outcome) = while_a_is_read(|from| fs::write(from.join("a"), b"CONTENT OF A").unwrap()).await;
    only_a_failed(root.path(), &outcome, "changed while it was read: it was written to");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_replaced_or_removed_arrives_whole_as_it_was() {
    let replace = |from: &Path| {
        fs::write(from.join("new"), b"another content").unwrap();
        fs::rename(from.join("new"), from.join("a")).unwrap();
    };
    let (root, outcome) = while_a_is_read(replace).await;
    outcome.all_good();
    assert_eq!(fs::read(root.path().join("to/a")).unwrap(), b"content of a");
    let (root, outcome) = while_a_is_read(|from| fs::remove_file(from.join("a")).unwrap()).await;
    outcome.all_good();
    assert_eq!(fs::read(root.path().join("to/a")).unwrap(), b"content of a");
}

#[tokio::test(flavor = "multi_thread")]
async fn altered_data_is_an_integrity_failure_of_that_file() {
    let root = place();
    let faults = Faults { corrupt: Some(2), ..Faults::default() };
    let sources = ["a", "b", "c"].map(|name| source(root.path().join("from").join(name))).to_vec();
    let to = target(root.path().join("to"));
    let outcome = converse(sources.clone(), to, options(), Faults::default(), faults).await;
    let (sent, received) = outcome.tallies();
    assert_eq!((sent.status(), received.status()), (5, 5));
    assert_eq!((sent.files, sent.failed), (2, 1));
    assert!(outcome.failures().first().unwrap().1.contains("altered on the way"));
    assert!(!root.path().join("to/b").exists());
    assert_eq!(leftovers(root.path()), Vec::<PathBuf>::new());
    // Nobody compares when nobody is asked to.
    let faults = Faults { corrupt: Some(2), ..Faults::default() };
    let unchecked = Options { checksum: false, ..options() };
    let to = target(root.path().join("to"));
    let outcome = converse(sources, to, unchecked, Faults::default(), faults).await;
    assert_eq!(outcome.tallies().1.failed, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_temporary_file_that_is_removed_or_edited_fails_that_file() {
    for edit in [false, true] {
        let root = place();
        let to = root.path().join("to");
        let spoil = move |number| {
            if number != 1 {
                return;
            }
            for path in leftovers(&to) {
                if fs::read(&path).unwrap() != b"content of a" {
                    continue;
                }
                fs::remove_file(&path).unwrap();
                if edit {
                    fs::write(&path, b"replaced").unwrap();
                }
            }
        };
        let faults = Faults { before_report: Some(Box::new(spoil)), ..Faults::default() };
        let sources = ["a", "b"].map(|name| source(root.path().join("from").join(name))).to_vec();
        let place = target(root.path().join("to"));
        let outcome = converse(sources, place, options(), Faults::default(), faults).await;
        let (sent, _) = outcome.tallies();
        assert_eq!((sent.files, sent.failed), (1, 1));
        assert!(outcome.failures().first().unwrap().1.contains("removed or replaced"));
        assert!(!root.path().join("to/a").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_session_leaves_nothing_behind() {
    let root = place();
    fs::write(root.path().join("to/c"), b"old").unwrap();
    let faults = Faults { lost_after: Some(1), ..Faults::default() };
    let sources = vec![source(root.path().join("from"))];
    let to = target(root.path().join("to"));
    let outcome = converse(sources, to, options(), Faults::default(), faults).await;
    assert_eq!(outcome.received.as_ref().unwrap_err().status, 4);
    assert_eq!(outcome.sent.as_ref().unwrap_err().status, 4);
    assert_eq!(leftovers(root.path()), Vec::<PathBuf>::new());
    assert_eq!(fs::read(root.path().join("to/c")).unwrap(), b"old");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_this_user_may_not_read_fails_alone() {
    let root = place();
    // Root may read everything: the rest is done by another user, in a process of its own.
    if rustix::process::geteuid().is_root() {
        let exe = std::env::current_exe().unwrap();
        let readable = root.path().join("helper");
        fs::copy(exe, &readable).unwrap();
        for path in [root.path(), readable.as_path(), &root.path().join("to")] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
        }
        let test = "what_this_user_may_not_read_fails_alone";
        let done = std::process::Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&readable)
            .args(["--exact", test, "--nocapture"])
            .env("TMPDIR", root.path().join("to"))
            .output();
        match done {
            Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => say_skipped(&test_name(), &format!("setpriv: {error}")),
        }
        return;
    }
    let from = root.path().join("from");
    fs::create_dir(from.join("closed")).unwrap();
    for (name, mode) in [("b", 0o000), ("closed", 0o000)] {
        fs::set_permissions(from.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let outcome = upload(&[&from], &root.path().join("to"), options()).await;
    let (sent, received) = outcome.tallies();
    assert_eq!((sent.files, sent.failed, received.failed, sent.status()), (2, 2, 2, 1));
    assert!(outcome.failures().iter().all(|(_, text)| text.contains("Permission denied")));
    // An existing file that this user may not write is not replaced behind its back, as with scp.
    let kept = root.path().join("to/from/a");
    fs::set_permissions(&kept, fs::Permissions::from_mode(0o444)).unwrap();
    let before = fs::metadata(&kept).unwrap().ino();
    let outcome = upload(&[&from.join("a")], &root.path().join("to/from"), options()).await;
    assert_eq!(outcome.tallies().0.failed, 1);
    assert_eq!(fs::metadata(&kept).unwrap().ino(), before);
    // A directory that may not be written.
    let closed = root.path().join("to/from");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).unwrap();
    let outcome = upload(&[&from.join("c")], &closed.join("new"), options()).await;
    assert!(outcome.failures().first().unwrap().1.contains("Permission denied"));
    for path in [from.join("closed"), closed] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
    }
}

/// A receiver whose engine is in the test's hands.
struct Puppet {
    root: tempfile::TempDir,
    commands: tokio::sync::mpsc::Receiver<Command>,
    events: tokio::sync::mpsc::Sender<Event>,
    raise: tokio::sync::watch::Sender<Option<HangUp>>,
    ended: tokio::task::JoinHandle<Result<escp_agent::tally::Tally, SessionError>>,
}

impl Puppet {
    fn receiver() -> Self {
        let root = place();
        let (engine, port) = engine_pair();
        let (mut session, raise) = link(engine);
        let place = target(root.path().join("to"));
        let ended = tokio::spawn(async move {
            receive_files(&mut session, place, options(), Arc::new(Recorder::default()), "evil").await
        });
        Self { root, commands: port.commands, events: port.events, raise, ended }
    }

    fn sender(source_path: &str) -> Self {
        let root = place();
        let (engine, port) = engine_pair();
        let (mut session, raise) = link(engine);
        let sources = vec![source(root.path().join(source_path))];
        let ended = tokio::spawn(async move {
            send_files(&mut session, sources, options(), Arc::new(Recorder::default()), "evil").await
        });
        Self { root, commands: port.commands, events: port.events, raise, ended }
    }

    async fn say(&self, message: AgentMessage) {
        // Encoding refuses what decoding would; the worst that can be said is said as bytes.
        self.events.send(Event::Message(message.encode().unwrap())).await.unwrap();
    }

    async fn status(self) -> (u8, String) {
        let Self { root, mut commands, events, ended, .. } = self;
        let drain = tokio::spawn(async move {
            let mut abort = None;
            while let Some(command) = commands.recv().await {
                if let Command::Abort { reason } = command {
                    abort = Some(reason);
                    break;
                }
            }
            // An engine is gone once it was told to abort.
            drop(events);
            abort
        });
        let error = tokio::time::timeout(Duration::from_secs(20), ended).await.unwrap().unwrap();
        let error = error.unwrap_err();
        assert_eq!(drain.await.unwrap().as_deref(), Some(error.text.as_str()), "the peer is told");
        assert_eq!(leftovers(root.path()), Vec::<PathBuf>::new());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2, "nothing beside the target");
        (error.status, error.text)
    }

    /// Waits for a message of the agent.
    async fn heard(&mut self, wanted: impl Fn(&AgentMessage) -> bool) {
        loop {
            match tokio::time::timeout(Duration::from_secs(20), self.commands.recv()).await.unwrap().unwrap()
            {
                Command::Message(bytes) if wanted(&AgentMessage::decode(&bytes).unwrap()) => return,
                _ => {}
            }
        }
    }
}

const TIME: Timestamp = Timestamp { seconds: 1, nanoseconds: 0 };
const ATTRIBUTES: Attributes = Attributes { mode: 0o644, mtime: TIME, atime: TIME };

fn file(number: u64, parent: u64, name: &str) -> Entry {
    let kind = EntryKind::File { size: 5, sparse: false, attributes: ATTRIBUTES };
    Entry { number, parent, name: name.as_bytes().to_vec(), kind }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_breaks_the_rules_ends_the_session_with_5() {
    let lies: Vec<(&str, Vec<AgentMessage>)> = vec![
        ("number out of turn", vec![AgentMessage::Offer(vec![file(2, ROOT, "x")])]),
        ("number twice", vec![AgentMessage::Offer(vec![file(1, ROOT, "x"), file(1, ROOT, "y")])]),
        ("unknown parent", vec![AgentMessage::Offer(vec![file(1, ROOT, "x"), file(2, 1, "y")])]),
        ("a receiver's word", vec![AgentMessage::Ready(vec![1])]),
        ("digest of nothing", vec![AgentMessage::Digests(vec![FileDigest { number: 9, outcome: Ok(1) }])]),
        ("offers after the end", vec![AgentMessage::NoMore, AgentMessage::Offer(vec![file(1, ROOT, "x")])]),
    ];
    for (what, messages) in lies {
        let puppet = Puppet::receiver();
        for message in messages {
            puppet.say(message).await;
        }
        let (status, text) = puppet.status().await;
        assert_eq!(status, 5, "{what}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_lead_elsewhere_end_the_session_with_5() {
    // As bytes, since encoding refuses to say them: `a-bc` of a good message becomes the bad name.
    for bad in [&b"../x"[..], b"/etc", b"a/bc", b"..\0x", b"./ab"] {
        let puppet = Puppet::receiver();
        let good = AgentMessage::Offer(vec![file(1, ROOT, "a-bc")]).encode().unwrap();
        let at = good.windows(4).position(|window| window == b"a-bc").unwrap();
        let mut evil = good;
        evil.splice(at..at + 4, bad.iter().copied());
        puppet.events.send(Event::Message(evil)).await.unwrap();
        let (status, text) = puppet.status().await;
        assert_eq!(status, 5, "{text}");
    }
    for bad in ["..", "."] {
        let puppet = Puppet::receiver();
        let mut evil = AgentMessage::Offer(vec![file(1, ROOT, &"~".repeat(bad.len()))]).encode().unwrap();
        let at = evil.windows(bad.len()).position(|window| window.iter().all(|&b| b == b'~')).unwrap();
        evil.splice(at..at + bad.len(), bad.bytes());
        puppet.events.send(Event::Message(evil)).await.unwrap();
        assert_eq!(puppet.status().await.0, 5);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn offers_beyond_the_credit_end_the_session_with_5() {
    let mut puppet = Puppet::receiver();
    let mut credit = 0;
    while credit == 0 {
        if let Some(Command::Message(bytes)) = puppet.commands.recv().await
            && let AgentMessage::Credit { entries } = AgentMessage::decode(&bytes).unwrap()
        {
            credit = entries;
        }
    }
    // Files whose bytes never come: none of them is answered for good.
    for start in (1..=credit * 4).step_by(400) {
        let entries = (start..start + 400).map(|number| file(number, ROOT, &format!("f{number}")));
        let message = AgentMessage::Offer(entries.collect()).encode().unwrap();
        if puppet.events.send(Event::Message(message)).await.is_err() {
            break;
        }
        // The session needs room for its commands; the last of them is to be seen by `status`.
        if start + 400 <= credit {
            while puppet.commands.try_recv().is_ok() {}
        }
    }
    let (status, text) = puppet.status().await;
    assert_eq!(status, 5);
    assert!(text.contains("offered entry"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_text_is_made_harmless() {
    let root = place();
    let (engine, mut port) = engine_pair();
    let (mut session, _raise) = link(engine);
    let recorder = Arc::new(Recorder::default());
    let seen = Arc::clone(&recorder);
    let to = target(root.path().join("to"));
    let task =
        tokio::spawn(async move { receive_files(&mut session, to, options(), recorder, "evil").await });
    let failure = SourceFailure { path: b"x".to_vec(), text: "\x1b]0;owned\x07".into() };
    let message = AgentMessage::SourceFailed(failure).encode().unwrap();
    port.events.send(Event::Message(message)).await.unwrap();
    let failed = Failure { fault: Fault::PeerAborted, text: "bye \x1b[2J".into() };
    port.events.send(Event::Failed(failed)).await.unwrap();
    let error = task.await.unwrap().unwrap_err();
    assert_eq!((error.status, error.text.as_str()), (4, "bye \\x1b[2J"));
    assert_eq!(seen.0.lock().unwrap().failed.first().unwrap().text, "\\x1b]0;owned\\x07");
    port.commands.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_breaks_the_rules_ends_the_session_with_5() {
    let done = |number| AgentMessage::Done(vec![EntryResult { number, outcome: Ok(0) }]);
    let lies = vec![
        ("ready before the offer", vec![AgentMessage::Ready(vec![1])]),
        ("done with what was not offered", vec![done(1)]),
        ("a credit beyond reason", vec![AgentMessage::Credit { entries: u64::MAX }]),
        ("a sender's word", vec![AgentMessage::NoMore]),
    ];
    for (what, messages) in lies {
        let puppet = Puppet::sender("from");
        for message in messages {
            puppet.say(message).await;
        }
        let (status, text) = puppet.status().await;
        assert_eq!(status, 5, "{what}: {text}");
    }
    // A success that nobody has read the file for.
    let mut puppet = Puppet::sender("from/a");
    puppet.say(AgentMessage::Credit { entries: 10 }).await;
    puppet.heard(|message| matches!(message, AgentMessage::Offer(_))).await;
    puppet.say(AgentMessage::Ready(vec![1])).await;
    puppet.say(done(1)).await;
    assert_eq!(puppet.status().await.0, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_up_stops_at_once_and_cleans_up() {
    let mut puppet = Puppet::receiver();
    puppet.say(AgentMessage::Offer(vec![file(1, ROOT, "x")])).await;
    puppet.heard(|message| matches!(message, AgentMessage::Ready(_))).await;
    assert_eq!(leftovers(puppet.root.path()).len(), 1);
    puppet.raise.send(Some(HangUp { status: 130, text: "interrupted".into() })).unwrap();
    assert_eq!(puppet.status().await, (130, "interrupted".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_channel_does_not_hide_what_the_engine_found() {
    let Puppet { root: _root, commands: _commands, events, raise, ended } = Puppet::receiver();
    raise.send(Some(HangUp { status: 4, text: "the control channel ended".into() })).unwrap();
    let failure = Failure { fault: Fault::Integrity, text: "data was altered".into() };
    events.send(Event::Failed(failure)).await.unwrap();
    drop(events);
    let error = ended.await.unwrap().unwrap_err();
    assert_eq!((error.status, error.text.as_str()), (5, "data was altered"));
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_session_removes_temporary_files() {
    let mut puppet = Puppet::receiver();
    let entries = (1..=50).map(|number| file(number, ROOT, &format!("f{number}"))).collect();
    puppet.say(AgentMessage::Offer(entries)).await;
    puppet.heard(|message| matches!(message, AgentMessage::Ready(_))).await;
    assert_eq!(leftovers(puppet.root.path()).len(), 50);
    let report = FileReport { number: 1, outcome: Ok(FileCheck::Crc64(7)) };
    puppet.events.send(Event::Files(vec![report])).await.unwrap();
    puppet.ended.abort();
    assert!(puppet.ended.await.unwrap_err().is_cancelled());
    assert_eq!(leftovers(puppet.root.path()), Vec::<PathBuf>::new());
    assert_eq!(fs::read_dir(puppet.root.path().join("to")).unwrap().count(), 0);
}
