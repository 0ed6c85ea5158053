//! The program; all it does is in the library.

use std::process::ExitCode;

/// A handshake makes many small values that live for its own time, or for that of its session. This one
/// costs a third of the C library's, and its pages of one size lose less between sockets that stay.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    sidegate::app::cli::main()
}
