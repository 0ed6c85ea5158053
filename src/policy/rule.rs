//! A route's own conditions on the token: `roles` and `claims`.

use serde_json::Value;

use super::claims::Facts;
use super::route::{Params, Pattern};
use crate::base::reject::Reason;
use crate::base::section::Section;

/// `[[route]] roles` and `claims`: all of them must hold.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    roles: Vec<Role>,
    claims: Vec<(String, Template)>,
}

#[derive(Clone, Debug)]
enum Role {
    Realm(String),
    Client { client: String, role: String },
}

/// Text with `{name}` of path parameters in it.
#[derive(Clone, Debug)]
struct Template(Vec<Piece>);

#[derive(Clone, Debug)]
enum Piece {
    Text(String),
    Parameter(String),
}

impl Template {
    fn parse(text: &str, pattern: &Pattern) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or_else(|| format!("{text:?} lacks a \"}}\""))?;
            if !pattern.parameters().any(|parameter| parameter == name) {
                return Err(format!("{{{name}}} is no parameter of the path {:?}", pattern.text()));
            }
            pieces.push(Piece::Text(before.to_owned()));
            pieces.push(Piece::Parameter(name.to_owned()));
            rest = after;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        Ok(Self(pieces))
    }

    /// `None` if a parameter is missing, so that nothing compares equal to it.
    fn fill(&self, params: &Params) -> Option<String> {
        self.0
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) => Some(text.as_str()),
                Piece::Parameter(name) => params.get(name).map(String::as_str),
            })
            .collect()
    }
}

impl Rule {
    /// Reads both keys of a route.
    pub fn read(section: &Section<'_>, pattern: &Pattern) -> Self {
        let roles = section.get("roles", Vec::<String>::new());
        if roles.iter().any(|role| role.is_empty() || role.starts_with(':') || role.ends_with(':')) {
            section.problem("roles", "accepted: names of realm roles, or \"client:role\"");
        }
        let roles = roles
            .into_iter()
            .map(|role| match role.split_once(':') {
                Some((client, role)) => Role::Client { client: client.to_owned(), role: role.to_owned() },
                None => Role::Realm(role),
            })
            .collect();
        let mut claims = Vec::new();
        for (path, text) in section.map_or("claims", &[]) {
            match Template::parse(&text, pattern) {
                Ok(template) => claims.push((path, template)),
                Err(error) => section.problem(
                    "claims",
                    format!("{path}: {error}; accepted: text with {{name}} of the path's parameters"),
                ),
            }
        }
        Self { roles, claims }
    }

    /// Takes note of both keys where the path is wrong, so that neither is called unknown.
    pub fn ignore(section: &Section<'_>) -> Self {
        section.get("roles", Vec::<String>::new());
        section.map("claims");
        Self::default()
    }

    /// Nothing is asked of the token.
    pub fn is_empty(&self) -> bool {
        self.roles.is_empty() && self.claims.is_empty()
    }

    /// Without a token nothing that asks for one holds.
    pub fn check(&self, facts: Option<&Facts>, params: &Params) -> Result<(), Reason> {
        if self.is_empty() {
            return Ok(());
        }
        let facts = facts.ok_or(Reason::RuleDenied)?;
        let holds = self.roles.iter().all(|role| role.is_held(facts))
            && self.claims.iter().all(|(path, template)| {
                let wanted = template.fill(params);
                wanted.is_some_and(|wanted| facts.claim(path).is_some_and(|claim| says(claim, &wanted)))
            });
        if holds { Ok(()) } else { Err(Reason::RuleDenied) }
    }
}

impl Role {
    fn is_held(&self, facts: &Facts) -> bool {
        // Member by member: a client id may have dots, so no path is built of it.
        let (holder, role) = match self {
            Self::Realm(role) => (facts.claims.get("realm_access"), role),
            Self::Client { client, role } => {
                (facts.claims.get("resource_access").and_then(|access| access.get(client)), role)
            }
        };
        let roles = holder.and_then(|holder| holder.get("roles")).and_then(Value::as_array);
        roles.is_some_and(|roles| roles.iter().any(|held| held.as_str() == Some(role)))
    }
}

/// A claim says a text if it equals it, or is an array that contains it.
fn says(claim: &Value, wanted: &str) -> bool {
    match claim {
        Value::String(text) => text == wanted,
        Value::Number(number) => number.to_string().as_str() == wanted,
        Value::Bool(flag) => (if *flag { "true" } else { "false" }) == wanted,
        Value::Array(items) => items.iter().any(|item| !item.is_array() && says(item, wanted)),
        Value::Null | Value::Object(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::jwt::Jwt;
    use super::*;
    use crate::base::section::Document;
    use serde_json::json;

    fn rule(toml: &str) -> (Rule, usize) {
        let document = Document::parse(toml, std::iter::empty());
        let pattern = Pattern::parse("/ws/{org}/{id}/").unwrap();
        let rule = Rule::read(&document.root().unwrap(), &pattern);
        (rule, document.finish().0.len())
    }

    fn facts() -> Facts {
        let claims = json!({
            "iss": "x", "organization": ["acme", "globex"], "tenant": "acme", "level": 3, "strict": true, "o": {"id": "7"},
            "realm_access": {"roles": ["chat"]}, "resource_access": {"my.app": {"roles": ["editor"]}},
        });
        let claims = claims.as_object().unwrap().clone();
        Facts::of(Jwt { signed: "", signature: vec![], algorithm: None, kid: None, is_at: false, claims })
            .unwrap()
    }

    fn check(toml: &str, org: &str, id: &str) -> Result<(), Reason> {
        let params = [("org".to_owned(), org.to_owned()), ("id".to_owned(), id.to_owned())].into();
        rule(toml).0.check(Some(&facts()), &params)
    }

    #[test]
    fn claims_equal_or_contain_the_parameter() {
        for claims in [
            "{ organization = '{org}' }",
            "{ tenant = '{org}' }",
            "{ 'o.id' = '{id}' }",
            "{ level = '3', strict = 'true' }",
        ] {
            assert_eq!(check(&format!("claims = {claims}"), "acme", "7"), Ok(()), "{claims}");
        }
        for (org, id) in [("initech", "7"), ("acm", "7"), ("acme ", "7"), ("ACME", "7"), ("", "7")] {
            assert_eq!(check("claims = { organization = '{org}' }", org, id), Err(Reason::RuleDenied));
        }
        assert_eq!(
            check("claims = { tenant = '{org}', 'o.id' = '{id}' }", "acme", "8"),
            Err(Reason::RuleDenied)
        );
        assert_eq!(check("claims = { missing = '{org}' }", "acme", "7"), Err(Reason::RuleDenied));
        assert_eq!(check("claims = { o = '{org}' }", "acme", "7"), Err(Reason::RuleDenied));
    }

    #[test]
    fn all_roles_are_needed() {
        assert_eq!(check("roles = ['chat', 'my.app:editor']", "", ""), Ok(()));
        assert_eq!(check("roles = ['chat', 'admin']", "", ""), Err(Reason::RuleDenied));
        assert_eq!(check("roles = ['editor']", "", ""), Err(Reason::RuleDenied));
        assert_eq!(check("roles = ['my.app:chat']", "", ""), Err(Reason::RuleDenied));
    }

    #[test]
    fn without_a_token_nothing_holds() {
        assert_eq!(rule("roles = ['chat']").0.check(None, &Params::new()), Err(Reason::RuleDenied));
        assert_eq!(rule("").0.check(None, &Params::new()), Ok(()));
    }

    #[test]
    fn wrong_rules_are_configuration_errors() {
        for toml in [
            "claims = { a = '{room}' }",
            "claims = { a = '{org' }",
            "claims = { a = 1 }",
            "roles = ['']",
            "roles = 'chat'",
            "roles = [':x']",
        ] {
            assert_eq!(rule(toml).1, 1, "{toml}");
        }
    }
}
