//! The load of sidegate's bench: one program that is the backend behind every peer, and the client in front of them.
//!
//! ```text
//! load backend DIR                       serve; writes DIR/{key.der,public.pem} and, when ready, DIR/ports
//! load bench DIR [--quick] [--only TEXT] [--idle N] [--policy N] [--pinned PID] --direct PORT NAME=PORT,PID…
//!                                           measure these peers, those that DIR/LETTER.start says how to start, and
//!                                           gates that DIR/gate starts; print the table
//! ```
//! `run` starts both, and the peers between them.

mod backend;
mod client;
mod frame;
mod gate;
mod keys;
mod policy;
mod replicas;
mod proc;
mod process;
mod rows;
mod table;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use rows::{Options, Peer, Setup};

const USAGE: &str = "usage: load backend DIR | load bench DIR [--quick] [--only TEXT] [--idle N] [--policy N] [--pinned PID] --direct PORT NAME=PORT,PID...";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let outcome = match words.as_slice() {
        ["backend", dir] => runtime.block_on(backend::serve(&PathBuf::from(dir))),
        ["bench", dir, rest @ ..] => match options(dir, rest) {
            Some(options) => runtime.block_on(rows::run(options)),
            None => return usage(),
        },
        _ => return usage(),
    };
    outcome.map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(64)
}

fn failed(error: &io::Error) -> ExitCode {
    eprintln!("load: {error}");
    ExitCode::FAILURE
}

fn options(dir: &str, words: &[&str]) -> Option<Options> {
    let mut options = Options {
        dir: dir.into(),
        quick: false,
        only: None,
        idle: 5000,
        policy: None,
        direct: 0,
        pinned: None,
        peers: Vec::new(),
    };
    let mut words = words.iter();
    while let Some(&word) = words.next() {
        match word {
            "--quick" => options.quick = true,
            "--only" => options.only = Some((*words.next()?).to_owned()),
            "--idle" => options.idle = words.next()?.parse().ok()?,
            "--policy" => options.policy = Some(words.next()?.parse().ok()?),
            "--pinned" => options.pinned = Some(words.next()?.parse().ok()?),
            "--direct" => options.direct = words.next()?.parse().ok()?,
            _ => options.peers.push(peer(word)?),
        }
    }
    (!options.of(Setup::One).is_empty()).then_some(options)
}

/// `H=8081,4711`, with two workers `H2=…`, without heartbeats `S-=…`
fn peer(word: &str) -> Option<Peer> {
    let (name, rest) = word.split_once('=')?;
    let (port, pid) = rest.split_once(',')?;
    let setup = match name.get(1..)? {
        "" => Setup::One,
        "2" => Setup::Two,
        "-" => Setup::Quiet,
        _ => return None,
    };
    Some(Peer { letter: name.chars().next()?, setup, port: port.parse().ok()?, pid: pid.parse().ok()? })
}
