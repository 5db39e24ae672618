//! The named workloads: what is moved, and who competes.

use crate::args::MeasureArgs;
use crate::contender::{Contender, GCM, Role, Trip, eight_at_once, peers};
use crate::ground::{Ground, Medium};
use crate::workload::{Unit, Workload, files, gib, streams};
use crate::{distance, floor, iperf, login};
use escp_testkit::tree;
use escp_testkit::wan::Link;
use escp_testkit::{Checked, Trouble};

type Prepare = fn(&str, &Ground, &MeasureArgs) -> Checked<Workload>;

/// All workloads by name, in the order in which they run.
const ALL: [(&str, Prepare); 17] = [
    ("B1", |name, ground, args| big(name, ground, args, Medium::Tmpfs)),
    ("B2", |name, ground, args| big(name, ground, args, Medium::Disk)),
    ("B3", |name, ground, args| small(name, ground, args, Medium::Tmpfs)),
    ("B3-disk", |name, ground, args| small(name, ground, args, Medium::Disk)),
    ("B4", mixed),
    ("B5", |name, ground, args| text(name, ground, args, None)),
    ("B5-gigabit", |name, ground, args| text(name, ground, args, Some("1gbit"))),
    ("B6", sparse),
    ("B7", start),
    ("B7-files", few),
    ("B8", |name, ground, args| crowd(name, ground, args, args.many)),
    ("B8-tenth", |name, ground, args| crowd(name, ground, args, args.many / 10)),
    ("B9", distance::file),
    ("B9-fast", distance::file),
    ("B9-small", distance::small),
    ("B10", eight),
    ("B11", dummy),
];

/// Streams of B11.
const STREAMS: [u16; 5] = [1, 2, 4, 8, 16];
/// Files of B4, and the bounds of their sizes.
const MIXED: (u64, u64, u64) = (2000, 4 << 10, 32 << 20);
/// B6: size, and islands of 64 KiB in it, 100 MiB together.
const SPARSE: (u64, u64) = (10 << 30, 1600);

/// What the disk gives when nothing else is asked.
const COPIER: &str = "{bench} copy {source} {out}/{name}";

/// The names of all workloads.
pub(crate) fn names() -> Vec<&'static str> {
    ALL.iter().map(|(name, _)| *name).collect()
}

/// What lies between the hosts in a workload; `None`: they share a network.
pub(crate) fn distance(name: &str) -> Option<Link> {
    distance::LINKS
        .iter()
        .find(|(known, ..)| *known == name)
        .map(|(_, round_trip, rate)| Link::new(*round_trip, *rate))
}

/// Makes a workload's source and says who competes.
pub(crate) fn prepare(name: &str, ground: &Ground, args: &MeasureArgs) -> Checked<Workload> {
    let (name, make) = ALL
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| Trouble::new(format!("there is no workload {name}; known: {}", names().join(", "))))?;
    make(name, ground, args)
}

/// A number that was meant for files of 4 GiB, in proportion to `--size`.
fn scaled(number: u64, args: &MeasureArgs) -> u64 {
    (u128::from(number) * u128::from(args.size)).div_ceil(4 << 30).try_into().unwrap_or(u64::MAX)
}

/// The floor by blocking calls and, where that may be used, by io_uring: what follows their names, the flags of both and
/// those of either.
fn floors(ending: &str, both: &str, blocking: &str, uring: &str) -> Vec<Contender> {
    let floor = |name: &str, flags: &str| {
        let command = format!("{{bench}} floor {both} {flags}");
        Contender::limit(&format!("{name}{ending}"), &command).in_role(Role::Floor)
    };
    let by_uring = floor::uring_is_allowed().then(|| floor("floor, io_uring", &format!("--uring {uring}")));
    [floor("floor", blocking)].into_iter().chain(by_uring).collect()
}

/// The floor for small files, in one way or another.
fn files_floor(ending: &str, flags: &str) -> Contender {
    let command = format!("{{bench}} floor --files {flags} --from {{source}} --to {{out}}/{{name}}");
    Contender::limit(&format!("floor{ending}"), &command).in_role(Role::Floor)
}

fn big(name: &str, ground: &Ground, args: &MeasureArgs, medium: Medium) -> Checked<Workload> {
    let trip = Trip { medium, name: "random".to_owned(), tree: false };
    let source = ground.source(&trip);
    tree::file(&source, args.size, 1)?;
    ground.own(&source)?;
    let mut contenders = vec![Contender::escp("escp", args, &[])];
    contenders.extend(peers(args, &trip)?);
    let (paths, count) = ("--from {source} --to {out}/{name}", streams(args));
    if medium == Medium::Disk {
        // Blocking threads need more than one per core to keep a disk busy.
        let (direct, by_uring) = (format!("--direct {paths}"), format!("--streams {count}"));
        contenders.extend(floors("", &direct, "--streams 8", &by_uring));
        if floor::uring_is_allowed() {
            let command = format!("{{bench}} floor {direct} {by_uring} --uring --plain-sockets");
            contenders.push(Contender::limit("floor, mixed", &command).in_role(Role::Floor));
        }
        contenders.push(Contender::limit("O_DIRECT copier", COPIER));
    } else {
        contenders.extend(floors("", &format!("--streams {count} {paths}"), "", "--depth 2"));
        contenders.push(Contender::limit("cp", "cp --reflink=never {source} {out}/{name}"));
    }
    contenders.push(login::one());
    contenders.extend(iperf::limit(args, streams(args)));
    let title = format!("one random file, {} to {}", medium.name(), medium.name());
    Ok(Workload::new(name, title, gib(args.size), trip, contenders, args.runs))
}

fn small(name: &str, ground: &Ground, args: &MeasureArgs, medium: Medium) -> Checked<Workload> {
    let trip = Trip { medium, name: "small".to_owned(), tree: true };
    let source = ground.source(&trip);
    files(&source, args.files, 1 << 10, 16 << 10)?;
    ground.own(&source)?;
    let mut contenders = vec![Contender::escp("escp", args, &[])];
    contenders.extend(peers(args, &trip)?);
    let durable = if medium == Medium::Disk {
        // As many as for one big file there.
        contenders.push(files_floor("", "--streams 8 --durable each"));
        contenders.push(files_floor(", one barrier", "--streams 8 --durable barrier"));
        "--durable"
    } else {
        contenders.push(files_floor("", &format!("--streams {}", streams(args))));
        ""
    };
    contenders.push(Contender::limit(
        "bare create",
        &format!("{{bench}} create {durable} {{source}} {{out}}/{{name}}"),
    ));
    contenders.push(login::one());
    let title = format!("{} files of 1 to 16 KiB, {}", args.files, medium.name());
    Ok(Workload::new(name, title, Unit::Files(args.files), trip, contenders, args.runs))
}

fn mixed(name: &str, ground: &Ground, args: &MeasureArgs) -> Checked<Workload> {
    let trip = Trip { medium: Medium::Disk, name: "mixed".to_owned(), tree: true };
    let source = ground.source(&trip);
    let count = u32::try_from(scaled(MIXED.0, args))?;
    let bytes = files(&source, count, MIXED.1, MIXED.2)?;
    ground.own(&source)?;
    let mut contenders = vec![Contender::escp("escp", args, &[])];
    contenders.extend(peers(args, &trip)?);
    contenders.extend([Contender::limit("O_DIRECT copier", COPIER), login::one()]);
    let title = format!("{count} files of 4 KiB to 32 MiB, disk");
    Ok(Workload::new(name, title, gib(bytes), trip, contenders, args.runs))
}

fn text(name: &str, ground: &Ground, args: &MeasureArgs, rate: Option<&'static str>) -> Checked<Workload> {
    let trip = Trip { medium: Medium::Tmpfs, name: "text".to_owned(), tree: false };
    let source = ground.source(&trip);
    tree::words(&source, args.size)?;
    ground.own(&source)?;
    let mut contenders = vec![
        Contender::escp("escp -C", args, &["-C"]),
        Contender::escp("escp", args, &[]).in_role(Role::Peer),
    ];
    contenders.push(Contender::peer(
        "rsync zstd gcm",
        &format!("rsync -t --zc=zstd -z -e 'ssh -F {{config}} -c {GCM}' {{source}} {{target}} && {{sync}}"),
    ));
    let path = rate.map_or_else(String::new, |rate| format!(", over {rate}/s"));
    let title = format!("one file of text, with -C, tmpfs{path}");
    let rounds = args.runs;
    Ok(Workload { rate, ..Workload::new(name, title, gib(args.size), trip, contenders, rounds) })
}

fn sparse(name: &str, ground: &Ground, args: &MeasureArgs) -> Checked<Workload> {
    let trip = Trip { medium: Medium::Disk, name: "sparse".to_owned(), tree: false };
    let source = ground.source(&trip);
    let (size, islands) = (scaled(SPARSE.0, args), scaled(SPARSE.1, args));
    tree::sparse_file(&source, size, islands)?;
    ground.own(&source)?;
    let gcm = format!("-F {{config}} -c {GCM}");
    let contenders = vec![
        Contender::escp("escp", args, &[]),
        Contender::peer(
            "tar -S ssh gcm",
            &format!("tar -C {{base}} -cSf - {{name}} | ssh {gcm} {{far}} tar -C {{out}} -xf - && {{sync}}"),
        ),
        Contender::peer(
            "rsync -S gcm",
            &format!("rsync -tS -e 'ssh {gcm}' {{source}} {{target}} && {{sync}}"),
        ),
    ];
    let title = format!("a file of {} MiB with {} MiB of data, disk", size >> 20, (islands * 64) >> 10);
    Ok(Workload::new(name, title, Unit::Start, trip, contenders, args.runs))
}

fn start(name: &str, ground: &Ground, args: &MeasureArgs) -> Checked<Workload> {
    let trip = Trip { medium: Medium::Tmpfs, name: "byte".to_owned(), tree: false };
    let source = ground.source(&trip);
    std::fs::write(&source, "x")?;
    ground.own(&source)?;
    let mut contenders = vec![Contender::escp("escp", args, &[])];
    contenders.extend(peers(args, &trip)?);
    contenders.push(login::one());
    let title = "one byte".to_owned();
    Ok(Workload::new(name, title, Unit::Start, trip, contenders, args.runs * 3))
}

fn few(name: &str, ground: &Ground, args: &MeasureArgs) -> Checked<Workload> {
    let trip = Trip { medium: Medium::Tmpfs, name: "few".to_owned(), tree: true };
    let source = ground.source(&trip);
    files(&source, 20, 4 << 10, 64 << 10)?;
    ground.own(&source)?;
    let mut contenders = vec![Contender::escp("escp", args, &[])];
    contenders.extend(peers(args, &trip)?);
    let title = "20 files of 4 to 64 KiB".to_owned();
    Ok(Workload::new(name, title, Unit::Start, trip, contenders, args.runs * 3))
}

fn crowd(name: &str, ground: &Ground, args: &MeasureArgs, count: u32) -> Checked<Workload> {
    let trip = Trip { medium: Medium::Tmpfs, name: "crowd".to_owned(), tree: true };
    let source = ground.source(&trip);
    files(&source, count, 0, 1 << 10)?;
    ground.own(&source)?;
    let mut contenders = vec![Contender::escp("escp", args, &[])];
    // The others take hours.
    contenders.extend(peers(args, &trip)?.into_iter().filter(|peer| peer.name.starts_with("tar")));
    contenders.push(files_floor("", &format!("--streams {}", streams(args))));
    let title = format!("{count} files of 0 to 1 KiB, tmpfs");
    let rounds = args.runs.min(2);
    Ok(Workload::new(name, title, Unit::Files(count), trip, contenders, rounds))
}

fn eight(name: &str, ground: &Ground, args: &MeasureArgs) -> Checked<Workload> {
    let trip = Trip { medium: Medium::Tmpfs, name: "eight".to_owned(), tree: true };
    let source = ground.source(&trip);
    std::fs::create_dir(&source)?;
    tree::file(&source.join("whole"), args.size, 1)?;
    tree::file(&source.join("eighth"), args.size / 8, 2)?;
    ground.own(&source)?;
    let mut contenders = Contender::alone_and_eight(args).to_vec();
    contenders.extend(one_and_eight_floors(args));
    contenders.extend([login::one(), login::eight()]);
    let title = "eight transfers at once through one daemon, beside one of the same bytes, tmpfs".to_owned();
    Ok(Workload::new(name, title, gib(args.size), trip, contenders, args.runs))
}

/// The same bytes by the floor: what eight at once lose against one where nothing is agreed, handed out or counted.
fn one_and_eight_floors(args: &MeasureArgs) -> [Contender; 2] {
    let floor = |what: &str, to: &str| {
        let streams = streams(args);
        format!("{{bench}} floor --streams {streams} --from {{source}}/{what} --to {{out}}/{{name}}{to}")
    };
    let eight = eight_at_once(&floor("eighth", "$i"));
    [("floor alone", floor("whole", "")), ("eight floors at once", eight)]
        .map(|(name, command)| Contender::limit_without_files(name, &command))
}

fn dummy(name: &str, _ground: &Ground, args: &MeasureArgs) -> Checked<Workload> {
    let trip = Trip { medium: Medium::None, name: String::new(), tree: false };
    let counts = args.streams.map_or_else(|| STREAMS.to_vec(), |streams| vec![streams]);
    let mut contenders = Vec::new();
    for streams in counts {
        contenders.push(Contender::dummy(streams, args));
        let flags = format!("--streams {streams} --size {}", args.size);
        let floors = floors(&format!(", {streams} streams"), &flags, "", "");
        contenders.extend(floors.into_iter().map(|floor| floor.without_files().in_lane(streams)));
    }
    let title = "memory to memory, no files".to_owned();
    Ok(Workload::new(name, title, gib(args.size), trip, contenders, args.runs))
}
