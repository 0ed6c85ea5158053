//! Answers of a backend that can be read in two ways, or not at all, and bodies that are cut short.

use std::cell::RefCell;
use std::time::Duration;

use super::super::harness::{Answer, Client, Gate, Issuer};
use super::plain::{ask, chunk, passing};
use super::wire::{Upstream, Wire};

const BAD: &[&str] = &[
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
    "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
    "SSH-2.0-OpenSSH_9.9\r\n\r\n",
    "\0\0\0\0\0\0\0\0\r\n\r\n",
];

/// Has each of them answered on a connection of its own; calls `look` with it after the client's answer.
fn each_of_the_bad(look: impl Fn(&str, Answer, &mut Client, Wire)) {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    for bad in BAD {
        let mut client = gate.client();
        let (mut wire, _) = ask(&mut client, &upstream, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        wire.send(bad.as_bytes());
        look(bad, client.head(), &mut client, wire);
        // Should it have been kept, then not for the next one.
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_answer_that_can_be_read_in_two_ways_is_502() {
    let passed = RefCell::new(Vec::new());
    each_of_the_bad(|bad, answer, client, _| {
        if answer.status == 502 {
            assert_eq!(client.json(&answer)["reason"], "upstream_malformed", "{bad:?}");
        } else {
            passed.borrow_mut().push((bad.to_owned(), answer.text));
        }
    });
    assert!(passed.borrow().is_empty(), "{:#?}", passed.borrow());
}

#[test]
fn an_answer_that_can_be_read_in_two_ways_is_the_last_of_its_connection() {
    let kept = RefCell::new(Vec::new());
    each_of_the_bad(|bad, _, _, mut wire| {
        if !wire.has_ended(Duration::from_millis(200)) {
            kept.borrow_mut().push(bad.to_owned());
        }
    });
    assert!(kept.borrow().is_empty(), "{:#?}", kept.borrow());
}

#[test]
fn a_head_without_an_end_is_502() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let mut client = gate.client();
    let (mut wire, _) = ask(&mut client, &upstream, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    wire.send(b"HTTP/1.1 200 OK\r\nX-Begun: ");
    drop(wire);
    let answer = client.head();
    assert_eq!(answer.status, 502);
    assert_eq!(client.json(&answer)["reason"], "upstream_malformed");
    // A head of megabytes is not kept.
    let (mut wire, _) = ask(&mut client, &upstream, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let line = [b"X: ".as_slice(), &[b'x'; 8000], b"\r\n"].concat();
    let _ = std::io::Write::write_all(
        &mut wire.stream,
        &[b"HTTP/1.1 200 OK\r\n".as_slice(), &line.repeat(300)].concat(),
    );
    let answer = client.head();
    assert_eq!(answer.status, 502);
}

#[test]
fn a_body_cut_short_closes_the_clients_connection() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let mut client = gate.client();
    let (mut wire, _) = ask(&mut client, &upstream, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
    drop(wire);
    assert_eq!(client.head().status, 200);
    assert_eq!(client.rest(), b"half");

    let mut client = gate.client();
    let (mut wire, _) = ask(&mut client, &upstream, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
    assert_eq!(client.head().status, 200);
    assert_eq!(chunk(&mut client), b"half");
    drop(wire);
    assert_eq!(client.rest(), b"", "no last chunk makes it look whole");
}

#[test]
fn broken_chunks_of_the_backend_close_the_clients_connection() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let mut client = gate.client();
    let (mut wire, _) = ask(&mut client, &upstream, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
    assert_eq!(client.head().status, 200);
    assert_eq!(chunk(&mut client), b"half");
    wire.send(b"zz\r\n");
    assert_eq!(client.rest(), b"");
    wire.ends();
}

#[test]
fn a_request_cut_short_is_never_completed_for_the_backend() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let mut client = gate.client();
    let (mut wire, _) = ask(
        &mut client,
        &upstream,
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    );
    assert_eq!(wire.until(b"half\r\n"), b"4\r\nhalf\r\n");
    drop(client);
    wire.ends();
    let mut client = gate.client();
    let (mut wire, _) =
        ask(&mut client, &upstream, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf");
    assert_eq!(wire.exactly(4), b"half");
    drop(client);
    wire.ends();
}

#[test]
fn a_client_that_leaves_takes_its_request_along() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Gate::start(&passing(&upstream, &issuer));
    let mut client = gate.client();
    let (mut wire, _) = ask(&mut client, &upstream, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    drop(client);
    wire.ends();
    // In the middle of an answer as well.
    let mut client = gate.client();
    let (mut wire, _) = ask(&mut client, &upstream, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
    assert_eq!(client.head().status, 200);
    drop(client);
    wire.ends();
}
