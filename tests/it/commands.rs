//! The program itself: signals, exit codes, and the commands that talk to a running gate.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use std::time::Duration;

use tokio::time::Instant;

/// A running program with its admin socket in a folder of its own.
struct Program {
    child: Child,
    config: PathBuf,
}

fn command(name: &str, config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidegate"));
    command.arg(name).arg("--config").arg(config);
    command
}

impl Program {
    /// `delay` of the drain.
    fn start(name: &str, delay: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("sidegate-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let config = folder.join("sidegate.toml");
        let text = format!(
            "[listen]\naddress = \"127.0.0.1:0\"\nmax_connections = 100\n[admin]\naddress = \"unix:{}\"\n\
             [[issuer]]\nurl = \"http://127.0.0.1:9/realms/demo\"\naudiences = [\"chat\"]\n[drain]\ndelay = \"{delay}\"\ndeadline = \"20s\"\n",
            folder.join("admin.sock").display(),
        );
        std::fs::write(&config, text).unwrap();
        let child = command("run", &config).stdout(std::process::Stdio::null()).spawn().unwrap();
        let program = Self { child, config };
        let until = Instant::now() + Duration::from_secs(10);
        while !program.ask("healthcheck", &[]).status.success() {
            assert!(Instant::now() < until, "never healthy");
            std::thread::sleep(Duration::from_millis(20));
        }
        program
    }

    fn ask(&self, name: &str, more: &[&str]) -> Output {
        command(name, &self.config).args(more).output().unwrap()
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    fn ended(&mut self) -> ExitStatus {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(self.config.parent().unwrap());
    }
}

#[test]
fn a_drain_that_is_waited_for_has_ended_and_the_signal_after_it_ends_the_gate_at_once() {
    let mut program = Program::start("drain", "300ms");
    let began = Instant::now();
    let drained = program.ask("drain", &["--wait"]);
    assert!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stderr));
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert!(program.ask("healthcheck", &[]).status.success(), "it lives until the signal");
    program.signal("-TERM");
    assert_eq!(program.ended().code(), Some(0));
    assert_eq!(program.ask("healthcheck", &[]).status.code(), Some(1));
    assert_eq!(program.ask("drain", &[]).status.code(), Some(1));
}

#[test]
fn the_first_signal_drains_and_exits_with_0() {
    for signal in ["-TERM", "-INT"] {
        let mut program = Program::start(&format!("signal{signal}"), "0s");
        program.signal(signal);
        assert_eq!(program.ended().code(), Some(0), "{signal}");
    }
}

#[test]
fn a_second_signal_cuts_and_exits_with_1() {
    let mut program = Program::start("second", "15s");
    program.signal("-TERM");
    std::thread::sleep(Duration::from_millis(200));
    program.signal("-TERM");
    assert_eq!(program.ended().code(), Some(1));
}
