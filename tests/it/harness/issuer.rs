//! An issuer: keys, their JWKS over real loopback HTTP, and tokens with whatever one writes into them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::{PATIENCE, now};

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

#[derive(Clone)]
enum Signer {
    Ec(Arc<EcdsaKeyPair>),
    Rsa(&'static RsaKeyPair),
}

/// A signing key and its id.
#[derive(Clone)]
pub struct Key {
    pub kid: String,
    signer: Signer,
}

impl Key {
    /// A new ES256 key.
    pub fn new(kid: &str) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        Self { kid: kid.into(), signer: Signer::Ec(Arc::new(pair)) }
    }

    /// The one RSA key of 2048 bits (RS256): it is slow to make.
    pub fn rsa(kid: &str) -> Self {
        static PAIR: OnceLock<RsaKeyPair> = OnceLock::new();
        let pair = PAIR.get_or_init(|| RsaKeyPair::generate(KeySize::Rsa2048).unwrap());
        Self { kid: kid.into(), signer: Signer::Rsa(pair) }
    }

    /// The same key under another id.
    pub fn named(&self, kid: &str) -> Self {
        Self { kid: kid.into(), signer: self.signer.clone() }
    }

    pub fn algorithm(&self) -> &'static str {
        match self.signer {
            Signer::Ec(_) => "ES256",
            Signer::Rsa(_) => "RS256",
        }
    }

    /// Its public half (RFC 7517).
    pub fn jwk(&self) -> Value {
        match &self.signer {
            Signer::Ec(pair) => {
                let point = pair.public_key().as_ref();
                json!({"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.kid,
                    "x": b64(&point[1..33]), "y": b64(&point[33..65])})
            }
            Signer::Rsa(_) => {
                json!({"kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.kid, "n": b64(self.modulus()), "e": "AQAB"})
            }
        }
    }

    /// The public key as an RSA library would hand it to an HMAC: its DER.
    pub fn public_der(&self) -> Vec<u8> {
        match &self.signer {
            Signer::Ec(pair) => pair.public_key().as_ref().to_vec(),
            Signer::Rsa(pair) => pair.public_key().as_ref().to_vec(),
        }
    }

    /// With 2048 bits and 65537 all around the modulus is always the same (RFC 8017 §A.1.1).
    fn modulus(&self) -> Vec<u8> {
        self.public_der()[9..9 + 256].to_vec()
    }

    /// `{"alg","typ","kid"}` as this key would have them.
    pub fn header(&self) -> Value {
        json!({"alg": self.algorithm(), "typ": "JWT", "kid": self.kid})
    }

    /// A token of this header and these claims, whatever they say.
    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        self.sign_text(&header.to_string(), &claims.to_string())
    }

    /// The same of any text, be it JSON or not.
    pub fn sign_text(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", b64(header), b64(claims));
        let signature = match &self.signer {
            Signer::Ec(pair) => pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap().as_ref().to_vec(),
            Signer::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)
                    .unwrap();
                signature
            }
        };
        format!("{signed}.{}", b64(signature))
    }
}

/// What the issuer answers when asked for its keys.
#[derive(Clone, Default)]
pub struct Answers {
    pub status: u16,
    pub body: String,
    pub delay: Duration,
    /// `Location` of a redirect.
    pub location: Option<String>,
}

struct Shared {
    answers: Mutex<Answers>,
    fetches: AtomicUsize,
    gone: AtomicBool,
}

/// An issuer with one ES256 key, `key`, until told otherwise. Clones are one and the same.
#[derive(Clone)]
pub struct Issuer {
    pub key: Key,
    pub address: SocketAddr,
    shared: Arc<Shared>,
    _serving: Arc<Serving>,
}

/// Serves until it is dropped.
struct Serving(SocketAddr, Arc<Shared>);

impl Issuer {
    pub fn start() -> Self {
        Self::with(Key::new("k1"))
    }

    pub fn with(key: Key) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let body = key_set(&[&key]);
        let answers = Answers { status: 200, body, delay: Duration::ZERO, location: None };
        let shared = Arc::new(Shared {
            answers: Mutex::new(answers),
            fetches: AtomicUsize::new(0),
            gone: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.gone.load(Ordering::SeqCst) {
                    return;
                }
                let serving = Arc::clone(&serving);
                std::thread::spawn(move || serve(stream.unwrap(), &serving));
            }
        });
        let serving = Arc::new(Serving(address, Arc::clone(&shared)));
        Self { key, address, shared, _serving: serving }
    }

    /// The `iss` of its tokens.
    pub fn url(&self) -> String {
        format!("http://{}/realms/demo", self.address)
    }

    pub fn jwks_uri(&self) -> String {
        format!("{}/certs", self.url())
    }

    /// Publishes these keys from now on.
    pub fn publish(&self, keys: &[&Key]) {
        self.publish_text(&key_set(keys));
    }

    pub fn publish_text(&self, body: &str) {
        self.change(|answers| body.clone_into(&mut answers.body));
    }

    /// Status, body, delay, redirect: whatever is to be wrong with it.
    pub fn change(&self, change: impl FnOnce(&mut Answers)) {
        change(&mut self.shared.answers.lock().unwrap());
    }

    /// How often it was asked for anything.
    pub fn fetches(&self) -> usize {
        self.shared.fetches.load(Ordering::SeqCst)
    }

    /// Claims that the gate accepts, but for `changes`; a change to null removes.
    pub fn claims(&self, changes: &Value) -> Value {
        let mut claims = json!({"iss": self.url(), "sub": "alice-sub", "aud": "chat", "typ": "Bearer", "azp": "web",
            "iat": now(), "exp": now() + 300, "sid": "session-1", "jti": "jti-1", "preferred_username": "alice",
            "email": "alice@example.com", "realm_access": {"roles": ["user"]}});
        let members = claims.as_object_mut().unwrap();
        for (name, value) in changes.as_object().unwrap() {
            if value.is_null() {
                members.remove(name);
            } else {
                members.insert(name.clone(), value.clone());
            }
        }
        claims
    }

    /// A token that the gate accepts, but for `changes`.
    pub fn token(&self, changes: &Value) -> String {
        self.key.sign(&self.key.header(), &self.claims(changes))
    }

    /// One that it accepts.
    pub fn good_token(&self) -> String {
        self.token(&json!({}))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.1.gone.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.0));
    }
}

/// A JWK set (RFC 7517 §5).
pub fn key_set(keys: &[&Key]) -> String {
    let keys: Vec<_> = keys.iter().map(|key| key.jwk()).collect();
    json!({"keys": keys}).to_string()
}

fn serve(mut stream: TcpStream, shared: &Shared) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    shared.fetches.fetch_add(1, Ordering::SeqCst);
    let answers = shared.answers.lock().unwrap().clone();
    std::thread::sleep(answers.delay);
    let location = answers.location.map(|location| format!("Location: {location}\r\n")).unwrap_or_default();
    let answer = format!(
        "HTTP/1.1 {} X\r\nContent-Type: application/json\r\n{location}Content-Length: {}\r\nConnection: close\r\n\r\n{}",
        answers.status,
        answers.body.len(),
        answers.body
    );
    let _ = stream.write_all(answer.as_bytes());
}
