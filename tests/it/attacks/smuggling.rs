//! Bodies that two parsers end in two places.

use super::super::harness::eventually;
use super::Scene;

fn open() -> Scene {
    Scene::with(|config| config.route("path = '/*'\nauth = 'none'"))
}

#[test]
fn a_request_whose_end_is_doubtful_is_refused() {
    let scene = open();
    for lines in [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5, 6",
        "Content-Length: +5",
        "Content-Length: -1",
        "Content-Length: 0x5",
        "Content-Length: 5 5",
        "Content-Length: 99999999999999999999999",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: \u{b}chunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: chat.example.com\r\n{lines}\r\n\r\nhello");
        assert_eq!(scene.status(request.as_bytes()), 400, "{lines:?}");
    }
    scene.backend.assert_never_heard();
}

#[test]
fn a_length_beside_chunks_does_not_travel_on() {
    let scene = open();
    let request = "POST /one HTTP/1.1\r\nHost: chat.example.com\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut client = scene.gate.send(request.as_bytes());
    let answer = client.head();
    // Refused is right as well (RFC 9112 §6.3).
    if answer.status == 200 {
        let heard = scene.backend.request(0);
        assert_eq!(heard.line(), "POST /one HTTP/1.1");
        let framed = (heard.header("content-length"), heard.header("transfer-encoding"));
        assert!(framed.0.is_none() || framed.1.is_none(), "{framed:?}");
        assert!(!String::from_utf8_lossy(&heard.after).contains("smuggled"));
    } else {
        assert_eq!(answer.status, 400);
    }
}

#[test]
fn trailers_and_what_chunks_pretend_to_be_stay_here() {
    let scene = open();
    let body = "5;ext=\"x\"\r\nhello\r\n0\r\nX-Auth-Subject: mallory\r\nContent-Length: 0\r\n\r\n";
    let request = format!(
        "POST / HTTP/1.1\r\nHost: chat.example.com\r\nTransfer-Encoding: chunked\r\nTrailer: X-Auth-Subject\r\nTE: trailers\r\n\r\n{body}"
    );
    assert_eq!(scene.status(request.as_bytes()), 200);
    let heard =
        eventually("the body", || scene.backend.heard().pop().filter(|heard| !heard.after.is_empty()));
    let text = format!("{}{}", heard.text(), String::from_utf8_lossy(&heard.after));
    assert!(text.contains("hello") && !text.contains("mallory"), "{text}");
    assert_eq!((heard.header("te"), heard.header("trailer")), (None, None));
    // Chunks that are none end the request.
    for body in
        ["5\r\nhelloX\r\n0\r\n\r\n", "x\r\n\r\n", "fffffffffffffffff\r\nhello", "-5\r\nhello\r\n0\r\n\r\n"]
    {
        let request =
            format!("POST / HTTP/1.1\r\nHost: chat.example.com\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        let mut client = scene.gate.send(request.as_bytes());
        client.finish();
        let rest = String::from_utf8_lossy(&client.rest()).into_owned();
        assert!(!rest.starts_with("HTTP/1.1 200"), "{body:?}: {rest}");
    }
}

#[test]
fn an_answer_that_could_be_two_is_502() {
    let scene = open();
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 40\r\n\r\nplain",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nplain",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "garbage\r\n\r\n",
    ] {
        scene.backend.plain(answer);
        let request = "GET / HTTP/1.1\r\nHost: chat.example.com\r\n\r\n";
        assert_eq!(scene.status(request.as_bytes()), 502, "{answer:?}");
    }
}

#[test]
fn bytes_after_an_answer_are_nobodys_next_answer() {
    let scene = open();
    scene.backend.plain(
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplainHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
    );
    for _ in 0..3 {
        let (answer, body) = scene.gate.ask(b"GET / HTTP/1.1\r\nHost: chat.example.com\r\n\r\n");
        assert_eq!((answer.status, body.as_slice()), (200, b"plain".as_slice()));
    }
}
