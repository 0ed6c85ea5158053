//! Which route a path belongs to. Patterns are exact, `{name}` stands for one whole segment, a final
//! `/*` for this path and all below. The most specific one wins, whatever the order in the file:
//! compared segment by segment, a literal beats a parameter beats `/*`.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Parameter(String),
}

/// A checked path pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    parts: Vec<Part>,
    /// Ends in `/*`.
    below: bool,
}

impl Pattern {
    /// `/*`: every path.
    pub fn everything() -> Self {
        Self { text: "/*".into(), parts: Vec::new(), below: true }
    }

    /// Reads a pattern; the error says what is accepted.
    pub fn parse(text: &str) -> Result<Self, String> {
        const ACCEPTED: &str = "accepted: a path such as \"/ws/events/{org_id}/\", \"/api/*\" or \"/*\"";
        let rest = text.strip_prefix('/').ok_or_else(|| format!("starts with no \"/\"; {ACCEPTED}"))?;
        let (rest, below) = match rest.strip_suffix('*').map(|rest| (rest, rest.strip_suffix('/'))) {
            None => (Some(rest), false),
            Some(("", _)) => (None, true),
            Some((_, Some(rest))) => (Some(rest), true),
            Some((_, None)) => return Err(format!("\"*\" stands only as a whole last segment; {ACCEPTED}")),
        };
        let mut parts: Vec<Part> = Vec::new();
        for segment in rest.into_iter().flat_map(|rest| rest.split('/')) {
            let part = match segment.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
                Some(name) if is_name(name) => Part::Parameter(name.to_owned()),
                None if !segment.contains(['{', '}', '*', '?', '#', '\\', '%']) => {
                    Part::Literal(segment.to_owned())
                }
                _ => {
                    return Err(format!(
                        "the segment {segment:?} is neither plain text (decoded) nor one {{name}}; {ACCEPTED}"
                    ));
                }
            };
            if matches!(&part, Part::Literal(text) if text == "." || text == "..") {
                return Err(format!("dot segments never arrive; {ACCEPTED}"));
            }
            if matches!(part, Part::Parameter(_)) && parts.contains(&part) {
                return Err(format!("the parameter {segment} occurs twice"));
            }
            parts.push(part);
        }
        let empty = |part: &Part| matches!(part, Part::Literal(text) if text.is_empty());
        let inner = parts.len().saturating_sub(usize::from(!below));
        if parts.iter().take(inner).any(empty) {
            return Err(format!("empty segments never arrive; {ACCEPTED}"));
        }
        Ok(Self { text: text.to_owned(), parts, below })
    }

    /// As configured.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Names of its parameters.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Parameter(name) => Some(name.as_str()),
            Part::Literal(_) => None,
        })
    }

    /// Whether both match exactly the same paths, so that none is more specific.
    pub fn ties_with(&self, other: &Self) -> bool {
        self.compare(other) == Ordering::Equal
    }

    /// `Less` = more specific. For patterns that cannot match the same path any total order will do.
    fn compare(&self, other: &Self) -> Ordering {
        for pair in self.parts.iter().zip(&other.parts) {
            let order = match pair {
                (Part::Literal(a), Part::Literal(b)) => a.cmp(b),
                (Part::Literal(_), Part::Parameter(_)) => Ordering::Less,
                (Part::Parameter(_), Part::Literal(_)) => Ordering::Greater,
                (Part::Parameter(_), Part::Parameter(_)) => Ordering::Equal,
            };
            if order != Ordering::Equal {
                return order;
            }
        }
        other.parts.len().cmp(&self.parts.len()).then(self.below.cmp(&other.below))
    }

    fn matches(&self, segments: &[&str]) -> bool {
        let enough =
            if self.below { segments.len() >= self.parts.len() } else { segments.len() == self.parts.len() };
        enough
            && self.parts.iter().zip(segments).all(|(part, segment)| match part {
                Part::Literal(text) => text == segment,
                Part::Parameter(_) => !segment.is_empty(),
            })
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Path parameters, percent-decoded.
pub type Params = BTreeMap<String, String>;

/// All routes with what belongs to each.
#[derive(Clone, Debug, Default)]
pub struct Routes<T> {
    /// Most specific first.
    routes: Vec<(Pattern, T)>,
}

impl<T> Routes<T> {
    /// Sorts the routes; the caller has refused ties.
    pub fn new(mut routes: Vec<(Pattern, T)>) -> Self {
        routes.sort_by(|(a, _), (b, _)| a.compare(b));
        Self { routes }
    }

    /// What belongs to each of them.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.routes.iter().map(|(_, value)| value)
    }

    /// The route of a path. The path is one that `policy::request` has let through: it is matched as
    /// the backend will decode it, so that no second spelling falls into another route.
    pub fn find(&self, path: &str) -> Option<(&T, Params)> {
        let decoded = percent_decode_str(path).decode_utf8_lossy();
        let segments: Vec<&str> = decoded.strip_prefix('/')?.split('/').collect();
        let (pattern, value) = self.routes.iter().find(|(pattern, _)| pattern.matches(&segments))?;
        let params = pattern.parts.iter().zip(&segments);
        let params = params.filter_map(|(part, segment)| match part {
            Part::Parameter(name) => Some((name.clone(), (*segment).to_owned())),
            Part::Literal(_) => None,
        });
        Some((value, params.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(patterns: &[&str]) -> Routes<String> {
        Routes::new(patterns.iter().map(|p| (Pattern::parse(p).unwrap(), (*p).to_owned())).collect())
    }

    #[test]
    fn the_most_specific_route_wins_in_any_order() {
        let mut patterns =
            ["/*", "/ws/*", "/ws/{room}/", "/ws/admin/", "/ws/{room}/{id}", "/ws/admin/*", "/"];
        for _ in 0..patterns.len() {
            patterns.rotate_left(1);
            let routes = routes(&patterns);
            for (path, route) in [
                ("/", "/"),
                ("/x", "/*"),
                ("/ws", "/ws/*"),
                ("/ws/", "/ws/*"),
                ("/ws/a", "/ws/*"),
                ("/ws/a/", "/ws/{room}/"),
                ("/ws/admin/", "/ws/admin/"),
                ("/ws/admin", "/ws/admin/*"),
                ("/ws/admin/x", "/ws/admin/*"),
                ("/ws/a/7", "/ws/{room}/{id}"),
                ("/ws/a/7/8", "/ws/*"),
            ] {
                assert_eq!(routes.find(path).map(|(r, _)| r.as_str()), Some(route), "{path}");
            }
        }
    }

    #[test]
    fn a_second_spelling_does_not_fall_into_another_route() {
        let routes = routes(&["/*", "/café/", "/a!b"]);
        for (path, route) in [("/caf%C3%A9/", "/café/"), ("/caf%c3%a9/", "/café/"), ("/a%21b", "/a!b")] {
            assert_eq!(routes.find(path).unwrap().0, route);
        }
    }

    #[test]
    fn parameters_are_decoded() {
        let routes = routes(&["/ws/{org}/{id}/"]);
        let (_, params) = routes.find("/ws/a%20b/7/").unwrap();
        assert_eq!(params.get("org").map(String::as_str), Some("a b"));
        assert_eq!(params.get("id").map(String::as_str), Some("7"));
        assert!(routes.find("/ws//7/").is_none());
    }

    #[test]
    fn ties_are_seen() {
        let tie = |a: &str, b: &str| Pattern::parse(a).unwrap().ties_with(&Pattern::parse(b).unwrap());
        assert!(tie("/a/{x}/", "/a/{y}/"));
        assert!(tie("/*", "/*"));
        assert!(!tie("/a/{x}", "/a/{x}/"));
        assert!(!tie("/a/*", "/a"));
    }

    #[test]
    fn wrong_patterns_are_refused() {
        for pattern in [
            "", "ws", "/a*", "/*/a", "/{a", "/a}", "/x{a}", "/{}", "/{a-b}", "/{a}/{a}", "/a//b", "//",
            "/../a", "/a?b", "/a%20b", "/a//*",
        ] {
            assert!(Pattern::parse(pattern).is_err(), "{pattern}");
        }
    }
}
