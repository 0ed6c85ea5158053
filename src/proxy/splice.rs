//! The byte pump. After the 101s bytes go from socket to socket untouched: inside one poll they are
//! read into the thread's scratch, scanned and written, so that an idle session owns no buffer. What
//! the other side does not take is kept, exactly sized, and reading stops until it is gone.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::closing::Farewell;
use super::kept::{Kept, is_enough};
use super::rates::Rates;
use super::watch::Watch;
use crate::base::reject::Reason;
use crate::policy::frame::{
    Budget, Compression, Counts, FrameLimits, Scan, Scanner, Sender, Stop, TAGGED_PONG,
};
use crate::state::sessions::Passed;

/// One read at most: larger reads save system calls, smaller ones memory that is shared anyway.
const SCRATCH: usize = 64 * 1024;
/// Room before what is read, for the bytes that the scanner holds back.
const HEADROOM: usize = 16;
/// One direction moves so much in a turn, so that a busy session leaves the thread to others.
const TURN: usize = 256 * 1024;
const SMALL_READ: usize = 2 * 1024;

const _: () = assert!(HEADROOM >= TAGGED_PONG, "held bytes fit before what is read");

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; HEADROOM + SCRATCH]);
}

/// Why a direction moves no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// All that was approved has been written.
    Stopped(Stop),
    SourceEnded,
    SinkFailed,
}

const UNLIMITED: FrameLimits =
    FrameLimits { message: None, fragments: None, rate: None, compression: Compression::Pass };

/// One direction.
#[derive(Debug)]
pub struct Half {
    sender: Sender,
    scanner: Scanner,
    kept: Kept,
    unflushed: bool,
    stop: Option<Stop>,
    /// A FIN follows its Close at once.
    pub is_last: bool,
    /// Since when the destination takes nothing of what waits for it.
    pub stalled: Option<Instant>,
    /// What has come since somebody looked.
    pub came: Came,
    /// A pong of the gate's own that has come.
    pub pong: Option<u16>,
    rates: Rates,
    lenient: Option<Lenient>,
    /// What shadow mode has to report: a limit that was passed, frames that can no longer be told apart.
    pub would_close: [Option<Reason>; 2],
}

/// From the source of a direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Came {
    #[default]
    Nothing,
    /// Pings, pongs, headers.
    Bytes,
    /// Bytes of a message.
    Message,
}

/// How a session in shadow mode goes on after what would have ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lenient {
    /// Frames are still followed.
    Unlimited,
    /// Frames can no longer be told apart: bytes just pass.
    Blind,
}

impl Half {
    pub fn new(sender: Sender) -> Self {
        Self {
            came: Came::Nothing,
            pong: None,
            sender,
            scanner: Scanner::new(sender),
            kept: Kept::default(),
            unflushed: false,
            stop: None,
            is_last: false,
            stalled: None,
            rates: Rates::default(),
            lenient: None,
            would_close: [None; 2],
        }
    }

    /// Bytes that came with the head: they are the first to be scanned and sent.
    pub fn begin_with(&mut self, early: &[u8], watch: Watch<'_>) {
        if !early.is_empty() {
            let mut early = early.to_vec();
            let approved = self.approve(&mut early, watch.began.0, watch);
            self.kept = Kept::keep(early.get(..approved).unwrap_or_default());
        }
    }

    /// Puts a frame of our own into the stream, where that is possible.
    pub fn place(&mut self, frame: &[u8]) -> bool {
        let may = self.may_follow() && self.stop.is_none();
        if may {
            self.kept = Kept::keep(frame);
        }
        may
    }

    /// Bytes wait for the destination, so the source is not read.
    pub fn is_stalled(&self) -> bool {
        !self.kept.rest().is_empty()
    }

    /// A Close has gone by.
    pub fn is_closed(&self) -> bool {
        matches!(self.stop, Some(Stop::Closed(_)))
    }

    /// Everything approved has been taken by the destination and ends at a frame boundary, so a frame
    /// of our own may follow.
    pub fn may_follow(&self) -> bool {
        self.kept.rest().is_empty() && self.scanner.at_boundary() && self.lenient != Some(Lenient::Blind)
    }

    fn budget(&mut self, limits: &FrameLimits, now: Instant) -> Budget {
        match self.sender {
            Sender::Client => self.rates.budget(limits.rate, now),
            Sender::Backend => Budget::UNLIMITED,
        }
    }

    fn account(&mut self, scan: &Scan, now: Instant, watch: Watch<'_>) {
        let only_controls = scan.counts.messages() == 0 && scan.counts != Counts::default();
        let moved = scan.approved > 0 && !only_controls;
        if moved {
            self.came = Came::Message;
        }
        if self.sender == Sender::Client {
            self.rates.spend(&scan.counts, now);
        }
        watch.passed(self.sender, scan, moved.then_some(now));
    }

    /// How much of a chunk may be forwarded; notes what it holds, and takes out what is not the
    /// destination's.
    fn approve(&mut self, chunk: &mut [u8], now: Instant, watch: Watch<'_>) -> usize {
        let (mut approved, mut end) = (0, chunk.len());
        loop {
            let rest = chunk.get(approved..end).unwrap_or_default();
            if self.lenient == Some(Lenient::Blind) {
                let scan = Scan { approved: rest.len(), ..Scan::default() };
                self.account(&scan, now, watch);
                return end;
            }
            let limits = if self.lenient.is_some() { &UNLIMITED } else { watch.limits };
            let budget = if self.lenient.is_some() { Budget::UNLIMITED } else { self.budget(limits, now) };
            let scan = self.scanner.scan(rest, limits, budget, watch.tag);
            self.account(&scan, now, watch);
            approved += scan.approved;
            if scan.pong.is_some() {
                self.pong = scan.pong;
                chunk.copy_within((approved + TAGGED_PONG).min(end)..end, approved);
                end = end.saturating_sub(TAGGED_PONG);
                continue;
            }
            match scan.stop {
                Some(Stop::TooBig | Stop::TooMany | Stop::Malformed) if watch.shadow => {
                    let reason = scan.stop.and_then(|stop| stop.reason(self.sender));
                    if let Some(free) = self.would_close.iter_mut().find(|told| told.is_none()) {
                        *free = reason;
                    }
                    let malformed = scan.stop == Some(Stop::Malformed);
                    self.lenient = Some(if malformed { Lenient::Blind } else { Lenient::Unlimited });
                }
                stop => {
                    self.stop = stop;
                    return approved;
                }
            }
        }
    }

    /// Moves bytes until neither side has or takes more, or the turn is over.
    pub fn poll<S, D>(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        source: &mut S,
        sink: &mut D,
        watch: Watch<'_>,
    ) -> Poll<Event>
    where
        S: AsyncRead + Unpin,
        D: Farewell,
    {
        let mut moved = 0;
        loop {
            match self.poll_kept(cx, now, sink) {
                Poll::Ready(true) => {}
                Poll::Ready(false) => return Poll::Ready(Event::SinkFailed),
                Poll::Pending => return Poll::Pending,
            }
            if let Some(stop) = self.stop {
                return Poll::Ready(Event::Stopped(stop));
            }
            if moved >= TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let step = BUFFER.with_borrow_mut(|buffer| self.step(cx, now, buffer, source, sink, watch));
            match step {
                Poll::Ready(Ok(read)) => moved += read,
                Poll::Ready(Err(event)) => return Poll::Ready(event),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// One read, and the write of what it brought.
    fn step<S, D>(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        buffer: &mut [u8],
        source: &mut S,
        sink: &mut D,
        watch: Watch<'_>,
    ) -> Poll<Result<usize, Event>>
    where
        S: AsyncRead + Unpin,
        D: Farewell,
    {
        let size = if is_enough() { SMALL_READ } else { SCRATCH };
        let space = buffer.get_mut(HEADROOM..HEADROOM + size).unwrap_or_default();
        let mut space = ReadBuf::new(space);
        match Pin::new(source).poll_read(cx, &mut space) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => return Poll::Ready(Err(Event::SourceEnded)),
            Poll::Pending => return Poll::Pending,
        }
        let read = space.filled().len();
        if read == 0 {
            return Poll::Ready(Err(Event::SourceEnded));
        }
        if self.sender == Sender::Client && watch.switch.has_ended() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let held = self.scanner.held().len();
        let begin = HEADROOM - held;
        if let Some(room) = buffer.get_mut(begin..HEADROOM) {
            room.copy_from_slice(self.scanner.held());
        }
        self.came = self.came.max(Came::Bytes);
        let chunk = buffer.get_mut(begin..HEADROOM + read).unwrap_or_default();
        let approved = self.approve(chunk, now, watch);
        let mut rest = chunk.get(..approved).unwrap_or_default();
        if self.is_last && self.is_closed() {
            rest = rest.get(sink.take_last(rest)..).unwrap_or_default();
        }
        while !rest.is_empty() {
            match Pin::new(&mut *sink).poll_write(cx, rest) {
                Poll::Ready(Ok(n)) if n > 0 => rest = rest.get(n..).unwrap_or_default(),
                Poll::Ready(_) => return Poll::Ready(Err(Event::SinkFailed)),
                Poll::Pending => {
                    self.kept = Kept::keep(rest);
                    self.stalled = Some(now);
                    return Poll::Pending;
                }
            }
        }
        self.unflushed = true;
        Poll::Ready(Ok(read))
    }

    /// Writes what is kept and flushes; `false` = the sink has failed.
    fn poll_kept<D: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        sink: &mut D,
    ) -> Poll<bool> {
        while !self.kept.rest().is_empty() {
            match Pin::new(&mut *sink).poll_write(cx, self.kept.rest()) {
                Poll::Ready(Ok(n)) if n > 0 => {
                    self.kept.took(n);
                    self.stalled = None;
                    self.unflushed = true;
                }
                Poll::Ready(_) => return Poll::Ready(false),
                Poll::Pending => {
                    self.stalled = self.stalled.or(Some(now));
                    return Poll::Pending;
                }
            }
        }
        if self.unflushed {
            match Pin::new(sink).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                // The bytes are with the sink, whose own wake-up will finish them.
                Poll::Pending => {}
            }
        }
        Poll::Ready(true)
    }

    /// Moves what the source still has to say before its Close.
    pub fn poll_rest<S, D>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        sink: &mut D,
        watch: Watch<'_>,
    ) -> Poll<()>
    where
        S: AsyncRead + Unpin,
        D: Farewell,
    {
        if self.stop.is_some() {
            return Poll::Ready(());
        }
        self.scanner.withhold_close();
        self.poll(cx, Instant::now(), source, sink, watch).map(|_| self.stop = None)
    }

    /// Completes this direction to the next frame boundary, and no further. Returns whether the
    /// destination is now at one.
    pub fn poll_boundary<S, D>(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut S,
        sink: &mut D,
        passed: &Passed,
    ) -> Poll<bool>
    where
        S: AsyncRead + Unpin,
        D: AsyncWrite + Unpin,
    {
        if self.lenient == Some(Lenient::Blind) {
            return Poll::Ready(false);
        }
        loop {
            match self.poll_kept(cx, Instant::now(), sink) {
                Poll::Ready(true) => {}
                Poll::Ready(false) => return Poll::Ready(false),
                Poll::Pending => return Poll::Pending,
            }
            if self.scanner.at_boundary() {
                return Poll::Ready(true);
            }
            let mut space = [MaybeUninit::uninit(); 4096];
            let mut space = ReadBuf::uninit(&mut space);
            match Pin::new(&mut *source).poll_read(cx, &mut space) {
                Poll::Ready(Ok(())) if !space.filled().is_empty() => {
                    let take = self.scanner.finish_frame(space.filled());
                    passed.add(0, take as u64);
                    self.kept = Kept::keep(space.filled().get(..take).unwrap_or_default());
                }
                Poll::Ready(_) => return Poll::Ready(false),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
