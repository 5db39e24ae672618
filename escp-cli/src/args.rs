//! What was typed. What it means is decided in `plan`.

use clap::{ArgAction, Parser};
use std::ffi::OsString;
use std::path::PathBuf;

/// Flags and operands, unjudged.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "escp",
    version,
    about = "Copies files between hosts at the speed of the hardware: logs in by ssh, moves data over several \
             encrypted connections, checks every byte, and never leaves a part of a file under its final name.",
    override_usage = "escp [flags] SOURCE... [USER@]HOST:TARGET\n       \
                      escp [flags] [USER@]HOST:SOURCE... TARGET",
    after_help = AFTER_HELP,
    disable_help_flag = true,
    disable_version_flag = true,
    args_override_self = true
)]
pub(crate) struct Args {
    /// What to copy, then where to: PATH, [USER@]HOST:PATH, or scp://[USER@]HOST[:PORT]/PATH
    ///
    /// A name with a slash before its first colon is a local one. IPv6 addresses stand in brackets. A relative
    /// path of a host starts at the home directory there; the host expands * ? [ ] and ~ itself, without a
    /// shell.
    #[allow(rustdoc::broken_intra_doc_links, reason = "the help text's brackets mean optional parts")]
    #[arg(value_name = "SOURCE... TARGET", num_args = 0..)]
    pub(crate) operands: Vec<OsString>,

    /// Copy directories with all that is in them; symbolic links in them are followed
    #[arg(short = 'r', help_heading = COPYING)]
    pub(crate) recursive: bool,
    /// Keep modification and access times and modes
    #[arg(short = 'p', help_heading = COPYING)]
    pub(crate) preserve: bool,
    /// Write into existing files, which keeps inode, links and ACL, instead of replacing them when complete
    #[arg(long, help_heading = COPYING)]
    pub(crate) inplace: bool,
    /// Do not wait until files are on stable storage
    #[arg(long = "no-fsync", help_heading = COPYING)]
    pub(crate) no_fsync: bool,
    /// Compute and compare no check values (encryption still finds what the network alters)
    #[arg(long, help_heading = COPYING)]
    pub(crate) nochecksum: bool,
    /// Accepted for scp's sake: what the other host sends is always checked against what was asked for
    #[arg(short = 'T', help_heading = COPYING, hide = true)]
    pub(crate) no_strict_names: bool,

    #[command(flatten)]
    pub(crate) connection: ConnectionArgs,
    #[command(flatten)]
    pub(crate) speed: SpeedArgs,
    #[command(flatten)]
    pub(crate) messages: MessageArgs,
    #[command(flatten)]
    pub(crate) scp: ScpArgs,

    /// Serve one session on standard input and output; the other side starts this through ssh
    #[arg(long, hide = true)]
    pub(crate) server: bool,
}

const COPYING: &str = "Copying";
const CONNECTION: &str = "Logging in (handed to ssh)";
const SPEED: &str = "Moving data";
const MESSAGES: &str = "Saying";

/// Flags about ssh and the other host.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = CONNECTION)]
pub(crate) struct ConnectionArgs {
    /// Port of the host's ssh server
    #[arg(short = 'P', value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) ssh_port: Option<u16>,
    /// Identity (private key); may be repeated
    #[arg(short = 'i', value_name = "FILE", action = ArgAction::Append)]
    pub(crate) identities: Vec<OsString>,
    /// Configuration of ssh
    #[arg(short = 'F', value_name = "FILE")]
    pub(crate) ssh_config: Option<OsString>,
    /// Host to jump over (data does not: it goes straight to the host)
    #[arg(short = 'J', value_name = "DESTINATION")]
    pub(crate) jump: Option<OsString>,
    /// Option of ssh, such as StrictHostKeyChecking=yes; may be repeated
    #[arg(short = 'o', value_name = "OPTION", action = ArgAction::Append)]
    pub(crate) options: Vec<OsString>,
    /// Program to use as ssh
    #[arg(short = 'S', value_name = "PROGRAM", default_value = "ssh", hide_default_value = true)]
    pub(crate) program: OsString,
    /// Cipher of ssh (data is always AES-128-GCM)
    #[arg(short = 'c', value_name = "CIPHER")]
    pub(crate) cipher: Option<OsString>,
    /// Use IPv4 only
    #[arg(short = '4', overrides_with = "ipv6")]
    pub(crate) ipv4: bool,
    /// Use IPv6 only
    #[arg(short = '6', overrides_with = "ipv4")]
    pub(crate) ipv6: bool,
    /// Forward the authentication agent
    #[arg(short = 'A')]
    pub(crate) forward_agent: bool,
    /// Ask for nothing: no passwords, no questions
    #[arg(short = 'B')]
    pub(crate) batch: bool,
    /// Path of escp on the other host (-D of scp, an sftp server, has no use here)
    #[arg(short = 'D', long = "escp", value_name = "PATH")]
    pub(crate) far_escp: Option<OsString>,
}

/// Flags about speed.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = SPEED)]
pub(crate) struct SpeedArgs {
    /// Number of data connections (4 unless configured otherwise)
    #[arg(short = 't', long, value_name = "NUMBER")]
    pub(crate) parallel: Option<u16>,
    /// Compress (zstd) where it pays: as much as keeps the network busy
    #[arg(short = 'C')]
    pub(crate) compress: bool,
    /// Use at most RATE in all: Kbit/s, or with a unit, bits/s: 800M, 10G
    #[arg(short = 'l', value_name = "RATE")]
    pub(crate) limit: Option<String>,
    /// TCP congestion control of the data connections on both hosts, such as bbr (the hosts' own unless given)
    #[arg(long, value_name = "NAME")]
    pub(crate) congestion: Option<String>,
    /// Largest size of a block, 256K to 8M (2M unless configured otherwise)
    #[arg(long, value_name = "SIZE")]
    pub(crate) blocksize: Option<String>,
    /// Blocks in flight per data connection
    #[arg(long, value_name = "NUMBER", hide = true)]
    pub(crate) depth: Option<u16>,
    /// uring, posix or dummy; TX::RX names the sender's and the receiver's
    ///
    /// dummy touches no files: give dummy:SIZE (such as dummy:100G) in place of a source.
    #[arg(long, value_name = "ENGINE")]
    pub(crate) ioengine: Option<String>,
    /// Go through the page cache instead of O_DIRECT
    #[arg(long)]
    pub(crate) nodirect: bool,
    /// First TCP port for data on the other host, where no escpd runs
    #[arg(long = "escp_port", alias = "escp-port", value_name = "PORT",
          value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) escp_port: Option<u16>,
    /// How many ports after it to try, or FIRST-LAST
    #[arg(long = "escp_portrange", alias = "escp-portrange", value_name = "RANGE")]
    pub(crate) escp_portrange: Option<String>,
    /// Socket of this host's escpd; $ESCP_SOCKET names it too. none: do without escpd
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Configuration to read instead of /etc/escp.conf
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// Flags about what is said.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = MESSAGES)]
pub(crate) struct MessageArgs {
    /// No progress, no summary: errors only
    #[arg(short = 'q')]
    pub(crate) quiet: bool,
    /// Say more; twice: decisions, and ssh too; three times: everything
    #[arg(short = 'v', action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Show rates in bits per second
    #[arg(long)]
    pub(crate) bits: bool,
    /// Write a log to FILE, or to syslog: LOCAL0 to LOCAL7
    #[arg(long, value_name = "FILE")]
    pub(crate) logfile: Option<OsString>,
    /// Print the licence
    #[arg(short = 'L', long)]
    pub(crate) license: bool,
    /// Print the version
    #[arg(short = 'V', long, action = ArgAction::Version)]
    pub(crate) version: Option<bool>,
    /// Print this; --help says more
    #[arg(short = 'h', long, action = ArgAction::Help)]
    pub(crate) help: Option<bool>,
}

/// Flags of scp that escp has no use for.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ScpArgs {
    /// Relay between two remote hosts
    #[arg(short = '3', hide = true)]
    pub(crate) relay: bool,
    /// Copy directly between two remote hosts
    #[arg(short = 'R', hide = true)]
    pub(crate) direct: bool,
    /// The legacy protocol
    #[arg(short = 'O', hide = true)]
    pub(crate) legacy: bool,
    /// The SFTP protocol
    #[arg(short = 's', hide = true)]
    pub(crate) sftp: bool,
    /// An option of sftp
    #[arg(short = 'X', hide = true, value_name = "OPTION", action = ArgAction::Append)]
    pub(crate) sftp_options: Vec<OsString>,
}

const AFTER_HELP: &str = "\
Examples:
  escp big.tar data1:                      to the home directory on data1
  escp -r results alice@data1:/srv/in/     a directory with all that is in it
  escp 'data1:run/*.h5' .                  what matches on data1 to here
  escp -J gate -P 2222 x [2001:db8::7]:/x  through a jump host, to an IPv6 address
  escp --ioengine dummy dummy:100G data1:  network and ciphers alone, no files

Exit status:
  0 all files verified and on stable storage   3 could not connect or log in
  1 some files failed; they are listed         4 the connection was lost
  2 the command line cannot be followed        5 data was altered, or the protocol broken
  130, 143 ended by SIGINT, SIGTERM

escp has to be installed on both hosts. Data goes to TCP ports 1232-1242 of the other host.
Where escpd runs, it moves the data; elsewhere escp does so itself.";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn flags_combine_as_fingers_know_them() {
        let args = Args::try_parse_from([
            "escp", "-rpq", "-P2222", "-oA=b", "-o", "C=d", "-i", "k1", "-ik2", "-l8000", "-vv", "-4", "a",
            "--", "-b", "host:",
        ])
        .unwrap();
        assert!(args.recursive && args.preserve && args.messages.quiet && args.connection.ipv4);
        assert_eq!(args.connection.ssh_port, Some(2222));
        assert_eq!(args.connection.options, ["A=b", "C=d"]);
        assert_eq!(args.connection.identities, ["k1", "k2"]);
        assert_eq!(args.speed.limit.as_deref(), Some("8000"));
        assert_eq!(args.messages.verbose, 2);
        assert_eq!(args.operands, ["a", "-b", "host:"]);
    }

    #[test]
    fn the_last_of_contrary_flags_counts() {
        let args = Args::try_parse_from(["escp", "-4", "-6", "a", "b:"]).unwrap();
        assert!(args.connection.ipv6 && !args.connection.ipv4);
        let args = Args::try_parse_from(["escp", "-P", "1", "-P", "2", "a", "b:"]).unwrap();
        assert_eq!(args.connection.ssh_port, Some(2));
    }

    #[test]
    fn help_names_every_status_and_both_forms() {
        let help = Args::command().render_long_help().to_string();
        for word in ["[USER@]HOST:TARGET", "130, 143", "--ioengine", "dummy:100G", "-J <DESTINATION>"] {
            assert!(help.contains(word), "{word}\n{help}");
        }
        assert!(!help.contains("--server"));
    }
}
