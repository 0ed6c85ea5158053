//! A folder of a test's own.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Gone when dropped.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("sidegate-it-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file as `ConfigMap`s and careful editors do: whoever reads has the old one or the new one.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let next = self.path(".next");
        std::fs::write(&next, text).unwrap();
        self.rename(&next, name)
    }

    /// Puts a file in the place of another.
    pub fn rename(&self, from: &Path, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::rename(from, &path).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
