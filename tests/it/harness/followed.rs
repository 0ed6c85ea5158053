//! A gate that follows its configuration file.

use std::ops::Deref;
use std::path::PathBuf;

use sidegate::app::reload::Reloader;

use super::{Config, Folder, Gate, eventually};

/// The gate, and the folder of its file.
pub struct Followed {
    gate: Gate,
    pub folder: Folder,
}

impl Followed {
    /// Serves by a file of this text, and has fetched the keys of every issuer.
    pub fn start(config: &Config) -> Self {
        let followed = Self::start_without_keys(config);
        followed.await_keys();
        followed
    }

    pub fn start_without_keys(config: &Config) -> Self {
        let folder = Folder::new();
        let path = folder.write("sidegate.toml", &config.text());
        let gate = Gate::serve(&config.text(), Some(Reloader::new(path, Box::new(|settings| settings))));
        Self { gate, folder }
    }

    pub fn file(&self) -> PathBuf {
        self.folder.path("sidegate.toml")
    }

    /// Puts this text into the file.
    pub fn write(&self, text: &str) {
        self.folder.write("sidegate.toml", text);
    }

    /// How many reloads had this result, `success` or `failure`.
    pub fn reloads(&self, result: &str) -> u64 {
        self.metric(&format!("config_reloads_total{{result=\"{result}\"}}"))
    }

    /// Writes the file, asks for a reload as SIGHUP does, and waits until it is over and everybody has
    /// been judged again.
    pub fn reload(&self, config: &Config) {
        let (before, refused) = (self.reloads("success"), self.refusals());
        self.write(&config.text());
        self.control.reload();
        eventually("the reload", || {
            assert_eq!(self.refusals(), refused, "refused: {}", self.log_text());
            (self.reloads("success") > before).then_some(())
        });
    }

    /// The same with a file that must be refused; gives what is told of it.
    pub fn refused_reload(&self, text: &str) -> Vec<String> {
        let (holds, before) = (self.control.effective(), self.refusals());
        self.write(text);
        self.control.reload();
        eventually("a refused reload", || (self.refusals() > before).then_some(()));
        assert_eq!(self.control.effective(), holds, "taken over: {text}");
        let log = self.log();
        let refused = log.iter().filter(|line| line["event"] == "config_reload_refused").skip(before);
        refused.map(|line| line["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    fn refusals(&self) -> usize {
        self.log_text().matches("config_reload_refused").count()
    }
}

impl Deref for Followed {
    type Target = Gate;

    fn deref(&self) -> &Gate {
        &self.gate
    }
}
