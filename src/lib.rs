//! **sidegate**: an authentication sidecar that owns the whole life of a WebSocket.
//!
//! It stands in front of a backend that nobody dares to change, takes the client's upgrade, decides by a
//! Keycloak token and a few policies who may in, tells the backend who it is, and then moves frames
//! between both sockets without touching a byte, until something ends the session: a Close, an expired
//! token, a broken limit, a drain. At any time it knows who is on a socket and why it was closed.
//!
//! # The floors
//! Imports only go down, and no two files of a folder import each other in a ring; `tests/layering.rs`
//! proves it.
//!
//! | floor | folder | knows | never contains |
//! |---|---|---|---|
//! | 0 | `base` | the table of reasons, configuration values, the clock | async, locks, I/O |
//! | 1 | `policy` | decisions over a head, claims, bytes and `now` | async, locks, clocks, I/O |
//! | 1 | `telemetry` | log lines, metrics, one record per handshake and session | policies |
//! | 2 | `state` | keys, verified tokens, permits, live sessions | sockets, files, tasks, async |
//! | 3 | `io` | one file per outside party: listener, backend, pool, issuer | decisions |
//! | 4 | `proxy` | the life of one connection | configuration parsing, process exit |
//! | 5 | `app` | command line, configuration, boot, admin, drain, demo | per-request code |
//!
//! A feature's configuration section is the first type in that feature's own file; `app::config` builds
//! of all of them one `proxy::plan::Plan` per route, and of those one `Snapshot`.
//!
//! # The life of a handshake
//! Open these files in this order, downwards, once each.
//!
//! 1. `proxy::connection` accepts. `proxy::first` reads the first head: if it is an upgrade of the right
//!    form it needs no HTTP server; everything else goes to hyper, byte by byte as it came (`proxy::wire`
//!    is what hyper sees).
//! 2. `proxy::entry` answers. It is the only place where a `Reject` becomes an answer, by
//!    `proxy::refuse`: HTTP for programs, a socket accepted to be closed for pages, which cannot read the
//!    status of a failed upgrade.
//! 3. `proxy::handshake` is the straight line, every step a `?`: route and origin (`proxy::judge`), find
//!    the token (`policy::bearer`), verify it (`policy::jwt`, `state::keyring`, `io::jwks`), its claims
//!    and the route's rule (`policy::claims`, `policy::rule`), permit, registration, then the dial, raced
//!    against the switch that ends sessions (`state::sessions`).
//! 4. `io::upstream` asks the backend and checks its 101 in every respect. Before that not one byte of the
//!    client follows; after it the client gets its own 101.
//! 5. `proxy::session` lives: one task, one poll in fixed order, one timer. `proxy::splice` moves the
//!    bytes, `policy::frame` says where frames begin and end and which of them pass.
//! 6. `proxy::closing` ends: Close at a frame boundary, FIN, read and discard until the peer's end.
//!
//! A plain request takes steps 1 and 2, is judged the same way, and goes on in `proxy::forward`.
//!
//! # Rules of the house
//! - One worker is one thread with a runtime and listeners of its own: no session changes threads, no
//!   worker wakes another. Keys, admin and drain have a thread apart.
//! - Whatever is held on the way (permits, registration, record) is a value that lets go when dropped: a
//!   client may leave at any moment.
//! - The verified-token cache holds facts about tokens, never decisions, and a key that its issuer
//!   withdraws takes its tokens along.
//! - Shadow mode is in the judge's outcome (`judge::Leniency`), not around it.
//! - Every bound has a name, a default and a test.
//!
//! # Libraries, and why
//! hyper reads and writes HTTP; httparse alone reads the heads of upgrades on both sides, for an HTTP
//! server and client cost more than all of the rest of a handshake. Signatures are checked by aws-lc-rs on
//! parsed keys: a JWT library would parse twice and decide things that are decided here. tungstenite
//! serves the demo and the tests, not the splice, which neither unmasks nor re-frames. `quick_cache`
//! is bounded and has no threads of its own.
//!
//! # Words
//! *Refusal*: an answer that ends a handshake. *Ending*: what ends a live session. *Reason*: why, of either;
//! one table (`base::reject`) gives each its label, status, close code, blame and advice. *Carrier*: where a
//! request carries its token. *Delivery*: where the backend gets it. *Plan*: the policies of a route.
//! *Boundary*: between two frames, the only place where a frame of our own may stand.

pub mod app;
mod base;
mod io;
mod policy;
mod proxy;
mod state;
mod telemetry;
