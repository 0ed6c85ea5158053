//! **sidegate**: an authentication sidecar that owns the whole life of a WebSocket.
//!
//! It stands in front of a backend that nobody dares to change, takes the client's upgrade, decides by a
//! Keycloak token and a few policies who may in, tells the backend who it is, and then moves frames
//! between both sockets without touching a byte, until something ends the session: a Close, an expired
//! token, a revocation, a changed rule, a broken limit, a drain. At any time it knows who is on a socket,
//! whether they are still allowed, and why the others are gone.
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
//! | 2 | `state` | keys, verified tokens, permits, attempts, revocations, live sessions | sockets, files, tasks, async |
//! | 3 | `io` | one file per outside party: listener, backend, pool, issuer, watched files; `io::redis` | decisions |
//! | 4 | `proxy` | the life of one connection | configuration parsing, process exit |
//! | 5 | `app` | command line, configuration, boot, reload, admin, drain, demo, explain, report | per-request code |
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
//! 2. `proxy::entry` answers. It finds out who it is (`policy::peer`: the socket's peer, or the client that a
//!    trusted proxy names) and whether that address was refused too often (`state::attempts`). It is the
//!    only place where a `Reject` becomes an answer, by `proxy::refuse`: HTTP for programs, a socket
//!    accepted to be closed for pages, which cannot read the status of a failed upgrade.
//! 3. `proxy::handshake` is the straight line, every step a `?`, under one `Snapshot`: route, address and
//!    origin (`proxy::judge`), find the token (`policy::bearer`), verify it (`policy::jwt`,
//!    `state::keyring`, `io::jwks`), its claims and the route's rule (`policy::claims`, `policy::rule`,
//!    `policy::expression`), a place for its address and a permit (`state::tally`, `state::permits`). Then,
//!    in this order: **register** (`state::sessions`), look at the **blacklist** (`state::blacklist`),
//!    compare the **generation** of the configuration, and if that is another one, judge again. Whoever
//!    revokes writes the blacklist first and looks through the registered then (`state::revocation`), and
//!    so does a reload with its snapshot: one of the two sides always sees the other. Last a place for its
//!    user, then the dial, raced against the switch that ends sessions.
//! 4. `io::upstream` asks the backend and checks its 101 in every respect. Before that not one byte of the
//!    client follows; after it the client gets its own 101.
//! 5. `proxy::session` lives: one task, one poll in fixed order, one timer. `proxy::relay` is both directions,
//!    `proxy::splice` moves the bytes of each, `policy::frame` says where frames begin and end and which of
//!    them pass, `proxy::rates` how many more, `proxy::watch` counts them. `proxy::lifetime` has the clocks:
//!    token, idleness, age, and the pings of `proxy::heartbeat`, whose pongs are taken out of the stream.
//!    `proxy::extension` prolongs it when a newer token of its login comes by.
//! 6. `proxy::closing` ends: Close at a frame boundary, FIN, read and discard until the peer's end.
//!
//! A plain request takes steps 1 and 2, is judged the same way, and goes on in `proxy::forward`. What a
//! response but the 101 wears, CORS, CSP and security headers, is put on in `proxy::dress`, our refusals
//! included; `proxy::visit` is the request as all these steps see it.
//!
//! # Around it
//! `app::reload` builds the next snapshot, swaps it in, and judges every live session again; what they
//! were judged by is kept with them (`proxy::guest::Guest`). `app::feed` reads the file of revocations,
//! `app::sharing` keeps in touch with the other replicas (`io::redis::stream`; `io::redis::lease` counts users'
//! sessions over all of them, `io::redis::foreign` asks the backend's own blacklist), `proxy::logout` hears of
//! logouts at the issuer, and `proxy::revoking` carries out and tells what somebody has asked for.
//! `app::operator` answers those who ask who is on the gate, throw out and revoke. `app::explain` runs
//! the handshake's own judge with a `policy::trace::Trace` in its hand; `app::report` reads what shadow
//! mode has written.
//!
//! # Rules of the house
//! - One worker is one thread with a runtime and listeners of its own: no session changes threads, no
//!   worker wakes another. Keys, watched files, admin, reload and drain have a thread apart.
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
//! is bounded and has no threads of its own; `hashbrown`'s bare table holds a million revocations without
//! a second copy of their keys. `arc-swap` hands the snapshot to every handshake without a lock. `cel`
//! interprets rules, but has no budget while it runs: `policy::cost` says beforehand how many steps an
//! expression could take. `mimalloc` serves the many small values of a handshake for a third of the C
//! library's cost, `getrandom` asks the system: a generator of aws-lc's own takes longer to start than all
//! the rest. `redis` speaks to servers, sentinels and clusters; it has connections of its own, on the thread of
//! keys and files. `ipnet` knows address ranges, `form_urlencoded` the queries of operators.
//!
//! # Words
//! *Refusal*: an answer that ends a handshake. *Ending*: what ends a live session. *Reason*: why, of either;
//! one table (`base::reject`) gives each its label, status, close code, blame and advice. *Carrier*: where a
//! request carries its token. *Delivery*: where the backend gets it. *Plan*: the policies of a route.
//! *Boundary*: between two frames, the only place where a frame of our own may stand. *Snapshot*: all
//! that a handshake looks at, made whole and replaced whole by a reload; its *generation* counts those.
//! *Feed*: where revocations come from that nobody has posted here. *Replica*: a gate among those that share a
//! Redis server. *Lease*: what its sessions count by until it is gone. *Revocation*: what takes back tokens that are good otherwise. *Selector*: whom it names: a token, a
//! login, a user, all issued before a moment. *Guest*: who is on a live session, with what a reload needs.

pub mod app;
mod base;
mod io;
mod policy;
mod proxy;
mod state;
mod telemetry;
