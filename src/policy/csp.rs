//! Content Security Policy (CSP Level 3): what a page may load and whom it may talk to. The policy is
//! the operator's; two of its sources are known only here: this gate's own WebSocket address, and the
//! nonce of the page, which its scripts carry and no injected one can know.

use std::borrow::Cow;
use std::collections::HashSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY_REPORT_ONLY};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::base::section::Section;
use crate::base::value::words;

/// `[csp]`
#[derive(Clone, Debug)]
pub struct CspPolicy {
    directives: Vec<(String, Vec<Source>)>,
    report_only: bool,
    upstream: CspUpstream,
    uses_nonce: bool,
}

words! {
    /// `[csp] upstream`: what happens to the backend's own policy.
    pub enum CspUpstream {
        Replace = "replace",
        /// Ours only where the backend sent none.
        Keep = "keep",
        /// Both: browsers let pass what both allow.
        Add = "add",
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Literal(String),
    Websocket,
    Nonce,
}

const WEBSOCKET: &str = "$websocket";
const NONCE: &str = "$nonce";

/// A keyword that browsers ignore beside a nonce.
const UNSAFE_INLINE: &str = "'unsafe-inline'";

impl Source {
    /// The error says what is wrong.
    fn parse(text: &str) -> Result<Self, &'static str> {
        match text {
            WEBSOCKET => Ok(Self::Websocket),
            NONCE => Ok(Self::Nonce),
            _ if text.contains(WEBSOCKET) || text.contains(NONCE) => {
                Err("has a variable inside: it stands for a whole source")
            }
            _ if text.starts_with('$') => Err("is no variable"),
            _ if is_source(text) => Ok(Self::Literal(text.to_owned())),
            _ => Err("is no source"),
        }
    }

    fn show(&self) -> String {
        match self {
            Self::Literal(text) => text.clone(),
            Self::Websocket => WEBSOCKET.into(),
            Self::Nonce => NONCE.into(),
        }
    }
}

const ACCEPTED: &str = "accepted: visible ASCII without \";\" and \",\", such as \"'self'\" or \"https://cdn.example.com\", \"$websocket\" or \"$nonce\"";

/// Visible, and nothing that would begin another source, directive or policy.
fn is_source(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b';' && b != b',')
}

fn is_directive_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// `[A-Za-z0-9+/_-]{16,128}={0,2}`: long enough not to be guessed, and nothing that ends the source.
fn is_nonce(text: &str) -> bool {
    let unpadded = text.strip_suffix("==").or_else(|| text.strip_suffix('=')).unwrap_or(text);
    (16..=128).contains(&unpadded.len())
        && unpadded.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/_-".contains(&b))
}

/// 128 bits as base64.
pub fn nonce(random: [u8; 16]) -> String {
    STANDARD.encode(random)
}

/// This gate as a source for sockets; `None` for a Host that could end the source and begin another.
pub fn websocket_origin(secure: bool, host: &str) -> Option<String> {
    let plain = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".:_[]-".contains(&b));
    plain.then(|| format!("{}://{host}", if secure { "wss" } else { "ws" }))
}

impl CspPolicy {
    /// Reads the section; what it does not give is inherited, the policy as a whole.
    pub fn read(section: &Section<'_>, inherited: Option<&Self>) -> Self {
        let shown: Vec<(String, Vec<String>)> = inherited
            .iter()
            .flat_map(|policy| &policy.directives)
            .map(|(name, sources)| (name.clone(), sources.iter().map(Source::show).collect()))
            .collect();
        let written = section.lists_or("policy", &shown);
        if written.is_empty() {
            section.problem(
                "policy",
                "is missing or empty; accepted: directives with their sources, such as { default-src = [\"'self'\"] }",
            );
        }
        let mut seen = HashSet::new();
        let directives: Vec<_> = written
            .iter()
            .filter_map(|(name, sources)| {
                if !is_directive_name(name) {
                    let accepted = "letters, digits and \"-\", such as \"default-src\"";
                    let message = format!("{name:?} is no directive; accepted: {accepted}");
                    section.problem_in("policy", name, message);
                    return None;
                }
                // Browsers take the first of two.
                if !seen.insert(name.to_ascii_lowercase()) {
                    section.problem_in("policy", name, "occurs twice (case does not count); accepted: once");
                    return None;
                }
                let source = |text: &String| {
                    let wrong =
                        |what| section.problem_in("policy", name, format!("{text:?} {what}; {ACCEPTED}"));
                    Source::parse(text).map_err(wrong).ok()
                };
                Some((name.clone(), sources.iter().filter_map(source).collect::<Vec<_>>()))
            })
            .collect();
        Self {
            uses_nonce: directives.iter().any(|(_, sources)| sources.contains(&Source::Nonce)),
            directives,
            report_only: section.get("report_only", inherited.is_some_and(|policy| policy.report_only)),
            upstream: section
                .get("upstream", inherited.map_or(CspUpstream::Replace, |policy| policy.upstream)),
        }
    }

    /// Whether answers need a fresh nonce, of which the backend is told.
    pub fn uses_nonce(&self) -> bool {
        self.uses_nonce
    }

    /// Sets the header of an answer. `websocket` is this gate's address for sockets, if it may be named;
    /// `fresh` the nonce that was made for this answer.
    pub fn apply(
        &self,
        websocket: Option<&str>,
        fresh: Option<&str>,
        status: StatusCode,
        headers: &mut HeaderMap,
    ) {
        let name =
            if self.report_only { CONTENT_SECURITY_POLICY_REPORT_ONLY } else { CONTENT_SECURITY_POLICY };
        // The page that a 304 brings back was stored with the nonce of its own answer.
        let stored = status == StatusCode::NOT_MODIFIED;
        let fresh = fresh.filter(|nonce| !stored && is_nonce(nonce)).map(str::to_owned);
        let nonce = if self.uses_nonce { backend_nonce(headers).or(fresh) } else { None };
        match self.upstream {
            CspUpstream::Replace => {
                headers.remove(&name);
            }
            CspUpstream::Keep if headers.contains_key(&name) => return,
            CspUpstream::Keep | CspUpstream::Add => {}
        }
        if stored && self.uses_nonce && nonce.is_none() {
            return;
        }
        headers.append(name, self.render(websocket.filter(|origin| is_source(origin)), nonce.as_deref()));
    }

    fn render(&self, websocket: Option<&str>, nonce: Option<&str>) -> HeaderValue {
        let directives: Vec<String> = self
            .directives
            .iter()
            .map(|(name, sources)| {
                // The nonce is what turns 'unsafe-inline' off; without it the word would come alive.
                let disarmed = nonce.is_none() && sources.contains(&Source::Nonce);
                let mut words: Vec<Cow<'_, str>> = sources
                    .iter()
                    .filter_map(|source| match source {
                        Source::Literal(text) if disarmed && text.eq_ignore_ascii_case(UNSAFE_INLINE) => None,
                        Source::Literal(text) => Some(text.into()),
                        Source::Websocket => websocket.map(Cow::from),
                        Source::Nonce => nonce.map(|nonce| format!("'nonce-{nonce}'").into()),
                    })
                    .collect();
                if words.is_empty() && !sources.is_empty() {
                    words.push("'none'".into());
                }
                words.insert(0, name.into());
                words.join(" ")
            })
            .collect();
        // All parts were checked; were one not, nothing would be allowed.
        HeaderValue::try_from(directives.join("; "))
            .unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"))
    }
}

/// The nonce that the backend has written into its page, as its policy tells: the enforced one, else
/// the one that only reports. What is not of the form stays out of our header.
fn backend_nonce(headers: &HeaderMap) -> Option<String> {
    let enforced = headers.get_all(CONTENT_SECURITY_POLICY).iter();
    let policies = enforced.chain(headers.get_all(CONTENT_SECURITY_POLICY_REPORT_ONLY));
    policies
        .flat_map(|line| line.as_bytes().split(|b| b",;".contains(b)))
        // CSP3 §2.2.1: browsers drop a directive that is not ASCII.
        .filter_map(|directive| std::str::from_utf8(directive).ok().filter(|text| text.is_ascii()))
        .flat_map(|directive| directive.split_ascii_whitespace().skip(1))
        .filter_map(|source| {
            let (prefix, rest) = source.split_at_checked("'nonce-".len())?;
            rest.strip_suffix('\'').filter(|_| prefix.eq_ignore_ascii_case("'nonce-"))
        })
        .find(|nonce| is_nonce(nonce))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::effective::show;
    use crate::base::section::Document;
    use proptest::prelude::*;

    /// The policy that a file gives over an inherited one, its problems, and what it came to.
    fn read(text: &str, inherited: Option<&CspPolicy>) -> (CspPolicy, Vec<String>, String) {
        let document = Document::parse(text, std::iter::empty());
        let policy = {
            let root = document.root().unwrap();
            CspPolicy::read(&root.section("csp"), inherited)
        };
        let (problems, _, effective) = document.finish();
        (policy, problems.iter().map(ToString::to_string).collect(), show(&effective))
    }

    fn policy(lines: &str) -> CspPolicy {
        let (policy, problems, _) = read(&format!("[csp]\n{lines}"), None);
        assert!(problems.is_empty(), "{problems:?}");
        policy
    }

    const ENFORCED: &str = "content-security-policy";
    const REPORTED: &str = "content-security-policy-report-only";
    const FRESH: &str = "AAAAAAAAAAAAAAAAAAAAAA==";
    const OTHER: &str = "bm9uY2Utb2YtYmFja2VuZA";

    /// The lines of both headers after ours was applied to those of a backend.
    fn applied(
        policy: &CspPolicy,
        fresh: Option<&str>,
        status: u16,
        backend: &[(&str, &str)],
    ) -> (Vec<String>, Vec<String>) {
        let mut headers: HeaderMap =
            backend.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let status = StatusCode::from_u16(status).unwrap();
        policy.apply(Some("wss://chat.example.com"), fresh, status, &mut headers);
        let lines = |name| headers.get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect();
        (lines(ENFORCED), lines(REPORTED))
    }

    /// Our enforced header over a backend that sends none.
    fn rendered(policy: &CspPolicy, websocket: Option<&str>, fresh: Option<&str>) -> String {
        let mut headers = HeaderMap::new();
        policy.apply(websocket, fresh, StatusCode::OK, &mut headers);
        assert_eq!(headers.len(), 1);
        headers[ENFORCED].to_str().unwrap().to_owned()
    }

    const PLAIN: &str = "policy = { default-src = [\"'self'\"] }\n";
    const NONCED: &str = "policy = { script-src = [\"$nonce\"] }\n";

    #[test]
    fn variables_become_this_gate_and_the_nonce_of_the_answer() {
        let policy = policy(
            "policy = { default-src = [\"'self'\"], connect-src = [\"'self'\", \"$websocket\"], script-src = [\"'self'\", \"$nonce\"], upgrade-insecure-requests = [] }",
        );
        assert!(policy.uses_nonce());
        assert_eq!(
            rendered(&policy, Some("wss://chat.example.com"), Some(FRESH)),
            format!(
                "connect-src 'self' wss://chat.example.com; default-src 'self'; script-src 'self' 'nonce-{FRESH}'; upgrade-insecure-requests"
            )
        );
        assert_eq!(
            rendered(&policy, None, None),
            "connect-src 'self'; default-src 'self'; script-src 'self'; upgrade-insecure-requests"
        );
    }

    #[test]
    fn a_directive_without_any_source_left_allows_nothing() {
        let policy = policy("policy = { connect-src = [\"$websocket\"], script-src = [\"$nonce\"] }");
        assert_eq!(rendered(&policy, None, None), "connect-src 'none'; script-src 'none'");
        assert_eq!(
            rendered(&policy, Some("wss://a;b"), Some("a; b")),
            "connect-src 'none'; script-src 'none'"
        );
    }

    #[test]
    fn a_nonce_left_out_does_not_bring_unsafe_inline_to_life() {
        let policy = policy(
            "policy = { script-src = [\"'Unsafe-Inline'\", \"$nonce\"], style-src = [\"'unsafe-inline'\"] }",
        );
        assert_eq!(rendered(&policy, None, None), "script-src 'none'; style-src 'unsafe-inline'");
        assert_eq!(
            rendered(&policy, None, Some(FRESH)),
            format!("script-src 'Unsafe-Inline' 'nonce-{FRESH}'; style-src 'unsafe-inline'")
        );
    }

    #[test]
    fn the_backends_policy_is_replaced_kept_or_joined() {
        let backend = [(ENFORCED, "a"), (REPORTED, "b"), (ENFORCED, "c")];
        let ours = "default-src 'self'";
        for (lines, sent, enforced, reported) in [
            ("", &backend[..], &[ours][..], &["b"][..]),
            ("upstream = \"replace\"", &[], &[ours], &[]),
            ("upstream = \"keep\"", &backend, &["a", "c"], &["b"]),
            ("upstream = \"keep\"", &backend[1..2], &[ours], &["b"]),
            ("upstream = \"add\"", &backend, &["a", "c", ours], &["b"]),
            ("upstream = \"add\"", &[], &[ours], &[]),
            ("report_only = true", &backend, &["a", "c"], &[ours]),
            ("report_only = true\nupstream = \"keep\"", &backend, &["a", "c"], &["b"]),
            ("report_only = true\nupstream = \"keep\"", &backend[..1], &["a"], &[ours]),
            ("report_only = true\nupstream = \"add\"", &backend, &["a", "c"], &["b", ours]),
        ] {
            let policy = policy(&format!("{PLAIN}{lines}"));
            assert!(!policy.uses_nonce());
            for status in [200, 304, 403] {
                let (got_enforced, got_reported) = applied(&policy, None, status, sent);
                assert_eq!(got_enforced, enforced, "{lines} {status}");
                assert_eq!(got_reported, reported, "{lines} {status}");
            }
        }
    }

    #[test]
    fn the_backends_nonce_is_taken_over_only_if_it_is_one() {
        let policy = policy(NONCED);
        let (longest, longer) = ("a".repeat(128), "a".repeat(129));
        for nonce in [OTHER, "0123456789+/_-ab", "0123456789abcdef=", "0123456789abcdef==", &longest] {
            let line = format!("script-src 'nonce-{nonce}'");
            assert_eq!(applied(&policy, Some(FRESH), 200, &[(ENFORCED, &line)]).0, [line]);
        }
        for wrong in [
            "",
            "0123456789abcde",
            "0123456789abcd==",
            "0123456789abcdef===",
            "=0123456789abcdef",
            "01234567=89abcdef",
            "0123456789abcdef'",
            "0123456789abcdef.",
            "0123456789abcdef' 'unsafe-inline",
            "0123456789abcdef;x",
            "0123456789abcdef,x",
            &longer,
        ] {
            let line = format!("script-src 'nonce-{wrong}'");
            let ours = format!("script-src 'nonce-{FRESH}'");
            let expected = if wrong.ends_with("'unsafe-inline") {
                "script-src 'nonce-0123456789abcdef'".to_owned()
            } else {
                ours
            };
            assert_eq!(applied(&policy, Some(FRESH), 200, &[(ENFORCED, &line)]).0, [expected], "{wrong}");
        }
    }

    #[test]
    fn the_backends_nonce_is_found_where_browsers_would_find_it() {
        let policy = policy(NONCED);
        let source = format!("'nonce-{OTHER}'");
        for line in [
            format!("script-src {source}"),
            format!("default-src 'none'; script-src\t'self'  {source} ;"),
            format!("default-src 'none',script-src {source}"),
            format!("script-src 'nonce-short' 'NONCE-{OTHER}'"),
            format!(";;, ;x y; style-src {source}"),
        ] {
            let (ours, _) = applied(&policy, Some(FRESH), 200, &[(ENFORCED, &line)]);
            assert_eq!(ours, [format!("script-src {source}")], "{line}");
        }
        for line in [
            source.clone(),
            format!("script-src nonce-{OTHER}"),
            format!("script-src 'nonce-{OTHER}"),
            format!("script-src x{source}"),
            format!("script-src 'sha256-{OTHER}'"),
            format!("script-src{source}"),
        ] {
            let (ours, _) = applied(&policy, Some(FRESH), 200, &[(ENFORCED, &line)]);
            assert_eq!(ours, [format!("script-src 'nonce-{FRESH}'")], "{line}");
        }
        for strange in [&b"script-src caf\xe9 "[..], "script-src café ".as_bytes()] {
            let bytes = [strange, source.as_bytes()].concat();
            let headers = [(CONTENT_SECURITY_POLICY, HeaderValue::from_bytes(&bytes).unwrap())];
            assert_eq!(backend_nonce(&headers.into_iter().collect()), None);
        }
    }

    #[test]
    fn the_enforced_policys_nonce_comes_first() {
        let policy = policy(NONCED);
        let enforced = format!("script-src 'nonce-{OTHER}'");
        let reported = "script-src 'nonce-0123456789abcdef'";
        let ours = |backend: &[(&str, &str)]| applied(&policy, Some(FRESH), 200, backend).0;
        assert_eq!(ours(&[(REPORTED, reported), (ENFORCED, &enforced)]), [enforced.as_str()]);
        assert_eq!(ours(&[(REPORTED, reported), (ENFORCED, "script-src 'self'")]), [reported]);
        assert_eq!(ours(&[(REPORTED, reported)]), [reported]);
    }

    #[test]
    fn a_stored_page_gets_no_nonce_that_it_does_not_know() {
        let own = format!("script-src 'nonce-{OTHER}'");
        let foreign = (ENFORCED, "script-src 'self'");
        let report = (REPORTED, "img-src x");
        for (lines, backend, enforced, reported) in [
            ("", &[foreign, report][..], &[][..], &["img-src x"][..]),
            ("", &[], &[], &[]),
            ("", &[(ENFORCED, &own)], &[own.as_str()], &[]),
            ("upstream = \"keep\"", &[foreign], &["script-src 'self'"], &[]),
            ("upstream = \"keep\"", &[], &[], &[]),
            ("upstream = \"add\"", &[foreign], &["script-src 'self'"], &[]),
            ("upstream = \"add\"", &[(ENFORCED, &own)], &[&own, &own], &[]),
            ("report_only = true", &[foreign, report], &["script-src 'self'"], &[]),
        ] {
            let policy = policy(&format!("{NONCED}{lines}"));
            let (got_enforced, got_reported) = applied(&policy, Some(FRESH), 304, backend);
            assert_eq!(got_enforced, enforced, "{lines} {backend:?}");
            assert_eq!(got_reported, reported, "{lines} {backend:?}");
        }
    }

    #[test]
    fn a_fresh_nonce_is_128_bits_of_base64_that_would_be_taken_over() {
        assert_eq!(nonce([0; 16]), FRESH);
        assert_eq!(nonce([0xff; 16]), "/////////////////////w==");
        assert!(is_nonce(&nonce([0xfb; 16])));
    }

    #[test]
    fn only_a_plain_host_reaches_a_policy() {
        for (host, secure, origin) in [
            ("chat.example.com", true, Some("wss://chat.example.com")),
            ("chat_1.example.com:8443", false, Some("ws://chat_1.example.com:8443")),
            ("[2001:db8::1]:80", true, Some("wss://[2001:db8::1]:80")),
            ("", true, None),
            ("*", true, None),
            ("*.example.com", true, None),
            ("a b", true, None),
            ("a;script-src *", true, None),
            ("a,b", true, None),
            ("a/b", true, None),
            ("a@b", true, None),
            ("a%62", true, None),
            ("a\r\n", true, None),
            ("bücher.example", true, None),
        ] {
            assert_eq!(websocket_origin(secure, host).as_deref(), origin, "{host:?}");
        }
    }

    #[test]
    fn what_is_no_policy_is_a_problem_that_names_it() {
        for (lines, begin, said) in [
            ("", "line 1: csp.policy: ", "is missing or empty"),
            ("policy = {}", "line 2: csp.policy = {}: ", "is missing or empty"),
            ("policy = { \"\" = [] }", "line 2: csp.policy = []: ", "\"\" is no directive"),
            ("policy = { \"a;b\" = [] }", "line 2: csp.policy.a;b = []: ", "is no directive"),
            ("policy = { \"a b\" = [] }", "line 2: csp.policy.a b = []: ", "\"a b\" is no directive"),
            ("policy = { \"ä\" = [] }", "line 2: csp.policy.ä = []: ", "is no directive"),
            ("policy = { A = [], a = [] }", "line 2: csp.policy.a = []: ", "occurs twice"),
            ("policy = { x = [\"\"] }", "line 2: csp.policy.x = [\"\"]: ", "\"\" is no source"),
            ("policy = { x = [\"a;b\"] }", "line 2: csp.policy.x = ", "\"a;b\" is no source"),
            ("policy = { x = [\"a,b\"] }", "line 2: csp.policy.x = ", "\"a,b\" is no source"),
            ("policy = { x = [\"'self' a\"] }", "line 2: csp.policy.x = ", "\"'self' a\" is no source"),
            ("policy = { x = [\"a\\r\\nb: c\"] }", "line 2: csp.policy.x = ", "is no source"),
            ("policy = { x = [\"ä\"] }", "line 2: csp.policy.x = ", "\"ä\" is no source"),
            ("policy = { x = [\"$host\"] }", "line 2: csp.policy.x = ", "\"$host\" is no variable"),
            ("policy = { x = [\"'nonce-$nonce'\"] }", "line 2: csp.policy.x = ", "has a variable inside"),
            ("policy = { x = [\"$websocket/ws\"] }", "line 2: csp.policy.x = ", "has a variable inside"),
            ("policy = { x = [], y = \"'self'\" }", "line 2: csp.policy.y = \"'self'\": ", "a list"),
            ("upstream = \"drop\"\npolicy = { x = [] }", "line 2: csp.upstream = ", "\"replace\" or"),
        ] {
            let (_, problems, _) = read(&format!("[csp]\n{lines}"), None);
            assert_eq!(problems.len(), 1, "{lines}: {problems:?}");
            assert!(problems[0].starts_with(begin), "{problems:?}");
            assert!(problems[0].contains(said) && problems[0].contains("accepted: "), "{problems:?}");
        }
    }

    #[test]
    fn a_route_overrides_key_by_key() {
        let above = policy(&format!("{NONCED}upstream = \"add\""));
        let (below, problems, shown) = read("[csp]\nreport_only = true", Some(&above));
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!((&below.directives, below.upstream), (&above.directives, CspUpstream::Add));
        assert!(below.report_only && below.uses_nonce());
        assert_eq!(
            shown,
            "[csp]\npolicy = { \"script-src\" = [\"$nonce\"] }\nreport_only = true\nupstream = \"add\"\n"
        );

        let (below, problems, _) = read(&format!("[csp]\n{PLAIN}"), Some(&above));
        assert!(problems.is_empty() && !below.uses_nonce(), "{problems:?}");
        assert_eq!(below.directives, policy(PLAIN).directives);

        assert_eq!(read("[csp]\npolicy = {}", Some(&above)).1.len(), 1);
    }

    /// Texts that try to leave their place in a policy.
    fn hostile() -> impl Strategy<Value = String> {
        prop_oneof![
            "[ -~\\t\\r\\né]{0,20}",
            "[A-Za-z0-9+/_-]{14,18}={0,3}",
            "[A-Za-z0-9+/_-]{16}(;|,| |'|\\r\\n)[a-z*' -]{0,8}",
        ]
    }

    fn backend_policy() -> impl Strategy<Value = Vec<u8>> {
        let source = hostile().prop_map(|text| format!("'nonce-{text}'"));
        let part =
            prop_oneof![source, hostile(), Just("script-src".into()), Just(";".into()), Just(",".into())];
        proptest::collection::vec(part, 0..6).prop_map(|parts| {
            let mut line = parts.join(" ").into_bytes();
            line.retain(|b| *b == b'\t' || (*b >= 0x20 && *b != 0x7f));
            line
        })
    }

    proptest! {
        #[test]
        fn whatever_the_others_say_our_policy_keeps_its_form_and_stands_alone(
            enforced in proptest::collection::vec(backend_policy(), 0..3),
            reported in proptest::collection::vec(backend_policy(), 0..3),
            websocket in proptest::option::of(hostile()),
            fresh in proptest::option::of(hostile()),
        ) {
            let mut headers = HeaderMap::new();
            for (name, lines) in [(ENFORCED, &enforced), (REPORTED, &reported)] {
                for line in lines {
                    headers.append(name, HeaderValue::from_bytes(line).unwrap());
                }
            }
            let policy = policy("policy = { connect-src = [\"$websocket\"], script-src = [\"'self'\", \"$nonce\"] }");
            policy.apply(websocket.as_deref(), fresh.as_deref(), StatusCode::OK, &mut headers);

            let ours: Vec<_> = headers.get_all(ENFORCED).iter().collect();
            prop_assert_eq!(ours.len(), 1);
            prop_assert_eq!(headers.get_all(REPORTED).iter().count(), reported.len());
            let text = ours[0].to_str().unwrap();
            prop_assert!(!text.contains(','));
            let (connect, script) = text.split_once("; ").unwrap();
            let connect: Vec<_> = connect.split(' ').collect();
            prop_assert_eq!((connect.len(), connect[0]), (2, "connect-src"));
            prop_assert!(connect[1] == "'none'" || Some(connect[1]) == websocket.as_deref());
            let script = script.strip_prefix("script-src 'self'").unwrap();
            if !script.is_empty() {
                let nonce = script.strip_prefix(" 'nonce-").unwrap().strip_suffix('\'').unwrap();
                let unpadded = nonce.trim_end_matches('=');
                prop_assert!(nonce.len() - unpadded.len() <= 2);
                prop_assert!((16..=128).contains(&unpadded.len()));
                prop_assert!(unpadded.chars().all(|c| c.is_ascii_alphanumeric() || "+/_-".contains(c)));
            }
        }

        #[test]
        fn a_host_reaches_a_policy_whole_or_not_at_all(host in hostile(), secure: bool) {
            let ours = policy("policy = { connect-src = [\"$websocket\"] }");
            let origin = websocket_origin(secure, &host);
            let plain = !host.is_empty()
                && host.chars().all(|c| c.is_ascii_alphanumeric() || ".:_[]-".contains(c));
            prop_assert_eq!(origin.is_some(), plain);
            let scheme = if secure { "wss" } else { "ws" };
            let expected = if plain { format!("connect-src {scheme}://{host}") } else { "connect-src 'none'".into() };
            prop_assert_eq!(rendered(&ours, origin.as_deref(), None), expected);
        }

        #[test]
        fn what_is_accepted_as_a_source_is_one_source(text in hostile()) {
            let one = !text.is_empty()
                && text.split([' ', '\t', '\r', '\n', ';', ',', 'é']).count() == 1
                && !text.starts_with('$');
            prop_assert_eq!(Source::parse(&text).is_ok(), one);
        }
    }
}
