//! Keys of a blacklist that a backend keeps itself: one that exists means that its token is revoked.

use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, digest};

use super::claims::Facts;
use crate::base::reject::Reason;

const ACCEPTED: &str = "accepted: text with at least one of {jti}, {sid}, {sub}, {token}, {token_sha256}, and {iss} where there are several issuers";
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Jti,
    Sid,
    Sub,
    Iss,
    Token,
    TokenSha256,
}

const PARTS: [(&str, Part); 6] = [
    ("jti", Part::Jti),
    ("sid", Part::Sid),
    ("sub", Part::Sub),
    ("iss", Part::Iss),
    ("token", Part::Token),
    ("token_sha256", Part::TokenSha256),
];

/// A key with places for what a token says: each is what stands before a place, and the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    parts: Vec<(String, Part)>,
    rest: String,
}

impl Pattern {
    /// What is wrong with it names it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("{text:?} {what}; {ACCEPTED}");
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or_else(|| wrong("has a { without its }"))?;
            let known = PARTS.iter().find(|(known, _)| *known == name);
            let (_, part) = known.ok_or_else(|| wrong(&format!("has an unknown {{{name}}}")))?;
            parts.push((before.to_owned(), *part));
            rest = after;
        }
        if !parts.iter().any(|(_, part)| *part != Part::Iss) {
            return Err(wrong("is the same for every token"));
        }
        Ok(Self { parts, rest: rest.to_owned() })
    }

    fn has(&self, wanted: &[Part]) -> bool {
        self.parts.iter().any(|(_, part)| wanted.contains(part))
    }

    /// Whether the token itself is needed, and not only what it says.
    pub fn needs_token(&self) -> bool {
        self.has(&[Part::Token, Part::TokenSha256])
    }

    /// Why whom it names is refused: a user, or one token or login.
    pub fn reason(&self) -> Reason {
        let of_user = !self.has(&[Part::Jti, Part::Sid, Part::Token, Part::TokenSha256]);
        if of_user { Reason::UserRevoked } else { Reason::TokenRevoked }
    }

    /// The key for a token; `None` = it lacks a claim.
    pub fn key(&self, facts: &Facts) -> Option<String> {
        let mut key = String::new();
        for (before, part) in &self.parts {
            key.push_str(before);
            match part {
                Part::Jti => key.push_str(facts.jti()?),
                Part::Sid => key.push_str(facts.sid()?),
                Part::Sub => key.push_str(facts.sub()?),
                Part::Iss => key.push_str(facts.iss()),
                Part::Token => key.push_str(facts.token()?),
                Part::TokenSha256 => {
                    for byte in digest(&SHA256, facts.token()?.as_bytes()).as_ref() {
                        let _ = write!(key, "{byte:02x}");
                    }
                }
            }
        }
        key.push_str(&self.rest);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pattern_is_filled_in_with_what_the_token_says() {
        let mut facts = Facts::said(&json!({"iss": "i", "sub": "s{jti}", "jti": "j", "sid": "d"}));
        facts.keep("abc");
        let sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        for (pattern, key, reason) in [
            ("blacklist:{jti}", "blacklist:j", Reason::TokenRevoked),
            ("{sid}", "d", Reason::TokenRevoked),
            ("u:{iss}:{sub}!", "u:i:s{jti}!", Reason::UserRevoked),
            ("{sub}/{jti}", "s{jti}/j", Reason::TokenRevoked),
            ("t:{token}", "t:abc", Reason::TokenRevoked),
            ("h:{token_sha256}", &format!("h:{sha}"), Reason::TokenRevoked),
        ] {
            let parsed = Pattern::parse(pattern).unwrap();
            assert_eq!((parsed.key(&facts).as_deref(), parsed.reason()), (Some(key), reason), "{pattern}");
            assert_eq!(parsed.needs_token(), pattern.contains("token"), "{pattern}");
        }
    }

    #[test]
    fn a_token_without_the_claim_has_no_key() {
        let facts = Facts::said(&json!({"iss": "i"}));
        for pattern in ["{jti}", "{sid}", "{sub}", "{token}", "{token_sha256}"] {
            assert_eq!(Pattern::parse(pattern).unwrap().key(&facts), None, "{pattern}");
        }
    }

    #[test]
    fn a_pattern_that_cannot_be_meant_is_refused_by_name() {
        for pattern in ["blacklist", "", "{iss}", "{jt}", "{jti", "a{}b", "{JTI}"] {
            let problem = Pattern::parse(pattern).unwrap_err();
            assert!(problem.contains(&format!("{pattern:?}")) && problem.contains("accepted"), "{problem}");
        }
    }
}
