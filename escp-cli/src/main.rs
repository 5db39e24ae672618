//! escp: secure copy at the speed of the hardware.
//!
//! `args` is what was typed, `plan` what it means; `session` carries it out from this host, `server` on the
//! other one.

#![forbid(unsafe_code)]

mod args;
mod engines;
mod figures;
mod logging;
mod place;
mod plan;
mod report;
mod screen;
mod server;
mod session;
mod signals;
mod ssh;

use args::Args;
use clap::Parser;
use escp_agent::status;
use escp_config::Config;
use figures::Figures;
use logging::Verbosity;
use report::{Manner, Report};
use screen::Screen;
use std::io::{self, Write};
use std::process::exit;
use std::sync::Arc;

const LICENSE: &str =
    "escp is free software under the MIT License or the Apache License 2.0, at your option.\n";

fn main() {
    // Files go from thread to thread here, in tens of thousands.
    escp_sys::heap::share_one_arena();
    let report = match Args::try_parse() {
        Ok(args) => run(&args),
        Err(error) => {
            let status = if error.use_stderr() { status::USAGE } else { status::GOOD };
            let _ = error.print();
            Report { status, ..Report::default() }
        }
    };
    // Whoever closed these does not want to read them; the status still tells.
    let _ = io::stdout().write_all(report.out.as_bytes());
    let _ = io::stdout().flush();
    let _ = io::stderr().write_all(report.err.as_bytes());
    exit(report.status.into());
}

fn run(args: &Args) -> Report {
    if args.messages.license {
        return Report { out: LICENSE.into(), ..Report::default() };
    }
    match prepare_and_run(args) {
        Ok(report) => report,
        Err(text) => Report { err: format!("escp: {text}\n"), status: status::USAGE, ..Report::default() },
    }
}

fn prepare_and_run(args: &Args) -> Result<Report, String> {
    // From here on this process may hold a session's secret.
    escp_sys::process::forbid_dumping().map_err(|error| format!("cannot forbid core dumps: {error}"))?;
    let config = Config::load(args.speed.config.as_deref()).map_err(|error| error.to_string())?;
    let socket =
        engines::socket(args.speed.socket.clone(), std::env::var_os(engines::SOCKET_VARIABLE), &config);
    let verbosity = Verbosity::default();
    verbosity.set(logging::wanted(&args.messages));
    let logfile = args.messages.logfile.as_deref();
    if args.server {
        logging::start("escp of the other host", &verbosity, logfile, None)?;
        raise_limits();
        return on_runtime(async |stop| Report {
            status: server::run(config, socket, &verbosity, &stop).await,
            ..Report::default()
        });
    }
    let plans = plan::plan(args, &config)?;
    let manner = Manner {
        figures: Figures { bits: args.messages.bits },
        quiet: args.messages.quiet,
        inplace: args.inplace,
    };
    let screen = Arc::new(Screen::new(manner.quiet, args.messages.bits));
    logging::start("escp", &verbosity, logfile, Some(Arc::clone(&screen)))?;
    raise_limits();
    on_runtime(async |stop| {
        let ended = session::run_all(plans, socket.as_deref(), &screen, &stop).await;
        report::compose(ended, manner)
    })
}

/// A ready file holds a descriptor.
fn raise_limits() {
    if let Err(error) = escp_sys::process::raise_descriptor_limit() {
        tracing::debug!("the limit of open files stays as it is: {error}");
    }
}

/// Runs a session on this thread, which is for control: what may wait for a disk has threads of its own, in the agent
/// and in the engine. (With more than one thread for control each message would cross from one to another, which for
/// small files is dearer than all that they do.) What still runs after it ends with the process.
fn on_runtime(session: impl AsyncFnOnce(signals::Stop) -> Report) -> Result<Report, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let report = runtime.block_on(async {
        let stop = signals::listen().map_err(|error| format!("cannot catch signals: {error}"))?;
        Ok(session(stop).await)
    });
    runtime.shutdown_background();
    report
}
