//! Frames that break RFC 6455 or a limit: none of their bytes reaches the other side.

use std::time::Duration;

use super::super::harness::{Gate, Issuer, eventually, masked};
use super::wire::{Upstream, good, pattern, unmasked};

/// What a client sends, how much of it may reach the backend, and why it ends: code and label.
fn refused(gate: &Gate, upstream: &Upstream, issuer: &Issuer, sent: &[u8], passes: usize, told: (u16, &str)) {
    let (mut client, mut wire) = upstream.pair(gate, &good(issuer));
    client.send(sent);
    assert_eq!(wire.exactly(passes), sent[..passes], "{told:?} after {sent:?}");
    assert_eq!(wire.close(), (1001, told.1.into()), "{sent:?}");
    assert_eq!(wire.rest(), b"", "{sent:?}");
    assert_eq!(client.close(), (told.0, told.1.into()), "{sent:?}");
    assert_eq!(client.rest(), b"", "{sent:?}");
}

fn ended_by(gate: &Gate, reason: &str) -> u64 {
    gate.metric(&format!("websocket_closes_total{{reason=\"{reason}\"}}"))
}

fn counted(gate: &Gate, series: &str, count: u64) {
    eventually(series, || (gate.metric(series) == count).then_some(()));
}

/// Frames that no endpoint may send, without their mask bit.
fn broken() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("a continuation of nothing", vec![0x80, 0x00]),
        ("a fragmented ping", vec![0x09, 0x00]),
        ("a fragmented Close", vec![0x08, 0x02, 0x03, 0xe8]),
        ("a ping of 126 bytes", [&[0x89, 126, 0, 126][..], &[0; 126]].concat()),
        ("a Close with a 64-bit length", vec![0x88, 127, 0, 0, 0, 0, 0, 0, 0, 2, 0x03, 0xe8]),
        ("a length with the top bit", vec![0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 1, 0]),
        ("a length of all ones", vec![0x81, 127, 255, 255, 255, 255, 255, 255, 255, 255]),
        ("a text inside a text", vec![0x01, 0x00, 0x81, 0x00]),
        ("a reserved control frame in fragments", vec![0x0b, 0x00]),
    ]
}

/// Sets the mask bit and adds a mask of zeros: the payload stays as it is.
fn with_mask(bytes: &[u8]) -> Vec<u8> {
    let extended = match bytes[1] {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let header = [&[bytes[0], bytes[1] | 0x80], &bytes[2..2 + extended]].concat();
    [&header, &[0; 4][..], &bytes[2 + extended..]].concat()
}

#[test]
fn a_client_that_breaks_rfc_6455_gets_1002_and_its_backend_none_of_the_bad_bytes() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let hello = masked(0x81, b"hello");
    let mut count = 0;
    for (what, bytes) in broken() {
        // The first frame of the fragmented text is a good one.
        let (good_part, bad) =
            if what == "a text inside a text" { (2, &bytes[2..]) } else { (0, &bytes[..]) };
        let first = if good_part > 0 { with_mask(&bytes[..good_part]) } else { Vec::new() };
        let sent = [&hello[..], &first, &with_mask(bad)].concat();
        refused(&gate, &upstream, &issuer, &sent, hello.len() + first.len(), (1002, "frame_malformed"));
        count += 1;
    }
    let sent = [&hello[..], &unmasked(0x81, b"no mask")].concat();
    refused(&gate, &upstream, &issuer, &sent, hello.len(), (1002, "frame_malformed"));
    eventually("the end of all", || (ended_by(&gate, "frame_malformed") == count + 1).then_some(()));
    counted(&gate, "websocket_errors_total{error_type=\"protocol\"}", count + 1);
    let closed = gate.logged("session_closed");
    assert_eq!((&closed["reason"], &closed["code"]), (&"frame_malformed".into(), &1002.into()));
}

#[test]
fn a_backend_that_breaks_rfc_6455_costs_its_client_the_session_with_1013() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let hello = unmasked(0x81, b"hello");
    for (what, bytes) in broken().into_iter().chain([("a masked frame", masked(0x81, b"masked"))]) {
        let good_part = if what == "a text inside a text" { 2 } else { 0 };
        let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
        wire.send(&[&hello[..], &bytes].concat());
        let passes = [&hello[..], &bytes[..good_part]].concat();
        assert_eq!(client.exactly(passes.len()), passes, "{what}");
        assert_eq!(client.close(), (1013, "upstream_malformed".into()), "{what}");
        assert_eq!(client.rest(), b"", "{what}");
        assert_eq!(wire.close(), (1001, "upstream_malformed".into()), "{what}");
        assert_eq!(wire.rest(), b"", "{what}");
    }
    assert_eq!(gate.logged("session_closed")["reason"], "upstream_malformed");
}

#[test]
fn after_a_fragment_the_close_still_stands_at_a_frame_boundary() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let first = masked(0x01, b"begun, not finished");
    let sent = [&first[..], &masked(0x82, b"another")].concat();
    refused(&gate, &upstream, &issuer, &sent, first.len(), (1002, "frame_malformed"));
}

#[test]
fn a_message_over_the_limit_is_1009_and_one_at_the_limit_passes() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer).set("limits.message", "'1KiB'"));
    let told = (1009, "message_too_big");
    let fits = masked(0x82, &pattern(1024));
    let one_more = [&fits[..], &masked(0x82, &pattern(1025))].concat();
    refused(&gate, &upstream, &issuer, &one_more, fits.len(), told);
    let fragments = [masked(0x02, &pattern(600)), masked(0x89, &pattern(125)), masked(0x00, &pattern(424))];
    let passes = fragments.concat();
    let one_more = [&passes[..], &masked(0x80, &pattern(1))].concat();
    refused(&gate, &upstream, &issuer, &one_more, passes.len(), told);
    // The header alone is enough: nobody waits for a gigabyte.
    let gigabyte = [&[0x82, 0xff][..], &(1_u64 << 30).to_be_bytes(), &[0; 4]].concat();
    refused(&gate, &upstream, &issuer, &gigabyte, 0, told);
    counted(&gate, "websocket_errors_total{error_type=\"too_big\"}", 3);
    // What the backend itself sends is its own affair.
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    let big = unmasked(0x82, &pattern(5000));
    wire.send(&big);
    assert_eq!(client.exactly(big.len()), big);
}

#[test]
fn fragments_over_the_limit_are_1009() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer).set("limits.fragments", "3"));
    let three = [masked(0x01, b"a"), masked(0x00, b"b"), masked(0x80, b"c")].concat();
    let begun = [masked(0x01, b"a"), masked(0x00, b""), masked(0x00, b"")].concat();
    let sent = [&three[..], &three, &begun, &masked(0x80, b"d")].concat();
    let passes = three.len() * 2 + begun.len();
    refused(&gate, &upstream, &issuer, &sent, passes, (1009, "message_too_big"));
}

#[test]
fn messages_over_the_rate_are_4029_and_fragments_count_once() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer).set("limits.messages_per_session", "'5/10s'"));
    let told = (4029, "message_rate_exceeded");
    let message = [masked(0x01, b"a"), masked(0x89, b""), masked(0x00, b"b"), masked(0x80, b"")].concat();
    let five = message.repeat(5);
    refused(&gate, &upstream, &issuer, &[&five[..], &message].concat(), five.len(), told);
    // One by one as well as at once.
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    for _ in 0..5 {
        client.send(&message);
        assert_eq!(wire.exactly(message.len()), message);
    }
    client.send(&message);
    assert_eq!(client.close(), (4029, told.1.into()));
    assert_eq!(wire.close(), (1001, told.1.into()));
    counted(&gate, "websocket_errors_total{error_type=\"rate\"}", 2);
}

#[test]
fn a_rate_is_a_window_that_passes() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer).set("limits.messages_per_session", "'3/200ms'"));
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    let message = masked(0x81, b"a");
    for _ in 0..3 {
        client.send(&message.repeat(3));
        assert_eq!(wire.exactly(message.len() * 3), message.repeat(3));
        std::thread::sleep(Duration::from_millis(450));
    }
}

#[test]
fn more_than_a_hundred_pings_and_pongs_a_second_are_4029() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&upstream.config(&issuer));
    let hundred = [masked(0x89, b""), masked(0x8a, b"x")].concat().repeat(50);
    for one_more in [masked(0x89, b""), masked(0x8a, b"")] {
        let sent = [&hundred[..], &one_more].concat();
        refused(&gate, &upstream, &issuer, &sent, hundred.len(), (4029, "message_rate_exceeded"));
    }
    // Those of the backend are not counted against anybody.
    let (mut client, mut wire) = upstream.pair(&gate, &good(&issuer));
    let pings = unmasked(0x89, b"").repeat(500);
    wire.send(&pings);
    assert_eq!(client.exactly(pings.len()), pings);
}

#[test]
fn profile_daphne_limits_messages_to_a_mebibyte_unless_told_otherwise() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let config = upstream.config(&issuer).set("upstream.profile", "'daphne'");
    let gate = Gate::start(
        &config.route("path = '/ws/'").route("path = '/more/'\n[route.limits]\nmessage = '2MiB'"),
    );
    let too_much = [&[0x82, 0xff][..], &((1_u64 << 20) + 1).to_be_bytes(), &[0; 4]].concat();
    refused(&gate, &upstream, &issuer, &too_much, 0, (1009, "message_too_big"));
    let more = super::super::harness::Handshake::to("/more/").bearer(&issuer.good_token());
    let (mut client, mut wire) = upstream.pair(&gate, &more);
    client.send(&too_much);
    assert_eq!(wire.exactly(too_much.len()), too_much);
}
