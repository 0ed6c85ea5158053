//! Each section that may change while the gate runs really changes what it does.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::harness::{
    Backend, Client, Config, Followed, Gate, Handshake, Heard, Issuer, PATIENCE, eventually,
};
use super::super::sessions::wire::{Upstream, Wire};
use super::outcome;

/// A change of the configuration, and what becomes of a handshake before and after it.
type Row<'a> = (&'a str, Box<dyn Fn(Config) -> Config>, Handshake, &'a str, &'a str);

fn set(key: &'static str, value: &'static str) -> Box<dyn Fn(Config) -> Config> {
    Box::new(move |config| config.set(key, value))
}

fn route(lines: &'static str) -> Box<dyn Fn(Config) -> Config> {
    Box::new(move |config| config.route(lines))
}

fn check(rows: &[Row<'_>], base: &Config) {
    let gate = Followed::start(base);
    for (what, change, handshake, before, after) in rows {
        for (config, expected) in
            [(base.clone(), before), (change(base.clone()), after), (base.clone(), before)]
        {
            gate.reload(&config);
            assert_eq!(outcome(&gate, handshake), **expected, "{what}");
        }
    }
}

#[test]
fn who_may_in_changes() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let to = |path: &str| Handshake::to(path).bearer(&issuer.good_token());
    let app = || to("/ws/").origin("https://app.example.com");
    let rows: Vec<Row<'_>> = vec![
        ("a route", route("path = '/new/'"), to("/new/"), "404 route_unknown", "101"),
        (
            "an exact route that wins",
            route("path = '/ws/a/'\nroles = ['admin']"),
            to("/ws/a/"),
            "101",
            "403 rule_denied",
        ),
        (
            "auth",
            route("path = '/ws/a/'\nauth = 'none'"),
            Handshake::to("/ws/a/"),
            "401 token_missing",
            "101",
        ),
        (
            "auth",
            route("path = '/ws/a/'\nauth = 'optional'"),
            Handshake::to("/ws/a/"),
            "401 token_missing",
            "101",
        ),
        (
            "mode",
            route("path = '/ws/a/'\nmode = 'shadow'"),
            Handshake::to("/ws/a/"),
            "401 token_missing",
            "101",
        ),
        (
            "claims",
            route("path = '/ws/a/'\nclaims = { sub = 'bob' }"),
            to("/ws/a/"),
            "101",
            "403 rule_denied",
        ),
        (
            "allow",
            route("path = '/ws/a/'\nallow = 'claims.sub == \"bob\"'"),
            to("/ws/a/"),
            "101",
            "403 rule_denied",
        ),
        (
            "origin.allow",
            set("origin.allow", "['https://app.example.com']"),
            app(),
            "4003 origin_denied",
            "101",
        ),
        (
            "origin.allow_missing",
            set("origin.allow_missing", "false"),
            to("/ws/"),
            "101",
            "403 origin_denied",
        ),
        (
            "listen.public_url",
            set("listen.public_url", "'https://app.example.com'"),
            app(),
            "4003 origin_denied",
            "101",
        ),
        (
            "listen.allow_addresses",
            set("listen.allow_addresses", "['192.0.2.1']"),
            to("/ws/"),
            "101",
            "403 address_denied",
        ),
        (
            "listen.trusted_proxies",
            Box::new(|config| {
                config
                    .set("listen.trusted_proxies", "['127.0.0.1']")
                    .set("listen.allow_addresses", "['127.0.0.1']")
            }),
            to("/ws/").with("X-Forwarded-For: 192.0.2.1"),
            "101",
            "403 address_denied",
        ),
    ];
    check(&rows, &Config::new(&issuer, &backend).route("path = '/ws/*'"));
}

#[test]
fn where_a_token_is_looked_for_and_how_a_refusal_is_told_changes() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let to = |path: &str| Handshake::to(path).bearer(&issuer.good_token());
    let anonymous = || Handshake::to("/ws/");
    let query = || Handshake::to(&format!("/ws/?t={}", issuer.good_token()));
    let cookie = || anonymous().page().with(&format!("Cookie: __Host-t={}", issuer.good_token()));
    let rows: Vec<Row<'_>> = vec![
        ("listen.hosts", set("listen.hosts", "['a.example.com']"), to("/ws/"), "101", "400 host_denied"),
        ("token.from", set("token.from", "['subprotocol']"), to("/ws/"), "101", "401 token_missing"),
        ("token.from", set("token.from", "['query:t']"), query(), "401 token_missing", "101"),
        ("token.from", set("token.from", "['cookie:__Host-t']"), cookie(), "4001 token_missing", "101"),
        ("token.cache", set("token.cache", "'off'"), to("/ws/"), "101", "101"),
        (
            "refuse.codes",
            set("refuse.codes", "{ unauthorized = 4401 }"),
            anonymous().page(),
            "4001 token_missing",
            "4401 token_missing",
        ),
        (
            "refuse.websocket",
            set("refuse.websocket", "'http'"),
            anonymous().page(),
            "4001 token_missing",
            "401 token_missing",
        ),
        (
            "refuse.websocket",
            set("refuse.websocket", "'close'"),
            anonymous(),
            "401 token_missing",
            "4001 token_missing",
        ),
    ];
    check(&rows, &Config::new(&issuer, &backend).route("path = '/ws/*'"));
}

#[test]
fn what_an_issuer_must_say_changes() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let token = |changes: &Value| Handshake::to("/").bearer(&issuer.token(changes));
    let late = issuer.token(&json!({"exp": super::super::harness::now() - 20}));
    let gate = Followed::start(&Config::new(&issuer, &backend));
    for (lines, handshake, before, after) in [
        ("audiences = ['staff']", token(&json!({})), "101", "401 token_audience"),
        ("audiences = ['staff']", token(&json!({"aud": "staff"})), "401 token_audience", "101"),
        ("any_audience = true\naudiences = []", token(&json!({"aud": "x"})), "401 token_audience", "101"),
        ("clients = ['cli']", token(&json!({})), "101", "401 token_client"),
        ("token_types = ['ID']", token(&json!({})), "101", "401 token_type"),
        ("token_types = []", token(&json!({"typ": "ID"})), "401 token_type", "101"),
        ("algorithms = ['RS256']", token(&json!({})), "101", "401 token_algorithm"),
        ("leeway = '1m'", Handshake::to("/").bearer(&late), "401 token_expired", "101"),
    ] {
        let changed = Config::without_issuer(&backend).issuer(&issuer, lines);
        for (config, expected) in [(Config::new(&issuer, &backend), before), (changed, after)] {
            gate.reload(&config);
            assert_eq!(outcome(&gate, &handshake), expected, "{lines}");
            // Not out of memory either.
            assert_eq!(outcome(&gate, &handshake), expected, "{lines}, again");
        }
    }
}

/// What the backend hears of a good handshake.
fn heard(gate: &Gate, backend: &Backend, issuer: &Issuer) -> Heard {
    let handshake =
        Handshake::to("/ws/").bearer(&issuer.good_token()).with("X-Roles: root").with("X-Sub: root");
    drop(gate.open(&handshake.with("Sec-WebSocket-Extensions: permessage-deflate")));
    backend.last()
}

#[test]
fn what_the_backend_is_told_changes() {
    let (issuer, backend, other) = (Issuer::start(), Backend::start(), Backend::start());
    let config = Config::new(&issuer, &backend);
    let gate = Followed::start(&config);
    let first = heard(&gate, &backend, &issuer);
    assert_eq!(first.header("x-auth-subject").as_deref(), Some("alice-sub"));
    assert_eq!((first.header("x-sub"), first.header("authorization")), (Some("root".into()), None));
    assert_eq!(first.header("host").as_deref(), Some("chat.example.com"));
    gate.reload(&config.clone().tables("[identity.headers]\nX-Sub = 'sub'\n"));
    let renamed = heard(&gate, &backend, &issuer);
    assert_eq!((renamed.header("x-sub"), renamed.header("x-auth-subject")), (Some("alice-sub".into()), None));
    gate.reload(&config.clone().set("upstream.token", "'header'").set("upstream.host", "'backend.internal'"));
    let translated = heard(&gate, &backend, &issuer);
    assert!(translated.header("authorization").unwrap().starts_with("Bearer ey"));
    assert_eq!(translated.header("host").as_deref(), Some("backend.internal"));
    assert!(translated.header("sec-websocket-extensions").is_some());
    gate.reload(&config.clone().set("limits.compression", "'strip'"));
    assert!(heard(&gate, &backend, &issuer).header("sec-websocket-extensions").is_none());
    let mut old = gate.open(&Handshake::to("/ws/").bearer(&issuer.good_token()));
    gate.reload(&config.set("upstream.url", &format!("'http://{}'", other.address)));
    let heard_before = backend.heard().len();
    heard(&gate, &other, &issuer);
    assert_eq!(backend.heard().len(), heard_before);
    // Who is in stays where he is.
    Gate::assert_echo(&mut old);
}

const PLAIN: &[u8] = b"GET /plain HTTP/1.1\r\nHost: chat.example.com\r\nOrigin: https://chat.example.com\r\nConnection: close\r\n\r\n";

#[test]
fn what_pages_are_told_changes() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = Config::new(&issuer, &backend);
    let gate = Followed::start(&config);
    let header = |name: &str| gate.ask(PLAIN).0.header(name).map(str::to_owned);
    for (tables, name, value) in [
        ("[cors]\n", "access-control-allow-origin", "https://chat.example.com"),
        ("[csp]\npolicy = { default-src = [\"'self'\"] }\n", "content-security-policy", "default-src 'self'"),
        ("[security_headers]\n", "x-frame-options", "DENY"),
    ] {
        assert_eq!(header(name), None);
        gate.reload(&config.clone().tables(tables));
        assert_eq!(header(name).as_deref(), Some(value));
        gate.reload(&config);
        assert_eq!(header(name), None);
    }
}

#[test]
fn plain_requests_are_judged_by_what_holds_now() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = Config::new(&issuer, &backend);
    let gate = Followed::start(&config.clone().set("http.auth", "'pass'").route("path = '/ws/'"));
    assert_eq!(gate.ask(PLAIN).0.status, 200);
    for (changed, status) in [
        (config.clone().set("http.auth", "'required'").route("path = '/ws/'"), 401),
        (config.clone().set("http.unmatched", "'refuse'").route("path = '/ws/'"), 404),
        (config.clone().route("path = '/plain'"), 401),
        (config.clone().route("path = '/plain'\nhttp = 'optional'"), 200),
    ] {
        gate.reload(&changed);
        assert_eq!(gate.ask(PLAIN).0.status, status, "{}", changed.text());
    }
}

/// A connection that is kept open.
fn ask_again(client: &mut Client) -> u16 {
    client.send(b"GET /plain HTTP/1.1\r\nHost: chat.example.com\r\n\r\n");
    let answer = client.head();
    client.body(&answer);
    answer.status
}

#[test]
fn kept_connections_go_on_over_many_reloads_and_follow_the_backend() {
    let (issuer, backends) = (Issuer::start(), [Backend::start(), Backend::start()]);
    let config = Config::new(&issuer, &backends[0]);
    let gate = Followed::start(&config);
    let mut client = gate.client();
    for n in 0..40 {
        let url = format!("'http://{}'", backends[n % 2].address);
        gate.reload(&config.clone().set("upstream.url", &url));
        let before = backends.each_ref().map(|backend| backend.heard().len());
        assert_eq!([ask_again(&mut client), ask_again(&mut client)], [200, 200]);
        let after = backends.each_ref().map(|backend| backend.heard().len());
        assert_eq!(after[n % 2] - before[n % 2], 2, "round {n}");
        assert_eq!(after[(n + 1) % 2], before[(n + 1) % 2], "round {n}");
    }
}

#[test]
fn connections_to_a_backend_of_an_older_configuration_are_not_hoarded() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let config = upstream.config(&issuer);
    let gate = Followed::start(&config);
    let mut client = gate.client();
    let mut before: Option<Wire> = None;
    for _ in 0..5 {
        gate.reload(&config);
        let mut wire = plain(&mut client, &upstream, b"HTTP/1.1 204 No Content\r\n\r\n");
        // The new one has taken its place.
        assert!(before.as_mut().is_none_or(|wire| wire.has_ended(PATIENCE)));
        wire.stays_silent(Duration::from_millis(20));
        before = Some(wire);
    }
}

#[test]
fn an_answer_that_is_under_way_comes_to_its_end_over_reloads() {
    let (issuer, upstream) = (Issuer::start(), Upstream::start());
    let config = upstream.config(&issuer);
    let gate = Followed::start(&config);
    let mut client = gate.client();
    let mut wire = plain(&mut client, &upstream, b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf");
    for _ in 0..3 {
        gate.reload(&config);
        let mut other = plain(&mut gate.client(), &upstream, b"HTTP/1.1 204 No Content\r\n\r\n");
        other.stays_silent(Duration::from_millis(20));
    }
    wire.send(b"half");
    assert_eq!(client.exactly(8), b"halfhalf");
}

/// Asks, answers with these bytes, and reads the head.
fn plain(client: &mut Client, upstream: &Upstream, answer: &[u8]) -> Wire {
    client.send(b"GET /plain HTTP/1.1\r\nHost: chat.example.com\r\n\r\n");
    let mut wire = upstream.accept();
    wire.head();
    wire.send(answer);
    client.head();
    wire
}

#[test]
fn who_is_blacklisted_changes_with_the_path_of_the_file() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = Config::new(&issuer, &backend);
    let gate = Followed::start(&config);
    let of = |sid: &str| Handshake::to("/").page().bearer(&issuer.token(&json!({"sid": sid})));
    let mut clients = ["one", "two"].map(|sid| gate.open(&of(sid)));
    let with = |name: &str, text: &str| {
        let path = gate.folder.write(name, text);
        config.clone().set("blacklist.file", &format!("'{}'", path.display()))
    };
    gate.reload(&with("first", "sid one\n"));
    assert_eq!(clients[0].close(), (4001, "token_revoked".into()));
    assert_eq!(outcome(&gate, &of("one")), "4001 token_revoked");
    Gate::assert_echo(&mut clients[1]);
    gate.reload(&with("second", "sid two\n"));
    assert_eq!(clients[1].close(), (4001, "token_revoked".into()));
    eventually("what the first one named to be forgotten", || {
        (outcome(&gate, &of("one")) == "101").then_some(())
    });
    gate.reload(&config);
    eventually("all to be forgotten", || (outcome(&gate, &of("two")) == "101").then_some(()));
}

#[test]
fn the_log_changes_its_level_its_form_and_what_it_tells() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = Config::new(&issuer, &backend);
    let gate = Followed::start(&config);
    let said = |ask: &dyn Fn()| {
        let before = gate.log_text().len();
        ask();
        gate.log_text()[before..].to_owned()
    };
    let refused = || assert_eq!(outcome(&gate, &Handshake::to("/")), "401 token_missing");
    let plain = || assert_eq!(gate.ask(PLAIN).0.status, 200);
    assert!(said(&refused).contains("\"event\":\"handshake_refused\"") && said(&plain).is_empty());
    gate.reload(&config.clone().set("log.requests", "true"));
    assert!(said(&plain).contains("\"event\":\"request\""));
    gate.reload(&config.clone().set("log.level", "'warn'"));
    assert_eq!(said(&refused), "");
    gate.reload(&config.clone().set("log.format", "'text'"));
    assert!(said(&refused).contains(" INFO handshake_refused reason=token_missing"));
    gate.reload(&config);
    assert!(said(&refused).contains("\"event\":\"handshake_refused\""));
}
