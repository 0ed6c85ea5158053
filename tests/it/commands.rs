//! The program itself: signals, exit codes, and the commands that talk to a running gate.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use std::time::Duration;

use tokio::time::Instant;

use super::harness::{Backend, Config, Gate, Handshake, Issuer, eventually};

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

#[test]
fn a_report_names_who_and_the_line_and_reports_the_other_files_if_one_is_unreadable() {
    let folder = std::env::temp_dir().join(format!("sidegate-report-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (log, config) = (folder.join("gate.log"), folder.join("sidegate.toml"));
    for format in ["json", "text"] {
        let (issuer, backend) = (Issuer::start(), Backend::start());
        let shadow = Config::new(&issuer, &backend)
            .set("log.format", &format!("'{format}'"))
            .route("path = '/ws/*'\nmode = 'shadow'\norigin = { allow = ['https://chat.example.com'] }");
        let gate = Gate::start(&shadow);
        let good = Handshake::to("/ws/a").bearer(&issuer.good_token());
        let handshakes = [
            &good,
            &good.clone().page(),
            &good.clone().origin("https://staff.example.com"),
            &Handshake::to("/ws/b"),
        ];
        let clients = handshakes.map(|handshake| gate.open(handshake));
        // Of one session both lines are there.
        let mut clients = clients.into_iter().rev();
        drop(clients.next());
        eventually("its end", || gate.log_text().contains("session_closed").then_some(()));
        let lines = gate.log_text();
        std::fs::write(&log, lines).unwrap();
        std::fs::write(&config, shadow.text()).unwrap();
        let output = command("report", &config).arg(&log).output().unwrap();
        let told = String::from_utf8(output.stdout).unwrap();
        assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
        assert!(told.starts_with("2 of 4 sessions on /ws/* would have been refused\n"), "{told}");
        let line = shadow.text().lines().position(|line| line.starts_with("origin = ")).unwrap() + 1;
        for part in [
            "  origin https://staff.example.com\n".to_owned(),
            format!("{}:{line}: route[1].origin.allow = [\"https://chat.example.com\"]\n", config.display()),
            "add \"https://staff.example.com\" to origin.allow of this [[route]]".into(),
            "route[1].auth = \"required\" (default)\n".into(),
        ] {
            assert!(told.contains(&part), "{part} in {told}");
        }
        assert!(!told.contains("no log line"), "{told}");

        let mut piped = command("report", &config);
        let piped = piped.stdin(std::fs::File::open(&log).unwrap()).output().unwrap();
        assert_eq!(String::from_utf8(piped.stdout).unwrap(), told);
        let missing = folder.join("missing.log");
        let some = command("report", &config).arg(&missing).arg(&log).output().unwrap();
        assert_eq!((some.status.code(), String::from_utf8(some.stdout).unwrap()), (Some(1), told));
        assert!(String::from_utf8_lossy(&some.stderr).contains(&missing.display().to_string()));
    }
    // Where a configuration is named it must be there.
    assert_eq!(
        command("report", &folder.join("none.toml")).arg(&log).output().unwrap().status.code(),
        Some(78)
    );
    std::fs::remove_dir_all(&folder).unwrap();
}
