//! Starting the system's ssh, and what its end means.

use crate::args::Args;
use crate::place::Login;
use escp_agent::escape::escaped;
use escp_agent::near::GreetError;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::{ExitStatus, Stdio};
use tokio::process::{Child, Command};

/// Where the far escp is looked for behind the login's own PATH: a login that is no interactive one often
/// lacks /usr/local/bin.
const MORE_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/opt/escp/bin";

/// How to log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SshPlan {
    /// The program.
    program: OsString,
    /// Its arguments, the remote command last.
    arguments: Vec<OsString>,
    /// Path of the far escp, if one was named.
    far_escp: Option<OsString>,
}

impl SshPlan {
    /// Composes ssh's arguments as scp does: its fixed ones, then those of the command line in its order of
    /// kinds, then what the user may override.
    ///
    /// # Errors
    /// One sentence, for a path of the far escp that no shell would keep whole.
    pub(crate) fn new(args: &Args, login: Login) -> Result<Self, String> {
        let flags = &args.connection;
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |text: &OsStr| arguments.push(text.to_owned());
        for fixed in [
            "-x",
            "-oPermitLocalCommand=no",
            "-oClearAllForwardings=yes",
            "-oRemoteCommand=none",
            "-oRequestTTY=no",
        ] {
            add(fixed.as_ref());
        }
        for (given, flag) in [
            (args.messages.quiet, "-q"),
            (flags.ipv4, "-4"),
            (flags.ipv6, "-6"),
            (flags.forward_agent, "-A"),
            (flags.batch, "-oBatchMode=yes"),
        ] {
            if given {
                add(flag.as_ref());
            }
        }
        // escp's own first -v is about escp; from the second on ssh says more too.
        (1..args.messages.verbose.min(4)).for_each(|_| add("-v".as_ref()));
        let with_value = [
            ("-F", flags.ssh_config.as_slice()),
            ("-J", flags.jump.as_slice()),
            ("-c", flags.cipher.as_slice()),
            ("-i", &flags.identities),
            ("-o", &flags.options),
        ];
        for (flag, values) in with_value {
            for value in values {
                add(flag.as_ref());
                add(value);
            }
        }
        if !flags.forward_agent {
            add("-oForwardAgent=no".as_ref());
        }
        if let Some(port) = login.port.or(flags.ssh_port) {
            add("-p".as_ref());
            add(port.to_string().as_ref());
        }
        if let Some(user) = &login.user {
            add("-l".as_ref());
            add(user.as_ref());
        }
        add("--".as_ref());
        add(login.host.as_ref());
        add(&remote_command(flags.far_escp.as_deref())?);
        Ok(Self { program: flags.program.clone(), arguments, far_escp: flags.far_escp.clone() })
    }

    /// Starts ssh with pipes for the control channel. Its stderr and the terminal stay its own, so that it
    /// can ask for passwords and second factors. It is told to end when the calling thread does: one whose
    /// server says nothing would not notice that nobody waits for it. To be called from a thread that lives as
    /// long as the process.
    ///
    /// # Errors
    /// One sentence.
    pub(crate) fn start(&self) -> Result<Child, String> {
        tracing::debug!(program = ?self.program, arguments = ?self.arguments, "starting ssh");
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        escp_sys::process::terminate_with_parent(command.as_std_mut());
        command.spawn().map_err(|error| {
            format!("cannot start {}: {error}; -S names another program", escaped(self.program.as_bytes()))
        })
    }

    /// Why there is no session, in one sentence.
    pub(crate) fn explain(&self, host: &str, error: &GreetError, ended: Option<ExitStatus>) -> String {
        match error {
            GreetError::Closed => self.explain_end(host, ended),
            GreetError::ForeignText(line) => format!(
                "{host} prints text where escp should speak: \"{line}\"; make its login shell print nothing when \
                 it is not interactive (.bashrc, .cshrc, ForceCommand)"
            ),
            GreetError::Version(error) => format!(
                "{host}: {error}; install matching versions of escp on both hosts (escp -V shows this one's)"
            ),
            GreetError::Silent(time) => {
                format!("{host}: no escp spoke within {} s of logging in", time.as_secs())
            }
            GreetError::Broken(error) => format!("{host} does not speak as escp does: {error}"),
        }
    }

    fn explain_end(&self, host: &str, ended: Option<ExitStatus>) -> String {
        match ended.and_then(|status| status.code()) {
            // What ssh has said about it stands above, unless it was told to be quiet.
            Some(255) => format!("cannot log in to {host}: ssh ended with status 255"),
            Some(126 | 127) => {
                let looked = match &self.far_escp {
                    Some(path) => format!("{} cannot be run there", escaped(path.as_bytes())),
                    None => format!("not in the PATH of its login, nor in {}", MORE_PATH.replace(':', ", ")),
                };
                format!(
                    "escp is not installed on {host} ({looked}); install it there, or name its path with --escp"
                )
            }
            Some(code) => format!(
                "escp on {host} ended with status {code} before it spoke; is it an old version, or not escp? \
                 'ssh {host} escp --version' shows"
            ),
            None => format!("the connection to {host} was lost before escp spoke there"),
        }
    }
}

/// The command for the login shell of the other side, whatever shell that is: nothing here is special to
/// only some of sh, bash, zsh, ksh, fish, csh and tcsh. `"$PATH":/x`, for one, is how a path is appended in
/// all of them (csh takes a colon directly behind a name for a modifier, fish knows no braces there).
fn remote_command(far_escp: Option<&OsStr>) -> Result<OsString, String> {
    let Some(path) = far_escp else {
        return Ok(format!("exec env PATH=\"$PATH\":{MORE_PATH} escp --server").into());
    };
    let quoted = quoted(path.as_bytes()).ok_or_else(|| {
        format!("--escp {}: not a path that can be handed to a shell", escaped(path.as_bytes()))
    })?;
    // env reports a missing program alike under every shell, but takes a word with '=' for a variable.
    let env: &[u8] = if path.as_bytes().contains(&b'=') { b"" } else { b"env " };
    Ok(OsString::from_vec([b"exec ", env, quoted.as_slice(), b" --server"].concat()))
}

/// A word that every shell reads back as `path`: backslashes before whatever is not plainly harmless. A
/// leading `~` and the name behind it stay, for the other side to expand. `None` for control characters,
/// which cannot be quoted alike, and for what would be an option.
fn quoted(path: &[u8]) -> Option<Vec<u8>> {
    if path.is_empty() || path.first() == Some(&b'-') || path.iter().any(u8::is_ascii_control) {
        return None;
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@%,".contains(&byte) || byte >= 0x80;
    let mut out = Vec::with_capacity(path.len());
    for (at, &byte) in path.iter().enumerate() {
        let leading_tilde = byte == b'~' && at == 0;
        if !plain(byte) && !leading_tilde {
            out.push(b'\\');
        }
        out.push(byte);
    }
    Some(out)
}

/// Waits for ssh to end. One that has not when `patience` is over is told to, and killed when `mercy` is over, too. It is
/// never killed outright at first, because it may have the terminal's echo to restore.
pub(crate) async fn end(
    child: &mut Child,
    patience: impl Future<Output = ()>,
    mercy: impl Future<Output = ()>,
) -> Option<ExitStatus> {
    tokio::select! {
        ended = child.wait() => return ended.ok(),
        () = patience => {}
    }
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // The child has not been waited for, so the number is still its own.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    tokio::select! {
        ended = child.wait() => return ended.ok(),
        () = mercy => {}
    }
    child.kill().await.ok()?;
    child.try_wait().ok().flatten()
}

#[cfg(test)]
#[path = "ssh_tests.rs"]
mod tests;
