//! Files that may change while the gate runs. Their content counts: a `ConfigMap` is changed by swapping a
//! symbolic link, an editor by writing a new file.

use std::cell::Cell;
use std::fs::{File, Metadata};
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::base::clock::Unix;

/// A file changed less long ago may have changed again since without showing it.
const SETTLED: i64 = 2;
/// So much is read at a time.
const PIECE: usize = 64 * 1024;

/// How often a file is looked at.
pub const LOOK: Duration = Duration::from_millis(1024);
/// How soon again, when it has another content.
const LOOK_AGAIN: Duration = Duration::from_millis(512);

/// A file and what is known of it.
#[derive(Debug)]
pub struct Watched {
    path: PathBuf,
    marks: Option<[i64; 6]>,
    content: Option<u64>,
    /// Another content, seen once.
    coming: Option<u64>,
}

fn marks(metadata: &Metadata) -> [i64; 6] {
    let unsigned = |n: u64| i64::from_ne_bytes(n.to_ne_bytes());
    [
        unsigned(metadata.dev()),
        unsigned(metadata.ino()),
        unsigned(metadata.len()),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
    ]
}

impl Watched {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), marks: None, content: None, coming: None }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How long until the next look.
    pub fn pause(&self) -> Duration {
        if self.coming.is_some() { LOOK_AGAIN } else { LOOK }
    }

    /// Takes the content for known, as it is now.
    pub fn adopt(&mut self) {
        self.content = None;
        let _ = self.look();
    }

    /// Takes any content for another one.
    pub fn forget(&mut self) {
        (self.marks, self.content) = (None, None);
    }

    /// Its lines, one after the other; what keeps it from being read to the end is left in `failed`.
    pub fn lines<'a>(&'a self, failed: &'a Cell<Option<io::Error>>) -> impl Iterator<Item = String> + 'a {
        let keep = |error| failed.set(Some(error));
        let file = File::open(&self.path).map_err(keep).ok();
        let lines = file.into_iter().flat_map(|file| BufReader::new(file).split(b'\n'));
        let lines = lines.map_while(move |line| line.map_err(keep).ok());
        lines.map(|line| String::from_utf8_lossy(&line).into_owned())
    }

    /// Whether the content is another than before, and has stayed so from one look to the next.
    pub fn look(&mut self) -> io::Result<bool> {
        let metadata = std::fs::metadata(&self.path)?;
        let marks = marks(&metadata);
        let now = i64::try_from(Unix::now().0.as_secs()).unwrap_or(i64::MAX);
        let settled = metadata.mtime().max(metadata.ctime()) < now.saturating_sub(SETTLED);
        if settled && self.marks == Some(marks) {
            return Ok(false);
        }
        let content = Some(hash(&self.path)?);
        // Who writes in place may be half-way: what is new counts when it is seen twice.
        let is_first = self.content.is_none();
        if self.content != content && !is_first && self.coming != content {
            self.coming = content;
            return Ok(false);
        }
        (self.marks, self.coming) = (Some(marks), None);
        let changed = self.content != content;
        self.content = content;
        Ok(changed)
    }
}

/// Piece by piece: a list of a million lines is not held for that.
fn hash(path: &Path) -> io::Result<u64> {
    let (mut file, mut hasher) = (File::open(path)?, DefaultHasher::new());
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(n) => hasher.write(piece.get(..n).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("sidegate-files-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn content_counts_and_nothing_else() {
        let directory = directory("content");
        let path = directory.join("file");
        std::fs::write(&path, "a").unwrap();
        let mut watched = Watched::new(&path);
        assert!(watched.look().unwrap());
        assert!(!watched.look().unwrap());
        std::fs::write(&path, "a").unwrap();
        assert!(!watched.look().unwrap(), "written anew, but the same");
        std::fs::write(&path, "c").unwrap();
        assert!(!watched.look().unwrap(), "half-way, perhaps");
        std::fs::write(&path, "b").unwrap();
        assert!(!watched.look().unwrap(), "half-way again");
        assert!(watched.look().unwrap(), "as long as before");
        watched.forget();
        assert!(watched.look().unwrap(), "nothing of it is known");
        std::fs::remove_file(&path).unwrap();
        assert!(watched.look().is_err());
        std::fs::write(&path, "b").unwrap();
        assert!(!watched.look().unwrap(), "back as it was");
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_swapped_symbolic_link_is_seen() {
        let directory = directory("link");
        let (link, next) = (directory.join("file"), directory.join("next"));
        for name in ["one", "two"] {
            std::fs::write(directory.join(name), name).unwrap();
        }
        std::os::unix::fs::symlink(directory.join("one"), &link).unwrap();
        let mut watched = Watched::new(&link);
        assert!(watched.look().unwrap());
        std::os::unix::fs::symlink(directory.join("two"), &next).unwrap();
        std::fs::rename(&next, &link).unwrap();
        assert!(!watched.look().unwrap());
        assert!(watched.look().unwrap());
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn lines_end_where_reading_fails_and_that_is_told() {
        let directory = directory("lines");
        let path = directory.join("file");
        std::fs::write(&path, b"one\r\n\xff\nthree").unwrap();
        let failed = Cell::new(None);
        assert_eq!(Watched::new(&path).lines(&failed).collect::<Vec<_>>(), ["one\r", "\u{fffd}", "three"]);
        assert!(failed.take().is_none());
        for unreadable in [directory.clone(), directory.join("none")] {
            assert_eq!(Watched::new(&unreadable).lines(&failed).count(), 0);
            assert!(failed.take().is_some(), "{}", unreadable.display());
        }
        std::fs::remove_dir_all(directory).unwrap();
    }
}
