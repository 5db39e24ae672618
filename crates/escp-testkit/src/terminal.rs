//! A program on a terminal: what a person would see, and what they would type.

use crate::clock::Stopwatch;
use crate::run::{Outcome, Run, Running};
use crate::users::User;
use crate::{Checked, Trouble};
use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// A pseudo-terminal with a program in its foreground. The program is killed when this is dropped.
pub struct Terminal {
    keyboard: OwnedFd,
    screen: vt100::Parser,
    bytes: Vec<u8>,
    running: Running,
}

impl std::fmt::Debug for Terminal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terminal").field("running", &self.running).finish_non_exhaustive()
    }
}

impl Run<'_> {
    /// Starts it for `user`, as the leader of a session whose terminal is a new one of this many rows and columns.
    ///
    /// # Errors
    /// When there is no terminal to be had, or it cannot be started.
    pub fn on_terminal(self, user: &User, rows: u16, columns: u16) -> Checked<Terminal> {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&keyboard)?;
        unlockpt(&keyboard)?;
        let line = ptsname(&keyboard, Vec::new())?;
        let line = open(line, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
        tcsetwinsize(&keyboard, size(rows, columns))?;
        rustix::io::ioctl_fionbio(&keyboard, true)?;
        let running = self.under("setsid", &["--ctty"]).as_user(user).start_on(line)?;
        let screen = vt100::Parser::new(least_one(rows), least_one(columns), 0);
        Ok(Terminal { keyboard, screen, bytes: Vec::new(), running })
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn least_one(cells: u16) -> NonZero<u16> {
    NonZero::new(cells).unwrap_or(NonZero::<u16>::MIN)
}

impl Terminal {
    /// The program that was started.
    pub fn running(&mut self) -> &mut Running {
        &mut self.running
    }

    /// What the screen shows now: a line for each of its rows, without spaces at their ends and empty rows at its
    /// own.
    ///
    /// # Errors
    /// The terminal's.
    pub fn screen(&mut self) -> Checked<String> {
        self.look()?;
        let screen = self.screen.screen();
        let (_, columns) = screen.size();
        let rows: Vec<String> = screen.rows(0, columns.get()).map(|row| row.trim_end().to_owned()).collect();
        Ok(rows.join("\n").trim_end().to_owned())
    }

    /// Waits until the screen is as wanted, half a minute at most, and returns what it shows.
    ///
    /// # Errors
    /// With what it shows, when that is not what was waited for.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> Checked<String> {
        let start = Stopwatch::start();
        loop {
            let screen = self.screen()?;
            if wanted(&screen) {
                return Ok(screen);
            }
            if start.elapsed() > Duration::from_secs(30) {
                return Err(Trouble::new(format!("{what} is never shown; the screen:\n{screen}")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Types; `\x03` is Ctrl-C, `\x1a` Ctrl-Z.
    ///
    /// # Errors
    /// The terminal's.
    pub fn type_in(&self, keys: &str) -> Checked {
        let mut keys = keys.as_bytes();
        while !keys.is_empty() {
            let typed = rustix::io::write(&self.keyboard, keys)?;
            keys = keys.get(typed..).unwrap_or_default();
        }
        Ok(())
    }

    /// Gives it another size; the kernel tells the program in its foreground.
    ///
    /// # Errors
    /// The terminal's.
    pub fn resize(&mut self, rows: u16, columns: u16) -> Checked {
        tcsetwinsize(&self.keyboard, size(rows, columns))?;
        self.look()?;
        self.screen.screen_mut().set_size(least_one(rows), least_one(columns));
        Ok(())
    }

    /// Forgets what the screen shows: what it shows from now on was drawn after this.
    ///
    /// # Errors
    /// The terminal's.
    pub fn clear(&mut self) -> Checked {
        self.look()?;
        let (rows, columns) = self.screen.screen().size();
        self.screen = vt100::Parser::new(rows, columns, 0);
        Ok(())
    }

    /// Whether what is typed is shown.
    ///
    /// # Errors
    /// The terminal's.
    pub fn echoes(&self) -> Checked<bool> {
        Ok(tcgetattr(&self.keyboard)?.local_modes.contains(LocalModes::ECHO))
    }

    /// Waits for the program's end. The outcome's standard output is all that was ever written; the screen shows
    /// what is left of it.
    ///
    /// # Errors
    /// When it runs longer than it may; it is killed then.
    pub fn end(mut self) -> Checked<(Outcome, String)> {
        // A terminal that nobody reads takes no more output, and the program would wait.
        while self.running.is_running()? && !self.running.is_late() {
            self.look()?;
            std::thread::sleep(Duration::from_millis(5));
        }
        let screen = self.screen()?;
        let stdout = String::from_utf8_lossy(&self.bytes).into_owned();
        Ok((Outcome { stdout, ..self.running.end()? }, screen))
    }

    /// Takes what was written since the last look.
    fn look(&mut self) -> Checked {
        let mut buffer = [0; 4096];
        loop {
            match rustix::io::read(&self.keyboard, &mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => {
                    let new = buffer.get(..length).unwrap_or_default();
                    self.screen.process(new);
                    self.bytes.extend_from_slice(new);
                }
                // EIO: nobody has the other end open.
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::IO) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
