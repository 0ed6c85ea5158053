//! What a revocation names: a token, a session, a user, or all that was issued before a moment.

use std::fmt;

use super::claims::Facts;
use crate::base::clock::Unix;
use crate::base::reject::Reason;

/// The kinds of revocations, in the order in which a token is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A user is blocked, with new tokens too.
    Sub,
    Jti,
    Sid,
    /// A user is logged out everywhere: what was issued before.
    SubBefore,
    /// A whole issuer is logged out.
    Before,
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::Sub, Self::Jti, Self::Sid, Self::SubBefore, Self::Before];

    /// Why whom it names is refused.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Sub => Reason::UserRevoked,
            Self::Jti | Self::Sid | Self::SubBefore | Self::Before => Reason::TokenRevoked,
        }
    }

    /// What a token has that this kind names; `None` = it cannot name this token.
    pub fn value(self, facts: &Facts) -> Option<&str> {
        match self {
            Self::Sub | Self::SubBefore => facts.sub(),
            Self::Jti => facts.jti(),
            Self::Sid => facts.sid(),
            Self::Before => Some(""),
        }
    }

    /// Only what was issued before a moment is meant.
    pub const fn has_moment(self) -> bool {
        matches!(self, Self::SubBefore | Self::Before)
    }

    /// The claim that it names.
    pub const fn claim(self) -> &'static str {
        match self {
            Self::Sub | Self::SubBefore => "sub",
            Self::Jti => "jti",
            Self::Sid => "sid",
            Self::Before => "issued_before",
        }
    }
}

/// What one revocation names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    pub kind: Kind,
    pub iss: String,
    /// Empty for a whole issuer.
    pub value: String,
    /// For the kinds that have one.
    pub issued_before: Option<Unix>,
}

impl Selector {
    pub fn matches(&self, facts: &Facts) -> bool {
        // What differs most comes first: many sessions are compared with one revocation.
        self.kind.value(facts) == Some(self.value.as_str())
            && facts.iss() == self.iss
            && self.issued_before.is_none_or(|moment| is_before(facts, moment))
    }
}

/// Whether a token was issued before a moment. One that does not say when may have been.
pub fn is_before(facts: &Facts, moment: Unix) -> bool {
    facts.iat.is_none_or(|iat| iat < moment.seconds())
}

/// For the log and for `explain`.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.kind, self.issued_before) {
            (Kind::Before, Some(moment)) => write!(f, "issued_before {moment}"),
            (kind, Some(moment)) => write!(f, "{} {} issued_before {moment}", kind.claim(), self.value),
            (kind, None) => write!(f, "{} {}", kind.claim(), self.value),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn selector(kind: Kind, value: &str, before: Option<u64>) -> Selector {
        let issued_before = before.map(|seconds| Unix(Duration::from_secs(seconds)));
        Selector { kind, iss: "x".into(), value: value.into(), issued_before }
    }

    #[test]
    fn each_kind_names_what_it_says_and_nothing_else() {
        let alice = Facts::said(&json!({"iss": "x", "sub": "alice", "jti": "j", "sid": "s", "iat": 100}));
        for (selector, named) in [
            (selector(Kind::Jti, "j", None), true),
            (selector(Kind::Jti, "s", None), false),
            (selector(Kind::Sid, "s", None), true),
            (selector(Kind::Sid, "j", None), false),
            (selector(Kind::Sub, "alice", None), true),
            (selector(Kind::Sub, "alic", None), false),
            (selector(Kind::SubBefore, "alice", Some(101)), true),
            (selector(Kind::SubBefore, "alice", Some(100)), false),
            (selector(Kind::SubBefore, "bob", Some(101)), false),
            (selector(Kind::Before, "", Some(101)), true),
            (selector(Kind::Before, "", Some(100)), false),
        ] {
            assert_eq!(selector.matches(&alice), named, "{selector}");
            let elsewhere = Selector { iss: "y".into(), ..selector };
            assert!(!elsewhere.matches(&alice), "{elsewhere}");
        }
    }

    #[test]
    fn a_token_that_does_not_say_when_it_was_issued_counts_as_issued_before() {
        let facts = Facts::said(&json!({"iss": "x", "sub": "alice"}));
        assert!(selector(Kind::SubBefore, "alice", Some(1)).matches(&facts));
        assert!(!selector(Kind::Jti, "", None).matches(&facts), "no jti is not the empty one");
    }
}
