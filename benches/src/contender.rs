//! Who is measured: escp, its peers, and the limits of the machine.

use crate::args::MeasureArgs;
use crate::ground::{Ground, Medium};
use crate::login;
use escp_testkit::run::Run;
use escp_testkit::{Checked, Trouble};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// What a contender stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// What the others are compared with.
    Escp,
    /// Another program for the same purpose, or escp in another way.
    Peer,
    /// What the machine could do.
    Limit,
    /// The limit that escp is measured by: the least that its own primitives cost.
    Floor,
}

/// From where to where. All contenders make `name` in a fresh directory.
#[derive(Debug, Clone)]
pub(crate) struct Trip {
    /// On what the files lie.
    pub(crate) medium: Medium,
    /// File or directory, in the near directory of the medium.
    pub(crate) name: String,
    /// It is a directory.
    pub(crate) tree: bool,
}

/// One of those who are measured beside each other.
#[derive(Debug, Clone)]
pub(crate) struct Contender {
    /// For the table.
    pub(crate) name: String,
    /// What it stands for.
    pub(crate) role: Role,
    /// Only contenders of one lane are compared with each other.
    pub(crate) lane: u16,
    /// The distance it is measured at, where that is not the workload's: the round trip.
    pub(crate) round_trip: Option<Duration>,
    /// It leaves a copy that can be looked at.
    pub(crate) makes_files: bool,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    /// escp with these flags, between source and target of the trip.
    Escp(Vec<String>),
    /// escp with these words, which may have placeholders.
    Words(Vec<String>),
    /// Eight of them at once, each with a target of its own: the number is put behind the last word.
    Eight(Vec<String>),
    /// A command line of the near user, with placeholders, that copies to the far user.
    Shell(String),
    /// The same, to the near user's own target directory.
    Local(String),
}

/// Prints when each of eight began and ended.
const AT_ONCE: &str = r#"
for i in 1 2 3 4 5 6 7 8; do
    ( from=$(date +%s.%N); "$0" "$@"$i || exit 1; echo "$from $(date +%s.%N)" ) &
    all="$all $!"
done
for one in $all; do wait "$one" || exit 1; done
"#;

/// A command line that runs another eight times at once; in it, `$i` counts them.
pub(crate) fn eight_at_once(command: &str) -> String {
    format!(
        "for i in 1 2 3 4 5 6 7 8; do {command} & all=\"$all $!\"; done; for one in $all; do wait $one || exit 1; done"
    )
}

/// The fast cipher of OpenSSH.
pub(crate) const GCM: &str = "aes128-gcm@openssh.com";

impl Contender {
    /// escp.
    pub(crate) fn escp(name: &str, args: &MeasureArgs, flags: &[&str]) -> Self {
        let mut words = flags_of(args);
        words.extend(flags.iter().map(|flag| (*flag).to_owned()));
        Self::new(name, Role::Escp, What::Escp(words))
    }

    /// escp from memory to memory.
    pub(crate) fn dummy(streams: u16, args: &MeasureArgs) -> Self {
        let mut words = flags_of(&MeasureArgs { streams: Some(streams), ..args.clone() });
        words.extend(["--ioengine".to_owned(), "dummy".to_owned(), format!("dummy:{}", args.size)]);
        words.push("far:".to_owned());
        let new = Self::new(&format!("escp dummy -t {streams}"), Role::Escp, What::Words(words));
        Self { makes_files: false, ..new }.in_lane(streams)
    }

    /// escp alone with a whole, and eight of it at once with an eighth each.
    pub(crate) fn alone_and_eight(args: &MeasureArgs) -> [Self; 2] {
        let words = |what: &str| {
            let mut words = flags_of(args);
            words.extend([format!("{{source}}/{what}"), "{target}".to_owned()]);
            words
        };
        let eight = Self::new("eight at once", Role::Escp, What::Eight(words("eighth")));
        let alone = Self::new("escp alone", Role::Peer, What::Words(words("whole")));
        [Self { makes_files: false, ..eight }, Self { makes_files: false, ..alone }]
    }

    /// A peer, as a command line for the near user's shell; see [`Ground::fill`] for the placeholders.
    pub(crate) fn peer(name: &str, command: &str) -> Self {
        Self::new(name, Role::Peer, What::Shell(command.to_owned()))
    }

    /// A limit, as a command line that makes its target in `{out}`, a directory of the near user.
    pub(crate) fn limit(name: &str, command: &str) -> Self {
        Self::new(name, Role::Limit, What::Local(command.to_owned()))
    }

    /// A limit that makes no files.
    pub(crate) fn limit_without_files(name: &str, command: &str) -> Self {
        Self::limit(name, command).without_files()
    }

    fn new(name: &str, role: Role, what: What) -> Self {
        Self { name: name.to_owned(), role, lane: 0, round_trip: None, makes_files: true, what }
    }

    /// The same, but making no files.
    pub(crate) fn without_files(mut self) -> Self {
        self.makes_files = false;
        self
    }

    /// The same in another lane.
    pub(crate) fn in_lane(mut self, lane: u16) -> Self {
        self.lane = lane;
        self
    }

    /// The same at another distance.
    pub(crate) fn at(mut self, round_trip: Duration) -> Self {
        self.round_trip = Some(round_trip);
        self
    }

    /// The same in another role.
    pub(crate) fn in_role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }

    /// Whether the far user's directory receives what it makes.
    pub(crate) fn is_remote(&self) -> bool {
        !matches!(self.what, What::Local(_))
    }

    /// Whether it is escp, whatever its role: the daemons take part then.
    pub(crate) fn is_escp(&self) -> bool {
        matches!(self.what, What::Escp(_) | What::Words(_) | What::Eight(_))
    }

    /// The contender that does nothing but log in as this one does; see [`crate::login`].
    pub(crate) fn login(&self) -> Option<&'static str> {
        match self.what {
            What::Escp(_) | What::Words(_) | What::Shell(_) => Some(login::ONE),
            What::Eight(_) => Some(login::EIGHT),
            What::Local(_) => None,
        }
    }

    /// iperf3 wants its server started beside it.
    pub(crate) fn is_iperf(&self) -> bool {
        matches!(&self.what, What::Local(command) if command.starts_with("iperf3 "))
    }

    /// The program to measure.
    pub(crate) fn run<'w>(&self, ground: &'w Ground, trip: &Trip) -> Run<'w> {
        let world = &ground.world;
        let filled = |words: &[String]| -> Vec<String> {
            words.iter().map(|word| ground.fill(word, trip, true)).collect()
        };
        match &self.what {
            What::Escp(flags) => world
                .escp()
                .arg("-q")
                .args(trip.tree.then_some("-r"))
                .args(flags)
                .arg(ground.source(trip))
                .arg(format!("far:{}/", ground.out(trip, true).display())),
            What::Words(words) => world.escp().arg("-q").args(filled(words)),
            What::Eight(words) => world
                .escp()
                .arg("-q")
                .args(filled(words))
                .under("sh", &["-c", AT_ONCE])
                .as_user(&world.users.near),
            What::Shell(command) | What::Local(command) => {
                world.on_near("sh").arg("-c").arg(ground.fill(command, trip, self.is_remote()))
            }
        }
    }
}

impl Ground {
    /// The source of a trip.
    pub(crate) fn source(&self, trip: &Trip) -> PathBuf {
        self.place(trip.medium).near.join(&trip.name)
    }

    /// The directory in which a trip ends.
    pub(crate) fn out(&self, trip: &Trip, remote: bool) -> PathBuf {
        let place = self.place(trip.medium);
        if remote { &place.far } else { &place.near }.join("out")
    }

    /// Puts a trip's paths into a command line. None of them has a character that a shell minds.
    fn fill(&self, command: &str, trip: &Trip, remote: bool) -> String {
        let text = |path: &Path| path.display().to_string();
        let durable = format!("sync -f {}", text(&self.place(trip.medium).far));
        let pairs = [
            ("{source}", text(&self.source(trip))),
            ("{base}", text(&self.place(trip.medium).near)),
            ("{name}", trip.name.clone()),
            ("{out}", text(&self.out(trip, remote))),
            ("{target}", format!("far:{}/", text(&self.out(trip, true)))),
            ("{far}", "far".to_owned()),
            ("{address}", self.address().to_string()),
            ("{port}", self.world.sshd.port.to_string()),
            ("{config}", text(&self.world.sshd.client_config)),
            ("{bench}", text(&self.instrument)),
            ("{sync}", if trip.medium == Medium::Disk { durable } else { "true".to_owned() }),
        ];
        pairs.iter().fold(command.to_owned(), |command, (name, value)| command.replace(name, value))
    }
}

fn flags_of(args: &MeasureArgs) -> Vec<String> {
    let mut words: Vec<String> = args.flags.split_whitespace().map(str::to_owned).collect();
    if let Some(streams) = args.streams {
        words.extend(["-t".to_owned(), streams.to_string()]);
    }
    words
}

/// EScp, whose program has the name of ours: the first on PATH that calls itself so.
fn predecessor() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let programs = std::env::split_paths(&path).map(|directory| directory.join("escp"));
    programs.filter(|program| program.is_absolute()).find(|program| {
        let help = Command::new(program).arg("--help").stdin(Stdio::null()).output();
        help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains("(EScp)"))
    })
}

/// The peers that copy `trip`, durable at its end where that means something. What is not installed but named
/// nowhere is left out; the four that every comparison needs must be there.
pub(crate) fn peers(args: &MeasureArgs, trip: &Trip) -> Checked<Vec<Contender>> {
    for program in ["scp", "rsync", "tar", "ssh"] {
        escp_testkit::run::program(program)?;
    }
    let recursive = if trip.tree { "-r" } else { "" };
    let scp = |program: &str, cipher: &str| {
        format!("{program} -q {recursive} -F {{config}} {cipher} {{source}} {{target}} && {{sync}}")
    };
    let gcm = format!("-c {GCM}");
    let mut all = vec![
        Contender::peer("scp", &scp("scp", "")),
        Contender::peer("scp gcm", &scp("scp", &gcm)),
        Contender::peer(
            "rsync gcm",
            &format!("rsync -rt -e 'ssh -F {{config}} {gcm}' {{source}} {{target}} && {{sync}}"),
        ),
        Contender::peer(
            "tar ssh gcm",
            &format!(
                "tar -C {{base}} -cf - {{name}} | ssh -F {{config}} {gcm} {{far}} tar -C {{out}} -xf - && {{sync}}"
            ),
        ),
    ];
    for (program, command) in [
        ("hpnscp", scp("hpnscp", &gcm)),
        ("mscp", format!("mscp -q -F {{config}} {gcm} {{source}} {{target}} && {{sync}}")),
    ] {
        if escp_testkit::run::program(program).is_ok() {
            all.push(Contender::peer(program, &command));
        }
    }
    if let Some(program) = predecessor() {
        // It resolves its host itself for the data, and tells ssh a port whatever ssh's configuration says.
        let program = format!("'{}'", program.display());
        let flags = format!("-q {recursive} -F {{config}} -P {{port}} -D {program}");
        let command = format!("{program} {flags} {{source}} {{address}}:{{out}}/ && {{sync}}");
        all.push(Contender::peer("EScp", &command));
    }
    if let Some(words) = &args.peers {
        all.retain(|peer| words.iter().any(|word| peer.name.contains(word.as_str())));
    }
    for peer in &args.more_peers {
        let (name, command) = peer
            .split_once('=')
            .ok_or_else(|| Trouble::new(format!("--peer {peer}: NAME=COMMAND is wanted")))?;
        all.push(Contender::peer(name, &format!("{command} && {{sync}}")));
    }
    Ok(all)
}
