//! A JSON object that is read once and kept for long: a token's claims, as many times as there are tokens.
//! All texts lie in one piece of memory and all values in another, a third of what a tree of allocations
//! takes. No object in it has a member twice: two parsers that disagree about which one counts are how
//! tokens get two meanings (RFC 7519 §4).

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use serde_json::{Error, Number};

/// A part of the texts.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u16,
    length: u16,
}

impl Span {
    fn of(self, texts: &str) -> &str {
        let start = usize::from(self.start);
        texts.get(start..start + usize::from(self.length)).unwrap_or_default()
    }
}

/// A value. What a list or an object holds follows it, of members first the name, then the value; `end` is
/// the place behind all of that.
#[derive(Clone, Copy, Debug)]
enum Node {
    Null,
    Bool(bool),
    Number(Span),
    Text(Span),
    List { end: u16 },
    Object { end: u16 },
}

/// The whole.
#[derive(Debug)]
pub struct Object {
    texts: Box<str>,
    nodes: Box<[Node]>,
}

/// Where a value stands, to find it again without a search.
#[derive(Clone, Copy, Debug)]
pub struct Place(u16);

/// A value in it.
#[derive(Clone, Copy)]
pub struct Item<'o> {
    object: &'o Object,
    at: u16,
}

/// What a value is (RFC 8259 §3).
#[derive(Clone, Debug)]
pub enum Json<'o> {
    Null,
    Bool(bool),
    /// As JSON writes it.
    Number(&'o str),
    Text(&'o str),
    List(Items<'o>),
    Object(Members<'o>),
}

impl Object {
    /// Reads an object of less than 64 KiB, and nothing after it.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        let mut reader = serde_json::Deserializer::from_slice(json);
        let mut builder = Builder { texts: String::with_capacity(json.len()), nodes: Vec::with_capacity(64) };
        builder.deserialize(&mut reader)?;
        reader.end()?;
        let Builder { texts, nodes } = builder;
        if !matches!(nodes.first(), Some(Node::Object { .. })) {
            return Err(Error::custom("not an object"));
        }
        Ok(Self { texts: texts.into(), nodes: nodes.into() })
    }

    /// The object as a value.
    pub fn root(&self) -> Item<'_> {
        Item { object: self, at: 0 }
    }

    /// The value there; of another object's place, some other value or null.
    pub fn at(&self, place: Place) -> Item<'_> {
        Item { object: self, at: place.0 }
    }

    pub fn members(&self) -> Members<'_> {
        Members(Items { object: self, next: 1, end: self.root().end() })
    }

    /// The member of that name.
    pub fn get(&self, name: &str) -> Option<Item<'_>> {
        self.root().get(name)
    }
}

impl<'o> Item<'o> {
    pub fn kind(self) -> Json<'o> {
        let (object, next) = (self.object, self.at + 1);
        match object.nodes.get(usize::from(self.at)) {
            None | Some(Node::Null) => Json::Null,
            Some(Node::Bool(flag)) => Json::Bool(*flag),
            Some(Node::Number(span)) => Json::Number(span.of(&object.texts)),
            Some(Node::Text(span)) => Json::Text(span.of(&object.texts)),
            Some(Node::List { end }) => Json::List(Items { object, next, end: *end }),
            Some(Node::Object { end }) => Json::Object(Members(Items { object, next, end: *end })),
        }
    }

    pub fn place(self) -> Place {
        Place(self.at)
    }

    pub fn as_str(self) -> Option<&'o str> {
        if let Json::Text(text) = self.kind() { Some(text) } else { None }
    }

    /// A text as it is, a number or a truth value as JSON writes it.
    pub fn scalar(self) -> Option<&'o str> {
        match self.kind() {
            Json::Text(text) | Json::Number(text) => Some(text),
            Json::Bool(flag) => Some(if flag { "true" } else { "false" }),
            Json::Null | Json::List(_) | Json::Object(_) => None,
        }
    }

    pub fn as_f64(self) -> Option<f64> {
        if let Json::Number(number) = self.kind() { number.parse().ok() } else { None }
    }

    pub fn is_null(self) -> bool {
        matches!(self.kind(), Json::Null)
    }

    /// The items of a list.
    pub fn items(self) -> Option<Items<'o>> {
        if let Json::List(items) = self.kind() { Some(items) } else { None }
    }

    /// The member of that name, of an object.
    pub fn get(self, name: &str) -> Option<Self> {
        let Json::Object(mut members) = self.kind() else { return None };
        members.find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// The place behind it and all that is in it.
    fn end(self) -> u16 {
        match self.object.nodes.get(usize::from(self.at)) {
            Some(Node::List { end } | Node::Object { end }) => *end,
            _ => self.at + 1,
        }
    }
}

/// The items of a list.
#[derive(Clone)]
pub struct Items<'o> {
    object: &'o Object,
    next: u16,
    end: u16,
}

impl fmt::Debug for Items<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.next, self.end)
    }
}

impl<'o> Iterator for Items<'o> {
    type Item = Item<'o>;

    fn next(&mut self) -> Option<Item<'o>> {
        let item = (self.next < self.end).then_some(Item { object: self.object, at: self.next })?;
        self.next = item.end();
        Some(item)
    }
}

/// The members of an object.
#[derive(Clone, Debug)]
pub struct Members<'o>(Items<'o>);

impl<'o> Iterator for Members<'o> {
    type Item = (&'o str, Item<'o>);

    fn next(&mut self) -> Option<Self::Item> {
        let name = self.0.next()?.as_str().unwrap_or_default();
        Some((name, self.0.next()?))
    }
}

impl Serialize for Item<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.kind() {
            Json::Null => serializer.serialize_unit(),
            Json::Bool(flag) => serializer.serialize_bool(flag),
            Json::Number(number) => {
                number.parse::<Number>().map_err(serde::ser::Error::custom)?.serialize(serializer)
            }
            Json::Text(text) => serializer.serialize_str(text),
            Json::List(mut items) => {
                let mut list = serializer.serialize_seq(None)?;
                items.try_for_each(|item| list.serialize_element(&item))?;
                list.end()
            }
            Json::Object(mut members) => {
                let mut map = serializer.serialize_map(None)?;
                members.try_for_each(|(name, value)| map.serialize_entry(name, &value))?;
                map.end()
            }
        }
    }
}

/// As JSON.
impl fmt::Display for Item<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

/// An object under construction.
struct Builder {
    texts: String,
    nodes: Vec<Node>,
}

fn short(place: usize) -> Result<u16, &'static str> {
    u16::try_from(place).map_err(|_| "too long")
}

impl Builder {
    fn text(&mut self, text: &str) -> Result<Span, &'static str> {
        let span = Span { start: short(self.texts.len())?, length: short(text.len())? };
        self.texts.push_str(text);
        Ok(span)
    }

    fn number(&mut self, number: &Number) -> Result<(), &'static str> {
        let span = self.text(&number.to_string())?;
        self.nodes.push(Node::Number(span));
        Ok(())
    }

    /// Closes the list or the object that begins there.
    fn close(&mut self, begin: usize, node: impl FnOnce(u16) -> Node) -> Result<(), &'static str> {
        let end = short(self.nodes.len())?;
        if let Some(begun) = self.nodes.get_mut(begin) {
            *begun = node(end);
        }
        Ok(())
    }

    /// Few names are compared one by one, many in order: whoever sends them has signed nothing yet.
    fn is_unique(&self, names: &[Span]) -> bool {
        const FEW: usize = 32;
        if names.len() <= FEW {
            let is_new = |(n, name): (usize, &Span)| {
                names.iter().take(n).all(|before| {
                    before.length != name.length || before.of(&self.texts) != name.of(&self.texts)
                })
            };
            return names.iter().enumerate().all(is_new);
        }
        let mut names: Vec<&str> = names.iter().map(|name| name.of(&self.texts)).collect();
        names.sort_unstable();
        names.is_sorted_by(|one, next| one < next)
    }
}

impl<'de> DeserializeSeed<'de> for &mut Builder {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Builder {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without duplicated members")
    }
    fn visit_bool<E>(self, v: bool) -> Result<(), E> {
        self.nodes.push(Node::Bool(v));
        Ok(())
    }
    fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<(), E> {
        self.number(&v.into()).map_err(E::custom)
    }
    fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<(), E> {
        self.number(&v.into()).map_err(E::custom)
    }
    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<(), E> {
        self.number(&Number::from_f64(v).ok_or_else(|| E::custom("no number"))?).map_err(E::custom)
    }
    fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<(), E> {
        let span = self.text(v).map_err(E::custom)?;
        self.nodes.push(Node::Text(span));
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        self.nodes.push(Node::Null);
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let begin = self.nodes.len();
        self.nodes.push(Node::Null);
        while seq.next_element_seed(&mut *self)?.is_some() {}
        self.close(begin, |end| Node::List { end }).map_err(A::Error::custom)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let begin = self.nodes.len();
        self.nodes.push(Node::Null);
        let mut names = Vec::new();
        while map.next_key_seed(&mut *self)?.is_some() {
            if let Some(Node::Text(name)) = self.nodes.last() {
                names.push(*name);
            }
            map.next_value_seed(&mut *self)?;
        }
        if !self.is_unique(&names) {
            return Err(A::Error::custom("duplicated member"));
        }
        self.close(begin, |end| Node::Object { end }).map_err(A::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;

    fn parse(json: &str) -> Result<Object, Error> {
        Object::parse(json.as_bytes())
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i32>().prop_map(|n| Value::from(f64::from(n) / 8.0)),
            "\\PC{0,12}".prop_map(Value::String),
            "[\"\\\\\n\u{1}é😀a]{0,6}".prop_map(Value::String),
        ];
        leaf.prop_recursive(4, 64, 40, |inner| {
            let map = proptest::collection::btree_map("[a-e\"é]{0,3}", inner.clone(), 0..40);
            prop_oneof![
                proptest::collection::vec(inner, 0..6).prop_map(Value::Array),
                map.prop_map(|map| Value::Object(map.into_iter().collect::<Map<_, _>>())),
            ]
        })
    }

    proptest! {
        /// Whatever is read is what was written, value by value and by name.
        #[test]
        fn what_comes_out_is_what_went_in(value in values()) {
            let whole = json!({"value": value, "after": 1});
            let object = Object::parse(whole.to_string().as_bytes()).unwrap();
            let read: Value = serde_json::from_str(&object.root().to_string()).unwrap();
            prop_assert_eq!(&read, &whole);
            prop_assert_eq!(object.get("after").and_then(Item::as_f64), Some(1.0));
            if let Value::Object(map) = &value {
                let item = object.get("value").unwrap();
                for (name, member) in map {
                    let member_read: Value = serde_json::from_str(&item.get(name).unwrap().to_string()).unwrap();
                    prop_assert_eq!(&member_read, member);
                }
            }
        }
    }

    #[test]
    fn members_are_found_and_their_kinds_are_told() {
        let object = parse(r#"{"a":{"b":[1,"x",{"c":null}],"d":true},"e":"\u00e9"}"#).unwrap();
        let list = object.get("a").unwrap().get("b").unwrap();
        let kinds: Vec<String> = list.items().unwrap().map(|item| item.to_string()).collect();
        assert_eq!(kinds, ["1", "\"x\"", "{\"c\":null}"]);
        assert!(matches!(object.get("a").unwrap().get("d").unwrap().kind(), Json::Bool(true)));
        assert_eq!(object.get("e").unwrap().as_str(), Some("é"));
        assert!(
            object.get("b").is_none()
                && list.get("b").is_none()
                && object.get("e").unwrap().items().is_none()
        );
    }

    #[test]
    fn a_member_twice_is_refused_at_any_depth_and_among_any_number() {
        for json in [r#"{"a":1,"a":1}"#, r#"{"a":[{"b":1,"\u0062":2}]}"#, "[]", "1", "{} {}", "{", ""] {
            assert!(parse(json).is_err(), "{json}");
        }
        let many = |last: usize| {
            let members: Vec<String> = (0..100).chain([last]).map(|n| format!("\"m{n}\":0")).collect();
            parse(&format!("{{{}}}", members.join(",")))
        };
        assert!(many(100).is_ok());
        assert!(many(0).is_err() && many(57).is_err());
    }

    #[test]
    fn more_than_can_be_pointed_at_is_refused() {
        let text = "x".repeat(70_000);
        assert!(parse(&format!("{{\"a\":\"{text}\"}}")).is_err());
        assert!(parse(&format!("{{\"a\":[{}1]}}", "1,".repeat(70_000))).is_err());
        assert!(parse(&format!("{{\"a\":\"{}\"}}", &text[..60_000])).is_ok());
    }

    #[test]
    fn claims_take_less_than_twice_their_text() {
        let json = json!({"iss": "https://sso.example.com/realms/demo", "sub": "0d4f5c1e-2f0b-4b1e-8f57-000000000001",
            "exp": 1_800_000_300, "realm_access": {"roles": ["chat", "offline_access"]}, "scope": "openid email"})
        .to_string();
        let object = parse(&json).unwrap();
        assert!(object.texts.len() + size_of_val(&*object.nodes) < 2 * json.len());
        assert_eq!(size_of::<Node>(), 6);
    }
}
