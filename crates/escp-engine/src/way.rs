//! The way between the hosts: its congestion control, and what on the hosts keeps streams from filling it.

use crate::shared::{LaneState, Shared};
use escp_engine_api::{Failure, Fault};
use escp_sys::socket::Way;
use socket2::{Domain, Socket, Type};
use std::collections::HashMap;
use std::io;
use std::time::Duration;

/// How often the lanes are judged, in milliseconds.
const LOOK_EVERY_MS: u64 = 1_000;
/// A limit counts when it held the streams back for more than this share of the time they were busy (one that is
/// always met shows as a third or more of it: the kernel counts the moments in which nothing may leave)...
const SHARE: f64 = 0.2;
/// ...in so many looks in a row: buffers grow while a stream starts.
const LOOKS: u32 = 2;
/// A way shorter than this is filled by any buffer.
const WORTH_A_WORD: Duration = Duration::from_millis(2);
/// Where so many times the shortest round trip is spent on the way, data queues on it: it is full.
const QUEUED: u32 = 2;
/// The kernel says 71 minutes before it has measured.
const UNMEASURED: Duration = Duration::from_secs(60);
/// A receiver that does not keep up (a slow disk) lets its window fall; one whose buffer is at its limit keeps it.
const STEADY: f64 = 0.75;

/// Makes sure that this host's kernel lets a session have `name`.
///
/// # Errors
/// One sentence that says what the kernel has against it.
pub(crate) fn check_congestion(name: Option<&str>) -> Result<(), Failure> {
    let Some(name) = name else { return Ok(()) };
    // Without a socket nothing can be said; the lanes will meet what is wrong.
    let Ok(socket) = Socket::new(Domain::IPV4, Type::STREAM, None) else { return Ok(()) };
    let Err(error) = socket.set_tcp_congestion(name.as_bytes()) else { return Ok(()) };
    let why = match error.kind() {
        io::ErrorKind::NotFound => {
            "the kernel here does not have it; net.ipv4.tcp_available_congestion_control names those it has"
                .into()
        }
        io::ErrorKind::PermissionDenied => {
            "the kernel here keeps it for root; add it to net.ipv4.tcp_allowed_congestion_control".into()
        }
        _ => crate::files::describe(&error),
    };
    Err(Failure { fault: Fault::Local, text: format!("congestion control {name}: {why}") })
}

/// The longest round trip of a session's lanes, each without what queues on it; zero where the kernel does not tell.
pub(crate) fn round_trip(shared: &Shared) -> Duration {
    let lanes = shared.lanes();
    let told = lanes.iter().filter_map(|lane| lane.way()).map(|way| way.shortest_round_trip);
    told.filter(|round_trip| *round_trip < UNMEASURED).max().unwrap_or_default()
}

/// Watches a sender's lanes for limits of the hosts.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    last_look: u64,
    lanes: HashMap<u16, Seen>,
    buffer: u32,
    window: u32,
    said: bool,
}

/// A lane between two looks.
#[derive(Debug)]
struct Seen {
    at_look: Way,
    now: Way,
    least_window: u64,
    most_window: u64,
}

/// What several lanes did since the last look.
#[derive(Debug, Default)]
struct Sum {
    busy: f64,
    buffer: f64,
    window: f64,
    steady: bool,
    queued: bool,
    round_trip: Duration,
    /// Bytes under way in all, by what the buffers and by what the windows allow.
    in_flight: u64,
    windows: u64,
}

impl Watch {
    /// Looks at the lanes; once in a session the answer is a sentence for the user.
    pub(crate) fn look(&mut self, shared: &Shared) -> Option<String> {
        if self.said {
            return None;
        }
        let lanes = shared.lanes();
        lanes.iter().for_each(|lane| self.sample(lane));
        let now = shared.now();
        if now - self.last_look < LOOK_EVERY_MS {
            return None;
        }
        self.last_look = now;
        let sum = self.sum();
        let idle = sum.round_trip >= WORTH_A_WORD && !sum.queued;
        let often = |limited: f64| idle && sum.busy > 0.5 && limited > sum.busy * SHARE;
        self.buffer = if often(sum.buffer) { self.buffer + 1 } else { 0 };
        self.window = if often(sum.window) && sum.steady { self.window + 1 } else { 0 };
        let (who, sysctl, bytes) = if self.buffer >= LOOKS {
            ("sending", "tcp_wmem", sum.in_flight)
        } else if self.window >= LOOKS {
            ("receiving", "tcp_rmem", sum.windows)
        } else {
            return None;
        };
        self.said = true;
        Some(sentence(who, sysctl, bytes, lanes.len(), sum.round_trip))
    }

    fn sample(&mut self, lane: &LaneState) {
        let Some(way) = lane.way() else { return };
        let new = Seen { at_look: way, now: way, least_window: way.window, most_window: way.window };
        let seen = self.lanes.entry(lane.stream).or_insert(new);
        seen.now = way;
        seen.least_window = seen.least_window.min(way.window);
        seen.most_window = seen.most_window.max(way.window);
    }

    /// Adds up what happened since the last look, and begins anew.
    fn sum(&mut self) -> Sum {
        let mut sum = Sum { steady: true, ..Sum::default() };
        for seen in self.lanes.values_mut() {
            let (was, is) = (seen.at_look, seen.now);
            let since = |value: fn(Way) -> Duration| value(is).saturating_sub(value(was)).as_secs_f64();
            sum.busy += since(|way| way.busy);
            sum.buffer += since(|way| way.buffer_limited);
            sum.window += since(|way| way.window_limited);
            #[expect(clippy::cast_precision_loss, reason = "a window is below 2^31")]
            let steady = seen.least_window as f64 >= seen.most_window as f64 * STEADY;
            sum.steady &= steady;
            sum.queued |= is.round_trip > is.shortest_round_trip * QUEUED;
            sum.round_trip = sum.round_trip.max(is.shortest_round_trip);
            sum.in_flight += is.in_flight;
            sum.windows += is.window;
            (seen.at_look, seen.least_window, seen.most_window) = (is, is.window, is.window);
        }
        sum
    }
}

fn sentence(who: &str, sysctl: &str, bytes: u64, streams: usize, round_trip: Duration) -> String {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let (bytes, seconds) = (bytes as f64, round_trip.as_secs_f64());
    format!(
        "the {who} host's TCP buffers hold the transfer back: {streams} data connections have {:.1} MB under way \
         together, over a round trip of {:.0} ms, which makes {:.0} Mb/s at most. Raise the third value of \
         net.ipv4.{sysctl} on the {who} host, or use more connections (-t)",
        bytes / 1e6,
        seconds * 1e3,
        bytes * 8.0 / seconds / 1e6,
    )
}
