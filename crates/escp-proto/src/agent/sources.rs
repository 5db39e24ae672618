//! The sources of a download, of which there may be more than one message holds.

use super::bounds::at_most;
use super::{AgentMessage, Request, Transfer, messages};
use crate::ProtocolError;

/// Most bytes of all sources of a download: no command line of Linux is longer (execve(2)).
pub const MAX_SOURCES_BYTES: usize = 6 * 1024 * 1024;
/// Most sources of a download. Each takes 12 bytes of a command line at least.
pub const MAX_SOURCES: usize = MAX_SOURCES_BYTES / 12;

impl Request {
    /// The messages that say this request, in their order: itself, and before it the sources that do not fit in.
    ///
    /// # Errors
    /// As [`AgentMessage::encode`].
    pub fn encode(self) -> Result<Vec<Vec<u8>>, ProtocolError> {
        let whole = AgentMessage::Request(self);
        let too_large = match (whole.encode(), whole) {
            (Ok(bytes), _) => return Ok(vec![bytes]),
            (Err(_), AgentMessage::Request(request)) => request,
            (Err(error), _) => return Err(error),
        };
        let Self { transfer: Transfer::Download { mut sources }, .. } = too_large else {
            return AgentMessage::Request(too_large).encode().map(|bytes| vec![bytes]);
        };
        let last = sources.split_off(sources.len().saturating_sub(1));
        let request = Self { transfer: Transfer::Download { sources: last }, ..too_large };
        messages(sources).chain([AgentMessage::Request(request)]).map(|message| message.encode()).collect()
    }
}

/// The sources of a download as they come, within bounds.
#[derive(Debug, Default)]
pub struct SourceList {
    sources: Vec<Vec<u8>>,
    bytes: usize,
}

impl SourceList {
    /// Takes what one [`AgentMessage::Sources`] held.
    ///
    /// # Errors
    /// [`ProtocolError::TooLarge`] beyond [`MAX_SOURCES`] or [`MAX_SOURCES_BYTES`].
    pub fn add(&mut self, sources: Vec<Vec<u8>>) -> Result<(), ProtocolError> {
        self.bytes += sources.iter().map(Vec::len).sum::<usize>();
        self.sources.extend(sources);
        at_most("requested sources", self.sources.len(), MAX_SOURCES)?;
        at_most("bytes of requested sources", self.bytes, MAX_SOURCES_BYTES)
    }

    /// The request with all its sources.
    ///
    /// # Errors
    /// As [`SourceList::add`], and [`ProtocolError::Malformed`] for an upload with sources.
    pub fn complete(mut self, mut request: Request) -> Result<Request, ProtocolError> {
        match &mut request.transfer {
            Transfer::Download { sources } => {
                self.add(std::mem::take(sources))?;
                *sources = self.sources;
            }
            Transfer::Upload { .. } if !self.sources.is_empty() => {
                return Err(ProtocolError::Malformed("sources of an upload"));
            }
            Transfer::Upload { .. } => {}
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::{MAX_ITEMS, MAX_PATH};

    fn request(transfer: Transfer) -> Request {
        Request {
            transfer,
            recursive: true,
            preserve: false,
            inplace: false,
            durable: true,
            direct: true,
            checksum: true,
            dummy: false,
        }
    }

    /// What the far side makes of a request, and how many messages it took.
    fn carried(request: Request) -> Result<(Request, usize), ProtocolError> {
        let said = request.encode()?;
        let mut list = SourceList::default();
        for bytes in &said {
            match AgentMessage::decode(bytes)? {
                AgentMessage::Sources(sources) => list.add(sources)?,
                AgentMessage::Request(request) => return Ok((list.complete(request)?, said.len())),
                _ => break,
            }
        }
        Err(ProtocolError::Malformed("no request"))
    }

    #[test]
    fn sources_of_any_number_come_in_order() {
        for (count, length, expected) in
            [(1, 1, 1), (512, 6, 1), (513, 6, 2), (600, 6, 3), (20_000, 50, 41), (30, 4096, 4)]
        {
            let sources = (0..count).map(|n| format!("{n:0length$}").into_bytes()).collect();
            let asked = request(Transfer::Download { sources });
            let (got, messages) = carried(asked.clone()).unwrap();
            assert_eq!(got, asked, "{count} of {length}");
            assert_eq!(messages, expected, "{count} of {length}");
        }
        let upload = request(Transfer::Upload { target: b"t".to_vec(), directory_required: true });
        assert_eq!(carried(upload.clone()).unwrap(), (upload, 1));
    }

    #[test]
    fn what_no_message_holds_is_an_error() {
        let long = vec![b'x'; MAX_PATH + 1];
        for sources in [Vec::new(), vec![long.clone()], vec![long.clone(), b"a".to_vec()]] {
            request(Transfer::Download { sources }).encode().unwrap_err();
        }
        request(Transfer::Upload { target: long, directory_required: true }).encode().unwrap_err();
    }

    #[test]
    fn a_list_is_bounded_in_number_and_bytes() {
        let full = |list: &mut SourceList, source: Vec<u8>| {
            (0..).find(|_| list.add(vec![source.clone(); MAX_ITEMS]).is_err())
        };
        let (mut many, mut long) = (SourceList::default(), SourceList::default());
        assert_eq!(full(&mut many, Vec::new()), Some(MAX_SOURCES / MAX_ITEMS));
        assert_eq!(full(&mut long, vec![b'x'; 1024]), Some(MAX_SOURCES_BYTES / 1024 / MAX_ITEMS));
        let upload = request(Transfer::Upload { target: Vec::new(), directory_required: false });
        let mut list = SourceList::default();
        list.add(vec![b"a".to_vec()]).unwrap();
        assert!(list.complete(upload).is_err());
    }
}
