//! Logs of routes in shadow mode in, one page out: who would have been refused, why, and which line of
//! the configuration decides it.

mod line;
mod mending;
mod page;
mod summary;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};

pub use self::mending::Known;
use self::summary::Summary;

/// Reads the files, or standard input if there are none, and prints the page. False if one was not
/// readable; the others are reported all the same.
pub fn run(logs: &[PathBuf], known: Option<&Known<'_>>) -> bool {
    let mut summary = Summary::default();
    let mut readable = true;
    let stdin = [PathBuf::from("-")];
    for path in if logs.is_empty() { &stdin[..] } else { logs } {
        if let Err(error) = read_file(path, &mut summary) {
            eprintln!("error: {}: {error}", path.display());
            readable = false;
        }
    }
    // A reader that has seen enough closes the pipe: no reason to panic.
    let _ = io::stdout().write_all(page::page(&summary, known).as_bytes());
    readable
}

fn read_file(path: &Path, summary: &mut Summary) -> io::Result<()> {
    if path.as_os_str() == "-" {
        read(io::stdin().lock(), summary)
    } else {
        read(BufReader::new(File::open(path)?), summary)
    }
}

fn read(mut source: impl BufRead, summary: &mut Summary) -> io::Result<()> {
    let mut line = Vec::new();
    while let Some(fits) = line::next(&mut source, &mut line)? {
        summary.add(fits.then(|| String::from_utf8_lossy(&line)).as_deref());
    }
    Ok(())
}
