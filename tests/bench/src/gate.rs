//! A gate that the bench starts itself: for what needs a start or a configuration of its own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

use crate::client::{read_head, status, wrong};
use crate::rows::PATIENCE;

pub(crate) struct Gate {
    child: Child,
    admin: PathBuf,
    pub(crate) port: u16,
}

/// A histogram of the gate, or what has come to it between two moments.
pub(crate) struct Histogram {
    pub(crate) sum: f64,
    pub(crate) count: f64,
}

impl Gate {
    /// `DIR/gate NAME` runs `DIR/NAME.toml`, whose admin listener is `DIR/NAME.sock`.
    pub(crate) async fn start(dir: &Path, name: &str, port: u16) -> io::Result<Self> {
        let child = Command::new(dir.join("gate")).arg(name).stdin(Stdio::null()).spawn()?;
        let mut gate = Self { child, admin: dir.join(format!("{name}.sock")), port };
        let start = Instant::now();
        loop {
            if gate.ask("GET", "/readyz", "").await.is_ok_and(|(status, _)| status == 200) {
                return Ok(gate);
            }
            if let Some(status) = gate.child.try_wait()? {
                return wrong(format!("the gate {name} has ended: {status}"));
            }
            if start.elapsed() > PATIENCE {
                return wrong(format!("the gate {name} is not ready"));
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Status and body of what its admin listener answers.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
        let mut stream = UnixStream::connect(&self.admin).await?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut buffer = Vec::with_capacity(1024);
        let head = read_head(&mut stream, &mut buffer).await?;
        stream.read_to_end(&mut buffer).await?;
        let status = status(&head).ok_or_else(|| io::Error::other("an answer without a status"))?;
        Ok((status, String::from_utf8_lossy(&buffer).into_owned()))
    }

    /// How many sessions a revocation has ended.
    pub(crate) async fn revoke(&self, what: &str, value: &str) -> io::Result<usize> {
        let (status, body) = self.ask("POST", "/revocations", &format!(r#"{{"{what}":"{value}"}}"#)).await?;
        let closed = body.split_once(r#""closed":"#).and_then(|(_, rest)| {
            rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok())
        });
        match closed {
            Some(closed) if status == 200 || status == 201 => Ok(closed),
            _ => wrong(format!("POST /revocations: {status}, {body}")),
        }
    }

    /// The values of samples without labels.
    async fn samples<const N: usize>(&self, names: [String; N]) -> io::Result<[f64; N]> {
        let (_, text) = self.ask("GET", "/metrics", "").await?;
        let mut values = [0.0; N];
        for (name, value) in names.iter().zip(&mut values) {
            let sample = text.lines().find_map(|line| line.strip_prefix(name.as_str())?.strip_prefix(' '));
            *value = sample
                .and_then(|sample| sample.parse().ok())
                .ok_or_else(|| io::Error::other(format!("the gate has no metric {name}")))?;
        }
        Ok(values)
    }

    pub(crate) async fn gauge(&self, name: &str) -> io::Result<f64> {
        Ok(self.samples([format!("sidegate_{name}")]).await?[0])
    }

    pub(crate) async fn histogram(&self, name: &str) -> io::Result<Histogram> {
        let [sum, count] =
            self.samples([format!("sidegate_{name}_sum"), format!("sidegate_{name}_count")]).await?;
        Ok(Histogram { sum, count })
    }
}

impl Histogram {
    /// The mean, in seconds, of what came after an earlier reading, which must be `count` values.
    pub(crate) fn mean_since(&self, before: &Self, count: usize) -> io::Result<f64> {
        let more = self.count - before.count;
        if (more - count as f64).abs() > 0.5 {
            return wrong(format!("the gate has measured {more} times, not {count}"));
        }
        Ok((self.sum - before.sum) / more)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        // `run` ends what has left this behind.
        drop(fs::remove_file(self.admin.with_extension("gate")));
    }
}
