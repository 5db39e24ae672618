//! What the control channel and the agents say, as bytes and as what they mean.

use super::{hex, samples};
use escp_proto::agent::AgentMessage;
use escp_proto::control::{ControlFailure, ControlMessage, Job, LENGTH_LEN};
use serde_json::{Value, json};

fn control() -> Vec<ControlMessage> {
    let plain = Job {
        compress: None,
        rate_limit: None,
        congestion: None,
        ports: None,
        far_sends: false,
        ..samples::job()
    };
    vec![
        ControlMessage::Job(samples::job()),
        ControlMessage::Job(plain),
        ControlMessage::Listening(samples::listening()),
        ControlMessage::Failed(ControlFailure { status: 3, text: "the target's host has no é".to_owned() }),
        ControlMessage::Bye,
    ]
}

/// `messages.json`.
pub(crate) fn vectors() -> Value {
    let control: Vec<Value> = control()
        .iter()
        .map(|message| {
            let frame = message.encode_frame().unwrap();
            assert_eq!(ControlMessage::decode(&frame[LENGTH_LEN..]).as_ref(), Ok(message));
            json!({ "frame": hex(&frame), "meaning": message })
        })
        .collect();
    let agent: Vec<Value> = samples::agent_messages()
        .iter()
        .map(|(name, bytes)| {
            let meaning = AgentMessage::decode(bytes).unwrap();
            json!({ "name": name, "bytes": hex(bytes), "meaning": meaning })
        })
        .collect();
    json!({ "control": control, "agent": agent })
}
