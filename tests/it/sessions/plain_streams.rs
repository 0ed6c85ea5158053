//! Bodies of plain requests are streamed, both ways, in constant memory.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::super::harness::{Gate, Issuer};
use super::plain::{all, ask, chunk, chunks, passing};
use super::wire::{Upstream, pattern, read_exactly, stalled, while_writing};

const LARGE: usize = 20 << 20;

#[test]
fn server_sent_events_arrive_one_by_one() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let mut client = gate.client();
    let (mut wire, _) = ask(&mut client, &upstream, "GET /events HTTP/1.1\r\nHost: a\r\n\r\n");
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
    let answer = client.head();
    assert_eq!(
        (answer.header("content-length"), answer.header("transfer-encoding")),
        (None, Some("chunked"))
    );
    for n in 0..5 {
        let event = format!("data: {n}\n\n");
        wire.send(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes());
        assert_eq!(chunk(&mut client), event.as_bytes());
    }
    client.stays_silent(Duration::from_millis(30));
    wire.send(b"0\r\n\r\n");
    assert_eq!(chunk(&mut client), b"");
}

#[test]
fn a_body_without_a_length_ends_with_its_connection() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let mut client = gate.client();
    for version in ["1.1", "1.0"] {
        let (mut wire, _) = ask(&mut client, &upstream, "GET /events HTTP/1.1\r\nHost: a\r\n\r\n");
        wire.send(format!("HTTP/{version} 200 OK\r\nConnection: close\r\n\r\n").as_bytes());
        assert_eq!(client.head().status, 200);
        wire.send(b"piece");
        assert_eq!(chunk(&mut client), b"piece");
        wire.send(b"another");
        assert_eq!(chunk(&mut client), b"another");
        drop(wire);
        assert_eq!(chunk(&mut client), b"", "and this connection goes on");
    }
}

#[test]
fn the_body_of_a_request_is_passed_on_as_it_comes() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let mut client = gate.client();
    let (mut wire, head) =
        ask(&mut client, &upstream, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(
        (all(&head, "transfer-encoding"), all(&head, "content-length")),
        (vec!["chunked".into()], vec![])
    );
    for piece in ["first", "second"] {
        client.send(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes());
        assert_eq!(wire.until(b"\r\n"), format!("{:X}\r\n", piece.len()).into_bytes());
        assert_eq!(wire.until(b"\r\n"), format!("{piece}\r\n").into_bytes());
    }
    // An answer may come before the request is complete.
    client.send(b"0\r\n\r\n");
    assert_eq!(wire.exactly(5), b"0\r\n\r\n");
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.head().status, 200);

    client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nfirst");
    assert_eq!(all(&wire.head(), "content-length"), ["10"]);
    assert_eq!(wire.exactly(5), b"first");
    wire.stays_silent(Duration::from_millis(30));
    client.send(b"after");
    assert_eq!(wire.exactly(5), b"after");
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.head().status, 200);
}

#[test]
fn trailers_are_dropped_both_ways() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let mut client = gate.client();
    let (mut wire, head) = ask(
        &mut client,
        &upstream,
        "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: X-Auth-Subject\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Auth-Subject: root\r\n\r\n",
    );
    assert_eq!(all(&head, "trailer"), [""; 0]);
    assert_eq!(wire.until(b"0\r\n\r\n"), b"2\r\nhi\r\n0\r\n\r\n");
    wire.send(b"HTTP/1.1 200 OK\r\nTrailer: X-T\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nho\r\n0\r\nX-T: 1\r\n\r\n");
    let answer = client.head();
    assert_eq!(answer.header("trailer"), None);
    assert_eq!(chunk(&mut client), b"ho");
    assert_eq!(client.exactly(5), b"0\r\n\r\n");
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    wire.head();
    wire.send(b"HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(client.head().status, 204, "both connections are in step");
}

#[test]
fn large_bodies_pass_in_both_directions() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let body = pattern(LARGE);
    let mut client = gate.client();
    let head = format!("PUT /large HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n");
    let (mut wire, _) = ask(&mut client, &upstream, &head);
    assert!(while_writing(client.stream(), &body, || read_exactly(&wire.stream, LARGE)) == body);
    wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n").as_bytes());
    assert_eq!(client.head().header("content-length"), Some(LARGE.to_string().as_str()));
    let received = while_writing(&wire.stream, &body, || {
        // What came along with the head is in the client's buffer.
        let first = client.exactly(1);
        [first, client.exactly(LARGE - 1)].concat()
    });
    assert!(received == body);
}

#[test]
fn large_chunked_bodies_pass_in_both_directions() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let body = pattern(5 << 20);
    let chunked: Vec<u8> = body
        .chunks(100_000)
        .flat_map(|piece| [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat())
        .chain(*b"0\r\n\r\n")
        .collect();
    let mut client = gate.client();
    let (mut wire, _) =
        ask(&mut client, &upstream, "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    let received = while_writing(client.stream(), &chunked, || {
        let mut received = Vec::new();
        loop {
            let size = wire.until(b"\r\n");
            let size = usize::from_str_radix(std::str::from_utf8(&size).unwrap().trim(), 16).unwrap();
            received.extend(wire.exactly(size));
            wire.exactly(2);
            if size == 0 {
                return received;
            }
        }
    });
    assert!(received == body);
    wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(client.head().status, 200);
    assert!(while_writing(&wire.stream, &chunked, || chunks(&mut client)) == body);
}

#[test]
fn a_client_that_does_not_read_its_answer_stops_the_backend() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let mut client = gate.client();
    let (mut wire, _) = ask(&mut client, &upstream, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let length = 60 << 20;
    wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes());
    let (piece, sent) = (pattern(1 << 16), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let (mut writer, sent, piece) = (wire.stream.try_clone().unwrap(), &sent, &piece);
        scope.spawn(move || {
            while sent.load(Ordering::SeqCst) < length && writer.write_all(piece).is_ok() {
                sent.fetch_add(piece.len(), Ordering::SeqCst);
            }
        });
        let before = stalled(sent);
        assert!(before < 30 << 20, "{before} bytes were taken");
        // A client that leaves frees the backend at once.
        drop(client);
    });
    assert!(sent.load(Ordering::SeqCst) < length);
}
