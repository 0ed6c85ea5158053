//! Floor 0: values that every floor shares. No I/O, no locks, no async.

pub mod clock;
pub mod effective;
pub mod reject;
pub mod section;
pub mod value;
