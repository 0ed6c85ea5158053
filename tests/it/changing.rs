//! A configuration that changes while the gate runs, rules, and the commands that tell what a configuration
//! does.

mod again;
mod check;
mod explain;
mod explain_denied;
mod explain_told;
mod flight;
mod following;
mod hot;
mod hot_limits;
mod hot_time;
mod issuers;
mod program;
mod refused;
mod rules;
mod shadow;

use super::harness::{Frame, Gate, Handshake, masked};

/// What becomes of a handshake, in a word: `101`, `403 rule_denied`, or of a page `4003 rule_denied`.
fn outcome(gate: &Gate, handshake: &Handshake) -> String {
    let (mut client, answer) = gate.upgrade(handshake);
    if answer.status != 101 {
        let body = client.json(&answer);
        return format!("{} {}", answer.status, body["reason"].as_str().unwrap_or_default());
    }
    client.send(&masked(0x81, b"hello"));
    let frame = client.frame();
    if let Some((code, text)) = frame.close() {
        return format!("{code} {text}");
    }
    assert_eq!(frame, Frame { first: 0x81, payload: b"hello".to_vec() });
    "101".to_owned()
}

/// Code and reason of the last session that was closed, as [`outcome`] would have it.
fn closed_last(gate: &Gate) -> String {
    let lines = gate.log();
    let line = lines.iter().rfind(|line| line["event"] == "session_closed").unwrap();
    format!("{} {}", line["code"], line["reason"].as_str().unwrap())
}
