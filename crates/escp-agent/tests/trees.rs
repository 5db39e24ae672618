//! Whole trees from one directory to another, by real agents.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's helpers fail the test")]
#![allow(dead_code, reason = "the pair serves several tests")]

mod pair;

use pair::{Faults, bytes, converse, leftovers, options, source, target, upload};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Compares two trees: names, kinds, contents.
fn same(a: &Path, b: &Path) {
    let names = |root: &Path| {
        let mut names: Vec<_> = fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(a), names(b), "{} {}", a.display(), b.display());
    for name in names(a) {
        let (x, y) = (a.join(&name), b.join(&name));
        // Links are followed on the way.
        let (mx, my) = (fs::metadata(&x).unwrap(), fs::symlink_metadata(&y).unwrap());
        assert_eq!(mx.is_dir(), my.is_dir(), "{}", x.display());
        if mx.is_dir() {
            same(&x, &y);
        } else {
            assert_eq!(fs::read(&x).unwrap(), fs::read(&y).unwrap(), "{}", x.display());
        }
    }
}

fn filled(size: usize, seed: u8) -> Vec<u8> {
    (0..size).map(|i| u8::try_from((i * 31 + i / 251) % 256).unwrap() ^ seed).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_of_every_size_arrives() {
    let root = tempfile::tempdir().unwrap();
    let from = root.path().join("from");
    for directory in ["a/b/c", "empty", "a/empty"] {
        fs::create_dir_all(from.join(directory)).unwrap();
    }
    let sizes = [0, 1, 4095, 4096, 4097, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20];
    for (index, size) in sizes.into_iter().enumerate() {
        fs::write(from.join(format!("a/b/f{index}")), filled(size, u8::try_from(index).unwrap())).unwrap();
    }
    let to = root.path().join("to");
    fs::create_dir(&to).unwrap();
    let outcome = upload(&[&from], &to, options()).await;
    outcome.all_good();
    same(&from, &to.join("from"));
    assert_eq!(leftovers(&to), Vec::<PathBuf>::new());
    let (sent, _) = outcome.tallies();
    assert_eq!((sent.files, sent.directories, sent.status()), (9, 6, 0));
    let scanned = outcome.receiver.0.lock().unwrap().scanned;
    assert_eq!(scanned, (9, sizes.iter().sum::<usize>() as u64, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_files_go_in_batches_and_directories_are_finished_in_order() {
    let root = tempfile::tempdir().unwrap();
    let from = root.path().join("from");
    for directory in 0..60 {
        let directory = from.join(format!("d{}/d{directory}", directory % 7));
        fs::create_dir_all(&directory).unwrap();
        for file in 0..40 {
            fs::write(directory.join(format!("f{file}")), format!("{directory:?} {file}")).unwrap();
        }
    }
    let outcome = upload(&[&from], &root.path().join("to"), options()).await;
    outcome.all_good();
    assert_eq!(outcome.tallies().0.files, 2400);
    same(&from, &root.path().join("to"));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_bytes() {
    let root = tempfile::tempdir().unwrap();
    let from = root.path().join("from");
    fs::create_dir(&from).unwrap();
    let names: [&[u8]; 9] = [
        b"plain",
        b"with space",
        b"new\nline",
        b"-rf",
        b"\xff\xfe",
        b"esc\x1b[31m",
        b"...",
        b"*",
        &[b'n'; 255],
    ];
    for name in names {
        fs::write(from.join(OsStr::from_bytes(name)), name).unwrap();
        let directory = [b"d", name.get(..name.len().min(254)).unwrap()].concat();
        fs::create_dir(from.join(OsStr::from_bytes(&directory))).unwrap();
    }
    upload(&[&from], &root.path().join("to"), options()).await.all_good();
    same(&from, &root.path().join("to"));
}

/// Makes `depth` directories of 60-byte names inside each other with a file at the bottom.
fn deep(root: &Path, depth: usize) {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let name = "d".repeat(60);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    fs::create_dir(root).unwrap();
    let mut at = openat(CWD, root, flags, Mode::empty()).unwrap();
    for _ in 0..depth {
        mkdirat(&at, &name, Mode::RWXU).unwrap();
        at = openat(&at, &name, flags, Mode::empty()).unwrap();
    }
    let file = openat(&at, "bottom", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
    rustix::io::write(file, b"deep").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_longer_than_4096_bytes_arrive() {
    let root = tempfile::tempdir().unwrap();
    let from = root.path().join("from");
    deep(&from, 120);
    let outcome = upload(&[&from], &root.path().join("to"), options()).await;
    outcome.all_good();
    let (sent, _) = outcome.tallies();
    assert_eq!((sent.files, sent.directories), (1, 121));
    let longest = outcome.sender.0.lock().unwrap().published.first().unwrap().len();
    assert!(longest > 7000);
}

#[tokio::test(flavor = "multi_thread")]
async fn modes_and_times_follow_the_flags() {
    let root = tempfile::tempdir().unwrap();
    let from = root.path().join("from");
    fs::create_dir_all(from.join("dir")).unwrap();
    fs::write(from.join("dir/file"), b"x").unwrap();
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(&from.join("dir/file"), 0o4757);
    let old = fs::FileTimes::new()
        .set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789))
        .set_accessed(std::time::UNIX_EPOCH + std::time::Duration::new(900_000_000, 5));
    fs::File::open(from.join("dir/file")).unwrap().set_times(old).unwrap();
    fs::File::open(from.join("dir")).unwrap().set_times(old).unwrap();
    mode(&from.join("dir"), 0o577);

    let plain = root.path().join("plain");
    upload(&[&from], &plain, options()).await.all_good();
    let probe = root.path().join("probe");
    fs::write(&probe, b"").unwrap();
    let umask = 0o666 & !fs::metadata(&probe).unwrap().mode();
    let found = |path: PathBuf| fs::metadata(path).unwrap();
    assert_eq!(found(plain.join("dir/file")).mode() & 0o7777, 0o757 & !umask);
    assert_eq!(found(plain.join("dir")).mode() & 0o7777, 0o577 & !umask);

    // Reading it may have touched its access time.
    fs::File::open(from.join("dir")).unwrap().set_times(old).unwrap();
    let kept = root.path().join("kept");
    upload(&[&from], &kept, pair::Options { preserve: true, ..options() }).await.all_good();
    let (file, directory) = (found(kept.join("dir/file")), found(kept.join("dir")));
    assert_eq!((file.mode() & 0o7777, directory.mode() & 0o7777), (0o757, 0o577));
    assert_eq!((file.mtime(), file.mtime_nsec()), (1_000_000_000, 123_456_789));
    assert_eq!((directory.mtime(), directory.mtime_nsec()), (1_000_000_000, 123_456_789));
    assert_eq!((directory.atime(), directory.atime_nsec()), (900_000_000, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn links_in_the_tree_are_followed_and_loops_are_named() {
    let root = tempfile::tempdir().unwrap();
    let from = root.path().join("from");
    fs::create_dir_all(from.join("real")).unwrap();
    fs::write(from.join("real/file"), b"content").unwrap();
    symlink("real/file", from.join("to-file")).unwrap();
    symlink("real", from.join("to-dir")).unwrap();
    symlink("..", from.join("real/up")).unwrap();
    symlink("nothing", from.join("dangling")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        from.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let to = root.path().join("to");
    let outcome = upload(&[&from], &to, options()).await;
    let (sent, received) = outcome.tallies();
    assert_eq!((sent.files, sent.failed, received.failed, sent.status()), (3, 4, 4, 1));
    let mut failures = outcome.failures();
    failures.sort();
    let has = |name: &str, text: &str| {
        assert!(
            failures.iter().any(|(path, why)| path.ends_with(name) && why.contains(text)),
            "{failures:?}"
        );
    };
    has("from/dangling", "No such file");
    has("from/fifo", "not a regular file");
    has("real/up", "loop");
    has("to-dir/up", "loop");
    for file in ["real/file", "to-file", "to-dir/file"] {
        assert_eq!(fs::read(to.join(file)).unwrap(), b"content");
        assert!(!fs::symlink_metadata(to.join(file)).unwrap().is_symlink());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sparse_file_moves_its_data_only() {
    let root = tempfile::tempdir().unwrap();
    let from = root.path().join("sparse");
    let file = fs::File::create(&from).unwrap();
    let size = 5 << 30;
    file.set_len(size).unwrap();
    file.write_all_at(b"start", 0).unwrap();
    file.write_all_at(b"middle", 3 << 30).unwrap();
    file.write_all_at(b"end", size - 3).unwrap();
    let to = root.path().join("to");
    let outcome = upload(&[&from], &to, options()).await;
    outcome.all_good();
    assert!(outcome.moved < 16 << 20, "{} bytes moved", outcome.moved);
    let found = fs::metadata(&to).unwrap();
    assert_eq!(found.len(), size);
    assert!(found.blocks() * 512 < 16 << 20);
    let copy = fs::File::open(&to).unwrap();
    let mut middle = [0; 8];
    copy.read_exact_at(&mut middle, (3 << 30) - 1).unwrap();
    assert_eq!(&middle, b"\0middle\0");
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_without_a_name_go_into_the_target_itself() {
    let root = tempfile::tempdir().unwrap();
    let from = root.path().join("from");
    fs::create_dir_all(from.join("sub")).unwrap();
    fs::write(from.join("sub/file"), b"1").unwrap();
    fs::set_permissions(&from, fs::Permissions::from_mode(0o700)).unwrap();
    let to = root.path().join("to");
    fs::create_dir(&to).unwrap();
    fs::set_permissions(&to, fs::Permissions::from_mode(0o751)).unwrap();
    let preserve = pair::Options { preserve: true, ..options() };
    upload(&[&from.join(".")], &to, preserve).await.all_good();
    same(&from, &to);
    assert_eq!(
        fs::metadata(&to).unwrap().mode() & 0o777,
        0o751,
        "the target's mode is not the sender's to set"
    );
    let new = root.path().join("new");
    upload(&[&from.join("sub/..")], &new, preserve).await.all_good();
    same(&from, &new);
    assert_eq!(fs::metadata(&new).unwrap().mode() & 0o777, 0o700);
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_need_the_flag() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("dir")).unwrap();
    fs::write(root.path().join("file"), b"x").unwrap();
    let flat = pair::Options { recursive: false, ..options() };
    let to = root.path().join("to");
    fs::create_dir(&to).unwrap();
    let outcome = upload(&[&root.path().join("dir"), &root.path().join("file")], &to, flat).await;
    let (sent, received) = outcome.tallies();
    assert_eq!((sent.files, sent.failed, received.failed), (1, 1, 1));
    assert!(outcome.failures().first().unwrap().1.contains("-r"));
    assert!(to.join("file").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dummy_session_touches_no_file() {
    let sources = vec![escp_agent::Source::Dummy { name: b"dummy:10M".to_vec(), size: 10 << 20 }; 3];
    let dummy = pair::Options { dummy: true, recursive: false, ..options() };
    let outcome =
        converse(sources, escp_agent::Target::dummy(), dummy, Faults::default(), Faults::default()).await;
    outcome.all_good();
    assert_eq!((outcome.tallies().0.bytes, outcome.moved), (30 << 20, 30 << 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_missing_fails_alone() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("good"), b"good").unwrap();
    let to = root.path().join("to");
    fs::create_dir(&to).unwrap();
    let missing = escp_agent::Source::Missing { path: b"no*match".to_vec(), text: "No such file".into() };
    let sources = vec![source(root.path().join("gone")), missing, source(root.path().join("good"))];
    let outcome = converse(sources, target(&to), options(), Faults::default(), Faults::default()).await;
    let (sent, received) = outcome.tallies();
    assert_eq!((sent.files, sent.failed, received.failed), (1, 2, 2));
    let seen = outcome.receiver.0.lock().unwrap();
    assert!(seen.failed.iter().all(|failure| failure.host == "near"));
    assert_eq!(seen.published, [bytes(to.join("good"))]);
}
