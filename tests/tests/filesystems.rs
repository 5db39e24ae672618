//! Real file systems on loop devices, and one file larger than all of them.

use escp_testkit::mount::{Kind, Mount};
use escp_testkit::{Checked, Host, World, compare, ensure, need_root, tree};
use escp_tests::{Way, settle};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// There and back with both hosts' files on a file system of the kind; daemons on both, then none.
fn there_and_back(kind: Kind, options: &str) -> Checked {
    need_root!();
    for host in [Host::Daemon, Host::Embedded] {
        let world = World::start(host, host)?;
        let _near = Mount::new(kind, &world.near.join("fs"), 400, &world.users.near, options)?;
        let _far = Mount::new(kind, &world.far.join("fs"), 400, &world.users.far, options)?;
        tree::everything(&world.near.join("fs/tree"))?;
        tree::many(&world.near.join("fs/tree/many"), 600, 20)?;
        tree::sparse_file(&world.near.join("fs/tree/sparse"), 64 * tree::MIB + 3, 3)?;
        settle(&world)?;
        Way::Up.escp(&world, &["-rp"], &["fs/tree"], "fs/copy").succeed()?;
        compare::same(&world.near.join("fs/tree"), &world.far.join("fs/copy"))?;
        compare::same_attributes(&world.near.join("fs/tree"), &world.far.join("fs/copy"))?;
        Way::Down.escp(&world, &["-rp"], &["fs/copy"], "fs/back").succeed()?;
        compare::same(&world.near.join("fs/tree"), &world.near.join("fs/back"))?;
        compare::same_attributes(&world.near.join("fs/tree"), &world.near.join("fs/back"))?;
        world.expect_nothing_running(Duration::from_secs(15))?;
    }
    Ok(())
}

#[test]
fn ext4() -> Checked {
    there_and_back(Kind::Ext4, "")
}

#[test]
fn xfs() -> Checked {
    there_and_back(Kind::Xfs, "")
}

#[test]
fn btrfs() -> Checked {
    there_and_back(Kind::Btrfs, "")
}

#[test]
fn btrfs_compressed() -> Checked {
    there_and_back(Kind::Btrfs, "compress=zstd")
}

#[test]
fn tmpfs() -> Checked {
    there_and_back(Kind::Tmpfs, "")
}

#[test]
fn heavy_five_gib_with_holes() -> Checked {
    need_root!();
    let world = World::start(Host::Daemon, Host::Daemon)?;
    let size = 5 * 1024 * tree::MIB + 4097;
    tree::sparse_file(&world.near.join("sparse"), size, 400)?;
    settle(&world)?;
    let blocks = std::fs::metadata(world.near.join("sparse"))?.blocks();
    let patience = Duration::from_secs(240);
    Way::Up.escp(&world, &[], &["sparse"], "copy").patience(patience).succeed()?;
    compare::same(&world.near.join("sparse"), &world.far.join("copy"))?;
    let copied = std::fs::metadata(world.far.join("copy"))?;
    ensure!(copied.len() == size, "{} bytes", copied.len());
    ensure!(copied.blocks() <= blocks + 8192, "{} blocks became {}", blocks, copied.blocks());
    std::fs::remove_file(world.near.join("sparse"))?;
    Way::Down.escp(&world, &[], &["copy"], "back").patience(patience).succeed()?;
    compare::same(&world.near.join("back"), &world.far.join("copy"))
}
