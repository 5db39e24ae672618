//! The service units and the examples for Prometheus, checked with systemd's and Prometheus' own programs.
//!
//! Where such a program is missing, the test says so on its output and checks nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use escp_testkit::{say_skipped, test_name};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Most exposure that `systemd-analyze security` may find.
const MAX_EXPOSURE: f64 = 1.5;

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd").join(name)
}

fn unit(name: &str) -> String {
    fs::read_to_string(shipped(name)).unwrap()
}

/// The values of a key, in order.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    unit.lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| *name == key)
        .map(|(_, value)| value)
        .collect()
}

/// Runs a program; `None`, with a visible word, where it is missing.
fn run(program: &str, arguments: &[&str]) -> Option<Output> {
    match Command::new(program).args(arguments).env("SYSTEMD_COLORS", "0").output() {
        Ok(output) => Some(output),
        Err(error) => {
            say_skipped(&test_name(), &format!("{program} cannot be run: {error}"));
            None
        }
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Copies of the units whose service starts the binary that was built.
fn copies() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let service = unit("escpd.service");
    let exec = format!("ExecStart={}", env!("CARGO_BIN_EXE_escpd"));
    let changed = service.replace("ExecStart=/usr/bin/escpd", &exec);
    assert_ne!(service, changed, "the unit starts another program");
    for (name, text) in [("escpd.service", changed), ("escpd.socket", unit("escpd.socket"))] {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    }
    dir
}

#[test]
fn systemd_has_nothing_to_say_about_the_units() {
    let dir = copies();
    let (service, socket) = (dir.path().join("escpd.service"), dir.path().join("escpd.socket"));
    let arguments = ["verify", "--man=no", service.to_str().unwrap(), socket.to_str().unwrap()];
    let Some(output) = run("systemd-analyze", &arguments) else { return };
    assert!(output.status.success() && said(&output).is_empty(), "{}", said(&output));
}

#[test]
fn the_service_is_hardly_exposed() {
    let dir = copies();
    let service = dir.path().join("escpd.service");
    let arguments = ["security", "--offline=true", "--no-pager", service.to_str().unwrap()];
    let Some(output) = run("systemd-analyze", &arguments) else { return };
    let said = said(&output);
    let exposure = said
        .lines()
        .find_map(|line| line.split_once("Overall exposure level for escpd.service: "))
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .and_then(|number| number.parse::<f64>().ok());
    assert!(exposure.is_some_and(|exposure| exposure <= MAX_EXPOSURE), "{exposure:?} in\n{said}");
}

/// Both programs work below a throwaway root; without one they would change this host.
#[test]
fn the_user_and_the_directory_can_be_made() {
    let root = tempfile::tempdir().unwrap();
    let etc = root.path().join("etc");
    fs::create_dir(&etc).unwrap();
    let in_root = format!("--root={}", root.path().display());
    let users = shipped("escp.sysusers.conf");
    let Some(output) = run("systemd-sysusers", &[&in_root, users.to_str().unwrap()]) else { return };
    assert!(output.status.success(), "{}", said(&output));
    let passwd = fs::read_to_string(etc.join("passwd")).unwrap();
    let escp = passwd.lines().find(|line| line.starts_with("escp:")).unwrap();
    assert!(escp.ends_with("/nologin"), "{escp}");

    if !rustix::process::geteuid().is_root() {
        return say_skipped(&test_name(), "giving a directory to the daemon's user needs root");
    }
    let directories = shipped("escp.tmpfiles.conf");
    let arguments = ["--create", &in_root, directories.to_str().unwrap()];
    let Some(output) = run("systemd-tmpfiles", &arguments) else { return };
    assert!(output.status.success(), "{}", said(&output));
    assert!(root.path().join("run/escp").is_dir());
}

#[test]
fn the_example_configuration_of_prometheus_is_sound() {
    let config = shipped("../config/prometheus/scrape.yml");
    let Some(output) = run("promtool", &["check", "config", config.to_str().unwrap()]) else { return };
    assert!(output.status.success(), "{}", said(&output));
    let address = escp_config::Config::default().metrics.unwrap().to_string();
    assert!(fs::read_to_string(config).unwrap().contains(&address));
}

#[test]
fn the_units_agree_with_the_defaults_of_the_configuration() {
    let (service, socket) = (unit("escpd.service"), unit("escpd.socket"));
    let config = escp_config::Config::default();
    let path = config.socket.to_str().unwrap();
    assert_eq!(values(&socket, "ListenSequentialPacket"), [path]);
    // The socket's directory is one that the service may write to, and sees.
    let directory = config.socket.parent().and_then(|parent| parent.strip_prefix("/run").ok()).unwrap();
    assert_eq!(values(&service, "RuntimeDirectory"), [directory.to_str().unwrap()]);
    assert!(service.contains(escp_config::DEFAULT_PATH));

    let memory = config.limits.sessions as u64 * config.limits.memory_per_session;
    let locked = values(&service, "LimitMEMLOCK");
    let locked = escp_config::parse_size(locked.first().unwrap()).unwrap();
    assert!(locked >= memory, "{locked} bytes for all sessions together, which may use {memory}");

    let stored: usize = values(&service, "FileDescriptorStoreMax").first().unwrap().parse().unwrap();
    // Two listeners a port, for as many ports as the configuration may name, and the Unix socket.
    assert!(stored > 2 * 256);
    let open: u64 = values(&service, "LimitNOFILE").first().unwrap().parse().unwrap();
    assert!(open > 2 * config.limits.unproven as u64);
}

#[test]
fn the_service_keeps_what_its_work_needs() {
    let service = unit("escpd.service");
    // In a user namespace SO_PEERCRED would show every user as 65534.
    assert_eq!(values(&service, "PrivateUsers"), ["no"]);
    assert!(values(&service, "DynamicUser").is_empty());
    assert_eq!(values(&service, "CapabilityBoundingSet"), [""]);
    assert_eq!(values(&service, "RestrictAddressFamilies"), ["AF_UNIX AF_INET AF_INET6"]);
    assert_eq!(values(&service, "User"), ["escp"]);
    // TemporaryFileSystem=/ would be undone by ProtectSystem=strict.
    assert_eq!(values(&service, "RootDirectory").len(), 1);
    let filter = values(&service, "SystemCallFilter").join(" ");
    assert!(filter.contains("@aio"), "io_uring is not allowed: {filter}");
    if let Some(output) = run("systemd-analyze", &["syscall-filter", "@aio"]) {
        let calls = said(&output);
        for call in ["io_uring_setup", "io_uring_enter", "io_uring_register"] {
            assert!(calls.contains(call), "{call} is not in @aio here");
        }
    }
}
