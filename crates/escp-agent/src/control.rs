//! The control channel of a session: frames over ssh's standard input and output, or any pair of pipes.

use crate::link::{HangUp, SessionError};
use crate::status;
use escp_proto::control::dialogue::{Dialogue, Input};
use escp_proto::control::{ControlFailure, ControlMessage, FrameReader, Hello, Job};
use escp_proto::{ProtocolError, Side};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// How long writing one small frame may take before the other side counts as gone.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// How long this side may take to see the agreed end after the other one has said goodbye.
const BYE_GRACE: Duration = Duration::from_secs(10);

/// Why nothing more comes over a control channel.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It ended between two frames, or before the first.
    #[error("the control channel was closed")]
    Closed,
    /// Reading or writing failed.
    #[error("the control channel failed: {0}")]
    Io(#[from] io::Error),
    /// The other side broke the protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// Nothing came in time.
    #[error("nothing came over the control channel for {} s", .0.as_secs())]
    Silent(Duration),
}

impl ControlError {
    /// What this means to a session with `peer` (a host's name, or "the near side").
    #[must_use]
    pub fn for_session(self, peer: &str) -> SessionError {
        let status = match &self {
            Self::Closed | Self::Io(_) | Self::Silent(_) => status::LOST,
            Self::Protocol(_) => status::INTEGRITY,
        };
        let text = match self {
            Self::Closed => format!("the connection to {peer} was lost: its control channel ended"),
            Self::Io(error) => format!("the connection to {peer} was lost: {error}"),
            Self::Silent(time) => format!("{peer} said nothing for {} s", time.as_secs()),
            Self::Protocol(error) => {
                format!("{peer} broke the protocol on the control channel: {error}")
            }
        };
        SessionError { status, text }
    }
}

/// The receiving half of a control channel.
#[derive(Debug)]
pub struct ControlReader<R> {
    inner: R,
    frames: FrameReader,
    /// What may come now.
    dialogue: Dialogue,
    chunk: Vec<u8>,
    began: bool,
}

impl<R: AsyncRead + Unpin> ControlReader<R> {
    /// A channel of which `side` has read nothing.
    pub fn new(inner: R, side: Side) -> Self {
        let dialogue = Dialogue::new(side);
        Self { inner, frames: FrameReader::new(), dialogue, chunk: vec![0; 8 * 1024], began: false }
    }

    /// The next frame's body. Safe to drop and call again.
    ///
    /// # Errors
    /// [`ControlError::Closed`] at an end between frames, [`ControlError::Protocol`] for an end inside one
    /// and for anything that is no frame.
    pub async fn frame(&mut self) -> Result<Vec<u8>, ControlError> {
        loop {
            if let Some(body) = self.frames.next()? {
                return Ok(body);
            }
            let count = match self.inner.read(&mut self.chunk).await {
                Ok(count) => count,
                // A pseudo-terminal or a reset socket says its end like this.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
                Err(error) => return Err(error.into()),
            };
            if count == 0 {
                if self.began {
                    self.frames.finish()?;
                }
                return Err(ControlError::Closed);
            }
            self.began = true;
            self.frames.push(self.chunk.get(..count).unwrap_or_default());
        }
    }

    /// The first frame: the peer's hello, and the frame's bytes as they enter the transcript.
    ///
    /// # Errors
    /// As [`ControlReader::frame`]; [`ControlError::Silent`] when it does not come within `deadline`.
    pub async fn hello(&mut self, deadline: Duration) -> Result<(Hello, Vec<u8>), ControlError> {
        let body = timeout(deadline, self.frame()).await.map_err(|_| ControlError::Silent(deadline))??;
        self.dialogue.on(Input::Hello)?;
        Ok((Hello::decode_body(&body)?, Hello::frame_of(&body)?))
    }

    /// Takes the next frame for one in another version's words, unread.
    ///
    /// # Errors
    /// As [`ControlReader::frame`]; [`ControlError::Silent`] when it does not come within `deadline`.
    pub async fn pass_over(&mut self, deadline: Duration) -> Result<(), ControlError> {
        timeout(deadline, self.frame()).await.map_err(|_| ControlError::Silent(deadline))??;
        Ok(())
    }

    /// The next message, if it may come now.
    ///
    /// # Errors
    /// As [`ControlReader::frame`].
    pub async fn message(&mut self) -> Result<ControlMessage, ControlError> {
        let message = ControlMessage::decode(&self.frame().await?)?;
        self.dialogue.on(Input::from(&message))?;
        Ok(message)
    }

    /// The next message, which must come within `deadline`.
    ///
    /// # Errors
    /// As [`ControlReader::frame`], and [`ControlError::Silent`].
    pub async fn message_within(&mut self, deadline: Duration) -> Result<ControlMessage, ControlError> {
        timeout(deadline, self.message()).await.map_err(|_| ControlError::Silent(deadline))?
    }
}

/// The sending half of a control channel.
#[derive(Debug)]
pub struct ControlWriter<W> {
    inner: W,
}

impl<W: AsyncWrite + Unpin> ControlWriter<W> {
    /// A channel on which nothing has been said.
    pub fn new(inner: W) -> Self {
        Self { inner }
    }

    /// Sends a hello and returns its frame's bytes as they enter the transcript.
    ///
    /// # Errors
    /// As [`ControlWriter::send`].
    pub async fn hello(&mut self, hello: &Hello) -> Result<Vec<u8>, ControlError> {
        let frame = hello.encode_frame();
        self.write(&frame).await?;
        Ok(frame)
    }

    /// Sends a hello and a job in one go.
    ///
    /// # Errors
    /// As [`ControlWriter::send`].
    pub async fn hello_and_job(&mut self, hello: &Hello, job: Job) -> Result<(), ControlError> {
        let job = ControlMessage::Job(job).encode_frame()?;
        self.write(&[hello.encode_frame(), job].concat()).await
    }

    /// Sends a message.
    ///
    /// # Errors
    /// [`ControlError::Io`], also when the other side is gone; [`ControlError::Silent`] when it does not
    /// read.
    pub async fn send(&mut self, message: &ControlMessage) -> Result<(), ControlError> {
        let frame = message.encode_frame()?;
        self.write(&frame).await
    }

    /// Tells the other side why this one gives up, if it still listens.
    pub async fn send_failure(&mut self, error: &SessionError) {
        let failure = ControlFailure { status: error.status.max(1), text: error.text.clone() };
        if let Err(gone) = self.send(&ControlMessage::Failed(failure)).await {
            tracing::debug!("could not say why over the control channel: {gone}");
        }
    }

    async fn write(&mut self, frame: &[u8]) -> Result<(), ControlError> {
        let writing = async {
            self.inner.write_all(frame).await?;
            self.inner.flush().await
        };
        Ok(timeout(WRITE_DEADLINE, writing).await.map_err(|_| ControlError::Silent(WRITE_DEADLINE))??)
    }
}

/// How a session's control channel ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ChannelEnd {
    /// The near side said goodbye: all is done.
    Bye,
    /// The other side gave up and said why, in the words for this side's user.
    Failed(SessionError),
    /// It broke off, or the protocol was broken.
    Broken(SessionError),
}

/// A task that reads a control channel on which nothing but its end is due. An end that is no goodbye is
/// said to the whole session at once. Dropping this stops the reading.
#[derive(Debug)]
pub(crate) struct Monitor {
    end: watch::Receiver<Option<ChannelEnd>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Monitor {
    /// Starts reading. `peer` names the other side in sentences.
    pub(crate) fn start<R: AsyncRead + Unpin + Send + 'static>(
        mut reader: ControlReader<R>,
        peer: String,
        hang_up: watch::Sender<Option<HangUp>>,
    ) -> Self {
        let (say_end, end) = watch::channel(None);
        let task = tokio::spawn(async move {
            let end = match reader.message().await {
                Ok(ControlMessage::Bye) => ChannelEnd::Bye,
                Ok(ControlMessage::Failed(failure)) => ChannelEnd::Failed(peer_failure(&peer, &failure)),
                Ok(message) => ChannelEnd::Broken(out_of_turn(&message).for_session(&peer)),
                Err(error) => ChannelEnd::Broken(error.for_session(&peer)),
            };
            say_end.send_replace(Some(end.clone()));
            let why = match end {
                ChannelEnd::Failed(error) | ChannelEnd::Broken(error) => error,
                ChannelEnd::Bye => {
                    // The other side is content; so is this one in a moment, or it never will be.
                    sleep(BYE_GRACE).await;
                    SessionError { status: status::LOST, text: format!("{peer} left before the end") }
                }
            };
            raise(&hang_up, HangUp { status: why.status, text: why.text });
        });
        Self { end, task }
    }

    /// How the channel ended, if it has.
    pub(crate) fn end(&self) -> Option<ChannelEnd> {
        self.end.borrow().clone()
    }

    /// Waits at most `time` for the channel's end.
    pub(crate) async fn end_within(&mut self, time: Duration) -> Option<ChannelEnd> {
        let end = timeout(time, self.end.wait_for(Option::is_some)).await.ok()?.ok()?;
        end.clone()
    }
}

/// The error for a message that the dialogue lets pass and that nobody waits for.
pub(crate) fn out_of_turn(message: &ControlMessage) -> ControlError {
    let what = Input::from(message).name();
    ProtocolError::IllegalState { what, state: "a control channel where another message is due" }.into()
}

/// What the other side's reason means on this side.
pub(crate) fn peer_failure(peer: &str, failure: &ControlFailure) -> SessionError {
    SessionError { status: status::from_peer(failure.status), text: format!("{peer}: {}", failure.text) }
}

/// Says that the session has to stop, unless something graver has been said.
pub fn raise(hang_up: &watch::Sender<Option<HangUp>>, why: HangUp) {
    hang_up.send_if_modified(|said| {
        let graver = said.as_ref().is_none_or(|said| status::graver(why.status, said.status));
        if graver {
            *said = Some(why);
        }
        graver
    });
}

/// Waits until the session has to stop.
pub(crate) async fn hung_up(hang_up: &mut watch::Receiver<Option<HangUp>>) -> SessionError {
    match hang_up.wait_for(Option::is_some).await.map(|said| said.clone()) {
        Ok(Some(HangUp { status, text })) => SessionError { status, text },
        // Nobody is left who could say so: then nothing stops the session from outside.
        _ => std::future::pending().await,
    }
}
