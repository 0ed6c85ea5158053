//! `sidegate explain`: the checks of a handshake, each with the key that decides it.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::super::harness::{Backend, Config, Folder, Issuer, said, sidegate};

/// What it said.
#[derive(Debug)]
pub struct Explained {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Explained {
    /// What was looked at and how it went, such as `passed origin` or `FAILED rule`.
    pub fn steps(&self) -> Vec<String> {
        let checks = self.out.lines().filter(|line| line.starts_with("passed") || line.starts_with("FAILED"));
        let words =
            |line: &str| line.split(": ").next().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        checks.map(words).collect()
    }

    /// The line of the check that is called so.
    pub fn line(&self, check: &str) -> &str {
        let line = self.out.lines().find(|line| line.contains(&format!(" {check}: ")));
        line.unwrap_or_else(|| panic!("no check {check:?} in\n{}", self.out))
    }

    /// The last word: `allowed`, or the reason of the denial.
    pub fn verdict(&self) -> &str {
        let verdict =
            self.out.lines().find(|line| line.starts_with("allowed") || line.starts_with("denied: "));
        let verdict = verdict.unwrap_or_else(|| panic!("no verdict in {self:?}"));
        match verdict.strip_prefix("denied: ") {
            Some(denied) => denied.split([' ', ':']).next().unwrap(),
            None => "allowed",
        }
    }
}

/// Runs it with the token, if any, on standard input; whatever it says shows none.
pub fn explain(config: &Path, token: Option<&str>, arguments: &[&str]) -> Explained {
    let mut command = sidegate("explain", config);
    if token.is_some() {
        command.args(["--token", "-"]);
    }
    let (code, out, err) = said(command.args(arguments), token.unwrap_or_default());
    for text in [&out, &err] {
        let at = text.find("eyJ").or_else(|| text.find("ZXlK"));
        assert!(at.is_none(), "a token is shown: {}", &text[at.unwrap_or(0)..]);
    }
    Explained { code, out, err }
}

/// A file of this configuration in a folder of its own.
pub fn file(config: &Config) -> (Folder, PathBuf) {
    let folder = Folder::new();
    let path = folder.write("sidegate.toml", &config.text());
    (folder, path)
}

/// `FILE:LINE` of the `n`th line that begins so.
pub fn place(file: &Path, start: &str, n: usize) -> String {
    let text = std::fs::read_to_string(file).unwrap();
    let mut lines = text.lines().enumerate().filter(|(_, line)| line.starts_with(start));
    format!("({}:{})", file.display(), lines.nth(n).unwrap().0 + 1)
}

fn token(issuer: &Issuer, changes: &Value) -> String {
    issuer.token(changes)
}

#[test]
fn every_check_is_told_in_order_with_key_value_and_place() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = Config::new(&issuer, &backend).set("listen.allow_addresses", "['127.0.0.0/8']").route(
        "path = '/ws/{org}/'\nroles = ['user']\nclaims = { tenant = '{org}' }\nallow = 'claims.level > 2'\n",
    );
    let (_folder, path) = file(&config.set("origin.allow", "['https://app.example.com', 'token']"));
    let claims = json!({"tenant": "acme", "level": 3, "allowed-origins": ["https://x.example.com"]});
    let told = explain(
        &path,
        Some(&token(&issuer, &claims)),
        &["--path", "/ws/acme/", "--origin", "https://x.example.com"],
    );
    assert_eq!((told.code, told.verdict(), told.err.as_str()), (0, "allowed", ""), "{told:?}");
    assert_eq!(
        told.steps(),
        [
            "passed route",
            "passed address",
            "passed origin",
            "passed token",
            "passed form",
            "passed issuer",
            "passed signature",
            "passed claims",
            "passed time",
            "passed audience",
            "passed type",
            "passed client",
            "passed origin again",
            "passed rule",
            "passed rule",
            "passed rule",
        ]
    );
    let at = |start: &str| place(&path, start, 0);
    for (check, parts) in [
        ("route", vec!["/ws/acme/".to_owned(), "path = \"/ws/{org}/\"".into(), at("path =")]),
        (
            "address",
            vec![
                "127.0.0.1".into(),
                "listen.allow_addresses = [\"127.0.0.0/8\"]".into(),
                at("allow_addresses"),
            ],
        ),
        (
            "origin",
            vec!["https://x.example.com, the token decides".into(), "origin.allow = [".into(), at("allow =")],
        ),
        ("token", vec!["token.from = [\"header\", \"subprotocol\", \"query:token\"] (default)".into()]),
        (
            "issuer",
            vec![issuer.url(), at("url = 'http://127.0.0.1:").replace(&at("url"), &place(&path, "url", 1))],
        ),
        (
            "signature",
            vec![
                "ES256, kid k1".into(),
                "algorithms = [\"ES256\", \"RS256\"]".into(),
                at("algorithms"),
                at("jwks_uri"),
            ],
        ),
        ("time", vec!["exp 20".into(), "leeway = \"10s\" (default)".into()]),
        ("audience", vec!["aud \"chat\"".into(), "audiences = [\"chat\"]".into(), at("audiences")]),
        ("type", vec!["typ \"Bearer\"".into(), "token_types = [\"Bearer\"] (default)".into()]),
        ("client", vec!["azp \"web\"".into(), "clients = [] (default)".into()]),
        ("origin again", vec!["https://x.example.com".into(), at("allow =")]),
    ] {
        for part in &parts {
            assert!(told.line(check).contains(part), "{part:?} in {}", told.line(check));
        }
    }
    for part in [at("roles"), at("claims"), at("allow = 'claims")] {
        assert!(told.out.contains(&part), "{part} in {}", told.out);
    }
    assert!(told.out.contains("Not looked at: limits"), "{}", told.out);
}

#[test]
fn what_follows_a_failed_check_is_not_told() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let (_folder, path) = file(&Config::new(&issuer, &backend).route("path = '/'\nroles = ['admin']"));
    let told = explain(&path, Some(&token(&issuer, &json!({"aud": "x"}))), &[]);
    assert_eq!((told.code, told.verdict()), (1, "token_audience"));
    assert_eq!(told.steps().last().unwrap(), "FAILED audience");
    assert!(
        told.out.contains("denied: token_audience (401): get a token for this service's audience"),
        "{}",
        told.out
    );
}

#[test]
fn exit_codes_tell_allowed_denied_usage_and_configuration_apart() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let (folder, path) = file(&Config::new(&issuer, &backend));
    let good = token(&issuer, &json!({}));
    assert_eq!(explain(&path, Some(&good), &[]).code, 0);
    assert_eq!(explain(&path, None, &[]).code, 1);
    for usage in [&["--colour"][..], &["--peer", "localhost"], &["--token"], &["--path", "/", "more"]] {
        let told = explain(&path, None, usage);
        assert_eq!((told.code, told.out.as_str()), (64, ""), "{usage:?}");
    }
    let broken = folder.write("broken.toml", "[listen]\nadress = 'x'\n");
    let told = explain(&broken, Some(&good), &[]);
    assert_eq!((told.code, told.out.as_str()), (78, ""));
    assert!(told.err.contains("line 2: listen.adress = 'x': unknown key"), "{}", told.err);
    assert_eq!(explain(&folder.path("none.toml"), Some(&good), &[]).code, 78);
}

#[test]
fn a_token_comes_by_argument_by_standard_input_or_in_the_path() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let (_folder, path) = file(&Config::new(&issuer, &backend));
    let good = token(&issuer, &json!({}));
    for text in [good.clone(), format!("{good}\n"), format!("  {good}\r\n")] {
        assert_eq!(explain(&path, Some(&text), &[]).verdict(), "allowed");
    }
    assert_eq!(explain(&path, None, &["--token", &good]).verdict(), "allowed");
    let both = format!("/?token={good}");
    assert_eq!(explain(&path, Some(&good), &["--path", &both]).verdict(), "allowed", "the same twice");
    let other = format!("/?token={}", token(&issuer, &json!({"jti": "other"})));
    assert_eq!(explain(&path, Some(&good), &["--path", &other]).verdict(), "token_ambiguous");
}

#[test]
fn a_token_in_the_path_alone_is_verified_too() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let (_folder, path) = file(&Config::new(&issuer, &backend));
    let told = explain(&path, None, &["--path", &format!("/?a=b&token={}", token(&issuer, &json!({})))]);
    assert_eq!(told.verdict(), "allowed", "{}", told.out);
}

#[test]
fn it_is_sent_in_a_carrier_that_the_route_takes() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let good = token(&issuer, &json!({}));
    for carrier in ["subprotocol", "query:t", "cookie:__Host-t", "header"] {
        let config = Config::new(&issuer, &backend).set("token.from", "['header']");
        let config = config.set("listen.public_url", "'https://chat.example.com'");
        let (_folder, path) = file(&config.route(&format!("path = '/'\ntoken = {{ from = ['{carrier}'] }}")));
        let told = explain(&path, Some(&good), &["--origin", "https://chat.example.com"]);
        assert_eq!(told.verdict(), "allowed", "{carrier}: {}", told.out);
        // A cookie alone comes from any page.
        let expected = if carrier.starts_with("cookie") { "origin_denied" } else { "allowed" };
        assert_eq!(explain(&path, Some(&good), &[]).verdict(), expected, "{carrier}");
    }
}

#[test]
fn the_peer_is_the_client_as_a_trusted_proxy_would_tell_it() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let config = Config::new(&issuer, &backend)
        .set("listen.trusted_proxies", "['10.0.0.0/8']")
        .set("listen.allow_addresses", "['192.0.2.0/24']");
    let (_folder, path) = file(&config);
    let good = token(&issuer, &json!({}));
    let from = |peer: &str| explain(&path, Some(&good), &["--peer", peer]).verdict().to_owned();
    assert_eq!([from("192.0.2.9"), from("::ffff:192.0.2.9")], ["allowed", "allowed"]);
    assert_eq!([from("198.51.100.1"), from("2001:db8::1")], ["address_denied", "address_denied"]);
    // A proxy that names nobody is itself the client.
    assert_eq!(from("10.0.0.1"), "address_denied");
}

#[test]
fn a_route_in_shadow_mode_says_what_it_would_refuse_and_exits_with_0() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let (_folder, path) =
        file(&Config::new(&issuer, &backend).route("path = '/'\nmode = 'shadow'\nroles = ['admin']"));
    for (token, first, check) in [
        (Some(token(&issuer, &json!({}))), "rule_denied", "FAILED rule"),
        (Some(token(&issuer, &json!({"aud": "x"}))), "token_audience", "FAILED audience"),
        (None, "token_missing", "FAILED token"),
    ] {
        let told = explain(&path, token.as_deref(), &[]);
        assert_eq!((told.code, told.verdict()), (0, "allowed"), "{}", told.out);
        let would = format!("allowed: the route is in shadow mode; it would be refused for {first}\n");
        assert!(told.out.contains(&would), "{}", told.out);
        assert!(told.steps().iter().any(|step| step == check), "{}", told.out);
    }
    let admin = token(&issuer, &json!({"realm_access": {"roles": ["admin"]}}));
    assert!(!explain(&path, Some(&admin), &[]).out.contains("would"));
}

#[test]
fn the_blacklist_file_is_looked_at() {
    let (issuer, backend) = (Issuer::start(), Backend::start());
    let folder = Folder::new();
    let list = folder.write("revoked", "# who left\nsub mallory-sub\nsid session-9\nnonsense\n");
    let config = Config::new(&issuer, &backend).set("blacklist.file", &format!("'{}'", list.display()));
    let path = folder.write("sidegate.toml", &config.text());
    let told = explain(&path, Some(&token(&issuer, &json!({}))), &[]);
    assert_eq!((told.verdict(), told.steps().last().unwrap().as_str()), ("allowed", "passed blacklist"));
    for (changes, reason) in
        [(json!({"sub": "mallory-sub"}), "user_revoked"), (json!({"sid": "session-9"}), "token_revoked")]
    {
        let told = explain(&path, Some(&token(&issuer, &changes)), &[]);
        assert_eq!((told.code, told.verdict()), (1, reason), "{}", told.out);
        let line = told.line("blacklist");
        assert!(line.contains("blacklist.file = ") && line.contains(&place(&path, "file = ", 0)), "{line}");
    }
    // Named by the environment.
    let text = Config::new(&issuer, &backend).text();
    let path = folder.write("sidegate.toml", &text);
    let mut command = sidegate("explain", &path);
    command.env("SIDEGATE__BLACKLIST__FILE", &list).args(["--token", "-"]);
    let (code, out, _) = said(&mut command, &token(&issuer, &json!({"sid": "session-9"})));
    assert_eq!(code, 1);
    assert!(out.contains(&format!("blacklist.file = \"{}\" (environment)", list.display())), "{out}");
}
