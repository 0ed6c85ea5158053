//! An issuer's public keys (RFC 7517), and the kids that it is known not to have.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use aws_lc_rs::signature::{
    self, ParsedPublicKey, RsaParameters, RsaPublicKeyComponents, VerificationAlgorithm,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use tokio::time::Instant;

use crate::base::reject::Reason;
use crate::policy::jwt::{Algorithm, Jwt, MAX_KID};

/// More keys than this are no key set of one realm.
pub const MAX_KEYS: usize = 64;
/// So long an unknown kid stays unknown without another fetch.
pub const UNKNOWN_FOR: Duration = Duration::from_secs(60);
/// Unknown kids remembered; when full the others have to wait for the fetches that are allowed anyway.
pub const MAX_UNKNOWN: usize = 1000;
const MIN_RSA_BITS: usize = 2048;

/// One usable key.
#[derive(Debug)]
pub struct Key {
    kid: String,
    verifiers: Vec<(Algorithm, ParsedPublicKey)>,
    /// False once the issuer no longer publishes it: what it has signed is then no longer believed.
    alive: AtomicBool,
}

impl Key {
    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    fn verifier(&self, algorithm: Algorithm) -> Option<&ParsedPublicKey> {
        self.verifiers.iter().find(|(known, _)| *known == algorithm).map(|(_, key)| key)
    }
}

fn rsa_parameters(algorithm: Algorithm) -> Option<&'static RsaParameters> {
    match algorithm {
        Algorithm::Rs256 => Some(&signature::RSA_PKCS1_2048_8192_SHA256),
        Algorithm::Rs384 => Some(&signature::RSA_PKCS1_2048_8192_SHA384),
        Algorithm::Rs512 => Some(&signature::RSA_PKCS1_2048_8192_SHA512),
        Algorithm::Ps256 => Some(&signature::RSA_PSS_2048_8192_SHA256),
        Algorithm::Ps384 => Some(&signature::RSA_PSS_2048_8192_SHA384),
        Algorithm::Ps512 => Some(&signature::RSA_PSS_2048_8192_SHA512),
        Algorithm::Es256 | Algorithm::Es384 | Algorithm::EdDsa => None,
    }
}

/// One JWK, by itself: a strange neighbour is no reason to lose it. `None` = not usable here.
fn parse_key(jwk: &Value) -> Option<Key> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    let bytes = |name: &str| text(name).and_then(|value| URL_SAFE_NO_PAD.decode(value).ok());
    let kid = text("kid").filter(|kid| kid.len() <= MAX_KID)?.to_owned();
    if jwk.get("use").is_some_and(|purpose| purpose.as_str() != Some("sig")) {
        return None;
    }
    let operations = jwk.get("key_ops");
    if operations.is_some_and(|ops| !ops.as_array().is_some_and(|ops| ops.iter().any(|op| op == "verify"))) {
        return None;
    }
    let curve = |algorithm: &'static dyn VerificationAlgorithm, name, size| {
        let (x, y) = (bytes("x")?, bytes("y")?);
        let point = (x.len() == size && y.len() == size).then(|| [&[4], x.as_slice(), &y].concat())?;
        Some(vec![(name, ParsedPublicKey::new(algorithm, point).ok()?)])
    };
    let mut verifiers = match (text("kty")?, text("crv")) {
        ("RSA", _) => {
            let (n, e) = (bytes("n")?, bytes("e")?);
            let significant = n.iter().skip_while(|b| **b == 0).count();
            let leading = n.iter().find(|b| **b != 0)?.leading_zeros() as usize;
            if significant * 8 - leading < MIN_RSA_BITS {
                return None;
            }
            let key = |algorithm| {
                let components = RsaPublicKeyComponents { n: &n, e: &e };
                Some((algorithm, components.to_parsed_public_key(rsa_parameters(algorithm)?).ok()?))
            };
            Algorithm::ALL.into_iter().filter_map(key).collect()
        }
        ("EC", Some("P-256")) => curve(&signature::ECDSA_P256_SHA256_FIXED, Algorithm::Es256, 32)?,
        ("EC", Some("P-384")) => curve(&signature::ECDSA_P384_SHA384_FIXED, Algorithm::Es384, 48)?,
        ("OKP", Some("Ed25519")) => {
            let x = bytes("x").filter(|x| x.len() == 32)?;
            vec![(Algorithm::EdDsa, ParsedPublicKey::new(&signature::ED25519, x).ok()?)]
        }
        // `oct` above all: a public document holds no secret, and must not make an HMAC key.
        _ => return None,
    };
    if let Some(named) = jwk.get("alg") {
        let named = named.as_str().and_then(Algorithm::named)?;
        verifiers.retain(|(algorithm, _)| *algorithm == named);
    }
    (!verifiers.is_empty()).then_some(Key { kid, verifiers, alive: AtomicBool::new(true) })
}

/// Reads a key set; the error says why there is nothing usable in it.
pub fn parse_keys(body: &[u8]) -> Result<Vec<Key>, String> {
    let json: Value = serde_json::from_slice(body).map_err(|_| "the key set is not JSON".to_owned())?;
    let keys = json.get("keys").and_then(Value::as_array).ok_or("the key set has no array \"keys\"")?;
    if keys.len() > MAX_KEYS {
        return Err(format!("the key set has {} keys, more than {MAX_KEYS}", keys.len()));
    }
    let usable: Vec<Key> = keys.iter().filter_map(parse_key).collect();
    if usable.is_empty() { Err(format!("none of the {} keys is usable", keys.len())) } else { Ok(usable) }
}

#[derive(Debug, Default)]
struct Ring {
    keys: HashMap<String, Vec<Arc<Key>>>,
    fetched: Option<Instant>,
}

/// The keys of one issuer.
#[derive(Debug, Default)]
pub struct Keyring {
    ring: RwLock<Ring>,
    unknown: Mutex<HashMap<String, Instant>>,
}

/// What the ring has for a kid.
#[derive(Debug)]
pub enum Lookup {
    Keys(Vec<Arc<Key>>),
    /// A fetch of late has lacked it.
    Unknown,
    /// Only another fetch can tell.
    Ask,
    /// No keys at all, or too old to be believed.
    Unavailable,
}

impl Keyring {
    /// Takes over a fetched set. Keys that are still there stay the same object, so that what they
    /// have verified stays verified; the others die.
    pub fn replace(&self, keys: Vec<Key>, now: Instant) {
        let mut fresh: HashMap<String, Vec<Arc<Key>>> = HashMap::new();
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        for key in keys {
            let known = ring.keys.get(&key.kid).into_iter().flatten().find(|old| same(old, &key)).cloned();
            fresh.entry(key.kid.clone()).or_default().push(known.unwrap_or_else(|| Arc::new(key)));
        }
        for old in ring.keys.values().flatten() {
            let stays = fresh.get(&old.kid).is_some_and(|keys| keys.iter().any(|key| Arc::ptr_eq(key, old)));
            old.alive.store(stays, Ordering::Release);
        }
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        unknown.retain(|kid, _| !fresh.contains_key(kid));
        *ring = Ring { keys: fresh, fetched: Some(now) };
    }

    /// Nobody believes it any more: what its keys have verified dies with them.
    pub fn retire(&self) {
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        for key in ring.keys.values().flatten() {
            key.alive.store(false, Ordering::Release);
        }
        *ring = Ring::default();
    }

    /// A fetch has just lacked those of these kids that are not there.
    pub fn lacks(&self, kids: impl IntoIterator<Item = String>, now: Instant) {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        for kid in kids.into_iter().filter(|kid| !ring.keys.contains_key(kid)) {
            if unknown.len() >= MAX_UNKNOWN {
                unknown.retain(|_, since| now.duration_since(*since) < UNKNOWN_FOR);
            }
            if unknown.len() < MAX_UNKNOWN {
                unknown.insert(kid, now);
            }
        }
    }

    pub fn look(&self, kid: &str, max_stale: Option<Duration>, now: Instant) -> Lookup {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        if !is_fresh(&ring, max_stale, now) {
            return Lookup::Unavailable;
        }
        if let Some(keys) = ring.keys.get(kid) {
            return Lookup::Keys(keys.clone());
        }
        let unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        match unknown.get(kid) {
            Some(since) if now.duration_since(*since) < UNKNOWN_FOR => Lookup::Unknown,
            _ => Lookup::Ask,
        }
    }

    /// Whether there are keys that may still be believed.
    pub fn is_usable(&self, max_stale: Option<Duration>, now: Instant) -> bool {
        is_fresh(&self.ring.read().unwrap_or_else(PoisonError::into_inner), max_stale, now)
    }

    /// Whether there have ever been keys.
    pub fn has_had_keys(&self) -> bool {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).fetched.is_some()
    }
}

fn is_fresh(ring: &Ring, max_stale: Option<Duration>, now: Instant) -> bool {
    ring.fetched.is_some_and(|at| max_stale.is_none_or(|max| now.duration_since(at) < max))
}

fn same(a: &Key, b: &Key) -> bool {
    let public =
        |key: &Key| key.verifiers.iter().map(|(alg, key)| (*alg, key.as_ref().to_vec())).collect::<Vec<_>>();
    public(a) == public(b)
}

/// Checks a signature with whichever of the kid's keys is made for its algorithm.
pub fn verify(jwt: &Jwt<'_>, algorithm: Algorithm, keys: &[Arc<Key>]) -> Result<Arc<Key>, Reason> {
    let mut fitting = keys.iter().filter_map(|key| Some((key, key.verifier(algorithm)?))).peekable();
    if fitting.peek().is_none() {
        return Err(Reason::TokenAlgorithm);
    }
    fitting
        .find(|(_, verifier)| verifier.verify_sig(jwt.signed.as_bytes(), &jwt.signature).is_ok())
        .map(|(key, _)| Arc::clone(key))
        .ok_or(Reason::TokenSignature)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::json::Object;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{EcdsaKeyPair, KeyPair};
    use serde_json::json;

    fn ec() -> (EcdsaKeyPair, Value) {
        let pair = EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let point = pair.public_key().as_ref().to_vec();
        let jwk = json!({"kty": "EC", "crv": "P-256", "kid": "k", "use": "sig", "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..])});
        (pair, jwk)
    }

    fn rsa(bits: aws_lc_rs::rsa::KeySize) -> Value {
        let pair = signature::RsaKeyPair::generate(bits).unwrap();
        let public = pair.public_key();
        let n = public.modulus().big_endian_without_leading_zero().to_vec();
        let e = public.exponent().big_endian_without_leading_zero().to_vec();
        json!({"kty": "RSA", "kid": "r", "n": URL_SAFE_NO_PAD.encode(n), "e": URL_SAFE_NO_PAD.encode(e)})
    }

    fn with(mut jwk: Value, changes: &Value) -> Value {
        for (name, value) in changes.as_object().unwrap() {
            jwk[name] = value.clone();
        }
        jwk
    }

    fn set(keys: &[Value]) -> Vec<u8> {
        json!({ "keys": keys }).to_string().into_bytes()
    }

    #[test]
    fn unusable_keys_are_skipped_one_by_one() {
        let (_, good) = ec();
        for bad in [
            with(good.clone(), &json!({"use": "enc"})),
            with(good.clone(), &json!({"alg": "ES512"})),
            with(good.clone(), &json!({"alg": "RS256"})),
            with(good.clone(), &json!({"x": "AA"})),
            with(good.clone(), &json!({"key_ops": ["sign"]})),
            with(good.clone(), &json!({"kid": null})),
            json!({"kty": "oct", "kid": "o", "k": "c2VjcmV0", "alg": "HS256"}),
            json!({"kty": "RSA", "kid": "x"}),
            json!(7),
        ] {
            assert_eq!(parse_keys(&set(&[bad.clone(), good.clone()])).unwrap().len(), 1, "{bad}");
            assert!(parse_keys(&set(&[bad])).is_err());
        }
    }

    #[test]
    fn rsa_needs_2048_bits() {
        let key = rsa(aws_lc_rs::rsa::KeySize::Rsa2048);
        assert_eq!(parse_keys(&set(std::slice::from_ref(&key))).unwrap()[0].verifiers.len(), 6);
        let n = URL_SAFE_NO_PAD.decode(key["n"].as_str().unwrap()).unwrap();
        let short = with(key, &json!({"n": URL_SAFE_NO_PAD.encode(&n[..128])}));
        assert!(parse_keys(&set(&[short])).is_err());
    }

    #[test]
    fn sets_over_the_bounds_are_refused_whole() {
        let (_, key) = ec();
        assert!(parse_keys(&set(&vec![key.clone(); MAX_KEYS])).is_ok());
        assert!(parse_keys(&set(&vec![key; MAX_KEYS + 1])).is_err());
        for body in ["", "{}", "[]", "{\"keys\":{}}", "{\"keys\":[]}"] {
            assert!(parse_keys(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn a_signature_is_checked_by_every_key_of_the_kid_and_by_no_other_algorithm() {
        let ((pair, first), (_, second)) = (ec(), ec());
        let keys: Vec<_> = parse_keys(&set(&[second, first])).unwrap().into_iter().map(Arc::new).collect();
        let signature = pair.sign(&SystemRandom::new(), b"a.b").unwrap().as_ref().to_vec();
        let jwt = |signature| Jwt {
            signed: "a.b",
            signature,
            algorithm: None,
            kid: None,
            is_at: false,
            claims: Object::parse(b"{}").unwrap(),
        };
        assert!(Arc::ptr_eq(&verify(&jwt(signature.clone()), Algorithm::Es256, &keys).unwrap(), &keys[1]));
        assert_eq!(
            verify(&jwt(signature.clone()), Algorithm::Rs256, &keys).err(),
            Some(Reason::TokenAlgorithm)
        );
        let mut tampered = signature;
        tampered[5] ^= 1;
        assert_eq!(verify(&jwt(tampered), Algorithm::Es256, &keys).err(), Some(Reason::TokenSignature));
        assert_eq!(verify(&jwt(vec![]), Algorithm::Es256, &keys).err(), Some(Reason::TokenSignature));
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_leaves_the_set_dies_and_one_that_stays_does_not() {
        let ((_, a), (_, b)) = (ec(), ec());
        let b = with(b, &json!({"kid": "b"}));
        let ring = Keyring::default();
        let held = |kid: &str| match ring.look(kid, None, Instant::now()) {
            Lookup::Keys(keys) => keys.first().cloned(),
            _ => None,
        };
        ring.replace(parse_keys(&set(&[a.clone(), b.clone()])).unwrap(), Instant::now());
        let (old_a, old_b) = (held("k").unwrap(), held("b").unwrap());
        ring.replace(parse_keys(&set(std::slice::from_ref(&b))).unwrap(), Instant::now());
        assert!(!old_a.is_alive() && old_b.is_alive());
        assert!(Arc::ptr_eq(&held("b").unwrap(), &old_b));
        assert!(held("k").is_none());
        // The same kid with another key is another key.
        let (_, other) = ec();
        ring.replace(parse_keys(&set(&[with(other, &json!({"kid": "b"}))])).unwrap(), Instant::now());
        assert!(!old_b.is_alive());
    }

    #[tokio::test(start_paused = true)]
    async fn keys_grow_stale_and_unknown_kids_are_forgotten() {
        let ring = Keyring::default();
        let day = Some(Duration::from_secs(86_400));
        assert!(matches!(ring.look("k", day, Instant::now()), Lookup::Unavailable));
        ring.replace(parse_keys(&set(&[ec().1])).unwrap(), Instant::now());
        assert!(matches!(ring.look("x", day, Instant::now()), Lookup::Ask));
        ring.lacks(["x".to_owned()], Instant::now());
        assert!(matches!(ring.look("x", day, Instant::now()), Lookup::Unknown));
        tokio::time::advance(UNKNOWN_FOR).await;
        assert!(matches!(ring.look("x", day, Instant::now()), Lookup::Ask));
        tokio::time::advance(Duration::from_secs(86_400)).await;
        assert!(matches!(ring.look("k", day, Instant::now()), Lookup::Unavailable));
        assert!(matches!(ring.look("k", None, Instant::now()), Lookup::Keys(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn unknown_kids_are_bounded() {
        let ring = Keyring::default();
        ring.replace(parse_keys(&set(&[ec().1])).unwrap(), Instant::now());
        for i in 0..MAX_UNKNOWN + 10 {
            ring.lacks([format!("x{i}")], Instant::now());
        }
        assert_eq!(ring.unknown.lock().unwrap().len(), MAX_UNKNOWN);
        assert!(matches!(ring.look(&format!("x{}", MAX_UNKNOWN + 1), None, Instant::now()), Lookup::Ask));
    }
}
