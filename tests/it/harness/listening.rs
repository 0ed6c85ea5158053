//! A gate whose admin listener may be anything.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use sidegate::app::drain::Control;
use sidegate::app::{self, Log};

use super::Config;

/// Runs until dropped.
pub struct Listening {
    pub admin: Option<SocketAddr>,
    pub probes: Option<SocketAddr>,
    pub public: SocketAddr,
    pub control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

impl Listening {
    pub fn start(config: &Config) -> Self {
        let loaded = app::config::read(&config.text(), std::iter::empty());
        let config = loaded.config.unwrap_or_else(|| panic!("{:?}", loaded.problems));
        let log = Log::to_memory(config.log);
        let bound = app::bind(config, log).unwrap();
        let (public, (admin, probes), control) =
            (bound.addresses()[0], bound.admin_addresses(), bound.control());
        let thread = std::thread::spawn(move || {
            bound.run(false).unwrap();
        });
        Self { admin, probes, public, control, thread: Some(thread) }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.control.drain_and_leave();
        self.thread.take().map(JoinHandle::join);
    }
}
