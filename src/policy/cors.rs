//! Which pages of other origins may read answers (CORS, Fetch §3.2). Which origins those are says
//! `[origin]`; here is what they may do, and how it is told to the browser.

use std::time::Duration;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderName, ORIGIN, VARY,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method};

use super::request::{is_token, list};
use crate::base::section::Section;
use crate::base::value::Span;

/// `[cors]`
#[derive(Clone, Debug)]
pub struct CorsPolicy {
    allow_methods: Vec<String>,
    allow_headers: Vec<String>,
    expose_headers: Vec<String>,
    allow_credentials: bool,
    max_age: Option<Duration>,
}

impl Default for CorsPolicy {
    fn default() -> Self {
        Self {
            allow_methods: vec!["GET".into(), "POST".into()],
            allow_headers: vec!["authorization".into(), "content-type".into()],
            expose_headers: Vec::new(),
            allow_credentials: false,
            max_age: Some(Duration::from_secs(600)),
        }
    }
}

/// What the answer to a preflight depends on.
const PREFLIGHT_VARIES: [&str; 3] =
    ["Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers"];

impl CorsPolicy {
    /// Reads the section; what it does not give is inherited.
    pub fn read(section: &Section<'_>, inherited: Option<&Self>) -> Self {
        let inherited = inherited.cloned().unwrap_or_default();
        let allow_credentials = section.get("allow_credentials", inherited.allow_credentials);
        let tokens = |key: &str, inherited: Vec<String>, accepted: &str| {
            let mut tokens = section.get(key, inherited);
            tokens.retain(|token| {
                let fine = is_token(token);
                if !fine {
                    section.problem(key, format!("{token:?} is no HTTP token; accepted: {accepted}"));
                }
                fine
            });
            if allow_credentials && tokens.iter().any(|token| token == "*") {
                section.problem(
                    key,
                    "browsers ignore \"*\" with allow_credentials; accepted: each name by itself",
                );
            }
            tokens
        };
        let allow_methods = tokens("allow_methods", inherited.allow_methods, "methods such as \"GET\"");
        let names = "header names such as \"content-type\"";
        let allow_headers = tokens("allow_headers", inherited.allow_headers, names);
        let lists = |name: &str| allow_headers.iter().any(|header| header.eq_ignore_ascii_case(name));
        if section.has("allow_headers") && lists("*") && !lists("authorization") {
            section.warning(
                "allow_headers",
                "\"*\" does not cover Authorization (Fetch §4.8): a page cannot send its token; name it too",
            );
        }
        let expose_headers = tokens("expose_headers", inherited.expose_headers, names);
        let max_age = section.get("max_age", inherited.max_age.map(Span)).map(|span| span.0);
        Self { allow_methods, allow_headers, expose_headers, allow_credentials, max_age }
    }

    /// With an origin `"*"` this is a mistake of the configuration.
    pub fn allow_credentials(&self) -> bool {
        self.allow_credentials
    }

    /// The headers of the 204 to a preflight (Fetch §4.8). `origin` is the allowed one as the browser
    /// sent it, `any` says that all are allowed. A foreign origin is told nothing, which browsers read as
    /// no. Private-network access is never allowed: a page of the internet has no business in here.
    pub fn preflight(&self, origin: Option<&HeaderValue>, any: bool, headers: &mut HeaderMap) {
        vary(headers, &PREFLIGHT_VARIES);
        let Some(origin) = origin else { return };
        self.share(origin, any, headers);
        set_list(headers, ACCESS_CONTROL_ALLOW_METHODS, &self.allow_methods);
        set_list(headers, ACCESS_CONTROL_ALLOW_HEADERS, &self.allow_headers);
        if let Some(max_age) = self.max_age {
            headers.insert(ACCESS_CONTROL_MAX_AGE, max_age.as_secs().into());
        }
    }

    /// The headers of every other answer; what the backend says about CORS is removed, for two voices
    /// would contradict each other, and browsers refuse two origins.
    pub fn apply(&self, origin: Option<&HeaderValue>, any: bool, headers: &mut HeaderMap) {
        let foreign: Vec<HeaderName> =
            headers.keys().filter(|name| name.as_str().starts_with("access-control-")).cloned().collect();
        for name in foreign {
            headers.remove(name);
        }
        // Also without an origin: a cache would hand this answer to a page that has one.
        vary(headers, &["Origin"]);
        let Some(origin) = origin else { return };
        self.share(origin, any, headers);
        set_list(headers, ACCESS_CONTROL_EXPOSE_HEADERS, &self.expose_headers);
    }

    fn share(&self, origin: &HeaderValue, any: bool, headers: &mut HeaderMap) {
        // Credentials for whoever asks would open the gate to every page: `*` has none, and `null`, which
        // any sandboxed frame can be, neither.
        if any {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
            return;
        }
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if self.allow_credentials && origin != "null" {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }
}

/// Whether the browser only asks what the page may do.
pub fn is_preflight(head: &Parts) -> bool {
    head.method == Method::OPTIONS
        && head.headers.contains_key(ORIGIN)
        && head.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

fn set_list(headers: &mut HeaderMap, name: HeaderName, tokens: &[String]) {
    if !tokens.is_empty()
        && let Ok(value) = HeaderValue::try_from(tokens.join(", "))
    {
        headers.insert(name, value);
    }
}

/// Adds to `Vary` what it does not say yet, in one line: some caches read only the first.
fn vary(headers: &mut HeaderMap, names: &[&'static str]) {
    let said: Vec<&str> = list(headers, &VARY).collect();
    if said.contains(&"*") {
        return;
    }
    let missing: Vec<&'static str> = names
        .iter()
        .filter(|name| !said.iter().any(|other| other.eq_ignore_ascii_case(name)))
        .copied()
        .collect();
    if missing.is_empty() {
        return;
    }
    let merged: Vec<&str> = said.iter().chain(&missing).copied().collect();
    if let Ok(line) = HeaderValue::try_from(merged.join(", ")) {
        headers.insert(VARY, line);
        return;
    }
    // The backend's line is not ASCII: it stays as it is, ours stand beside it.
    for name in missing {
        headers.append(VARY, HeaderValue::from_static(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::section::Document;
    use proptest::prelude::*;

    /// The policy that a file gives over an inherited one, and its problems.
    fn read(text: &str, inherited: Option<&CorsPolicy>) -> (CorsPolicy, Vec<String>) {
        let document = Document::parse(text, std::iter::empty());
        let policy = {
            let root = document.root().unwrap();
            CorsPolicy::read(&root.section("cors"), inherited)
        };
        (policy, document.finish().0.iter().map(ToString::to_string).collect())
    }

    fn policy(text: &str) -> CorsPolicy {
        let (policy, problems) = read(text, None);
        assert!(problems.is_empty(), "{problems:?}");
        policy
    }

    fn origin(text: &'static str) -> HeaderValue {
        HeaderValue::from_static(text)
    }

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn shown(headers: &HeaderMap) -> Vec<String> {
        let mut lines: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        lines
    }

    const PREFLIGHT_VARY: &str =
        "vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers";

    #[test]
    fn a_preflight_of_an_allowed_origin_is_told_everything_that_is_allowed() {
        let mut headers = HeaderMap::new();
        policy("[cors]\nallow_credentials = true\nexpose_headers = [\"x-total\"]").preflight(
            Some(&origin("https://a.com")),
            false,
            &mut headers,
        );
        assert_eq!(
            shown(&headers),
            [
                "access-control-allow-credentials: true",
                "access-control-allow-headers: authorization, content-type",
                "access-control-allow-methods: GET, POST",
                "access-control-allow-origin: https://a.com",
                "access-control-max-age: 600",
                PREFLIGHT_VARY,
            ]
        );
    }

    #[test]
    fn a_preflight_of_a_foreign_origin_is_told_nothing() {
        for any in [false, true] {
            let mut headers = HeaderMap::new();
            policy("[cors]\nallow_credentials = true").preflight(None, any, &mut headers);
            assert_eq!(shown(&headers), [PREFLIGHT_VARY]);
        }
    }

    #[test]
    fn what_is_empty_or_off_is_not_said() {
        let text = "[cors]\nallow_methods = []\nallow_headers = []\nmax_age = \"off\"";
        let mut headers = HeaderMap::new();
        policy(text).preflight(Some(&origin("https://a.com")), false, &mut headers);
        assert_eq!(shown(&headers), ["access-control-allow-origin: https://a.com", PREFLIGHT_VARY]);
    }

    #[test]
    fn the_backends_own_words_about_cors_are_replaced() {
        let backend = [
            ("access-control-allow-origin", "*"),
            ("access-control-allow-origin", "https://evil.com"),
            ("Access-Control-Allow-Credentials", "true"),
            ("access-control-allow-private-network", "true"),
            ("access-control-of-next-year", "yes"),
            ("content-type", "text/plain"),
        ];
        let cors = policy("[cors]\nexpose_headers = [\"x-total\", \"etag\"]");

        let mut headers = map(&backend);
        cors.apply(Some(&origin("https://a.com")), false, &mut headers);
        assert_eq!(
            shown(&headers),
            [
                "access-control-allow-origin: https://a.com",
                "access-control-expose-headers: x-total, etag",
                "content-type: text/plain",
                "vary: Origin",
            ]
        );

        let mut headers = map(&backend);
        cors.apply(None, false, &mut headers);
        assert_eq!(shown(&headers), ["content-type: text/plain", "vary: Origin"]);
    }

    #[test]
    fn credentials_are_never_for_everybody() {
        let cors = policy("[cors]\nallow_credentials = true");
        for (from, any, told, credentials) in [
            ("https://a.com", false, "https://a.com", true),
            ("https://a.com", true, "*", false),
            ("null", false, "null", false),
            ("null", true, "*", false),
        ] {
            for preflight in [false, true] {
                let mut headers = HeaderMap::new();
                if preflight {
                    cors.preflight(Some(&origin(from)), any, &mut headers);
                } else {
                    cors.apply(Some(&origin(from)), any, &mut headers);
                }
                assert_eq!(headers[ACCESS_CONTROL_ALLOW_ORIGIN], told);
                assert_eq!(
                    headers.contains_key(ACCESS_CONTROL_ALLOW_CREDENTIALS),
                    credentials,
                    "{from} {any}"
                );
            }
        }
        let mut headers = HeaderMap::new();
        policy("[cors]").apply(Some(&origin("https://a.com")), false, &mut headers);
        assert!(!headers.contains_key(ACCESS_CONTROL_ALLOW_CREDENTIALS));
    }

    #[test]
    fn vary_is_merged_and_says_nothing_twice() {
        for (before, after) in [
            (&[][..], &["Origin"][..]),
            (&["Accept-Encoding"], &["Accept-Encoding, Origin"]),
            (&["Accept-Encoding", "Cookie"], &["Accept-Encoding, Cookie, Origin"]),
            (&["Accept-Encoding, oRiGiN"], &["Accept-Encoding, oRiGiN"]),
            (&["X-Origin"], &["X-Origin, Origin"]),
            (&["*"], &["*"]),
            (&["Cookie, *"], &["Cookie, *"]),
            (&[" ,, "], &["Origin"]),
        ] {
            let mut headers: HeaderMap = before.iter().map(|line| (VARY, line.parse().unwrap())).collect();
            policy("[cors]").apply(None, false, &mut headers);
            policy("[cors]").apply(None, false, &mut headers);
            assert_eq!(headers.get_all(VARY).iter().collect::<Vec<_>>(), after, "{before:?}");
        }
        let strange = HeaderValue::from_bytes(b"caf\xe9").unwrap();
        let mut headers: HeaderMap = [(VARY, strange.clone())].into_iter().collect();
        policy("[cors]").apply(None, false, &mut headers);
        assert_eq!(headers.get_all(VARY).iter().collect::<Vec<_>>(), [&strange, &origin("Origin")]);
    }

    #[test]
    fn a_preflight_is_options_with_origin_and_the_method_asked_for() {
        let asks = |method: &str, lines: &[(&str, &str)]| {
            let mut head = http::Request::builder().method(method).body(()).unwrap().into_parts().0;
            head.headers = map(lines);
            is_preflight(&head)
        };
        let both = [("origin", "https://a.com"), ("access-control-request-method", "PUT")];
        assert!(asks("OPTIONS", &both));
        assert!(!asks("GET", &both));
        assert!(!asks("OPTIONS", &both[..1]));
        assert!(!asks("OPTIONS", &both[1..]));
    }

    #[test]
    fn a_route_overrides_key_by_key() {
        let above = policy("[cors]\nallow_credentials = true\nexpose_headers = [\"etag\"]\nmax_age = \"1h\"");
        let (below, problems) = read("[cors]\nallow_methods = [\"PUT\"]", Some(&above));
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(below.allow_methods, ["PUT"]);
        assert_eq!(below.expose_headers, ["etag"]);
        assert_eq!(below.max_age, Some(Duration::from_secs(3600)));
        assert!(below.allow_credentials());
    }

    #[test]
    fn what_is_no_token_is_a_problem_that_names_it() {
        for (line, said) in [
            ("allow_methods = [\"GET\", \"PO ST\"]", "\"PO ST\" is no HTTP token"),
            ("allow_methods = [\"\"]", "\"\" is no HTTP token"),
            ("allow_headers = [\"a,b\"]", "\"a,b\" is no HTTP token"),
            ("expose_headers = [\"a\\r\\nSet-Cookie: x\"]", "is no HTTP token"),
            ("expose_headers = [\"ä\"]", "is no HTTP token"),
            ("max_age = \"0s\"", "0 is refused"),
            ("allow_credentials = 1", "true or false"),
        ] {
            let (policy, problems) = read(&format!("[cors]\n{line}"), None);
            assert_eq!(problems.len(), 1, "{problems:?}");
            let key = line.split_once(' ').unwrap().0;
            assert!(problems[0].starts_with(&format!("line 2: cors.{key} = ")), "{problems:?}");
            assert!(problems[0].contains(said) && problems[0].contains("accepted: "), "{problems:?}");
            let lists = [&policy.allow_methods, &policy.allow_headers, &policy.expose_headers];
            assert!(lists.into_iter().flatten().all(|token| is_token(token)));
        }
    }

    #[test]
    fn a_star_that_leaves_the_token_out_is_a_warning() {
        for (list, warned) in [("[\"*\"]", 1), ("[\"*\", \"Authorization\"]", 0), ("[\"x-a\"]", 0)] {
            let text = format!("[cors]\nallow_headers = {list}");
            let document = Document::parse(&text, std::iter::empty());
            CorsPolicy::read(&document.root().unwrap().section("cors"), None);
            let (problems, warnings, _) = document.finish();
            assert!(problems.is_empty() && warnings.len() == warned, "{list}: {problems:?} {warnings:?}");
        }
    }

    #[test]
    fn a_star_that_browsers_would_ignore_is_a_problem() {
        for key in ["allow_methods", "allow_headers", "expose_headers"] {
            assert!(read(&format!("[cors]\n{key} = [\"*\"]"), None).1.is_empty());
            let (_, problems) = read(&format!("[cors]\n{key} = [\"*\"]\nallow_credentials = true"), None);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains(key) && problems[0].contains("allow_credentials"), "{problems:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_backend_sends_the_page_hears_one_voice(
            backend in proptest::collection::vec(
                (
                    prop_oneof![
                        Just("vary".to_owned()),
                        Just("access-control-allow-origin".to_owned()),
                        "access-control-[a-z-]{1,20}",
                        "[a-z]{1,8}",
                    ],
                    "[ -~]{0,20}|[\\x80-\\u{ff}]{1,3}",
                ),
                0..8,
            ),
            allowed: bool,
            any: bool,
        ) {
            let mut headers = HeaderMap::new();
            for (name, value) in &backend {
                let name: HeaderName = name.parse().unwrap();
                headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
            }
            let varied: Vec<String> = list(&headers, &VARY).map(str::to_owned).collect();
            let page = origin("https://a.com");
            policy("[cors]").apply(allowed.then_some(&page), any, &mut headers);

            let words: Vec<_> =
                headers.iter().filter(|(name, _)| name.as_str().starts_with("access-control-")).collect();
            let told = if any { "*" } else { "https://a.com" };
            prop_assert_eq!(words.len(), usize::from(allowed));
            prop_assert!(words.iter().all(|(name, value)| *name == ACCESS_CONTROL_ALLOW_ORIGIN && *value == told));

            let varies: Vec<&str> = list(&headers, &VARY).collect();
            prop_assert!(varied.iter().all(|name| varies.contains(&name.as_str())));
            prop_assert!(varies.iter().any(|name| *name == "*" || name.eq_ignore_ascii_case("origin")));
        }
    }
}
