use super::*;
use crate::place::Place;
use clap::Parser;
use escp_proto::ProtocolError;
use std::os::unix::process::ExitStatusExt;
use std::process::Command as Run;

fn ssh_plan(line: &str) -> SshPlan {
    let args = Args::try_parse_from(std::iter::once("escp").chain(line.split_whitespace())).unwrap();
    let target = args.operands.last().cloned().unwrap();
    let Ok(Place::Remote(remote)) = Place::parse(&target) else { panic!("{target:?} is local") };
    SshPlan::new(&args, remote.login).unwrap()
}

fn arguments(line: &str) -> Vec<String> {
    ssh_plan(line).arguments.into_iter().map(|argument| argument.into_string().unwrap()).collect()
}

const FIXED: [&str; 5] =
    ["-x", "-oPermitLocalCommand=no", "-oClearAllForwardings=yes", "-oRemoteCommand=none", "-oRequestTTY=no"];
const COMMAND: &str = "exec env PATH=\"$PATH\":/usr/local/bin:/usr/bin:/bin:/opt/escp/bin escp --server";

#[test]
fn arguments_are_those_of_scp() {
    let plain: Vec<&str> = FIXED.into_iter().chain(["-oForwardAgent=no", "--", "host", COMMAND]).collect();
    assert_eq!(arguments("a host:"), plain);

    let full =
        arguments("-q -B -4 -A -vvv -F cfg -J gate -c aes -i k1 -i k2 -o A=b -o C=d -P 2222 a user@[::1]:x");
    let rest = [
        "-q",
        "-4",
        "-A",
        "-oBatchMode=yes",
        "-v",
        "-v",
        "-F",
        "cfg",
        "-J",
        "gate",
        "-c",
        "aes",
        "-i",
        "k1",
        "-i",
        "k2",
        "-o",
        "A=b",
        "-o",
        "C=d",
        "-p",
        "2222",
        "-l",
        "user",
        "--",
        "::1",
        COMMAND,
    ];
    assert_eq!(full, FIXED.into_iter().chain(rest).collect::<Vec<_>>());
}

#[test]
fn a_port_in_the_uri_outweighs_the_flag() {
    let arguments = arguments("-P 1 a scp://host:2/x");
    let at = arguments.iter().position(|argument| argument == "-p").unwrap();
    assert_eq!(arguments[at + 1], "2");
}

#[test]
fn another_program_gets_the_arguments_of_ssh() {
    let plan = ssh_plan("-S /bin/false a host:");
    assert_eq!(plan.program, "/bin/false");
    assert_eq!(plan.arguments, ssh_plan("a host:").arguments);
}

#[test]
fn paths_of_the_far_escp_are_quoted_or_refused() {
    let command = |path: &str| {
        remote_command(Some(OsStr::new(path))).map(|command| command.into_string().unwrap()).ok()
    };
    assert_eq!(command("/opt/e/escp").as_deref(), Some("exec env /opt/e/escp --server"));
    assert_eq!(command("~/bin/escp").as_deref(), Some("exec env ~/bin/escp --server"));
    assert_eq!(command("/a b;$(c)'").as_deref(), Some("exec env /a\\ b\\;\\$\\(c\\)\\' --server"));
    assert_eq!(command("/a=b/escp").as_deref(), Some("exec /a\\=b/escp --server"));
    for bad in ["", "-x", "a\nb", "a\tb"] {
        assert_eq!(command(bad), None, "{bad:?}");
    }
}

/// Every login shell that is installed here.
fn shells() -> Vec<&'static str> {
    let all = ["sh", "bash", "dash", "zsh", "fish", "tcsh", "csh", "ksh", "mksh"];
    let found = |shell: &&str| Run::new(shell).args(["-c", "true"]).output().is_ok();
    let shells: Vec<_> = all.into_iter().filter(found).collect();
    eprintln!("login shells tried: {shells:?}");
    shells
}

/// A directory with an `escp` that says what it was started with.
fn fake_escp(name: &str) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join(name);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "#!/bin/sh\necho \"$1 $PATH\"\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

fn run(shell: &str, command: &OsStr, path: &str, home: &OsStr) -> (Option<i32>, String) {
    let output = Run::new(shell)
        .arg("-c")
        .arg(command)
        .env_clear()
        .env("PATH", path)
        .env("HOME", home)
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn every_login_shell_finds_escp_behind_its_own_path() {
    let directory = fake_escp("escp");
    let own = format!("/usr/bin:/bin:{}", directory.path().display());
    for shell in shells() {
        let (code, said) = run(shell, remote_command(None).unwrap().as_ref(), &own, OsStr::new("/"));
        assert_eq!(code, Some(0), "{shell}");
        assert_eq!(said, format!("--server {own}:{MORE_PATH}\n"), "{shell}");
    }
}

#[test]
fn every_login_shell_says_127_when_there_is_no_escp() {
    for shell in shells() {
        for command in [remote_command(None).unwrap(), remote_command(Some(OsStr::new("/no/escp"))).unwrap()]
        {
            // Without the directories behind it, lest an installed escp be found.
            let command = OsString::from(command.to_str().unwrap().replace(MORE_PATH, "/usr/bin:/bin"));
            let (code, _) = run(shell, &command, "/usr/bin:/bin", OsStr::new("/"));
            assert_eq!(code, Some(127), "{shell}");
        }
    }
}

#[test]
fn every_login_shell_keeps_a_quoted_path_whole() {
    for name in
        ["a b", "it's", "$HOME", "`id`", "a;b&c|d", "x*?[y]", "(z)", "back\\slash", "a!b", "{q,r}", "é#%^"]
    {
        let directory = fake_escp(&format!("{name}/escp"));
        let path = directory.path().join(name).join("escp");
        for shell in shells() {
            let command = remote_command(Some(path.as_os_str())).unwrap();
            let (code, said) = run(shell, &command, "/usr/bin:/bin", OsStr::new("/"));
            assert!(code == Some(0) && said.starts_with("--server"), "{shell} {name}: {code:?} {said}");
        }
    }
    let home = fake_escp("bin/escp");
    for shell in shells() {
        let command = remote_command(Some(OsStr::new("~/bin/escp"))).unwrap();
        let (code, _) = run(shell, &command, "/usr/bin:/bin", home.path().as_os_str());
        assert_eq!(code, Some(0), "{shell} ~");
    }
}

#[test]
fn the_end_of_ssh_is_explained() {
    let plan = ssh_plan("a host:");
    let ended = |code: i32| Some(ExitStatus::from_raw(code << 8));
    let closed = |status| plan.explain("host", &GreetError::Closed, status);
    assert_eq!(closed(ended(255)), "cannot log in to host: ssh ended with status 255");
    let missing = closed(ended(127));
    for words in ["escp is not installed on host", "/usr/local/bin", "install it there", "--escp"] {
        assert!(missing.contains(words), "{missing}");
    }
    assert!(closed(ended(2)).contains("ended with status 2"));
    assert!(closed(None).contains("was lost"));
    let named = ssh_plan("-D /x/escp a host:").explain("host", &GreetError::Closed, ended(127));
    assert!(named.contains("/x/escp cannot be run there"), "{named}");
    let banner = plan.explain("host", &GreetError::ForeignText("Welcome!".into()), None);
    assert!(banner.contains("\"Welcome!\"") && banner.contains(".bashrc"), "{banner}");
    let version = ProtocolError::Version { peer: "3 to 4".into(), ours: 2 };
    let version = plan.explain("host", &GreetError::Version(version), None);
    assert!(version.contains("peer speaks escp protocol 3 to 4, this is 2"), "{version}");
}
