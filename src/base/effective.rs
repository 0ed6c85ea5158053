//! The configuration in effect, key by key: as TOML, as JSON.

use std::fmt::Write as _;

use toml::de::DeValue;

/// The effective value of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    pub section: String,
    pub key: String,
    pub value: String,
    /// False if the value is a default or inherited.
    pub given: bool,
    /// Where it is written; `None` if it is not, or if the environment gives it.
    pub line: Option<usize>,
}

/// The effective configuration as TOML.
pub fn show(effective: &[Effective]) -> String {
    let mut out = String::new();
    let mut current = None;
    for entry in effective {
        if current != Some(&entry.section) {
            current = Some(&entry.section);
            let heading = match entry.section.split_once('[') {
                Some((name, rest)) => match rest.split_once("].") {
                    Some((_, sub)) => format!("[{name}.{sub}]"),
                    None => format!("[[{name}]]"),
                },
                None => format!("[{}]", entry.section),
            };
            out.push_str(if out.is_empty() { "" } else { "\n" });
            out.push_str(&heading);
            out.push('\n');
        }
        let _ = writeln!(out, "{} = {}", entry.key, entry.value);
    }
    out
}

/// The effective configuration as JSON: tables by name, tables of an array in its order.
pub fn json(effective: &[Effective]) -> serde_json::Value {
    let mut root = serde_json::Value::Null;
    for entry in effective {
        let value = DeValue::parse(&entry.value).map(|value| plain(value.get_ref()));
        // `route[1].origin` as `route`, `1`, `origin`.
        let steps = entry.section.split(['.', '[']).chain([entry.key.as_str()]);
        let steps: Vec<&str> = steps.map(|step| step.trim_end_matches(']')).collect();
        put(&mut root, &steps, value.unwrap_or_else(|_| entry.value.clone().into()));
    }
    root
}

fn put(place: &mut serde_json::Value, steps: &[&str], value: serde_json::Value) {
    let Some((step, rest)) = steps.split_first() else {
        *place = value;
        return;
    };
    if let Ok(number @ 1..) = step.parse::<usize>() {
        if !place.is_array() {
            *place = serde_json::Value::Array(Vec::new());
        }
        if let Some(items) = place.as_array_mut() {
            items.resize(items.len().max(number), serde_json::Value::Null);
            items.get_mut(number - 1).into_iter().for_each(|item| put(item, rest, value.clone()));
        }
        return;
    }
    if !place.is_object() {
        *place = serde_json::Value::Object(serde_json::Map::new());
    }
    if let Some(members) = place.as_object_mut() {
        put(members.entry(*step).or_insert(serde_json::Value::Null), rest, value);
    }
}

fn plain(value: &DeValue<'_>) -> serde_json::Value {
    match value {
        DeValue::String(text) => text.to_string().into(),
        DeValue::Integer(number) => number.as_str().parse::<i64>().map_or(number.as_str().into(), Into::into),
        DeValue::Boolean(flag) => (*flag).into(),
        DeValue::Float(number) => number.as_str().into(),
        DeValue::Datetime(moment) => moment.to_string().into(),
        DeValue::Array(items) => items.iter().map(|item| plain(item.get_ref())).collect(),
        DeValue::Table(table) => {
            let members =
                table.iter().map(|(name, item)| (name.get_ref().to_string(), plain(item.get_ref())));
            serde_json::Value::Object(members.collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json as expected;

    fn entry(section: &str, key: &str, value: &str) -> Effective {
        let (section, key, value) = (section.to_owned(), key.to_owned(), value.to_owned());
        Effective { section, key, value, given: true, line: None }
    }

    #[test]
    fn as_json_tables_nest_and_arrays_keep_their_order() {
        let effective = [
            entry("listen", "address", "\"127.0.0.1:8080\""),
            entry("limits", "sessions", "20000"),
            entry("route[2]", "path", "\"/b\""),
            entry("route[1]", "path", "\"/a\""),
            entry("route[1].token", "from", "[\"header\", \"query:t\"]"),
            entry("route[1]", "claims", "{ \"a.b\" = \"{c}\" }"),
            entry("refuse.codes", "timeout", "4008"),
        ];
        assert_eq!(
            json(&effective),
            expected!({
                "listen": {"address": "127.0.0.1:8080"},
                "limits": {"sessions": 20000},
                "route": [
                    {"path": "/a", "token": {"from": ["header", "query:t"]}, "claims": {"a.b": "{c}"}},
                    {"path": "/b"},
                ],
                "refuse": {"codes": {"timeout": 4008}},
            })
        );
    }
}
