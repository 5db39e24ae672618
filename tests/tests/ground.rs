//! The ground the other tests stand on: the test house itself works, with scp in the place of escp.

use escp_testkit::mount::{Kind, Mount};
use escp_testkit::proxy::Action;
use escp_testkit::run::wait_until;
use escp_testkit::sshd::{Sshd, SshdOptions};
use escp_testkit::{Checked, Host, Trouble, World};
use escp_testkit::{compare, ensure, need_root, network::Network, processes, scratch, tree, users};
use rustix::process::Signal;
use std::time::Duration;

#[test]
fn scp_copies_between_two_users_through_a_private_sshd() -> Checked {
    need_root!();
    let users = users::users()?;
    let scratch = scratch::Scratch::new()?;
    let network = Network::new()?;
    let near = scratch.directory("near", Some(&users.near), 0o700)?;
    let far = scratch.directory("far", Some(&users.far), 0o700)?;
    let ssh = scratch.directory("ssh", None, 0o755)?;
    let sshd = Sshd::start(&ssh, &network, &users.near, &users.far, &SshdOptions::default())?;
    tree::everything(&near.join("tree"))?;
    scratch::give(&near, &users.near)?;
    escp_testkit::run::Run::new("scp", Some(&users.near))
        .network(&network)
        .args(["-q", "-r", "-p", "-F"])
        .arg(&sshd.client_config)
        .arg(near.join("tree"))
        .arg(format!("far:{}", far.join("copy").display()))
        .succeed()?;
    compare::same(&near.join("tree"), &far.join("copy"))?;
    compare::same_modes(&near.join("tree"), &far.join("copy"))?;
    compare::same_sha256(&near.join("tree/sizes/size-4097"), &far.join("copy/sizes/size-4097"))
}

#[test]
fn sessions_end_with_their_sshd() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    let client = world
        .on_near("ssh")
        .arg("-F")
        .arg(&world.sshd.client_config)
        .args(["far", "sleep", "500"])
        .start()?;
    let sleeps = |pid: &u32| processes::read(*pid).is_some_and(|process| process.command == "sleep 500");
    let patience = Duration::from_secs(20);
    wait_until("the session", patience, || world.sshd.sessions().iter().any(sleeps))?;
    let sessions = world.sshd.sessions();
    // A client that is not there any more, as far as its session can tell, but has not hung up.
    client.signal(Signal::STOP)?;
    drop(world.sshd);
    let left = || sessions.iter().filter_map(|pid| processes::read(*pid)).collect::<Vec<_>>();
    wait_until("its processes to end", patience, || left().is_empty())
        .map_err(|trouble| Trouble::new(format!("{trouble:?}: {:#?}", left())))
}

#[test]
fn a_difference_is_found() -> Checked {
    let scratch = scratch::Scratch::new()?;
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    tree::everything(&a)?;
    tree::everything(&b)?;
    compare::same(&a, &b)?;
    std::fs::create_dir(b.join("extra"))?;
    ensure!(compare::same(&a, &b).is_err(), "an extra empty directory was missed");
    std::fs::remove_dir(b.join("extra"))?;
    std::fs::write(b.join("sizes/size-1"), "x")?;
    ensure!(compare::same(&a, &b).is_err(), "a changed byte was missed");
    Ok(())
}

#[test]
fn file_systems_mount_and_unmount() -> Checked {
    need_root!();
    let users = users::users()?;
    let scratch = scratch::Scratch::new()?;
    for kind in Kind::ALL {
        let path = scratch.path().join(kind.name());
        let mount = Mount::new(kind, &path, 64, &users.near, "")?;
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        let line = mounts.lines().find(|line| line.contains(&*path.to_string_lossy())).unwrap_or_default();
        ensure!(line.contains(kind.name()), "not mounted as {}: {line}", kind.name());
        ensure!(path.read_dir()?.next().is_none(), "not empty");
        drop(mount);
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        ensure!(!mounts.contains(&*path.to_string_lossy()), "{} is still mounted", kind.name());
    }
    Ok(())
}

#[test]
fn the_proxy_passes_cuts_and_changes_records() -> Checked {
    use escp_testkit::proxy::Proxy;
    use std::io::{Read, Write};
    need_root!();
    let (near, far) = (Network::new()?, Network::new()?);
    let server = far.inside(|| std::net::TcpListener::bind("127.0.0.1:1300"))??;
    let proxy = Proxy::start(&near, &far, 2222, (1300, 1301))?;
    proxy.record();
    proxy.tamper(|unit| match unit.index {
        2 => Action::Swap,
        4 => Action::Drop,
        5 => Action::CutAfter(3),
        _ => Action::Pass,
    });
    let record = |byte: u8, length: usize| {
        let mut out = ((length as u64) << 38 | u64::from(byte)).to_be_bytes().to_vec();
        out.extend(std::iter::repeat_n(byte, length + 16));
        out
    };
    let mut first = vec![0; 64];
    first[7] = 9;
    let records: Vec<Vec<u8>> = (1..=5).map(|n| record(n, usize::from(n) * 10)).collect();
    let mut client = near.inside(|| std::net::TcpStream::connect("127.0.0.1:1300"))??;
    client.write_all(&first)?;
    client.write_all(&records.concat())?;
    let (mut accepted, _) = server.accept()?;
    accepted.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut got = Vec::new();
    accepted.read_to_end(&mut got)?;
    let expected = [&first[..], &records[0], &records[2], &records[1], &records[4][..3]].concat();
    ensure!(got == expected, "{} bytes instead of {}", got.len(), expected.len());
    ensure!(proxy.recorded()[0].len() == 64 + records.concat().len(), "the recording is not whole");
    Ok(())
}
