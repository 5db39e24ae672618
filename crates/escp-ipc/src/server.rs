//! The daemon's end: a worker serves one session.

use crate::channel::{Channel, FrameBuffer};
use crate::client::is_final;
use crate::frame::{FrameError, decode_command, encode_event};
use crate::hello::{Hello, VERSION};
use escp_engine_api::{Command, EngineHandle, Event, Failure, Fault};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How long an agent may take to answer the hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait, after the last event, for the agent to take it and hang up.
const LINGER: Duration = Duration::from_secs(2);

/// How a session of a worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServeEnd {
    /// Both sides agreed on the end.
    Ended {
        /// Files moved.
        files: u64,
    },
    /// The engine gave up; the agent was told the same.
    Failed(Failure),
    /// The agent hung up before the end.
    AgentGone,
    /// The agent broke the rules of the socket, or is of another version.
    Refused(String),
}

/// Serves the agent at the other end of `socket` with `engine`, to the end. The engine is dropped, and so
/// aborted if it still runs, before this returns.
pub async fn serve(socket: OwnedFd, engine: EngineHandle) -> ServeEnd {
    let channel = match Channel::new(socket) {
        Ok(channel) => channel,
        Err(error) => return ServeEnd::Refused(format!("the agent's connection cannot be used: {error}")),
    };
    let mut buffer = FrameBuffer::new();
    if let Err(end) = greet(&channel, &mut buffer).await {
        return end;
    }
    let EngineHandle { commands, mut events } = engine;
    let end = tokio::select! {
        end = take_commands(&channel, &mut buffer, commands) => end,
        end = hand_events(&channel, &mut events) => end,
    };
    drop(events);
    if let ServeEnd::Refused(why) = &end {
        let failure = Failure { fault: Fault::Local, text: format!("escpd ends this session: {why}") };
        let _ = timeout(LINGER, send_event(&channel, Event::Failed(failure))).await;
    }
    if end != ServeEnd::AgentGone {
        // Closing with something unread would take the last event away from the agent.
        let _ = timeout(LINGER, drain(&channel, &mut buffer)).await;
    }
    end
}

async fn greet(channel: &Channel, buffer: &mut FrameBuffer) -> Result<(), ServeEnd> {
    if channel.send(&Hello::ours().encode(), &[]).await.is_err() {
        return Err(ServeEnd::AgentGone);
    }
    match timeout(HELLO_TIMEOUT, channel.receive(buffer)).await {
        Err(_) => return Err(ServeEnd::Refused("the agent says nothing".to_owned())),
        Ok(Ok(None)) => return Err(ServeEnd::AgentGone),
        Ok(Err(error)) => return Err(ServeEnd::Refused(unreadable(&error))),
        Ok(Ok(Some(_descriptors))) => {}
    }
    match Hello::decode(buffer.frame()) {
        Ok(theirs) if theirs == Hello::ours() => Ok(()),
        Ok(Hello::Welcome { version, .. }) => {
            Err(ServeEnd::Refused(format!("the agent speaks socket protocol {version}, this is {VERSION}")))
        }
        _ => Err(ServeEnd::Refused("the agent's first packet is not a hello".to_owned())),
    }
}

/// Ends when the agent hangs up or breaks the rules.
async fn take_commands(
    channel: &Channel,
    buffer: &mut FrameBuffer,
    commands: mpsc::Sender<Command>,
) -> ServeEnd {
    loop {
        let descriptors = match channel.receive(buffer).await {
            Ok(Some(descriptors)) => descriptors,
            Ok(None) => return ServeEnd::AgentGone,
            Err(error) => return ServeEnd::Refused(unreadable(&error)),
        };
        let command = decode_command(buffer.frame(), descriptors.len())
            .and_then(|frame| frame.with_descriptors(descriptors));
        buffer.wipe();
        match command {
            // An engine that is through takes no more; its final event is on its way.
            Ok(command) => drop(commands.send(command).await),
            Err(error) => return ServeEnd::Refused(format!("the agent sent {error}")),
        }
    }
}

fn unreadable(error: &io::Error) -> String {
    format!("a packet of the agent was lost: {error}")
}

/// Ends with the engine's final event.
async fn hand_events(channel: &Channel, events: &mut mpsc::Receiver<Event>) -> ServeEnd {
    loop {
        let event = events.recv().await.unwrap_or_else(|| {
            let text = "the engine in escpd ended without a word".to_owned();
            Event::Failed(Failure { fault: Fault::Local, text })
        });
        let end = match &event {
            Event::Ended { files, .. } => Some(ServeEnd::Ended { files: *files }),
            Event::Failed(failure) => Some(ServeEnd::Failed(failure.clone())),
            _ => None,
        };
        debug_assert_eq!(end.is_some(), is_final(&event));
        let sent = send_event(channel, event).await;
        match (end, sent) {
            (Some(end), _) => return end,
            (None, Ok(())) => {}
            (None, Err(SendError::Frame(error))) => {
                return ServeEnd::Refused(format!("an event does not fit the socket: {error}"));
            }
            (None, Err(SendError::Socket)) => return ServeEnd::AgentGone,
        }
    }
}

enum SendError {
    Frame(FrameError),
    Socket,
}

async fn send_event(channel: &Channel, event: Event) -> Result<(), SendError> {
    for outgoing in encode_event(event).map_err(SendError::Frame)? {
        channel.send(&outgoing.frame, &[]).await.map_err(|_| SendError::Socket)?;
    }
    Ok(())
}

/// Reads until the agent hangs up; what comes is dropped, descriptors included.
async fn drain(channel: &Channel, buffer: &mut FrameBuffer) {
    while let Ok(Some(_descriptors)) = channel.receive(buffer).await {}
}
