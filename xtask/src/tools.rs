//! The programs that tests and demo need, and getting those that are missing.
//!
//! As root on a system with apt-get they are installed; no service is started and none is enabled.
//! Elsewhere what is missing is named, with the package that holds it.

use crate::run;
use std::path::{Path, PathBuf};

/// A program (or Python module) and the Debian package that holds it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need {
    what: What,
    package: &'static str,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Program(&'static str),
    /// Importable by the system's Python.
    Module(&'static str),
}

const fn program(name: &'static str, package: &'static str) -> Need {
    Need { what: What::Program(name), package }
}

/// What the demo needs.
pub(crate) const DEMO: &[Need] = &[
    program("sshd", "openssh-server"),
    program("ssh", "openssh-client"),
    program("scp", "openssh-client"),
    program("ssh-keygen", "openssh-client"),
    program("useradd", "passwd"),
    program("sha256sum", "coreutils"),
    program("script", "bsdutils"),
];

/// What the tests need.
pub(crate) const TEST: &[Need] = &[
    program("sshd", "openssh-server"),
    program("ssh", "openssh-client"),
    program("scp", "openssh-client"),
    program("ssh-keygen", "openssh-client"),
    program("rsync", "rsync"),
    program("useradd", "passwd"),
    program("sha256sum", "coreutils"),
    program("diff", "diffutils"),
    program("strace", "strace"),
    program("ip", "iproute2"),
    program("ping", "iputils-ping"),
    program("iperf3", "iperf3"),
    program("nsenter", "util-linux"),
    program("losetup", "mount"),
    program("capsh", "libcap2-bin"),
    program("setfacl", "acl"),
    program("mkfs.ext4", "e2fsprogs"),
    program("mkfs.xfs", "xfsprogs"),
    program("mkfs.btrfs", "btrfs-progs"),
    program("mkntfs", "ntfs-3g"),
    program("systemd-analyze", "systemd"),
    Need { what: What::Module("cryptography"), package: "python3-cryptography" },
    Need { what: What::Module("zstandard"), package: "python3-zstandard" },
];

/// What `cargo xtask bench` needs; iperf3 and other peers take part where they are installed.
pub(crate) const BENCH: &[Need] = &[
    program("sshd", "openssh-server"),
    program("ssh", "openssh-client"),
    program("scp", "openssh-client"),
    program("rsync", "rsync"),
    program("tar", "tar"),
    program("diff", "diffutils"),
    program("useradd", "passwd"),
    program("ip", "iproute2"),
    program("unshare", "util-linux"),
];

/// The interpreter that Debian's Python packages are for.
pub(crate) const PYTHON: &str = "/usr/bin/python3";
/// Units that a package brings and enables for the next boot.
const UNITS: [&str; 4] = ["ssh.service", "ssh.socket", "rsync.service", "iperf3.service"];
/// Kept between clones: building a tool takes minutes.
const CACHE: &str = "escp-tools";

/// Where tools that are not the system's are kept: `$XDG_CACHE_HOME` or `~/.cache`.
pub(crate) fn cache() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    base.or_else(home).unwrap_or_else(|| run::root().join("target")).join(CACHE)
}

/// Directories beside `PATH` where a tool may lie.
pub(crate) fn places() -> Vec<PathBuf> {
    let mut places = vec![cache().join("bin")];
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    places.extend(home.map(|home| home.join("bin")));
    places
}

/// Makes sure that everything in `needs` is there.
///
/// # Errors
/// Names what is missing and could not be installed.
pub(crate) fn provide(needs: &[Need]) -> Result<(), String> {
    let missing = missing(needs);
    if missing.is_empty() {
        return Ok(());
    }
    if may_install() {
        let mut packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
        packages.sort_unstable();
        packages.dedup();
        run::say(&format!("    installing {}", packages.join(", ")));
        install(&packages)?;
    }
    let still = self::missing(needs);
    if still.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = still
        .iter()
        .map(|need| match need.what {
            What::Program(name) => format!("{name} (Debian package {})", need.package),
            What::Module(name) => format!("the module {name} of {PYTHON} (Debian package {})", need.package),
        })
        .collect();
    Err(format!("missing: {}. Install them, or run this as root on a system with apt-get", list.join(", ")))
}

fn missing(needs: &[Need]) -> Vec<Need> {
    needs
        .iter()
        .copied()
        .filter(|need| match need.what {
            What::Program(name) => run::find(name, &[]).is_none(),
            What::Module(name) => {
                run::output(run::program(PYTHON).args(["-c", &format!("import {name}")])).is_err()
            }
        })
        .collect()
}

fn may_install() -> bool {
    run::find("apt-get", &[]).is_some() && is_root()
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    escp_testkit::users::is_root()
}

fn apt() -> std::process::Command {
    let mut command = run::program("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-qq", "-o", "Dpkg::Use-Pty=0"]);
    command
}

fn install(packages: &[&str]) -> Result<(), String> {
    let _quiet = NoServices::begin()?;
    let fresh_units: Vec<&str> = UNITS.into_iter().filter(|unit| !unit_exists(unit)).collect();
    let attempt = |packages: &[&str]| {
        run::output(apt().args(["install", "-y", "--no-install-recommends"]).args(packages)).map(drop)
    };
    if attempt(packages).is_err() {
        // The package lists may be old, or absent.
        run::output(apt().arg("update"))?;
        attempt(packages)?;
    }
    for unit in fresh_units {
        if unit_exists(unit) && run::find("systemctl", &[]).is_some() {
            // Installed by this run, so nobody asked for the service: it must not start at the next boot.
            let _ = run::output(run::program("systemctl").args(["--root=/", "disable", unit]));
        }
    }
    Ok(())
}

fn unit_exists(unit: &str) -> bool {
    ["/lib/systemd/system", "/usr/lib/systemd/system", "/etc/systemd/system"]
        .iter()
        .any(|directory| Path::new(directory).join(unit).exists())
}

/// While this lives, packages that are installed start no service (deb-systemd-invoke asks policy-rc.d).
struct NoServices {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn begin() -> Result<Self, String> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(POLICY);
        match file {
            Ok(mut file) => {
                std::io::Write::write_all(&mut file, b"#!/bin/sh\nexit 101\n")
                    .map_err(|error| format!("cannot write {POLICY}: {error}"))?;
                Ok(Self { ours: true })
            }
            // The system has a policy of its own; it stands.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(Self { ours: false }),
            Err(error) => Err(format!("cannot write {POLICY}: {error}")),
        }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            let _ = std::fs::remove_file(POLICY);
        }
    }
}

/// Finds a cargo subcommand, or builds it into the cache.
///
/// # Errors
/// When it is not there and cannot be built.
pub(crate) fn cargo_tool(name: &str) -> Result<PathBuf, String> {
    if let Some(found) = run::find(name, &places()) {
        return Ok(found);
    }
    run::say(&format!("    building {name}; this takes minutes, once (kept in {})", cache().display()));
    run::succeed(run::cargo().args(["install", "--quiet", "--locked", "--root"]).arg(cache()).arg(name))?;
    run::find(name, &places()).ok_or_else(|| format!("cargo install {name} installed no such program"))
}

/// promtool, without the Prometheus server that its package brings: the package is unpacked, not installed.
///
/// # Errors
/// When it is not there and cannot be fetched.
pub(crate) fn promtool() -> Result<PathBuf, String> {
    if let Some(found) = run::find("promtool", &places()) {
        return Ok(found);
    }
    if !may_install() {
        return Err("missing: promtool (Debian package prometheus)".to_owned());
    }
    run::say("    unpacking promtool");
    let directory = cache().join("prometheus");
    std::fs::create_dir_all(cache().join("bin")).map_err(|error| error.to_string())?;
    std::fs::create_dir_all(&directory).map_err(|error| error.to_string())?;
    let fetch = || run::output(apt().args(["download", "prometheus"]).current_dir(&directory));
    if fetch().is_err() {
        run::output(apt().arg("update"))?;
        fetch()?;
    }
    let package = std::fs::read_dir(&directory)
        .map_err(|error| error.to_string())?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .ok_or("apt-get download prometheus left no package")?;
    run::output(run::program("dpkg-deb").arg("-x").arg(&package).arg(&directory))?;
    let target = cache().join("bin/promtool");
    std::fs::copy(directory.join("usr/bin/promtool"), &target).map_err(|error| error.to_string())?;
    std::fs::remove_dir_all(&directory).map_err(|error| error.to_string())?;
    Ok(target)
}
