//! Who may come, how often and from where; what answers wear; what a cookie may do. What is expected of
//! the backend is what the backend heard.

use serde_json::{Value, json};

use super::harness::{Answer, Backend, Config, Gate, Handshake, Issuer};

mod addresses;
mod attempts;
mod attempts_all;
mod cookies;
mod cors;
mod cors_refusals;
mod csp;
mod csp_backend;
mod flood;
mod forwarded;
mod peers;
mod preflights;
mod records;
mod security_headers;
mod users;
mod users_displaced;

/// Gate, backend and issuer; dropped in this order.
struct Scene {
    gate: Gate,
    backend: Backend,
    issuer: Issuer,
}

impl Scene {
    fn with(configure: impl FnOnce(Config) -> Config) -> Self {
        let (issuer, backend) = (Issuer::start(), Backend::start());
        let gate = Gate::start(&configure(Config::new(&issuer, &backend)));
        Self { gate, backend, issuer }
    }

    /// Behind a proxy on this machine that says who its clients are.
    fn behind_a_proxy(configure: impl FnOnce(Config) -> Config) -> Self {
        Self::with(|config| configure(config.set("listen.trusted_proxies", "['127.0.0.1', '10.0.0.0/8']")))
    }

    /// An upgrade with a token that is good.
    fn good(&self, target: &str) -> Handshake {
        Handshake::to(target).bearer(&self.issuer.good_token())
    }

    /// The same of this user.
    fn of(&self, sub: &str, target: &str) -> Handshake {
        Handshake::to(target).bearer(&self.issuer.token(&json!({ "sub": sub })))
    }

    /// `Authorization: Bearer …` with a token that is good.
    fn bearer(&self) -> String {
        format!("Authorization: Bearer {}", self.issuer.good_token())
    }

    /// The head of the answer to a plain request on a connection of its own.
    fn ask(&self, method: &str, target: &str, lines: &[&str]) -> Answer {
        self.gate.send(&request(method, target, lines)).head()
    }

    /// Status and label of the refusal of a plain request.
    fn refusal(&self, method: &str, target: &str, lines: &[&str]) -> (u16, String) {
        let (answer, body) = self.gate.ask(&request(method, target, lines));
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        (answer.status, body["reason"].as_str().unwrap_or_default().to_owned())
    }

    /// How often shadow mode has let this pass.
    fn would_refuse(&self, reason: &str) -> u64 {
        self.gate.metric(&format!("would_refuse_total{{reason=\"{reason}\"}}"))
    }

    /// Upgrades that had this outcome.
    fn upgrades(&self, status: &str) -> u64 {
        self.gate.metric(&format!("websocket_connections_total{{status=\"{status}\"}}"))
    }

    /// The lines of the log with this event.
    fn lines(&self, event: &str) -> Vec<Value> {
        self.gate.log().into_iter().filter(|line| line["event"] == event).collect()
    }
}

/// A plain request after which the connection ends. `Host` may be among its lines.
fn request(method: &str, target: &str, lines: &[&str]) -> Vec<u8> {
    let host =
        if lines.iter().any(|line| line.starts_with("Host:")) { "" } else { "Host: chat.example.com\r\n" };
    let lines = lines.iter().map(|line| format!("{line}\r\n")).collect::<Vec<_>>().concat();
    format!("{method} {target} HTTP/1.1\r\n{host}Connection: close\r\n{lines}\r\n").into_bytes()
}

/// An upgrade as the proxy passes it on for this client.
fn from(address: &str, handshake: Handshake) -> Handshake {
    handshake.with(&format!("X-Forwarded-For: {address}"))
}

/// Refused over HTTP for having come too often.
fn assert_429(label: &str, client: &mut super::harness::Client, answer: &Answer) {
    assert_eq!(answer.status, 429, "{}", answer.text);
    let after = answer.header("retry-after").and_then(|after| after.parse::<u32>().ok());
    assert!(after.is_some_and(|after| after > 0), "{}", answer.text);
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    assert_eq!(client.json(answer)["reason"], label);
}
