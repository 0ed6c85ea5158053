//! `GET /sessions`: who is on the gate.

use std::collections::BTreeSet;
use std::net::TcpListener;

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use super::super::harness::{Config, Handshake, Issuer, eventually, masked, now};
use super::desk::{Desk, Folder, Live, millis, now_millis};

/// What the contract names, in the order of serde.
const FIELDS: [&str; 16] = [
    "address",
    "client",
    "expires_at",
    "id",
    "iss",
    "jti",
    "last_data_at",
    "origin",
    "received",
    "route",
    "rtt_ms",
    "sent",
    "sid",
    "started_at",
    "sub",
    "username",
];

/// The only session there is.
fn only(desk: &Desk) -> Value {
    let page = desk.get("/sessions");
    let members: Vec<_> = page.as_object().unwrap().keys().cloned().collect();
    assert_eq!(members, ["next", "sessions", "total"]);
    assert_eq!((&page["total"], &page["next"]), (&json!(1), &Value::Null), "{page}");
    let row = page["sessions"][0].clone();
    let members: Vec<_> = row.as_object().unwrap().keys().cloned().collect();
    assert_eq!(members, FIELDS);
    row
}

#[test]
fn nobody_is_an_empty_page() {
    assert_eq!(Desk::new().get("/sessions"), json!({"sessions": [], "total": 0, "next": null}));
}

#[test]
fn a_session_is_told_with_all_that_is_known_of_it() {
    let desk =
        Desk::with(|config| config.route("path = '/ws/{room}/'").route("path = '/none'\nauth = 'none'"));
    let (before, expires) = (now_millis(), now() + 300);
    let token = desk.token(&json!({"exp": expires}));
    let mut live = desk.live(&Handshake::to("/ws/7/").bearer(&token).origin("http://chat.example.com"));
    let row = only(&desk);
    let expected = json!({"id": row["id"], "iss": desk.issuer.url(), "sub": "alice-sub", "sid": "session-1",
        "jti": "jti-1", "client": "web", "username": "alice", "route": "/ws/{room}/", "address": "127.0.0.1",
        "origin": "http://chat.example.com", "started_at": row["started_at"], "expires_at": row["expires_at"],
        "last_data_at": null, "received": {"messages": 0, "bytes": 0}, "sent": {"messages": 0, "bytes": 0},
        "rtt_ms": null});
    assert_eq!(row, expected);
    assert!(row["id"].as_str().unwrap().parse::<u64>().is_ok(), "{row}");
    let (started, ends) = (millis(&row["started_at"]), millis(&row["expires_at"]));
    assert!(before <= started && started <= now_millis(), "{row}");
    // With its token, by whatever leeway is granted on top.
    assert!((expires * 1000..=expires * 1000 + 10_500).contains(&ends), "{row}");
    assert!(row["started_at"].as_str().unwrap().ends_with('Z'));

    // Data is counted in frames as they are on the wire; control frames are bytes, but no messages.
    live.client.send(&masked(0x89, b"ping"));
    assert_eq!(live.client.frame().opcode(), 10);
    let row = eventually("the bytes", || Some(only(&desk)).filter(|row| row["sent"]["bytes"] == 6));
    assert_eq!(
        (&row["received"], &row["last_data_at"]),
        (&json!({"messages": 0, "bytes": 10}), &Value::Null)
    );
    let before = now_millis();
    for _ in 0..3 {
        live.assert_echo();
    }
    let row =
        eventually("the messages", || Some(only(&desk)).filter(|row| row["sent"]["bytes"] == 6 + 3 * 7));
    assert_eq!(row["received"], json!({"messages": 3, "bytes": 10 + 3 * 11}));
    assert_eq!(row["sent"], json!({"messages": 3, "bytes": 6 + 3 * 7}));
    let last = millis(&row["last_data_at"]);
    assert!(before <= last && last <= now_millis(), "{row}");
    assert_eq!((&row["id"], &row["started_at"]), (&expected["id"], &expected["started_at"]));

    live.client.send(&masked(0x88, &1000_u16.to_be_bytes()));
    live.client.close();
    eventually("it to be gone", || (desk.get("/sessions")["total"] == 0).then_some(()));
    // Nothing is known of one without a token.
    let live = desk.live(&Handshake::to("/none").bearer(&token));
    let row = only(&desk);
    for name in ["iss", "sub", "sid", "jti", "client", "username", "origin", "expires_at", "last_data_at"] {
        assert_eq!(row[name], Value::Null, "{name}");
    }
    assert_eq!((&row["route"], &row["address"]), (&json!("/none"), &json!("127.0.0.1")));
    drop(live);
}

#[test]
fn claims_that_a_token_lacks_and_an_end_that_never_comes_are_null() {
    let desk = Desk::with(|config| config.set("session.on_expiry", "'keep'"));
    let token =
        desk.token(&json!({"sub": null, "sid": null, "jti": null, "azp": null, "preferred_username": null}));
    let _live = desk.open(&token);
    let row = only(&desk);
    for name in ["sub", "sid", "jti", "client", "username", "expires_at"] {
        assert_eq!(row[name], Value::Null, "{name}");
    }
    assert_eq!(row["iss"], desk.issuer.url());
}

#[test]
fn a_handshake_past_its_verdict_is_told_too() {
    let desk = Desk::new();
    desk.backend.hold();
    let mut client = desk.gate.send(&Handshake::to("/ws/").bearer(&desk.token_of("alice")).bytes());
    desk.backend.request(0);
    let row = only(&desk);
    assert_eq!((&row["sub"], &row["received"]["bytes"]), (&json!("alice"), &json!(0)));
    desk.backend.release();
    assert_eq!(client.head().status, 101);
    assert_eq!(only(&desk)["id"], row["id"], "the same one");
}

/// `name=value` as a query has it.
fn pair(name: &str, value: &str) -> String {
    form_urlencoded::Serializer::new(String::new()).append_pair(name, value).finish()
}

/// Names and values.
type Filter<'a> = &'a [(&'a str, &'a str)];

/// Eight sessions, and whoever a query names among them.
struct Crowd {
    desk: Desk,
    ids: Vec<Value>,
    other: Issuer,
    _live: Vec<Live>,
}

fn crowd() -> Crowd {
    let other = Issuer::start();
    let desk = Desk::of(Issuer::start(), Folder::new(), |config, _| {
        config
            .set("listen.trusted_proxies", "['127.0.0.1']")
            .issuer(&other, "")
            .route("path = '/a'")
            .route("path = '/b/{x}'")
            .route("path = '/none'\nauth = 'none'")
    });
    let claims = |sub: &str, n: u32, azp: &str| json!({"sub": sub, "jti": format!("jti-{n}"), "sid": format!("sid-{}", n % 3), "azp": azp});
    let to = |target: &str, token: &str, address: &str| {
        Handshake::to(target).bearer(token).with(&format!("X-Forwarded-For: {address}"))
    };
    let ours = |sub, n, azp| desk.token(&claims(sub, n, azp));
    let handshakes = [
        to("/a", &ours("alice", 0, "web"), "192.0.2.1"),
        to("/a", &ours("alice", 1, "app"), "192.0.2.2"),
        to("/b/1", &ours("alice", 2, "web"), "2001:db8::1"),
        to("/b/2", &ours("bob", 3, "web"), "192.0.2.1"),
        to("/a", &other.token(&claims("alice", 4, "web")), "192.0.2.1"),
        to("/a", &ours("x&y=z é+%", 5, "web"), "2001:db8::1"),
        Handshake::to("/none").with("X-Forwarded-For: 192.0.2.1"),
        Handshake::to("/none"),
    ];
    let live: Vec<_> = handshakes.iter().map(|handshake| desk.live(handshake)).collect();
    let page = desk.get("/sessions");
    let ids: Vec<_> = page["sessions"].as_array().unwrap().iter().map(|row| row["id"].clone()).collect();
    assert_eq!(ids.len(), handshakes.len());
    Crowd { desk, ids, other, _live: live }
}

#[test]
fn filters_name_sessions_each_by_itself_and_all_together() {
    let Crowd { desk, ids, other, _live } = crowd();
    let (ours, theirs) = (desk.issuer.url(), other.url());
    let id = ids[2].as_str().unwrap();
    let table: [(Filter<'_>, &[usize]); 30] = [
        (&[], &[0, 1, 2, 3, 4, 5, 6, 7]),
        (&[("iss", &ours)], &[0, 1, 2, 3, 5]),
        (&[("iss", &theirs)], &[4]),
        (&[("iss", "https://elsewhere.example")], &[]),
        (&[("sub", "alice")], &[0, 1, 2, 4]),
        (&[("sub", "bob")], &[3]),
        (&[("sub", "x&y=z é+%")], &[5]),
        (&[("sub", "ALICE")], &[]),
        (&[("sub", "alic")], &[]),
        (&[("sub", "*")], &[]),
        (&[("sub", "")], &[]),
        (&[("sid", "sid-1")], &[1, 4]),
        (&[("jti", "jti-3")], &[3]),
        (&[("client", "app")], &[1]),
        (&[("client", "web")], &[0, 2, 3, 4, 5]),
        (&[("route", "/a")], &[0, 1, 4, 5]),
        (&[("route", "/b/{x}")], &[2, 3]),
        (&[("route", "/b/1")], &[]),
        (&[("route", "/none")], &[6, 7]),
        (&[("address", "192.0.2.1")], &[0, 3, 4, 6]),
        (&[("address", "::ffff:192.0.2.1")], &[0, 3, 4, 6]),
        (&[("address", "2001:db8::1")], &[2, 5]),
        (&[("address", "2001:0DB8:0::0:1")], &[2, 5]),
        (&[("address", "127.0.0.1")], &[7]),
        (&[("id", id)], &[2]),
        (&[("id", "18446744073709551615")], &[]),
        (&[("sub", "alice"), ("iss", &ours)], &[0, 1, 2]),
        (
            &[("sub", "alice"), ("iss", &ours), ("client", "web"), ("address", "192.0.2.1"), ("route", "/a")],
            &[0],
        ),
        (&[("id", id), ("sub", "alice")], &[2]),
        (&[("id", id), ("sub", "bob")], &[]),
    ];
    for (filter, expected) in table {
        let query: Vec<_> = filter.iter().map(|(name, value)| pair(name, value)).collect();
        let page = desk.get(&format!("/sessions?{}", query.join("&")));
        let found: Vec<_> =
            page["sessions"].as_array().unwrap().iter().map(|row| row["id"].clone()).collect();
        let wanted: Vec<_> = expected.iter().map(|n| ids[*n].clone()).collect();
        assert_eq!((found, &page["total"]), (wanted, &json!(expected.len())), "{filter:?}");
        // Whoever would be closed is whoever is listed.
        if !filter.is_empty() {
            let dry = desk.ask(&format!("DELETE /sessions?{}&dry_run=true", query.join("&"))).json();
            assert_eq!(dry, json!({"matched": expected.len(), "closed": 0, "dry_run": true}), "{filter:?}");
        }
    }
    assert_eq!(desk.gate.sessions(), 8);
}

#[test]
fn what_is_no_parameter_or_no_value_of_it_is_400() {
    let desk = Desk::new();
    for (query, name) in [
        ("user=alice", "user"),
        ("Sub=alice", "Sub"),
        ("sub%20=alice", "sub "),
        ("=alice", ""),
        ("all=true", "all"),
        ("dry_run=true", "dry_run"),
        ("sub=alice&sub=bob", "sub"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=", "limit"),
        ("limit=x", "limit"),
        ("limit=-5", "limit"),
        ("id=x", "id"),
        ("id=", "id"),
        ("id=-1", "id"),
        ("id=18446744073709551616", "id"),
        ("address=localhost", "address"),
        ("address=", "address"),
        ("address=192.0.2.0/24", "address"),
        ("after=x", "after"),
        ("after=", "after"),
        ("sub=alice&x", "x"),
    ] {
        let said = desk.ask(&format!("GET /sessions?{query}"));
        assert_eq!(said.status, 400, "{query}: {said:?}");
        assert!(said.detail().contains(name), "{query}: {said:?}");
    }
    for query in ["", "limit=1", "limit=1000", "after=0", "after=18446744073709551615"] {
        desk.get(&format!("/sessions?{query}"));
    }
}

/// More than two pages of them. Each takes three descriptors: the backend never accepts.
const MANY: usize = 2_500;

#[test]
fn pages_over_thousands_of_sessions_name_each_once() {
    let backend = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    backend.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    backend.listen(4096).unwrap();
    let backend = TcpListener::from(backend);
    let upstream = format!("'http://{}'", backend.local_addr().unwrap());
    let desk = Desk::with(|config: Config| {
        let config = config.set("upstream.url", &upstream).set("upstream.handshake_timeout", "'60s'");
        config
            .set("listen.handshake_timeout", "'60s'")
            .set("log.level", "'warn'")
            .route("path = '/ws/{n}'\nauth = 'none'")
    });
    let open = |n: usize| desk.gate.send(&Handshake::to(&format!("/ws/{n}")).bytes());
    let mut clients: Vec<_> = (0..MANY).map(open).collect();
    eventually("all of them", || (desk.gate.sessions() == MANY).then_some(()));

    for limit in [1000, 999] {
        let (mut seen, mut after, mut sizes) = (BTreeSet::new(), String::new(), Vec::new());
        loop {
            let page = desk.get(&format!("/sessions?route=%2Fws%2F%7Bn%7D&limit={limit}{after}"));
            assert_eq!(page["total"], MANY);
            let rows = page["sessions"].as_array().unwrap();
            sizes.push(rows.len());
            for row in rows {
                assert!(seen.insert(row["id"].as_str().unwrap().parse::<u64>().unwrap()), "{row} twice");
            }
            let Some(next) = page["next"].as_str() else { break };
            after = format!("&after={next}");
        }
        assert_eq!(seen.len(), MANY);
        assert_eq!(sizes, if limit == 1000 { vec![1000, 1000, 500] } else { vec![999, 999, 502] });
    }
    assert_eq!(desk.get("/sessions")["sessions"].as_array().unwrap().len(), 100, "without a limit");
    // A page that ends with the last one has no next, and what is behind the end is empty.
    let all = desk.get("/sessions?limit=1000&id=1");
    assert_eq!(all["next"], Value::Null);
    // Who comes and goes between two pages moves nobody else.
    let first = desk.get("/sessions?limit=1000");
    let gone: Vec<_> = clients.drain(..300).collect();
    drop(gone);
    eventually("those to be gone", || (desk.gate.sessions() == MANY - 300).then_some(()));
    clients.extend((0..50).map(open));
    eventually("those to come", || (desk.gate.sessions() == MANY - 250).then_some(()));
    let ids = |page: &Value| -> Vec<u64> {
        let rows = page["sessions"].as_array().unwrap();
        rows.iter().map(|row| row["id"].as_str().unwrap().parse().unwrap()).collect()
    };
    let mut seen = ids(&first);
    let mut next = first["next"].clone();
    while let Some(after) = next.as_str() {
        let page = desk.get(&format!("/sessions?limit=1000&after={after}"));
        seen.extend(ids(&page));
        next = page["next"].clone();
    }
    assert_eq!(seen.len(), MANY + 50);
    assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "in the order in which they came");
    // And all are thrown out at once.
    let closed = desk.ask("DELETE /sessions?all=true").json();
    assert_eq!((&closed["matched"], &closed["closed"]), (&json!(MANY - 250), &json!(MANY - 250)));
    eventually("nobody", || (desk.gate.sessions() == 0).then_some(()));
}
