//! What the kernel knows of a peer: its process and that one's children (nginx's worker), all threads.

use std::fs;
use std::io;
use std::process::{Command, Stdio};

use crate::client::wrong;

/// Nanoseconds of CPU, user and system, since the start.
pub(crate) fn cpu(pid: u32) -> io::Result<u64> {
    let mut sum = 0;
    for process in family(pid)? {
        for thread in fs::read_dir(format!("/proc/{process}/task"))? {
            // A thread may end while we look.
            let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
            sum += text.split(' ').next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Ok(sum)
}

/// Bytes resident. From `smaps_rollup`, which counts pages: `VmRSS` is off by up to hundreds of KiB.
pub(crate) fn rss(pid: u32) -> io::Result<u64> {
    family(pid)?.into_iter().map(|process| bytes(&format!("/proc/{process}/smaps_rollup"), "Rss:")).sum()
}

/// The most bytes that a single process has had resident since [`forget_peak`].
pub(crate) fn peak(pid: u32) -> io::Result<u64> {
    bytes(&format!("/proc/{pid}/status"), "VmHWM:")
}

pub(crate) fn forget_peak(pid: u32) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5")
}

/// Bytes of the file that it runs.
pub(crate) fn executable(pid: u32) -> io::Result<u64> {
    Ok(fs::metadata(format!("/proc/{pid}/exe"))?.len())
}

/// Moves a process with all its threads.
pub(crate) fn place(pid: u32, cpus: &str) -> io::Result<()> {
    command("taskset", &["-acp", cpus, &pid.to_string()])
}

/// As nginx must be ended, so that its worker ends too.
pub(crate) fn terminate(pid: u32) -> io::Result<()> {
    command("kill", &["-TERM", &pid.to_string()])
}

fn command(program: &str, arguments: &[&str]) -> io::Result<()> {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { wrong(format!("{program} {arguments:?}: {status}")) }
}

fn bytes(path: &str, name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().map_err(io::Error::other)?;
    Ok(kib * 1024)
}

fn family(pid: u32) -> io::Result<Vec<u32>> {
    let mut all = vec![pid];
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let children = fs::read_to_string(thread?.path().join("children")).unwrap_or_default();
        all.extend(children.split_whitespace().filter_map(|word| word.parse::<u32>().ok()));
    }
    Ok(all)
}
