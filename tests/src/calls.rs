//! System calls of processes that run already, in the order in which they happened, as strace(1) sees them.

use escp_testkit::run::{PATIENCE, Run, Running, wait_until};
use escp_testkit::{Checked, Trouble, World};
use rustix::process::Signal;
use std::collections::HashMap;
use std::io::{PipeWriter, Write};
use std::path::PathBuf;
use std::time::Duration;

/// How long strace may take to detach from what it watches.
const LETTING_GO: Duration = Duration::from_secs(5);

/// A system call that ended.
#[derive(Debug)]
pub struct Call {
    /// The thread that made it.
    pub thread: u32,
    /// Name and arguments, descriptors with the paths they lead to.
    pub text: String,
    /// What it answered; -1 for an error.
    pub result: Option<i64>,
    /// The answer in the words of strace, with the name of an error.
    pub answer: String,
    /// Its place among all beginnings and ends.
    pub begun: usize,
    /// As `begun`.
    pub ended: usize,
}

impl Call {
    fn answered(mut self, answer: &str) -> Self {
        answer.clone_into(&mut self.answer);
        self.result = answer.split(' ').next().and_then(|number| number.parse().ok());
        self
    }

    /// Whether it is a call of this name.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        self.text.strip_prefix(name).is_some_and(|rest| rest.starts_with('('))
    }

    /// Whether it is a call of this name for a descriptor of this path, and went well.
    #[must_use]
    pub fn did(&self, name: &str, path: &str) -> bool {
        self.is(name)
            && self.result.is_some_and(|result| result >= 0)
            && self.text.contains(&format!("<{path}>"))
    }
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Calls {
    /// Calls in the order in which they began.
    pub calls: Vec<Call>,
    /// When threads ended.
    ends: HashMap<u32, usize>,
}

impl Calls {
    /// When this thread ended, in terms of [`Call::begun`].
    ///
    /// # Errors
    /// When it was not seen to end.
    pub fn end_of(&self, thread: u32) -> Checked<usize> {
        let end = self.ends.get(&thread).copied();
        end.ok_or_else(|| Trouble::new(format!("thread {thread} was not seen to end")))
    }

    /// Calls of this name.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Call> {
        self.calls.iter().filter(move |call| call.is(name))
    }

    fn parse(text: &str) -> Self {
        let mut seen = Self::default();
        let mut unfinished: HashMap<u32, Call> = HashMap::new();
        for (place, line) in text.lines().enumerate() {
            let Some((thread, rest)) = line.trim_start().split_once(' ') else { continue };
            let Ok(thread) = thread.parse() else { continue };
            let rest = rest.trim_start();
            if rest.starts_with("+++") {
                seen.ends.insert(thread, place);
            } else if let Some(begin) = rest.strip_suffix(" <unfinished ...>") {
                let text = begin.to_owned();
                let call =
                    Call { thread, text, result: None, answer: String::new(), begun: place, ended: place };
                unfinished.insert(thread, call);
            } else if let Some(resumed) = rest.strip_prefix("<... ") {
                let Some(mut call) = unfinished.remove(&thread) else { continue };
                let (_, tail) = resumed.split_once(" resumed>").unwrap_or_default();
                let (more, answer) = halves(tail);
                call.text.push_str(more);
                call.ended = place;
                seen.calls.push(call.answered(answer));
            } else if rest.contains('(') {
                let (call, answer) = halves(rest);
                let text = call.to_owned();
                let call =
                    Call { thread, text, result: None, answer: String::new(), begun: place, ended: place };
                seen.calls.push(call.answered(answer));
            }
        }
        seen.calls.sort_by_key(|call| call.begun);
        seen
    }
}

/// A call and its answer.
fn halves(line: &str) -> (&str, &str) {
    let (call, answer) = line.rsplit_once(" = ").unwrap_or((line, ""));
    (call.trim_end(), answer)
}

/// An strace that watches.
pub struct Strace {
    running: Running,
    output: PathBuf,
}

impl Strace {
    /// Watches the calls that `what` names (`trace=` of strace) in these processes, their threads and whatever they
    /// start; `more` are further words for strace.
    ///
    /// # Errors
    /// When it cannot watch them.
    pub fn attach(world: &World, pids: &[u32], what: &str, more: &[&str]) -> Checked<Self> {
        let output = tempfile(world);
        let mut run = Run::new("strace", None)
            .args(["-f", "-y", "-s", "256", "-e", &format!("trace={what}"), "-e", "signal=none"])
            .args(more)
            .arg("-o")
            .arg(&output)
            .patience(PATIENCE * 2);
        for pid in pids {
            run = run.args(["-p", &pid.to_string()]);
        }
        let mut running = run.start()?;
        wait_until("strace to attach", PATIENCE, || {
            running.stderr().is_ok_and(|said| said.matches(" attached").count() >= pids.len())
        })
        .map_err(|trouble| Trouble::new(format!("{trouble:?}\n{}", running.stderr().unwrap_or_default())))?;
        Ok(Self { running, output })
    }

    /// Waits until a call of this name has begun.
    ///
    /// # Errors
    /// When none does in time.
    pub fn wait_for(&self, name: &str) -> Checked {
        let call = format!(" {name}(");
        wait_until(name, PATIENCE, || {
            std::fs::read(&self.output).is_ok_and(|text| String::from_utf8_lossy(&text).contains(&call))
        })
    }

    /// Waits until a thread of a process has returned from a signal's handler: `rt_sigreturn` is to be among what is
    /// watched. Whoever kills this strace before then may take the signal along: the kernel forgets it once a tracer has
    /// been told of it (ptrace(2), signal-delivery-stop).
    ///
    /// # Errors
    /// When none does in time.
    pub fn wait_for_handler(&self, pid: u32) -> Checked {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task"))?
            .map(|thread| Ok(thread?.file_name().into_string().unwrap_or_default()))
            .collect::<Checked<Vec<String>>>()?;
        wait_until("the signal's handler", PATIENCE, || {
            std::fs::read_to_string(&self.output).is_ok_and(|text| {
                text.lines().filter(|line| line.contains(" rt_sigreturn(")).any(|line| {
                    let thread = line.split_whitespace().next().unwrap_or_default();
                    threads.iter().any(|known| known == thread)
                })
            })
        })
    }

    /// Lets the processes go, and says what they did.
    ///
    /// # Errors
    /// When what strace wrote cannot be read.
    pub fn seen(mut self) -> Checked<Calls> {
        self.running.signal(Signal::INT)?;
        // Now and then it waits for good for a thread that ended meanwhile. Killed, it lets go as well, and nothing is lost:
        // no call goes on before strace has written it down, so what an end depends on stands there when the end is seen.
        let _ =
            wait_until("strace to let go", LETTING_GO, || self.running.is_running().is_ok_and(|runs| !runs));
        drop(self.running);
        Ok(Calls::parse(&String::from_utf8_lossy(&std::fs::read(self.output)?)))
    }
}

/// A name for what the next strace writes.
fn tempfile(world: &World) -> PathBuf {
    let name = |number: u32| world.scratch.path().join(format!("calls-{number}"));
    (0..).map(name).find(|path| !path.exists()).unwrap_or_default()
}

/// An `escp` that has not begun, so that somebody can attach to it first.
pub struct Waiting {
    running: Running,
    word: PipeWriter,
}

impl Waiting {
    /// Takes a command line of [`World::escp`] of the near user.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn new(world: &World, run: Run<'_>) -> Checked<Self> {
        let (stdin, word) = std::io::pipe()?;
        // The shell becomes escp: the process id stays.
        let run = run.under("sh", &["-c", "read _ && exec \"$@\"", "sh"]).as_user(&world.users.near);
        let running = run.patience(PATIENCE * 2).stdin(stdin).start()?;
        Ok(Self { running, word })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Lets it begin.
    ///
    /// # Errors
    /// When it is gone.
    pub fn go(mut self) -> Checked<Running> {
        self.word.write_all(b"go\n")?;
        Ok(self.running)
    }
}
