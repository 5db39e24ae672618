//! Stream 0: control records, both ways, on the control runtime.
//!
//! It carries no file data, so that a slow disk behind file data never looks like a dead peer.

use crate::lane::ProvenLane;
use crate::pipeline::LaneError;
use escp_crypto::{Opener, Sealer};
use escp_proto::message::{Codec, EngineMessage, Message};
use escp_proto::record::{IV_LEN, Iv, Kind, TAG_LEN};
use escp_proto::stream::{self, PeerRole, Received};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

/// Messages of the peer that wait for the control task; beyond it, the peer waits.
const INBOUND_QUEUE: usize = 64;
/// Messages that wait for the network; beyond it, the agent waits.
const OUTBOUND_QUEUE: usize = 64;

/// What the reader brings.
#[derive(Debug)]
pub(crate) enum Inbound {
    Message(Message),
    /// Nothing more will come, and this is why.
    Over(LaneError),
}

/// The control task's ends of stream 0.
pub(crate) struct ControlStream {
    pub(crate) inbound: mpsc::Receiver<Inbound>,
    pub(crate) outbound: mpsc::Sender<Message>,
    /// Ends when the last message is on its way and the writing half is shut down.
    pub(crate) writer: tokio::task::JoinHandle<()>,
}

impl ControlStream {
    pub(crate) fn start(lane: ProvenLane, peer: PeerRole) -> Self {
        let (read_half, write_half) = lane.socket.into_split();
        let (inbound_tx, inbound) = mpsc::channel(INBOUND_QUEUE);
        let (outbound, outbound_rx) = mpsc::channel(OUTBOUND_QUEUE);
        tokio::spawn(read(read_half, lane.opener, stream::Inbound::new(0, peer), inbound_tx));
        let writer = tokio::spawn(async move {
            if let Err(error) = write(write_half, lane.sealer, outbound_rx).await {
                // The reader meets the same loss and reports it, with the last words of the peer before it.
                tracing::debug!(%error, "stream 0 cannot be written");
            }
        });
        Self { inbound, outbound, writer }
    }
}

async fn read(
    mut socket: OwnedReadHalf,
    mut opener: Opener,
    mut table: stream::Inbound,
    inbound: mpsc::Sender<Inbound>,
) {
    let mut codec = Codec::default();
    loop {
        let (item, last) = match next(&mut socket, &mut opener, &mut table, &mut codec).await {
            Ok(message) => (Inbound::Message(message), false),
            Err(error) => (Inbound::Over(error), true),
        };
        if inbound.send(item).await.is_err() || last {
            return;
        }
    }
}

async fn next(
    socket: &mut OwnedReadHalf,
    opener: &mut Opener,
    table: &mut stream::Inbound,
    codec: &mut Codec,
) -> Result<Message, LaneError> {
    let mut iv_bytes = [0_u8; IV_LEN];
    if let Err(error) = socket.read_exact(&mut iv_bytes).await {
        // Between two records the table knows whether this is an end; inside one it never is.
        if error.kind() == io::ErrorKind::UnexpectedEof {
            table.on(Received::Eof)?;
        }
        return Err(lost(error));
    }
    let word = u64::from_be_bytes(iv_bytes);
    let iv = Iv::decode(word, 0)?;
    if iv.kind != Kind::Metadata {
        return Err(LaneError::integrity("the peer broke the protocol: file data on stream 0"));
    }
    let mut sealed = vec![0_u8; iv.length as usize + TAG_LEN];
    socket.read_exact(&mut sealed).await.map_err(lost)?;
    let payload = opener.open(iv.sequence, word, &mut sealed)?;
    let message = codec.decode(payload)?;
    table.on(Received::Message(&message))?;
    Ok(message)
}

fn lost(error: io::Error) -> LaneError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => LaneError::closed(),
        _ => LaneError::network("receiving", &error),
    }
}

async fn write(
    mut socket: OwnedWriteHalf,
    mut sealer: Sealer,
    mut outbound: mpsc::Receiver<Message>,
) -> Result<(), LaneError> {
    let mut codec = Codec::default();
    let mut record = Vec::new();
    let mut ended = false;
    loop {
        let message = match outbound.recv().await {
            Some(message) => message,
            // The session's end was said: the stream's follows.
            None if std::mem::take(&mut ended) => {
                Message::Engine(EngineMessage::Close { records: sealer.count() })
            }
            None => break,
        };
        ended |= matches!(message, Message::Engine(EngineMessage::End { .. }));
        let payload = codec.encode(&message)?;
        let sequence = sealer.next_sequence()?;
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let iv = Iv { kind: Kind::Metadata, length, sequence: sequence.number() }.encode()?;
        record.clear();
        record.extend_from_slice(&iv.to_be_bytes());
        record.extend_from_slice(&payload);
        let tag = sealer.seal(sequence, iv, &mut record[IV_LEN..])?;
        record.extend_from_slice(&tag);
        socket.write_all(&record).await.map_err(|error| LaneError::network("sending", &error))?;
    }
    socket.shutdown().await.map_err(|error| LaneError::network("closing", &error))
}
