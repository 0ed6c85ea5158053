//! Kinds of backends. What each must be shielded from stands where the shield is.

use crate::base::value::words;

words! {
    /// `[upstream] profile`
    pub enum Profile { Generic = "generic", Daphne = "daphne" }
}
