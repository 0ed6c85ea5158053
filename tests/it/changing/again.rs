//! After a reload every live session is judged again: who is still allowed stays, who is not hears what a
//! handshake would hear.

use serde_json::{Value, json};

use super::super::harness::{
    Backend, Client, Config, Followed, Gate, Handshake, Issuer, eventually, masked, take_frames,
};
use super::outcome;

fn page(issuer: &Issuer, changes: &Value) -> Handshake {
    Handshake::to("/ws/acme/").page().bearer(&issuer.token(changes))
}

/// The Close that a live session gets, as [`outcome`] would have it.
fn closed(client: &mut Client) -> String {
    let (code, text) = client.close();
    assert_eq!(client.rest(), b"", "more after the Close");
    format!("{code} {text}")
}

/// The route of all tables.
const ROUTE: &str = "path = '/ws/{org}/'\n";

type Row = (&'static str, Config, Value, Value);

/// Under `before` both of a row's clients are in; under its configuration the first one stays and the
/// second is closed, with what its handshake would hear now.
fn one_stays_and_one_goes(issuer: &Issuer, backend: &Backend, before: &Config, rows: &[Row]) {
    let gate = Followed::start(before);
    for (expected, after, stays, goes) in rows {
        gate.reload(before);
        let mut stays = gate.open(&page(issuer, stays));
        let handshake = page(issuer, goes);
        let mut goes = gate.open(&handshake);
        for client in [&mut stays, &mut goes] {
            Gate::assert_echo(client);
        }
        let n = backend.heard().len() - 1;
        let (closes, refused) = (closes(&gate, expected), gate.refused(label(expected)));
        gate.reload(after);
        assert_eq!(closed(&mut goes), *expected);
        Gate::assert_echo(&mut stays);
        assert_eq!(outcome(&gate, &handshake), *expected, "a handshake hears something else");
        // The backend is told too, and the books are right.
        let told = (1001, label(expected).to_owned());
        backend.until(n, "the Close at the backend", |heard| {
            take_frames(heard.after.clone()).pop().and_then(|frame| frame.close()).as_ref() == Some(&told)
        });
        assert_eq!(super::closed_last(&gate), *expected);
        assert_eq!(self::closes(&gate, expected), closes + 1);
        assert_eq!(gate.refused(label(expected)), refused + 1, "only the handshake counts as refused");
        eventually("one session", || (gate.sessions() == 1).then_some(()));
        drop(stays);
        eventually("no session", || (gate.sessions() == 0).then_some(()));
    }
}

fn label(outcome: &str) -> &str {
    outcome.split_once(' ').unwrap().1
}

fn closes(gate: &Gate, outcome: &str) -> u64 {
    gate.metric(&format!("websocket_closes_total{{reason=\"{}\"}}", label(outcome)))
}

#[test]
fn what_the_token_says_is_judged_again() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = || Config::without_issuer(&backend);
    let before = config().issuer(&issuer, "token_types = []\n").route(ROUTE);
    let with = |lines: &str| config().issuer(&issuer, lines).route(ROUTE);
    let rows = [
        (
            "4001 token_audience",
            with("token_types = []\naudiences = ['staff']"),
            json!({"aud": ["chat", "staff"]}),
            json!({"aud": ["chat", "other"]}),
        ),
        (
            "4001 token_client",
            with("token_types = []\nclients = ['cli']"),
            json!({"azp": "cli"}),
            json!({"azp": "web"}),
        ),
        (
            "4001 token_client",
            with("token_types = []\nclients = ['cli']"),
            json!({"azp": "cli"}),
            json!({"azp": null}),
        ),
        ("4001 token_type", with("token_types = ['Bearer']"), json!({}), json!({"typ": "ID"})),
    ];
    one_stays_and_one_goes(&issuer, &backend, &before, &rows);
}

#[test]
fn the_rule_is_judged_again() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = |lines: &str| Config::new(&issuer, &backend).route(&format!("{ROUTE}{lines}"));
    let roles = |role: &str| json!({"realm_access": {"roles": [role]}});
    let tenant = |tenant: &str| json!({"tenant": tenant});
    let rows = [
        ("4003 rule_denied", config("roles = ['admin']"), roles("admin"), roles("user")),
        ("4003 rule_denied", config("claims = { tenant = '{org}' }"), tenant("acme"), tenant("globex")),
        (
            "4003 rule_denied",
            config("allow = 'claims.tenant == params.org'"),
            tenant("acme"),
            tenant("globex"),
        ),
        ("4003 rule_denied", config("allow = 'claims.tenant == params.org'"), tenant("acme"), json!({})),
        (
            "4003 rule_denied",
            config(
                "allow = 'request.path == \"/ws/acme/\" && request.method == \"GET\" && request.host == \"chat.example.com\" && request.origin == \"https://chat.example.com\" && request.address == \"127.0.0.1\" && claims.tenant == \"acme\"'",
            ),
            tenant("acme"),
            tenant("globex"),
        ),
    ];
    one_stays_and_one_goes(&issuer, &backend, &config(""), &rows);
}

/// Two clients that differ by their head.
fn by_head(before: &Config, after: &Config, stays: &Handshake, goes: &Handshake, expected: &str) {
    let gate = Followed::start(before);
    let (mut first, mut second) = (gate.open(stays), gate.open(goes));
    gate.reload(after);
    assert_eq!(closed(&mut second), expected);
    Gate::assert_echo(&mut first);
    assert_eq!(outcome(&gate, goes), expected);
    assert_eq!(outcome(&gate, stays), "101");
}

#[test]
fn an_origin_that_is_no_longer_listed_is_out() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = |allow: &str| Config::new(&issuer, &backend).set("origin.allow", allow);
    let of = |origin: &str| Handshake::to("/").origin(origin).bearer(&issuer.good_token());
    let (app, old) = (of("https://app.example.com"), of("https://old.example.com"));
    let both = config("['https://app.example.com', 'https://old.example.com']");
    by_head(&both, &config("['https://app.example.com']"), &app, &old, "4003 origin_denied");
    let below = config("['https://*.example.com']");
    by_head(&below, &config("['https://app.example.com']"), &app, &old, "4003 origin_denied");
    // The token speaks for its pages; who has none is a program.
    let token = |origins: &Value| issuer.token(&json!({"allowed-origins": origins}));
    let named = Handshake::to("/")
        .origin("https://app.example.com")
        .bearer(&token(&json!(["https://app.example.com"])));
    let other = Handshake::to("/")
        .origin("https://app.example.com")
        .bearer(&token(&json!(["https://x.example.com"])));
    by_head(&both, &config("['token']"), &named, &other, "4003 origin_denied");
}

#[test]
fn programs_without_an_origin_stay_unless_they_must_have_one() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = Config::new(&issuer, &backend);
    let gate = Followed::start(&config);
    let program = Handshake::to("/").bearer(&issuer.good_token());
    let (mut client, mut page) = (gate.open(&program), gate.open(&program.clone().page()));
    gate.reload(&config.clone().set("origin.allow", "['https://chat.example.com']"));
    Gate::assert_echo(&mut client);
    gate.reload(&config.set("origin.allow_missing", "false"));
    assert_eq!(closed(&mut client), "4003 origin_denied");
    Gate::assert_echo(&mut page);
    assert_eq!(outcome(&gate, &program), "403 origin_denied");
}

#[test]
fn a_cookie_is_still_held_to_its_origin() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = Config::new(&issuer, &backend).set("token.from", "['header', 'cookie:__Host-t']");
    let listed = config.clone().set("origin.allow", "['self', 'null', 'https://app.example.com']");
    let gate = Followed::start(&listed);
    let cookie = |origin: &str| {
        Handshake::to("/").origin(origin).with(&format!("Cookie: __Host-t={}", issuer.good_token()))
    };
    let handshakes = [cookie("https://app.example.com"), cookie("https://chat.example.com")];
    let [mut goes, mut stays] = handshakes.clone().map(|handshake| gate.open(&handshake));
    gate.reload(&config.set("origin.allow", "['self', 'null']"));
    assert_eq!(closed(&mut goes), "4003 origin_denied");
    Gate::assert_echo(&mut stays);
    assert_eq!(outcome(&gate, &handshakes[0]), "4003 origin_denied");
}

#[test]
fn a_session_by_a_cookie_is_not_kept_by_an_origin_that_means_everybody() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = |from: &str, allow: &str| {
        Config::new(&issuer, &backend).set("token.from", from).set("origin.allow", allow)
    };
    let gate = Followed::start(&config("['header', 'cookie:__Host-t']", "['https://app.example.com']"));
    let app = Handshake::to("/").origin("https://app.example.com");
    let mut by_header = gate.open(&app.clone().bearer(&issuer.good_token()));
    let mut by_cookie = gate.open(&app.with(&format!("Cookie: __Host-t={}", issuer.good_token())));
    gate.reload(&config("['header']", "['*']"));
    assert_eq!(closed(&mut by_cookie), "4003 origin_denied");
    Gate::assert_echo(&mut by_header);
}

#[test]
fn an_address_that_is_no_longer_allowed_is_out() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = |allow: &str, route: &str| {
        Config::new(&issuer, &backend)
            .set("listen.trusted_proxies", "['127.0.0.1']")
            .set("listen.allow_addresses", allow)
            .route(&format!("path = '/'\n{route}"))
    };
    let from = |address: &str| {
        Handshake::to("/").page().bearer(&issuer.good_token()).with(&format!("X-Forwarded-For: {address}"))
    };
    let (stays, goes) = (from("192.0.2.1"), from("198.51.100.1"));
    let any = config("[]", "");
    by_head(&any, &config("['192.0.2.0/24']", ""), &stays, &goes, "4003 address_denied");
    by_head(&any, &config("[]", "allow_addresses = ['192.0.2.1']"), &stays, &goes, "4003 address_denied");
}

#[test]
fn a_route_that_is_gone_takes_its_sessions_along_and_one_that_takes_over_judges_them() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = || Config::new(&issuer, &backend);
    let to = |path: &str| Handshake::to(path).page().bearer(&issuer.good_token());
    let all = config().route("path = '/a/'").route("path = '/b/'");
    by_head(&all, &config().route("path = '/a/'"), &to("/a/"), &to("/b/"), "4003 route_unknown");
    // The same paths by another pattern, and a narrower one that now wins.
    let narrower = config().route("path = '/*'").route("path = '/b/'\nroles = ['admin']");
    by_head(&all, &narrower, &to("/a/"), &to("/b/"), "4003 rule_denied");
}

#[test]
fn an_anonymous_session_ends_when_a_token_is_required_and_no_other_does() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = |auth: &str| Config::new(&issuer, &backend).route(&format!("path = '/'\nauth = '{auth}'"));
    let anonymous = Handshake::to("/").page();
    let known = anonymous.clone().bearer(&issuer.good_token());
    by_head(&config("optional"), &config("required"), &known, &anonymous, "4001 token_missing");
    // Of whom no token was looked at nobody knows anything.
    let gate = Followed::start(&config("none"));
    let mut client = gate.open(&anonymous);
    gate.reload(&config("optional"));
    Gate::assert_echo(&mut client);
    gate.reload(&config("required"));
    assert_eq!(closed(&mut client), "4001 token_missing");
    assert_eq!(outcome(&gate, &anonymous), "4001 token_missing");
}

#[test]
fn a_route_that_asks_for_no_token_any_more_keeps_everybody() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = |lines: &str| Config::new(&issuer, &backend).route(&format!("path = '/'\n{lines}"));
    let gate = Followed::start(&config("roles = ['user']"));
    let mut client = gate.open(&Handshake::to("/").page().bearer(&issuer.good_token()));
    let open = Config::without_issuer(&backend).route("path = '/'\nauth = 'none'");
    gate.reload(&open);
    Gate::assert_echo(&mut client);
    assert_eq!(outcome(&gate, &Handshake::to("/")), "101");
}

#[test]
fn an_issuer_that_is_gone_takes_its_sessions_along() {
    let (stays, goes, backend) = (Issuer::start(), Issuer::start(), Backend::start());
    let both = Config::new(&goes, &backend).issuer(&stays, "");
    let of = |issuer: &Issuer| Handshake::to("/").page().bearer(&issuer.good_token());
    by_head(&both, &Config::new(&stays, &backend), &of(&stays), &of(&goes), "4001 token_issuer");
}

#[test]
fn limits_are_not_judged_again() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = Config::new(&issuer, &backend);
    let gate = Followed::start(&config);
    let handshake = Handshake::to("/").page().bearer(&issuer.good_token());
    let mut clients = [(); 3].map(|()| gate.open(&handshake));
    let limits =
        [("sessions", "1"), ("sessions_per_user", "1"), ("sessions_per_address", "1"), ("message", "'1KiB'")];
    gate.reload(
        &limits.iter().fold(config, |config, (key, value)| config.set(&format!("limits.{key}"), value)),
    );
    // That of messages is one of the beginning too.
    for client in &mut clients {
        client.send(&masked(0x82, &[b'x'; 2000]));
        assert_eq!(client.frame().payload.len(), 2000);
    }
}

#[test]
fn time_is_not_judged_again() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let gate = Followed::start(&Config::new(&issuer, &backend));
    // Within the leeway of 10 s.
    let late = issuer.token(&json!({"exp": super::super::harness::now() - 3}));
    let handshake = Handshake::to("/").page().bearer(&late);
    let mut client = gate.open(&handshake);
    gate.reload(&Config::without_issuer(&backend).issuer(&issuer, "leeway = '0s'"));
    Gate::assert_echo(&mut client);
    assert_eq!(outcome(&gate, &handshake), "4001 token_expired");
}

#[test]
fn a_session_that_has_a_rule_on_headers_is_judged_again_by_them() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let allow = |tier: &str| {
        let rule = format!("allow = 'request.headers[\"x-tier\"] in [{tier}]'");
        Config::new(&issuer, &backend).route(&format!("path = '/'\n{rule}"))
    };
    let of =
        |tier: &str| Handshake::to("/").page().bearer(&issuer.good_token()).with(&format!("X-Tier: {tier}"));
    let both = allow("\"gold\", \"free\"");
    by_head(&both, &allow("\"gold\""), &of("gold"), &of("free"), "4003 rule_denied");
}

#[test]
fn a_rule_that_newly_reads_headers_closes_those_whose_headers_were_not_kept() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = |lines: &str| Config::new(&issuer, &backend).route(&format!("path = '/'\n{lines}"));
    let gold = Handshake::to("/").page().bearer(&issuer.good_token()).with("X-Tier: gold");
    let gate = Followed::start(&config(""));
    let mut client = gate.open(&gold);
    gate.reload(&config("allow = 'request.headers[\"x-tier\"] == \"gold\"'"));
    assert_eq!(outcome(&gate, &gold), "101");
    assert_eq!(closed(&mut client), "4003 rule_denied");
}

#[test]
fn a_rule_on_the_host_sees_the_same_host_again() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let rule = "path = '/'\nallow = 'request.host == \"gate.internal:8080\"'";
    let handshake = Handshake::to("/").bearer(&issuer.good_token()).instead("Host: gate.internal:8080");
    for (key, value, line) in [
        ("listen.public_url", "'https://chat.example.com'", "X-A: b"),
        ("listen.trusted_proxies", "['127.0.0.1']", "X-Forwarded-Host: chat.example.com"),
    ] {
        let config = Config::new(&issuer, &backend).set(key, value).route(rule);
        let gate = Followed::start(&config);
        let mut client = gate.open(&handshake.clone().with(line));
        // Something else has changed.
        gate.reload(&config.set("token.cache", "99"));
        Gate::assert_echo(&mut client);
    }
}

#[test]
fn pages_behind_a_proxy_that_speaks_tls_stay() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = Config::new(&issuer, &backend).set("listen.trusted_proxies", "['127.0.0.1']");
    let gate = Followed::start(&config);
    for lines in [
        &["X-Forwarded-Proto: https"][..],
        &["X-Forwarded-Proto: https", "X-Forwarded-Port: 443"],
        &["X-Forwarded-Proto: https", "X-Forwarded-Host: chat.example.com"],
    ] {
        let handshake = Handshake::to("/").page().bearer(&issuer.good_token());
        let behind = lines
            .iter()
            .fold(handshake.instead("Host: gate.internal"), |handshake, line| handshake.with(line));
        let behind = if lines.len() == 2 && lines[1].contains("Host") {
            behind
        } else {
            behind.instead("Host: chat.example.com")
        };
        let mut client = gate.open(&behind);
        gate.reload(&config.clone().set("token.cache", "99"));
        Gate::assert_echo(&mut client);
        gate.reload(&config);
        Gate::assert_echo(&mut client);
    }
    let other = Handshake::to("/").origin("https://chat.example.com:8443").bearer(&issuer.good_token());
    let mut client = gate.open(&other.with("X-Forwarded-Proto: https").with("X-Forwarded-Port: 8443"));
    gate.reload(&config.set("token.cache", "99"));
    Gate::assert_echo(&mut client);
}

#[test]
fn nobody_is_closed_by_a_change_that_concerns_nobody() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = Config::new(&issuer, &backend).route(ROUTE);
    let gate = Followed::start(&config);
    let mut clients = [(); 20].map(|()| gate.open(&page(&issuer, &json!({}))));
    for n in 0..10 {
        gate.reload(&config.clone().set("token.cache", &(100 + n).to_string()));
        clients.iter_mut().for_each(Gate::assert_echo);
    }
    assert_eq!(gate.sessions(), 20);
    let reloaded = gate.log().into_iter().rfind(|line| line["event"] == "config_reloaded").unwrap();
    assert_eq!(reloaded["closed"], 0);
    // And how many are is told.
    gate.reload(&Config::new(&issuer, &backend).route("path = '/other/'"));
    let reloaded = gate.log().into_iter().rfind(|line| line["event"] == "config_reloaded").unwrap();
    assert_eq!(reloaded["closed"], 20);
    for client in &mut clients {
        assert_eq!(closed(client), "4003 route_unknown");
    }
}

#[test]
fn a_session_keeps_the_codes_that_it_began_with() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = |lines: &str| Config::new(&issuer, &backend).route(&format!("path = '/'\n{lines}"));
    let gate = Followed::start(&config(""));
    let handshake = Handshake::to("/").page().bearer(&issuer.good_token());
    let mut client = gate.open(&handshake);
    gate.reload(&config("roles = ['admin']\nrefuse = { codes = { forbidden = 4403 } }"));
    assert_eq!(outcome(&gate, &handshake), "4403 rule_denied");
    assert_eq!(closed(&mut client), "4003 rule_denied");
}
