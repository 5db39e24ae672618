//! A few threads for system calls that may block, so that the session's task never does.

use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a pool that is dropped waits for system calls under way. Only a hung mount takes longer, and
/// then the end of the process does not wait for it either.
const LINGER: Duration = Duration::from_secs(2);

/// Threads that take jobs in the order in which they were given.
///
/// Dropping the pool discards the jobs that wait and waits for those that run.
#[derive(Debug)]
pub(crate) struct Pool<J> {
    jobs: Option<mpsc::Sender<J>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl<J: Send + 'static> Pool<J> {
    /// Starts the threads; each runs `work` for one job after another. `work` looks at the flag between
    /// steps and returns early once it is set.
    ///
    /// # Errors
    /// When not even one thread can be started.
    pub(crate) fn start<F>(name: &str, work: F) -> std::io::Result<Self>
    where
        F: Fn(J, &AtomicBool) + Send + Sync + 'static,
    {
        let (jobs, queue) = mpsc::channel::<J>();
        let queue = Arc::new(Mutex::new(queue));
        let work = Arc::new(work);
        let stop = Arc::new(AtomicBool::new(false));
        let mut pool = Self { jobs: Some(jobs), stop: Arc::clone(&stop), threads: Vec::new() };
        for _ in 0..thread_count() {
            let (queue, work, stop) = (Arc::clone(&queue), Arc::clone(&work), Arc::clone(&stop));
            let started = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
                while let Some(job) = next_job(&queue) {
                    // A job that is only dropped releases what it holds: descriptors, temporary files.
                    if !stop.load(Ordering::Acquire) {
                        work(job, &stop);
                    }
                }
            });
            match started {
                Ok(thread) => pool.threads.push(thread),
                Err(error) if pool.threads.is_empty() => return Err(error),
                // Fewer threads are slower, not wrong.
                Err(_) => break,
            }
        }
        Ok(pool)
    }

    /// Gives a job. Jobs start in the order in which they are given.
    pub(crate) fn give(&self, job: J) {
        if let Some(jobs) = &self.jobs {
            // Fails only when every thread has ended, which only dropping the pool does.
            let _ = jobs.send(job);
        }
    }

    /// A way to give jobs from another thread, which must end before the pool does.
    pub(crate) fn giver(&self) -> Option<mpsc::Sender<J>> {
        self.jobs.clone()
    }
}

impl<J> Drop for Pool<J> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.jobs = None;
        let deadline = Instant::now() + LINGER;
        for thread in self.threads.drain(..) {
            join_until(thread, deadline);
        }
    }
}

/// Waits for a thread until `deadline` at the latest.
pub(crate) fn join_until(thread: JoinHandle<()>, deadline: Instant) {
    while !thread.is_finished() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    if thread.is_finished() {
        // A panic was reported by its hook; there is nothing to add here.
        let _ = thread.join();
    }
}

fn next_job<J>(queue: &Mutex<mpsc::Receiver<J>>) -> Option<J> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

/// Two at least, since one may wait for a disk; more than eight only contend for directories' locks.
fn thread_count() -> usize {
    std::thread::available_parallelism().map_or(2, NonZero::get).clamp(2, 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_every_job_and_discards_the_rest_when_dropped() {
        let (done, results) = mpsc::channel();
        let pool = Pool::start("test", move |job: u32, _stop: &AtomicBool| {
            std::thread::sleep(Duration::from_millis(5));
            let _ = done.send(job);
        })
        .unwrap();
        (0..10).for_each(|job| pool.give(job));
        let mut seen: Vec<u32> = results.iter().take(10).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
        (0..10_000).for_each(|job| pool.give(job));
        drop(pool);
        assert!(results.iter().count() < 10_000);
    }
}
