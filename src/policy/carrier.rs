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
