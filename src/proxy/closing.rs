//! The end of a socket: Close frame, FIN, then read and discard until the peer's end. Without the last
//! step unread bytes would make the kernel send a reset, which destroys the Close frame on its way.

use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use crate::base::value::LONGEST;
use crate::io::dial::Stream;

/// More than this a peer that has been told goodbye does not get to send.
const MAX_DISCARD: usize = 64 * 1024;

/// A deadline that `"off"` moves out of the way.
pub const FOREVER: Duration = LONGEST;

/// A socket that can send its last bytes and the FIN in one packet: each one costs as much as a verdict.
pub trait Farewell: AsyncRead + AsyncWrite + Unpin {
    /// How many of them the socket has taken, for a FIN that must follow at once.
    fn take_last(&self, bytes: &[u8]) -> usize;
}

impl Farewell for TcpStream {
    fn take_last(&self, bytes: &[u8]) -> usize {
        const MSG_MORE: i32 = 0x8000;
        SockRef::from(self).send_with_flags(bytes, MSG_MORE).unwrap_or(0)
    }
}

impl Farewell for Stream {
    fn take_last(&self, bytes: &[u8]) -> usize {
        match self {
            Self::Tcp(stream) => stream.take_last(bytes),
            Self::Tls(_) | Self::Unix(_) => 0,
        }
    }
}

/// Sends the last bytes, if there are any, and FIN.
pub async fn say_goodbye<S: Farewell>(socket: &mut S, last: &[u8]) -> std::io::Result<()> {
    if !last.is_empty() {
        let taken = socket.take_last(last);
        socket.write_all(last.get(taken..).unwrap_or_default()).await?;
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
