//! What a verified token says, and the checks of `[[issuer]]` on it (RFC 7519 §4.1, RFC 9068 §4).
//! `Facts` are about a token and are cached; a verdict never is.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Duration;

use cel::common::types::{
    CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt,
};
use cel::common::value::Val;

use super::cost::weight;
use super::json::{Item, Json, Members, Object, Place};
use super::jwt::{Algorithm, Jwt};
use super::trace::Trace;
use crate::base::clock::Unix;
use crate::base::reject::Reason;
use crate::base::section::Section;
use crate::base::value::{Grace, Span};

/// Later times are nobody's: 31 December 9999, in seconds since the epoch.
const END_OF_TIME: f64 = 253_402_300_799.0;

/// `[[issuer]]`
#[derive(Clone, Debug)]
pub struct IssuerPolicy {
    /// Equals `iss` byte for byte.
    pub url: String,
    /// Where the keys are; `None` = from discovery.
    pub jwks_uri: Option<String>,
    pub audiences: Vec<String>,
    pub any_audience: bool,
    pub clients: Vec<String>,
    pub token_types: Vec<String>,
    pub algorithms: Vec<Algorithm>,
    pub leeway: Duration,
    /// `None` = only when an unknown kid asks.
    pub refresh: Option<Duration>,
    /// `None` = keys never become too old.
    pub max_stale: Option<Duration>,
    pub ca_file: Option<String>,
}

impl IssuerPolicy {
    /// Reads one table; `None` if a key without which there is no issuer is missing.
    pub fn read(section: &Section<'_>) -> Option<Self> {
        let url = section.required::<String>("url", "the `iss` of its tokens, byte for byte");
        let jwks_uri = section.optional::<String>("jwks_uri");
        for (key, value, query) in [("url", &url, false), ("jwks_uri", &jwks_uri, true)] {
            if value.as_ref().is_some_and(|value| !is_http_url(value) || (!query && value.contains('?'))) {
                section.problem(key, "accepted: an absolute http or https URL without user or fragment");
            }
        }
        let any_audience = section.get("any_audience", false);
        let audiences: Vec<String> = section.get("audiences", Vec::new());
        if audiences.is_empty() && !any_audience {
            section.problem("audiences", "is missing: name at least one value of `aud`, or write any_audience = true to take tokens for anybody");
        }
        if !audiences.is_empty() && any_audience {
            section.problem("any_audience", "contradicts audiences: leave out one of them");
        }
        let clients = section.get("clients", Vec::new());
        let token_types = section.get("token_types", vec!["Bearer".to_owned()]);
        let algorithms = section.get("algorithms", vec![Algorithm::Rs256]);
        if algorithms.is_empty() {
            section.problem(
                "algorithms",
                "is empty: every token would be refused; accepted: RS/PS 256-512, ES256, ES384, EdDSA",
            );
        }
        let leeway = section.get("leeway", Grace(Duration::from_secs(10))).0;
        let refresh = section.get("refresh", Some(Span(Duration::from_secs(300)))).map(|span| span.0);
        let max_stale = section.get("max_stale", Some(Span(Duration::from_secs(86_400)))).map(|span| span.0);
        let ca_file = section.optional("ca_file");
        Some(Self {
            url: url?,
            jwks_uri,
            audiences,
            any_audience,
            clients,
            token_types,
            algorithms,
            leeway,
            refresh,
            max_stale,
            ca_file,
        })
    }

    /// Time, audience, type and client of a token of this issuer, at `now`.
    pub fn check(&self, facts: &Facts, now: Unix, trace: &mut Trace) -> Result<(), Reason> {
        let time = || {
            let exp = facts.exp.map_or_else(|| "no exp".to_owned(), |exp| format!("exp {}", moment(exp)));
            let iat = facts.iat.map_or_else(String::new, |iat| format!(", iat {}", moment(iat)));
            format!("time: {exp}{iat}, now {now}")
        };
        trace.step("issuer.leeway", time, self.check_time(facts, now))?;
        self.check_claims(facts, trace)
    }

    fn check_time(&self, facts: &Facts, now: Unix) -> Result<(), Reason> {
        let (now, leeway) = (now.seconds(), self.leeway.as_secs_f64());
        let exp = facts.exp.ok_or(Reason::TokenClaimMissing)?;
        if now >= exp + leeway {
            return Err(Reason::TokenExpired);
        }
        let future = |time: Option<f64>| time.is_some_and(|time| time > now + leeway);
        if future(facts.nbf) || future(facts.iat) { Err(Reason::TokenNotYetValid) } else { Ok(()) }
    }

    /// What does not change while a session lives, unless the configuration does.
    pub fn check_claims(&self, facts: &Facts, trace: &mut Trace) -> Result<(), Reason> {
        let told = |name: &'static str, claim: &'static str| {
            move || match facts.claims.get(claim) {
                Some(value) => format!("{name}: {claim} {value}"),
                None => format!("{name}: no {claim}"),
            }
        };
        let audience_ok = self.any_audience || facts.is_for(&self.audiences);
        let audience = if audience_ok { Ok(()) } else { Err(Reason::TokenAudience) };
        trace.step("issuer.audiences", told("audience", "aud"), audience)?;
        let type_ok = match facts.claims.get("typ").and_then(Item::as_str) {
            // Bound to a key that a Bearer carrier does not prove (RFC 7800 §3.1).
            _ if facts.claims.get("cnf").is_some() => false,
            _ if self.token_types.is_empty() => true,
            Some(typ) => self.token_types.iter().any(|known| known == typ),
            None => facts.at_jwt,
        };
        let type_ok = if type_ok { Ok(()) } else { Err(Reason::TokenType) };
        trace.step("issuer.token_types", told("type", "typ"), type_ok)?;
        let client_ok = self.clients.is_empty()
            || facts.client().is_some_and(|azp| self.clients.iter().any(|known| known == azp));
        let client = if client_ok { Ok(()) } else { Err(Reason::TokenClient) };
        trace.step("issuer.clients", told("client", "azp"), client)
    }
}

/// A `NumericDate` as a person reads it.
fn moment(seconds: f64) -> Unix {
    Unix(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

fn is_http_url(url: &str) -> bool {
    let uri = url.parse::<http::Uri>().ok();
    let shape = uri.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.authority().is_some_and(|a| !a.as_str().contains('@'))
    });
    shape && !url.contains('#')
}

/// What a verified token says. Texts stay in the claims: a copy of each would be held as long as the
/// token is remembered.
#[derive(Debug)]
pub struct Facts {
    at_jwt: bool,
    texts: Texts,
    /// Seconds since the epoch.
    pub exp: Option<f64>,
    pub iat: Option<f64>,
    nbf: Option<f64>,
    pub claims: Object,
    converted: OnceLock<Converted>,
    /// The token itself, where somebody has to name it later.
    token: Option<Token>,
}

/// Where the texts are that every handshake asks for.
#[derive(Debug)]
struct Texts {
    iss: Option<Place>,
    sub: Option<Place>,
    sid: Option<Place>,
    jti: Option<Place>,
    client: Option<Place>,
    username: Option<Place>,
}

struct Token(Box<str>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// The claims as an expression sees them.
#[derive(Debug)]
pub struct Converted {
    pub claims: CelMap<'static>,
    /// What they and their names weigh together.
    pub weight: u64,
}

impl Facts {
    /// Reads the claims; their signature is the caller's business.
    pub fn of(jwt: Jwt<'_>) -> Result<Self, Reason> {
        let claims = jwt.claims;
        let kind = |name: &str| claims.get(name).map(Item::kind);
        let is_text = |name: &str| matches!(kind(name), None | Some(Json::Null | Json::Text(_)));
        let time = |name: &str| match claims.get(name) {
            None => Ok(None),
            Some(time) => {
                let seconds = time.as_f64().filter(|t| (0.0..=END_OF_TIME).contains(t));
                seconds.map(Some).ok_or(Reason::TokenMalformed)
            }
        };
        let audience_ok = match kind("aud") {
            None | Some(Json::Text(_)) => true,
            Some(Json::List(mut many)) => many.all(|aud| aud.as_str().is_some()),
            Some(_) => false,
        };
        if !audience_ok || !["iss", "sub", "sid", "jti", "azp", "typ"].into_iter().all(is_text) {
            return Err(Reason::TokenMalformed);
        }
        let (exp, iat, nbf) = (time("exp")?, time("iat")?, time("nbf")?);
        let place = |name: &str| claims.get(name).filter(|claim| claim.as_str().is_some()).map(Item::place);
        let texts = Texts {
            iss: place("iss"),
            sub: place("sub"),
            sid: place("sid"),
            jti: place("jti"),
            client: place("azp"),
            username: place("preferred_username"),
        };
        let (converted, token) = (OnceLock::new(), None);
        let facts = Self { at_jwt: jwt.is_at, texts, exp, iat, nbf, claims, converted, token };
        if facts.texts.iss.is_none() { Err(Reason::TokenClaimMissing) } else { Ok(facts) }
    }

    /// Remembers the token that says all this.
    pub fn keep(&mut self, token: &str) {
        self.token = Some(Token(token.into()));
    }

    pub fn token(&self) -> Option<&str> {
        self.token.as_ref().map(|token| token.0.as_ref())
    }

    fn text(&self, place: Option<Place>) -> Option<&str> {
        self.claims.at(place?).as_str()
    }

    pub fn iss(&self) -> &str {
        self.text(self.texts.iss).unwrap_or_default()
    }

    pub fn sub(&self) -> Option<&str> {
        self.text(self.texts.sub)
    }

    pub fn sid(&self) -> Option<&str> {
        self.text(self.texts.sid)
    }

    pub fn jti(&self) -> Option<&str> {
        self.text(self.texts.jti)
    }

    /// The client that the token was given to.
    pub fn client(&self) -> Option<&str> {
        self.text(self.texts.client)
    }

    /// For the log only: a claim that users may choose.
    pub fn username(&self) -> Option<&str> {
        self.text(self.texts.username)
    }

    pub fn is_for(&self, audiences: &[String]) -> bool {
        let named =
            |aud: Item<'_>| aud.as_str().is_some_and(|aud| audiences.iter().any(|known| known == aud));
        self.claims
            .get("aud")
            .is_some_and(|aud| aud.items().map_or_else(|| named(aud), |mut many| many.any(named)))
    }

    /// A claim by its path: its whole name first, for names may have dots, else nested members.
    pub fn claim(&self, path: &str) -> Option<Item<'_>> {
        if let Some(value) = self.claims.get(path) {
            return Some(value);
        }
        let mut parts = path.split('.');
        let first = self.claims.get(parts.next()?)?;
        parts.try_fold(first, Item::get)
    }

    /// The client's web origins, which Keycloak puts into `allowed-origins`.
    pub fn allowed_origins(&self) -> Vec<&str> {
        let list = self.claims.get("allowed-origins").and_then(Item::items);
        list.into_iter().flatten().filter_map(Item::as_str).collect()
    }

    /// Made when the first rule asks, and once per token: it costs more than most rules do.
    pub fn converted(&self) -> &Converted {
        self.converted.get_or_init(|| {
            let mut weight = 1;
            let claims = convert_members(self.claims.members(), &mut weight);
            Converted { claims, weight }
        })
    }

    /// What a token with these claims says.
    #[cfg(test)]
    pub fn said(claims: &serde_json::Value) -> Self {
        let claims = Object::parse(claims.to_string().as_bytes()).unwrap();
        Self::of(Jwt { signed: "", signature: vec![], algorithm: None, kid: None, is_at: false, claims })
            .unwrap()
    }
}

fn convert_members(members: Members<'_>, sum: &mut u64) -> CelMap<'static> {
    let entries = members.map(|(name, value)| {
        *sum += weight(name.len());
        (CelMapKey::from(name.to_owned()), convert(value, sum))
    });
    entries.collect::<HashMap<_, _>>().into()
}

fn convert(value: Item<'_>, sum: &mut u64) -> Box<dyn Val> {
    *sum += weight(value.as_str().map_or(0, str::len));
    match value.kind() {
        Json::Null => Box::new(CelNull),
        Json::Bool(flag) => Box::new(CelBool::from(flag)),
        Json::Number(number) => match (number.parse::<i64>(), number.parse::<u64>()) {
            (Ok(int), _) => Box::new(CelInt::from(int)),
            (Err(_), Ok(uint)) => Box::new(CelUInt::from(uint)),
            (Err(_), Err(_)) => Box::new(CelDouble::from(number.parse().unwrap_or(f64::NAN))),
        },
        Json::Text(text) => Box::new(CelString::from(text.to_owned())),
        Json::List(items) => {
            Box::new(CelList::from(items.map(|item| convert(item, sum)).collect::<Vec<_>>()))
        }
        Json::Object(members) => Box::new(convert_members(members, sum)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn policy() -> IssuerPolicy {
        IssuerPolicy {
            url: "https://sso/realms/demo".into(),
            jwks_uri: None,
            audiences: vec!["chat".into()],
            any_audience: false,
            clients: vec![],
            token_types: vec!["Bearer".into()],
            algorithms: vec![Algorithm::Rs256],
            leeway: Duration::from_secs(10),
            refresh: None,
            max_stale: None,
            ca_file: None,
        }
    }

    fn facts_of(claims: &Value, at_jwt: bool) -> Result<Facts, Reason> {
        let claims = Object::parse(claims.to_string().as_bytes()).unwrap();
        Facts::of(Jwt { signed: "", signature: vec![], algorithm: None, kid: None, is_at: at_jwt, claims })
    }

    fn with(changes: &Value) -> Value {
        let mut claims = json!({"iss": "https://sso/realms/demo", "sub": "a", "aud": "chat", "typ": "Bearer", "exp": 1000, "iat": 900});
        for (name, value) in changes.as_object().unwrap() {
            if value == "absent" {
                claims.as_object_mut().unwrap().remove(name);
            } else {
                claims[name] = value.clone();
            }
        }
        claims
    }

    fn check(policy: &IssuerPolicy, changes: &Value, now: f64) -> Result<(), Reason> {
        facts_of(&with(changes), false)
            .and_then(|facts| policy.check(&facts, Unix(Duration::from_secs_f64(now)), &mut Trace::Off))
    }

    #[test]
    fn a_token_ends_at_exp_plus_leeway_and_not_a_moment_later() {
        assert_eq!(check(&policy(), &json!({}), 1009.9), Ok(()));
        assert_eq!(check(&policy(), &json!({}), 1010.0), Err(Reason::TokenExpired));
        assert_eq!(check(&policy(), &json!({"exp": 1000.5}), 1010.2), Ok(()));
        assert_eq!(check(&policy(), &json!({"exp": "absent"}), 950.0), Err(Reason::TokenClaimMissing));
    }

    #[test]
    fn tokens_of_the_future_are_not_valid_yet() {
        assert_eq!(check(&policy(), &json!({"iat": 961}), 950.0), Err(Reason::TokenNotYetValid));
        assert_eq!(check(&policy(), &json!({"iat": 960}), 950.0), Ok(()));
        assert_eq!(check(&policy(), &json!({"nbf": 961}), 950.0), Err(Reason::TokenNotYetValid));
        assert_eq!(check(&policy(), &json!({"iat": "absent"}), 950.0), Ok(()));
    }

    #[test]
    fn audience_type_and_client_must_fit() {
        for (changes, reason) in [
            (json!({"aud": "account"}), Reason::TokenAudience),
            (json!({"aud": "absent"}), Reason::TokenAudience),
            (json!({"aud": []}), Reason::TokenAudience),
            (json!({"typ": "ID"}), Reason::TokenType),
            (json!({"typ": "Refresh"}), Reason::TokenType),
            (json!({"typ": "bearer"}), Reason::TokenType),
            (json!({"typ": "absent"}), Reason::TokenType),
            (json!({"cnf": {"jkt": "x"}}), Reason::TokenType),
        ] {
            assert_eq!(check(&policy(), &changes, 950.0), Err(reason), "{changes}");
        }
        assert_eq!(check(&policy(), &json!({"aud": ["account", "chat"]}), 950.0), Ok(()));
        let clients = IssuerPolicy { clients: vec!["web".into()], ..policy() };
        assert_eq!(check(&clients, &json!({"azp": "web"}), 950.0), Ok(()));
        assert_eq!(check(&clients, &json!({"azp": "cli"}), 950.0), Err(Reason::TokenClient));
        assert_eq!(check(&clients, &json!({}), 950.0), Err(Reason::TokenClient));
        let any = IssuerPolicy { audiences: vec![], any_audience: true, token_types: vec![], ..policy() };
        assert_eq!(check(&any, &json!({"aud": "absent", "typ": "absent"}), 950.0), Ok(()));
    }

    #[test]
    fn an_access_token_by_rfc_9068_needs_no_typ_claim() {
        let facts = facts_of(&with(&json!({"typ": "absent"})), true).unwrap();
        assert_eq!(policy().check(&facts, Unix(Duration::from_secs(950)), &mut Trace::Off), Ok(()));
    }

    #[test]
    fn mistyped_claims_are_malformed() {
        for changes in [
            json!({"iss": ["https://sso/realms/demo"]}),
            json!({"aud": 1}),
            json!({"aud": ["chat", 1]}),
            json!({"exp": "1000"}),
            json!({"exp": 1e12}),
            json!({"exp": -1}),
            json!({"iat": true}),
            json!({"sub": 7}),
            json!({"sid": {}}),
            json!({"jti": []}),
        ] {
            assert_eq!(check(&policy(), &changes, 950.0), Err(Reason::TokenMalformed), "{changes}");
        }
        assert_eq!(check(&policy(), &json!({"iss": "absent"}), 950.0), Err(Reason::TokenClaimMissing));
    }

    #[test]
    fn claims_are_found_by_whole_name_or_path() {
        let facts = facts_of(&with(&json!({"a.b": 1, "a": {"b": 2, "c": {"d": 3}}})), false).unwrap();
        let claim = |path: &str| facts.claim(path).and_then(Item::as_f64);
        assert_eq!((claim("a.b"), claim("a.c.d")), (Some(1.0), Some(3.0)));
        assert_eq!((claim("a.x"), claim("a.b.c")), (None, None));
    }
}
