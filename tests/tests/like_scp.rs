//! The same case with escp and with the system's scp; the results are compared.
//!
//! Both get the same files in directories of their own. In a command line, `N/x` is a path on the near host and
//! `F/x` one on the far host, which is also `G/x` under another name. Success or failure must agree, and so must every name, byte and mode that is
//! there afterwards.

use escp_testkit::{Checked, Trouble, World, compare, need_root, tree};
use escp_tests::settle;
use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// Makes sources and targets; gets the near and the far directory.
type Setup = fn(&Path, &Path) -> Checked;

struct Case {
    name: &'static str,
    setup: Setup,
    line: &'static [&'static str],
    /// Flags for scp alone.
    scp: &'static [&'static str],
    /// Whether modes must agree too.
    modes: bool,
}

/// A file, another, a directory with a file and an empty directory on both hosts.
fn usual(near: &Path, far: &Path) -> Checked {
    for side in [near, far] {
        tree::file(&side.join("a"), 5000, 1)?;
        tree::file(&side.join("b"), 70_000, 2)?;
        std::fs::create_dir_all(side.join("dir/sub/empty"))?;
        tree::file(&side.join("dir/x"), 100, 3)?;
        tree::file(&side.join("dir/sub/y"), 4096, 4)?;
        std::fs::create_dir(side.join("target"))?;
        tree::file(&side.join("old"), 9000, 5)?;
        std::fs::set_permissions(side.join("old"), Permissions::from_mode(0o600))?;
        std::fs::set_permissions(side.join("a"), Permissions::from_mode(0o751))?;
    }
    Ok(())
}

fn compare_cases(cases: &[Case]) -> Checked {
    need_root!();
    let world = World::start(escp_testkit::Host::Embedded, escp_testkit::Host::Embedded)?;
    let mut wrong = String::new();
    for case in cases {
        if let Err(trouble) = compare_case(&world, case) {
            wrong.push_str(&format!("=== {} ({:?}): {trouble:?}\n", case.name, case.line));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(Trouble::new(wrong)) }
}

fn compare_case(world: &World, case: &Case) -> Checked {
    let mut ends = Vec::new();
    for tool in ["escp", "scp"] {
        let place = format!("{}/{tool}", case.name);
        let (near, far) = (world.near.join(&place), world.far.join(&place));
        std::fs::create_dir_all(&near)?;
        std::fs::create_dir_all(&far)?;
        (case.setup)(&near, &far)?;
        settle(world)?;
        let run = if tool == "escp" { world.escp() } else { world.scp().args(case.scp) };
        let words = case.line.iter().map(|word| {
            if let Some(below) = word.strip_prefix("N/") {
                format!("{}/{below}", near.display())
            } else if let Some(below) = word.strip_prefix("F/") {
                format!("far:{}/{below}", far.display())
            } else if let Some(below) = word.strip_prefix("G/") {
                format!("far6:{}/{below}", far.display())
            } else {
                (*word).to_owned()
            }
        });
        ends.push(run.args(words).directory(&near).end()?);
    }
    let good: Vec<bool> = ends.iter().map(|end| end.code() == 0).collect();
    if good[0] != good[1] {
        return Err(Trouble::new(format!("{}\n{}", ends[0].told(), ends[1].told())));
    }
    for side in [&world.near, &world.far] {
        let of = |tool: &str| side.join(case.name).join(tool);
        let told =
            |trouble: Trouble| Trouble::new(format!("{trouble:?}\n{}\n{}", ends[0].told(), ends[1].told()));
        compare::same(&of("escp"), &of("scp")).map_err(told)?;
        if case.modes {
            compare::same_modes(&of("escp"), &of("scp")).map_err(told)?;
        }
    }
    Ok(())
}

macro_rules! case {
    ($name:literal, $setup:expr, $($word:literal)+) => {
        Case { name: $name, setup: $setup, line: &[$($word),+], scp: &[], modes: true }
    };
    // scp by its first protocol, where the newer one strays from scp's own manual.
    (legacy $name:literal, $setup:expr, $($word:literal)+) => {
        Case { name: $name, setup: $setup, line: &[$($word),+], scp: &["-O"], modes: true }
    };
    (names only $name:literal, $setup:expr, $($word:literal)+) => {
        Case { name: $name, setup: $setup, line: &[$($word),+], scp: &[], modes: false }
    };
}

#[test]
fn what_a_target_means() -> Checked {
    compare_cases(&[
        case!("to-new-name", usual, "N/a" "F/new"),
        case!("to-directory", usual, "N/a" "F/target"),
        case!("to-directory-slash", usual, "N/a" "F/target/"),
        case!("to-missing-slash", usual, "N/a" "F/missing/"),
        case!("to-missing-parent", usual, "N/a" "F/missing/new"),
        case!("to-existing-file", usual, "N/a" "F/old"),
        case!("to-file-slash", usual, "N/a" "F/old/"),
        case!("to-dot", usual, "N/a" "F/target/."),
        case!("down-new-name", usual, "F/a" "N/new"),
        case!("down-directory", usual, "F/a" "N/target"),
        case!("down-missing-slash", usual, "F/a" "N/missing/"),
        case!("down-existing-file", usual, "F/a" "N/old"),
        case!("down-to-dot", usual, "F/b" "."),
    ])
}

#[test]
fn several_sources() -> Checked {
    compare_cases(&[
        case!("two", usual, "N/a" "N/b" "F/target"),
        // scp gives the directory it makes here the mode of the first file.
        case!(names only "two-to-missing", usual, "N/a" "N/b" "F/missing"),
        case!("two-to-file", usual, "N/a" "N/b" "F/old"),
        case!("two-down", usual, "F/a" "F/b" "N/target"),
        case!("two-down-to-missing", usual, "F/a" "F/b" "N/missing"),
        case!("one-missing", usual, "N/a" "N/nothing" "F/target"),
        case!("one-missing-down", usual, "F/a" "F/nothing" "N/target"),
        case!("file-and-tree", usual, "-r" "N/a" "N/dir" "F/target"),
    ])
}

#[test]
fn sources_on_several_hosts() -> Checked {
    compare_cases(&[
        case!("hosts", usual, "F/a" "G/b" "N/target"),
        case!("hosts-in-turn", usual, "-r" "F/a" "G/dir" "F/b" "N/target"),
        case!("hosts-to-missing", usual, "F/a" "G/b" "N/missing"),
        case!("hosts-to-file", usual, "F/a" "G/b" "N/old"),
        case!("hosts-one-missing", usual, "F/nothing" "G/b" "N/target"),
        case!("hosts-other-missing", usual, "F/a" "G/nothing" "N/target"),
        case!("hosts-and-patterns", many_names, "F/a?" "G/b?" "N/target"),
        case!("hosts-one-unknown", usual, "F/a" "nowhere.invalid:b" "N/target"),
    ])
}

#[test]
fn what_r_means() -> Checked {
    compare_cases(&[
        case!("tree-to-new", usual, "-r" "N/dir" "F/new"),
        case!("tree-to-existing", usual, "-r" "N/dir" "F/target"),
        case!("tree-slash", usual, "-r" "N/dir/" "F/target"),
        case!("tree-slash-new", usual, "-r" "N/dir/" "F/new"),
        case!("tree-to-file", usual, "-r" "N/dir" "F/old"),
        case!("tree-down-new", usual, "-r" "F/dir" "N/new"),
        case!("tree-down-existing", usual, "-r" "F/dir" "N/target"),
        case!("tree-down-slash", usual, "-r" "F/dir/" "N/target"),
        case!("tree-without-r", usual, "N/dir" "F/target"),
        case!("tree-without-r-down", usual, "F/dir" "N/target"),
        case!("tree-and-file-without-r", usual, "N/dir" "N/a" "F/target"),
        case!("merge", merging, "-r" "N/dir" "F/target"),
        case!("merge-down", merging, "-r" "F/dir" "N/target"),
        case!("preserved", usual, "-r" "-p" "N/dir" "N/a" "F/target"),
    ])
}

/// The target already holds a part of the tree, with other content.
fn merging(near: &Path, far: &Path) -> Checked {
    usual(near, far)?;
    for side in [near, far] {
        std::fs::create_dir_all(side.join("target/dir/sub"))?;
        std::fs::write(side.join("target/dir/x"), "old")?;
        std::fs::write(side.join("target/dir/kept"), "kept")?;
    }
    Ok(())
}

fn links(near: &Path, far: &Path) -> Checked {
    usual(near, far)?;
    for side in [near, far] {
        symlink("x", side.join("dir/to-file"))?;
        symlink("sub", side.join("dir/to-directory"))?;
        symlink("a", side.join("link-to-a"))?;
        symlink("dir", side.join("link-to-dir"))?;
        symlink("target", side.join("link-to-target"))?;
    }
    Ok(())
}

/// The sftp protocol of OpenSSH 9.2 takes a link to a directory inside a tree for a file, and fails.
#[test]
fn symbolic_links_are_followed() -> Checked {
    compare_cases(&[
        case!("link-file", links, "N/link-to-a" "F/new"),
        case!(legacy "link-in-tree", links, "-r" "N/dir" "F/new"),
        case!(legacy "link-in-tree-down", links, "-r" "F/dir" "N/new"),
        case!(legacy "link-to-tree", links, "-r" "N/link-to-dir" "F/new"),
        case!("link-target", links, "N/a" "F/link-to-target"),
        case!("link-target-down", links, "F/a" "N/link-to-target"),
    ])
}

fn many_names(near: &Path, far: &Path) -> Checked {
    usual(near, far)?;
    for name in ["a1", "a2", "b1", ".hidden", "a[1]", "with space", "it's"] {
        std::fs::write(far.join(name), name)?;
        std::fs::write(near.join(name), name)?;
    }
    Ok(())
}

#[test]
fn globs_are_expanded_on_the_far_side() -> Checked {
    compare_cases(&[
        case!("star", many_names, "F/a?" "N/target"),
        case!("set", many_names, "F/[ab]1" "N/target"),
        case!("range", many_names, "F/[a-b][0-9]" "N/target"),
        case!("all-files", many_names, "-r" "F/*" "N/target"),
        case!("none", many_names, "F/zzz*" "N/target"),
        case!("hidden", many_names, "F/.h*" "N/target"),
        case!("space", many_names, "F/with space" "N/target"),
        case!("quote", many_names, "F/it's" "N/target"),
        case!("escaped", many_names, "F/a\\[1\\]" "N/target"),
        case!("glob-in-directory", many_names, "F/d*r/x" "N/target"),
        case!("up-is-literal", many_names, "N/a*" "F/target"),
        case!("up-brackets", many_names, "N/a[1]" "F/target"),
    ])
}

fn unusual_modes(near: &Path, far: &Path) -> Checked {
    usual(near, far)?;
    for side in [near, far] {
        std::fs::create_dir(side.join("modes"))?;
        for mode in [0o400, 0o444, 0o600, 0o640, 0o666, 0o700, 0o755, 0o777] {
            let path = side.join(format!("modes/{mode:o}"));
            std::fs::write(&path, "x")?;
            std::fs::set_permissions(&path, Permissions::from_mode(mode))?;
        }
        std::fs::set_permissions(side.join("dir/sub"), Permissions::from_mode(0o700))?;
        std::fs::set_permissions(side.join("dir"), Permissions::from_mode(0o775))?;
    }
    Ok(())
}

#[test]
fn modes() -> Checked {
    compare_cases(&[
        case!("modes-plain", unusual_modes, "-r" "N/modes" "F/new"),
        // Over sftp, scp adds u+w to what it fetches.
        case!(legacy "modes-plain-down", unusual_modes, "-r" "F/modes" "N/new"),
        case!("modes-preserved", unusual_modes, "-r" "-p" "N/modes" "F/new"),
        case!("modes-preserved-down", unusual_modes, "-rp" "F/modes" "N/new"),
        // Over sftp, scp gives directories it uploads their whole mode, umask or not.
        case!(legacy "modes-directories", unusual_modes, "-r" "N/dir" "F/new"),
        case!("modes-directories-down", unusual_modes, "-r" "F/dir" "N/new"),
        case!("modes-directories-preserved", unusual_modes, "-rp" "N/dir" "F/new"),
    ])
}

fn unreadable(near: &Path, far: &Path) -> Checked {
    usual(near, far)?;
    for side in [near, far] {
        std::fs::set_permissions(side.join("dir/x"), Permissions::from_mode(0o000))?;
        std::fs::create_dir(side.join("closed"))?;
        std::fs::set_permissions(side.join("closed"), Permissions::from_mode(0o555))?;
    }
    Ok(())
}

#[test]
fn what_fails_fails_alone() -> Checked {
    compare_cases(&[
        case!("unreadable", unreadable, "-r" "N/dir" "F/new"),
        case!("unreadable-down", unreadable, "-r" "F/dir" "N/new"),
        case!("closed-target", unreadable, "N/a" "F/closed/"),
        case!("missing", usual, "N/nothing" "F/target"),
        case!("missing-down", usual, "F/nothing" "N/target"),
    ])
}

#[test]
fn times_are_kept_with_p() -> Checked {
    need_root!();
    let world = World::start(escp_testkit::Host::Embedded, escp_testkit::Host::Embedded)?;
    usual(&world.near, &world.far)?;
    for (path, time) in [
        ("dir/x", "2001-02-03 04:05:06.123456789"),
        ("dir/sub", "1969-07-20 20:17:40.5"),
        ("dir", "2038-01-19 03:14:08"),
    ] {
        let path = world.near.join(path);
        escp_testkit::run::Run::new("touch", None).args(["-d", time]).arg(path).succeed()?;
    }
    settle(&world)?;
    world.escp().args(["-rp"]).arg(world.near.join("dir")).arg(world.remote("up")).succeed()?;
    compare::same_attributes(&world.near.join("dir"), &world.far.join("up"))?;
    world.escp().args(["-rp", &world.remote("up")]).arg(world.near.join("down")).succeed()?;
    compare::same_attributes(&world.near.join("dir"), &world.near.join("down"))
}

#[test]
fn homes_and_tildes() -> Checked {
    need_root!();
    let world = World::start(escp_testkit::Host::Embedded, escp_testkit::Host::Embedded)?;
    tree::file(&world.near.join("a"), 100, 1)?;
    settle(&world)?;
    // The home is the user's, not the world's: names of this process only.
    let home = &world.users.far.home;
    for (tool, name) in [("escp", "e"), ("scp", "s")] {
        let run = || if tool == "escp" { world.escp() } else { world.scp() };
        let unique = format!("escp-test-{name}-{}", std::process::id());
        let kept = home.join(&unique);
        run().arg(world.near.join("a")).arg(format!("far:{unique}")).succeed()?;
        compare::same_sha256(&world.near.join("a"), &kept)?;
        run().arg(format!("far:~/{unique}")).arg(world.near.join(format!("{name}1"))).succeed()?;
        compare::same_sha256(&kept, &world.near.join(format!("{name}1")))?;
        std::fs::remove_file(kept)?;
    }
    Ok(())
}
