//! A real redis-server of a test's own.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::super::harness::{Folder, eventually};

/// A port that was free a moment ago.
pub fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Runs until dropped, and forgets everything when it ends.
pub struct Redis {
    child: Child,
    pub port: u16,
    arguments: Vec<String>,
    pub folder: Folder,
}

impl Redis {
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// With these arguments too.
    pub fn with(arguments: &[&str]) -> Self {
        let (folder, port) = (Folder::new(), port());
        let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
        let child = spawn(&folder, port, &arguments);
        let redis = Self { child, port, arguments, folder };
        redis.await_answer();
        redis
    }

    fn await_answer(&self) {
        eventually("redis-server to listen", || {
            std::net::TcpStream::connect(("127.0.0.1", self.port)).ok().map(drop)
        });
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// A command, by redis-cli with these arguments before it; what it says.
    pub fn say_as(&self, options: &[&str], command: &[&str]) -> String {
        let output = Command::new("redis-cli")
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(options)
            .args(command)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub fn say(&self, command: &[&str]) -> String {
        self.say_as(&[], command)
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The same server again, at the same place and empty.
    pub fn restart(&mut self) {
        self.child = spawn(&self.folder, self.port, &self.arguments);
        self.await_answer();
    }

    pub fn signal(&self, name: &str) {
        let kill = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(kill.unwrap().success());
    }

    /// Stops answering, but for its connections.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    pub fn resume(&self) {
        self.signal("CONT");
    }
}

fn spawn(folder: &Folder, port: u16, arguments: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]).args(["--dir"]);
    command.arg(folder.path("."));
    if !arguments.iter().any(|argument| argument == "--port") {
        command.args(["--port", &port.to_string()]);
    }
    let child = command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    child.unwrap_or_else(|error| panic!("redis-server: {error} (Debian: redis-server)"))
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A little later than anything that should not happen would have happened.
pub fn a_while() {
    std::thread::sleep(Duration::from_millis(300));
}
