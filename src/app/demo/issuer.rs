//! The demo's identity provider: Keycloak's paths, keys and claims, with two users and a key that is
//! made at the start. It signs for whoever asks, so it listens on loopback alone.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::answer::{Answer, answer as plain, json_answer};
use crate::base::clock::Unix;

/// Where the realm begins, and the path of its `iss`.
pub(super) const REALM: &str = "/realms/demo";
/// Client and audience of every token.
const CLIENT: &str = "chat";
/// Longest form.
const MAX_FORM: usize = 16 * 1024;
/// A token lives so long unless another time is asked for, and never longer than the second.
const LIFETIME: (u32, u32) = (300, 86_400);

/// Somebody who can log in; the password is the name.
pub(super) struct User {
    pub(super) name: &'static str,
    pub(super) organization: &'static str,
    pub(super) roles: &'static [&'static str],
    sub: &'static str,
}

/// Everybody who can log in.
pub(super) const USERS: [User; 2] = [
    User {
        name: "alice",
        organization: "acme",
        roles: &["user"],
        sub: "8b6a2f0e-5c1d-4a57-9d3e-0a11ce000001",
    },
    User {
        name: "bob",
        organization: "globex",
        roles: &["user", "admin"],
        sub: "8b6a2f0e-5c1d-4a57-9d3e-00000b0b0002",
    },
];

fn user(name: &str) -> Option<&'static User> {
    USERS.iter().find(|user| user.name == name)
}

/// The issuer: its name and its key.
pub(super) struct Issuer {
    url: String,
    key: RsaKeyPair,
    kid: String,
    modulus: String,
}

impl Issuer {
    pub(super) fn new(url: String) -> Result<Self> {
        let key = RsaKeyPair::generate(KeySize::Rsa2048).map_err(|_| anyhow!("no RSA key could be made"))?;
        let modulus =
            modulus(key.public_key().as_ref()).context("the RSA key has another form than it should")?;
        let modulus = URL_SAFE_NO_PAD.encode(modulus);
        Ok(Self { url, key, kid: random_id()?, modulus })
    }

    fn discovery(&self) -> Value {
        let url = &self.url;
        json!({
            "issuer": url,
            "token_endpoint": format!("{url}/protocol/openid-connect/token"),
            "jwks_uri": format!("{url}/protocol/openid-connect/certs"),
            "grant_types_supported": ["password"],
            "id_token_signing_alg_values_supported": ["RS256"],
        })
    }

    fn certs(&self) -> Value {
        json!({"keys": [{"kid": self.kid, "kty": "RSA", "alg": "RS256", "use": "sig", "n": self.modulus, "e": "AQAB"}]})
    }

    /// What Keycloak answers to a log-in. `expires_in` 0 makes a token that has just expired.
    fn log_in(&self, user: &User, expires_in: u32, now: Unix) -> Result<Value> {
        let now = now.0.as_secs();
        let session = random_id()?;
        let token = |typ: &str, jti: String| {
            self.sign(&json!({
                "exp": now + u64::from(expires_in),
                "iat": now,
                "jti": jti,
                "iss": self.url,
                "aud": CLIENT,
                "sub": user.sub,
                "typ": typ,
                "azp": CLIENT,
                "sid": session,
                "scope": "openid profile email organization",
                "realm_access": {"roles": user.roles},
                "organization": [user.organization],
                "preferred_username": user.name,
                "email": format!("{}@{}.example", user.name, user.organization),
                "email_verified": true,
            }))
        };
        Ok(json!({
            "access_token": token("Bearer", random_id()?)?,
            "id_token": token("ID", random_id()?)?,
            "expires_in": expires_in,
            "token_type": "Bearer",
            "scope": "openid profile email organization",
            "session_state": session,
        }))
    }

    fn sign(&self, claims: &Value) -> Result<String> {
        let header = json!({"alg": "RS256", "typ": "JWT", "kid": self.kid});
        let [header, claims] = [&header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
        let signed = format!("{header}.{claims}");
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)
            .map_err(|_| anyhow!("the token could not be signed"))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The token endpoint, as far as the password grant goes.
    fn token_endpoint(&self, form: &str) -> Result<Answer> {
        let error = |status, error: &str, text: &str| {
            Ok(json_answer(status, &json!({"error": error, "error_description": text})))
        };
        let field = |name| field(form, name);
        if field("grant_type").is_some_and(|grant| grant != "password") {
            return error(StatusCode::BAD_REQUEST, "unsupported_grant_type", "only password is known here");
        }
        let Some(expires_in) = lifetime(field("expires_in").as_deref()) else {
            return error(StatusCode::BAD_REQUEST, "invalid_request", LIFETIME_ADVICE);
        };
        let name = field("username").unwrap_or_default();
        match user(&name) {
            Some(user) if field("password").is_some_and(|password| password == user.name) => {
                Ok(json_answer(StatusCode::OK, &self.log_in(user, expires_in, Unix::now())?))
            }
            _ => error(StatusCode::UNAUTHORIZED, "invalid_grant", "Invalid user credentials"),
        }
    }

    /// Not Keycloak's: a bare token for `$(curl …)`.
    fn bare_token(&self, query: &str) -> Result<Answer> {
        let bad = |text: String| Ok(plain(StatusCode::BAD_REQUEST, "text/plain", text));
        let Some(user) = user(&field(query, "user").unwrap_or_default()) else {
            let names: Vec<_> = USERS.iter().map(|user| format!("user={}", user.name)).collect();
            return bad(format!("say {}\n", names.join(" or ")));
        };
        let Some(expires_in) = lifetime(field(query, "expires_in").as_deref()) else {
            return bad(format!("{LIFETIME_ADVICE}\n"));
        };
        let answer = self.log_in(user, expires_in, Unix::now())?;
        let token = answer.get("access_token").and_then(Value::as_str).unwrap_or_default();
        Ok(plain(StatusCode::OK, "text/plain", format!("{token}\n")))
    }
}

const LIFETIME_ADVICE: &str = "expires_in is a number of seconds from 0 to 86400";

fn lifetime(given: Option<&str>) -> Option<u32> {
    match given {
        None => Some(LIFETIME.0),
        Some(text) => text.parse().ok().filter(|seconds| *seconds <= LIFETIME.1),
    }
}

/// Answers one request.
pub(super) async fn answer(issuer: Arc<Issuer>, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let path = head.uri.path().strip_prefix(REALM).unwrap_or_default();
    let answer = match (&head.method, path) {
        (&Method::GET, "/.well-known/openid-configuration") => {
            Ok(json_answer(StatusCode::OK, &issuer.discovery()))
        }
        (&Method::GET, "/protocol/openid-connect/certs") => Ok(json_answer(StatusCode::OK, &issuer.certs())),
        (&Method::GET, "/token") => issuer.bare_token(head.uri.query().unwrap_or_default()),
        (&Method::POST, "/protocol/openid-connect/token") => {
            match Limited::new(body, MAX_FORM).collect().await {
                Ok(form) => issuer.token_endpoint(&String::from_utf8_lossy(&form.to_bytes())),
                Err(_) => Ok(plain(StatusCode::PAYLOAD_TOO_LARGE, "text/plain", "too long a form\n")),
            }
        }
        _ => Ok(plain(StatusCode::NOT_FOUND, "text/plain", "the issuer has no such page\n")),
    };
    answer.unwrap_or_else(|error| {
        plain(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{error:#}\n"))
    })
}

/// A field of a query or form, decoded; a blank is a plus there (WHATWG URL §5.1).
fn field(form: &str, name: &str) -> Option<String> {
    let value = form.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    Some(percent_decode_str(&value.replace('+', " ")).decode_utf8_lossy().into_owned())
}

/// The modulus in the DER of an `RSAPublicKey` (RFC 8017 §A.1.1). With 2048 bits, the first of which is
/// set, and 65537 as the exponent, all around it is always the same.
fn modulus(der: &[u8]) -> Option<&[u8]> {
    const BEFORE: [u8; 9] = [0x30, 0x82, 0x01, 0x0a, 0x02, 0x82, 0x01, 0x01, 0x00];
    const AFTER: [u8; 5] = [0x02, 0x03, 0x01, 0x00, 0x01];
    der.strip_prefix(&BEFORE)?.strip_suffix(&AFTER).filter(|modulus| modulus.len() == 256)
}

fn random_id() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| anyhow!("the system gives no random numbers"))?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name_and_decoded() {
        let form = "username=alice&pass=no&password=a%26b&empty=";
        assert_eq!(field(form, "username").as_deref(), Some("alice"));
        assert_eq!(field(form, "password").as_deref(), Some("a&b"));
        assert_eq!(field(form, "empty").as_deref(), Some(""));
        assert_eq!(field(form, "user"), None);
        assert_eq!(field("a=b+c", "a").as_deref(), Some("b c"));
        assert_eq!(field("a=b%2Bc", "a").as_deref(), Some("b+c"));
    }

    #[test]
    fn lifetimes_are_bounded() {
        assert_eq!(lifetime(None), Some(300));
        assert_eq!(lifetime(Some("0")), Some(0));
        for wrong in ["-1", "86401", "", "5m"] {
            assert_eq!(lifetime(Some(wrong)), None, "{wrong}");
        }
    }
}
