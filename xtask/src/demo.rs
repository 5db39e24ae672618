//! `cargo xtask demo`: real data from disk to disk, there and back, through two escpd and a real ssh.
//!
//! Everything is private to the run: an sshd with throwaway keys on a free port of loopback, users of its own
//! (as root), daemons on two port ranges. All of it is gone afterwards, also after Ctrl-C; what stays is the build
//! in target/, packages that were installed, and empty lock files in the directory that tests share.

use crate::{run, tools};
use escp_testkit::daemon::{Daemon, DaemonOptions};
use escp_testkit::network::Network;
use escp_testkit::run::Run;
use escp_testkit::scratch::{Scratch, give};
use escp_testkit::sshd::{Sshd, SshdOptions, free_port};
use escp_testkit::tree::{self, MIB};
use escp_testkit::users::{self, User, Users};
use escp_testkit::{Checked, Trouble, interruption, programs};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One large file of noise, one that compresses, and a tree of small ones: 1.04 GiB.
const LARGE: u64 = 768 * MIB;
const TEXT: u64 = 256 * MIB;
const SMALL_FILES: u64 = 4000;
/// Source, copy and copy of the copy, for escp and then for scp.
const SPACE: u64 = 4 * 1024 * MIB;

/// Shows it all, and says at the end in one line how it went.
pub(crate) fn run(_arguments: &[String]) -> Result<(), String> {
    run::step("programs the demo needs", || tools::provide(tools::DEMO))?;
    let mut built = PathBuf::new();
    run::step("release build", || {
        built = programs::built_for_release().map_err(told)?;
        Ok(())
    })?;
    interruption::catch().map_err(told)?;
    let shown = show(&built);
    let cleared = if users::is_root() { users::give_back().map_err(told) } else { Ok(()) };
    if interruption::asked() {
        return Err(cleared.err().unwrap_or_else(|| "interrupted; what the demo made is gone".to_owned()));
    }
    let line = shown.map_err(|trouble| format!("DEMO FAILED: {trouble:?}"))?;
    cleared?;
    run::say(&line);
    Ok(())
}

fn told(trouble: Trouble) -> String {
    format!("{trouble:?}")
}

/// The two hosts of the demo, which are one machine.
struct Stage {
    // Dropped in this order.
    near_daemon: Daemon,
    far_daemon: Daemon,
    sshd: Sshd,
    near: PathBuf,
    far: PathBuf,
    users: Users,
    programs: PathBuf,
    _scratch: Scratch,
}

fn show(built: &Path) -> Checked<String> {
    let stage = Stage::set(built)?;
    run::say("==> data");
    let (files, bytes) = stage.make_data()?;
    run::say(&format!("    {files} files, {:.2} GiB in {}", gib(bytes), stage.near.join("data").display()));

    run::say("==> escp -r, this host's disk to the other's");
    let far_data = format!("far:{}", stage.far.join("data").display());
    let up = stage.escp(&["-r", "-p"], &[&path(&stage.near.join("data")), &far_data])?;
    run::say("==> escp -r, and back");
    let back = stage.escp(&["-r", "-p"], &[&far_data, &path(&stage.near.join("back"))])?;

    run::say("==> sha256sum on both sides");
    let sums = stage.sums(&stage.users.near, &stage.near.join("data"))?;
    for (user, copy) in
        [(&stage.users.far, stage.far.join("data")), (&stage.users.near, stage.near.join("back"))]
    {
        if stage.sums(user, &copy)? != sums {
            return Err(Trouble::new(format!("{} differs from what was sent", copy.display())));
        }
        run::say(&format!("    {} files equal: {}", sums.lines().count(), copy.display()));
    }
    stage.show_metrics(bytes)?;

    run::say("==> scp -r on the same data");
    for old in [stage.far.join("data"), stage.near.join("back")] {
        std::fs::remove_dir_all(old)?;
    }
    let scp_up = stage.scp(&[&path(&stage.near.join("data")), &far_data])?;
    let scp_back = stage.scp(&[&far_data, &path(&stage.near.join("back"))])?;
    let seconds = |time: Duration| time.as_secs_f64();
    run::say(&format!(
        "    there: escp {:.1} s, scp {:.1} s; back: escp {:.1} s, scp {:.1} s",
        seconds(up),
        seconds(scp_up),
        seconds(back),
        seconds(scp_back)
    ));
    drop(stage);
    Ok(format!(
        "DEMO OK: {files} files, {:.2} GiB there and back through two escpd, every SHA-256 equal, durable on \
         disk; {:.1} times as fast as scp (which does not wait for the disk)",
        gib(bytes),
        (seconds(scp_up) + seconds(scp_back)) / (seconds(up) + seconds(back)),
    ))
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[expect(clippy::cast_precision_loss, reason = "shown with two decimals")]
fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1024 * MIB) as f64
}

impl Stage {
    fn set(built: &Path) -> Checked<Self> {
        run::say("==> a private sshd and two escpd");
        let users = if users::is_root() {
            users::borrow()?
        } else {
            run::say("    not root: one user, you, plays all parts, and the daemons could reach your files");
            let own = users::current()?;
            Users { near: own.clone(), far: own.clone(), daemon: own.clone(), stranger: own }
        };
        let scratch = Scratch::new()?;
        let space = free_bytes(scratch.path())?;
        if space < SPACE {
            return Err(Trouble::new(format!(
                "{} has {:.1} GiB free; the demo needs {:.1}",
                scratch.path().display(),
                gib(space),
                gib(SPACE)
            )));
        }
        let near = scratch.directory("near", Some(&users.near), 0o700)?;
        let far = scratch.directory("far", Some(&users.far), 0o700)?;
        let ssh = scratch.directory("ssh", None, 0o755)?;
        let programs = scratch.directory("programs", None, 0o755)?;
        programs::copy(built, &programs)?;
        let network = Network::of_this_machine();
        let daemon = |name: &str, ports: (u16, u16)| -> Checked<Daemon> {
            let directory = scratch.directory(name, Some(&users.daemon), 0o755)?;
            let options =
                DaemonOptions { ports, metrics_port: free_port()?, config: String::new(), under: Vec::new() };
            let daemon =
                Daemon::start(&programs.join("escpd"), &directory, &network, &users.daemon, &options)?;
            run::say(&format!(
                "    escpd {name}: user {}, ports {}-{}, pid {}, http://{}/metrics",
                users.daemon.name,
                ports.0,
                ports.1,
                daemon.pid(),
                daemon.metrics
            ));
            Ok(daemon)
        };
        let near_daemon = daemon("near-escpd", (1232, 1236))?;
        let far_daemon = daemon("far-escpd", (1237, 1242))?;
        let environment = vec![("ESCP_SOCKET".to_owned(), path(&far_daemon.socket))];
        let options = SshdOptions { environment, ..SshdOptions::default() };
        let sshd = Sshd::start(&ssh, &network, &users.near, &users.far, &options)?;
        run::say(&format!(
            "    sshd on 127.0.0.1:{}; {} copies to {}",
            sshd.port, users.near.name, users.far.name
        ));
        Ok(Self { near_daemon, far_daemon, sshd, near, far, users, programs, _scratch: scratch })
    }

    /// Returns files and bytes.
    fn make_data(&self) -> Checked<(u64, u64)> {
        let data = self.near.join("data");
        std::fs::create_dir(&data)?;
        tree::file(&data.join("large"), LARGE, 1)?;
        tree::text_file(&data.join("text"), TEXT)?;
        tree::many(&data.join("tree"), SMALL_FILES, 40)?;
        give(&self.near, &self.users.near)?;
        count(&data)
    }

    /// Runs escp as the near user on a terminal, so that it shows its progress.
    fn escp(&self, flags: &[&str], operands: &[&str]) -> Checked<Duration> {
        let mut words = vec![path(&self.programs.join("escp"))];
        words.extend(["-F".to_owned(), path(&self.sshd.client_config)]);
        words.extend(["-D".to_owned(), path(&self.programs.join("escp"))]);
        words.extend(flags.iter().chain(operands).map(|word| (*word).to_owned()));
        // script(1) gives it a terminal even where this output goes to a file. No word holds a quote.
        let line = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
        Run::new("script", Some(&self.users.near))
            .env("ESCP_SOCKET", &self.near_daemon.socket)
            .env("TERM", "xterm")
            .env("COLUMNS", "100")
            .args(["--quiet", "--return", "--command", &line, "/dev/null"])
            .show()
    }

    fn scp(&self, operands: &[&str]) -> Checked<Duration> {
        Run::new("scp", Some(&self.users.near))
            .args(["-q", "-r", "-p", "-F"])
            .arg(&self.sshd.client_config)
            .args(operands)
            .show()
    }

    /// sha256sum of every file below a directory, run by the user who owns it.
    fn sums(&self, user: &User, directory: &Path) -> Checked<String> {
        let line = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum";
        let run = Run::new("sh", Some(user)).args(["-c", line]).directory(directory);
        Ok(run.patience(Duration::from_secs(300)).succeed()?.stdout)
    }

    fn show_metrics(&self, bytes: u64) -> Checked {
        let network = Network::of_this_machine();
        for (name, daemon) in [("near", &self.near_daemon), ("far", &self.far_daemon)] {
            run::say(&format!("==> metrics of the {name} escpd"));
            let text = daemon.scrape(&network)?;
            for line in text.lines().filter(|line| line.starts_with("escp_")) {
                let shown = ["bytes", "files", "sessions_total", "engine", "direct"];
                if shown.iter().any(|part| line.contains(part)) && !line.ends_with(" 0") {
                    run::say(&format!("    {line}"));
                }
            }
            for direction in ["in", "out"] {
                let label = format!("direction=\"{direction}\"");
                let counted = escp_testkit::daemon::sum(&text, "escp_bytes_disk_total", &[&label]);
                #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
                if counted != bytes as f64 {
                    return Err(Trouble::new(format!(
                        "{counted} bytes counted, {bytes} moved ({direction})"
                    )));
                }
            }
        }
        Ok(())
    }
}

fn count(directory: &Path) -> Checked<(u64, u64)> {
    let (mut files, mut bytes) = (0, 0);
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        if meta.is_dir() {
            let (below, length) = count(&entry.path())?;
            files += below;
            bytes += length;
        } else {
            files += 1;
            bytes += meta.len();
        }
    }
    Ok((files, bytes))
}

/// Bytes free for an unprivileged user, by df.
fn free_bytes(directory: &Path) -> Checked<u64> {
    let out = Run::new("df", None).args(["--output=avail", "-B1"]).arg(directory).succeed()?;
    Ok(out.stdout.lines().nth(1).unwrap_or_default().trim().parse()?)
}
