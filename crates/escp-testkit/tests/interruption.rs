//! A signal, in a process of its own: it changes what every other test of that process could do.

use escp_testkit::run::{Run, send_signal};
use escp_testkit::{Checked, ensure, interruption, processes};
use rustix::process::Signal;
use std::time::{Duration, Instant};

#[test]
fn a_signal_ends_what_runs_and_not_the_task() -> Checked {
    interruption::catch()?;
    let start = Instant::now();
    let shown = Run::new("true", None).show()?;
    ensure!(shown < Duration::from_secs(10), "{shown:?}");
    let running = Run::new("sleep", None).arg("50").start()?;
    let pid = running.pid();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            send_signal(std::process::id(), Signal::TERM)
        });
        let trouble = running.end().err().map(|trouble| format!("{trouble:?}")).unwrap_or_default();
        ensure!(trouble.starts_with("interrupted"), "{trouble}");
        ensure!(start.elapsed() < Duration::from_secs(40), "it was not ended: {:?}", start.elapsed());
        Ok(())
    })?;
    ensure!(interruption::asked(), "the signal is forgotten");
    ensure!(processes::read(pid).is_none(), "it still runs");
    ensure!(Run::new("true", None).start().is_err(), "something new was run");
    Ok(())
}
