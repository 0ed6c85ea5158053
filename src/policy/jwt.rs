//! A JWT taken apart (RFC 7515 §7.1, RFC 7519 §7.2) without believing any of it: strict base64url,
//! no duplicated members, no header that changes what is signed.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::json::{Item, Json, Object};
use crate::base::reject::Reason;
use crate::base::value::words;

/// Longest token that is looked at, in bytes.
pub const MAX_TOKEN: usize = 16 * 1024;
/// Longest key id, in bytes.
pub const MAX_KID: usize = 256;

words! {
    /// Signature algorithms (RFC 7518 §3.1, RFC 8037) that `[[issuer]] algorithms` may name.
    #[derive(Hash)]
    pub enum Algorithm {
        Rs256 = "RS256", Rs384 = "RS384", Rs512 = "RS512",
        Ps256 = "PS256", Ps384 = "PS384", Ps512 = "PS512",
        Es256 = "ES256", Es384 = "ES384", EdDsa = "EdDSA",
    }
}

impl Algorithm {
    pub const ALL: [Self; 9] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::EdDsa,
    ];

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.word() == name)
    }
}

/// A token whose form is right and whose signature nobody has checked yet.
#[derive(Debug)]
pub struct Jwt<'t> {
    /// `header.payload`, the bytes that are signed.
    pub signed: &'t str,
    pub signature: Vec<u8>,
    /// `None` = an algorithm that no configuration can allow (`none`, HMAC, unknown).
    pub algorithm: Option<Algorithm>,
    pub kid: Option<String>,
    /// `typ` of the header is `at+jwt` (RFC 9068 §2.1).
    pub is_at: bool,
    pub claims: Object,
}

/// Takes a token apart.
pub fn parse(token: &str) -> Result<Jwt<'_>, Reason> {
    parse_typed(token, "at+jwt")
}

/// Takes a logout token apart.
pub fn parse_logout(token: &str) -> Result<Jwt<'_>, Reason> {
    parse_typed(token, "logout+jwt").map(|jwt| Jwt { is_at: false, ..jwt })
}

/// Its header may name this type, JWT, or none (RFC 8725 §3.11).
fn parse_typed<'t>(token: &'t str, special: &str) -> Result<Jwt<'t>, Reason> {
    const MALFORMED: Reason = Reason::TokenMalformed;
    if token.len() > MAX_TOKEN {
        return Err(MALFORMED);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(MALFORMED)?;
    let (header, payload) = signed.split_once('.').ok_or(MALFORMED)?;
    let header = object(header).ok_or(MALFORMED)?;
    let claims = object(payload).ok_or(MALFORMED)?;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| MALFORMED)?;
    // Each of these changes what is signed or how the payload is read; none is ever needed here.
    if ["crit", "zip", "cty"].iter().any(|name| header.get(name).is_some()) {
        return Err(MALFORMED);
    }
    if header.get("b64").is_some_and(|b64| !matches!(b64.kind(), Json::Bool(true))) {
        return Err(MALFORMED);
    }
    let is_at = match header.get("typ").map(Item::kind) {
        None => false,
        Some(Json::Text(typ)) => {
            let typ = typ.to_ascii_lowercase();
            match typ.strip_prefix("application/").unwrap_or(&typ) {
                "jwt" => false,
                typ if typ == special => true,
                _ => return Err(Reason::TokenType),
            }
        }
        Some(_) => return Err(MALFORMED),
    };
    let algorithm = match header.get("alg").map(Item::kind) {
        Some(Json::Text(name)) => Algorithm::named(name),
        _ => return Err(MALFORMED),
    };
    let kid = match header.get("kid").map(Item::kind) {
        None => None,
        Some(Json::Text(kid)) if kid.len() <= MAX_KID => Some(kid.to_owned()),
        Some(_) => return Err(MALFORMED),
    };
    Ok(Jwt { signed, signature, algorithm, kid, is_at, claims })
}

fn object(part: &str) -> Option<Object> {
    Object::parse(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str, claims: &str) -> String {
        format!("{}.{}.c2ln", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims))
    }

    fn error(header: &str, claims: &str) -> Option<Reason> {
        parse(&token(header, claims)).err()
    }

    #[test]
    fn a_token_is_taken_apart() {
        let token = token(
            r#"{"alg":"RS256","typ":"JWT","kid":"k"}"#,
            r#"{"sub":"alice","n":{"a":[1,2.5,null,true]}}"#,
        );
        let jwt = parse(&token).unwrap();
        assert_eq!(jwt.algorithm, Some(Algorithm::Rs256));
        assert_eq!(jwt.kid.as_deref(), Some("k"));
        assert_eq!(jwt.signature, b"sig");
        assert_eq!(jwt.claims.get("sub").and_then(Item::as_str), Some("alice"));
        assert!(token.starts_with(jwt.signed));
    }

    #[test]
    fn what_is_no_strict_jwt_is_malformed() {
        for token in [
            "",
            "a",
            "a.b",
            "a.b.c",
            "..",
            "e30.e30.=",
            "e30=.e30.c2ln",
            "e30.e30.c2lu\n",
            "e30.W10.c2ln",
            "e31.e30.c2ln",
        ] {
            assert_eq!(parse(token).err(), Some(Reason::TokenMalformed), "{token}");
        }
        // The last character of "c2k" carries two unused bits: "c2l" says the same and is refused.
        assert!(parse("eyJhbGciOiJSUzI1NiJ9.e30.c2k").is_ok());
        assert_eq!(parse("eyJhbGciOiJSUzI1NiJ9.e30.c2l").err(), Some(Reason::TokenMalformed));
        assert_eq!(parse(&"a".repeat(MAX_TOKEN + 1)).err(), Some(Reason::TokenMalformed));
    }

    #[test]
    fn headers_that_change_the_meaning_are_refused() {
        for header in [
            r#"{"alg":"RS256","crit":["exp"]}"#,
            r#"{"alg":"RS256","b64":false}"#,
            r#"{"alg":"RS256","zip":"DEF"}"#,
            r#"{"alg":"RS256","cty":"JWT"}"#,
            r#"{"alg":"RS256","alg":"none"}"#,
            r#"{"alg":1}"#,
            "{}",
            r#"{"alg":"RS256","typ":1}"#,
            r#"{"alg":"RS256","kid":7}"#,
        ] {
            assert_eq!(error(header, "{}"), Some(Reason::TokenMalformed), "{header}");
        }
        let long = format!(r#"{{"alg":"RS256","kid":"{}"}}"#, "k".repeat(MAX_KID + 1));
        assert_eq!(error(&long, "{}"), Some(Reason::TokenMalformed));
    }

    #[test]
    fn duplicated_claims_are_refused_at_any_depth() {
        assert_eq!(error(r#"{"alg":"RS256"}"#, r#"{"sub":"a","sub":"b"}"#), Some(Reason::TokenMalformed));
        assert_eq!(error(r#"{"alg":"RS256"}"#, r#"{"a":[{"b":1,"b":2}]}"#), Some(Reason::TokenMalformed));
    }

    #[test]
    fn no_configuration_can_allow_none_or_hmac() {
        for alg in ["none", "None", "HS256", "HS512", "ES512", "rs256"] {
            let token = token(&format!(r#"{{"alg":"{alg}"}}"#), "{}");
            assert_eq!(parse(&token).unwrap().algorithm, None, "{alg}");
        }
    }

    #[test]
    fn the_type_of_the_header_is_looked_at() {
        for (typ, at_jwt) in [("JWT", false), ("jwt", false), ("at+jwt", true), ("application/AT+JWT", true)]
        {
            assert_eq!(
                parse(&token(&format!(r#"{{"alg":"RS256","typ":"{typ}"}}"#), "{}")).unwrap().is_at,
                at_jwt
            );
        }
        for typ in ["logout+jwt", "dpop+jwt", "secevent+jwt", ""] {
            assert_eq!(error(&format!(r#"{{"alg":"RS256","typ":"{typ}"}}"#), "{}"), Some(Reason::TokenType));
        }
    }
}
