//! The attacks that broke others, each against the whole gate. What a test expects of the backend is
//! what the backend heard, byte by byte; that no token is ever shown is looked at in each of them, when
//! its gate is dropped.

use super::harness::{Backend, Config, Gate, Handshake, Issuer};

mod algorithms;
mod backends;
mod carriers;
mod cookies;
mod forms;
mod forwarded;
mod heads;
mod keys;
mod later;
mod paths;
mod refusals;
mod smuggling;
mod spoofing;
mod tokens;
mod upgrades;

/// Gate, backend and issuer; dropped in this order.
struct Scene {
    gate: Gate,
    backend: Backend,
    issuer: Issuer,
}

impl Scene {
    /// A token is needed for everything.
    fn new() -> Self {
        Self::with(|config| config)
    }

    /// The same, but for what `configure` changes.
    fn with(configure: impl FnOnce(Config) -> Config) -> Self {
        let (issuer, backend) = (Issuer::start(), Backend::start());
        let config = Config::new(&issuer, &backend).set("http.auth", "'required'");
        let gate = Gate::start(&configure(config));
        Self { gate, backend, issuer }
    }

    /// An upgrade with a token that is good.
    fn good(&self, target: &str) -> Handshake {
        Handshake::to(target).bearer(&self.issuer.good_token())
    }

    /// Status of the answer to these bytes.
    fn status(&self, bytes: &[u8]) -> u16 {
        self.gate.send(bytes).head().status
    }
}

/// A plain request.
fn get(target: &str, lines: &[&str]) -> Vec<u8> {
    let lines = lines.iter().map(|line| format!("{line}\r\n")).collect::<Vec<_>>().concat();
    format!("GET {target} HTTP/1.1\r\nHost: chat.example.com\r\n{lines}\r\n").into_bytes()
}

/// Each of these tokens is refused with its label, and the backend hears of none.
fn assert_refused(scene: &Scene, cases: &[(&str, String, &str)]) {
    for (what, token, label) in cases {
        let refused = scene.gate.refusal(&Handshake::to("/").bearer(token));
        assert_eq!(refused, (401, (*label).into()), "{what}");
    }
    scene.backend.assert_never_heard();
    // The gate is well: what is right still passes.
    Gate::assert_echo(&mut scene.gate.open(&scene.good("/")));
}
