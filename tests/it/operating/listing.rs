//! `GET /revocations` and `DELETE /revocations/{id}`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::desk::{Desk, LOCAL, SECRET, ago, request};

/// All pages of so many rows: what is revoked, by id.
fn walk(desk: &Desk, limit: usize, total: usize) -> BTreeMap<String, Value> {
    let (mut all, mut after, mut pages) = (BTreeMap::new(), String::new(), 0);
    loop {
        let page = desk.get(&format!("/revocations?limit={limit}{after}"));
        let members: Vec<_> = page.as_object().unwrap().keys().cloned().collect();
        assert_eq!(members, ["next", "revocations", "total"]);
        assert_eq!(page["total"], total);
        let rows = page["revocations"].as_array().unwrap();
        for row in rows {
            let id = row["id"].as_str().unwrap().to_owned();
            assert!(all.insert(id, row["revocation"].clone()).is_none(), "{row} on two pages");
        }
        pages += 1;
        let Some(next) = page["next"].as_str() else {
            assert!(page["next"].is_null() && pages == total.div_ceil(limit).max(1), "{page}");
            return all;
        };
        assert_eq!(rows.len(), limit, "a page that is not the last is full");
        after = format!("&after={next}");
    }
}

#[test]
fn the_list_tells_what_was_asked_for() {
    let desk = Desk::new();
    assert!(walk(&desk, 10, 0).is_empty());
    let moment = ago(60);
    let told: BTreeMap<String, Value> = [
        json!({"jti": "j", "reason": "stolen"}),
        json!({"sid": "s", "ttl": "1h"}),
        json!({"sub": "u"}),
        json!({"sub": "u", "issued_before": moment}),
        json!({"issued_before": moment}),
    ]
    .iter()
    .map(|asked| {
        let told = desk.revoked(asked);
        (told["id"].as_str().unwrap().to_owned(), told["revocation"].clone())
    })
    .collect();
    assert_eq!(told.len(), 5, "each has an id of its own");
    for limit in [1, 2, 5, 100] {
        assert_eq!(walk(&desk, limit, 5), told);
    }
}

#[test]
fn pages_hold_together_over_thousands_and_over_what_comes_and_goes() {
    const MANY: usize = 2_500;
    let desk = Desk::new();
    let all: Vec<_> = (0..MANY).map(|n| json!({"sub": format!("user-{n}")})).collect();
    let ids: Vec<_> = desk.revoke_all(&all).iter().map(|said| said.json()["id"].clone()).collect();
    assert_eq!(walk(&desk, 1000, MANY).len(), MANY);
    assert_eq!(desk.get("/revocations")["revocations"].as_array().unwrap().len(), 100, "without a limit");
    // What was there all along is on exactly one page, whatever happens between two of them.
    let first = desk.get("/revocations?limit=1000");
    for id in &ids[500..1500] {
        assert_eq!(desk.withdraw(id).status, 204);
    }
    for n in 0..300 {
        desk.revoked(&json!({"sub": format!("late-{n}")}));
    }
    let mut seen: Vec<Value> = first["revocations"].as_array().unwrap().clone();
    let mut next = first["next"].clone();
    while let Some(after) = next.as_str() {
        let page = desk.get(&format!("/revocations?limit=1000&after={after}"));
        assert_eq!(page["total"], MANY - 1000 + 300);
        seen.extend(page["revocations"].as_array().unwrap().iter().cloned());
        next = page["next"].clone();
    }
    for id in ids[..500].iter().chain(&ids[1500..]) {
        assert_eq!(seen.iter().filter(|row| row["id"] == *id).count(), 1, "{id}");
    }
}

#[test]
fn what_is_not_there_is_404_and_takes_nothing_away() {
    let desk = Desk::new();
    let told = desk.revoked(&json!({"sub": "alice"}));
    let id = told["id"].as_str().unwrap();
    let mut other = id.to_owned();
    let last = if other.pop() == Some('0') { '1' } else { '0' };
    other.push(last);
    for wrong in [
        &other[..],
        "",
        "alice",
        "0",
        "*",
        "..",
        &id[..31],
        &format!("{id}0"),
        &format!("{id}/"),
        &format!("{id}%00"),
        &"f".repeat(32),
        &"f".repeat(1000),
        "-1",
    ] {
        let said = desk.ask(&format!("DELETE /revocations/{wrong}"));
        assert_eq!(said.status, 404, "{wrong}: {said:?}");
    }
    assert!(matches!(desk.ask("DELETE /revocations").status, 404..=405), "not all of them at once");
    for (method, status) in [("GET", 405), ("PUT", 405), ("PATCH", 405), ("POST", 405), ("HEAD", 405)] {
        let mut client = desk.gate.operator();
        let lines = [LOCAL, &format!("Authorization: Bearer {SECRET}")];
        client.send(&request(&format!("{method} /revocations/{id}"), &lines, ""));
        assert_eq!(client.head().status, status, "{method}");
    }
    desk.assert_unwelcome(&desk.token_of("alice"), "user_revoked");
    assert_eq!(desk.lines("revocation_withdrawn"), Vec::<Value>::new());
}

#[test]
fn one_that_is_withdrawn_takes_no_other_with_it() {
    let desk = Desk::new();
    let asked = [
        json!({"sub": "alice"}),
        json!({"sub": "alice", "issued_before": ago(0)}),
        json!({"jti": "alice-jti"}),
        json!({"sid": "alice-sid"}),
    ];
    let told: Vec<Value> = asked.iter().map(|asked| desk.revoked(asked)).collect();
    let token = desk.token(&json!({"sub": "alice", "jti": "alice-jti", "sid": "alice-sid", "iat": 1_000}));
    for (n, told) in told.iter().enumerate() {
        let reason = if n == 0 { "user_revoked" } else { "token_revoked" };
        desk.assert_unwelcome(&token, reason);
        assert_eq!(desk.withdraw(&told["id"]).status, 204);
        assert_eq!(desk.withdraw(&told["id"]).status, 404, "twice");
        assert_eq!(desk.get("/revocations")["total"], asked.len() - n - 1);
    }
    desk.assert_welcome(&token);
    // It can be said again, and is the same one.
    assert_eq!(desk.revoked(&asked[0])["id"], told[0]["id"]);
}

#[test]
fn a_next_that_no_page_gave_is_400() {
    let desk = Desk::new();
    desk.revoked(&json!({"sub": "alice"}));
    for after in ["x", "-1", "", "1.5", "99999999999999999999999"] {
        let said = desk.ask(&format!("GET /revocations?after={after}"));
        assert_eq!(said.status, 400, "{after}: {said:?}");
        assert!(said.detail().contains("after"), "{said:?}");
    }
    // The largest number is behind the end, or refused; in any case it is answered.
    let said = desk.ask(&format!("GET /revocations?after={}", u64::MAX));
    assert!(said.status == 400 || said.json()["revocations"] == json!([]), "{said:?}");
}
