//! The issuer: an RSA key of 2048 bits and one on P-256, made when the backend starts, and tokens as Keycloak makes
//! them.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

/// What the generated configurations of `run` say too.
const ISSUER: &str = "https://sso.example.com/realms/bench";
const AUDIENCE: &str = "chat";
const KID: &str = "Zr0h2bR5oQ6nV1mTqkX9wYc3sLdE8uGpJf4iAa7KxNI";
const EC_KID: &str = "q7Tz3uYw0cVb8RkLs5HnXe1mPj6oFdGa2iK9vCxN4Ms";

/// Makes the keys, writes `key.der`, `public.pem` and `ec.der` into `dir`, and returns their JWKS.
pub(crate) fn make(dir: &Path) -> io::Result<String> {
    let key = KeyPair::generate(KeySize::Rsa2048).map_err(crypto)?;
    let private: Pkcs8V1Der<'_> = key.as_der().map_err(crypto)?;
    fs::write(dir.join("key.der"), private.as_ref())?;
    let public: PublicKeyX509Der<'_> = key.public_key().as_der().map_err(crypto)?;
    fs::write(dir.join("public.pem"), pem(public.as_ref()))?;
    // RSAPublicKey of 2048 bits: SEQUENCE (4 bytes of head), INTEGER n (4 of head, a zero, 256), INTEGER 65537.
    let modulus = &key.public_key().as_ref()[9..265];
    let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(crypto)?;
    fs::write(dir.join("ec.der"), ec.to_pkcs8v1().map_err(crypto)?.as_ref())?;
    // An uncompressed point: 4, x, y.
    let (x, y) = ec.public_key().as_ref()[1..].split_at(32);
    let [n, x, y] = [modulus, x, y].map(|bytes| URL_SAFE_NO_PAD.encode(bytes));
    Ok(format!(
        r#"{{"keys":[{{"kid":"{KID}","kty":"RSA","alg":"RS256","use":"sig","n":"{n}","e":"AQAB"}},{{"kid":"{EC_KID}","kty":"EC","crv":"P-256","alg":"ES256","use":"sig","x":"{x}","y":"{y}"}}]}}"#
    ))
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN PUBLIC KEY-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem + "-----END PUBLIC KEY-----\n"
}

pub(crate) struct Signer {
    key: KeyPair,
    ec: EcdsaKeyPair,
    random: SystemRandom,
    made: u64,
}

/// A token by ES256, which signs many times faster than RS256.
pub(crate) struct Quick {
    pub(crate) token: String,
    pub(crate) jti: String,
}

/// What a token can be made wrong in.
#[derive(Clone, Copy)]
pub(crate) struct Claims {
    pub(crate) issuer: &'static str,
    pub(crate) audience: &'static str,
    /// Seconds from now.
    pub(crate) life: i64,
    /// A list, as JSON.
    pub(crate) rooms: &'static str,
}

impl Claims {
    pub(crate) const GOOD: Self =
        Self { issuer: ISSUER, audience: AUDIENCE, life: 3600, rooms: r#"["lobby","support","chat"]"# };
}

impl Signer {
    pub(crate) fn load(dir: &Path) -> io::Result<Self> {
        let key = KeyPair::from_pkcs8(&fs::read(dir.join("key.der"))?).map_err(crypto)?;
        let ec = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &fs::read(dir.join("ec.der"))?);
        Ok(Self { key, ec: ec.map_err(crypto)?, random: SystemRandom::new(), made: 0 })
    }

    /// A token unlike every other one: its `jti`, `sub` and `sid` are its own.
    pub(crate) fn token(&mut self, claims: Claims) -> io::Result<String> {
        let signed = self.unsigned("RS256", KID, claims)?;
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key.sign(&RSA_PKCS1_SHA256, &self.random, signed.as_bytes(), &mut signature).map_err(crypto)?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    pub(crate) fn tokens(&mut self, count: usize) -> io::Result<Vec<String>> {
        (0..count).map(|_| self.token(Claims::GOOD)).collect()
    }

    pub(crate) fn quick(&mut self) -> io::Result<Quick> {
        let signed = self.unsigned("ES256", EC_KID, Claims::GOOD)?;
        let signature = self.ec.sign(&self.random, signed.as_bytes()).map_err(crypto)?;
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
        Ok(Quick { token, jti: jti(self.made) })
    }

    /// Header and claims.
    fn unsigned(&mut self, algorithm: &str, kid: &str, claims: Claims) -> io::Result<String> {
        self.made += 1;
        let Claims { issuer, audience, life, rooms } = claims;
        let (now, n, jti) = (now()?.as_secs(), self.made, jti(self.made));
        let header = format!(r#"{{"alg":"{algorithm}","typ":"JWT","kid":"{kid}"}}"#);
        let mut body = String::with_capacity(1024);
        let _ = write!(
            body,
            r#"{{"exp":{},"iat":{now},"jti":"{jti}","iss":"{issuer}","aud":"{audience}","sub":"0d4f5c1e-2f0b-4b1e-8f57-{n:012x}","typ":"Bearer","azp":"chat-web","sid":"a1c8a0a7-6a53-4f8d-8a30-{n:012x}","acr":"1","allowed-origins":["https://app.example.com","https://chat.example.com"],"realm_access":{{"roles":["default-roles-bench","offline_access","uma_authorization","chat-user","chat-moderator"]}},"resource_access":{{"account":{{"roles":["manage-account","manage-account-links","view-profile"]}}}},"scope":"openid email profile organization","email_verified":true,"name":"Alice Example","organization":["acme"],"rooms":{rooms},"preferred_username":"alice{n}","given_name":"Alice","family_name":"Example","email":"alice{n}@example.com"}}"#,
            now.saturating_add_signed(life)
        );
        Ok(format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(body)))
    }
}

/// 36 characters.
fn jti(n: u64) -> String {
    format!("5f0c1c9e-7b7c-4a7e-9d53-{n:012x}")
}

/// Since the epoch.
#[expect(clippy::disallowed_methods, reason = "tokens are dated, and so are revocations")]
pub(crate) fn now() -> io::Result<Duration> {
    SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)
}

fn crypto(error: impl std::fmt::Debug) -> io::Error {
    io::Error::other(format!("aws-lc: {error:?}"))
}
