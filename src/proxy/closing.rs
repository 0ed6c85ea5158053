//! The end of a socket: Close frame, FIN, then read and discard until the peer's end. Without the last
//! step unread bytes would make the kernel send a reset, which destroys the Close frame on its way.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// More than this a peer that has been told goodbye does not get to send.
const MAX_DISCARD: usize = 64 * 1024;

/// A deadline that `"off"` moves out of the way.
pub const FOREVER: Duration = Duration::from_secs(10 * 366 * 86_400);

/// Sends the last frame, if there is one, and FIN.
pub async fn say_goodbye<S: AsyncWrite + Unpin>(socket: &mut S, frame: &[u8]) -> std::io::Result<()> {
    if !frame.is_empty() {
        socket.write_all(frame).await?;
    }
    socket.shutdown().await
}

/// Reads until the peer's end, and keeps nothing.
pub async fn discard<S: AsyncRead + Unpin>(socket: &mut S) {
    let mut space = [0; 2048];
    let mut seen = 0;
    while let Ok(n) = socket.read(&mut space).await {
        seen += n;
        if n == 0 || seen > MAX_DISCARD {
            return;
        }
    }
}
