//! Every pair of state and input of every kind of stream.

use super::*;

const KINDS: [StreamKind; 2] = [StreamKind::Control, StreamKind::Data];
const PEERS: [PeerRole; 2] = [PeerRole::Sender, PeerRole::Receiver];
const STATES: [State; 4] = [State::Open, State::Ended, State::Aborted, State::Closed];
const INPUTS: [Input; 8] = [
    Input::File,
    Input::Agent,
    Input::Ack,
    Input::Keepalive,
    Input::Close,
    Input::End,
    Input::Abort,
    Input::Eof,
];

/// Everything that may come, written down a second time: kind, peer, state, input, next state. `E`, `A`,
/// `C` and `O` are the initials of the states.
const LEGAL: &str = "
    control sender   O agent O    | control sender   O keepalive O | control sender   O end E
    control sender   O abort A    | control sender   E keepalive E | control sender   E abort A
    control sender   E close C    | control sender   A eof A       | control sender   C eof C
    control receiver O agent O    | control receiver O keepalive O | control receiver O end E
    control receiver O abort A    | control receiver E keepalive E | control receiver E abort A
    control receiver E close C    | control receiver A eof A       | control receiver C eof C
    control receiver O ack O
    data    sender   O file O     | data    sender   O keepalive O | data    sender   O close C
    data    sender   A eof A      | data    sender   C eof C
    data    receiver O keepalive O| data    receiver O close C
    data    receiver A eof A      | data    receiver C eof C";

fn written(kind: StreamKind, peer: PeerRole, state: State, input: Input, next: State) -> String {
    format!("{kind:?} {peer:?} {} {input:?} {}", &format!("{state:?}")[..1], &format!("{next:?}")[..1])
        .to_lowercase()
}

#[test]
fn every_pair_is_legal_or_refused_as_written() {
    let legal: Vec<String> = LEGAL
        .split(['\n', '|'])
        .map(|rule| rule.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase())
        .filter(|rule| !rule.is_empty())
        .collect();
    let mut seen = 0;
    for kind in KINDS {
        for peer in PEERS {
            for state in STATES {
                for input in INPUTS {
                    let Some(after) = next(kind, peer, state, input) else { continue };
                    let rule = written(kind, peer, state, input, after);
                    assert!(legal.contains(&rule), "allowed but not written down: {rule}");
                    seen += 1;
                }
            }
        }
    }
    assert_eq!(seen, legal.len(), "a rule that is written down is refused");
}

fn message(input: Input, records: u64) -> Option<Message> {
    Some(Message::Engine(match input {
        Input::File | Input::Eof => return None,
        Input::Agent => return Some(Message::Agent(vec![1])),
        Input::Ack => EngineMessage::Ack { stream: 1, records: 0 },
        Input::Keepalive => EngineMessage::Keepalive,
        Input::Close => EngineMessage::Close { records },
        Input::End => EngineMessage::End { files: 0, list_hash: [0; 32] },
        Input::Abort => EngineMessage::Abort { status: 4, reason: String::new() },
    }))
}

fn give(stream: &mut Inbound, input: Input) -> Result<State, ProtocolError> {
    let message = message(input, stream.records());
    stream.on(match (&message, input) {
        (Some(message), _) => Received::Message(message),
        (None, Input::File) => Received::File,
        (None, _) => Received::Eof,
    })
}

/// A stream brought to `state` by legal inputs; `None` where there is no way.
fn stream_in(kind: StreamKind, peer: PeerRole, state: State) -> Option<Inbound> {
    let mut stream = Inbound::new(if kind == StreamKind::Control { 0 } else { 7 }, peer);
    let way: &[Input] = match (kind, state) {
        (_, State::Open) => &[],
        (StreamKind::Control, State::Ended) => &[Input::End],
        (StreamKind::Control, State::Aborted) => &[Input::Abort],
        (StreamKind::Control, State::Closed) => &[Input::End, Input::Close],
        (StreamKind::Data, State::Closed) => &[Input::Close],
        (StreamKind::Data, _) => return None,
    };
    way.iter().for_each(|&input| assert!(give(&mut stream, input).is_ok()));
    assert_eq!(stream.state(), state);
    Some(stream)
}

#[test]
fn a_stream_follows_the_table_and_an_error_changes_nothing() {
    for kind in KINDS {
        for peer in PEERS {
            for state in STATES {
                let Some(stream) = stream_in(kind, peer, state) else { continue };
                for input in INPUTS {
                    let mut copy = stream.clone();
                    let outcome = give(&mut copy, input);
                    assert_eq!(outcome.as_ref().ok().copied(), next(kind, peer, state, input));
                    if let Err(error) = outcome {
                        assert_eq!((copy.state(), copy.records()), (state, stream.records()));
                        let cut = matches!(error, ProtocolError::ClosedEarly(_));
                        assert_eq!(cut, input == Input::Eof, "{error}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_close_must_carry_the_exact_number_of_records() {
    for said in [0, 1, 3, u64::MAX] {
        let mut stream = Inbound::new(1, PeerRole::Sender);
        give(&mut stream, Input::File).unwrap();
        give(&mut stream, Input::Keepalive).unwrap();
        let close = Message::Engine(EngineMessage::Close { records: said });
        let error = stream.on(Received::Message(&close)).unwrap_err();
        assert_eq!(error, ProtocolError::Count { what: "records of a stream", said, came: 2 });
        assert!(!stream.is_over());
        assert_eq!(give(&mut stream, Input::Close), Ok(State::Closed));
        assert_eq!(stream.records(), 3);
        assert!(stream.is_over());
    }
}

#[test]
fn stream_zero_is_never_acknowledged() {
    let mut stream = Inbound::new(0, PeerRole::Receiver);
    let ack = Message::Engine(EngineMessage::Ack { stream: 0, records: 1 });
    assert!(matches!(stream.on(Received::Message(&ack)), Err(ProtocolError::Malformed(_))));
}
