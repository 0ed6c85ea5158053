//! Requests about revocations that are wrong: each is told what is wrong and what is accepted, and does
//! nothing.

use serde_json::{Value, json};

use super::desk::{Desk, LOCAL, SECRET, Said, ago, answer, now_millis, request, written};

/// Nothing is revoked, and nobody was thrown out.
fn assert_nothing_done(desk: &Desk, live: &mut super::desk::Live) {
    live.assert_echo();
    assert_eq!(desk.get("/revocations")["total"], 0);
    assert_eq!(desk.gate.metric("blacklist_entries"), 0);
    assert_eq!(desk.lines("revocation"), Vec::<Value>::new());
}

#[test]
fn what_is_asked_for_wrongly_is_400_with_key_value_and_what_is_accepted() {
    let desk = Desk::new();
    let mut live = desk.open(&desk.token_of("alice"));
    let sub = |more: Value| {
        let mut asked = json!({"sub": "alice"});
        for (name, value) in more.as_object().unwrap() {
            asked[name] = value.clone();
        }
        asked
    };
    let before = |moment: &str| json!({"issued_before": moment});
    let iss = desk.issuer.url();
    let table: [(Value, &[&str]); 48] = [
        // Names of members.
        (sub(json!({"until": "1h"})), &["\"until\"", "sub"]),
        (sub(json!({"Sub": "alice"})), &["\"Sub\"", "sub"]),
        (json!({"jti ": "x"}), &["\"jti \"", "jti"]),
        (json!({"username": "alice"}), &["\"username\"", "sub"]),
        // Nothing named, or several things.
        (json!({}), &["jti, sid, sub, issued_before"]),
        (json!({"ttl": "1h"}), &["jti, sid, sub, issued_before"]),
        (json!({"iss": iss}), &["jti, sid, sub, issued_before"]),
        (json!({"sub": null}), &["jti, sid, sub, issued_before"]),
        (json!({"jti": "x", "sid": "y"}), &["jti, sid, sub, issued_before"]),
        (sub(json!({"jti": "x"})), &["jti, sid, sub, issued_before"]),
        (sub(json!({"sid": "x"})), &["jti, sid, sub, issued_before"]),
        (json!({"jti": "x", "issued_before": ago(9)}), &["jti, sid, sub, issued_before"]),
        (json!({"sid": "x", "issued_before": ago(9)}), &["jti, sid, sub, issued_before"]),
        (sub(json!({"jti": "x", "sid": "y", "issued_before": ago(9)})), &["jti, sid, sub, issued_before"]),
        // Empty and too long.
        (json!({"jti": ""}), &["jti", "1 to 4096"]),
        (json!({"sid": ""}), &["sid", "1 to 4096"]),
        (json!({"sub": ""}), &["sub", "1 to 4096"]),
        (json!({"sub": "", "issued_before": ago(9)}), &["sub", "1 to 4096"]),
        (json!({"sub": "x".repeat(4097)}), &["sub", "1 to 4096"]),
        (json!({"jti": "ä".repeat(2049)}), &["jti", "1 to 4096"]),
        (sub(json!({"reason": "x".repeat(257)})), &["reason", "256"]),
        // Wrong types.
        (json!({"jti": 7}), &["jti = 7", "a string"]),
        (json!({"sid": true}), &["sid = true", "a string"]),
        (json!({"sub": ["alice"]}), &["sub = [\"alice\"]", "a string"]),
        (json!({"sub": {"eq": "alice"}}), &["sub = {", "a string"]),
        (sub(json!({"iss": 7})), &["iss = 7", "a string"]),
        (sub(json!({"ttl": 3600})), &["ttl = 3600", "a string"]),
        (sub(json!({"reason": 7})), &["reason = 7", "a string"]),
        (json!({"issued_before": 1_700_000_000}), &["issued_before = 1700000000", "a string"]),
        // The time.
        (sub(json!({"ttl": ""})), &["ttl = \"\"", "\"30s\""]),
        (sub(json!({"ttl": "0s"})), &["ttl = \"0s\"", "\"30s\""]),
        (sub(json!({"ttl": "-1s"})), &["ttl = \"-1s\"", "\"30s\""]),
        (sub(json!({"ttl": "60"})), &["ttl = \"60\"", "\"30s\""]),
        (sub(json!({"ttl": "soon"})), &["ttl = \"soon\"", "\"30s\""]),
        (sub(json!({"ttl": "off"})), &["ttl = \"off\"", "\"30s\""]),
        (sub(json!({"ttl": "9999y"})), &["ttl = \"9999y\"", "\"30s\""]),
        // The moment.
        (before(""), &["issued_before = \"\"", "RFC 3339"]),
        (before("now"), &["issued_before = \"now\"", "RFC 3339"]),
        (before("2026-03-01"), &["2026-03-01", "RFC 3339"]),
        (before("2026-03-01T09:30:00"), &["2026-03-01T09:30:00", "RFC 3339"]),
        (before("2026-13-01T09:30:00Z"), &["2026-13-01", "RFC 3339"]),
        (before("2026-03-01T09:30:00+0100"), &["+0100", "RFC 3339"]),
        (before("2026-03-01T09:30:00+25:00"), &["+25:00", "RFC 3339"]),
        (before("1969-12-31T23:59:59Z"), &["1969", "RFC 3339"]),
        (before("2099-01-01T00:00:00Z"), &["2099", "future"]),
        (sub(json!({"issued_before": "2099-01-01T00:00:00Z"})), &["2099", "future"]),
        // The issuer.
        (sub(json!({"iss": "https://sso.example.com"})), &["iss = \"https://sso.example.com\"", &iss]),
        (sub(json!({"iss": ""})), &["iss = \"\"", &iss]),
    ];
    for (asked, words) in table {
        let said = desk.revoke(&asked);
        assert_eq!(said.status, 400, "{asked}: {said:?}");
        let detail = said.detail();
        assert!(detail.contains("accepted") || detail.contains("may be left out"), "{asked}: {detail}");
        for word in words {
            assert!(detail.contains(word), "{asked}: no {word} in {detail}");
        }
        assert!(detail.len() < 1000, "{asked}: {} bytes of detail", detail.len());
    }
    // Slashes and case count: an issuer is its URL byte for byte.
    for wrong in [format!("{iss}/"), iss.to_uppercase()] {
        assert_eq!(desk.revoke(&json!({"sub": "alice", "iss": wrong})).status, 400, "{wrong}");
    }
    assert_nothing_done(&desk, &mut live);
}

#[test]
fn what_is_no_json_object_is_400() {
    let desk = Desk::new();
    let mut live = desk.open(&desk.token_of("alice"));
    for body in [
        "",
        " ",
        "null",
        "7",
        "\"sub\"",
        "[]",
        "[{\"sub\":\"alice\"}]",
        "{\"sub\":\"alice\"",
        "{sub: 'alice'}",
        "sub=alice",
        "{\"sub\":\"alice\"} {\"sub\":\"bob\"}",
        "{\"sub\":\"alice\"}x",
        "{\"sub\":\"\\ud800\"}",
        "\u{feff}{\"sub\":\"alice\"}",
    ] {
        let said = desk.say("POST /revocations", body);
        assert_eq!(said.status, 400, "{body:?}: {said:?}");
        assert!(said.detail().contains("JSON object"), "{body:?}: {said:?}");
    }
    // Bytes that are no UTF-8.
    let mut client = desk.gate.operator();
    let lines = [LOCAL, &format!("Authorization: Bearer {SECRET}"), "Content-Length: 12"];
    let mut bytes = request("POST /revocations", &lines, "");
    bytes.extend_from_slice(b"{\"sub\":\"\xff\"}x");
    client.send(&bytes);
    assert_eq!(answer(&mut client).status, 400);
    assert_nothing_done(&desk, &mut live);
}

#[test]
fn a_body_over_16_kib_is_413_and_one_of_that_is_read() {
    let desk = Desk::new();
    let mut live = desk.open(&desk.token_of("bob"));
    let padded = |length: usize| {
        let body = json!({"sub": "alice"}).to_string();
        format!("{body}{}", " ".repeat(length - body.len()))
    };
    for body in [padded(16 * 1024 + 1), padded(100_000)] {
        let said = desk.say("POST /revocations", &body);
        assert_eq!(said.status, 413, "{said:?}");
        assert!(said.detail().contains("16384"), "{said:?}");
    }
    // Also if it does not say how long it is.
    let mut client = desk.gate.operator();
    let lines = [LOCAL, &format!("Authorization: Bearer {SECRET}"), "Transfer-Encoding: chunked"];
    client.send(&request("POST /revocations", &lines, ""));
    for _ in 0..5 {
        client.send(format!("1000\r\n{}\r\n", " ".repeat(4096)).as_bytes());
    }
    assert_eq!(answer(&mut client).status, 413);
    assert_nothing_done(&desk, &mut live);
    assert_eq!(desk.say("POST /revocations", &padded(16 * 1024)).status, 201);
}

#[test]
fn moments_with_offsets_are_understood() {
    let desk = Desk::new();
    for (given, told) in [
        ("2026-03-01T09:30:00Z", "2026-03-01T09:30:00.000Z"),
        ("2026-03-01T09:30:00z", "2026-03-01T09:30:00.000Z"),
        ("2026-03-01T09:30:00.25Z", "2026-03-01T09:30:00.250Z"),
        ("2026-03-01T09:30:00+00:00", "2026-03-01T09:30:00.000Z"),
        ("2026-03-01T09:30:00-00:00", "2026-03-01T09:30:00.000Z"),
        ("2026-03-01T09:30:00+05:30", "2026-03-01T04:00:00.000Z"),
        ("2026-03-01T23:30:00-01:45", "2026-03-02T01:15:00.000Z"),
        ("2026-01-01T00:30:00.5+01:00", "2025-12-31T23:30:00.500Z"),
    ] {
        let said = desk.revoked(&json!({"sub": given, "issued_before": given}));
        assert_eq!(said["revocation"]["issued_before"], told, "{given}");
    }
    // Clocks differ a little.
    desk.revoked(&json!({"sub": "alice", "issued_before": written(now_millis() + 30_000)}));
}

#[test]
fn what_is_unusual_but_right_is_taken() {
    let desk = Desk::new();
    for (n, asked) in [
        json!({"sub": "x".repeat(4096)}),
        json!({"jti": "\u{0}\n\"'é\u{1f511}"}),
        json!({"sid": " blank at both ends "}),
        json!({"sub": "alice", "reason": "x".repeat(256)}),
        json!({"sub": "bob", "jti": null, "issued_before": null, "iss": null, "ttl": null, "reason": null}),
        json!({"sub": "*"}),
        json!({"sub": "carol", "ttl": "3650days"}),
    ]
    .iter()
    .enumerate()
    {
        desk.revoked(asked);
        assert_eq!(desk.get("/revocations")["total"], n + 1);
    }
    // No text is a pattern.
    desk.assert_welcome(&desk.token(&json!({"sub": "dave", "jti": "x", "sid": "y"})));
    desk.assert_unwelcome(&desk.token(&json!({"sub": "x", "jti": "\u{0}\n\"'é\u{1f511}"})), "token_revoked");
    desk.assert_unwelcome(&desk.token(&json!({"sub": "x", "sid": " blank at both ends "})), "token_revoked");
}

fn assert_unknown(said: &Said, name: &str) {
    assert_eq!(said.status, 400, "{name}: {said:?}");
    assert!(said.detail().contains(&format!("{name:?}")), "{said:?}");
}

#[test]
fn unknown_parameters_of_the_list_are_400() {
    let desk = Desk::new();
    for name in ["sub", "Limit", "limit ", "offset", "", "dry_run"] {
        let target = format!("GET /revocations?{}=1", name.replace(' ', "%20"));
        assert_unknown(&desk.ask(&target), name);
    }
    for target in ["limit=0", "limit=1001", "limit=-1", "limit=ten", "limit=", "limit=1&limit=1", "limit=1.0"]
    {
        let said = desk.ask(&format!("GET /revocations?{target}"));
        assert_eq!(said.status, 400, "{target}");
        assert!(said.detail().contains("limit"), "{said:?}");
    }
    for target in ["limit=1", "limit=1000", ""] {
        assert_eq!(desk.ask(&format!("GET /revocations?{target}")).status, 200, "{target}");
    }
}

#[test]
fn a_parameter_that_is_not_known_is_400_everywhere_and_nothing_is_done() {
    let desk = Desk::new();
    let mut live = desk.open(&desk.token_of("alice"));
    let body = json!({"sub": "alice"}).to_string();
    assert_unknown(&desk.say("POST /revocations?dry_run=true", &body), "dry_run");
    assert_nothing_done(&desk, &mut live);
    let told = desk.revoked(&json!({"sub": "bob"}));
    let id = told["id"].as_str().unwrap();
    assert_unknown(&desk.ask(&format!("DELETE /revocations/{id}?dry_run=true")), "dry_run");
    assert_eq!(desk.get("/revocations")["total"], 1);
    for page in ["/limits", "/config"] {
        assert_unknown(&desk.ask(&format!("GET {page}?route=x")), "route");
    }
    assert_unknown(&desk.ask("POST /drain?dry_run=true"), "dry_run");
    assert_eq!(desk.ask("GET /readyz").status, 200, "a drain has begun");
}

#[test]
fn a_member_that_occurs_twice_is_400() {
    let desk = Desk::new();
    for body in [
        "{\"sub\":\"alice\",\"sub\":\"bob\"}",
        "{\"jti\":\"a\",\"j\\u0074i\":\"b\"}",
        "{\"sub\":\"alice\",\"ttl\":\"1h\",\"ttl\":\"1s\"}",
    ] {
        let said = desk.say("POST /revocations", body);
        assert_eq!(said.status, 400, "{body}: {said:?}");
    }
    assert_eq!(desk.get("/revocations")["total"], 0);
}
