//! What fails fails alone, says so, and leaves nothing half done.

use escp_testkit::mount::{Kind, Mount};
use escp_testkit::run::{Outcome, Running, program, wait_until};
use escp_testkit::{Checked, Host, Plan, Trouble, World, compare, ensure, need_root, tree};
use escp_tests::{Way, copy_and_compare, parts, settle};
use std::fs::Permissions;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

#[test]
fn an_unreadable_file_fails_alone() -> Checked {
    need_root!();
    for (near, far) in escp_tests::PAIRS {
        let world = World::start(near, far)?;
        for way in Way::BOTH {
            let source = way.source(&world).join("d");
            tree::many(&source, 50, 10)?;
            std::fs::write(source.join("closed"), "x")?;
            settle(&world)?;
            std::fs::set_permissions(source.join("closed"), Permissions::from_mode(0o000))?;
            let outcome = way.escp(&world, &["-r"], &["d"], "copy").end()?.expect_status(1)?;
            ensure!(outcome.stderr.contains("closed"), "not named: {}", outcome.told());
            ensure!(outcome.stderr.contains("ermission denied"), "no reason: {}", outcome.told());
            std::fs::remove_file(source.join("closed"))?;
            compare::same(&source, &way.target(&world).join("copy"))?;
        }
    }
    Ok(())
}

#[test]
fn existing_targets() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    tree::file(&world.near.join("new"), 5000, 1)?;
    let old = world.far.join("old");
    tree::file(&old, 90_000, 2)?;
    std::fs::hard_link(&old, world.far.join("hard-link"))?;
    settle(&world)?;
    std::fs::set_permissions(&old, Permissions::from_mode(0o640))?;
    let before = std::fs::metadata(&old)?;
    copy_and_compare(&world, Way::Up, &[], "new", "old")?;
    let after = std::fs::metadata(&old)?;
    ensure!(after.ino() != before.ino(), "an old inode was written to");
    ensure!(after.mode() & 0o7777 == 0o640, "the mode became {:o}", after.mode());
    ensure!(std::fs::metadata(world.far.join("hard-link"))?.len() == 90_000, "another name was written to");

    // --inplace keeps the inode and so every link.
    copy_and_compare(&world, Way::Up, &["--inplace"], "new", "hard-link")?;
    ensure!(std::fs::metadata(world.far.join("hard-link"))?.ino() == before.ino(), "the inode changed");
    compare::holds_only(&world.far, &["old", "hard-link"])
}

#[test]
fn acls_and_attributes_go_with_the_old_inode_and_stay_in_place() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    let mount = Mount::new(Kind::Ext4, &world.far.join("disk"), 32, &world.users.far, "")?;
    tree::file(&world.near.join("new"), 5000, 1)?;
    let old = mount.path.join("old");
    std::fs::write(&old, "old")?;
    settle(&world)?;
    let tool = |name: &str, arguments: &[&str]| -> Checked<String> {
        Ok(escp_testkit::run::Run::new(program(name)?, None).args(arguments).arg(&old).succeed()?.stdout)
    };
    // An extended access list is one of more than the mode.
    let extended = || {
        Ok::<_, Trouble>(tool("getfacl", &["--omit-header", "--absolute-names"])?.contains("user:nobody:r"))
    };
    let attribute = || rustix::fs::getxattr(old.as_path(), c"user.colour", &mut [0_u8; 16][..]).is_ok();
    tool("setfacl", &["--modify", "user:nobody:r"])?;
    rustix::fs::setxattr(old.as_path(), c"user.colour", b"blue", rustix::fs::XattrFlags::empty())?;
    ensure!(extended()? && attribute(), "they are not there to begin with");

    copy_and_compare(&world, Way::Up, &["--inplace"], "new", "disk/old")?;
    ensure!(extended()? && attribute(), "--inplace lost the ACL or the attribute");
    std::fs::write(world.near.join("new"), "another")?;
    copy_and_compare(&world, Way::Up, &[], "new", "disk/old")?;
    ensure!(!extended()? && !attribute(), "a new inode has the ACL or the attribute of the old one");
    Ok(())
}

#[test]
fn a_link_at_the_final_name_is_replaced_and_never_followed() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    tree::file(&world.near.join("a"), 5000, 1)?;
    std::fs::write(world.far.join("precious"), "precious")?;
    symlink("precious", world.far.join("link"))?;
    symlink("nowhere", world.far.join("dangling"))?;
    settle(&world)?;
    for name in ["link", "dangling"] {
        copy_and_compare(&world, Way::Up, &[], "a", name)?;
        ensure!(!std::fs::symlink_metadata(world.far.join(name))?.is_symlink(), "{name} is still a link");
    }
    ensure!(std::fs::read(world.far.join("precious"))? == b"precious", "the link was followed");
    compare::holds_only(&world.far, &["precious", "link", "dangling"])
}

#[test]
fn a_fifo_or_directory_at_the_final_name_is_refused() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    std::fs::create_dir(world.near.join("d"))?;
    tree::file(&world.near.join("d/fifo"), 5000, 1)?;
    tree::file(&world.near.join("d/directory"), 5000, 1)?;
    tree::file(&world.near.join("d/plain"), 5000, 1)?;
    std::fs::create_dir_all(world.far.join("d/directory"))?;
    world.on_far("mkfifo").arg(world.far.join("fifo")).end()?;
    settle(&world)?;
    escp_testkit::run::Run::new("mkfifo", None).arg(world.far.join("d/fifo")).succeed()?;
    settle(&world)?;
    let outcome = Way::Up.escp(&world, &["-r"], &["d"], ".").end()?.expect_status(1)?;
    ensure!(outcome.stderr.contains("fifo") && outcome.stderr.contains("directory"), "{}", outcome.told());
    compare::same_sha256(&world.near.join("d/plain"), &world.far.join("d/plain"))?;
    compare::holds_only(&world.far.join("d"), &["directory", "fifo", "plain"])
}

#[test]
fn a_full_target_keeps_the_old_file() -> Checked {
    need_root!();
    for (near, far) in [(Host::Embedded, Host::Embedded), (Host::Daemon, Host::Daemon)] {
        for kind in [Kind::Ext4, Kind::Tmpfs] {
            let world = World::start(near, far)?;
            let mount = Mount::new(kind, &world.far.join("small"), 16, &world.users.far, "")?;
            std::fs::create_dir(world.near.join("d"))?;
            tree::file(&world.near.join("d/big"), 40 * tree::MIB, 1)?;
            tree::file(&world.near.join("d/little"), 5000, 2)?;
            std::fs::create_dir(mount.path.join("d"))?;
            std::fs::write(mount.path.join("d/big"), "the old one")?;
            settle(&world)?;
            let outcome = Way::Up.escp(&world, &["-r"], &["d"], "small").end()?;
            ensure!(outcome.code() == 1, "{}", outcome.told());
            // Both numbers, before a byte is taken.
            let told = "small/d/big: not enough space: 41943040 bytes needed, ";
            ensure!(
                outcome.stderr.contains(told) && outcome.stderr.contains(" available"),
                "{}",
                outcome.told()
            );
            ensure!(outcome.stderr.lines().count() == 1, "more failed: {}", outcome.told());
            compare::same_sha256(&world.near.join("d/little"), &mount.path.join("d/little"))?;
            let kept = std::fs::read(mount.path.join("d/big"))?;
            ensure!(kept == b"the old one", "the old file is gone: {} bytes", kept.len());
            for name in compare::names(&mount.path.join("d"))? {
                ensure!(name == "big" || name == "little", "{name} was left behind");
            }
            world.expect_nothing_running(Duration::from_secs(15))?;
        }
    }
    Ok(())
}

#[test]
fn a_target_that_fills_up_in_mid_transfer() -> Checked {
    need_root!();
    let world = Plan::new(Host::Daemon, Host::Daemon).apart().start()?;
    let mount = Mount::new(Kind::Ext4, &world.far.join("small"), 64, &world.users.far, "")?;
    std::fs::create_dir(world.near.join("d"))?;
    // Small ones: for them no space is reserved when they are opened.
    for index in 0..400 {
        tree::file(&world.near.join(format!("d/{index}")), 100_000, index)?;
    }
    settle(&world)?;
    world.proxy()?.hold();
    let running = Way::Up.escp(&world, &["-r", "-t", "1"], &["d"], "small").start()?;
    wait_until("the first file", Duration::from_secs(20), || {
        compare::names(&mount.path.join("d")).is_ok_and(|names| names.iter().any(|n| !n.starts_with('.')))
    })?;
    // Fails when the file system is full, which is the point.
    let _ = std::fs::write(mount.path.join("filler"), vec![1; 64 << 20]);
    let outcome = let_go(&world, running)?.expect_status(1)?;
    ensure!(
        outcome.stderr.contains("No space left") || outcome.stderr.contains("space"),
        "{}",
        outcome.told()
    );
    for name in compare::names(&mount.path.join("d"))? {
        let (source, target) = (world.near.join("d").join(&name), mount.path.join("d").join(&name));
        compare::same_sha256(&source, &target)?;
    }
    Ok(())
}

#[test]
fn a_read_only_target() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    let mount = Mount::new(Kind::Ext4, &world.far.join("ro"), 16, &world.users.far, "")?;
    std::fs::write(mount.path.join("old"), "old")?;
    tree::file(&world.near.join("old"), 5000, 1)?;
    settle(&world)?;
    mount.remount("ro")?;
    let outcome = Way::Up.escp(&world, &[], &["old"], "ro/old").end()?.expect_status(1)?;
    ensure!(outcome.stderr.contains("ead-only"), "{}", outcome.told());
    ensure!(std::fs::read(mount.path.join("old"))? == b"old", "the old file changed");
    Ok(())
}

#[test]
fn a_directory_without_write_permission() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    tree::file(&world.near.join("a"), 5000, 1)?;
    std::fs::create_dir(world.far.join("closed"))?;
    std::fs::write(world.far.join("closed/open-file"), "old")?;
    settle(&world)?;
    std::fs::set_permissions(world.far.join("closed"), Permissions::from_mode(0o555))?;
    let outcome = Way::Up.escp(&world, &[], &["a"], "closed/new").end()?.expect_status(1)?;
    ensure!(outcome.stderr.contains("ermission denied"), "{}", outcome.told());
    // A writable file in it can be written in place.
    Way::Up.escp(&world, &["--inplace"], &["a"], "closed/open-file").succeed()?;
    compare::same_sha256(&world.near.join("a"), &world.far.join("closed/open-file"))
}

/// Starts a transfer that stays where it can be meddled with until the proxy lets it go.
fn held(world: &World, way: Way) -> Checked<Running> {
    tree::file(&way.source(world).join("source"), 24 * tree::MIB, 7)?;
    settle(world)?;
    world.proxy()?.hold();
    let running = way.escp(world, &["-v", "-t", "1"], &["source"], "copy").start()?;
    parts::wait_until_moving(&way.target(world))?;
    Ok(running)
}

/// The end of a transfer that was held.
fn let_go(world: &World, running: Running) -> Checked<Outcome> {
    world.proxy()?.release();
    running.end()
}

/// Meddles with a source while it is read; the file must not arrive, and must be named.
fn changed(meddle: impl Fn(&Path) -> Checked) -> Checked {
    need_root!();
    for way in Way::BOTH {
        let world = Plan::new(Host::Embedded, Host::Daemon).apart().start()?;
        std::fs::write(way.target(&world).join("copy"), "the old one")?;
        let running = held(&world, way)?;
        meddle(&way.source(&world).join("source"))?;
        let outcome = let_go(&world, running)?.expect_status(1)?;
        ensure!(outcome.stderr.contains("source"), "not named: {}", outcome.told());
        let kept = std::fs::read(way.target(&world).join("copy"))?;
        ensure!(kept == b"the old one", "{} bytes were published", kept.len());
        let mut names = compare::names(&way.target(&world))?;
        names.retain(|name| name != "source");
        ensure!(names == ["copy"], "left behind: {names:?}");
    }
    Ok(())
}

#[test]
fn a_source_that_is_cut() -> Checked {
    changed(|path| Ok(std::fs::OpenOptions::new().write(true).open(path)?.set_len(20 << 20)?))
}

#[test]
fn a_source_that_grows() -> Checked {
    changed(|path| {
        let file = std::fs::OpenOptions::new().write(true).open(path)?;
        Ok(file.write_all_at(b"more", 24 << 20)?)
    })
}

#[test]
fn a_source_that_is_rewritten_in_place() -> Checked {
    changed(|path| {
        let file = std::fs::OpenOptions::new().write(true).open(path)?;
        Ok(file.write_all_at(b"other", 23 << 20)?)
    })
}

#[test]
fn a_source_that_is_replaced_arrives_as_it_was() -> Checked {
    need_root!();
    for way in Way::BOTH {
        let world = Plan::default().apart().start()?;
        let running = held(&world, way)?;
        let source = way.source(&world).join("source");
        let was = compare::sha256(&source)?;
        std::fs::write(source.with_extension("new"), "a new one")?;
        std::fs::rename(source.with_extension("new"), &source)?;
        let_go(&world, running)?.expect_status(0)?;
        ensure!(compare::sha256(&way.target(&world).join("copy"))? == was, "a mixture was published");
    }
    Ok(())
}

#[test]
fn a_source_that_is_deleted_while_it_waits() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    let (source, kept) = (world.near.join("d"), world.near.join("kept"));
    std::fs::create_dir(&source)?;
    std::fs::create_dir(&kept)?;
    // So few that one look into the directory finds them all, so many that most of them wait for a descriptor.
    let names: Vec<String> = (0..800).map(|index| format!("f{index:04}")).collect();
    for (seed, name) in (0..).zip(&names) {
        tree::file(&source.join(name), 100_000, seed)?;
        std::fs::hard_link(source.join(name), kept.join(name))?;
    }
    settle(&world)?;
    let run = Way::Up.escp(&world, &["-r", "-l", "100M"], &["d"], "copy");
    let running = run.under("prlimit", &["--nofile=700:700"]).as_user(&world.users.near).start()?;
    wait_until("the first file", Duration::from_secs(20), || {
        compare::names(&world.far.join("copy")).is_ok_and(|names| names.iter().any(|n| n.starts_with('f')))
    })?;
    for name in &names {
        std::fs::remove_file(source.join(name))?;
    }
    let outcome = running.end()?.expect_status(1)?;
    // Each arrived whole, as it was when it was opened, or is named.
    let mut lost = 0;
    for name in &names {
        let copy = world.far.join("copy").join(name);
        let named = outcome.stderr.contains(&format!("d/{name}: No such file or directory\n"));
        ensure!(named != copy.exists(), "{name} is lost without a word, or twice: {}", outcome.told());
        lost += usize::from(named);
        if !named {
            compare::same_sha256(&kept.join(name), &copy)?;
        }
    }
    ensure!(lost > 0 && lost < names.len(), "{lost} were waiting: {}", outcome.told());
    ensure!(outcome.stderr.lines().count() == lost, "something else failed: {}", outcome.told());
    Ok(())
}

#[test]
fn a_temporary_file_that_is_removed_fails_that_file() -> Checked {
    need_root!();
    let world = Plan::default().apart().start()?;
    let running = held(&world, Way::Up)?;
    for name in compare::names(&world.far)? {
        std::fs::remove_file(world.far.join(name))?;
    }
    let outcome = let_go(&world, running)?.expect_status(1)?;
    ensure!(outcome.stderr.contains("copy"), "not named: {}", outcome.told());
    compare::holds_only(&world.far, &[])
}
