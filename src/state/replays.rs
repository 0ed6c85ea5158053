//! Names of what may be said once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::base::clock::Unix;

/// When so many are remembered all are forgotten: what is said twice then does no harm, only no good.
const MOST: usize = 10_000;

/// What was said, and until when it could be said again.
#[derive(Debug, Default)]
pub struct Replays(Mutex<HashMap<u128, Unix>>);

impl Replays {
    /// Whether this is said for the first time.
    pub fn is_first(&self, name: u128, until: Unix, now: Unix) -> bool {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.get(&name).is_some_and(|until| *until > now) {
            return false;
        }
        if said.len() >= MOST {
            said.retain(|_, until| *until > now);
        }
        if said.len() >= MOST {
            said.clear();
        }
        said.insert(name, until);
        true
    }

    /// It has had no effect: it may be said again.
    pub fn forget(&self, name: u128) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> Unix {
        Unix(Duration::from_secs(seconds))
    }

    #[test]
    fn twice_is_once_too_often_until_it_has_expired() {
        let said = Replays::default();
        assert!(said.is_first(1, at(10), at(0)));
        assert!(!said.is_first(1, at(10), at(9)));
        assert!(said.is_first(2, at(10), at(9)));
        assert!(said.is_first(1, at(20), at(10)));
        said.forget(1);
        assert!(said.is_first(1, at(20), at(11)) && !said.is_first(1, at(20), at(12)));
    }

    #[test]
    fn no_more_are_remembered_than_the_most() {
        let said = Replays::default();
        for name in 0..3 * MOST as u128 {
            assert!(said.is_first(name, at(10), at(0)));
        }
        assert!(said.0.lock().unwrap().len() <= MOST);
        assert!(!said.is_first(3 * MOST as u128 - 1, at(10), at(0)));
        for name in 0..MOST as u128 {
            said.is_first(name, at(30), at(20));
        }
        assert!(said.0.lock().unwrap().values().all(|until| *until == at(30)), "those of old went first");
    }
}
