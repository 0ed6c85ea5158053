//! Requests that are no upgrades: heads and statuses.

use super::super::harness::{Client, Config, Gate, Issuer};
use super::wire::{Upstream, Wire};

/// A gate for requests that are the backend's business, and its backend.
pub fn passing(upstream: &Upstream, issuer: &Issuer) -> Config {
    upstream.config(issuer)
}

/// A request on this connection, as the backend sees it.
pub fn ask(client: &mut Client, upstream: &Upstream, request: &str) -> (Wire, String) {
    client.send(request.as_bytes());
    let mut wire = upstream.accept();
    let head = wire.head();
    (wire, head)
}

/// Values of a header in a head.
pub fn all(head: &str, name: &str) -> Vec<String> {
    let pairs = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    pairs.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned()).collect()
}

/// One chunk of a chunked body; empty = the last.
pub fn chunk(client: &mut Client) -> Vec<u8> {
    let mut size = Vec::new();
    while !size.ends_with(b"\r\n") {
        size.extend(client.exactly(1));
    }
    let size = usize::from_str_radix(std::str::from_utf8(&size).unwrap().trim(), 16).unwrap();
    let bytes = client.exactly(size);
    assert_eq!(client.exactly(2), b"\r\n");
    bytes
}

/// The joined chunks of a body, to its end.
pub fn chunks(client: &mut Client) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let piece = chunk(client);
        if piece.is_empty() {
            return body;
        }
        body.extend(piece);
    }
}

#[test]
fn a_request_and_its_answer_pass_as_they_are() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let mut client = gate.client();
    let (mut wire, head) = ask(
        &mut client,
        &upstream,
        "PATCH /a/b%20c?x=1&token=abc&y=%2F HTTP/1.1\r\nHost: chat.example.com:8443\r\nContent-Length: 4\r\nX-Own: 1\r\nX-Own: 2\r\nCookie: a=b\r\n\r\nbody",
    );
    assert!(head.starts_with("PATCH /a/b%20c?x=1&token=abc&y=%2F HTTP/1.1\r\n"), "{head}");
    assert_eq!(all(&head, "host"), ["chat.example.com:8443"]);
    assert_eq!(all(&head, "x-own"), ["1", "2"]);
    assert_eq!(all(&head, "cookie"), ["a=b"]);
    assert_eq!(all(&head, "content-length"), ["4"]);
    assert_eq!(wire.exactly(4), b"body");
    wire.send(b"HTTP/1.1 201 Made\r\nContent-Length: 3\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Own: yes\r\n\r\nyes");
    let answer = client.head();
    assert_eq!(answer.status, 201);
    assert_eq!(answer.all("set-cookie"), ["a=1", "b=2"]);
    assert_eq!(answer.header("x-own"), Some("yes"));
    assert_eq!(client.body(&answer), b"yes");
    let series = "http_requests_total{code=\"201\",method=\"PATCH\"}";
    assert_eq!(gate.metric(series), 1, "{}", gate.metrics());
    assert_eq!(gate.metric("http_request_duration_seconds_count"), 1);
}

#[test]
fn answers_without_a_body_keep_their_connection_in_step() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let mut client = gate.client();
    let (mut wire, head) = ask(&mut client, &upstream, "HEAD /a HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(head.starts_with("HEAD /a "), "{head}");
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\nETag: \"x\"\r\n\r\n");
    let answer = client.head();
    assert_eq!((answer.status, answer.header("content-length")), (200, Some("1234")));
    for (request, answered, status) in [
        (
            "GET /b HTTP/1.1\r\nHost: a\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 99\r\n\r\n",
            304,
        ),
        ("GET /c HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n", 304),
        ("DELETE /d HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n", 204),
        ("HEAD /e HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200),
        ("HEAD /f HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 404 Not Found\r\nContent-Length: 7\r\n\r\n", 404),
        ("GET /g HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200),
    ] {
        client.send(request.as_bytes());
        assert_eq!(wire.head().lines().next(), request.lines().next(), "on the same connection");
        wire.send(answered.as_bytes());
        let answer = client.head();
        assert_eq!(answer.status, status, "{request}");
        if status == 304 {
            assert_eq!(answer.header("etag"), Some("\"x\""));
        }
    }
    client.send(b"GET /last HTTP/1.1\r\nHost: a\r\n\r\n");
    wire.head();
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlast");
    let answer = client.head();
    assert_eq!(client.body(&answer), b"last", "nothing was taken for a body");
}

#[test]
fn expect_is_answered_after_the_judge_and_by_the_gate() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer).set("http.auth", "'required'"));
    let request = |authorization: &str| {
        format!(
            "POST /a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n{authorization}\r\n"
        )
    };
    let mut client = gate.send(request("").as_bytes());
    assert_eq!(client.head().status, 401, "the body was not even asked for");
    upstream.assert_quiet();
    let mut client = gate.client();
    let bearer = format!("Authorization: Bearer {}\r\n", issuer.good_token());
    let (mut wire, head) = ask(&mut client, &upstream, &request(&bearer));
    assert_eq!(all(&head, "expect"), [""; 0]);
    assert_eq!(client.head().status, 100);
    client.send(b"body");
    assert_eq!(wire.exactly(4), b"body");
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.head().status, 200);
}

#[test]
fn what_the_backend_says_before_its_answer_is_skipped() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let mut client = gate.client();
    let (mut wire, _) = ask(&mut client, &upstream, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let answer = client.head();
    assert_eq!((answer.status, answer.header("link")), (200, None));
    assert_eq!(client.body(&answer), b"ok");
}

#[test]
fn an_upgrade_before_its_101_may_be_preceded_by_hints() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let mut client = gate.send(&super::wire::good(&issuer).bytes());
    let mut wire = upstream.accept();
    wire.head();
    wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n");
    wire.send(super::wire::switching().as_bytes());
    assert_eq!(client.head().status, 101);
}

#[test]
fn what_concerns_one_connection_only_stays_there() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let mut client = gate.client();
    let (mut wire, head) = ask(
        &mut client,
        &upstream,
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\nProxy-Authorization: Basic eDp5\r\nUpgrade: h2c\r\nX-Kept: 1\r\n\r\n",
    );
    for name in ["x-mine", "keep-alive", "te", "proxy-authorization", "upgrade"] {
        assert!(all(&head, name).is_empty(), "{name} in {head}");
    }
    assert!(!head.contains("X-Mine") && !head.contains("x-mine"), "{head}");
    assert_eq!(all(&head, "x-kept"), ["1"]);
    wire.send(b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Theirs\r\nX-Theirs: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nUpgrade: h2c\r\nX-Kept: 1\r\nContent-Length: 0\r\n\r\n");
    let answer = client.head();
    for name in ["x-theirs", "keep-alive", "proxy-authenticate", "upgrade"] {
        assert!(answer.all(name).is_empty(), "{name} in {}", answer.text);
    }
    assert_eq!(answer.header("x-kept"), Some("1"));
}

#[test]
fn a_backend_that_switches_protocols_unasked_is_502() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let mut client = gate.client();
    let (mut wire, _) = ask(&mut client, &upstream, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    wire.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    let answer = client.head();
    assert_eq!(answer.status, 502);
    assert_eq!(client.json(&answer)["reason"], "upstream_malformed");
}

#[test]
fn a_client_of_http_1_0_gets_an_answer_that_it_understands() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let mut client = gate.client();
    let (mut wire, head) = ask(&mut client, &upstream, "GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    assert!(head.starts_with("GET / HTTP/1.1\r\n"), "{head}");
    wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    let answer = client.head();
    assert_eq!((answer.status, answer.header("transfer-encoding")), (200, None), "{}", answer.text);
    assert_eq!(client.rest(), b"hello");
}
