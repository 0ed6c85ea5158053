//! `[blacklist] redis`

use std::time::Duration;

use super::server::{Server, Wrong};
use crate::base::section::{Section, masked};
use crate::base::value::Span;
use crate::policy::foreign::Pattern;

/// `[blacklist] redis`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisSettings {
    pub url: String,
    pub prefix: String,
    /// Keys of a backend's own blacklist.
    pub keys: Vec<Pattern>,
    /// How often those are looked up for live sessions; `None` = at the handshake alone.
    pub sweep: Option<Duration>,
    pub ca_file: Option<String>,
}

impl RedisSettings {
    /// Reads the table, which must have a `url`.
    pub fn read(section: &Section<'_>) -> Option<Self> {
        let url = section.required::<String>("url", "where the server is");
        let prefix: String = section.get("prefix", "sidegate:".into());
        if prefix.contains(['{', '}']) {
            section.problem("prefix", "accepted: text without braces, which name the slot of a cluster");
        }
        let keys: Vec<String> = section.get("keys", Vec::new());
        let parsed: Result<Vec<_>, _> = keys.iter().map(|key| Pattern::parse(key)).collect();
        let keys = parsed.unwrap_or_else(|problem| {
            section.problem("keys", problem);
            Vec::new()
        });
        let sweep = section.get("sweep", Some(Span(Duration::from_secs(5)))).map(|span| span.0);
        let ca_file = section.optional("ca_file");
        let settings = Self { url: url?, prefix, keys, sweep, ca_file };
        match Server::new(&settings.url, settings.ca_file.as_deref()) {
            Ok(_) => Some(settings),
            Err(Wrong::CaFile(problem)) => {
                section.problem("ca_file", problem);
                None
            }
            Err(Wrong::Url(problem)) => {
                section.problem("url", problem);
                None
            }
        }
    }

    /// Where the server is, for the log.
    pub fn place(&self) -> String {
        masked(&self.url)
    }

    /// Whether the tokens of live sessions have to be remembered, for a key is made of them.
    pub fn needs_token(&self) -> bool {
        self.keys.iter().any(Pattern::needs_token)
    }
}
