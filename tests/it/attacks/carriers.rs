//! Where a token hides, and that it goes no further.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use super::super::harness::{Gate, Handshake, Script};
use super::{Scene, get};

const KUBERNETES: &str = "base64url.bearer.authorization.k8s.io.";

fn protocols(handshake: Handshake, offered: &str) -> Handshake {
    handshake.with(&format!("Sec-WebSocket-Protocol: {offered}"))
}

#[test]
fn two_tokens_are_one_too_many() {
    let scene = Scene::new();
    let (one, two) = (scene.issuer.good_token(), scene.issuer.token(&json!({"sub": "bob"})));
    let kubernetes = |token: &str| format!("{KUBERNETES}{}", URL_SAFE_NO_PAD.encode(token));
    for handshake in [
        Handshake::to(&format!("/?token={two}")).bearer(&one),
        Handshake::to("/?token=x").bearer(&one),
        Handshake::to(&format!("/?token={one}&token={two}")),
        Handshake::to(&format!("/?token={one}&token={one}")),
        Handshake::to(&format!("/?token={one}&token=")),
        protocols(Handshake::to("/").bearer(&one), &format!("Bearer, {two}")),
        protocols(Handshake::to(&format!("/?token={one}")), &format!("Bearer, {two}")),
        protocols(Handshake::to("/"), &format!("Bearer, {one}, bearer, {two}")),
        protocols(Handshake::to("/"), &format!("Bearer, {one}, {}", kubernetes(&two))),
        protocols(protocols(Handshake::to("/"), &format!("Bearer, {one}")), &format!("Bearer, {two}")),
    ] {
        let line = handshake.line.clone();
        assert_eq!(scene.gate.refusal(&handshake), (400, "token_ambiguous".into()), "{line}");
    }
    scene.backend.assert_never_heard();
}

#[test]
fn a_parameter_that_a_backend_would_decode_to_the_tokens_name_is_refused() {
    let scene = Scene::with(|config| config.route("path = '/*'").route("path = '/o/'\nauth = 'optional'"));
    let token = scene.issuer.good_token();
    for name in ["tok%65n", "%74oken", "%74%6F%6b%65%6e"] {
        for path in ["/", "/o/"] {
            let refused = scene.gate.refusal(&Handshake::to(&format!("{path}?{name}={token}")));
            assert_eq!(refused, (400, "request_malformed".into()), "{path} {name}");
            let refused = scene.gate.refusal(&scene.good(&format!("{path}?a=b&{name}=x")));
            assert_eq!(refused, (400, "request_malformed".into()), "{path} {name}");
            assert_eq!(scene.status(&get(&format!("{path}?{name}={token}"), &[])), 400, "{path} {name}");
        }
    }
    scene.backend.assert_never_heard();
}

#[test]
fn a_token_goes_no_further_than_the_gate_whatever_carried_it() {
    let scene = Scene::with(|config| {
        config.set("token.from", "['header', 'subprotocol', 'query:token', 'query:jwt', 'cookie:__Host-t']")
    });
    let token = scene.issuer.good_token();
    let kubernetes = format!("{KUBERNETES}{}", URL_SAFE_NO_PAD.encode(&token));
    for (n, handshake) in [
        Handshake::to("/?a=%41&b").bearer(&token),
        Handshake::to("/?a=%41&b").with(&format!("authorization:bearer \t{token} ")),
        Handshake::to(&format!("/?token={token}&a=%41&b")),
        Handshake::to(&format!("/?a=%41&jwt={token}&b")),
        Handshake::to(&format!("/?a=%41&b&token={token}&jwt={token}")).bearer(&token),
        protocols(Handshake::to("/?a=%41&b"), &format!("Bearer, {token}")),
        protocols(Handshake::to("/?a=%41&b"), &kubernetes),
        Handshake::to("/?a=%41&b").page().with(&format!("Cookie: __Host-t=\"{token}\"")),
        Handshake::to("/?a=%41&b").bearer(&token).with(&format!("Cookie: __Host-t={token}")),
    ]
    .into_iter()
    .enumerate()
    {
        Gate::assert_echo(&mut scene.gate.open(&handshake));
        let heard = scene.backend.request(n);
        let text = heard.text();
        assert!(!text.contains("eyJ") && !text.contains("ZXlK"), "{text}");
        assert_eq!(heard.line(), "GET /?a=%41&b HTTP/1.1");
        for name in ["authorization", "cookie", "sec-websocket-protocol"] {
            assert_eq!(heard.header(name), None, "{text}");
        }
        assert_eq!(heard.header("x-auth-subject").as_deref(), Some("alice-sub"));
    }
    let target = scene.gate.log().iter().filter_map(|line| line["target"].as_str().map(str::to_owned)).nth(2);
    assert_eq!(target.as_deref(), Some("/?token=***&a=%41&b"));
}

#[test]
fn other_authorizations_are_no_token_and_pass() {
    let scene = Scene::with(|config| config.route("path = '/*'\nauth = 'optional'"));
    drop(scene.gate.open(&Handshake::to("/").with("Authorization: Basic eHg6eHg=")));
    assert_eq!(scene.backend.request(0).header("authorization").as_deref(), Some("Basic eHg6eHg="));
    assert_eq!(scene.backend.request(0).header("x-auth-subject"), None);
    let bad = Handshake::to("/").bearer("x");
    assert_eq!(scene.gate.refusal(&bad), (401, "token_malformed".into()));
}

#[test]
fn a_translated_token_is_the_only_one_of_its_carrier() {
    for (delivery, target, lines) in [
        ("'header'", "/?a=b", vec![]),
        ("'query:access_token'", "/?access_token=evil&a=b&acc%65ss_token=evil", vec![]),
        ("'subprotocol:access_token'", "/?a=b", vec!["Sec-WebSocket-Protocol: access_token, evil, chat"]),
        ("'subprotocol:access_token'", "/?a=b", vec!["Sec-WebSocket-Protocol: ACCESS_TOKEN, evil, chat"]),
    ] {
        let scene = Scene::with(|config| {
            config.set("upstream.token", delivery).set("token.from", "['query:token', 'header']")
        });
        let token = scene.issuer.good_token();
        let handshake = Handshake::to(&format!("{target}&token={token}"));
        let handshake = lines.iter().fold(handshake, |handshake, line| handshake.with(line));
        drop(scene.gate.open(&handshake));
        let heard = scene.backend.request(0);
        let text = heard.text();
        assert_eq!(text.matches(&token).count(), 1, "{text}");
        assert!(!text.contains("evil"), "{text}");
        let expected = match delivery {
            "'header'" => {
                assert_eq!(heard.header("authorization"), Some(format!("Bearer {token}")));
                "GET /?a=b HTTP/1.1".to_owned()
            }
            "'query:access_token'" => format!("GET /?a=b&access_token={token} HTTP/1.1"),
            _ => {
                let offered = heard.header("sec-websocket-protocol").unwrap();
                assert_eq!(offered, format!("access_token, {token}, chat"));
                "GET /?a=b HTTP/1.1".to_owned()
            }
        };
        assert_eq!(heard.line(), expected);
    }
}

#[test]
fn a_bare_token_for_the_backend_cannot_be_had_without_a_good_one() {
    let scene = Scene::with(|config| {
        config.set("upstream.token", "'query:access_token'").route("path = '/*'\nauth = 'optional'")
    });
    drop(scene.gate.open(&Handshake::to("/?access_token=evil&acc%65ss_token=evil&a=b")));
    assert_eq!(scene.backend.request(0).line(), "GET /?a=b HTTP/1.1");
}

/// What was offered to the backend and what was answered to the client.
fn negotiate(offered: &str, selected: Option<&str>) -> (Option<String>, Option<String>) {
    let scene = Scene::new();
    let token = scene.issuer.good_token();
    let fill = |text: &str| {
        let kubernetes = format!("{KUBERNETES}{}", URL_SAFE_NO_PAD.encode(&token));
        text.replace("<jwt>", &token).replace("<k8s>", &kubernetes)
    };
    let line = |selected: &str| format!("Sec-WebSocket-Protocol: {}", fill(selected));
    scene.backend.script(Script::Echo(selected.map(line).into_iter().collect()));
    let handshake = protocols(Handshake::to("/"), &fill(offered));
    let carried = offered.contains("<jwt>") || offered.contains("<k8s>");
    let (_client, answer) = scene.gate.upgrade(&if carried { handshake } else { handshake.bearer(&token) });
    assert_eq!(answer.status, 101, "{}", answer.text);
    let answered = answer.header("sec-websocket-protocol").map(str::to_owned);
    (scene.backend.request(0).header("sec-websocket-protocol"), answered)
}

#[test]
fn subprotocols_are_negotiated_without_the_token_on_either_side() {
    for (offered, selected, shown, answered) in [
        ("Bearer, <jwt>", None, None, Some("Bearer")),
        ("bearer, <jwt>", None, None, Some("bearer")),
        ("chat, Bearer, <jwt>, json", None, Some("chat, json"), Some("Bearer")),
        ("chat, Bearer, <jwt>, json", Some("json"), Some("chat, json"), Some("json")),
        ("Bearer, <jwt>, chat", Some("chat"), Some("chat"), Some("chat")),
        ("<k8s>", None, None, None),
        ("<k8s>, chat", None, Some("chat"), None),
        ("<k8s>, chat", Some("chat"), Some("chat"), Some("chat")),
        // Selected without having been shown: dropped.
        ("chat, json", Some("evil"), Some("chat, json"), None),
        ("Bearer, <jwt>, chat", Some("evil"), Some("chat"), Some("Bearer")),
        ("Bearer, <jwt>", Some("<jwt>"), None, Some("Bearer")),
        ("<k8s>", Some("<k8s>"), None, None),
        ("chat, json", Some("chat"), Some("chat, json"), Some("chat")),
        ("chat, json", None, Some("chat, json"), None),
    ] {
        let (got_shown, got_answered) = negotiate(offered, selected);
        assert_eq!(got_shown.as_deref(), shown, "{offered}: {selected:?}");
        assert_eq!(got_answered.as_deref(), answered, "{offered}: {selected:?}");
    }
}

#[test]
fn a_token_among_the_subprotocols_is_not_repeated_even_if_the_backend_selects_it() {
    let scene = Scene::new();
    let token = scene.issuer.good_token();
    scene.backend.script(Script::Echo(vec![format!("Sec-WebSocket-Protocol: {token}")]));
    let handshake = protocols(Handshake::to("/").bearer(&token), &format!("chat, {token}"));
    let (_client, answer) = scene.gate.upgrade(&handshake);
    assert_eq!(answer.header("sec-websocket-protocol"), None, "{}", answer.text);
}

#[test]
fn a_subprotocol_that_daphne_would_decode_is_refused() {
    let scene = Scene::with(|config| config.set("upstream.profile", "'daphne'"));
    for offered in ["chat%2Cadmin", "chat, a%2cb", "%63hat"] {
        let refused = scene.gate.refusal(&protocols(scene.good("/"), offered));
        assert_eq!(refused, (400, "upgrade_malformed".into()), "{offered}");
        let refused = scene.gate.refusal(&protocols(scene.good("/").page(), offered));
        assert_eq!(refused, (400, "upgrade_malformed".into()), "{offered}");
    }
    for offered in ["a b", "a\"b\"", "a;b", "\u{e9}"] {
        let refused = scene.gate.refusal(&protocols(scene.good("/"), offered));
        assert_eq!(refused, (400, "upgrade_malformed".into()), "{offered}");
    }
    scene.backend.assert_never_heard();
}

#[test]
fn a_redaction_covers_every_spelling_of_the_tokens_name() {
    let scene = Scene::with(|config| {
        config
            .route("path = '/none/'\nauth = 'none'")
            .route("path = '/*'")
            .set("log.requests", "true")
            .set("token.from", "['header', 'query:token']")
    });
    let secret = "0123456789secret";
    for (n, name) in ["token", "tok%65n", "Token", "%74oken"].into_iter().enumerate() {
        let target = format!("/none/?a=b&{name}={secret}");
        drop(scene.gate.open(&Handshake::to(&target)));
        assert_eq!(scene.status(&get(&target, &[])), 200);
        let lines = scene.gate.log();
        let targets: Vec<&str> = lines.iter().filter_map(|line| line["target"].as_str()).collect();
        assert_eq!(targets.len(), 2 * n + 2, "{targets:?}");
        assert!(!targets.concat().contains(secret), "{targets:?}");
    }
}
