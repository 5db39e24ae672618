//! One session from the first word to the exit status, on the near side.

use crate::engines;
use crate::plan::Plan;
use crate::report::Ended;
use crate::screen::Screen;
use crate::signals::Stop;
use crate::ssh;
use escp_agent::link::SessionError;
use escp_agent::near::{self, GreetError, Greeted};
use escp_agent::status;
use escp_agent::tally::Tally;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::{sleep, timeout};

/// Time for ssh to end once its control channel is closed.
const SSH_PATIENCE: Duration = Duration::from_secs(5);
/// The same after a failure, where the far agent cleans up without it, and for somebody who does not want to wait.
const HASTY_PATIENCE: Duration = Duration::from_millis(500);
/// Time for an ssh that was told to end.
const MERCY: Duration = Duration::from_secs(3);

/// Carries one session after the other out, until a signal ends them all: then the next one ends by it, too, before it
/// began. A host that cannot be reached keeps nobody from the next.
pub(crate) async fn run_all(
    plans: Vec<Plan>,
    socket: Option<&Path>,
    screen: &Arc<Screen>,
    stop: &Stop,
) -> Vec<Ended> {
    let mut all = Vec::new();
    let mut screen = Arc::clone(screen);
    for plan in plans {
        if let Some(error) = stop.by_signal() {
            let (host, outcome) = (plan.job.host, Err(error));
            log_end(&host, &outcome);
            all.push(Ended { host, outcome, so_far: Tally::default(), time: Duration::ZERO });
            break;
        }
        if !all.is_empty() {
            screen = Arc::new(screen.renewed());
        }
        all.push(run(plan, socket.map(Path::to_path_buf), &screen, stop).await);
    }
    all
}

/// Carries a session out.
async fn run(plan: Plan, socket: Option<PathBuf>, screen: &Arc<Screen>, stop: &Stop) -> Ended {
    let host = plan.job.host.clone();
    screen.start_drawing();
    // In the main thread: no task is spawned on the way here.
    let outcome = match plan.ssh.start() {
        Err(text) => Err(SessionError { status: status::CONNECT, text }),
        Ok(mut child) => {
            let outcome = stop.guard(through(&plan, &mut child, socket, screen, stop)).await;
            leave(&mut child, outcome.is_ok(), stop).await;
            outcome
        }
    };
    screen.end();
    let (time, so_far) = screen.so_far();
    log_end(&host, &outcome);
    Ended { host, outcome, so_far, time }
}

/// Lets ssh end. A signal that comes when all is `done` has nothing but this to hurry.
async fn leave(child: &mut Child, done: bool, stop: &Stop) {
    let patience = async {
        if done {
            let _ = timeout(SSH_PATIENCE, stop.signalled()).await;
        }
        // The goodbye, or the reason why there is none, may still be on its way through ssh.
        sleep(HASTY_PATIENCE).await;
    };
    let mercy = async {
        if timeout(MERCY, stop.abandoned()).await.is_ok() {
            sleep(HASTY_PATIENCE).await;
        }
    };
    let ended = ssh::end(child, patience, mercy).await;
    tracing::debug!("ssh ended: {ended:?}");
}

/// Logs in, then runs the session.
async fn through(
    plan: &Plan,
    child: &mut Child,
    socket: Option<PathBuf>,
    screen: &Arc<Screen>,
    stop: &Stop,
) -> Result<Tally, SessionError> {
    let greeted = log_in(plan, child, stop).await?;
    tracing::info!("{}: logged in, escp answers", plan.job.host);
    let engine = async || engines::open(socket).await;
    near::run(greeted, engine, stop.hang_up(), Arc::<Screen>::clone(screen)).await
}

async fn log_in(
    plan: &Plan,
    child: &mut Child,
    stop: &Stop,
) -> Result<Greeted<ChildStdout, ChildStdin>, SessionError> {
    let host = &plan.job.host;
    let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(SessionError { status: status::CONNECT, text: "ssh was started without pipes".into() });
    };
    let greeted = tokio::select! {
        error = stop.signalled() => return Err(error),
        greeted = near::greet((stdout, stdin), plan.job.clone(), plan.login_deadline) => greeted,
    };
    let error = match greeted {
        Ok(greeted) => return Ok(greeted),
        Err(error) => error,
    };
    // How ssh ended says why nothing came.
    let ended = match &error {
        GreetError::Closed => timeout(SSH_PATIENCE, child.wait()).await.ok().and_then(Result::ok),
        _ => None,
    };
    let status = match &error {
        GreetError::Broken(_) => status::INTEGRITY,
        _ => status::CONNECT,
    };
    Err(SessionError { status, text: plan.ssh.explain(host, &error, ended) })
}

fn log_end(host: &str, ended: &Result<Tally, SessionError>) {
    match ended {
        Ok(tally) => tracing::info!(
            files = tally.files,
            bytes = tally.bytes,
            directories = tally.directories,
            failed = tally.failed,
            "{host}: session ended"
        ),
        Err(error) => tracing::info!(status = error.status, "{host}: session failed: {}", error.text),
    }
}
