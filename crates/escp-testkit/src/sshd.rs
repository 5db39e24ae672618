//! A real sshd of a test's own, with throwaway keys.

use crate::clock::Stopwatch;
use crate::network::Network;
use crate::run::{self, Run, Running};
use crate::users::User;
use crate::{Checked, Trouble, processes, scratch};
use rustix::process::Signal;
use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a test may ask of its sshd.
#[derive(Debug, Clone, Default)]
pub struct SshdOptions {
    /// Variables of every session on the far side.
    pub environment: Vec<(String, String)>,
    /// Lines added to sshd_config, before any other.
    pub lines: Vec<String>,
    /// Where the client reaches it: 127.0.0.1 unless the hosts are apart.
    pub address: Option<Ipv4Addr>,
    /// Asks for [`PASSWORD`] twice instead of for a key: as a password, then through PAM by keyboard-interactive.
    pub passwords: bool,
}

/// The far user's password where [`SshdOptions::passwords`] is set.
pub const PASSWORD: &str = "correct horse";
/// `openssl passwd -6 -salt escptest 'correct horse'`
const PASSWORD_HASH: &str =
    "$6$escptest$Dl7906kuE.T7KXBOsopeJWHJOOHDpN6l4Gdu5OOLbL/IDRUQSfIpj7C/XG1cPFL9CAXaraFiNa07UNL4M0lEW.";
/// Runs a program that sees other files at places of the system: `$1` at `$2`, `$3` at `$4`.
const ELSEWHERE: &str = "mount --bind $1 $2 && mount --bind $3 $4 && shift 4 && exec \"$@\"";

/// A running sshd on 127.0.0.1, ::1 and the address that was asked for. Killed when dropped, with its sessions.
#[derive(Debug)]
pub struct Sshd {
    /// Its port.
    pub port: u16,
    /// A configuration for the client's `-F`: host `far` (and `far6` by IPv6), keys, known host.
    pub client_config: PathBuf,
    /// The client's private key.
    pub key: PathBuf,
    running: Running,
}

impl Sshd {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Starts one whose files lie in `directory` (which must exist). `near` may log in as `far`.
    ///
    /// # Errors
    /// When sshd is missing or does not come up.
    pub fn start(
        directory: &Path,
        network: &Network,
        near: &User,
        far: &User,
        options: &SshdOptions,
    ) -> Checked<Self> {
        let host_key = make_key(directory, "host_key")?;
        let key = make_key(directory, "user_key")?;
        std::fs::copy(key.with_extension("pub"), directory.join("authorized_keys"))?;
        scratch::give(&key, near)?;
        if crate::users::is_root() {
            // sshd's unprivileged child lives there; the system's service would have made it.
            std::fs::create_dir_all("/run/sshd")?;
        }
        // A free port can be taken by another test before sshd has it.
        let mut last = Trouble::new("never tried");
        for _ in 0..5 {
            let port = network.inside(free_port)??;
            let config = server_config(directory, &host_key, port, far, options)?;
            let arguments = ["-D".as_ref(), "-e".as_ref(), "-f".as_ref(), config.as_os_str()];
            let sshd = run::program("sshd")?;
            let run = if options.passwords {
                let mounts = private_accounts(directory, far)?;
                Run::new("unshare", None)
                    .args(["--mount", "sh", "-c", ELSEWHERE, "sh"])
                    .args(mounts)
                    .arg(sshd)
            } else {
                Run::new(sshd, None)
            };
            match launch(run.args(arguments).network(network), network, port) {
                Ok(running) => {
                    let address = options.address.unwrap_or(Ipv4Addr::LOCALHOST);
                    let client_config =
                        client_config(directory, &host_key, &key, (address, port), near, far)?;
                    return Ok(Self { port, client_config, key, running });
                }
                Err(trouble) => last = trouble,
            }
        }
        Err(last)
    }

    /// Process ids of its sessions and of all that runs in them.
    #[must_use]
    pub fn sessions(&self) -> Vec<u32> {
        processes::descendants(self.running.pid())
    }

    /// What sshd has logged.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn log(&mut self) -> Checked<String> {
        self.running.stderr()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // Sessions outlive the sshd that took them in, and with the network gone they never hear of the other end.
        // While it is stopped it takes in no more, and waits for none, so that no number is another process's.
        if !self.running.is_running().unwrap_or(false) || self.running.signal(Signal::STOP).is_err() {
            return;
        }
        for _ in 0..100 {
            let sessions = self.sessions();
            if sessions.is_empty() {
                break;
            }
            for pid in sessions {
                let _ = run::send_signal(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A TCP port of 127.0.0.1 that nobody listens on.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Checked<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Files for [`ELSEWHERE`]: a password database and rules for PAM that only this sshd sees.
fn private_accounts(directory: &Path, far: &User) -> Checked<[PathBuf; 4]> {
    let shadow = std::fs::read_to_string("/etc/shadow")?;
    let with_password = |line: &str| match line.strip_prefix(&format!("{}:*:", far.name)) {
        Some(rest) => format!("{}:{PASSWORD_HASH}:{rest}\n", far.name),
        None => format!("{line}\n"),
    };
    let accounts = directory.join("shadow");
    std::fs::write(&accounts, shadow.lines().map(with_password).collect::<String>())?;
    std::fs::set_permissions(&accounts, Permissions::from_mode(0o600))?;
    let rules = directory.join("pam");
    std::fs::write(
        &rules,
        "auth required pam_unix.so\naccount required pam_permit.so\nsession required pam_permit.so\n",
    )?;
    Ok([accounts, "/etc/shadow".into(), rules, "/etc/pam.d/sshd".into()])
}

fn launch(run: Run<'_>, network: &Network, port: u16) -> Checked<Running> {
    let mut running = run.start()?;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let start = Stopwatch::start();
    while running.is_running()? && start.elapsed() < Duration::from_secs(20) {
        if network.inside(|| greets(address))? {
            return Ok(running);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(Trouble::new(format!("sshd did not come up: {}", running.stderr()?)))
}

fn greets(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else { return false };
    let mut first = [0; 4];
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let read = stream.read_exact(&mut first).is_ok();
    // An answer of ours keeps "connection closed" out of the log.
    let _ = stream.write_all(b"SSH-2.0-probe\r\n");
    read && &first == b"SSH-"
}

fn make_key(directory: &Path, name: &str) -> Checked<PathBuf> {
    let path = directory.join(name);
    let keygen = run::program("ssh-keygen")?;
    Run::new(keygen, None).args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(&path).succeed()?;
    Ok(path)
}

fn server_config(
    directory: &Path,
    host_key: &Path,
    port: u16,
    far: &User,
    options: &SshdOptions,
) -> Checked<PathBuf> {
    let mut text = options.lines.join("\n");
    if let Some(address) = options.address {
        text.push_str(&format!("\nListenAddress {address}"));
    }
    if options.passwords {
        text.push_str(
            "
UsePAM yes
PasswordAuthentication yes
KbdInteractiveAuthentication yes
AuthenticationMethods password,keyboard-interactive",
        );
    }
    text.push_str(&format!(
        "
Port {port}
ListenAddress 127.0.0.1
ListenAddress ::1
HostKey {}
AuthorizedKeysFile {}
AllowUsers {}
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
UseDNS no
PrintMotd no
PrintLastLog no
MaxStartups 200
MaxSessions 100
Subsystem sftp internal-sftp
",
        host_key.display(),
        directory.join("authorized_keys").display(),
        far.name,
    ));
    let environment: Vec<String> =
        options.environment.iter().map(|(name, value)| format!("\"{name}={value}\"")).collect();
    if !environment.is_empty() {
        text.push_str(&format!("SetEnv {}\n", environment.join(" ")));
    }
    let path = directory.join("sshd_config");
    std::fs::write(&path, text)?;
    Ok(path)
}

fn client_config(
    directory: &Path,
    host_key: &Path,
    key: &Path,
    (address, port): (Ipv4Addr, u16),
    near: &User,
    far: &User,
) -> Checked<PathBuf> {
    let known = directory.join("known_hosts");
    std::fs::write(
        &known,
        format!("escp-test {}", std::fs::read_to_string(host_key.with_extension("pub"))?),
    )?;
    let text = format!(
        "Host far
    HostName {address}
Host far6
    HostName ::1
Host *
    Port {port}
    User {}
    HostKeyAlias escp-test
    UserKnownHostsFile {}
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    IdentityFile {}
    IdentitiesOnly yes
    BatchMode yes
    LogLevel ERROR
",
        far.name,
        known.display(),
        key.display(),
    );
    let path = directory.join("ssh_config");
    std::fs::write(&path, text)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o644))?;
    // ssh refuses a configuration that others own.
    scratch::give(&path, near)?;
    Ok(path)
}
