//! Files that may change while the gate runs. Their content counts: a `ConfigMap` is changed by swapping a
//! symbolic link, an editor by writing a new file.

use std::fs::Metadata;
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::base::clock::Unix;

/// A file changed less long ago may have changed again since without showing it.
const SETTLED: i64 = 2;

/// How often a file is looked at.
pub const LOOK: Duration = Duration::from_secs(1);
/// How soon again, when it has another content.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

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

    /// The content, once it is another than before and stays so from one look to the next.
    pub fn look(&mut self) -> io::Result<Option<Vec<u8>>> {
        let metadata = std::fs::metadata(&self.path)?;
        let marks = marks(&metadata);
        let now = i64::try_from(Unix::now().0.as_secs()).unwrap_or(i64::MAX);
        let settled = metadata.mtime().max(metadata.ctime()) < now.saturating_sub(SETTLED);
        if settled && self.marks == Some(marks) {
            return Ok(None);
        }
        let bytes = std::fs::read(&self.path)?;
        let mut hasher = DefaultHasher::new();
        hasher.write(&bytes);
        let content = Some(hasher.finish());
        // Who writes in place may be half-way: what is new counts when it is seen twice.
        let is_first = self.content.is_none();
        if self.content != content && !is_first && self.coming != content {
            self.coming = content;
            return Ok(None);
        }
        (self.marks, self.coming) = (Some(marks), None);
        let changed = self.content != content;
        self.content = content;
        Ok(changed.then_some(bytes))
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
        assert_eq!(watched.look().unwrap().as_deref(), Some(&b"a"[..]));
        assert_eq!(watched.look().unwrap(), None);
        std::fs::write(&path, "a").unwrap();
        assert_eq!(watched.look().unwrap(), None, "written anew, but the same");
        std::fs::write(&path, "c").unwrap();
        assert_eq!(watched.look().unwrap(), None, "half-way, perhaps");
        std::fs::write(&path, "b").unwrap();
        assert_eq!(watched.look().unwrap(), None, "half-way again");
        assert_eq!(watched.look().unwrap().as_deref(), Some(&b"b"[..]), "as long as before");
        std::fs::remove_file(&path).unwrap();
        assert!(watched.look().is_err());
        std::fs::write(&path, "b").unwrap();
        assert_eq!(watched.look().unwrap(), None, "back as it was");
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
        assert_eq!(watched.look().unwrap().as_deref(), Some(&b"one"[..]));
        std::os::unix::fs::symlink(directory.join("two"), &next).unwrap();
        std::fs::rename(&next, &link).unwrap();
        assert_eq!(watched.look().unwrap(), None);
        assert_eq!(watched.look().unwrap().as_deref(), Some(&b"two"[..]));
        std::fs::remove_dir_all(directory).unwrap();
    }
}
