//! Trees: strange names, depth, what is dropped and what is reported.

use escp_testkit::mount::{Kind, Mount};
use escp_testkit::run::Outcome;
use escp_testkit::{Checked, Host, World, compare, ensure, need_root, skip, tree};
use escp_tests::{Way, copy_and_compare, settle};
use std::fs::Permissions;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

#[test]
fn strange_names_one_by_one() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    for name in tree::strange_names() {
        // A source of its own name: the name travels in the request, not only below a directory.
        std::fs::write(world.near.join(&name), name.as_bytes())?;
        settle(&world)?;
        world.escp().arg(world.near.join(&name)).arg(world.remote("")).succeed()?;
        compare::same_sha256(&world.near.join(&name), &world.far.join(&name))?;
    }
    Ok(())
}

#[test]
fn names_are_escaped_where_people_read_them() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    let evil = "red\u{1b}[31m\u{7}\nname";
    let path = world.near.join("d").join(evil);
    std::fs::create_dir(world.near.join("d"))?;
    std::fs::write(&path, "x")?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o000))?;
    settle(&world)?;
    let log = world.near.join("log");
    let flags = ["-r", "-vvv", "--logfile", &log.to_string_lossy()];
    let outcome = Way::Up.escp(&world, &flags, &["d"], "d").end()?.expect_status(1)?;
    let all = format!("{}{}", outcome.stdout, outcome.stderr);
    for (place, text) in [("the terminal", all), ("the log", std::fs::read_to_string(log)?)] {
        ensure!(!text.contains('\u{1b}') && !text.contains('\u{7}'), "raw on {place}: {text:?}");
        ensure!(text.contains("red\\x1b[31m\\x07\\nname"), "the name is not told on {place}: {text}");
        ensure!(
            !text.lines().any(|line| line.starts_with("name")),
            "the name ends a line on {place}: {text}"
        );
    }
    Ok(())
}

#[test]
fn deeper_than_a_path_can_be_long() -> Checked {
    need_root!();
    for way in Way::BOTH {
        let world = World::start(Host::Embedded, Host::Embedded)?;
        std::fs::create_dir(way.source(&world).join("deep"))?;
        settle(&world)?;
        let owner = if way == Way::Up { &world.users.near } else { &world.users.far };
        tree::deep(&way.source(&world).join("deep"), 30, owner)?;
        way.escp(&world, &["-r"], &["deep"], "copy").succeed()?;
        // Paths this long can only be walked step by step, as find does.
        let found = escp_testkit::run::Run::new("find", None)
            .arg(way.target(&world).join("copy"))
            .args(["-name", "end", "-size", "7c", "-printf", "%d\\n"])
            .succeed()?;
        ensure!(found.stdout.trim() == "31", "{}", found.told());
        // Dropping the scratch directory needs the same care.
        escp_testkit::run::Run::new("rm", None)
            .arg("-rf")
            .arg(way.target(&world).join("copy"))
            .arg(way.source(&world).join("deep"))
            .succeed()?;
    }
    Ok(())
}

#[test]
fn loops_of_links_are_reported_and_skipped() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    std::fs::create_dir_all(world.near.join("d/sub"))?;
    tree::file(&world.near.join("d/sub/f"), 100, 1)?;
    symlink("..", world.near.join("d/sub/up"))?;
    symlink("self", world.near.join("d/self"))?;
    settle(&world)?;
    let outcome = Way::Up.escp(&world, &["-r"], &["d"], "copy").end()?.expect_status(1)?;
    ensure!(outcome.stderr.contains("d/sub/up") && outcome.stderr.contains("d/self"), "{}", outcome.told());
    compare::same_sha256(&world.near.join("d/sub/f"), &world.far.join("copy/sub/f"))
}

#[test]
fn only_files_and_directories_are_taken() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    std::fs::create_dir(world.near.join("d"))?;
    tree::file(&world.near.join("d/f"), 100, 1)?;
    escp_testkit::run::Run::new("mkfifo", None).arg(world.near.join("d/fifo")).succeed()?;
    let _socket = std::os::unix::net::UnixListener::bind(world.near.join("d/socket"))?;
    settle(&world)?;
    // A FIFO must never be opened for reading: nobody writes, and escp would wait.
    let outcome = Way::Up.escp(&world, &["-r"], &["d"], "copy").end()?.expect_status(1)?;
    ensure!(outcome.stderr.contains("fifo") && outcome.stderr.contains("socket"), "{}", outcome.told());
    compare::holds_only(&world.far.join("copy"), &["f"])
}

#[test]
fn setuid_bits_are_dropped() -> Checked {
    need_root!();
    for flags in [&["-r"][..], &["-rp"]] {
        let world = World::start(Host::Embedded, Host::Embedded)?;
        std::fs::create_dir(world.near.join("d"))?;
        std::fs::write(world.near.join("d/f"), "x")?;
        settle(&world)?;
        std::fs::set_permissions(world.near.join("d/f"), Permissions::from_mode(0o6755))?;
        Way::Up.escp(&world, flags, &["d"], "copy").succeed()?;
        let mode = std::fs::metadata(world.far.join("copy/f"))?.mode() & 0o7777;
        ensure!(mode == 0o755, "{mode:o} with {flags:?}");
    }
    Ok(())
}

#[test]
fn holes_arrive_as_holes() -> Checked {
    need_root!();
    for (near, far) in [(Host::Embedded, Host::Embedded), (Host::Daemon, Host::Daemon)] {
        let world = World::start(near, far)?;
        for way in Way::BOTH {
            tree::sparse_file(&way.source(&world).join("sparse"), 300 * tree::MIB + 5, 4)?;
            tree::sparse_file(&way.source(&world).join("hole"), 50 * tree::MIB + 1, 0)?;
            settle(&world)?;
            for name in ["sparse", "hole"] {
                let copy = format!("{name}-copy");
                copy_and_compare(&world, way, &[], name, &copy)?;
                let blocks =
                    |path: std::path::PathBuf| -> Checked<u64> { Ok(std::fs::metadata(path)?.blocks()) };
                let (ours, theirs) =
                    (blocks(way.source(&world).join(name))?, blocks(way.target(&world).join(&copy))?);
                ensure!(theirs <= ours + 2048, "{name} grew from {ours} to {theirs} blocks of 512 bytes");
            }
        }
    }
    Ok(())
}

#[test]
fn shell_characters_mean_nothing() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    std::fs::write(world.near.join("a"), "x")?;
    settle(&world)?;
    for name in ["$(touch pwned)", "`touch pwned`", "; touch pwned", "a b'c\"d", "|x", "-r", "&&", "x\ny"] {
        let target = world.remote(name);
        world.escp().arg(world.near.join("a")).arg(&target).succeed()?;
        compare::same_sha256(&world.near.join("a"), &world.far.join(name))?;
        world.escp().arg(&target).arg(world.near.join("back")).succeed()?;
    }
    ensure!(!world.far.join("pwned").exists() && !world.users.far.home.join("pwned").exists(), "a shell ran");
    Ok(())
}

#[test]
fn twenty_thousand_sources_on_the_command_line() -> Checked {
    need_root!();
    let world = World::start(Host::Daemon, Host::Embedded)?;
    let names: Vec<String> = (0..20_000).map(|n| format!("{n:0>30}")).collect();
    std::fs::create_dir(world.near.join("many"))?;
    for name in &names {
        std::fs::write(world.near.join("many").join(name), name)?;
    }
    std::fs::create_dir(world.near.join("back"))?;
    settle(&world)?;
    let run = world.escp().arg("--no-fsync").args(&names).arg(world.remote("copy"));
    run.directory(&world.near.join("many")).succeed()?;
    compare::same(&world.near.join("many"), &world.far.join("copy"))?;
    // The names of a download travel in the request: more than one message holds.
    let remote = names.iter().map(|name| world.remote(&format!("copy/{name}")));
    let run = world.escp().arg("--no-fsync").args(remote).arg(world.remote("copy/[x]"));
    let outcome = run.arg(world.near.join("back")).end()?.expect_status(1)?;
    ensure!(
        outcome.stderr.lines().count() == 1 && outcome.stderr.contains("copy/[x]: "),
        "{}",
        outcome.told()
    );
    compare::same(&world.near.join("many"), &world.near.join("back"))
}

#[test]
fn two_sources_of_one_name() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    for (directory, content) in [("one", "first"), ("two", "second")] {
        std::fs::create_dir(world.near.join(directory))?;
        std::fs::write(world.near.join(directory).join("same"), content)?;
    }
    std::fs::create_dir(world.far.join("target"))?;
    settle(&world)?;
    let outcome = Way::Up.escp(&world, &[], &["one/same", "two/same"], "target").end()?.expect_status(1)?;
    ensure!(outcome.stderr.contains("same"), "the second is not named: {}", outcome.told());
    let kept = std::fs::read_to_string(world.far.join("target/same"))?;
    ensure!(kept == "first", "'{kept}' was kept");
    compare::holds_only(&world.far.join("target"), &["same"])
}

/// A sentence about a name that ends in these words.
fn tells_of(outcome: &Outcome, name: &str, words: &str) -> bool {
    outcome.stderr.lines().any(|line| line.contains(&format!("{name}: {words}")))
}

#[test]
fn a_target_of_256_bytes_is_refused_by_name() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    for way in Way::BOTH {
        std::fs::write(way.source(&world).join("a"), "x")?;
        settle(&world)?;
        let long = "n".repeat(256);
        let outcome = way.escp(&world, &[], &["a"], &long).end()?.expect_status(1)?;
        ensure!(tells_of(&outcome, &long, "File name too long"), "{}", outcome.told());
        compare::holds_only(&way.target(&world), if way == Way::Up { &[] } else { &["a"] })?;
    }
    Ok(())
}

#[test]
fn names_of_more_than_255_bytes_fail_alone() -> Checked {
    need_root!();
    if !std::path::Path::new("/dev/fuse").exists() {
        skip!("this kernel has no FUSE, and no other file system here has such names");
    }
    let world = World::start(Host::Embedded, Host::Embedded)?;
    let (long, longest) = ("名".repeat(86), "名".repeat(85));
    for way in Way::BOTH {
        // Linux's own file systems have no such names to send.
        let owner = if way == Way::Up { &world.users.near } else { &world.users.far };
        let ntfs = Mount::new(Kind::Ntfs, &way.source(&world).join("ntfs"), 16, owner, "")?;
        std::fs::create_dir(ntfs.path.join("d"))?;
        for name in [&long, &longest] {
            std::fs::write(ntfs.path.join(name), name)?;
            std::fs::write(ntfs.path.join("d").join(name), name)?;
        }
        std::fs::create_dir(ntfs.path.join(format!("{long}-tree")))?;
        std::fs::write(ntfs.path.join("plain"), "plain")?;
        std::fs::create_dir(way.target(&world).join("into"))?;
        settle(&world)?;
        let sources =
            [&long, &longest, "d", "plain", &format!("{long}-tree")].map(|name| format!("ntfs/{name}"));
        let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
        let outcome = way.escp(&world, &["-r"], &sources, "into").end()?.expect_status(1)?;
        let failed = [long.clone(), format!("d/{long}"), format!("{long}-tree")];
        for name in &failed {
            ensure!(tells_of(&outcome, &format!("ntfs/{name}"), "File name too long"), "{}", outcome.told());
        }
        ensure!(outcome.stderr.lines().count() == failed.len(), "more is said: {}", outcome.told());
        let into = way.target(&world).join("into");
        compare::holds_only(&into, &[&longest, "d", "plain"])?;
        compare::holds_only(&into.join("d"), &[&longest])?;
        for name in [&longest, "plain", &format!("d/{longest}")] {
            compare::same_sha256(&ntfs.path.join(name), &into.join(name))?;
        }
    }
    Ok(())
}
