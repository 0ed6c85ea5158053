use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::JoinHandle;

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};

use http::header::{self, HeaderValue};

use super::*;
use crate::telemetry::logging::Level;

/// Nobody reads these lines, and the end of the gate would wait for it.
fn silent(settings: LogSettings) -> Log {
    Log::to_memory(LogSettings { level: Level::Error, ..settings })
}

fn options(port: u16) -> Options {
    Options { port, issuer: None, client: "chat".into(), audience: None }
}

/// The demo on any port, until dropped.
struct Running {
    address: SocketAddr,
    control: Arc<crate::app::drain::Control>,
    stage: Arc<Stage>,
    gate: Option<JoinHandle<Result<Ending>>>,
    _alive: oneshot::Sender<()>,
}

impl Running {
    fn start() -> Self {
        let Demo { bound, alive, stage, .. } = start(&options(0), silent).unwrap();
        let address = bound.addresses()[0];
        let control = bound.control();
        let issuers = control.gate().snapshot.load().issuers.clone();
        let gate = Some(std::thread::spawn(move || bound.run(false)));
        // Before the first keys a token is refused as keys_unavailable.
        while !issuers.iter().all(|issuer| issuer.has_had_keys()) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Self { address, control, stage, gate, _alive: alive }
    }

    /// Status and body.
    fn get(&self, target: &str, token: Option<&str>) -> (u16, String) {
        let authorization =
            token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        self.ask(&format!(
            "GET {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{authorization}\r\n",
            self.address
        ))
    }

    fn ask(&self, request: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    /// As the page itself asks.
    fn press(&self, button: &str, body: &str) -> (u16, String) {
        let (address, length) = (self.address, body.len());
        self.ask(&format!(
            "{button} HTTP/1.1\r\nHost: {address}\r\nOrigin: http://{address}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
    }

    fn token(&self, query: &str) -> String {
        let (status, token) = self.get(&format!("{}/token?{query}", issuer::REALM), None);
        assert_eq!(status, 200, "{token}");
        token.trim().to_owned()
    }

    /// Opens a socket as a program or, with its `Origin`, as a page would; gives what the backend saw,
    /// an echo and the Close.
    fn talk(&self, target: &str, page: bool) -> Result<(Value, Option<u16>, String), tungstenite::Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut request = format!("ws://{}{target}", self.address).into_client_request()?;
            if page {
                let origin = HeaderValue::try_from(format!("http://{}", self.address)).unwrap();
                request.headers_mut().insert(header::ORIGIN, origin);
            }
            let stream = tokio::net::TcpStream::connect(self.address).await?;
            let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await?;
            let mut seen = Value::Null;
            while let Some(message) = socket.next().await.transpose()? {
                match message {
                    Message::Text(text) if seen.is_null() => {
                        seen = serde_json::from_str(&text).unwrap();
                        socket.send(Message::text("hello")).await?;
                    }
                    Message::Text(text) => assert_eq!(text.as_str(), "hello"),
                    Message::Close(frame) => {
                        let frame = frame.unwrap();
                        return Ok((seen, Some(frame.code.into()), frame.reason.to_string()));
                    }
                    other => panic!("{other}"),
                }
            }
            Ok((seen, None, String::new()))
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.control.drain_and_leave();
        let ending = self.gate.take().unwrap().join().unwrap().unwrap();
        assert_eq!(ending, Ending::Drained);
    }
}

#[test]
fn the_printed_lines_work() {
    let demo = Running::start();
    let token = demo.token("user=alice&expires_in=2");

    let (status, page) = demo.get("/", None);
    assert!(status == 200 && page.contains("<title>sidegate demo</title>") && !page.contains("{{"), "{page}");
    assert_eq!(demo.get("/api/me", None).0, 401);
    let (status, seen) = demo.get("/api/me", Some(&token));
    let seen: Value = serde_json::from_str(&seen).unwrap();
    assert_eq!((status, &seen["headers"]["x-auth-username"]), (200, &"alice".into()), "{seen}");

    // Without an Origin, as websocat: open, seen without its token, and closed as the token ends.
    let (seen, code, label) = demo.talk(&format!("/ws/chat/?room=1&token={token}"), false).unwrap();
    assert_eq!(seen["headers"]["x-auth-roles"], "user");
    assert_eq!((&seen["query"], &seen["path"]), (&"room=1".into(), &"/ws/chat/".into()));
    assert_eq!((code, label.as_str()), (Some(4001), "token_expired"));
}

#[test]
fn a_page_reads_why_it_is_refused() {
    let demo = Running::start();
    let (alice, old) = (demo.token("user=alice"), demo.token("user=alice&expires_in=0"));
    for (path, token, expected) in [
        ("/ws/events/globex/", alice.as_str(), (4003, "rule_denied")),
        ("/ws/staff/", &alice, (4003, "rule_denied")),
        ("/nowhere/", &alice, (4003, "route_unknown")),
        ("/ws/chat/", &old, (4001, "token_expired")),
        ("/ws/chat/", "x", (4001, "token_malformed")),
    ] {
        let (seen, code, label) = demo.talk(&format!("{path}?token={token}"), true).unwrap();
        assert_eq!((seen, code, label.as_str()), (Value::Null, Some(expected.0), expected.1), "{path}");
    }
    let without_page = demo.talk("/ws/chat/", false).unwrap_err();
    assert!(matches!(without_page, tungstenite::Error::Http(answer) if answer.status() == 401));
}

#[test]
fn the_token_endpoint_answers_as_keycloak_does() {
    let demo = Running::start();
    let log_in = |form: &str| {
        let path = format!("{}/protocol/openid-connect/token", issuer::REALM);
        let (status, body) = demo.ask(&format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
            demo.address,
            form.len()
        ));
        (status, serde_json::from_str::<Value>(&body).unwrap())
    };
    let (status, body) = log_in("grant_type=password&client_id=chat&username=bob&password=bob");
    assert_eq!((status, &body["token_type"], &body["expires_in"]), (200, &"Bearer".into(), &300.into()));
    let id_token = body["id_token"].as_str().unwrap();
    let (_, code, label) = demo.talk(&format!("/ws/chat/?token={id_token}"), true).unwrap();
    assert_eq!((code, label.as_str()), (Some(4001), "token_type"));
    assert_eq!(log_in("username=bob&password=alice").1["error"], "invalid_grant");
    assert_eq!(log_in("username=bob&password=bob&expires_in=x").0, 400);
}

#[test]
fn a_taken_port_is_named_with_the_way_out() {
    let (_taken, port) = listen().unwrap();
    let error = start(&options(port), silent).err().unwrap().to_string();
    assert!(error.contains(&format!("port {port}")) && error.contains("--port"), "{error}");
}

#[test]
fn the_page_finds_its_files() {
    let demo = Running::start();
    for path in
        ["/page.css", "/page.mjs", "/tokens.mjs", "/sidegate.mjs", "/frame", "/frame.mjs", "/icon.svg"]
    {
        let (status, body) = demo.get(path, None);
        assert!(status == 200 && !body.is_empty(), "{path}: {status}");
    }
    assert_eq!(demo.get("/page", None).0, 404);
}

#[test]
fn the_buttons_do_what_an_operator_does() {
    let demo = Running::start();
    let token = demo.token("user=alice");
    let (status, sessions) = demo.get("/demo/sessions?limit=5", None);
    let sessions: Value = serde_json::from_str(&sessions).unwrap();
    assert_eq!((status, &sessions["total"]), (200, &0.into()));
    let sub = "8b6a2f0e-5c1d-4a57-9d3e-0a11ce000001";
    assert_eq!(demo.press("POST /demo/revocations", &format!("{{\"sub\": \"{sub}\"}}")).0, 201);
    assert_eq!(demo.get("/api/me", Some(&token)).0, 403);
    assert_eq!(demo.press("DELETE /demo/sessions?all=true", "").0, 200);
    assert_eq!(demo.press("POST /demo/nothing", "").0, 404);
    assert_eq!(
        demo.ask(&format!(
            "POST /demo/drain HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            demo.address
        ))
        .0,
        403
    );
    assert!(!demo.stage.is_to_go_on());
    assert_eq!(demo.press("POST /demo/drain", "").0, 202);
    assert!(demo.stage.is_to_go_on());
}

#[test]
fn a_real_issuer_takes_the_place_of_the_embedded_one() {
    let with = |issuer: &str, audience: Option<&str>| {
        let external =
            External { issuer: issuer.into(), client: "page".into(), audience: audience.map(str::to_owned) };
        Setting { gate: 8080, admin: 9090, issuer: 1, backend: 2, external: Some(external) }
    };
    for audience in [None, Some("chat")] {
        let setting = with("https://sso.example.com/realms/demo", audience);
        configured(&setting).unwrap();
        let text = setting.configuration();
        assert!(
            text.contains("connect-src = [\"'self'\", \"ws:\", \"wss:\", \"https://sso.example.com\"]"),
            "{text}"
        );
        assert!(!text.contains("/realms/*"));
        let told = greeting(&setting);
        assert!(told.contains("http://127.0.0.1:8080/ as a valid redirect URI") && !told.contains("alice"));
    }
    let error = configured(&with("keycloak\"\n[log", None)).err().unwrap().to_string();
    assert!(error.contains("issuer[1].url"), "{error}");
}
