//! Backends behind a unix socket and behind TLS.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::super::harness::{Client, Gate, Handshake, Issuer, PATIENCE, masked};
use super::wire::{Wire, bare_config, close_payload, good, goodbye, pattern, switching, unmasked};

/// A path of this test alone.
pub fn temporary(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("sidegate-it-{}-{name}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}

/// Upgrade, megabytes, Close.
fn relays<S: Read + Write>(mut client: Client, mut wire: Wire<S>) {
    let head = wire.head();
    assert!(head.starts_with("GET /ws/ HTTP/1.1\r\n"), "{head}");
    wire.send(switching().as_bytes());
    assert_eq!(client.head().status, 101);
    for size in [0, 5, 70_000] {
        let frame = masked(0x82, &pattern(size));
        client.send(&frame);
        assert_eq!(wire.exactly(frame.len()), frame);
        let frame = unmasked(0x82, &pattern(size));
        wire.send(&frame);
        assert_eq!(client.exactly(frame.len()), frame);
    }
    client.send(&masked(0x88, &close_payload(4000, "bye")));
    assert_eq!(wire.close(), (4000, "bye".into()));
    wire.send(&goodbye(4000, "bye"));
    assert_eq!(client.close(), (4000, "bye".into()));
    assert_eq!(client.rest(), b"");
}

fn answers<S: Read + Write>(client: &mut Client, wire: &mut Wire<S>) {
    client.send(b"POST /api HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
    assert!(wire.head().starts_with("POST /api "));
    assert_eq!(wire.exactly(2), b"hi");
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    let answer = client.head();
    assert_eq!(client.body(&answer), b"hello");
}

#[test]
fn a_backend_behind_a_unix_socket_gets_upgrades_and_requests() {
    let issuer = Issuer::start();
    let path = temporary("backend.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let gate = Gate::start(&bare_config(&format!("unix:{}", path.display())).issuer(&issuer, ""));
    let accept = || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Wire::over(stream)
    };
    let client = gate.send(&good(&issuer).bytes());
    relays(client, accept());
    let mut client = gate.client();
    client.send(b"GET / HTTP/1.1\r\nHost: chat.example.com\r\n\r\n");
    let mut wire = accept();
    assert!(wire.head().contains("host: chat.example.com\r\n"));
    wire.send(b"HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(client.head().status, 204);
    answers(&mut client, &mut wire);
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_unix_socket_that_appears_within_the_connect_timeout_is_waited_for_and_none_is_502() {
    let issuer = Issuer::start();
    let path = temporary("late.sock");
    let config = bare_config(&format!("unix:{}", path.display())).issuer(&issuer, "");
    let gate = Gate::start(&config.set("upstream.connect_timeout", "'400ms'"));
    let (mut client, answer) = gate.upgrade(&good(&issuer));
    assert_eq!((answer.status, client.json(&answer)["reason"].as_str()), (502, Some("upstream_unreachable")));
    let client = gate.send(&good(&issuer).bytes());
    std::thread::sleep(std::time::Duration::from_millis(150));
    let listener = UnixListener::bind(&path).unwrap();
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    relays(client, Wire::over(stream));
    std::fs::remove_file(path).unwrap();
}

/// A backend with a certificate of its own for these names, which is also the CA file.
struct Tls {
    listener: TcpListener,
    config: Arc<ServerConfig>,
    ca: PathBuf,
}

impl Tls {
    fn start(name: &str, file: &str) -> Self {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let ca = temporary(file);
        std::fs::write(&ca, made.cert.pem()).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![CertificateDer::from(made.cert.der().to_vec())], key)
            .unwrap();
        Self { listener: TcpListener::bind("127.0.0.1:0").unwrap(), config: Arc::new(config), ca }
    }

    fn gate(&self, issuer: &Issuer, host: &str, ca: &std::path::Path) -> Gate {
        let port = self.listener.local_addr().unwrap().port();
        let config = bare_config(&format!("https://{host}:{port}")).issuer(issuer, "");
        Gate::start(&config.set("upstream.ca_file", &format!("'{}'", ca.display())))
    }

    fn accept(&self) -> Wire<StreamOwned<ServerConnection, TcpStream>> {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Wire::over(StreamOwned::new(ServerConnection::new(Arc::clone(&self.config)).unwrap(), stream))
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.ca);
    }
}

#[test]
fn a_backend_behind_tls_gets_upgrades_and_requests() {
    let issuer = Issuer::start();
    let backend = Tls::start("127.0.0.1", "backend.pem");
    let gate = backend.gate(&issuer, "127.0.0.1", &backend.ca);
    let client = gate.send(&good(&issuer).bytes());
    relays(client, backend.accept());
    let mut client = gate.client();
    client.send(b"GET / HTTP/1.1\r\nHost: chat.example.com\r\n\r\n");
    let mut wire = backend.accept();
    wire.head();
    wire.send(b"HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(client.head().status, 204);
    answers(&mut client, &mut wire);
}

#[test]
fn a_session_over_tls_ends_with_a_close_on_both_sides() {
    let issuer = Issuer::start();
    let backend = Tls::start("127.0.0.1", "ending.pem");
    let gate = backend.gate(&issuer, "127.0.0.1", &backend.ca);
    let mut client = gate.send(&good(&issuer).bytes());
    let mut wire = backend.accept();
    wire.head();
    wire.send(switching().as_bytes());
    assert_eq!(client.head().status, 101);
    client.send(&unmasked(0x81, b"bad"));
    assert_eq!(client.close(), (1002, "frame_malformed".into()));
    assert_eq!(wire.close(), (1001, "frame_malformed".into()));
    assert_eq!(wire.rest(), b"", "and a close_notify, or this were an error");
}

#[test]
fn a_certificate_that_is_not_vouched_for_is_502_and_the_backend_hears_nothing() {
    let issuer = Issuer::start();
    let (backend, other) = (Tls::start("127.0.0.1", "real.pem"), Tls::start("127.0.0.1", "other.pem"));
    let wrong_name = Tls::start("other.example", "name.pem");
    for (backend, ca) in [(&backend, &other.ca), (&wrong_name, &wrong_name.ca)] {
        let gate = backend.gate(&issuer, "127.0.0.1", ca);
        for request in [good(&issuer).bytes(), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()] {
            let mut client = gate.send(&request);
            let mut wire = backend.accept();
            let mut heard = Vec::new();
            let _ = wire.stream.read_to_end(&mut heard);
            assert!(heard.is_empty(), "{heard:?}");
            let answer = client.head();
            assert_eq!(answer.status, 502);
            assert_eq!(client.json(&answer)["reason"], "upstream_unreachable");
        }
    }
}

#[test]
fn a_backend_that_speaks_no_tls_is_502() {
    let issuer = Issuer::start();
    let backend = Tls::start("127.0.0.1", "plain.pem");
    let gate = backend.gate(&issuer, "127.0.0.1", &backend.ca);
    let mut client = gate.send(&Handshake::to("/ws/").bearer(&issuer.good_token()).bytes());
    let (mut stream, _) = backend.listener.accept().unwrap();
    stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    let answer = client.head();
    assert_eq!((answer.status, client.json(&answer)["reason"].as_str()), (502, Some("upstream_unreachable")));
}
