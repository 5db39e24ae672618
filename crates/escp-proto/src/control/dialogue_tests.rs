//! Every pair of state and input, heard by either side.

use super::*;

const SIDES: [Side; 2] = [Side::Near, Side::Far];
const STATES: [State; 4] = [State::Greeting, State::Terms, State::Running, State::Over];
const INPUTS: [Input; 6] =
    [Input::Hello, Input::Job, Input::Listening, Input::Failed, Input::Bye, Input::Eof];

/// Everything that may come, written down a second time.
const LEGAL: [(Side, State, Input, State); 12] = [
    (Side::Near, State::Greeting, Input::Hello, State::Terms),
    (Side::Near, State::Terms, Input::Listening, State::Running),
    (Side::Near, State::Terms, Input::Failed, State::Over),
    (Side::Near, State::Running, Input::Failed, State::Over),
    (Side::Near, State::Over, Input::Failed, State::Over),
    (Side::Near, State::Over, Input::Eof, State::Over),
    (Side::Far, State::Greeting, Input::Hello, State::Terms),
    (Side::Far, State::Terms, Input::Job, State::Running),
    (Side::Far, State::Terms, Input::Failed, State::Over),
    (Side::Far, State::Running, Input::Failed, State::Over),
    (Side::Far, State::Running, Input::Bye, State::Over),
    (Side::Far, State::Over, Input::Eof, State::Over),
];

#[test]
fn every_pair_is_legal_or_refused_as_written() {
    for side in SIDES {
        for state in STATES {
            for input in INPUTS {
                let due = LEGAL.iter().find(|rule| (rule.0, rule.1, rule.2) == (side, state, input));
                let due = due.map(|rule| rule.3);
                assert_eq!(next(side, state, input), due, "{side:?} {state:?} {input:?}");
                let mut dialogue = Dialogue { side, state };
                match (dialogue.on(input), due) {
                    (Ok(after), Some(due)) => assert_eq!((after, dialogue.state()), (due, due)),
                    (Err(error), None) => {
                        assert_eq!(dialogue.state(), state, "an error changes nothing");
                        let hang_up = matches!(error, ProtocolError::ClosedEarly(_));
                        assert_eq!(hang_up, input == Input::Eof, "{error}");
                    }
                    (outcome, due) => panic!("{side:?} {state:?} {input:?}: {outcome:?}, due {due:?}"),
                }
            }
        }
    }
}

#[test]
fn the_peer_may_hang_up_after_this_sides_last_word() {
    let mut near = Dialogue::new(Side::Near);
    near.on(Input::Hello).unwrap();
    near.on(Input::Listening).unwrap();
    assert!(near.on(Input::Eof).is_err());
    near.said_last_word();
    assert_eq!(near.on(Input::Eof), Ok(State::Over));
}
