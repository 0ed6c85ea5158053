//! The end of a socket: Close frame, FIN, then read and discard until the peer's end. Without the last
//! step unread bytes would make the kernel send a reset, which destroys the Close frame on its way.

use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::base::value::LONGEST;

/// More than this a peer that has been told goodbye does not get to send.
const MAX_DISCARD: usize = 64 * 1024;

/// A deadline that `"off"` moves out of the way.
pub const FOREVER: Duration = LONGEST;

/// Sends the last frame, if there is one, and FIN.
pub async fn say_goodbye<S: AsyncWrite + Unpin>(socket: &mut S, frame: &[u8]) -> std::io::Result<()> {
    if !frame.is_empty() {
        socket.write_all(frame).await?;
    }
    socket.shutdown().await
}

/// Reads until the peer's end, and keeps nothing.
pub async fn discard<S: AsyncRead + Unpin>(socket: &mut S) {
    let mut seen = 0;
    std::future::poll_fn(|cx| {
        // On the stack of the poll, not in the future: sessions by the thousand may end at once.
        let mut space = [MaybeUninit::uninit(); 4096];
        loop {
            let mut space = ReadBuf::uninit(&mut space);
            match Pin::new(&mut *socket).poll_read(cx, &mut space) {
                Poll::Ready(Ok(())) if !space.filled().is_empty() && seen <= MAX_DISCARD => {
                    seen += space.filled().len();
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}
