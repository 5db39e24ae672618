//! Lists of any length as messages within their bounds.
//!
//! ```
//! use escp_proto::agent::{AgentMessage, Batch, messages};
//! // A whole list at once:
//! let split: Vec<AgentMessage> = messages(1..=1000_u64).collect();
//! assert_eq!(split.len(), 2); // 512 + 488 numbers
//! // Item by item; a full message comes out when the next item would not fit:
//! let mut batch = Batch::<u64>::new();
//! assert_eq!(batch.push(7), None);
//! assert_eq!(batch.take(), Some(AgentMessage::Ready(vec![7])));
//! assert_eq!(batch.take(), None);
//! ```

use super::bounds::clip_text;
use super::{AgentMessage, Entry, EntryFailure, EntryResult, FileDigest, MAX_ITEMS, MAX_MESSAGE};
use serde::Serialize;

/// Bytes of a message around its items: the variant, and a varint of at most [`MAX_ITEMS`].
const AROUND: usize = 1 + 2;

/// What travels in lists: paths in `Sources`, [`Entry`] in `Offer`, `u64` in `Ready`, [`EntryFailure`] in `Rejected`,
/// [`FileDigest`] in `Digests`, [`EntryResult`] in `Done`.
pub trait Listed: Serialize + Sized {
    /// The message that carries these items.
    fn message(items: Vec<Self>) -> AgentMessage;

    /// Cuts texts that are longer than the protocol allows.
    fn clip(&mut self) {}
}

impl Listed for Entry {
    fn message(items: Vec<Self>) -> AgentMessage {
        AgentMessage::Offer(items)
    }
}

impl Listed for Vec<u8> {
    fn message(items: Vec<Self>) -> AgentMessage {
        AgentMessage::Sources(items)
    }
}

impl Listed for u64 {
    fn message(items: Vec<Self>) -> AgentMessage {
        AgentMessage::Ready(items)
    }
}

impl Listed for EntryFailure {
    fn message(items: Vec<Self>) -> AgentMessage {
        AgentMessage::Rejected(items)
    }

    fn clip(&mut self) {
        clip_text(&mut self.text);
    }
}

impl Listed for FileDigest {
    fn message(items: Vec<Self>) -> AgentMessage {
        AgentMessage::Digests(items)
    }

    fn clip(&mut self) {
        self.outcome.as_mut().err().into_iter().for_each(clip_text);
    }
}

impl Listed for EntryResult {
    fn message(items: Vec<Self>) -> AgentMessage {
        AgentMessage::Done(items)
    }

    fn clip(&mut self) {
        self.outcome.as_mut().err().into_iter().for_each(|failure| clip_text(&mut failure.text));
    }
}

/// Collects items into one message at a time, never over [`MAX_ITEMS`] or [`MAX_MESSAGE`].
#[derive(Debug)]
pub struct Batch<T> {
    items: Vec<T>,
    bytes: usize,
}

impl<T: Listed> Default for Batch<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Listed> Batch<T> {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self { items: Vec::new(), bytes: AROUND }
    }

    /// Adds an item, its texts cut to their bounds. If it no longer fits the message at hand, that message
    /// comes back and the item starts the next one; the order of items is kept.
    #[must_use = "a full message has to be sent"]
    pub fn push(&mut self, mut item: T) -> Option<AgentMessage> {
        item.clip();
        // An item that cannot be measured is left to `AgentMessage::encode` to refuse.
        let bytes = postcard::experimental::serialized_size(&item).unwrap_or(MAX_MESSAGE);
        let full = self.items.len() >= MAX_ITEMS || self.bytes + bytes > MAX_MESSAGE;
        let message = if full { self.take() } else { None };
        self.items.push(item);
        self.bytes += bytes;
        message
    }

    /// What has been collected since the last message, as a message; `None` when that is nothing.
    #[must_use = "the message has to be sent"]
    pub fn take(&mut self) -> Option<AgentMessage> {
        self.bytes = AROUND;
        let items = std::mem::take(&mut self.items);
        if items.is_empty() { None } else { Some(T::message(items)) }
    }

    /// Items of the message at hand.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Nothing has been collected since the last message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

/// Splits `items`, in their order, into as few messages as hold them. Each of them encodes, provided each
/// item is within its bounds.
pub fn messages<T: Listed>(items: impl IntoIterator<Item = T>) -> impl Iterator<Item = AgentMessage> {
    let mut batch = Batch::new();
    let mut items = items.into_iter();
    std::iter::from_fn(move || {
        for item in items.by_ref() {
            if let Some(message) = batch.push(item) {
                return Some(message);
            }
        }
        batch.take()
    })
}
