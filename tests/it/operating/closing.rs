//! `DELETE /sessions`: who is thrown out, and who is not.

use serde_json::{Value, json};

use super::super::harness::{Handshake, eventually};
use super::desk::{Desk, Live};

fn close(desk: &Desk, query: &str) -> Value {
    let said = desk.ask(&format!("DELETE /sessions?{query}"));
    assert_eq!(said.status, 200, "{query}: {said:?}");
    assert_eq!(said.head.header("content-type"), Some("application/json"));
    said.json()
}

fn three(desk: &Desk) -> [Live; 3] {
    ["alice", "alice", "bob"].map(|name| desk.open(&desk.token_of(name)))
}

#[test]
fn those_that_a_filter_names_are_closed_with_1012_and_may_come_back() {
    let desk = Desk::new();
    let [first, second, mut other] = three(&desk);
    assert_eq!(close(&desk, "sub=alice"), json!({"matched": 2, "closed": 2, "dry_run": false}));
    first.assert_closed(&desk, 1012, "operator_closed");
    second.assert_closed(&desk, 1012, "operator_closed");
    other.assert_echo();
    desk.assert_welcome(&desk.token_of("alice"));
    desk.assert_metric("websocket_closes_total{reason=\"operator_closed\"}", 2);
    let line = desk.lines("sessions_closed").pop().unwrap();
    let told = ["by", "filter", "closed", "level"].map(|name| line[name].clone());
    assert_eq!(told, [json!("127.0.0.1"), json!("sub=alice"), json!(2), json!("info")]);
    let closed = desk.gate.logged("session_closed");
    assert_eq!((&closed["reason"], &closed["code"]), (&json!("operator_closed"), &json!(1012)));
    assert_eq!(close(&desk, "sub=nobody"), json!({"matched": 0, "closed": 0, "dry_run": false}));
}

#[test]
fn one_is_closed_by_its_id() {
    let desk = Desk::new();
    let [mut first, second, mut other] = three(&desk);
    let page = desk.get("/sessions");
    let id = page["sessions"][1]["id"].as_str().unwrap();
    assert_eq!(close(&desk, &format!("id={id}"))["closed"], 1);
    second.assert_closed(&desk, 1012, "operator_closed");
    first.assert_echo();
    other.assert_echo();
    eventually("its end", || (desk.gate.sessions() == 2).then_some(()));
    // Ids are not given a second time.
    assert_eq!(close(&desk, &format!("id={id}"))["matched"], 0);
    assert_eq!(close(&desk, &format!("id={id}&dry_run=false"))["matched"], 0);
}

#[test]
fn all_takes_everybody_with_or_without_a_token() {
    let desk = Desk::with(|config| config.route("path = '/ws/'").route("path = '/none'\nauth = 'none'"));
    let mut live: Vec<Live> = three(&desk).into();
    live.push(desk.live(&Handshake::to("/none")));
    assert_eq!(close(&desk, "all=true"), json!({"matched": 4, "closed": 4, "dry_run": false}));
    for live in live {
        live.assert_closed(&desk, 1012, "operator_closed");
    }
    assert_eq!(desk.lines("sessions_closed").pop().unwrap()["filter"], "all");
    eventually("nobody", || (desk.gate.sessions() == 0).then_some(()));
}

#[test]
fn a_dry_run_counts_and_does_nothing_else() {
    let desk = Desk::new();
    let mut live = three(&desk);
    for (query, matched) in [("sub=alice", 2), ("all=true", 3), ("sub=nobody", 0)] {
        let expected = json!({"matched": matched, "closed": 0, "dry_run": true});
        assert_eq!(close(&desk, &format!("{query}&dry_run=true")), expected);
        assert_eq!(close(&desk, &format!("dry_run=true&{query}")), expected);
    }
    live.iter_mut().for_each(Live::assert_echo);
    assert_eq!(desk.lines("sessions_closed"), Vec::<Value>::new());
}

#[test]
fn what_names_nobody_or_is_not_understood_closes_nobody() {
    let desk = Desk::new();
    let mut live = three(&desk);
    for (query, words) in [
        ("", ["a filter", "all=true"]),
        ("all=false", ["a filter", "all=true"]),
        ("dry_run=true", ["a filter", "all=true"]),
        ("dry_run=false", ["a filter", "all=true"]),
        ("all", ["all = \"\"", "true or false"]),
        ("all=1", ["all = \"1\"", "true or false"]),
        ("all=True", ["all = \"True\"", "true or false"]),
        ("sub=alice&dry_run=yes", ["dry_run = \"yes\"", "true or false"]),
        ("sub=alice&dryrun=true", ["\"dryrun\"", "dry_run"]),
        ("sub=alice&dry-run=true", ["\"dry-run\"", "dry_run"]),
        ("sub=alice&limit=1", ["\"limit\"", "sub"]),
        ("user=alice", ["\"user\"", "sub"]),
        ("sub=alice&sub=bob", ["\"sub\"", "twice"]),
        ("all=true&all=true", ["\"all\"", "twice"]),
        ("all=true&address=here", ["address = \"here\"", "IP address"]),
        ("all=true&id=x", ["id = \"x\"", "id"]),
    ] {
        let said = desk.ask(&format!("DELETE /sessions?{query}"));
        assert_eq!(said.status, 400, "{query}: {said:?}");
        let detail = said.detail();
        assert!(words.iter().all(|word| detail.contains(word)), "{query}: {detail}");
    }
    assert_eq!(desk.ask("DELETE /sessions").status, 400);
    // `all` beside a filter is no way around it.
    assert_eq!(close(&desk, "all=true&sub=nobody&dry_run=true")["matched"], 0);
    for method in ["POST", "PUT", "PATCH"] {
        assert_eq!(desk.ask(&format!("{method} /sessions?all=true")).status, 405, "{method}");
    }
    live.iter_mut().for_each(Live::assert_echo);
    assert_eq!(desk.lines("sessions_closed"), Vec::<Value>::new());
}

#[test]
fn who_is_closed_already_is_not_closed_again() {
    let desk = Desk::with(|config| config.set("session.close_timeout", "'4s'"));
    let [first, _second, _other] = three(&desk);
    assert_eq!(desk.revoked(&json!({"sub": "alice"}))["closed"], 2);
    // Whatever is left of them then, the first reason counts.
    let closed = close(&desk, "sub=alice");
    assert_eq!(closed["closed"], 0, "{closed}");
    first.assert_closed(&desk, 4003, "user_revoked");
}

#[test]
fn handshakes_under_way_are_closed_too_and_nothing_of_them_reaches_the_backend() {
    const WAITING: usize = 40;
    let desk = Desk::new();
    desk.backend.hold();
    let token = desk.token_of("alice");
    let handshake = |n: usize| {
        let to = Handshake::to("/ws/").bearer(&token);
        let to = if n.is_multiple_of(2) { to } else { to.page() };
        [to.bytes(), b"early".to_vec()].concat()
    };
    let mut waiting: Vec<_> = (0..WAITING).map(|n| desk.gate.send(&handshake(n))).collect();
    desk.backend.request(WAITING - 1);
    let expected = json!({"matched": WAITING, "closed": WAITING, "dry_run": false});
    assert_eq!(close(&desk, "sub=alice"), expected);
    for client in &mut waiting {
        let answer = client.head();
        assert_eq!((answer.status, &client.json(&answer)["reason"]), (503, &json!("operator_closed")));
        assert!(answer.header("retry-after").is_some(), "{}", answer.text);
    }
    desk.backend.release();
    for n in 0..WAITING {
        let heard = desk.backend.until(n, "its end", |heard| heard.ended);
        assert_eq!(heard.after, b"");
    }
    assert_eq!(desk.gate.refused("operator_closed"), WAITING as u64);
    assert_eq!(desk.gate.sessions(), 0);
    desk.assert_welcome(&token);
}
