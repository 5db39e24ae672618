//! What happens by the clock, and what the peer's engine says about it: acknowledgements, keepalives, silence,
//! and the end.

use crate::clock::TELL_AFTER_MS;
use crate::meter::Counter;
use crate::session::Session;
use escp_engine_api::{Direction, Event, Fault, PEER_GAVE_UP, Progress, Stage, Summary};
use escp_proto::message::{EngineMessage, Message};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Stream 0 never goes longer without a word.
const KEEPALIVE_MS: u64 = 5_000;
/// How late a keepalive may be without meaning anything.
const SLACK_MS: u64 = 1_000;
const TELL_AGAIN_MS: u64 = 5_000;
/// A data stream is given up after so much silence of its way while stream 0 is alive.
const STREAM_LIMIT: Duration = Duration::from_secs(30);
/// A session is given up after so much silence.
const SESSION_LIMIT_MS: u64 = 180_000;
/// All lanes must be up within this time of the first, or of the job.
const CONNECT_LIMIT_MS: u64 = 60_000;
/// How long the peer's own reason for a lost lane is waited for.
const REASON_GRACE: Duration = Duration::from_millis(500);
impl Session {
    pub(crate) async fn tick(&mut self) {
        let now = self.shared.now();
        if let Some((_, error)) = self.loss.take_if(|(since, _)| since.elapsed() >= REASON_GRACE) {
            self.shared.fail(error.fault, error.text);
            return;
        }
        if !self.clock.connected {
            if now > CONNECT_LIMIT_MS {
                let (up, due) = (self.lanes_up, self.shared.options.streams);
                let text =
                    format!("only {up} of {due} data connections came within {} s", CONNECT_LIMIT_MS / 1000);
                self.shared.fail(Fault::Connect, text);
            }
            return;
        }
        self.acknowledge();
        if now.saturating_sub(self.clock.said) >= KEEPALIVE_MS {
            self.say(EngineMessage::Keepalive);
        }
        self.progress().await;
        self.look_at_the_way().await;
        self.listen_for_silence(now).await;
        self.look_for_a_standstill(now).await;
    }

    /// Sends an engine message if there is room; everything said here is said again later if there is none.
    fn say(&mut self, message: EngineMessage) -> bool {
        let Some(control) = &self.control else { return false };
        let sent = control.outbound.try_send(Message::Engine(message)).is_ok();
        if sent {
            self.clock.said(&self.shared);
        }
        sent
    }

    fn acknowledge(&mut self) {
        if self.shared.options.direction != Direction::Receive || self.end_sent {
            return;
        }
        for lane in self.shared.lanes() {
            let records = lane.records.load(Relaxed);
            let known = self.clock.acknowledged.get(&lane.stream).copied().unwrap_or(0);
            if records > known && self.say(EngineMessage::Ack { stream: lane.stream, records }) {
                self.clock.acknowledged.insert(lane.stream, records);
            }
        }
    }

    /// Says once what on these hosts keeps streams from filling the way between them.
    async fn look_at_the_way(&mut self) {
        if self.shared.options.direction == Direction::Send
            && let Some(text) = self.watch.look(&self.shared)
        {
            self.emit(Event::Remark(text)).await;
        }
    }

    async fn progress(&mut self) {
        let meter = &self.shared.meter;
        let files = match self.shared.options.direction {
            Direction::Send => meter.get(Counter::FilesSent),
            Direction::Receive => meter.get(Counter::FilesReceived),
        };
        let progress = Progress {
            counters: self.clock.counters(&self.shared),
            files: files + meter.get(Counter::FilesFailed),
        };
        if progress != self.clock.last_progress {
            self.clock.last_progress = progress;
            self.emit(Event::Progress(progress)).await;
        }
    }

    /// Says once that data stands still though the peer lives, and once that it moves again.
    async fn look_for_a_standstill(&mut self, now: u64) {
        if now.saturating_sub(self.clock.heard) > KEEPALIVE_MS + SLACK_MS {
            self.standstill.rest(now);
        } else if let Some(text) = self.standstill.look(&self.shared, now, &self.clock.last_progress) {
            self.emit(Event::Remark(text)).await;
        }
    }

    async fn listen_for_silence(&mut self, now: u64) {
        let silent = now.saturating_sub(self.clock.heard);
        if silent >= SESSION_LIMIT_MS {
            let text = format!("nothing was heard from the other side for {} s", SESSION_LIMIT_MS / 1000);
            self.shared.fail(Fault::Lost, text);
        } else if silent >= TELL_AFTER_MS && now - self.clock.told >= TELL_AGAIN_MS {
            self.clock.told = now;
            let seconds = u32::try_from(silent / 1000).unwrap_or(u32::MAX);
            self.emit(Event::Silent { seconds, stage: self.shared.stage() }).await;
        } else if silent < TELL_AFTER_MS && self.shared.options.direction == Direction::Receive {
            self.give_up_dead_lanes();
        }
    }

    /// A data stream that waits for the network, and whose way is dead while stream 0 talks.
    fn give_up_dead_lanes(&self) {
        for lane in self.shared.lanes() {
            let waiting = self.shared.now().saturating_sub(lane.heard());
            let suspicious =
                lane.stage() == Stage::Receive && u128::from(waiting) >= STREAM_LIMIT.as_millis();
            if suspicious && !lane.closed.load(Relaxed) && lane.silent_for() >= STREAM_LIMIT {
                let (stream, seconds) = (lane.stream, STREAM_LIMIT.as_secs());
                self.shared.fail(Fault::Lost, format!("nothing came on stream {stream} for {seconds} s"));
            }
        }
    }

    pub(crate) fn engine_message(&mut self, message: EngineMessage) {
        let shared = &self.shared;
        match message {
            EngineMessage::Keepalive => {}
            EngineMessage::Ack { stream, records } => self.acknowledged(stream, records),
            EngineMessage::End { files, list_hash } => self.peer_end = Some(Summary { files, list_hash }),
            // The peer saw the agreed end a moment before this side.
            EngineMessage::Close { .. } => {}
            EngineMessage::Abort { status, reason } => {
                let fault = match status {
                    5 => Fault::Integrity,
                    4 => Fault::Lost,
                    3 => Fault::Connect,
                    _ => Fault::PeerAborted,
                };
                shared.fail(fault, format!("{PEER_GAVE_UP}{reason}"));
            }
        }
    }

    fn acknowledged(&self, stream: u16, records: u64) {
        let lanes = self.shared.lanes();
        let lane = lanes.iter().find(|lane| lane.stream == stream);
        let plausible = self.shared.options.direction == Direction::Send
            && lane.is_some_and(|lane| {
                // The record may be counted here only after the peer has acknowledged it.
                records <= lane.records.load(Relaxed) + 1 && records >= lane.acknowledged.load(Relaxed)
            });
        match lane {
            Some(lane) if plausible => lane.acknowledged.store(records, Relaxed),
            _ => self.shared.fail(
                Fault::Integrity,
                format!("the peer broke the protocol: it acknowledged {records} records of stream {stream}"),
            ),
        }
    }

    /// Says that this side is done, when it is; true when both sides said so and agree.
    pub(crate) fn try_end(&mut self) -> bool {
        let Some(summary) = self.summary else { return false };
        if !self.end_sent {
            let lanes = self.shared.lanes();
            let streams = self.shared.options.streams;
            let through =
                |lane: &std::sync::Arc<crate::shared::LaneState>| match self.shared.options.direction {
                    Direction::Send => lane.acknowledged.load(Relaxed) == lane.records.load(Relaxed),
                    Direction::Receive => true,
                };
            if self.lanes_over < streams || !lanes.iter().all(through) {
                return false;
            }
            self.acknowledge();
            let Summary { files, list_hash } = summary;
            self.end_sent = self.all_acknowledged() && self.say(EngineMessage::End { files, list_hash });
        }
        let Some(peer) = self.peer_end.filter(|_| self.end_sent) else { return false };
        if peer != summary {
            self.shared.fail(
                Fault::Integrity,
                format!(
                    "the two sides disagree about what was moved: {} files here, {} there",
                    summary.files, peer.files
                ),
            );
            return false;
        }
        true
    }

    fn all_acknowledged(&self) -> bool {
        self.shared.options.direction == Direction::Send
            || self.shared.lanes().iter().all(|lane| {
                self.clock.acknowledged.get(&lane.stream).copied().unwrap_or(0) == lane.records.load(Relaxed)
            })
    }
}
