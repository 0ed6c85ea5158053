//! A gate with an operator who has its token.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::super::harness::{
    Answer, Backend, Client, Config, Frame, Gate, Handshake, Heard, Issuer, eventually, take_frame,
};

pub const SECRET: &str = "0perator-s3cret";

/// A directory of one test; gone with it.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sidegate-operating-{}-{next}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A path as TOML has it.
pub fn quoted(path: &Path) -> String {
    format!("'{}'", path.display())
}

/// An answer of the admin listener, whole.
#[derive(Debug)]
pub struct Said {
    pub status: u16,
    pub head: Answer,
    pub body: String,
}

impl Said {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }

    /// What is wrong, in the words of the problem.
    pub fn detail(&self) -> String {
        let problem = self.json();
        assert_eq!(self.head.header("content-type"), Some("application/problem+json"), "{self:?}");
        assert_eq!(problem["status"], self.status, "{self:?}");
        problem["detail"].as_str().unwrap_or_else(|| panic!("{self:?}")).to_owned()
    }
}

/// Reads one answer.
pub fn answer(client: &mut Client) -> Said {
    let head = client.head();
    let body = String::from_utf8(client.body(&head)).unwrap();
    Said { status: head.status, head, body }
}

/// A request with these header lines, and `Content-Length` if there is a body.
pub fn request(line: &str, lines: &[&str], body: &str) -> Vec<u8> {
    let length = format!("Content-Length: {}", body.len());
    let (first, length) = (format!("{line} HTTP/1.1"), (!body.is_empty()).then_some(length.as_str()));
    let head: Vec<_> = [first.as_str()].into_iter().chain(lines.iter().copied()).chain(length).collect();
    format!("{}\r\n\r\n{body}", head.join("\r\n")).into_bytes()
}

pub const LOCAL: &str = "Host: localhost";

/// Gate, backend, issuer, and the operator's token.
pub struct Desk {
    pub gate: Gate,
    pub backend: Backend,
    pub issuer: Issuer,
    pub folder: Folder,
}

impl Desk {
    /// A token is needed for everything.
    pub fn new() -> Self {
        Self::with(|config| config)
    }

    /// The same, but for what `configure` changes.
    pub fn with(configure: impl FnOnce(Config) -> Config) -> Self {
        Self::within(Folder::new(), |config, _| configure(config))
    }

    /// The same, with files.
    pub fn within(folder: Folder, configure: impl FnOnce(Config, &Folder) -> Config) -> Self {
        Self::of(Issuer::start(), folder, configure)
    }

    /// The same, with an issuer that others know too.
    pub fn of(issuer: Issuer, folder: Folder, configure: impl FnOnce(Config, &Folder) -> Config) -> Self {
        let backend = Backend::start();
        let token = folder.write("admin-token", &format!("{SECRET}\n"));
        let config = Config::new(&issuer, &backend)
            .set("http.auth", "'required'")
            .set("admin.token_file", &quoted(&token));
        let gate = Gate::start(&configure(config, &folder));
        Self { gate, backend, issuer, folder }
    }

    /// A request of the operator, such as `GET /sessions`.
    pub fn ask(&self, line: &str) -> Said {
        self.say(line, "")
    }

    /// A request of the operator with a body.
    pub fn say(&self, line: &str, body: &str) -> Said {
        let mut client = self.gate.operator();
        let bearer = format!("Authorization: Bearer {SECRET}");
        client.send(&request(line, &[LOCAL, &bearer, "Connection: close"], body));
        answer(&mut client)
    }

    /// What the operator is told.
    pub fn get(&self, target: &str) -> Value {
        let said = self.ask(&format!("GET {target}"));
        assert_eq!(said.status, 200, "{target}: {said:?}");
        assert_eq!(said.head.header("content-type"), Some("application/json"), "{target}");
        said.json()
    }

    pub fn revoke(&self, what: &Value) -> Said {
        self.say("POST /revocations", &what.to_string())
    }

    /// Many of them on one kept connection; the answers in their order.
    pub fn revoke_all(&self, all: &[Value]) -> Vec<Said> {
        let mut client = self.gate.operator();
        let bearer = format!("Authorization: Bearer {SECRET}");
        let bytes = |what: &Value| request("POST /revocations", &[LOCAL, &bearer], &what.to_string());
        let mut answers = Vec::new();
        // Not all at once: neither side reads while it writes.
        for some in all.chunks(100) {
            client.send(&some.iter().flat_map(bytes).collect::<Vec<_>>());
            answers.extend(some.iter().map(|_| answer(&mut client)));
        }
        answers
    }

    /// A revocation that must be new, and what is told of it.
    pub fn revoked(&self, what: &Value) -> Value {
        let said = self.revoke(what);
        assert_eq!(said.status, 201, "{what}: {said:?}");
        said.json()
    }

    pub fn withdraw(&self, id: &Value) -> Said {
        self.ask(&format!("DELETE /revocations/{}", id.as_str().unwrap()))
    }

    /// A token that is good but for these changes.
    pub fn token(&self, changes: &Value) -> String {
        self.issuer.token(changes)
    }

    /// The token of a user: sub, jti and sid are made of the name.
    pub fn token_of(&self, name: &str) -> String {
        self.token(&json!({"sub": name, "jti": format!("{name}-jti"), "sid": format!("{name}-sid")}))
    }

    /// A live session.
    pub fn open(&self, token: &str) -> Live {
        self.live(&Handshake::to("/ws/").bearer(token))
    }

    pub fn live(&self, handshake: &Handshake) -> Live {
        let client = self.gate.open(handshake);
        Live { client, number: self.backend.heard().len() - 1 }
    }

    /// How an upgrade with this token is refused, to a program and to a page.
    pub fn refusals(&self, token: &str) -> ((u16, String), (u16, String)) {
        let to = || Handshake::to("/ws/").bearer(token);
        (self.gate.refusal(&to()), self.gate.refusal_by_close(&to().page()))
    }

    /// Status and label of the answer to a plain request with this token.
    pub fn plain(&self, token: &str) -> (u16, String) {
        let bearer = format!("Authorization: Bearer {token}");
        let lines = ["Host: chat.example.com", &bearer, "Connection: close"];
        let (answer, body) = self.gate.ask(&request("GET /api", &lines, ""));
        let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
        (answer.status, problem["reason"].as_str().unwrap_or_default().to_owned())
    }

    /// This token opens a session and passes with a plain request.
    pub fn assert_welcome(&self, token: &str) {
        Gate::assert_echo(&mut self.open(token).client);
        assert_eq!(self.plain(token).0, 200);
    }

    /// This token does neither, for this reason, and the backend does not hear of it.
    pub fn assert_unwelcome(&self, token: &str, reason: &str) {
        let (status, code) = if reason == "user_revoked" { (403, 4003) } else { (401, 4001) };
        let connections = self.backend.connections();
        let refused = |number: u16| (number, reason.to_owned());
        assert_eq!(self.refusals(token), (refused(status), refused(code)));
        assert_eq!(self.plain(token), refused(status));
        assert_eq!(self.backend.connections(), connections, "the backend heard of it");
    }

    /// A metric gets to this value: what ends a session is counted after its Close.
    pub fn assert_metric(&self, series: &str, value: u64) {
        eventually(&format!("{series} {value}"), || (self.gate.metric(series) == value).then_some(()));
    }

    /// The lines of the log of this event.
    pub fn lines(&self, event: &str) -> Vec<Value> {
        self.gate.log().into_iter().filter(|line| line["event"] == event).collect()
    }
}

/// A session and its place among the backend's requests.
pub struct Live {
    pub client: Client,
    pub number: usize,
}

impl Live {
    pub fn assert_echo(&mut self) {
        Gate::assert_echo(&mut self.client);
    }

    /// The gate closes it, orderly, both sides, and lets the backend know why.
    pub fn assert_closed(mut self, desk: &Desk, code: u16, reason: &str) {
        assert_eq!(self.client.close(), (code, reason.to_owned()));
        assert_eq!(self.client.rest(), b"", "more after the Close");
        let last = |bytes: &[u8]| frames(bytes).pop().and_then(|frame| frame.close());
        let told = |heard: &Heard| last(&heard.after).is_some();
        let heard = desk.backend.until(self.number, "a Close at the backend", told);
        assert_eq!(last(&heard.after), Some((1001, reason.to_owned())));
    }
}

/// All frames in these bytes.
pub fn frames(bytes: &[u8]) -> Vec<Frame> {
    let mut rest = bytes.to_vec();
    let frames: Vec<_> = std::iter::from_fn(|| take_frame(&mut rest)).collect();
    assert!(rest.is_empty(), "half a frame: {rest:?}");
    frames
}

/// A moment as the contract writes it, in milliseconds since the epoch.
pub fn millis(moment: &Value) -> u64 {
    let text = moment.as_str().unwrap_or_else(|| panic!("{moment} is no moment"));
    let time = humantime::parse_rfc3339(text).unwrap_or_else(|_| panic!("{text} is not RFC 3339"));
    let since = time.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// Milliseconds since the epoch.
pub fn now_millis() -> u64 {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// So many seconds before now, as the contract writes moments.
pub fn ago(seconds: u64) -> String {
    written(now_millis() - seconds * 1000)
}

/// Milliseconds since the epoch, as the contract writes moments.
pub fn written(millis: u64) -> String {
    let moment = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(millis);
    humantime::format_rfc3339_millis(moment).to_string()
}
