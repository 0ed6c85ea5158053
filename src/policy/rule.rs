//! A route's own conditions: `roles` and `claims` on the token, `allow` on all that is known.

use std::fmt;

use super::claims::Facts;
use super::expression::{Expression, RequestView};
use super::json::Item;
use super::route::{Params, Pattern};
use super::trace::Trace;
use crate::base::reject::Reason;
use crate::base::section::Section;

/// `[[route]] roles`, `claims` and `allow`: all of them must hold.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    roles: Vec<Role>,
    claims: Vec<(String, Template)>,
    allow: Option<Expression>,
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
    /// Reads the three keys of a route.
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
        Self { roles, claims, allow: read_allow(section, pattern) }
    }

    /// Takes note of the keys where the path is wrong, so that none is called unknown.
    pub fn ignore(section: &Section<'_>) -> Self {
        section.get("roles", Vec::<String>::new());
        section.map("claims");
        section.optional::<String>("allow");
        Self::default()
    }

    /// Nothing is asked.
    pub fn is_empty(&self) -> bool {
        self.roles.is_empty() && self.claims.is_empty() && self.allow.is_none()
    }

    /// Without a token nothing that asks for one holds.
    pub fn check(
        &self,
        facts: Option<&Facts>,
        params: &Params,
        request: &RequestView<'_>,
        trace: &mut Trace,
    ) -> Result<(), Reason> {
        let ok_if = |holds: bool| if holds { Ok(()) } else { Err(Reason::RuleDenied) };
        if !self.roles.is_empty() {
            let is_missing = |role: &&Role| !facts.is_some_and(|facts| role.is_held(facts));
            let missing: Vec<&Role> = self.roles.iter().filter(is_missing).collect();
            let what = || match missing.as_slice() {
                [] => "rule: all roles".to_owned(),
                missing => {
                    format!("rule: without the role {}", join(missing.iter().map(ToString::to_string)))
                }
            };
            trace.step("route.roles", what, ok_if(missing.is_empty()))?;
        }
        if !self.claims.is_empty() {
            let is_wrong = |(path, template): &&(String, Template)| {
                let claim = facts.and_then(|facts| facts.claim(path));
                let wanted = template.fill(params);
                !wanted.is_some_and(|wanted| claim.is_some_and(|claim| says(claim, &wanted)))
            };
            let wrong: Vec<&(String, Template)> = self.claims.iter().filter(is_wrong).collect();
            let told = |(path, template): &&(String, Template)| {
                format!("{path} says not {:?}", template.fill(params).unwrap_or_default())
            };
            let what = || match wrong.as_slice() {
                [] => "rule: all claims".to_owned(),
                wrong => format!("rule: the claim {}", join(wrong.iter().map(told))),
            };
            trace.step("route.claims", what, ok_if(wrong.is_empty()))?;
        }
        if let Some(allow) = &self.allow {
            let allowed = ok_if(allow.allows(facts, params, request));
            trace.step("route.allow", || "rule: the expression".into(), allowed)?;
        }
        Ok(())
    }

    /// Whether it needs the request's headers.
    pub fn reads_headers(&self) -> bool {
        self.allow.as_ref().is_some_and(Expression::reads_headers)
    }
}

fn read_allow(section: &Section<'_>, pattern: &Pattern) -> Option<Expression> {
    let text = section.optional::<String>("allow")?;
    let allow = Expression::compile(&text).map_err(|error| section.problem("allow", error)).ok()?;
    for name in allow.parameters().filter(|name| !pattern.parameters().any(|known| known == *name)) {
        section.problem("allow", format!("params.{name} is no parameter of the path {:?}", pattern.text()));
    }
    Some(allow)
}

fn join(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Realm(role) => f.write_str(role),
            Self::Client { client, role } => write!(f, "{client}:{role}"),
        }
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
        let roles = holder.and_then(|holder| holder.get("roles")).and_then(Item::items);
        roles.is_some_and(|mut roles| roles.any(|held| held.as_str() == Some(role)))
    }
}

/// A claim says a text if it equals it, or is an array that contains it.
fn says(claim: Item<'_>, wanted: &str) -> bool {
    let one = |claim: Item<'_>| claim.scalar() == Some(wanted);
    claim.items().map_or_else(|| one(claim), |mut items| items.any(one))
}

#[cfg(test)]
mod tests {
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
        Facts::said(&claims)
    }

    fn check(toml: &str, org: &str, id: &str) -> Result<(), Reason> {
        let params = [("org".to_owned(), org.to_owned()), ("id".to_owned(), id.to_owned())].into();
        rule(toml).0.check(Some(&facts()), &params, &request(), &mut Trace::Off)
    }

    fn request() -> RequestView<'static> {
        let address = std::net::Ipv4Addr::LOCALHOST.into();
        RequestView { method: "GET", path: "/ws/acme/7/", host: "a", origin: None, address, headers: None }
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
        let check = |toml| rule(toml).0.check(None, &Params::new(), &request(), &mut Trace::Off);
        for toml in ["roles = ['chat']", "claims = { tenant = 'acme' }", "allow = 'has(claims.tenant)'"] {
            assert_eq!(check(toml), Err(Reason::RuleDenied), "{toml}");
        }
        assert_eq!(check(""), Ok(()));
        assert_eq!(check("allow = 'request.method == \"GET\"'"), Ok(()));
    }

    #[test]
    fn all_three_must_hold() {
        let with = |roles: &str, tenant: &str, id: &str| {
            check(
                &format!(
                    "roles = ['{roles}']\nclaims = {{ tenant = '{tenant}' }}\nallow = 'claims.o.id == params.id'"
                ),
                "acme",
                id,
            )
        };
        assert_eq!(with("chat", "{org}", "7"), Ok(()));
        for (roles, tenant, id) in [("x", "{org}", "7"), ("chat", "x", "7"), ("chat", "{org}", "8")] {
            assert_eq!(with(roles, tenant, id), Err(Reason::RuleDenied), "{roles} {tenant} {id}");
        }
        assert!(!rule("roles = ['chat']").0.is_empty());
        assert!(!rule("allow = 'true'").0.is_empty() && rule("").0.is_empty());
    }

    #[test]
    fn an_expression_is_shown_and_its_mistakes_are_told_with_their_place() {
        let read = |toml: &str| {
            let document = Document::parse(toml, std::iter::empty());
            let pattern = Pattern::parse("/ws/{org}/").unwrap();
            Rule::read(&document.root().unwrap(), &pattern);
            let (problems, _, effective) = document.finish();
            let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
            (problems, crate::base::effective::show(&effective))
        };
        let (problems, shown) = read("allow = 'params.org in claims.organization'");
        assert!(
            problems.is_empty() && shown.contains("allow = \"params.org in claims.organization\"\n"),
            "{shown}"
        );
        assert!(!read("").1.contains("allow"));
        for (toml, told) in [
            (
                "\nallow = 'param.org == \"a\"'",
                "line 2: allow = 'param.org == \"a\"': line 1, column 1: unknown variable \"param\"; accepted: claims, params, request",
            ),
            (
                "allow = 'params.room == \"a\"'",
                "line 1: allow = 'params.room == \"a\"': params.room is no parameter of the path \"/ws/{org}/\"",
            ),
            ("allow = true", "line 1: allow = true: accepted: a string"),
        ] {
            assert_eq!(read(toml).0, [told]);
        }
    }

    #[test]
    fn keys_beside_a_wrong_path_are_not_unknown() {
        let document =
            Document::parse("roles = ['a']\nallow = 'nonsense('\n[claims]\na = 'b'", std::iter::empty());
        Rule::ignore(&document.root().unwrap());
        assert_eq!(document.finish().0.len(), 0);
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
            "allow = 'claims.x ='",
            "allow = ''",
        ] {
            assert_eq!(rule(toml).1, 1, "{toml}");
        }
    }
}
