//! Types of single configuration values: how each is written, read and shown.

use std::time::Duration;

/// A TOML value, or the text of an environment variable that stands for one.
#[derive(Clone, Debug)]
pub enum Raw {
    Text(String),
    Integer(i64),
    Boolean(bool),
    List(Vec<Self>),
    /// An environment variable: text that may stand for any scalar.
    Environment(String),
    /// A type that no scalar setting takes.
    Other,
}

impl Raw {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Environment(text) => Some(text),
            Self::Integer(_) | Self::Boolean(_) | Self::List(_) | Self::Other => None,
        }
    }

    fn integer(&self) -> Option<i64> {
        match self {
            Self::Integer(n) => Some(*n),
            Self::Environment(text) => text.parse().ok(),
            Self::Text(_) | Self::Boolean(_) | Self::List(_) | Self::Other => None,
        }
    }
}

/// A type that a configuration key can have.
pub trait Value: Sized + Clone {
    /// What is accepted, in words that finish the sentence "accepted: …".
    fn accepts() -> String;
    /// `None` = not a value of this type.
    fn read(raw: &Raw) -> Option<Self>;
    /// As it would be written in TOML.
    fn show(&self) -> String;
}

/// TOML's basic string.
pub fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

impl Value for String {
    fn accepts() -> String {
        "a string".into()
    }
    fn read(raw: &Raw) -> Option<Self> {
        raw.text().map(Self::from)
    }
    fn show(&self) -> String {
        quoted(self)
    }
}

impl Value for bool {
    fn accepts() -> String {
        "true or false".into()
    }
    fn read(raw: &Raw) -> Option<Self> {
        match raw {
            Raw::Boolean(b) => Some(*b),
            Raw::Environment(text) => text.parse().ok(),
            Raw::Text(_) | Raw::Integer(_) | Raw::List(_) | Raw::Other => None,
        }
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl<T: Value> Value for Vec<T> {
    fn accepts() -> String {
        format!("a list, each entry {}", T::accepts())
    }
    fn read(raw: &Raw) -> Option<Self> {
        match raw {
            Raw::List(items) => items.iter().map(T::read).collect(),
            Raw::Text(_) | Raw::Integer(_) | Raw::Boolean(_) | Raw::Environment(_) | Raw::Other => None,
        }
    }
    fn show(&self) -> String {
        format!("[{}]", self.iter().map(Value::show).collect::<Vec<_>>().join(", "))
    }
}

/// One entry or a list of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneOrMany<T>(pub Vec<T>);

impl<T: Value> Value for OneOrMany<T> {
    fn accepts() -> String {
        format!("{}, or a list of them", T::accepts())
    }
    fn read(raw: &Raw) -> Option<Self> {
        match raw {
            Raw::List(items) if items.is_empty() => None,
            Raw::List(_) => Vec::read(raw).map(Self),
            Raw::Text(_) | Raw::Integer(_) | Raw::Boolean(_) | Raw::Environment(_) | Raw::Other => {
                T::read(raw).map(|one| Self(vec![one]))
            }
        }
    }
    fn show(&self) -> String {
        match self.0.as_slice() {
            [one] => one.show(),
            many => many.to_vec().show(),
        }
    }
}

/// A whole number of at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(pub u32);

impl Value for Count {
    fn accepts() -> String {
        "a whole number from 1 to 4294967295 (0 is refused: write \"off\" where a limit may be off)".into()
    }
    fn read(raw: &Raw) -> Option<Self> {
        raw.integer().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0).map(Self)
    }
    fn show(&self) -> String {
        self.0.to_string()
    }
}

/// A duration such as `30s` that is longer than nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

/// Longer spans overflow timers; nobody means them. Also what stands for a timeout that is off.
pub const LONGEST: Duration = Duration::from_secs(10 * 366 * 86_400);

fn duration(raw: &Raw) -> Option<Duration> {
    raw.text().and_then(|text| humantime::parse_duration(text).ok()).filter(|d| *d <= LONGEST)
}

fn show_duration(duration: Duration) -> String {
    let (whole, millis) = (duration.as_secs(), duration.subsec_millis());
    let text = match (whole, millis) {
        (0, 1..) => format!("{millis}ms"),
        (0, 0) => "0s".to_owned(),
        (s, 0) if s % 3600 == 0 => format!("{}h", s / 3600),
        (s, 0) if s % 60 == 0 && s > 600 => format!("{}m", s / 60),
        (300, 0) => "5m".to_owned(),
        (600, 0) => "10m".to_owned(),
        (s, 0) => format!("{s}s"),
        _ => humantime::format_duration(duration).to_string(),
    };
    quoted(&text)
}

impl Value for Span {
    fn accepts() -> String {
        "a duration such as \"30s\", \"5m\" or \"250ms\" (0 is refused: write \"off\" where a limit may be off)"
            .into()
    }
    fn read(raw: &Raw) -> Option<Self> {
        duration(raw).filter(|d| *d >= Duration::from_millis(1)).map(Self)
    }
    fn show(&self) -> String {
        show_duration(self.0)
    }
}

/// A duration that may be nothing: `0s` or `"off"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grace(pub Duration);

impl Value for Grace {
    fn accepts() -> String {
        "a duration such as \"10s\"; \"0s\" and \"off\" mean none".into()
    }
    fn read(raw: &Raw) -> Option<Self> {
        if raw.text() == Some("off") { Some(Self(Duration::ZERO)) } else { duration(raw).map(Self) }
    }
    fn show(&self) -> String {
        show_duration(self.0)
    }
}

/// A number of bytes such as `16MiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl Value for Size {
    fn accepts() -> String {
        "a size such as \"512B\", \"32KiB\", \"16MiB\" or \"1GiB\" (0 is refused: write \"off\" where a limit may be off)"
            .into()
    }
    fn read(raw: &Raw) -> Option<Self> {
        let text = raw.text()?;
        let (number, unit) =
            UNITS.iter().find_map(|(name, bytes)| Some((text.strip_suffix(name)?.trim(), bytes)))?;
        number.parse::<u64>().ok()?.checked_mul(*unit).filter(|n| *n > 0 && *n < 1 << 62).map(Self)
    }
    fn show(&self) -> String {
        let (name, bytes) =
            UNITS.into_iter().find(|(_, bytes)| self.0.is_multiple_of(*bytes)).unwrap_or(("B", 1));
        quoted(&format!("{}{name}", self.0 / bytes))
    }
}

/// So many in such a time, such as `20/60s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub count: u32,
    pub per: Duration,
}

impl Value for Rate {
    fn accepts() -> String {
        "a rate such as \"100/1s\" (0 is refused: write \"off\" where a limit may be off)".into()
    }
    fn read(raw: &Raw) -> Option<Self> {
        let (count, per) = raw.text()?.split_once('/')?;
        let count = count.trim().parse::<u32>().ok().filter(|n| *n > 0)?;
        let Span(per) = Span::read(&Raw::Text(per.trim().to_owned()))?;
        Some(Self { count, per })
    }
    fn show(&self) -> String {
        quoted(&format!("{}/{}", self.count, show_duration(self.per).trim_matches('"')))
    }
}

/// A limit that `"off"` takes away.
impl<T: Value> Value for Option<T> {
    fn accepts() -> String {
        format!("{}, or \"off\"", T::accepts())
    }
    fn read(raw: &Raw) -> Option<Self> {
        if raw.text() == Some("off") { Some(None) } else { T::read(raw).map(Some) }
    }
    fn show(&self) -> String {
        self.as_ref().map_or_else(|| quoted("off"), Value::show)
    }
}

/// Implements [`Value`] for an enum of words.
macro_rules! words {
    ($(#[$meta:meta])* $vis:vis enum $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis enum $name { $($(#[$doc])* $variant),* }

        impl $name {
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }

        impl $crate::base::value::Value for $name {
            fn accepts() -> String {
                [$($crate::base::value::quoted($word)),*].join(" or ")
            }
            fn read(raw: &$crate::base::value::Raw) -> Option<Self> {
                let word = <String as $crate::base::value::Value>::read(raw)?;
                match word.as_str() { $($word => Some(Self::$variant),)* _ => None }
            }
            fn show(&self) -> String {
                $crate::base::value::quoted(self.word())
            }
        }
    };
}
pub(crate) use words;

#[cfg(test)]
mod tests {
    use super::*;

    fn text(s: &str) -> Raw {
        Raw::Text(s.into())
    }

    #[test]
    fn zero_is_refused_and_off_is_not() {
        assert_eq!(Option::<Span>::read(&text("0s")), None);
        assert_eq!(Option::<Span>::read(&text("off")), Some(None));
        assert_eq!(Option::<Size>::read(&text("0B")), None);
        assert_eq!(Option::<Count>::read(&Raw::Integer(0)), None);
        assert_eq!(Option::<Rate>::read(&text("0/1s")), None);
        assert_eq!(Grace::read(&text("0s")), Some(Grace(Duration::ZERO)));
        assert_eq!(Grace::read(&text("off")), Some(Grace(Duration::ZERO)));
    }

    #[test]
    fn values_are_shown_as_they_are_written() {
        for written in ["30s", "5m", "24h", "250ms", "75s", "60s", "10m"] {
            assert_eq!(Span::read(&text(written)).unwrap().show(), quoted(written));
        }
        for written in ["16MiB", "32KiB", "1GiB", "513B"] {
            assert_eq!(Size::read(&text(written)).unwrap().show(), quoted(written));
        }
        assert_eq!(Rate::read(&text("100/1s")).unwrap().show(), "\"100/1s\"");
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for wrong in ["", "-1s", "10", "s", "1 fortnight", "1e9s", "99999999y"] {
            assert_eq!(Span::read(&text(wrong)), None, "{wrong}");
        }
        for wrong in ["", "1", "1.5MiB", "MiB", "-1B", "99999999999GiB", "1TB"] {
            assert_eq!(Size::read(&text(wrong)), None, "{wrong}");
        }
        for wrong in ["20", "20/0s", "/1s", "1/", "-1/1s"] {
            assert_eq!(Rate::read(&text(wrong)), None, "{wrong}");
        }
    }

    #[test]
    fn environment_text_stands_for_any_scalar() {
        let env = |s: &str| Raw::Environment(s.into());
        assert_eq!(Count::read(&env("7")), Some(Count(7)));
        assert_eq!(bool::read(&env("true")), Some(true));
        assert_eq!(Span::read(&env("3s")), Some(Span(Duration::from_secs(3))));
        assert_eq!(bool::read(&text("true")), None);
    }
}
