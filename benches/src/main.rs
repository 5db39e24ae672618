//! The measuring instrument of escp; `cargo xtask bench` builds and starts it.

mod args;
mod bare;
mod catalogue;
mod contender;
mod distance;
mod floor;
mod ground;
mod iperf;
mod listing;
mod login;
mod machine;
mod model;
mod profile;
mod record;
mod report;
mod round;
mod scaling;
mod series;
mod warm;
mod workload;

use args::{Args, MeasureArgs, Task};
use clap::Parser;
use escp_testkit::wan::Link;
use escp_testkit::{Checked, Trouble};
use ground::Ground;
use machine::Group;
use round::{remove, say};
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Memory to touch before the first round, in bytes, beside a source and a copy.
const BESIDE: u64 = 2 << 30;

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(code) => code,
        Err(trouble) => {
            say(&format!("escp-bench: {trouble:?}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Checked<ExitCode> {
    match &args.task {
        Some(Task::Floor(args)) => floor::run(args)?,
        Some(Task::Copy(args)) => bare::copy(args)?,
        Some(Task::Create(args)) => bare::create_tree(args)?,
        None => return measure(&args.measure),
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(args: &MeasureArgs) -> Checked<ExitCode> {
    let names: Vec<&str> = if args.only.is_empty() {
        catalogue::names()
    } else {
        args.only.iter().map(String::as_str).collect()
    };
    if let Some(unknown) = names.iter().find(|name| !catalogue::names().contains(name)) {
        return Err(Trouble::new(format!(
            "there is no workload {unknown}; known: {}",
            catalogue::names().join(", ")
        )));
    }
    if !escp_testkit::users::is_root() {
        return Err(Trouble::new("the bench needs root: users, a network of its own, dropping caches"));
    }
    let interrupted = interruption()?;
    // First of all, so that everything that is started is in it; and last to go.
    let group = Group::join().map(Arc::new);
    let _kept = (!args.cold).then(warm::Kept::new);
    if !args.cold {
        say("warming the memory");
        warm::touch(&args.tmpfs, args.size * 2 + BESIDE)?;
    }
    if args.model {
        print(&model::run(args, group, &interrupted)?);
        return Ok(ExitCode::SUCCESS);
    }
    let about = record::about();
    let (mut all, mut escp_failed) = (Vec::new(), false);
    let mut ground: Option<(Option<Link>, Ground)> = None;
    for name in names {
        let distance = catalogue::distance(name);
        let ground = match ground.take().filter(|(laid_for, _)| *laid_for == distance) {
            Some(laid) => ground.insert(laid),
            None => ground.insert((distance, Ground::lay(args, group.clone(), distance)?)),
        };
        let ground = &ground.1;
        let workload = catalogue::prepare(name, ground, args)?;
        let series = round::run(&workload, ground, args, &interrupted)?;
        let table = report::table(&workload, &series);
        if args.json {
            say(&table)
        } else {
            print(&table)
        }
        let data = report::data(&workload, &series, &about);
        record::append(&data, args.results.as_deref())?;
        if args.history {
            record::append_history(&report::history(&workload, &series, &about))?;
        }
        all.extend(data);
        escp_failed |= series.iter().any(|s| s.contender.is_escp() && s.failure.is_some());
        if args.profile {
            round::profile(&workload, ground, args, &interrupted)?;
        }
        if !workload.trip.name.is_empty() {
            remove(&ground.source(&workload.trip))?;
        }
    }
    if args.json {
        print(&serde_json::to_string_pretty(&all)?);
    }
    Ok(if escp_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print(text: &str) {
    // A closed standard output loses nothing: results are in the file too.
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// Becomes true when the person who waits wants no more: daemons, files and gigabytes of memory have to go
/// first.
fn interruption() -> Checked<Arc<AtomicBool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let asked = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&asked);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
        });
        flag.store(true, Ordering::Relaxed);
    });
    Ok(asked)
}
