//! A Close of either side passes unchanged and is answered; what the gate itself says is bounded in time.

use std::time::Duration;

use tokio::time::Instant;

use super::super::harness::{Gate, Issuer, eventually, masked};
use super::wire::{Upstream, close_payload, good, goodbye, unmasked};

const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

fn payloads() -> Vec<Vec<u8>> {
    let mut payloads: Vec<_> =
        [1000, 1001, 1008, 1011, 3000, 4001, 4999].map(|code| close_payload(code, "why: \u{e4}")).into();
    payloads.push(close_payload(1000, ""));
    payloads.push(close_payload(1002, &"x".repeat(123)));
    payloads.push(Vec::new());
    payloads
}

#[test]
fn a_clients_close_and_the_backends_answer_pass_unchanged() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    for (n, payload) in payloads().iter().enumerate() {
        let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
        let close = masked(0x88, payload);
        client.send(&close);
        assert_eq!(wire.exactly(close.len()), close);
        let answer = unmasked(0x88, if n % 2 == 0 { payload } else { b"\x03\xe8answered" });
        wire.send(&answer);
        assert_eq!(client.rest(), answer, "and FIN, by the gate as the server");
        client.finish();
        wire.finish();
        assert_eq!(wire.rest(), b"", "no second Close");
        let closed = eventually("its line", || {
            gate.log().into_iter().filter(|line| line["event"] == "session_closed").nth(n)
        });
        assert_eq!(closed["reason"], "client_closed");
        let code = payload.get(..2).map(|code| u16::from_be_bytes([code[0], code[1]]));
        assert_eq!(closed.get("code").and_then(serde_json::Value::as_u64), code.map(u64::from));
    }
    assert_eq!(gate.metric("websocket_closes_total{reason=\"client_closed\"}"), payloads().len() as u64);
}

#[test]
fn a_backends_close_and_the_clients_answer_pass_unchanged() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    for (n, payload) in payloads().iter().enumerate() {
        let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
        let close = unmasked(0x88, payload);
        wire.send(&close);
        assert_eq!(client.exactly(close.len()), close);
        let answer = masked(0x88, payload);
        client.send(&answer);
        assert_eq!(wire.exactly(answer.len()), answer);
        assert_eq!(client.rest(), b"");
        client.finish();
        wire.finish();
        assert_eq!(wire.rest(), b"");
        let closed = eventually("its line", || {
            gate.log().into_iter().filter(|line| line["event"] == "session_closed").nth(n)
        });
        assert_eq!(closed["reason"], "upstream_closed");
    }
}

#[test]
fn a_close_that_comes_in_pieces_is_still_a_close() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    let close = masked(0x88, &close_payload(4321, "slowly"));
    for byte in &close {
        client.send(std::slice::from_ref(byte));
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(wire.exactly(close.len()), close);
    wire.send(&goodbye(4321, ""));
    assert_eq!(client.close(), (4321, String::new()));
    assert_eq!(gate.logged("session_closed")["code"], 4321);
}

#[test]
fn after_a_close_nothing_more_of_that_side_is_forwarded_but_the_other_still_is() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    let close = masked(0x88, &close_payload(1000, ""));
    client.send(&[&close[..], &masked(0x81, b"too late")].concat());
    assert_eq!(wire.exactly(close.len()), close);
    client.send(&masked(0x81, b"much too late"));
    wire.send(&unmasked(0x81, b"still in flight"));
    assert_eq!(client.frame().payload, b"still in flight");
    wire.send(&[goodbye(1000, ""), unmasked(0x81, b"too late")].concat());
    assert_eq!(client.close().0, 1000);
    assert_eq!(client.rest(), b"");
    wire.finish();
    assert_eq!(wire.rest(), b"");

    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    wire.send(&[goodbye(1001, ""), unmasked(0x81, b"too late")].concat());
    assert_eq!(client.close().0, 1001);
    client.send(&masked(0x81, b"still in flight"));
    assert_eq!(wire.frame().payload, b"still in flight");
    client.send(&masked(0x88, &close_payload(1001, "")));
    assert_eq!(wire.close().0, 1001);
    assert_eq!(client.rest(), b"");
}

#[test]
fn a_backend_that_never_answers_a_close_is_left_and_the_client_answered_with_its_code() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    let close = masked(0x88, &close_payload(4000, "bye"));
    client.send(&close);
    let began = Instant::now();
    assert_eq!(client.close().0, 4000);
    assert!(began.elapsed() >= CLOSE_TIMEOUT.mul_f32(0.95), "{:?}", began.elapsed());
    assert_eq!(client.rest(), b"");
    assert_eq!(wire.rest(), close);
    assert_eq!(gate.logged("session_closed")["reason"], "client_closed");
}

#[test]
fn a_client_that_never_answers_a_close_is_left_and_the_backend_answered_with_its_code() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    wire.send(&goodbye(4000, "bye"));
    assert_eq!(client.close(), (4000, "bye".into()));
    assert_eq!(wire.close().0, 4000);
    assert_eq!(wire.rest(), b"");
    assert_eq!(client.rest(), b"");
    assert_eq!(gate.logged("session_closed")["reason"], "upstream_closed");
}

#[test]
fn an_end_in_place_of_the_answer_to_a_close_is_enough() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    let close = masked(0x88, &close_payload(4000, "bye"));
    client.send(&close);
    assert_eq!(wire.exactly(close.len()), close);
    wire.finish();
    assert_eq!(client.close().0, 4000);
    assert_eq!(client.rest(), b"");
    assert_eq!(wire.rest(), b"");
    assert_eq!(gate.logged("session_closed")["reason"], "client_closed");

    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    wire.send(&goodbye(4000, "bye"));
    assert_eq!(client.close().0, 4000);
    client.finish();
    assert_eq!(wire.close().0, 4000);
    assert_eq!(gate.metric("websocket_closes_total{reason=\"client_lost\"}"), 0);
}

#[test]
fn a_code_or_a_text_that_may_not_stand_in_a_close_is_passed_on_but_never_said_by_the_gate() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let wrong = [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000].map(|code| close_payload(code, ""));
    let wrong = wrong.into_iter().chain([vec![3], [&[3, 232], &b"\xff"[..]].concat()]);
    let right = [vec![], close_payload(1014, "é"), close_payload(3000, "")];
    let right = right.into_iter();
    for (payload, is_right) in wrong.map(|wrong| (wrong, false)).chain(right.map(|right| (right, true))) {
        let answer = if is_right { payload[..payload.len().min(2)].to_vec() } else { vec![3, 234] };
        let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
        let close = masked(0x88, &payload);
        client.send(&close);
        assert_eq!(wire.exactly(close.len()), close);
        wire.finish();
        assert_eq!(client.frame().payload, answer, "to {payload:?}");
        let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
        wire.send(&unmasked(0x88, &payload));
        assert_eq!(client.frame().payload, payload);
        client.finish();
        assert_eq!(wire.frame().payload, answer, "to {payload:?}");
    }
}

/// The session and its connection, but for what the gate has not yet noticed.
fn is_gone(gate: &Gate) -> Option<()> {
    let gate = gate.control.gate();
    (gate.sessions.count() == 0 && gate.connections.taken() == 0 && gate.permits.taken() == 0).then_some(())
}

#[test]
fn a_peer_that_never_answers_the_gates_own_close_is_dropped_after_the_close_timeout() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    client.send(&unmasked(0x81, b"bad"));
    assert_eq!(client.close().0, 1002);
    let told = Instant::now();
    eventually("the place to be free as soon as the Close is written", || {
        (gate.sessions() == 0 && gate.control.gate().permits.taken() == 0).then_some(())
    });
    assert!(told.elapsed() < CLOSE_TIMEOUT / 2, "{:?}", told.elapsed());
    assert_eq!(gate.control.gate().connections.taken(), 1);
    eventually("the end of the connection", || is_gone(&gate));
    assert!(told.elapsed() < CLOSE_TIMEOUT * 2, "{:?}", told.elapsed());
    assert_eq!(wire.close().0, 1001);
    assert_eq!(client.rest(), b"");
}

#[test]
fn a_close_is_read_by_a_client_that_was_still_sending() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let (mut client, wire) = upstream.pair(&gate, &good(&issuer));
    // Less than the 64 KiB that are discarded, more than nothing, which a reset would follow.
    client.send(&[unmasked(0x81, b"bad"), masked(0x81, &[b'x'; 200]).repeat(200)].concat());
    std::thread::sleep(Duration::from_millis(100));
    client.send(&masked(0x81, b"and on"));
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(client.close(), (1002, "frame_malformed".into()));
    assert_eq!(client.rest(), b"");
    client.finish();
    wire.finish();
    eventually("the end", || is_gone(&gate));
}

#[test]
fn who_floods_the_gate_after_its_close_is_not_read_for_ever() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer).set("session.close_timeout", "'30s'"));
    let (mut client, wire) = upstream.pair(&gate, &good(&issuer));
    client.send(&unmasked(0x81, b"bad"));
    wire.finish();
    let flood = vec![0; 16 * 1024];
    eventually("the gate to have had enough", || (!client.try_send(&flood)).then_some(()));
    eventually("the end", || is_gone(&gate));
}

#[test]
fn codes_of_the_gate_can_be_remapped() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let config = upstream.config(&issuer).set("limits.messages_per_session", "'1/10s'");
    let gate = Gate::start(&config.set("refuse.codes.too_many_requests", "1008"));
    let (mut client, _wire) = upstream.pair(&gate, &good(&issuer));
    client.send(&masked(0x81, b"a").repeat(2));
    assert_eq!(client.close(), (1008, "message_rate_exceeded".into()));
    assert_eq!(gate.logged("session_closed")["code"], 1008);
}
