//! The program itself, as an operator runs it.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use super::client::Answered;
use super::{Answer, Client, Folder, Handshake, eventually};

/// `sidegate NAME --config FILE`
pub fn sidegate(name: &str, config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidegate"));
    command.arg(name).arg("--config").arg(config);
    command
}

/// Exit code, standard output and standard error of a command that gets this on its standard input.
pub fn said(command: &mut Command, input: &str) -> (i32, String, String) {
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().unwrap();
    // Who does not read it has said so by its exit code.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// A running gate.
pub struct Running {
    child: Child,
    pub address: SocketAddr,
    pub folder: Folder,
    /// What it has said on standard output.
    said: Arc<Mutex<String>>,
}

impl Running {
    /// Runs with this file, these arguments and these variables, once it listens.
    pub fn start(text: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let folder = Folder::new();
        let config = folder.write("sidegate.toml", text);
        let mut command = sidegate("run", &config);
        let mut child =
            command.args(arguments).envs(variables.to_vec()).stdout(Stdio::piped()).spawn().unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let (lines, heard) = (BufReader::new(child.stdout.take().unwrap()).lines(), Arc::clone(&said));
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                heard.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        let address = eventually("the program to listen", || {
            let said = said.lock().unwrap();
            let mut words = said.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':'));
            words.find_map(|word| word.parse().ok())
        });
        Self { child, address, folder, said }
    }

    pub fn write(&self, text: &str) {
        self.folder.write("sidegate.toml", text);
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it so many signals in a row.
    pub fn signal(&self, name: &str, times: usize) {
        let script = format!("for i in $(seq {times}); do kill -{name} {}; done", self.child.id());
        assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
    }

    pub fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// Waits until it has said this so often.
    pub fn says(&self, text: &str, times: usize) {
        eventually(text, || (self.said().matches(text).count() >= times).then_some(()));
    }

    pub fn upgrade(&self, handshake: &Handshake) -> (Client, Answer) {
        let mut client = Client::connect(self.address, Answered::default());
        client.send(&handshake.bytes());
        let answer = client.head();
        (client, answer)
    }

    pub fn status(&self, handshake: &Handshake) -> u16 {
        self.upgrade(handshake).1.status
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
