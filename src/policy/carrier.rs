//! Where tokens travel: the carriers in which a client may send one, and the one in which the backend
//! expects it.

use super::request::is_token;
use crate::base::section::Section;
use crate::base::value::{Raw, Value, quoted};

/// One entry of `[token] from`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// `Authorization: Bearer` (RFC 6750 §2.1)
    Header,
    /// `Sec-WebSocket-Protocol: Bearer, <jwt>`
    Subprotocol,
    Query(String),
    Cookie(String),
}

impl Value for Carrier {
    fn accepts() -> String {
        "\"header\", \"subprotocol\", \"query:NAME\" or \"cookie:NAME\"".into()
    }
    fn read(raw: &Raw) -> Option<Self> {
        let word = String::read(raw)?;
        match word.split_once(':') {
            None if word == "header" => Some(Self::Header),
            None if word == "subprotocol" => Some(Self::Subprotocol),
            Some(("query", name)) if is_query_name(name) => Some(Self::Query(name.into())),
            Some(("cookie", name)) if is_token(name) => Some(Self::Cookie(name.into())),
            _ => None,
        }
    }
    fn show(&self) -> String {
        match self {
            Self::Header => quoted("header"),
            Self::Subprotocol => quoted("subprotocol"),
            Self::Query(name) => quoted(&format!("query:{name}")),
            Self::Cookie(name) => quoted(&format!("cookie:{name}")),
        }
    }
}

fn is_query_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b))
}

/// `[token]`
#[derive(Clone, Debug)]
pub struct TokenPolicy {
    pub from: Vec<Carrier>,
}

impl Default for TokenPolicy {
    fn default() -> Self {
        Self { from: vec![Carrier::Header, Carrier::Subprotocol, Carrier::Query("token".into())] }
    }
}

impl TokenPolicy {
    /// Reads the section; what it does not give is inherited.
    pub fn read(section: &Section<'_>, inherited: &Self) -> Self {
        let from = section.get("from", inherited.from.clone());
        for carrier in &from {
            if let Carrier::Cookie(name) = carrier
                && !name.starts_with("__Host-")
                && section.has("from")
            {
                section.warning(
                    "from",
                    format!("the cookie {name:?} lacks the prefix \"__Host-\": a sibling domain can set it"),
                );
            }
        }
        if from.is_empty() {
            section.problem(
                "from",
                format!("is empty: no token would ever be found; accepted: {}", Vec::<Carrier>::accepts()),
            );
        }
        Self { from }
    }

    pub fn has_cookie(&self) -> bool {
        self.from.iter().any(|carrier| matches!(carrier, Carrier::Cookie(_)))
    }

    pub fn takes_subprotocol(&self) -> bool {
        self.from.contains(&Carrier::Subprotocol)
    }

    pub fn query_names(&self) -> impl Iterator<Item = &str> {
        self.from.iter().filter_map(|carrier| match carrier {
            Carrier::Query(name) => Some(name.as_str()),
            Carrier::Header | Carrier::Subprotocol | Carrier::Cookie(_) => None,
        })
    }
}

/// How the backend gets the token of an upgrade: `[upstream] token`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    Strip,
    Keep,
    Header,
    Query(String),
    Subprotocol(String),
}

impl Value for Delivery {
    fn accepts() -> String {
        "\"strip\", \"keep\", \"header\", \"query:NAME\" or \"subprotocol:MARKER\"".into()
    }
    fn read(raw: &Raw) -> Option<Self> {
        let word = String::read(raw)?;
        match (word.as_str(), word.split_once(':')) {
            ("strip", _) => Some(Self::Strip),
            ("keep", _) => Some(Self::Keep),
            ("header", _) => Some(Self::Header),
            (_, Some(("query", name))) if is_query_name(name) => Some(Self::Query(name.into())),
            (_, Some(("subprotocol", marker))) if is_token(marker) => Some(Self::Subprotocol(marker.into())),
            _ => None,
        }
    }
    fn show(&self) -> String {
        match self {
            Self::Strip => quoted("strip"),
            Self::Keep => quoted("keep"),
            Self::Header => quoted("header"),
            Self::Query(name) => quoted(&format!("query:{name}")),
            Self::Subprotocol(marker) => quoted(&format!("subprotocol:{marker}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::section::Document;

    fn parse<T: Value>(text: &str) -> Option<T> {
        T::read(&Raw::Text(text.to_owned()))
    }

    /// The policy that a file gives, its problems, its warnings.
    fn read(text: &str) -> (TokenPolicy, Vec<String>, Vec<String>) {
        let document = Document::parse(text, std::iter::empty());
        let policy = {
            let root = document.root().unwrap();
            TokenPolicy::read(&root.section("token"), &TokenPolicy::default())
        };
        let (problems, warnings, _) = document.finish();
        let said = |list: &[crate::base::section::Problem]| list.iter().map(ToString::to_string).collect();
        (policy, said(&problems), said(&warnings))
    }

    #[test]
    fn carriers_are_shown_as_they_are_written() {
        for (written, carrier) in [
            ("header", Carrier::Header),
            ("subprotocol", Carrier::Subprotocol),
            ("query:token", Carrier::Query("token".into())),
            ("query:access-_.~9", Carrier::Query("access-_.~9".into())),
            ("cookie:__Host-sid", Carrier::Cookie("__Host-sid".into())),
        ] {
            assert_eq!(parse(written), Some(carrier.clone()), "{written}");
            assert_eq!(carrier.show(), quoted(written));
        }
    }

    #[test]
    fn what_names_no_carrier_is_refused() {
        for wrong in [
            "",
            "Header",
            "header ",
            "header:Authorization",
            "subprotocol:jwt",
            "query",
            "query:",
            "query:a b",
            "query:a&b",
            "query:a=b",
            "query:a%62",
            "query:a+b",
            "query:ä",
            "query:a:b",
            "cookie",
            "cookie:",
            "cookie:a;b",
            "cookie:a=b",
            "cookie:a b",
            "strip",
            "body:token",
        ] {
            assert_eq!(parse::<Carrier>(wrong), None, "{wrong}");
        }
        assert_eq!(Carrier::read(&Raw::Integer(1)), None);
    }

    #[test]
    fn deliveries_are_shown_as_they_are_written() {
        for (written, delivery) in [
            ("strip", Delivery::Strip),
            ("keep", Delivery::Keep),
            ("header", Delivery::Header),
            ("query:token", Delivery::Query("token".into())),
            ("subprotocol:jwt", Delivery::Subprotocol("jwt".into())),
            ("subprotocol:base64url.v1", Delivery::Subprotocol("base64url.v1".into())),
        ] {
            assert_eq!(parse(written), Some(delivery.clone()), "{written}");
            assert_eq!(delivery.show(), quoted(written));
        }
    }

    #[test]
    fn what_names_no_delivery_is_refused() {
        for wrong in [
            "",
            "Strip",
            "strip:",
            "keep:token",
            "header:x",
            "query",
            "query:",
            "query:a b",
            "query:a%62",
            "subprotocol",
            "subprotocol:",
            "subprotocol:a,b",
            "subprotocol:a b",
            "subprotocol:a:b",
            "cookie:sid",
        ] {
            assert_eq!(parse::<Delivery>(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_section_that_gives_nothing_inherits_and_says_nothing() {
        let (policy, problems, warnings) = read("");
        assert_eq!(policy.from, [Carrier::Header, Carrier::Subprotocol, Carrier::Query("token".into())]);
        assert!(problems.is_empty() && warnings.is_empty());
        assert!(!policy.has_cookie() && policy.takes_subprotocol());
        assert_eq!(policy.query_names().collect::<Vec<_>>(), ["token"]);
    }

    #[test]
    fn a_list_replaces_the_whole_list_in_its_order() {
        let (policy, problems, warnings) =
            read("[token]\nfrom = [\"cookie:__Host-sid\", \"query:a\", \"query:b\"]");
        assert_eq!(
            policy.from,
            [Carrier::Cookie("__Host-sid".into()), Carrier::Query("a".into()), Carrier::Query("b".into())]
        );
        assert!(problems.is_empty() && warnings.is_empty(), "{problems:?} {warnings:?}");
        assert!(policy.has_cookie() && !policy.takes_subprotocol());
        assert_eq!(policy.query_names().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn a_cookie_without_the_host_prefix_is_a_warning() {
        let (_, problems, warnings) = read("[token]\nfrom = [\"header\", \"cookie:sid\"]");
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].contains("line 2: token.from") && warnings[0].contains("__Host-"),
            "{warnings:?}"
        );
    }

    #[test]
    fn an_empty_or_wrong_list_is_a_problem_that_names_what_is_accepted() {
        for wrong in ["[]", "[\"query\"]", "\"header\"", "[1]"] {
            let (_, problems, _) = read(&format!("[token]\nfrom = {wrong}"));
            assert_eq!(problems.len(), 1, "{wrong}: {problems:?}");
            assert!(problems[0].starts_with("line 2: token.from"), "{problems:?}");
            assert!(problems[0].contains("\"cookie:NAME\""), "{problems:?}");
        }
    }
}
