//! The admin listener and the probes listener.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sidegate::app::{self, Log};

use super::super::harness::{Answer, Client, Issuer, Listening, PATIENCE, eventually};
use super::dialing::temporary;
use super::wire::Upstream;

/// A request with these lines instead of `Host: localhost`; head and body of its answer.
fn ask(address: SocketAddr, line: &str, lines: &[&str]) -> (Answer, String) {
    let mut client = Client::connect(address, Arc::default());
    let lines: String = lines.iter().flat_map(|line| [line, "\r\n"]).collect();
    client.send(format!("{line} HTTP/1.1\r\n{lines}Connection: close\r\n\r\n").as_bytes());
    let answer = client.head();
    let body = client.body(&answer);
    (answer, String::from_utf8(body).unwrap())
}

fn status(address: SocketAddr, line: &str, lines: &[&str]) -> u16 {
    ask(address, line, lines).0.status
}

fn token_file(name: &str) -> PathBuf {
    let path = temporary(name);
    std::fs::write(&path, "s3cret\n").unwrap();
    path
}

const LOCAL: &str = "Host: localhost";

#[test]
fn the_four_pages_are_on_both_listeners_and_drain_on_one() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let file = token_file("both.token");
    let config = upstream.config(&issuer).set("admin.probes", "'127.0.0.1:0'");
    let gate = Listening::start(&config.set("admin.token_file", &format!("'{}'", file.display())));
    let (admin, probes) = (gate.admin.unwrap(), gate.probes.unwrap());
    eventually("readiness", || (status(probes, "GET /readyz", &[LOCAL]) == 200).then_some(()));
    for address in [admin, probes] {
        for page in ["/livez", "/readyz", "/metrics"] {
            let (answer, body) = ask(address, &format!("GET {page}"), &[LOCAL]);
            assert_eq!(answer.status, 200, "{page}");
            let kind = if page == "/metrics" { "application/openmetrics-text" } else { "application/json" };
            assert!(answer.header("content-type").unwrap().starts_with(kind), "{}", answer.text);
            assert!(!body.is_empty());
        }
        for page in ["/", "/livez/", "/metrics/x", "/sessions/", "/revocation"] {
            assert_eq!(status(address, &format!("GET {page}"), &[LOCAL]), 404, "{page}");
        }
        // The probes listener does not even say that there is more.
        let guarded = if address == admin { 401 } else { 404 };
        for page in ["/sessions", "/config", "/revocations", "/limits"] {
            assert_eq!(status(address, &format!("GET {page}"), &[LOCAL]), guarded, "{page}");
        }
        assert_eq!(status(address, "POST /livez", &[LOCAL]), 405);
    }
    // Kubelet and Prometheus come by the pod's address, or a name.
    assert_eq!(status(probes, "GET /livez", &["Host: 10.1.2.3:9091"]), 200);
    assert_eq!(status(probes, "GET /metrics", &["Host: pod.example"]), 200);
    let with_token = [LOCAL, "Authorization: Bearer s3cret"];
    assert!(
        matches!(status(probes, "POST /drain", &with_token), 404..=405),
        "the probes listener drains nothing"
    );
    assert_eq!(status(admin, "GET /readyz", &[LOCAL]), 200);
    // And the public listener has none of these pages: they go to the backend.
    let mut client = Client::connect(gate.public, Arc::default());
    client.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut wire = upstream.accept();
    assert!(wire.head().starts_with("GET /metrics "));
    wire.send(b"HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(client.head().status, 204);
    std::fs::remove_file(file).unwrap();
}

#[test]
fn without_a_token_configured_a_drain_is_403_with_the_remedy() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Listening::start(&upstream.config(&issuer));
    for lines in
        [vec![LOCAL], vec![LOCAL, "Authorization: Bearer anything"], vec![LOCAL, "Authorization: Bearer "]]
    {
        let (answer, body) = ask(gate.admin.unwrap(), "POST /drain", &lines);
        assert_eq!(answer.status, 403);
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        assert!(body.contains("token_file") && body.contains("unix:"), "{body}");
    }
    assert_eq!(status(gate.admin.unwrap(), "GET /livez", &[LOCAL]), 200);
}

#[test]
fn a_drain_takes_the_right_token_and_a_wrong_one_looks_like_none() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let file = token_file("right.token");
    let config = upstream.config(&issuer).set("drain.delay", "'300ms'");
    let gate = Listening::start(&config.set("admin.token_file", &format!("'{}'", file.display())));
    let admin = gate.admin.unwrap();
    eventually("readiness", || (status(admin, "GET /readyz", &[LOCAL]) == 200).then_some(()));
    let mut bodies = Vec::new();
    for wrong in [
        None,
        Some("Authorization: Bearer s3cre"),
        Some("Authorization: Bearer s3cret2"),
        Some("Authorization: Bearer"),
        Some("Authorization: Basic s3cret"),
        Some("Authorization: s3cret"),
        Some("Authorization: Bearer wrong\r\nAuthorization: Bearer s3cret"),
    ] {
        let lines: Vec<_> = [LOCAL].into_iter().chain(wrong).collect();
        let (answer, body) = ask(admin, "POST /drain", &lines);
        assert_eq!(answer.status, 401, "{wrong:?}");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        bodies.push(body);
    }
    assert!(bodies.iter().all(|body| *body == bodies[0]));
    assert_eq!(status(admin, "GET /drain", &[LOCAL, "Authorization: Bearer s3cret"]), 405);
    assert_eq!(status(admin, "GET /readyz", &[LOCAL]), 200, "nothing has begun");
    assert_eq!(status(admin, "POST /drain", &[LOCAL, "Authorization: Bearer s3cret"]), 202);
    let (answer, body) = ask(admin, "GET /readyz", &[LOCAL]);
    assert_eq!(answer.status, 503);
    assert!(body.contains("draining"), "{body}");
    assert_eq!(status(admin, "GET /livez", &[LOCAL]), 200);
    std::fs::remove_file(file).unwrap();
}

#[test]
fn web_pages_are_kept_out() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let gate = Listening::start(&upstream.config(&issuer));
    let admin = gate.admin.unwrap();
    for host in ["localhost", "localhost:9090", "LOCALHOST", "127.0.0.1:9090", "[::1]:9090", "10.0.0.7"] {
        assert_eq!(status(admin, "GET /livez", &[&format!("Host: {host}")]), 200, "{host}");
    }
    for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "localhost@evil"] {
        assert_eq!(status(admin, "GET /metrics", &[&format!("Host: {host}")]), 403, "{host}");
    }
    assert_eq!(status(admin, "GET /metrics", &["Host: localhost", "Host: evil.example"]), 403);
    assert_eq!(status(admin, "GET /metrics", &[]), 403);
    for origin in ["https://evil.example", "null", "http://localhost:9090"] {
        assert_eq!(status(admin, "GET /metrics", &[LOCAL, &format!("Origin: {origin}")]), 403, "{origin}");
    }
}

fn ask_unix(path: &std::path::Path, request: &str) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn over_a_unix_socket_no_token_is_needed_but_its_permissions_are() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let path = temporary("admin.sock");
    // What a killed gate has left behind is no obstacle.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let config = upstream.config(&issuer).set("admin.address", &format!("'unix:{}'", path.display()));
    let gate = Listening::start(&config);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let page = |line: &str| {
        ask_unix(&path, &format!("{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
    };
    assert!(page("GET /livez").starts_with("HTTP/1.1 200 "));
    assert!(page("GET /metrics").contains("# EOF\n"));
    assert!(page("POST /drain").starts_with("HTTP/1.1 202 "));
    assert!(page("GET /drained").starts_with("HTTP/1.1 200 "));
    // A second gate does not take the socket of a living one away.
    let second = upstream.config(&issuer).set("admin.address", &format!("'unix:{}'", path.display()));
    let loaded = app::config::read(&second.text(), std::iter::empty());
    let config = loaded.config.unwrap();
    let log = Log::to_memory(config.log);
    assert!(app::bind(config, log).is_err());
    drop(gate);
    let _ = std::fs::remove_file(path);
}

#[test]
fn drained_answers_once_the_drain_has_ended_and_to_all_that_wait() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let config = upstream.config(&issuer).set("admin.probes", "'127.0.0.1:0'");
    let gate = Listening::start(&config.set("drain.delay", "'200ms'"));
    let mut waiting: Vec<_> = [gate.admin.unwrap(), gate.probes.unwrap(), gate.probes.unwrap()]
        .map(|address| {
            let mut client = Client::connect(address, Arc::default());
            client.send(b"GET /drained HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            client
        })
        .into();
    waiting[0].stays_silent(Duration::from_millis(100));
    gate.control.drain();
    waiting[1].stays_silent(Duration::from_millis(100));
    for client in &mut waiting {
        let answer = client.head();
        assert_eq!(answer.status, 200);
        assert_eq!(client.json(&answer)["drained"], true);
    }
    assert_eq!(status(gate.probes.unwrap(), "GET /drained", &[LOCAL]), 200, "also to who comes later");
}
