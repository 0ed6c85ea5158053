//! A route's condition in CEL, `[[route]] allow`, for what `roles` and `claims` cannot say. Whoever fills
//! the token and the request must not choose what it costs, so it is checked before it runs: names,
//! depth, and how much input it can afford. All else that goes wrong is a denial.

mod check;

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use cel::common::ast::{IdedExpr, SourceInfo};
use cel::common::types::{CelMap, CelMapKey, CelString};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use cel::parser::{ParseErrors, Parser};
use cel::{Context, Env, Value};
use http::HeaderMap;
use percent_encoding::percent_decode_str;

use self::check::{Extent, HIDDEN, Reads, check};
use super::claims::{Converted, Facts};
use super::cost::{BUDGET, Weights, steps, weight};
use super::route::Params;

/// The parser's own stack grows with the text.
const MAX_TEXT: usize = 4096;

/// Brackets within brackets, and branches within branches.
const MAX_NESTING: u16 = 32;

/// What every expression must be able to afford: the token of a user with dozens of roles.
const ORDINARY: Weights = Weights { claims: 200, params: 16, request: 100 };

/// The functions of CEL. Building them costs more than a hundred rules do.
static FUNCTIONS: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// A condition that has been checked.
#[derive(Clone)]
pub struct Expression(Arc<Checked>);

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

#[derive(Debug)]
struct Checked {
    text: String,
    root: IdedExpr,
    reads: Reads,
}

/// What a rule may know of a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    pub method: &'a str,
    /// As it arrived, without its query.
    pub path: &'a str,
    pub host: &'a str,
    pub origin: Option<&'a str>,
    pub address: IpAddr,
    /// Those that carry tokens may be among them: no rule sees these.
    pub headers: Option<&'a HeaderMap>,
}

impl Expression {
    /// Compiles; the error says what is wrong, where, and what is accepted.
    pub fn compile(text: &str) -> Result<Self, String> {
        if text.len() > MAX_TEXT {
            return Err(format!("is longer than {MAX_TEXT} bytes"));
        }
        let parser = Parser::new().max_recursion_depth(MAX_NESTING);
        let (root, places) = parser.parse_with_source_info(text).map_err(|errors| told(&errors))?;
        let reads = check(&root)
            .map_err(|wrong| format!("{}: {}", place(&places, wrong.node, &wrong.name), wrong.message))?;
        let (steps, values) = (steps(&root, ORDINARY), ORDINARY.claims);
        if steps > BUDGET {
            return Err(format!(
                "could take {steps} steps for a token of {values} values, more than {BUDGET}; accepted: \
                 fewer loops, smaller results"
            ));
        }
        Ok(Self(Arc::new(Checked { text: text.to_owned(), root, reads })))
    }

    /// Exactly `true`, within its cost.
    pub fn allows(&self, facts: Option<&Facts>, params: &Params, request: &RequestView<'_>) -> bool {
        let Checked { root, reads, .. } = self.0.as_ref();
        let mut weights = Weights::default();
        let scope = Scope {
            claims: facts.filter(|_| reads.claims).map(Facts::converted),
            params: reads.params.then(|| {
                map(params.iter().map(|(name, value)| (name.as_str(), text(value, &mut weights.params))))
            }),
            request: match reads.request {
                Extent::Nothing => None,
                extent => Some(request.values(extent == Extent::WithHeaders, &mut weights.request)),
            },
        };
        weights.claims = scope.claims.map_or(1, |claims| claims.weight);
        if steps(root, weights) > BUDGET {
            return false;
        }
        let mut context = Context::with_env(Arc::clone(&FUNCTIONS));
        context.set_variable_resolver(&scope);
        matches!(Value::resolve(root, &context), Ok(Value::Bool(true)))
    }

    /// Whether it reads headers; a whole `request` counts.
    pub fn reads_headers(&self) -> bool {
        self.0.reads.request == Extent::WithHeaders
    }

    /// The path's parameters that it names.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.0.reads.parameters.iter().map(String::as_str)
    }
}

/// The variables of one evaluation, lent to it.
struct Scope<'a> {
    claims: Option<&'a Converted>,
    params: Option<CelMap<'a>>,
    request: Option<CelMap<'a>>,
}

impl VariableResolver for Scope<'_> {
    fn resolve<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'b>> {
        let value: &(dyn Val + 'b) = match name {
            "claims" => &self.claims?.claims,
            "params" => self.params.as_ref()?,
            "request" => self.request.as_ref()?,
            _ => return None,
        };
        Some(CowVal::Borrowed(value))
    }
}

type Boxed<'a> = Box<dyn Val + 'a>;

fn map<'a>(entries: impl Iterator<Item = (&'a str, Boxed<'a>)>) -> CelMap<'a> {
    entries.map(|(name, value)| (CelMapKey::from(name), value)).collect::<HashMap<_, _>>().into()
}

fn text<'a>(value: impl Into<std::borrow::Cow<'a, str>>, sum: &mut u64) -> Boxed<'a> {
    let value = value.into();
    *sum += 1 + weight(value.len());
    Box::new(CelString::from(value))
}

impl<'a> RequestView<'a> {
    fn values(&self, with_headers: bool, input: &mut u64) -> CelMap<'a> {
        // One spelling each, or a rule that excludes something could be got round by another one.
        let path = percent_decode_str(self.path).decode_utf8_lossy();
        let mut values = vec![
            ("method", text(self.method, input)),
            ("path", text(path, input)),
            ("host", text(self.host.to_ascii_lowercase(), input)),
            ("origin", text(self.origin.unwrap_or_default(), input)),
            ("address", text(self.address.to_canonical().to_string(), input)),
        ];
        if with_headers {
            values.push(("headers", Box::new(self.shown_headers(input))));
        }
        map(values.into_iter())
    }

    fn shown_headers(&self, input: &mut u64) -> CelMap<'a> {
        let names = self.headers.into_iter().flat_map(|headers| headers.keys().map(move |n| (headers, n)));
        let shown = names.filter(|(_, name)| !HIDDEN.contains(&name.as_str()));
        map(shown.map(|(headers, name)| {
            let lines: Vec<_> =
                headers.get_all(name).iter().map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
            *input += weight(name.as_str().len());
            (name.as_str(), text(lines.join(", "), input))
        }))
    }
}

/// Where a node is written. A call's place is its bracket; `name` stands in front of it.
fn place(places: &SourceInfo, node: u64, name: &str) -> String {
    let start = places.offset_for(node).map_or(0, |(start, _)| start as usize);
    let before = places.source.get(..start).unwrap_or(&places.source);
    let before = if name.is_empty() { before } else { before.strip_suffix(name).unwrap_or(before) };
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("line {line}, column {column}")
}

/// The first of the parser's errors: those that follow are guesses.
fn told(errors: &ParseErrors) -> String {
    let Some(error) = errors.errors.first() else { return "is no expression".to_owned() };
    let message = error.msg.strip_prefix("Syntax error: ").unwrap_or(&error.msg);
    // It comes as the debug form of some inner error.
    if errors.errors.iter().any(|error| error.msg.contains("Recursion limit")) {
        return format!("is nested deeper than {MAX_NESTING} levels");
    }
    let (line, column) = (error.pos.0.max(1), error.pos.1.max(1));
    let message: String = message.chars().take(200).collect();
    format!("line {line}, column {column}: {}; accepted: a condition in CEL", message.replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use http::header::{AUTHORIZATION, COOKIE, HeaderName, PROXY_AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
    use proptest::prelude::*;
    use serde_json::{Value as Json, json};

    fn facts(claims: &Json) -> Facts {
        let mut claims = claims.as_object().unwrap().clone();
        claims.insert("iss".into(), "https://sso/realms/demo".into());
        Facts::said(&claims.into())
    }

    fn ordinary() -> Facts {
        facts(&json!({
            "sub": "7f", "exp": 1_900_000_000, "big": u64::MAX, "ratio": 0.5, "nothing": null, "on": true, "no": false,
            "organization": ["acme", "globex"], "tenant": "acme", "name": "Zoë 😀", "https://x/y": "z", "zero": 0,
            "least": i64::MIN, "realm_access": {"roles": ["chat", "editor"]},
            "orgs": [{"id": "acme", "roles": ["admin", "user"]}, {"id": "globex", "roles": ["user"]}, {"id": "x"}],
        }))
    }

    fn extraordinary() -> Facts {
        let names: Vec<_> = (0..90).map(|i| "y".repeat(i)).collect();
        let orgs: Vec<_> = (0..90).map(|i| json!({ "id": i, "roles": ["a", i, 0.5] })).collect();
        let text = "x".repeat(3000);
        facts(&json!({ "a": names, "organization": names, "orgs": orgs, "tenant": text, "least": i64::MIN }))
    }

    fn params() -> Params {
        [("org".to_owned(), "acme".to_owned())].into()
    }

    fn request(headers: Option<&HeaderMap>) -> RequestView<'_> {
        RequestView {
            method: "GET",
            path: "/ws/caf%c3%a9/",
            host: "Chat.Example.com:8443",
            origin: Some("https://app.example.com"),
            address: "::ffff:192.0.2.7".parse().unwrap(),
            headers,
        }
    }

    fn headers(lines: &[(HeaderName, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    fn allows_with(text: &str, facts: Option<&Facts>) -> bool {
        Expression::compile(text).unwrap_or_else(|error| panic!("{text}: {error}")).allows(
            facts,
            &params(),
            &request(None),
        )
    }

    fn allows(text: &str) -> bool {
        allows_with(text, Some(&ordinary()))
    }

    #[test]
    fn what_is_true_is_allowed() {
        for text in [
            "true",
            "params.org in claims.organization",
            "claims.tenant == params.org && claims['tenant'] == params['org']",
            "'chat' in claims.realm_access.roles && !('admin' in claims.realm_access.roles)",
            "['chat', 'editor'].all(r, r in claims.realm_access.roles)",
            "claims.realm_access.roles.exists_one(r, r.startsWith('ch'))",
            "claims.realm_access.roles.filter(r, r.endsWith('or')).size() == 1",
            "claims.realm_access.roles.map(r, 'x:' + r) == ['x:chat', 'x:editor']",
            "claims.orgs.exists(o, o.id == params.org && o.roles.exists(r, r == 'admin'))",
            "has(claims.tenant) && !has(claims.missing) && 'tenant' in claims && !('x' in claims)",
            "claims['https://x/y'] == 'z' && claims.name.contains('ë 😀') && size(claims.name) == 5",
            "claims.name == 'Zoë \\U0001F600'",
            "claims.on && !claims.no && claims.nothing == null",
            "claims.exp > 1000000000 && claims.exp == int('1900000000') && type(claims.exp) == int",
            "claims.big == 18446744073709551615u && type(claims.big) == uint",
            "claims.ratio < 1 && type(claims.ratio) == double && claims.zero == 0.0",
            "type(claims.organization) == list ? 'acme' in claims.organization : claims.organization == 'acme'",
            "request.method == 'GET' && request.path == '/ws/café/' && request.origin.startsWith('https://')",
            "bool('true') && bytes('a') == b'a' && double(1) == 1.0 && dyn(1) == 1 && uint('1') == 1u && string(1) == '1'",
            "type(null) == null_type && type(type(1)) == type && type(b'') == bytes && type({}) == map && type('') == string && type(true) == bool",
            "request.host == 'chat.example.com:8443' && request.address == '192.0.2.7'",
            "size(request.headers) == 0 && size(params) == 1",
            // What cannot be said does not matter where the other side decides.
            "claims.missing == 1 || claims.on",
            "// who\n  claims.on // and why\n",
        ] {
            assert!(allows(text), "{text}");
        }
    }

    #[test]
    fn all_else_is_denied() {
        for text in [
            "false",
            "params.org == 'globex'",
            "'acm' in claims.organization",
            // Missing, null, and of another type.
            "claims.missing == 'acme'",
            "params.org in claims.missing",
            "claims.missing.deeper",
            "claims.nothing.deeper == 1",
            "params.org in claims.nothing",
            "params.org in claims.tenant",
            "claims.tenant > 1",
            "claims.tenant.roles.exists(r, r == 'x')",
            "claims.exp.startsWith('1')",
            "claims.tenant[0] == 'a'",
            "claims.orgs.all(o, 'user' in o.roles)",
            "claims.organization[2] == 'x'",
            "claims.organization[-1] == 'x'",
            "claims.organization[0.5] == 'x'",
            "int(claims.tenant) == 1",
            "claims[claims.organization] == 1",
            "{claims.organization: 1}.size() == 1",
            // No boolean.
            "claims.tenant",
            "claims.exp",
            "claims.nothing",
            "claims.organization",
            "dyn('true')",
            "claims.on ? claims.tenant : true",
            "claims.on && claims.tenant",
            // Arithmetic that has no result.
            "claims.least - 1 < 0",
            "-claims.least > 0",
            "claims.least / -1 > 0",
            "claims.least % -1 == 0",
            "claims.exp / claims.zero == 0",
            "claims.exp % claims.zero == 0",
            "claims.exp * 9223372036854775807 > 0",
            "9223372036854775807 + claims.exp > 0",
            "uint(claims.least) == 0u",
            "int(claims.big) > 0",
            // Headers are unknown here.
            "request.headers['x-org'] == ''",
        ] {
            assert!(!allows(text), "{text}");
        }
    }

    #[test]
    fn without_a_token_there_are_no_claims() {
        for text in
            ["claims.on", "has(claims.on)", "!has(claims.on)", "claims == claims", "size(claims) == 0"]
        {
            assert!(!allows_with(text, None), "{text}");
        }
        assert!(allows_with("params.org == 'acme' && request.method == 'GET'", None));
        assert!(allows_with("request.method == 'GET' || claims.on", None));
    }

    #[test]
    fn headers_are_shown_without_tokens() {
        let map = headers(&[
            (HeaderName::from_static("x-org"), "a"),
            (HeaderName::from_static("x-org"), "b"),
            (AUTHORIZATION, "Bearer secret"),
            (COOKIE, "sid=secret"),
            (SEC_WEBSOCKET_PROTOCOL, "bearer, secret"),
            (PROXY_AUTHORIZATION, "Basic secret"),
        ]);
        let allows = |text: &str| {
            let expression = Expression::compile(text).unwrap();
            assert!(expression.reads_headers(), "{text}");
            expression.allows(None, &Params::new(), &request(Some(&map)))
        };
        assert!(allows("request.headers['x-org'] == 'a, b' && request['headers'].size() == 1"));
        assert!(allows("request.headers.all(name, !request.headers[name].contains('secret'))"));
        assert!(allows("has(request.headers.host) || 'headers' in request"));
        assert!(!allows("request.headers['x-other'] == ''"));
        assert!(allows("[request].exists(r, r.headers['x-org'] == 'a, b')"));
        for text in
            ["request.path == ''", "request['path'] == ''", "claims.headers == ''", "params.org == ''"]
        {
            assert!(!Expression::compile(text).unwrap().reads_headers(), "{text}");
        }
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (text, place, what) in [
            ("claims.x ==", "line 1, column 12", "<EOF>"),
            ("", "line 1, column 1", "<EOF>"),
            ("claims.x = 'a'", "line 1, column 10", "'= '"),
            ("claims.on &&\n  clams.x == 1", "line 2, column 3", "unknown variable \"clams\""),
            ("'é😀' == claims.x || size(org) == 1", "line 1, column 26", "unknown variable \"org\""),
            ("claims.a.exists(r, r == 1) && r == 2", "line 1, column 31", "unknown variable \"r\""),
            (".claims.on", "line 1, column 2", "unknown variable \".claims\""),
            ("claims.name.matches('^a')", "line 1, column 13", "\"matches\" is called on a value"),
            ("true && lower(claims.a) == ''", "line 1, column 9", "\"lower\" is called by itself"),
            ("claims.a.exists(r)", "line 1, column 10", "with 1 argument;"),
            ("startsWith(claims.a, 'x')", "line 1, column 1", "\"startsWith\" is called by itself"),
            ("timestamp(claims.exp) > timestamp(0)", "line 1, column 1", "\"timestamp\""),
            ("optional.none().hasValue()", "line 1, column 17", "\"hasValue\""),
            ("claims.?x == 1", "line 1, column 7", "unsupported syntax"),
            ("has(claims)", "line 1, column 5", "has()"),
            ("claims.all(1, true)", "line 1, column 12", "simple name"),
            ("claims.a.all(claims, true)", "line 1, column 13", "variable of a loop"),
            ("request.query == ''", "line 1, column 8", "request.query; accepted: address, headers"),
            ("request['query'] == ''", "line 1, column 8", "request.query"),
            ("request.headers['X-Org'] == ''", "line 1, column 16", "lower-case"),
            ("request.headers.authorization == ''", "line 1, column 16", "never shown"),
            ("request['headers']['cookie'] == ''", "line 1, column 19", "never shown"),
            ("Org{a: 1} == 1", "line 1, column 4", "messages do not exist"),
            ("'true'", "line 1, column 1", "is a text"),
            ("claims.on && 1", "line 1, column 14", "is a number"),
            ("claims.a ? claims.b : ['x']", "line 1, column 23", "is a list"),
            ("!(claims.a + 'x')", "line 1, column 12", "is a sum"),
            ("claims.a.filter(r, r == 1)", "line 1, column 16", "is a list"),
            ("size(claims.a)", "line 1, column 1", "is a number"),
            ("params", "line 1, column 1", "is a map"),
            (
                "claims.a.all(a, a.all(b, b.all(c, c == 1)))",
                "line 1, column 31",
                "more than 2 loops within each other",
            ),
        ] {
            let error = Expression::compile(text).expect_err(text);
            assert!(error.starts_with(place) && error.contains(what), "{text}: {error}");
        }
    }

    #[test]
    fn no_text_takes_more_stack_than_a_thread_has() {
        let inner = |n: usize, (before, middle, after): (&str, &str, &str)| {
            format!("{}{middle}{}", before.repeat(n), after.repeat(n))
        };
        let shapes = [
            ("(", "true", ")"),
            ("[", "1", "]"),
            ("{1:", "1", "}"),
            ("claims[", "1", "]"),
            ("size(", "1", ")"),
            ("1+claims.a.f(", "1", ")"),
            ("[1].all(x,", "true", ")"),
            ("(", "", ""),
            ("A{b:", "", ""),
            ("claims.a?true:", "true", ""),
            ("1<", "1", ""),
            ("", "claims", ".a"),
            ("", "claims", "[0]"),
            ("", "claims", ".f()"),
            ("", "[1]", ".map(x,x)"),
            ("!", "true", ""),
            ("-", "1", ""),
            ("true&&", "true", ""),
        ];
        let small = std::thread::Builder::new().stack_size(3 << 19);
        let run = small.spawn(move || {
            for shape in shapes {
                let width = shape.0.len() + shape.2.len();
                let fits = (MAX_TEXT - shape.1.len()) / width;
                for n in [20, 31, 60, 90, fits] {
                    // Deep brackets around a long row: both take stack at once.
                    let row = "1<".repeat((MAX_TEXT - inner(20, shape).len()) / 2);
                    let row_inside = inner(20, (shape.0, &format!("{row}{}", shape.1), shape.2));
                    for text in [inner(n.min(fits), shape), row_inside] {
                        assert!(text.len() <= MAX_TEXT);
                        if let Ok(expression) = Expression::compile(&text) {
                            expression.allows(Some(&ordinary()), &params(), &request(None));
                        }
                    }
                }
            }
        });
        run.unwrap().join().unwrap();
        let told = |text: String| Expression::compile(&text).unwrap_err();
        assert_eq!(told(inner(40, ("(", "true", ")"))), "is nested deeper than 32 levels");
        assert!(told(inner(100, ("1+", "1 == 1", ""))).contains("has more than 64 levels"));
        assert_eq!(told(" ".repeat(MAX_TEXT) + "true"), "is longer than 4096 bytes");
        assert!(Expression::compile(&inner(400, ("true && ", "true", ""))).is_ok());
    }

    #[test]
    fn what_claims_could_make_too_costly_is_denied() {
        let of = |n: usize| {
            let names: Vec<_> = (0..n).map(|i| format!("group-{i}")).collect();
            facts(&json!({ "a": names, "b": names, "on": true }))
        };
        let (few, many) = (of(50), of(2000));
        let one = "!claims.a.exists(x, x == params.org)";
        let two = "!claims.a.exists(x, claims.b.exists(y, x + 'x' == y))";
        let row = "claims.a.filter(x, x != 'a').map(x, x + 'b').all(x, x.startsWith('g'))";
        for text in [one, two, row] {
            assert!(allows_with(text, Some(&few)), "{text}");
        }
        assert!(allows_with(one, Some(&many)) && allows_with(row, Some(&many)));
        assert!(!allows_with(two, Some(&many)));
        // Nothing that is not read counts.
        let alone = "!['a'].exists(x, ['b'].exists(y, x + params.org == y))";
        assert!(allows_with(alone, Some(&many)));
        // Texts count by their length, of the request too.
        let by_path = Expression::compile("!claims.a.exists(x, request.path.contains(x))").unwrap();
        let long = format!("/{}", "x".repeat(60_000));
        for (path, allowed) in [("/", true), (long.as_str(), false)] {
            let request = RequestView { path, ..request(None) };
            assert_eq!(by_path.allows(Some(&many), &params(), &request), allowed);
        }
    }

    #[test]
    fn what_grows_without_bound_is_a_mistake() {
        let doubled = format!("[claims.a]{}.size() == 1", ".map(x, x + x)".repeat(30));
        let copied = format!("[claims]{}.size() == 1", ".map(x, [x, x])".repeat(30));
        let wide = format!("claims.a.all(x, claims.b.all(y, {} != ''))", vec!["x + y"; 30].join(" + "));
        for text in [doubled, copied, wide] {
            assert!(Expression::compile(&text).unwrap_err().contains("steps for a token of"), "{text}");
        }
    }

    #[test]
    fn an_expression_is_cheap_to_share_and_keeps_its_text() {
        let expression = Expression::compile("params.org in claims.organization").unwrap();
        assert_eq!(format!("{expression:?}"), "params.org in claims.organization");
        assert_eq!(expression.parameters().collect::<Vec<_>>(), ["org"]);
    }

    /// Text that mostly parses, of everything that the checks know.
    fn expressions() -> impl Strategy<Value = String> {
        let leaf = prop::sample::select(vec![
            "claims",
            "claims.a",
            "claims.orgs",
            "claims.tenant",
            "claims.least",
            "claims.big",
            "claims.ratio",
            "claims.organization",
            "claims.nothing",
            "params.org",
            "params",
            "request.path",
            "request",
            "x",
            "request.headers",
            "1",
            "-1",
            "0",
            "9223372036854775807",
            "-9223372036854775808",
            "1u",
            "0.5",
            "1e308",
            "'a'",
            "'ë😀'",
            "b'\\xff'",
            "null",
            "true",
            "false",
            "[]",
            "{}",
            "[1, 'a']",
            "{'a': 1}",
            "{1: 2}",
            "type(1)",
            "int",
            "r'\\'",
            "\"\"\"x\"\"\"",
            "0x7f",
            "request.headers['x-org']",
        ]);
        leaf.prop_map(str::to_owned).prop_recursive(5, 24, 3, |inner| {
            let pair = (inner.clone(), inner.clone());
            let sign = prop::sample::select(vec![
                "+", "-", "*", "/", "%", "==", "!=", "<", ">=", "&&", "||", " in ",
            ]);
            let function = prop::sample::select(vec![
                "size", "string", "int", "uint", "double", "bool", "bytes", "dyn", "type", "-", "!",
            ]);
            let method = prop::sample::select(vec!["contains", "startsWith", "endsWith"]);
            let of_loop = prop::sample::select(vec!["all", "exists", "exists_one", "map", "filter"]);
            prop_oneof![
                (pair.clone(), sign).prop_map(|((a, b), sign)| format!("({a}){sign}({b})")),
                (inner.clone(), function).prop_map(|(a, function)| format!("{function}({a})")),
                (pair.clone(), method).prop_map(|((a, b), method)| format!("({a}).{method}({b})")),
                (pair.clone(), of_loop).prop_map(|((a, b), name)| format!("({a}).{name}(x, {b})")),
                pair.clone().prop_map(|(a, b)| format!("({a})[{b}]")),
                pair.clone().prop_map(|(a, b)| format!("[{a}, {b}]")),
                pair.clone().prop_map(|(a, b)| format!("{{{a}: {b}}}")),
                (pair, inner.clone()).prop_map(|((a, b), c)| format!("({a}) ? ({b}) : ({c})")),
                inner.clone().prop_map(|a| format!("has(({a}).id)")),
                inner.prop_map(|a| format!("({a}).roles")),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,40}|[a-z.()\\[\\]{}'\"?:,!&|=<>+*/%\\\\ 0-9\n-]{0,40}") {
            if let Ok(expression) = Expression::compile(&text) {
                expression.allows(Some(&ordinary()), &params(), &request(None));
            }
        }

        #[test]
        fn no_expression_panics_or_takes_long(text in expressions()) {
            let headers = headers(&[(HeaderName::from_static("x-org"), "a")]);
            if let Ok(expression) = Expression::compile(&text) {
                expression.allows(None, &Params::new(), &request(None));
                for facts in [ordinary(), extraordinary()] {
                    let before = tokio::time::Instant::now();
                    expression.allows(Some(&facts), &params(), &request(Some(&headers)));
                    prop_assert!(before.elapsed() < Duration::from_secs(5));
                }
            }
        }

        #[test]
        fn a_row_of_expressions_with_a_fault_in_it_panics_neither(
            text in expressions(), at in 0_usize..60, fault in "\\PC"
        ) {
            let mut broken: Vec<char> = text.chars().collect();
            let at = at.min(broken.len());
            broken.splice(at..(at + 1).min(broken.len()), fault.chars());
            let _ = Expression::compile(&broken.into_iter().collect::<String>()).is_ok();
        }
    }
}
