//! A logout token (OpenID Connect Back-Channel Logout 1.0 §2.4, §2.6), once its signature is known to be good.

use super::claims::Facts;
use super::json::Json;
use super::revocation::{Kind, Selector};
use crate::base::clock::Unix;
use crate::base::section::Section;

/// Older ones close nothing.
pub const OLDEST: f64 = 300.0;
const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";

/// `[blacklist] backchannel_logout`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogoutSettings {
    /// Where the issuer posts.
    pub path: String,
    /// Whose logouts count: at least one must be in `aud`.
    pub clients: Vec<String>,
}

impl LogoutSettings {
    /// Reads the table, which must have both keys.
    pub fn read(section: &Section<'_>) -> Option<Self> {
        let path = section.required::<String>("path", "where the issuer posts its logout tokens");
        let clients = section.required::<Vec<String>>("clients", "the client ids whose users log out");
        let plain = |path: &String| {
            path.starts_with('/')
                && !path.contains("//")
                && path.bytes().all(|b| b.is_ascii_graphic() && !b"?#%\\{}*".contains(&b))
                && !path.split('/').any(|part| matches!(part, "." | ".."))
        };
        if path.as_ref().is_some_and(|path| !plain(path)) {
            section.problem("path", "accepted: one exact path such as \"/oidc/backchannel-logout\"");
        }
        if clients.as_ref().is_some_and(Vec::is_empty) {
            section.problem("clients", "is empty: every logout would be refused; name the client ids");
        }
        Some(Self { path: path?, clients: clients? })
    }
}

/// Whom a token logs out; what is wrong with it otherwise.
pub fn check(facts: &Facts, clients: &[String], leeway: f64, now: Unix) -> Result<Selector, &'static str> {
    let claim = |name: &str| facts.claims.get(name);
    if claim("typ").is_some_and(|typ| typ.as_str() != Some("Logout")) {
        return Err("typ is not Logout");
    }
    if !facts.is_for(clients) {
        return Err("aud names no client of [blacklist] backchannel_logout");
    }
    let now = now.seconds();
    let iat = facts.iat.ok_or("iat is missing")?;
    if iat > now + leeway {
        return Err("iat is in the future");
    }
    if iat + OLDEST + leeway < now {
        return Err("iat is too long ago");
    }
    if now >= facts.exp.ok_or("exp is missing")? + leeway {
        return Err("it has expired");
    }
    if !claim("events")
        .and_then(|events| events.get(EVENT))
        .is_some_and(|event| matches!(event.kind(), Json::Object(_)))
    {
        return Err("events does not say that it is a logout");
    }
    if claim("nonce").is_some() {
        return Err("nonce must not be there");
    }
    if facts.jti().is_none() {
        return Err("jti is missing");
    }
    let iss = facts.iss().to_owned();
    match (facts.sid(), facts.sub()) {
        (Some(sid), _) => Ok(Selector { kind: Kind::Sid, iss, value: sid.to_owned(), issued_before: None }),
        (None, Some(sub)) => {
            let moment = std::time::Duration::try_from_secs_f64(iat).map_err(|_| "iat is no time")?;
            let issued_before = Some(Unix(moment));
            Ok(Selector { kind: Kind::SubBefore, iss, value: sub.to_owned(), issued_before })
        }
        (None, None) => Err("neither sid nor sub is there"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::time::Duration;

    const NOW: u64 = 1_800_000_000;

    fn checked(change: &Value) -> Result<Selector, &'static str> {
        let mut claims = json!({"iss": "i", "aud": "web", "sub": "alice", "sid": "s", "jti": "j", "typ": "Logout",
            "iat": NOW, "exp": NOW + 120, "events": {EVENT: {}}});
        for (name, value) in change.as_object().unwrap() {
            claims[name] = value.clone();
        }
        claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        check(&Facts::said(&claims), &["web".into()], 10.0, Unix(Duration::from_secs(NOW)))
    }

    #[test]
    fn it_names_a_session_or_all_that_a_user_had() {
        let session = checked(&json!({})).unwrap();
        assert_eq!((session.kind, session.value.as_str(), session.issued_before), (Kind::Sid, "s", None));
        let user = checked(&json!({"sid": null, "iat": NOW - 3})).unwrap();
        assert_eq!((user.kind, user.value.as_str()), (Kind::SubBefore, "alice"));
        assert_eq!(user.issued_before, Some(Unix(Duration::from_secs(NOW - 3))));
        let login = checked(&json!({"sub": null})).unwrap();
        assert_eq!((login.kind, login.iss.as_str()), (Kind::Sid, "i"));
        for fine in [
            json!({"typ": null}),
            json!({"aud": ["account", "web"]}),
            json!({"iat": NOW - 305, "exp": NOW}),
            json!({"iat": NOW + 9}),
            json!({"exp": NOW - 9}),
        ] {
            assert!(checked(&fine).is_ok(), "{fine}");
        }
    }

    #[test]
    fn what_is_wrong_with_it_is_said() {
        for (change, wrong) in [
            (json!({"typ": "Bearer"}), "typ is"),
            (json!({"aud": "other"}), "aud"),
            (json!({"aud": null}), "aud"),
            (json!({"iat": null}), "iat is missing"),
            (json!({"iat": NOW + 11}), "future"),
            (json!({"iat": NOW - 311}), "too long ago"),
            (json!({"exp": null}), "exp is missing"),
            (json!({"exp": NOW - 10}), "expired"),
            (json!({"events": null}), "events"),
            (json!({"events": {}}), "events"),
            (json!({"events": {EVENT: true}}), "events"),
            (json!({"events": [EVENT]}), "events"),
            (json!({"nonce": "n"}), "nonce"),
            (json!({"jti": null}), "jti"),
            (json!({"sid": null, "sub": null}), "neither"),
        ] {
            let told = checked(&change).unwrap_err();
            assert!(told.contains(wrong), "{change}: {told}");
        }
    }
}
