//! What networks, kernels and neighbours do to a gate: peers that stop, never read, never write or never
//! end, too many of them, no file descriptors left, and a gate that is itself stopped. Each against the
//! program as an operator runs it, where the kernel has to tell what it holds.

mod bursts;
mod endless;
mod files;
mod lengths;
mod paused;
mod pressure;
mod silent;
mod stopped;
mod watched;
