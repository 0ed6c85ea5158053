//! An issuer without `jwks_uri`: OpenID Connect discovery.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::super::harness::{Backend, Config, Gate, Handshake, Issuer, Key, PATIENCE, eventually, now};
use super::keys::page;

/// Documents by path; anything else is 404.
#[derive(Clone, Default)]
struct Documents(Arc<Mutex<BTreeMap<String, String>>>);

impl Documents {
    fn put(&self, path: &str, document: &Value) {
        self.0.lock().unwrap().insert(path.to_owned(), document.to_string());
    }

    /// Serves until the process ends.
    fn serve(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let documents = self.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                documents.answer(stream.unwrap());
            }
        });
        address
    }

    fn answer(&self, mut stream: TcpStream) {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return,
            }
        }
        let head = String::from_utf8(head).unwrap();
        let found = self.0.lock().unwrap().get(head.split(' ').nth(1).unwrap()).cloned();
        let (status, body) = found.map_or((404, String::new()), |body| (200, body));
        let length = body.len();
        let _ = stream.write_all(
            format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
                .as_bytes(),
        );
    }
}

const WELL_KNOWN: &str = "/realms/demo/.well-known/openid-configuration";

/// The gate with this issuer, which says what it likes.
fn gate(backend: &Backend, issuer: &str) -> Gate {
    // A table may follow the lines of another one.
    let lines =
        format!("path = '/*'\n[[issuer]]\nurl = '{issuer}'\naudiences = ['chat']\nalgorithms = ['ES256']");
    Gate::start_without_keys(&Config::without_issuer(backend).route(&lines))
}

fn token(key: &Key, iss: &str) -> String {
    let claims = json!({"iss": iss, "aud": "chat", "typ": "Bearer", "sub": "alice", "exp": now() + 300});
    key.sign(&key.header(), &claims)
}

#[test]
fn the_keys_are_where_discovery_says() {
    let (documents, backend, key) = (Documents::default(), Backend::start(), Key::new("k1"));
    let origin = format!("http://{}", documents.serve());
    // A trailing slash belongs to the name of the issuer, not to the path of its document.
    for slash in ["", "/"] {
        let url = format!("{origin}/realms/demo{slash}");
        documents.put(WELL_KNOWN, &json!({"issuer": url, "jwks_uri": format!("{origin}/keys{slash}")}));
        documents.put(&format!("/keys{slash}"), &json!({"keys": [key.jwk()]}));
        let gate = gate(&backend, &url);
        eventually("the gate to be ready", || (page(&gate, "/readyz").0 == 200).then_some(()));
        gate.open(&Handshake::to("/ws/").bearer(&token(&key, &url)));
    }
}

#[test]
fn discovery_that_speaks_for_another_issuer_or_names_no_place_is_not_believed() {
    let (documents, backend, key) = (Documents::default(), Backend::start(), Key::new("k1"));
    let issuer = Issuer::with(key.clone());
    let origin = format!("http://{}", documents.serve());
    let url = format!("{origin}/realms/demo");
    for document in [
        json!({"issuer": format!("{origin}/realms/other"), "jwks_uri": issuer.jwks_uri()}),
        json!({"issuer": format!("{url}/"), "jwks_uri": issuer.jwks_uri()}),
        json!({"jwks_uri": issuer.jwks_uri()}),
        json!({"issuer": [url], "jwks_uri": issuer.jwks_uri()}),
        json!({"issuer": url}),
        json!({"issuer": url, "jwks_uri": "/keys"}),
        json!({"issuer": url, "jwks_uri": "//127.0.0.1/keys"}),
        json!({"issuer": url, "jwks_uri": "file:///etc/passwd"}),
        json!([]),
    ] {
        documents.put(WELL_KNOWN, &document);
        let gate = gate(&backend, &url);
        gate.logged("jwks_failed");
        let (status, body) = page(&gate, "/readyz");
        assert_eq!(status, 503, "{document}");
        assert!(body.to_string().contains(&url), "{body}");
        let handshake = Handshake::to("/ws/").bearer(&token(&key, &url));
        assert_eq!(gate.refusal(&handshake), (503, "keys_unavailable".into()), "{document}");
    }
    assert_eq!(issuer.fetches(), 0);
    backend.assert_never_heard();
}
