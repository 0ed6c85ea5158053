//! The only reader of the wall clock. Everywhere else `now` is an argument.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unix(pub Duration);

impl Unix {
    /// The wall clock now.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
    pub fn now() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    pub fn seconds(self) -> f64 {
        self.0.as_secs_f64()
    }
}

/// RFC 3339 with milliseconds, in UTC.
impl fmt::Display for Unix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_millis(UNIX_EPOCH + self.0).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        assert_eq!(Unix(Duration::from_millis(1_700_000_000_123)).to_string(), "2023-11-14T22:13:20.123Z");
    }
}
