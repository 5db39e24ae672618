//! A few threads for system calls that may block, so that the session's task never does.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a pool that is dropped waits at least without a step being done. Only a hung mount takes longer for one, and
/// then the end of the process does not wait for it either.
const LINGER: Duration = Duration::from_secs(2);

/// Threads that take jobs in the order in which they were given.
///
/// Dropping the pool stops them and waits until the last job is done with.
#[derive(Debug)]
pub(crate) struct Pool<J> {
    jobs: Arc<Queue<J>>,
    pulse: Arc<Pulse>,
    threads: Vec<Thread>,
}

/// What a pool and its threads tell each other about the way.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    stopped: AtomicBool,
    steps: AtomicU64,
}

impl Pulse {
    /// Whether the pool is about to end: what has not begun should not begin.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Lets nothing begin any more.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// Notes that a step was done: whoever waits for the end goes on waiting.
    pub(crate) fn beat(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }
}

impl<J: Send + 'static> Pool<J> {
    /// Starts the threads; each runs `work` for one job after another. `work` beats the pulse after each step
    /// that may wait for a disk, and releases what a job holds without doing it once the pulse is stopped.
    ///
    /// # Errors
    /// When not even one thread can be started.
    pub(crate) fn start<F>(name: &str, work: F) -> std::io::Result<Self>
    where
        F: Fn(J, &Pulse) + Send + Sync + 'static,
    {
        let jobs = Arc::new(Queue::default());
        let work = Arc::new(work);
        let pulse = Arc::new(Pulse::default());
        let mut pool = Self { jobs: Arc::clone(&jobs), pulse: Arc::clone(&pulse), threads: Vec::new() };
        for _ in 0..thread_count() {
            let (jobs, work, pulse) = (Arc::clone(&jobs), Arc::clone(&work), Arc::clone(&pulse));
            let started = Thread::start(name, move || {
                while let Some(job) = jobs.next() {
                    work(job, &pulse);
                    pulse.beat();
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
        self.jobs.give(job);
    }

    /// A way to give jobs from another thread. What comes when the pool was dropped is dropped too.
    pub(crate) fn giver(&self) -> Arc<Queue<J>> {
        Arc::clone(&self.jobs)
    }
}

impl<J> Pool<J> {
    /// Lets no further job be done; the threads only release what jobs hold.
    pub(crate) fn stop(&self) {
        self.pulse.stop();
    }
}

impl<J> Drop for Pool<J> {
    fn drop(&mut self) {
        self.stop();
        self.jobs.close();
        for thread in self.threads.drain(..) {
            thread.join_while(&self.pulse);
        }
    }
}

/// Jobs that wait for a thread.
///
/// Each wakes one thread at most. (A channel behind a lock would wake two: one that takes the job, and one that takes
/// its place at the channel.)
#[derive(Debug)]
pub(crate) struct Queue<J> {
    waiting: Mutex<Waiting<J>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Waiting<J> {
    jobs: VecDeque<J>,
    /// Threads that wait for a job.
    idle: usize,
    closed: bool,
}

impl<J> Default for Queue<J> {
    fn default() -> Self {
        let waiting = Waiting { jobs: VecDeque::new(), idle: 0, closed: false };
        Self { waiting: Mutex::new(waiting), changed: Condvar::new() }
    }
}

impl<J> Queue<J> {
    fn lock(&self) -> MutexGuard<'_, Waiting<J>> {
        // A poisoned queue is still a queue: nothing here leaves it half changed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a job, unless the queue is closed.
    pub(crate) fn give(&self, job: J) {
        let mut waiting = self.lock();
        if waiting.closed {
            return;
        }
        waiting.jobs.push_back(job);
        let wake = waiting.idle > 0;
        drop(waiting);
        if wake {
            self.changed.notify_one();
        }
    }

    /// Lets the threads end once they have taken what is there.
    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// The next job, waited for; `None` once the queue is closed and empty.
    fn next(&self) -> Option<J> {
        let mut waiting = self.lock();
        loop {
            match waiting.jobs.pop_front() {
                None if !waiting.closed => {}
                job => return job,
            }
            waiting.idle += 1;
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            waiting.idle -= 1;
        }
    }
}

/// A thread whose end can be waited for without waiting for ever.
#[derive(Debug)]
pub(crate) struct Thread {
    handle: JoinHandle<()>,
    /// Says nothing, and hangs up with the thread. (The lock is for the sake of [`Sync`].)
    end: Mutex<mpsc::Receiver<Infallible>>,
}

impl Thread {
    /// Starts a thread.
    ///
    /// # Errors
    /// Those of pthread_create(3).
    pub(crate) fn start(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<Self> {
        let (alive, end) = mpsc::channel();
        let handle = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Dropped last, also by a panic.
            let _alive = alive;
            work();
        })?;
        Ok(Self { handle, end: Mutex::new(end) })
    }

    /// Waits for the thread to end, as long as steps are done.
    pub(crate) fn join_while(self, pulse: &Pulse) {
        let Self { handle, end } = self;
        let end = end.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut seen = pulse.steps.load(Ordering::Relaxed);
        while let Err(RecvTimeoutError::Timeout) = end.recv_timeout(LINGER) {
            let steps = pulse.steps.load(Ordering::Relaxed);
            if steps == std::mem::replace(&mut seen, steps) {
                return;
            }
        }
        // A panic was reported by its hook; there is nothing to add here.
        let _ = handle.join();
    }
}

/// Two at least, since one may wait for a disk; more than eight only contend for directories' locks.
fn thread_count() -> usize {
    std::thread::available_parallelism().map_or(2, NonZero::get).clamp(2, 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn runs_every_job_and_discards_the_rest_when_dropped() {
        let (done, results) = mpsc::channel();
        let pool = Pool::start("test", move |job: u32, pulse: &Pulse| {
            if !pulse.is_stopped() {
                std::thread::sleep(Duration::from_millis(5));
                let _ = done.send(job);
            }
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

    #[test]
    fn a_thread_that_panics_is_not_waited_for() {
        let pool = Pool::start("test", |fault: &str, _: &Pulse| std::panic::panic_any(fault)).unwrap();
        // One for each thread, and more: the lock on the queue is not poisoned by them, nor waited for.
        (0..thread_count() + 2).for_each(|_| pool.give("on purpose"));
        let thread = Thread::start("test", || std::panic::panic_any("on purpose")).unwrap();
        thread.join_while(&Pulse::default());
        drop(pool);
    }

    #[test]
    fn waits_for_a_slow_disk_and_not_for_a_hung_one() {
        let steps = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&steps);
        let pool = Pool::start("test", move |slow: bool, pulse: &Pulse| {
            for _ in 0..30 {
                // 3 s of steps in all, or one that never ends.
                std::thread::sleep(if slow { Duration::from_millis(100) } else { Duration::from_secs(3600) });
                counted.fetch_add(1, Ordering::Relaxed);
                pulse.beat();
            }
        })
        .unwrap();
        pool.give(true);
        drop(pool);
        assert_eq!(steps.load(Ordering::Relaxed), 30);

        let hung =
            Pool::start("test", |_: (), _: &Pulse| std::thread::sleep(Duration::from_secs(3600))).unwrap();
        hung.give(());
        let began = Instant::now();
        drop(hung);
        assert!(began.elapsed() < LINGER * 5);
    }
}
