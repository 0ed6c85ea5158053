//! Which web pages may open a socket: the `Origin` header against `[origin] allow` (RFC 6454). Twice
//! where needed: what the list cannot decide waits for the token's `allowed-origins`, and what a cookie
//! authenticates is looked at again, for a cookie comes along from any page.

use http::HeaderMap;
use http::header::ORIGIN;

use crate::base::reject::Reason;
use crate::base::section::Section;

/// `[origin]`
#[derive(Clone, Debug)]
pub struct OriginPolicy {
    allow: Vec<Entry>,
    allow_missing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    /// Same host and port as this gate's public address.
    Own,
    Exact(String),
    /// `scheme://*.suffix[:port]`: one or more labels before the suffix.
    Below {
        scheme: String,
        suffix: String,
    },
    Null,
    Token,
    Any,
}

impl Default for OriginPolicy {
    fn default() -> Self {
        Self { allow: vec![Entry::Own], allow_missing: true }
    }
}

const ACCEPTED: &str = "accepted: \"self\", \"https://app.example.com\", \"https://*.example.com\", \"null\", \"token\" or \"*\"";

impl Entry {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "self" => return Some(Self::Own),
            "null" => return Some(Self::Null),
            "token" => return Some(Self::Token),
            "*" => return Some(Self::Any),
            _ => {}
        }
        let Some((scheme, rest)) = text.split_once("://*.") else {
            return serialized(text).map(Self::Exact);
        };
        let plain = serialized(&format!("{scheme}://{rest}"))?;
        let (scheme, suffix) = plain.split_once("://")?;
        Some(Self::Below { scheme: scheme.to_owned(), suffix: format!(".{suffix}") })
    }

    fn show(&self) -> String {
        match self {
            Self::Own => "self".into(),
            Self::Exact(origin) => origin.clone(),
            Self::Below { scheme, suffix } => format!("{scheme}://*{suffix}"),
            Self::Null => "null".into(),
            Self::Token => "token".into(),
            Self::Any => "*".into(),
        }
    }
}

/// A tuple origin as serialized by RFC 6454 §6.2: scheme, host, port unless it is the scheme's own;
/// host lower-cased. `None` for userinfo, path, trailing dot or anything else.
pub fn serialized(origin: &str) -> Option<String> {
    let (scheme, authority) = origin.split_once("://")?;
    let scheme_ok = !scheme.is_empty()
        && scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b));
    let name = super::request::host_name(authority)?;
    let host_ok =
        name.starts_with('[') || name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if !scheme_ok
        || !host_ok
        || name.ends_with('.')
        || name.starts_with('.')
        || name.contains("..")
        || authority.ends_with(':')
    {
        return None;
    }
    let port = authority.get(name.len()..).unwrap_or_default();
    let port = match (scheme, port) {
        ("http" | "ws", ":80") | ("https" | "wss", ":443") => "",
        (_, port) => port,
    };
    Some(format!("{scheme}://{}{port}", name.to_ascii_lowercase()))
}

/// What a look at the origin says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Denied,
    /// Only the token can tell.
    Undecided,
}

/// This gate's own address as browsers see it.
#[derive(Clone, Copy, Debug)]
pub struct Own<'a> {
    /// `scheme://host[:port]` of `[listen] public_url`.
    pub public_origin: Option<&'a str>,
    /// The request's `Host`.
    pub host: &'a str,
}

impl OriginPolicy {
    /// Reads the section; what it does not give is inherited.
    pub fn read(section: &Section<'_>, inherited: &Self) -> Self {
        let shown: Vec<String> = inherited.allow.iter().map(Entry::show).collect();
        let written = section.get("allow", shown);
        let allow = written
            .iter()
            .filter_map(|text| {
                let entry = Entry::parse(text);
                if entry.is_none() {
                    section.problem(
                        "allow",
                        format!("{text:?} is no origin (scheme://host[:port], nothing after it); {ACCEPTED}"),
                    );
                }
                entry
            })
            .collect();
        Self { allow, allow_missing: section.get("allow_missing", inherited.allow_missing) }
    }

    /// `"*"` is listed.
    pub fn allows_any(&self) -> bool {
        self.allow.contains(&Entry::Any)
    }

    /// First look, before the token is known.
    pub fn look(&self, headers: &HeaderMap, own: Own<'_>) -> Verdict {
        let mut lines = headers.get_all(ORIGIN).iter();
        let origin = match (lines.next(), lines.next()) {
            (None, _) => return if self.allow_missing { Verdict::Pass } else { Verdict::Denied },
            (Some(origin), None) => origin.to_str().unwrap_or_default(),
            (Some(_), Some(_)) => return Verdict::Denied,
        };
        if origin == "null" {
            let listed = self.allow.iter().any(|entry| matches!(entry, Entry::Null | Entry::Any));
            return if listed { Verdict::Pass } else { Verdict::Denied };
        }
        let Some(origin) = serialized(origin) else { return Verdict::Denied };
        if self.allow.iter().any(|entry| *entry == Entry::Any || entry.names(&origin, own)) {
            Verdict::Pass
        } else if self.allow.contains(&Entry::Token) {
            Verdict::Undecided
        } else {
            Verdict::Denied
        }
    }

    /// Second look, with the verified token's `allowed-origins`.
    pub fn look_again(
        &self,
        first: Verdict,
        headers: &HeaderMap,
        own: Own<'_>,
        allowed_origins: &[&str],
        from_cookie: bool,
    ) -> Result<(), Reason> {
        if first == Verdict::Pass && !from_cookie {
            return Ok(());
        }
        // A missing origin, `null` and `*` name no page, so they never vouch for a cookie.
        let origin = headers.get(ORIGIN).and_then(|value| value.to_str().ok()).and_then(serialized);
        let origin = origin.filter(|_| first != Verdict::Denied).ok_or(Reason::OriginDenied)?;
        let by_token = self.allow.contains(&Entry::Token)
            && allowed_origins.iter().any(|allowed| serialized(allowed).as_ref() == Some(&origin));
        if by_token || self.allow.iter().any(|entry| entry.names(&origin, own)) {
            Ok(())
        } else {
            Err(Reason::OriginDenied)
        }
    }

    /// Whether the page that asks may read the answer (CORS). With `None` no token is known yet: a
    /// preflight carries none, and the real request decides.
    pub fn shares_with(&self, headers: &HeaderMap, own: Own<'_>, allowed_by_token: Option<&[&str]>) -> bool {
        // What may pass without an Origin is no page, so there is nobody to share with.
        headers.contains_key(ORIGIN)
            && match self.look(headers, own) {
                Verdict::Pass => true,
                Verdict::Denied => false,
                first @ Verdict::Undecided => allowed_by_token
                    .is_none_or(|allowed| self.look_again(first, headers, own, allowed, false).is_ok()),
            }
    }
}

impl Entry {
    /// Whether this entry names exactly this page's origin.
    fn names(&self, origin: &str, own: Own<'_>) -> bool {
        match self {
            Self::Exact(allowed) => allowed == origin,
            Self::Below { scheme, suffix } => origin
                .split_once("://")
                .and_then(|(s, host)| {
                    host.strip_suffix(suffix.as_str()).filter(|label| s == scheme && !label.is_empty())
                })
                .is_some(),
            Self::Own => match own.public_origin {
                Some(public) => public == origin,
                None => origin.split_once("://").is_some_and(|(scheme, _)| {
                    serialized(&format!("{scheme}://{}", own.host)).as_deref() == Some(origin)
                }),
            },
            Self::Null | Self::Token | Self::Any => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Own<'_> = Own { public_origin: None, host: "chat.example.com:8443" };

    fn policy(allow: &[&str]) -> OriginPolicy {
        OriginPolicy {
            allow: allow.iter().map(|text| Entry::parse(text).unwrap()).collect(),
            allow_missing: false,
        }
    }

    fn headers(origins: &[&str]) -> HeaderMap {
        origins.iter().map(|o| (ORIGIN, o.parse().unwrap())).collect()
    }

    fn look(allow: &[&str], origin: &str) -> Verdict {
        policy(allow).look(&headers(&[origin]), OWN)
    }

    #[test]
    fn origins_that_only_look_right_are_denied() {
        let allow = ["https://app.example.com", "https://*.example.org"];
        for origin in [
            "https://app.example.com.evil.com",
            "https://evilapp.example.com",
            "http://app.example.com",
            "https://app.example.com:444",
            "https://app.example.com/",
            "https://user@app.example.com",
            "https://app.example.com.",
            "https://example.org",
            "https://evilexample.org",
            "https://.example.org",
            "https://a.example.org.evil.com",
            "null",
            "",
            "https://",
            "HTTPS://app.example.com",
            "https://app.example.com:",
            "https://app.example.com?x",
            "https://app.example.com#",
            "https://a..example.org",
        ] {
            assert_eq!(look(&allow, origin), Verdict::Denied, "{origin}");
        }
        for origin in [
            "https://app.example.com",
            "https://APP.example.com",
            "https://app.example.com:443",
            "https://a.example.org",
            "https://a.b.example.org",
        ] {
            assert_eq!(look(&allow, origin), Verdict::Pass, "{origin}");
        }
    }

    #[test]
    fn a_second_origin_line_is_denied() {
        let twice = headers(&["https://app.example.com", "https://app.example.com"]);
        assert_eq!(policy(&["*"]).look(&twice, OWN), Verdict::Denied);
    }

    #[test]
    fn self_is_host_and_port_and_with_public_url_the_scheme_too() {
        assert_eq!(look(&["self"], "https://chat.example.com:8443"), Verdict::Pass);
        assert_eq!(look(&["self"], "http://chat.example.com:8443"), Verdict::Pass);
        assert_eq!(look(&["self"], "https://chat.example.com"), Verdict::Denied);
        let own = Own { public_origin: Some("https://chat.example.com"), host: "evil.com" };
        let own_look = |origin| policy(&["self"]).look(&headers(&[origin]), own);
        assert_eq!(own_look("https://chat.example.com"), Verdict::Pass);
        assert_eq!(own_look("http://chat.example.com"), Verdict::Denied);
        assert_eq!(own_look("https://evil.com"), Verdict::Denied);
    }

    #[test]
    fn the_token_decides_what_the_list_cannot() {
        let policy = policy(&["token"]);
        let page = headers(&["https://app.example.com"]);
        let first = policy.look(&page, OWN);
        assert_eq!(first, Verdict::Undecided);
        let again = |allowed: &[&str]| policy.look_again(first, &page, OWN, allowed, false);
        assert_eq!(again(&["https://app.example.com"]), Ok(()));
        assert_eq!(again(&["https://app.example.co", "*", "+"]), Err(Reason::OriginDenied));
        assert_eq!(again(&[]), Err(Reason::OriginDenied));
    }

    #[test]
    fn a_cookie_needs_an_origin_that_is_named() {
        let cookie = |allow: &[&str], origins: &[&str], missing| {
            let mut policy = policy(allow);
            policy.allow_missing = missing;
            let page = headers(origins);
            let first = policy.look(&page, OWN);
            policy.look_again(first, &page, OWN, &[], true)
        };
        assert_eq!(cookie(&["https://a.com"], &["https://a.com"], false), Ok(()));
        assert_eq!(cookie(&["*"], &["https://a.com"], false), Err(Reason::OriginDenied));
        assert_eq!(cookie(&["null"], &["null"], false), Err(Reason::OriginDenied));
        assert_eq!(cookie(&["self"], &[], true), Err(Reason::OriginDenied));
        assert_eq!(cookie(&["*", "https://a.com"], &["https://a.com"], false), Ok(()));
    }

    #[test]
    fn missing_and_null_are_separate_switches() {
        let none = headers(&[]);
        assert_eq!(policy(&["self"]).look(&none, OWN), Verdict::Denied);
        assert_eq!(OriginPolicy::default().look(&none, OWN), Verdict::Pass);
        assert_eq!(OriginPolicy::default().look(&headers(&["null"]), OWN), Verdict::Denied);
        assert_eq!(look(&["null"], "null"), Verdict::Pass);
    }

    #[test]
    fn an_answer_is_shared_with_the_one_page_that_is_listed() {
        let shares = |allow: &[&str], origins: &[&str]| {
            let mut policy = policy(allow);
            policy.allow_missing = true;
            policy.shares_with(&headers(origins), OWN, None)
        };
        for (allow, origins, shared) in [
            (&["https://a.com"][..], &["https://a.com"][..], true),
            (&["https://a.com"], &["https://b.com"], false),
            (&["https://a.com"], &["https://a.com", "https://a.com"], false),
            (&["https://a.com"], &["null"], false),
            (&["https://a.com"], &["https://a.com/"], false),
            (&["self"], &["https://chat.example.com:8443"], true),
            (&["null"], &["null"], true),
            (&["*"], &["https://b.com"], true),
            (&["*"], &["https://a.com", "https://b.com"], false),
            (&["*"], &[], false),
            (&["self"], &[], false),
            (&[], &["https://a.com"], false),
        ] {
            assert_eq!(shares(allow, origins), shared, "{allow:?} {origins:?}");
        }
    }

    #[test]
    fn an_answer_is_shared_with_the_page_that_its_token_names() {
        let page = headers(&["https://a.com"]);
        let shares = |allow: &[&str], token| policy(allow).shares_with(&page, OWN, token);
        assert!(shares(&["token"], None), "a preflight has no token");
        assert!(shares(&["token"], Some(&["https://a.com"])));
        assert!(!shares(&["token"], Some(&["https://b.com", "*", "+"])));
        assert!(!shares(&["token"], Some(&[])), "the real request had no token");
        assert!(!shares(&["self"], None));
        assert!(!shares(&["self"], Some(&["https://a.com"])), "nobody asked for the token's list");
        assert!(shares(&["token", "https://a.com"], Some(&[])), "listed is listed");
    }
}
