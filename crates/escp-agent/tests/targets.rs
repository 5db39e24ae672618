//! What already is where something is to go.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's helpers fail the test")]
#![allow(dead_code, reason = "the pair serves several tests")]

mod pair;

use escp_agent::Target;
use pair::{Faults, Options, bytes, converse, leftovers, options, source, target, upload};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

struct Place {
    root: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("to")).unwrap();
        fs::write(root.path().join("file"), b"new content").unwrap();
        Self { root }
    }
    fn at(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }
    async fn refused(&self, sources: &[&str], to: &str, options: Options) -> String {
        let sources: Vec<_> = sources.iter().map(|name| self.at(name)).collect();
        let sources: Vec<&Path> = sources.iter().map(PathBuf::as_path).collect();
        let outcome = upload(&sources, &self.at(to), options).await;
        let (sent, received) = outcome.tallies();
        assert_eq!((sent.failed, received.failed, sent.status()), (1, 1, 1));
        assert_eq!(leftovers(self.root.path()), Vec::<PathBuf>::new());
        let failures = outcome.failures();
        // The sender names the host, the path there, and why.
        let (path, text) = failures.first().unwrap();
        let told = &outcome.sender.0.lock().unwrap().failed;
        assert_eq!(told.first().unwrap().text, format!("far:{path}: {text}"));
        text.clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_file_is_replaced_and_keeps_its_mode() {
    let place = Place::new();
    let to = place.at("to/file");
    fs::write(&to, b"old content, which is longer").unwrap();
    fs::set_permissions(&to, fs::Permissions::from_mode(0o604)).unwrap();
    fs::hard_link(&to, place.at("link")).unwrap();
    let before = fs::metadata(&to).unwrap().ino();
    upload(&[&place.at("file")], &place.at("to"), options()).await.all_good();
    assert_eq!(fs::read(&to).unwrap(), b"new content");
    assert_eq!(fs::metadata(&to).unwrap().mode() & 0o7777, 0o604);
    assert_ne!(fs::metadata(&to).unwrap().ino(), before, "a published file is a new inode");
    assert_eq!(fs::read(place.at("link")).unwrap(), b"old content, which is longer");

    fs::set_permissions(place.at("file"), fs::Permissions::from_mode(0o640)).unwrap();
    let preserve = Options { preserve: true, ..options() };
    upload(&[&place.at("file")], &to, preserve).await.all_good();
    assert_eq!(fs::metadata(&to).unwrap().mode() & 0o7777, 0o640);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_place_keeps_inode_links_and_mode() {
    let place = Place::new();
    let to = place.at("to/file");
    fs::write(&to, b"old content, which is longer").unwrap();
    fs::set_permissions(&to, fs::Permissions::from_mode(0o604)).unwrap();
    fs::hard_link(&to, place.at("link")).unwrap();
    let before = fs::metadata(&to).unwrap().ino();
    let inplace = Options { inplace: true, ..options() };
    upload(&[&place.at("file")], &place.at("to"), inplace).await.all_good();
    assert_eq!(fs::read(place.at("link")).unwrap(), b"new content");
    let after = fs::metadata(&to).unwrap();
    assert_eq!((after.ino(), after.mode() & 0o7777), (before, 0o604));
    // A link that the user named is followed, one below the target is not.
    symlink("to/file", place.at("named")).unwrap();
    fs::write(place.at("file"), b"third").unwrap();
    upload(&[&place.at("file")], &place.at("named"), inplace).await.all_good();
    assert_eq!(fs::read(&to).unwrap(), b"third");
    assert!(fs::symlink_metadata(place.at("named")).unwrap().is_symlink());
    fs::create_dir(place.at("other")).unwrap();
    symlink("../to/file", place.at("other/file")).unwrap();
    assert!(place.refused(&["file"], "other", inplace).await.contains("symbolic link"));
    // A new file.
    upload(&[&place.at("file")], &place.at("to/fresh"), inplace).await.all_good();
    assert_eq!(fs::read(place.at("to/fresh")).unwrap(), b"third");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_final_link_is_replaced_never_its_target() {
    let place = Place::new();
    fs::write(place.at("victim"), b"precious").unwrap();
    for (link, leads_to) in [("to/file", "../victim"), ("to/dangling", "nowhere")] {
        symlink(leads_to, place.at(link)).unwrap();
        upload(&[&place.at("file")], &place.at(link), options()).await.all_good();
        assert_eq!(fs::read(place.at("victim")).unwrap(), b"precious");
        assert!(fs::symlink_metadata(place.at(link)).unwrap().is_file());
        assert_eq!(fs::read(place.at(link)).unwrap(), b"new content");
    }
    assert!(!place.at("to/nowhere").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_file_is_refused() {
    let place = Place::new();
    fs::create_dir(place.at("to/file")).unwrap();
    assert!(place.refused(&["file"], "to", options()).await.contains("is a directory"));
    mknodat(CWD, place.at("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    assert!(place.refused(&["file"], "fifo", options()).await.contains("not a regular file"));
    let inplace = Options { inplace: true, ..options() };
    assert!(place.refused(&["file"], "fifo", inplace).await.contains("not a regular file"));
    assert!(fs::symlink_metadata(place.at("to/file")).unwrap().is_dir());
    assert!(place.refused(&["file"], "absent/", options()).await.contains("Not a directory"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_where_a_directory_is_to_go_fails_it_and_what_is_below_in_silence() {
    let place = Place::new();
    fs::create_dir_all(place.at("from/sub/deeper")).unwrap();
    for name in ["from/sub/a", "from/sub/b", "from/sub/deeper/c", "from/good"] {
        fs::write(place.at(name), b"x").unwrap();
    }
    fs::create_dir(place.at("to/from")).unwrap();
    fs::write(place.at("to/from/sub"), b"a file").unwrap();
    let outcome = upload(&[&place.at("from")], &place.at("to"), options()).await;
    let (sent, received) = outcome.tallies();
    // sub, a, b, deeper, c.
    assert_eq!((sent.files, sent.failed, received.failed), (1, 5, 5));
    let failures = outcome.failures();
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert!(failures.first().unwrap().1.contains("not a directory"));
    assert_eq!(outcome.sender.0.lock().unwrap().failed.len(), 1);
    assert_eq!(fs::read(place.at("to/from/sub")).unwrap(), b"a file");
    assert!(place.at("to/from/good").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_to_a_directory_below_the_target_is_not_followed() {
    let place = Place::new();
    fs::create_dir_all(place.at("from/sub")).unwrap();
    fs::write(place.at("from/sub/a"), b"x").unwrap();
    fs::create_dir(place.at("to/from")).unwrap();
    fs::create_dir(place.at("outside")).unwrap();
    symlink("../../outside", place.at("to/from/sub")).unwrap();
    let outcome = upload(&[&place.at("from")], &place.at("to"), options()).await;
    assert_eq!(outcome.tallies().1.failed, 2);
    assert!(outcome.failures().first().unwrap().1.contains("symbolic link"));
    assert_eq!(fs::read_dir(place.at("outside")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_source_of_one_name_is_refused() {
    let place = Place::new();
    for directory in ["a", "b"] {
        fs::create_dir(place.at(directory)).unwrap();
        fs::write(place.at(directory).join("same"), directory).unwrap();
    }
    let text = place.refused(&["a/same", "b/same"], "to", options()).await;
    assert!(text.contains("same name"), "{text}");
    assert_eq!(fs::read(place.at("to/same")).unwrap(), b"a");
}

#[tokio::test(flavor = "multi_thread")]
async fn leftovers_of_an_earlier_run_are_named() {
    let place = Place::new();
    fs::write(place.at("to/.escp-abcdefgh"), b"part").unwrap();
    fs::write(place.at("to/.escp-short"), b"someone's").unwrap();
    let outcome = upload(&[&place.at("file")], &place.at("to"), options()).await;
    outcome.all_good();
    let notes = &outcome.receiver.0.lock().unwrap().notes;
    assert!(notes.iter().any(|note| note.contains(".escp-abcdefgh") && !note.contains("short")), "{notes:?}");
}

/// A file system of its own, of `size` bytes; `None` (said aloud) where this process may not mount.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: PathBuf, options: &str) -> Option<Self> {
        fs::create_dir(&at).unwrap();
        let done = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(&at)
            .status();
        if done.is_ok_and(|status| status.success()) {
            return Some(Self(at));
        }
        escp_testkit::say_skipped(&escp_testkit::test_name(), "this process may not mount");
        None
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_does_not_fit_fails_before_its_first_byte() {
    let place = Place::new();
    let Some(small) = Mounted::tmpfs(place.at("small"), "size=4m") else { return };
    fs::create_dir(place.at("from")).unwrap();
    fs::write(place.at("from/big"), vec![1; 6 << 20]).unwrap();
    fs::write(place.at("from/little"), b"fits").unwrap();
    let outcome = upload(&[&place.at("from")], &small.0, options()).await;
    let (sent, received) = outcome.tallies();
    assert_eq!((sent.files, sent.failed, received.failed), (1, 1, 1));
    let failures = outcome.failures();
    let (path, text) = failures.first().unwrap();
    assert!(path.ends_with("small/from/big"), "{path}");
    assert!(text.contains("6291456 bytes needed, 41"), "{text}");
    assert!(outcome.moved < 100, "no byte of it came");
    assert_eq!(leftovers(&small.0), Vec::<PathBuf>::new());
    assert_eq!(fs::read(small.0.join("from/little")).unwrap(), b"fits");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_promised_to_files_under_way_counts() {
    let place = Place::new();
    let Some(small) = Mounted::tmpfs(place.at("small"), "size=10m") else { return };
    fs::create_dir(place.at("from")).unwrap();
    for name in ["a", "b", "c"] {
        fs::write(place.at("from").join(name), vec![1; 4 << 20]).unwrap();
    }
    let outcome = upload(&[&place.at("from")], &small.0, options()).await;
    let (sent, _) = outcome.tallies();
    assert_eq!((sent.files, sent.failed), (2, 1), "{:?}", outcome.failures());
    assert!(outcome.failures().first().unwrap().1.contains("4194304 bytes needed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_inodes_is_said_with_numbers() {
    let place = Place::new();
    let Some(small) = Mounted::tmpfs(place.at("small"), "size=4m,nr_inodes=4") else { return };
    fs::create_dir(place.at("from")).unwrap();
    for name in ["a", "b", "c", "d", "e"] {
        fs::write(place.at("from").join(name), b"x").unwrap();
    }
    let outcome = upload(&[&place.at("from")], &small.0, options()).await;
    let (sent, _) = outcome.tallies();
    assert_eq!((sent.files, sent.failed), (2, 3), "{:?}", outcome.failures());
    assert!(outcome.failures().iter().all(|(_, text)| text.contains("(0 inodes available)")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_target_is_said_per_file() {
    let place = Place::new();
    let Some(small) = Mounted::tmpfs(place.at("small"), "size=1m,ro") else { return };
    let outcome = upload(&[&place.at("file")], &small.0, options()).await;
    assert!(outcome.failures().first().unwrap().1.contains("Read-only file system"));
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_writing_fail_that_file_with_numbers() {
    let place = Place::new();
    let faults = Faults { write_fails: Some((1, 28)), ..Faults::default() };
    fs::write(place.at("other"), b"other").unwrap();
    fs::write(place.at("to/file"), b"old").unwrap();
    let sources = vec![source(place.at("file")), source(place.at("other"))];
    let outcome = converse(sources, target(place.at("to")), options(), Faults::default(), faults).await;
    let (sent, received) = outcome.tallies();
    assert_eq!((sent.files, sent.failed, received.failed), (1, 1, 1));
    let text = outcome.failures().first().unwrap().1.clone();
    assert!(text.contains("No space left") && text.contains("(11 bytes needed, "), "{text}");
    assert_eq!(fs::read(place.at("to/file")).unwrap(), b"old", "the old file is kept");
    assert_eq!(leftovers(place.root.path()), Vec::<PathBuf>::new());
}

/// Someone with rights in the target swaps directories for links as fast as it goes, while trees arrive.
#[tokio::test(flavor = "multi_thread")]
async fn a_planted_link_is_never_followed_out_in_a_race_of_1000_rounds() {
    const ROUNDS: u64 = 1000;
    let place = Place::new();
    fs::create_dir_all(place.at("from/d")).unwrap();
    for file in 0..4 {
        fs::write(place.at(&format!("from/d/f{file}")), b"x").unwrap();
    }
    fs::create_dir(place.at("outside")).unwrap();
    fs::create_dir(place.at("to/from")).unwrap();
    let (stop, swaps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let attacker = {
        let (stop, swaps) = (Arc::clone(&stop), Arc::clone(&swaps));
        let (at, aside, outside) = (place.at("to/from/d"), place.at("aside"), place.at("outside"));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                // Each step fails when the receiver was quicker; that is the race.
                let _ = fs::rename(&at, &aside);
                let _ = symlink(&outside, &at);
                let _ = fs::remove_file(&at);
                let _ = fs::remove_dir_all(&aside);
                swaps.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let quick = Options { durable: false, ..options() };
    let mut failed = 0;
    for _ in 0..ROUNDS {
        let outcome = upload(&[&place.at("from")], &place.at("to"), quick).await;
        failed += outcome.tallies().1.failed;
        assert_eq!(fs::read_dir(place.at("outside")).unwrap().count(), 0, "a link was followed out");
    }
    stop.store(true, Ordering::Relaxed);
    attacker.join().unwrap();
    let swaps = swaps.load(Ordering::Relaxed);
    assert!(swaps > ROUNDS && failed > 0, "the race was none: {swaps} swaps, {failed} failures");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_takes_what_was_asked_for_only() {
    let place = Place::new();
    let asked =
        Target::resolve(&bytes(place.at("to")), false, 1, true).unwrap().requested(&[b"other".to_vec()]);
    let outcome =
        converse(vec![source(place.at("file"))], asked, options(), Faults::default(), Faults::default())
            .await;
    assert_eq!(outcome.received.unwrap_err().status, 5);
    assert_eq!(fs::read_dir(place.at("to")).unwrap().count(), 0);
}
