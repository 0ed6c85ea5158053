//! The checks that a request went through, in order, for `explain`. A real handshake keeps none.

use crate::base::reject::Reason;

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The configuration keys that decide it, as in the table of reasons.
    pub keys: &'static str,
    /// What was looked at; never a token.
    pub what: String,
    pub outcome: Result<(), Reason>,
}

/// Where checks are told.
#[derive(Debug, Default)]
pub enum Trace {
    #[default]
    Off,
    On(Vec<Step>),
}

impl Trace {
    /// Tells a check and passes its result on.
    pub fn step<T>(
        &mut self,
        keys: &'static str,
        what: impl FnOnce() -> String,
        result: Result<T, Reason>,
    ) -> Result<T, Reason> {
        if let Self::On(steps) = self {
            let outcome = result.as_ref().map(|_| ()).map_err(|reason| *reason);
            steps.push(Step { keys, what: what(), outcome });
        }
        result
    }
}
