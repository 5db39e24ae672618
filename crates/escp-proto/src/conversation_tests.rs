//! Every triple of phase, speaker and message, every pair of entry state and answer, and the bounds between
//! entries.

use super::*;
use crate::agent::{
    Accept, Attributes, Entry, EntryFailure, EntryKind, EntryResult, FileDigest, ROOT, Refusal, Request,
    Scanned, SourceFailure, Timestamp,
};

const PHASES: [Phase; 5] = [Phase::Silence, Phase::Asked, Phase::Offering, Phase::Settling, Phase::Refused];
const SPEAKERS: [Speaker; 4] = [
    Speaker { side: Side::Near, sends: true },
    Speaker { side: Side::Near, sends: false },
    Speaker { side: Side::Far, sends: true },
    Speaker { side: Side::Far, sends: false },
];
const INPUTS: [Input; 13] = [
    Input::Request,
    Input::Accept,
    Input::Refuse,
    Input::Offer,
    Input::Scanned,
    Input::SourceFailed,
    Input::Credit,
    Input::Ready,
    Input::Rejected,
    Input::Digests,
    Input::Done,
    Input::NoMore,
    Input::Sources,
];

/// Everything that may be said, written down a second time: phase, near sender, near receiver, far sender,
/// far receiver; `>` names the phase it leads to.
const LEGAL: [(Phase, [&str; 4]); 5] = [
    (
        Phase::Silence,
        ["Sources>Silence Request>Asked", "Sources>Silence Request>Asked", "", "Credit>Silence"],
    ),
    (
        Phase::Asked,
        [
            "Offer>Asked Scanned>Asked SourceFailed>Asked",
            "Credit>Asked",
            "Accept>Offering Refuse>Refused",
            "Credit>Asked Accept>Offering Refuse>Refused",
        ],
    ),
    (
        Phase::Offering,
        [
            "Offer>Offering Scanned>Offering SourceFailed>Offering Digests>Offering NoMore>Settling",
            "Credit>Offering Ready>Offering Rejected>Offering Done>Offering",
            "Offer>Offering Scanned>Offering SourceFailed>Offering Digests>Offering NoMore>Settling",
            "Credit>Offering Ready>Offering Rejected>Offering Done>Offering",
        ],
    ),
    (
        Phase::Settling,
        [
            "Scanned>Settling Digests>Settling",
            "Credit>Settling Ready>Settling Rejected>Settling Done>Settling",
            "Scanned>Settling Digests>Settling",
            "Credit>Settling Ready>Settling Rejected>Settling Done>Settling",
        ],
    ),
    (Phase::Refused, ["Offer>Refused Scanned>Refused SourceFailed>Refused", "Credit>Refused", "", ""]),
];

#[test]
fn every_phase_speaker_and_message_is_legal_or_refused_as_written() {
    for (phase, by_speaker) in LEGAL {
        for (speaker, rules) in SPEAKERS.into_iter().zip(by_speaker) {
            for input in INPUTS {
                let due = rules
                    .split_whitespace()
                    .find_map(|rule| rule.strip_prefix(&format!("{input:?}>")).map(|phase| phase.to_owned()));
                let got = next_phase(phase, speaker, input).map(|phase| format!("{phase:?}"));
                assert_eq!(got, due, "{phase:?} {speaker:?} {input:?}");
            }
        }
    }
}

#[test]
fn every_entry_state_and_answer_is_legal_or_refused_as_written() {
    use Answer::{Digest, Disowned, Failed, Published, Ready, Rejected};
    let legal = [
        (EntryState::File, Ready, Some(EntryState::Ready)),
        (EntryState::File, Rejected, None),
        (EntryState::File, Failed, None),
        (EntryState::Ready, Digest, Some(EntryState::Digested)),
        (EntryState::Ready, Disowned, Some(EntryState::Disowned)),
        (EntryState::Ready, Failed, None),
        (EntryState::Digested, Published, None),
        (EntryState::Digested, Failed, None),
        (EntryState::Disowned, Failed, None),
        (EntryState::Directory, Rejected, Some(EntryState::Answered)),
        (EntryState::Directory, Published, Some(EntryState::Answered)),
        (EntryState::Directory, Failed, Some(EntryState::Answered)),
        (EntryState::End, Rejected, None),
        (EntryState::End, Published, None),
        (EntryState::End, Failed, None),
    ];
    for state in [
        EntryState::File,
        EntryState::Ready,
        EntryState::Digested,
        EntryState::Disowned,
        EntryState::Directory,
        EntryState::Answered,
        EntryState::End,
    ] {
        for answer in [Ready, Rejected, Digest, Disowned, Published, Failed] {
            let due = legal.iter().find(|rule| (rule.0, rule.1) == (state, answer)).map(|rule| rule.2);
            assert_eq!(next_entry(state, answer), due, "{state:?} {answer:?}");
        }
    }
}

fn attributes() -> Attributes {
    let time = Timestamp { seconds: 0, nanoseconds: 0 };
    Attributes { mode: 0o644, mtime: time, atime: time }
}

fn file(number: u64, parent: u64) -> Entry {
    let kind = EntryKind::File { size: 1, sparse: false, attributes: attributes() };
    Entry { number, parent, name: b"f".to_vec(), kind }
}

fn directory(number: u64, parent: u64) -> Entry {
    Entry { number, parent, name: b"d".to_vec(), kind: EntryKind::Directory { attributes: attributes() } }
}

fn end(number: u64, parent: u64) -> Entry {
    Entry { number, parent, name: Vec::new(), kind: EntryKind::DirectoryEnd }
}

fn failure(number: u64) -> EntryFailure {
    EntryFailure { number, text: "no".to_owned(), integrity: false }
}

fn digest(number: u64, good: bool) -> AgentMessage {
    let outcome = if good { Ok(1) } else { Err("it changed".to_owned()) };
    AgentMessage::Digests(vec![FileDigest { number, outcome }])
}

fn done(number: u64, good: bool) -> AgentMessage {
    let outcome = if good { Ok(1) } else { Err(failure(number)) };
    AgentMessage::Done(vec![EntryResult { number, outcome }])
}

fn request(transfer: Transfer) -> AgentMessage {
    AgentMessage::Request(Request {
        transfer,
        recursive: true,
        preserve: true,
        inplace: false,
        durable: true,
        direct: true,
        checksum: true,
        dummy: false,
    })
}

/// An upload with this much credit: near sends, far receives.
fn upload(credit: u64) -> Conversation {
    let mut talk = Conversation::new();
    let transfer = Transfer::Upload { target: b"t".to_vec(), directory_required: false };
    talk.on(Side::Near, &request(transfer)).unwrap();
    talk.on(Side::Far, &AgentMessage::Accept(Accept { sources: 0 })).unwrap();
    talk.on(Side::Far, &AgentMessage::Credit { entries: credit }).unwrap();
    talk
}

/// A message of each kind, about entry 1 where it is about one.
fn sample(input: Input) -> AgentMessage {
    match input {
        Input::Request => request(Transfer::Download { sources: vec![b"s".to_vec()] }),
        Input::Accept => AgentMessage::Accept(Accept { sources: 1 }),
        Input::Refuse => AgentMessage::Refuse(Refusal { status: 1, text: String::new() }),
        Input::Offer => AgentMessage::Offer(vec![file(2, ROOT)]),
        Input::Scanned => AgentMessage::Scanned(Scanned { files: 1, bytes: 1, complete: false }),
        Input::SourceFailed => {
            AgentMessage::SourceFailed(SourceFailure { path: b"p".to_vec(), text: String::new() })
        }
        Input::Credit => AgentMessage::Credit { entries: 10 },
        Input::Ready => AgentMessage::Ready(vec![1]),
        Input::Rejected => AgentMessage::Rejected(vec![failure(1)]),
        Input::Digests => digest(1, true),
        Input::Done => done(1, true),
        Input::NoMore => AgentMessage::NoMore,
        Input::Sources => AgentMessage::Sources(vec![b"s".to_vec()]),
    }
}

/// A download brought to `phase`, with file 1 outstanding where entries can be.
fn download(phase: Phase) -> Conversation {
    let mut talk = Conversation::new();
    let course: &[(Side, AgentMessage)] = &[
        (Side::Near, sample(Input::Request)),
        (Side::Near, sample(Input::Credit)),
        (Side::Far, sample(Input::Accept)),
        (Side::Far, AgentMessage::Offer(vec![file(1, ROOT)])),
        (Side::Far, AgentMessage::NoMore),
    ];
    let steps = match phase {
        Phase::Silence => 0,
        Phase::Asked | Phase::Refused => 2,
        Phase::Offering => 4,
        Phase::Settling => 5,
    };
    for (from, message) in &course[..steps] {
        talk.on(*from, message).unwrap();
    }
    if phase == Phase::Refused {
        talk.on(Side::Far, &sample(Input::Refuse)).unwrap();
    }
    assert_eq!(talk.phase(), phase);
    talk
}

#[test]
fn a_conversation_refuses_every_message_that_the_phases_refuse() {
    for phase in PHASES {
        for side in [Side::Near, Side::Far] {
            for input in INPUTS {
                let mut talk = download(phase);
                let outcome = talk.on(side, &sample(input));
                let speaker = Speaker { side, sends: side == Side::Far && phase != Phase::Silence };
                match next_phase(phase, speaker, input) {
                    None => assert!(
                        matches!(outcome, Err(ProtocolError::IllegalState { .. })),
                        "{phase:?} {side:?} {input:?}: {outcome:?}"
                    ),
                    // Whether entry 1 may be answered so is the other table's.
                    Some(next) if outcome.is_ok() => assert_eq!(talk.phase(), next),
                    Some(_) => assert!(matches!(input, Input::Digests | Input::Done), "{outcome:?}"),
                }
            }
        }
    }
}

#[test]
fn a_tree_is_offered_worked_off_and_complete() {
    let mut talk = upload(100);
    let offer = vec![directory(1, ROOT), file(2, 1), directory(3, 1), file(4, 3), end(5, 3), end(6, 1)];
    talk.on(Side::Near, &AgentMessage::Offer(offer)).unwrap();
    talk.on(Side::Near, &AgentMessage::NoMore).unwrap();
    assert_eq!((talk.outstanding(), talk.credit_left(), talk.is_complete()), (6, 94, false));
    talk.on(Side::Far, &AgentMessage::Ready(vec![2])).unwrap();
    talk.on(Side::Far, &AgentMessage::Rejected(vec![failure(4)])).unwrap();
    talk.on(Side::Near, &digest(2, true)).unwrap();
    talk.on(Side::Far, &done(1, true)).unwrap();
    talk.on(Side::Far, &done(2, true)).unwrap();
    assert_eq!(talk.entry(1), Some(EntryState::Answered));
    // Directory 3 was never answered: its end answers for it.
    talk.on(Side::Far, &done(5, true)).unwrap();
    assert_eq!((talk.entry(3), talk.entry(5)), (None, None));
    assert!(!talk.is_complete());
    talk.on(Side::Far, &done(6, true)).unwrap();
    assert!(talk.is_complete());
}

#[test]
fn a_near_sender_offers_within_the_credit_before_the_answer() {
    let transfer = || Transfer::Upload { target: b"t".to_vec(), directory_required: false };
    let credit = AgentMessage::Credit { entries: 1 };
    for credit_first in [true, false] {
        let mut talk = Conversation::new();
        let mut first = [(Side::Far, credit.clone()), (Side::Near, request(transfer()))];
        if !credit_first {
            first.reverse();
        }
        first.iter().for_each(|(from, message)| talk.on(*from, message).unwrap());
        talk.on(Side::Near, &AgentMessage::Offer(vec![file(1, ROOT)])).unwrap();
        assert!(talk.on(Side::Near, &AgentMessage::Offer(vec![file(2, ROOT)])).is_err(), "beyond the credit");
        assert!(talk.on(Side::Far, &AgentMessage::Ready(vec![1])).is_err(), "before the answer");
        talk.on(Side::Far, &AgentMessage::Accept(Accept { sources: 0 })).unwrap();
        talk.on(Side::Far, &AgentMessage::Ready(vec![1])).unwrap();
    }
}

#[test]
fn a_far_sender_cannot_give_itself_credit() {
    let mut talk = Conversation::new();
    talk.on(Side::Far, &AgentMessage::Credit { entries: 1 }).unwrap();
    let download = sample(Input::Request);
    assert!(matches!(talk.on(Side::Near, &download), Err(ProtocolError::IllegalState { .. })));
    let mut talk = Conversation::new();
    talk.on(Side::Near, &download).unwrap();
    assert!(talk.on(Side::Far, &AgentMessage::Credit { entries: 1 }).is_err());
}

#[test]
fn what_the_sender_disowned_is_never_published() {
    let mut talk = upload(1);
    talk.on(Side::Near, &AgentMessage::Offer(vec![file(1, ROOT)])).unwrap();
    talk.on(Side::Far, &AgentMessage::Ready(vec![1])).unwrap();
    assert!(talk.on(Side::Far, &done(1, true)).is_err(), "published before the sender's word");
    talk.on(Side::Near, &digest(1, false)).unwrap();
    assert!(talk.on(Side::Far, &done(1, true)).is_err());
    talk.on(Side::Far, &done(1, false)).unwrap();
}

#[test]
fn a_digest_may_cross_the_news_of_a_failure() {
    let mut talk = upload(1);
    assert!(talk.on(Side::Near, &digest(1, true)).is_err(), "of an entry that was never offered");
    talk.on(Side::Near, &AgentMessage::Offer(vec![file(1, ROOT)])).unwrap();
    talk.on(Side::Far, &AgentMessage::Ready(vec![1])).unwrap();
    talk.on(Side::Far, &done(1, false)).unwrap();
    talk.on(Side::Near, &digest(1, true)).unwrap();
    assert_eq!(talk.entry(1), None);
    assert!(talk.on(Side::Far, &done(1, false)).is_err(), "done with twice");
}

#[test]
fn entries_come_in_turn_within_the_credit_and_below_open_directories() {
    let offers: [(&str, Vec<Entry>); 8] = [
        ("number 0", vec![file(0, ROOT)]),
        ("a number left out", vec![file(2, ROOT)]),
        ("a number twice", vec![file(1, ROOT), file(1, ROOT)]),
        ("beyond the credit", (1..=5).map(|n| file(n, ROOT)).collect()),
        ("below a file", vec![file(1, ROOT), file(2, 1)]),
        ("below what was not offered", vec![file(1, 9)]),
        ("below a directory after its end", vec![directory(1, ROOT), end(2, 1), file(3, 1)]),
        ("a second end", vec![directory(1, ROOT), end(2, 1), end(3, 1)]),
    ];
    for (what, offer) in offers {
        let mut talk = upload(4);
        assert!(talk.on(Side::Near, &AgentMessage::Offer(offer)).is_err(), "{what}");
    }
    let mut talk = upload(4);
    assert!(talk.on(Side::Near, &AgentMessage::Offer(vec![end(1, ROOT)])).is_err(), "the end of the target");
    talk.on(Side::Near, &AgentMessage::Offer(vec![directory(1, ROOT)])).unwrap();
    assert!(talk.on(Side::Near, &AgentMessage::NoMore).is_err(), "with an open directory");
}

#[test]
fn credit_never_falls_and_bounds_what_is_outstanding() {
    let mut talk = upload(MAX_OUTSTANDING);
    let credit = |entries| AgentMessage::Credit { entries };
    assert!(talk.on(Side::Far, &credit(MAX_OUTSTANDING - 1)).is_err());
    assert!(talk.on(Side::Far, &credit(MAX_OUTSTANDING + 1)).is_err());
    for number in 1..=MAX_OUTSTANDING {
        talk.on(Side::Near, &AgentMessage::Offer(vec![file(number, ROOT)])).unwrap();
    }
    assert_eq!((talk.outstanding(), talk.credit_left()), (MAX_OUTSTANDING, 0));
    assert!(talk.on(Side::Far, &credit(MAX_OUTSTANDING + 1)).is_err());
    talk.on(Side::Far, &AgentMessage::Rejected(vec![failure(7)])).unwrap();
    assert_eq!(talk.highest_credit(), MAX_OUTSTANDING + 1);
    talk.on(Side::Far, &credit(MAX_OUTSTANDING + 1)).unwrap();
    assert!(talk.on(Side::Far, &credit(u64::MAX)).is_err());
    assert_eq!(talk.offered(), MAX_OUTSTANDING);
}
