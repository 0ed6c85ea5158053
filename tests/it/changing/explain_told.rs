//! What `sidegate explain` must never say, and what it says of strange input.

use serde_json::json;

use super::super::harness::{Backend, Config, Gate, Handshake, Issuer, Key};
use super::explain::{explain, file};
use super::outcome;

#[test]
fn no_token_is_shown_whatever_is_wrong_with_it() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let (_folder, path) = file(&Config::new(&issuer, &backend).route("path = '/ws/*'"));
    let good = issuer.good_token();
    let (head, rest) = good.split_once('.').unwrap();
    for token in [
        format!("Bearer {good}"),
        format!("\"{good}\""),
        format!("{good}."),
        head.to_owned(),
        format!("{head}..{rest}"),
        format!("{good}\u{1}"),
        format!("{good} {good}"),
        good.repeat(60),
    ] {
        let told = explain(&path, Some(&token), &["--path", "/ws/a"]);
        assert_eq!(told.code, 1, "{told:?}");
        explain(&path, None, &["--path", "/ws/a", "--token", &token]);
        if token.bytes().all(|b| b.is_ascii_graphic() && b != b'"') {
            explain(&path, None, &["--path", &format!("/ws/a?token={token}")]);
        }
    }
    for target in ["/ws/a/../b", "/ws//a", "/nowhere", "https://chat.example.com/ws/a"] {
        explain(&path, Some(&good), &["--path", &format!("{target}?token={good}")]);
    }
}

#[test]
fn no_token_is_shown_in_what_is_said_of_a_path_that_is_none() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let (_folder, path) = file(&Config::new(&issuer, &backend));
    for target in ["ws/a", "?", "/ws a/"] {
        let told = explain(&path, None, &["--path", &format!("{target}?token={}", issuer.good_token())]);
        assert_eq!(told.code, 1);
        assert!(told.err.contains("accepted"), "{}", told.err);
    }
}

/// As HTTP/1.1 servers do, the gate takes UTF-8 in a path.
#[test]
fn a_path_beyond_ascii_is_judged_as_the_gate_judges_it() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = Config::new(&issuer, &backend).route("path = '/{any}'");
    let (_folder, path) = file(&config);
    let gate = Gate::start(&config);
    let target = format!("/\u{e9}?token={}", issuer.good_token());
    assert_eq!(outcome(&gate, &Handshake::to(&target)), "101");
    assert_eq!(explain(&path, None, &["--path", &target]).verdict(), "allowed");
}

#[test]
fn no_token_is_shown_in_what_is_said_of_usage() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let (_folder, path) = file(&Config::new(&issuer, &backend));
    let good = issuer.good_token();
    for arguments in [&[good.as_str()][..], &["--peer", &good], &[&format!("--{good}")], &["--token=", &good]]
    {
        assert_eq!(explain(&path, None, arguments).code, 64);
    }
}

/// Nothing that a terminal would obey.
fn harmless(text: &str) -> bool {
    text.chars().all(|c| c == '\n' || !c.is_control())
}

#[test]
fn control_characters_of_claims_and_headers_do_not_reach_the_terminal() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let (_folder, path) = file(&Config::new(&issuer, &backend));
    let evil = "\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}31m\r\npassed   route: all\u{8}\u{7f}\u{85}";
    for claims in [
        json!({"iss": evil}),
        json!({"aud": evil}),
        json!({"aud": [evil, "x"]}),
        json!({"typ": evil}),
        json!({"azp": evil}),
        json!({"sub": evil, "preferred_username": evil}),
    ] {
        let told = explain(&path, Some(&issuer.token(&claims)), &[]);
        assert!(harmless(&told.out), "{:?}", told.out);
        assert!(!told.out.lines().any(|line| line.starts_with("passed   route: all")), "{}", told.out);
    }
    let key = Key::new(evil);
    let told = explain(&path, Some(&key.sign(&key.header(), &issuer.claims(&json!({})))), &[]);
    assert!(harmless(&told.out), "{:?}", told.out);
    assert_eq!(told.verdict(), "token_key_unknown");
    // What is not sent because it cannot be is not told raw either.
    for arguments in [["--origin", evil], ["--path", evil]] {
        let told = explain(&path, None, &arguments);
        assert_eq!(told.code, 1);
        assert!(harmless(&told.err) && harmless(&told.out), "{told:?}");
    }
}

#[test]
fn text_that_turns_its_direction_around_does_not_reach_the_terminal() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let (_folder, path) = file(&Config::new(&issuer, &backend));
    for evil in ['\u{202e}', '\u{2066}', '\u{200b}', '\u{2028}'] {
        let told = explain(&path, Some(&issuer.token(&json!({"azp": format!("x{evil}y")}))), &[]);
        assert!(!told.out.contains(evil), "{evil:?} in {:?}", told.out);
    }
}

#[test]
fn a_claim_of_any_length_leaves_the_page_readable() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let (_folder, path) = file(&Config::new(&issuer, &backend));
    let told = explain(&path, Some(&issuer.token(&json!({"azp": "x".repeat(9000)}))), &[]);
    assert_eq!(told.verdict(), "allowed");
    assert!(
        told.out.lines().all(|line| line.len() < 1000),
        "a line of {}",
        told.out.lines().map(str::len).max().unwrap()
    );
}

#[test]
fn an_empty_standard_input_is_not_called_a_missing_token_of_the_client() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let (_folder, path) = file(&Config::new(&issuer, &backend));
    for input in ["", "\n"] {
        let told = explain(&path, Some(input), &[]);
        assert!(told.err.contains("standard input"), "{told:?}");
    }
}

#[test]
fn the_gates_own_page_is_explained_as_such_where_no_public_url_is_known() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let (_folder, path) = file(&Config::new(&issuer, &backend));
    for (host, verdict) in [("chat.example.com", "allowed"), ("localhost", "origin_denied")] {
        let arguments = ["--origin", "https://chat.example.com", "--host", host];
        let told = explain(&path, Some(&issuer.good_token()), &arguments);
        assert_eq!(told.verdict(), verdict, "{}", told.out);
    }
}

#[test]
fn a_token_that_no_one_looks_at_is_said_to_be_so() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let (_folder, path) = file(&Config::new(&issuer, &backend).route("path = '/'\nauth = 'none'"));
    let told = explain(&path, Some("nonsense"), &[]);
    assert_eq!(told.verdict(), "allowed");
    assert!(told.line("token").contains("token: not looked for"), "{}", told.out);
    assert!(told.line("token").contains("route[1].auth = \"none\""), "{}", told.out);
}
