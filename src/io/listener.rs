//! Sockets that the gate listens on.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

/// How long accepting rests when there are no file descriptors left.
pub const REST: Duration = Duration::from_millis(100);

const BACKLOG: i32 = 4096;

/// File descriptors that are no client's: listeners, admin, fetches, the process's own.
const SPARE_FILES: u32 = 64;

/// How many connections the limit of open files carries, two descriptors each: the client's and the
/// backend's. With it what to tell if that is less than `wanted`.
pub fn affordable(wanted: Option<u32>) -> (u32, Option<String>) {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let files = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse::<u32>().ok());
    let affordable = files.map_or(u32::MAX, |files| (files.saturating_sub(SPARE_FILES) / 2).max(1));
    let told = wanted.filter(|wanted| affordable < *wanted).map(|wanted| {
        format!(
            "max_connections = {wanted} needs {} file descriptors, the limit is {}: lowered to {affordable}",
            u64::from(wanted) * 2 + u64::from(SPARE_FILES),
            files.unwrap_or_default()
        )
    });
    (wanted.unwrap_or(u32::MAX).min(affordable), told)
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    // Frames are small and wait for nobody; what is accepted inherits it.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// One listening socket for each worker on the same address: the kernel spreads the connections, and
/// no worker ever wakes another. The first bind is exclusive, for `SO_REUSEPORT` would otherwise let a
/// second gate on the same port take half of the connections without a word.
pub fn listen(address: SocketAddr, workers: usize) -> io::Result<Vec<std::net::TcpListener>> {
    let only = bind(address, false)?;
    only.listen(BACKLOG)?;
    let bound = only.local_addr()?.as_socket().unwrap_or(address);
    if workers <= 1 {
        return Ok(vec![only.into()]);
    }
    drop(only);
    (0..workers)
        .map(|_| {
            let socket = bind(bound, true)?;
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        })
        .collect()
}

/// Accepts one connection. Errors of a single connection are passed over; `None` = there is nothing to
/// accept with for now.
pub async fn accept(listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    loop {
        match listener.accept().await {
            Ok(accepted) => return Some(accepted),
            Err(error) if is_of_one_connection(&error) => {}
            Err(_) => return None,
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_gate_on_the_same_port_is_refused() {
        let first = listen(SocketAddr::from(([127, 0, 0, 1], 0)), 2).unwrap();
        assert_eq!(first.len(), 2);
        let address = first.first().unwrap().local_addr().unwrap();
        let error = listen(address, 2).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
