//! Headers that make browsers careful: no guessing of content types, short referrers, no framing, no
//! plain HTTP.

use http::header::{
    HeaderName, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderValue};

use crate::base::section::Section;
use crate::base::value::{Raw, Value, quoted, words};

/// `[security_headers]`; what is `"off"` or empty is left to the backend.
#[derive(Clone, Debug)]
pub struct SecurityHeaders {
    content_type_options: Option<ContentTypeOptions>,
    referrer_policy: Option<ReferrerPolicy>,
    frame_options: Option<FrameOptions>,
    strict_transport_security: TransportSecurity,
}

words! {
    pub enum ContentTypeOptions { Nosniff = "nosniff" }
}

words! {
    pub enum ReferrerPolicy {
        NoReferrer = "no-referrer",
        NoReferrerWhenDowngrade = "no-referrer-when-downgrade",
        Origin = "origin",
        OriginWhenCrossOrigin = "origin-when-cross-origin",
        SameOrigin = "same-origin",
        StrictOrigin = "strict-origin",
        StrictOriginWhenCrossOrigin = "strict-origin-when-cross-origin",
        UnsafeUrl = "unsafe-url",
    }
}

words! {
    pub enum FrameOptions { Deny = "DENY", SameOrigin = "SAMEORIGIN" }
}

/// The value of `Strict-Transport-Security` (RFC 6797 §6.1), or nothing. Directives that no browser
/// knows are refused: they would be ignored there, and with them what was meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct TransportSecurity(String);

impl Value for TransportSecurity {
    fn accepts() -> String {
        "\"\" for none, or \"max-age=SECONDS\", optionally with \"; includeSubDomains\" and \"; preload\""
            .into()
    }
    fn read(raw: &Raw) -> Option<Self> {
        let text = String::read(raw)?;
        let mut names = Vec::new();
        let directives = text.split(';').map(|directive| directive.trim_matches(' '));
        for directive in directives.filter(|directive| !directive.is_empty()) {
            let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
            let name = name.to_ascii_lowercase();
            let fine = match name.as_str() {
                "max-age" => value.bytes().all(|b| b.is_ascii_digit()) && value.parse::<u32>().is_ok(),
                "includesubdomains" | "preload" => directive.len() == name.len(),
                _ => false,
            };
            // A directive that occurs twice makes the whole header invalid.
            if !fine || names.contains(&name) {
                return None;
            }
            names.push(name);
        }
        (text.is_empty() || names.iter().any(|name| name == "max-age")).then_some(Self(text))
    }
    fn show(&self) -> String {
        quoted(&self.0)
    }
}

impl Default for SecurityHeaders {
    fn default() -> Self {
        Self {
            content_type_options: Some(ContentTypeOptions::Nosniff),
            referrer_policy: Some(ReferrerPolicy::StrictOriginWhenCrossOrigin),
            frame_options: Some(FrameOptions::Deny),
            strict_transport_security: TransportSecurity::default(),
        }
    }
}

impl SecurityHeaders {
    /// Reads the section; what it does not give is inherited.
    pub fn read(section: &Section<'_>, inherited: Option<&Self>) -> Self {
        let inherited = inherited.cloned().unwrap_or_default();
        Self {
            content_type_options: section.get("content_type_options", inherited.content_type_options),
            referrer_policy: section.get("referrer_policy", inherited.referrer_policy),
            frame_options: section.get("frame_options", inherited.frame_options),
            strict_transport_security: section
                .get("strict_transport_security", inherited.strict_transport_security),
        }
    }

    /// Sets the headers of an answer; `secure` says that the browser came by https.
    pub fn apply(&self, secure: bool, headers: &mut HeaderMap) {
        let mut set = |name: HeaderName, word: Option<&'static str>| {
            if let Some(word) = word {
                headers.insert(name, HeaderValue::from_static(word));
            }
        };
        set(X_CONTENT_TYPE_OPTIONS, self.content_type_options.map(ContentTypeOptions::word));
        set(REFERRER_POLICY, self.referrer_policy.map(ReferrerPolicy::word));
        set(X_FRAME_OPTIONS, self.frame_options.map(FrameOptions::word));
        let transport = &self.strict_transport_security.0;
        // RFC 6797 §7.2: never over plain HTTP.
        if secure
            && !transport.is_empty()
            && let Ok(value) = HeaderValue::try_from(transport)
        {
            headers.insert(STRICT_TRANSPORT_SECURITY, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::section::Document;
    use proptest::prelude::*;

    /// The policy that a file gives over an inherited one, and its problems.
    fn read(text: &str, inherited: Option<&SecurityHeaders>) -> (SecurityHeaders, Vec<String>) {
        let document = Document::parse(text, std::iter::empty());
        let policy = {
            let root = document.root().unwrap();
            SecurityHeaders::read(&root.section("security_headers"), inherited)
        };
        (policy, document.finish().0.iter().map(ToString::to_string).collect())
    }

    fn policy(lines: &str) -> SecurityHeaders {
        let (policy, problems) = read(&format!("[security_headers]\n{lines}"), None);
        assert!(problems.is_empty(), "{problems:?}");
        policy
    }

    const OFF: &str = "content_type_options = \"off\"\nreferrer_policy = \"off\"\nframe_options = \"off\"\nstrict_transport_security = \"\"";

    /// Two lines of each header, as a careless backend sends them.
    fn backend() -> HeaderMap {
        [X_CONTENT_TYPE_OPTIONS, REFERRER_POLICY, X_FRAME_OPTIONS, STRICT_TRANSPORT_SECURITY]
            .into_iter()
            .flat_map(|name| [(name.clone(), "one"), (name, "two")])
            .map(|(name, value)| (name, HeaderValue::from_static(value)))
            .collect()
    }

    fn lines(headers: &HeaderMap, name: HeaderName) -> Vec<&str> {
        headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
    }

    #[test]
    fn what_is_set_replaces_all_lines_of_the_backend() {
        let mut headers = backend();
        policy("strict_transport_security = \"max-age=31536000; includeSubDomains\"")
            .apply(true, &mut headers);
        assert_eq!(lines(&headers, X_CONTENT_TYPE_OPTIONS), ["nosniff"]);
        assert_eq!(lines(&headers, REFERRER_POLICY), ["strict-origin-when-cross-origin"]);
        assert_eq!(lines(&headers, X_FRAME_OPTIONS), ["DENY"]);
        assert_eq!(lines(&headers, STRICT_TRANSPORT_SECURITY), ["max-age=31536000; includeSubDomains"]);
    }

    #[test]
    fn what_is_off_is_left_to_the_backend() {
        let mut headers = backend();
        policy(OFF).apply(true, &mut headers);
        assert_eq!(headers, backend());
        let mut headers = HeaderMap::new();
        policy(OFF).apply(true, &mut headers);
        assert!(headers.is_empty(), "{headers:?}");
    }

    #[test]
    fn strict_transport_security_is_sent_over_https_only() {
        let policy = policy("strict_transport_security = \"max-age=1\"");
        for secure in [false, true] {
            let mut headers = HeaderMap::new();
            policy.apply(secure, &mut headers);
            assert_eq!(headers.contains_key(STRICT_TRANSPORT_SECURITY), secure);
            assert_eq!(headers.len(), 3 + usize::from(secure));
        }
    }

    #[test]
    fn every_referrer_policy_of_the_standard_is_accepted_and_sent_as_written() {
        for word in [
            "no-referrer",
            "no-referrer-when-downgrade",
            "origin",
            "origin-when-cross-origin",
            "same-origin",
            "strict-origin",
            "strict-origin-when-cross-origin",
            "unsafe-url",
        ] {
            let mut headers = HeaderMap::new();
            policy(&format!("referrer_policy = \"{word}\"")).apply(false, &mut headers);
            assert_eq!(lines(&headers, REFERRER_POLICY), [word]);
        }
    }

    #[test]
    fn a_route_overrides_key_by_key() {
        let above = policy("frame_options = \"SAMEORIGIN\"\nstrict_transport_security = \"max-age=5\"");
        let (below, problems) = read("[security_headers]\nreferrer_policy = \"off\"", Some(&above));
        assert!(problems.is_empty(), "{problems:?}");
        let mut headers = HeaderMap::new();
        below.apply(true, &mut headers);
        assert_eq!(lines(&headers, X_FRAME_OPTIONS), ["SAMEORIGIN"]);
        assert_eq!(lines(&headers, STRICT_TRANSPORT_SECURITY), ["max-age=5"]);
        assert!(lines(&headers, REFERRER_POLICY).is_empty());
    }

    #[test]
    fn transport_security_is_what_browsers_understand() {
        for right in [
            "",
            "max-age=0",
            "max-age=31536000",
            "Max-Age=1",
            "max-age=1; includeSubDomains; preload",
            "includeSubDomains;max-age=1",
            "max-age=1;",
        ] {
            let read = TransportSecurity::read(&Raw::Text(right.into()));
            assert_eq!(read, Some(TransportSecurity(right.into())));
        }
        for wrong in [
            " ",
            ";",
            "off",
            "max-age",
            "max-age=",
            "max-age=1y",
            "max-age=-1",
            "max-age=+1",
            "max-age=99999999999",
            "max-age = 1",
            "includeSubDomains",
            "max-age=1; max-age=2",
            "max-age=1; preload; PRELOAD",
            "max-age=1; includeSubdomain",
            "max-age=1; includeSubDomains=true",
            "max-age=1\r\nSet-Cookie: x",
            "max-age=1, max-age=2",
        ] {
            assert_eq!(TransportSecurity::read(&Raw::Text(wrong.into())), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_wrong_value_is_a_problem_that_names_what_is_accepted() {
        for (key, accepted) in [
            ("content_type_options", "\"nosniff\", or \"off\""),
            ("referrer_policy", "\"unsafe-url\", or \"off\""),
            ("frame_options", "\"DENY\" or \"SAMEORIGIN\", or \"off\""),
            ("strict_transport_security", "\"max-age=SECONDS\""),
        ] {
            for wrong in ["\"deny\"", "\"nosniff \"", "1"] {
                let (_, problems) = read(&format!("[security_headers]\n{key} = {wrong}"), None);
                assert_eq!(problems.len(), 1, "{problems:?}");
                let begin = format!("line 2: security_headers.{key} = {wrong}: accepted: ");
                assert!(problems[0].starts_with(&begin) && problems[0].contains(accepted), "{problems:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_of_transport_security_reaches_the_browser_as_it_is(
            text in "((max-age=[0-9]{0,3}|preload|includeSubDomains|.{0,3})(; ?)?){0,4}",
        ) {
            if let Some(read) = TransportSecurity::read(&Raw::Text(text.clone())) {
                let policy = SecurityHeaders { strict_transport_security: read, ..SecurityHeaders::default() };
                let mut headers = HeaderMap::new();
                policy.apply(true, &mut headers);
                let sent = lines(&headers, STRICT_TRANSPORT_SECURITY).concat();
                prop_assert_eq!(sent.matches("max-age=").count(), usize::from(!text.is_empty()));
                prop_assert_eq!(sent, text);
            }
        }
    }
}
