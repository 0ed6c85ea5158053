//! The gate as a process of its own, what the kernel says of it, and peers that are processes too.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::super::harness::{
    Client, Config, Folder, Frame, Handshake, Issuer, PATIENCE, Running, eventually, masked,
};
use super::super::sessions::wire::{Upstream, Wire, bare_config, good, unmasked};

/// A gate with the keys of its issuer, one worker, and its admin listener on a unix socket.
pub struct Watched {
    program: Running,
    pub issuer: Issuer,
    admin: PathBuf,
    _folder: Folder,
}

impl Watched {
    pub fn start(upstream: SocketAddr, configure: impl FnOnce(Config) -> Config) -> Self {
        let (issuer, folder) = (Issuer::start(), Folder::new());
        let admin = folder.path("admin.sock");
        let config = bare_config(&format!("http://{upstream}"))
            .issuer(&issuer, "leeway = '0s'")
            .set("admin.address", &format!("'unix:{}'", admin.display()))
            .set("listen.trusted_proxies", "[]")
            .set("limits.attempts_per_address", "'off'");
        let program = Running::start(&configure(config).text(), &[], &[]);
        program.says("jwks_ready", 1);
        Self { program, issuer, admin, _folder: folder }
    }

    /// A session with both of its ends.
    pub fn pair(&self, upstream: &Upstream) -> (Client, Wire) {
        self.pair_by(upstream, &good(&self.issuer))
    }

    pub fn pair_by(&self, upstream: &Upstream, handshake: &Handshake) -> (Client, Wire) {
        let mut client = self.client();
        client.send(&handshake.bytes());
        let wire = upstream.upgrade();
        let answer = client.head();
        assert_eq!(answer.status, 101, "{}", answer.text);
        (client, wire)
    }

    pub fn client(&self) -> Client {
        Client::connect(self.address, std::sync::Arc::default())
    }

    pub fn operator(&self) -> Operator {
        Operator::connect(&self.admin)
    }

    pub fn metric(&self, series: &str) -> u64 {
        self.operator().metric(series)
    }

    fn proc(&self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.id().to_string()).join(name)
    }

    /// Numbers of its open files.
    pub fn files(&self) -> Vec<usize> {
        let entries = fs::read_dir(self.proc("fd")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
    }

    pub fn threads(&self) -> usize {
        fs::read_dir(self.proc("task")).unwrap().count()
    }

    /// Resident memory in KiB.
    pub fn memory(&self) -> u64 {
        let text = fs::read_to_string(self.proc("smaps_rollup")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Hundredths of a second that it has kept a CPU busy.
    pub fn ticks(&self) -> u64 {
        let text = fs::read_to_string(self.proc("stat")).unwrap();
        let after_name = text.rsplit(')').next().unwrap();
        after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    }

    /// Stops it until [`Self::resume`].
    pub fn stop(&self) {
        stop(self.id());
    }

    pub fn resume(&self) {
        signal(self.id(), "CONT");
    }
}

impl Deref for Watched {
    type Target = Running;

    fn deref(&self) -> &Running {
        &self.program
    }
}

/// A frame goes through in either direction.
pub fn assert_alive(client: &mut Client, wire: &mut Wire) {
    client.send(&masked(0x81, b"still here"));
    assert_eq!(wire.frame().payload, b"still here");
    wire.send(&unmasked(0x81, b"me too"));
    assert_eq!(client.frame(), Frame { first: 0x81, payload: b"me too".to_vec() });
}

/// A connection to the admin listener that is kept.
pub struct Operator(UnixStream);

impl Operator {
    fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    /// The body of the answer.
    pub fn get(&mut self, path: &str) -> String {
        self.0.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
        let (mut text, mut chunk) = (String::new(), [0; 4096]);
        loop {
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
                if body.len() >= length.parse().unwrap() {
                    return body.to_owned();
                }
            }
            let read = self.0.read(&mut chunk).unwrap();
            assert_ne!(read, 0, "the operator was left alone after {text}");
            text.push_str(std::str::from_utf8(&chunk[..read]).unwrap());
        }
    }

    /// As [`super::super::harness::Gate::metric`].
    pub fn metric(&mut self, series: &str) -> u64 {
        let (text, series) = (self.get("/metrics"), format!("sidegate_{series} "));
        text.lines().find_map(|line| line.strip_prefix(&series)).map_or(0, |value| value.parse().unwrap())
    }
}

/// A process that has nothing but one socket, and reads it as long as it may run.
pub struct Peer(Child);

impl Peer {
    /// Hands the socket over.
    pub fn of(stream: &TcpStream) -> Self {
        // A read that had a time limit would end when the process is continued.
        stream.set_read_timeout(None).unwrap();
        let socket = OwnedFd::from(stream.try_clone().unwrap());
        let cat = Command::new("cat").stdin(Stdio::from(socket)).stdout(Stdio::piped()).spawn();
        Self(cat.unwrap())
    }

    pub fn stop(&self) {
        stop(self.0.id());
    }

    /// Continues it; all that its socket has brought until the end.
    pub fn resume(mut self) -> Vec<u8> {
        signal(self.0.id(), "CONT");
        let mut seen = Vec::new();
        self.0.stdout.take().unwrap().read_to_end(&mut seen).unwrap();
        seen
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn signal(process: u32, name: &str) {
    let kill = Command::new("sh").args(["-c", &format!("kill -{name} {process}")]).status();
    assert!(kill.unwrap().success());
}

/// Returns when none of its threads runs any more.
fn stop(process: u32) {
    signal(process, "STOP");
    eventually("a process to stop", || {
        let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap();
        let state = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        threads.flatten().all(|thread| state(thread).contains(") T ")).then_some(())
    });
}

/// Sets how many files a process may have open: the number of each is below this.
pub fn limit_files(process: u32, files: usize) {
    let (process, files) = (process.to_string(), format!("--nofile={files}:"));
    assert!(Command::new("prlimit").args(["--pid", &process, &files]).status().unwrap().success());
}
