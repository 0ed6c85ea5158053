//! Where WebSocket frames begin and end in a stream of bytes (RFC 6455 §5.2), and which of them pass.
//! The bytes themselves stay as they are: no unmasking, no re-framing. Refused is what would make the
//! account ambiguous; reserved opcodes, RSV bits and UTF-8 are the receiver's judgement.

use std::num::NonZeroU32;

use super::close::{Closed, Closing};
use super::profile::Profile;
use crate::base::reject::Reason;
use crate::base::section::Section;
use crate::base::value::{Count, Rate, Size, words};

/// What says that a ping is the gate's own.
pub type Tag = [u8; 8];

/// Payload of such a ping: tag and counter.
const TAGGED: u64 = 10;
/// Its pong as a client sends it: header, mask, payload. Longer than any header, which has two bytes,
/// eight of length, four of mask.
pub const TAGGED_PONG: usize = 16;
/// Most bytes that are ever held back.
const MAX_HELD: usize = TAGGED_PONG;

/// More pings and pongs of one client in a second are a flood, not a heartbeat.
pub const MAX_CONTROLS_PER_SECOND: u32 = 100;

words! {
    /// What happens to an offer of permessage-deflate.
    pub enum Compression { Pass = "pass", Strip = "strip" }
}

/// `[limits]`, the part that concerns one session's frames.
#[derive(Clone, Debug)]
pub struct FrameLimits {
    /// Payload bytes of a message on the wire, client to backend.
    pub message: Option<u64>,
    /// Frames of a message.
    pub fragments: Option<u32>,
    /// Data messages from the client.
    pub rate: Option<Rate>,
    pub compression: Compression,
}

/// Which of the keys whose defaults depend on the profile were given.
#[derive(Clone, Copy, Debug)]
pub struct GivenLimits {
    pub message: bool,
    pub compression: bool,
}

impl Default for FrameLimits {
    fn default() -> Self {
        Self { message: Some(16 << 20), fragments: Some(65_536), rate: None, compression: Compression::Pass }
    }
}

impl FrameLimits {
    /// The defaults for a backend. Daphne limits no message (CVE-2026-44545) and negotiates no
    /// compression.
    pub fn of(profile: Profile) -> Self {
        match profile {
            Profile::Generic => Self::default(),
            Profile::Daphne => {
                Self { message: Some(1 << 20), compression: Compression::Strip, ..Self::default() }
            }
        }
    }

    /// For a backend of another profile: its defaults where none was given.
    pub fn for_profile(&self, profile: Profile, given: GivenLimits) -> Self {
        let own = Self::of(profile);
        Self {
            message: if given.message { self.message } else { own.message },
            compression: if given.compression { self.compression } else { own.compression },
            ..self.clone()
        }
    }

    /// Reads the section; what it does not give is inherited.
    pub fn read(section: &Section<'_>, inherited: &Self) -> Self {
        Self {
            message: section.get("message", inherited.message.map(Size)).map(|size| size.0),
            fragments: section.get("fragments", inherited.fragments.map(Count)).map(|count| count.0),
            rate: section.get("messages_per_session", inherited.rate),
            compression: section.get("compression", inherited.compression),
        }
    }
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    Client,
    Backend,
}

/// Kinds of frames that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Binary,
    Ping,
    Pong,
    Close,
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::Text, Self::Binary, Self::Ping, Self::Pong, Self::Close];
}

/// Messages and control frames by [`Kind`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub text: u64,
    pub binary: u64,
    pub ping: u64,
    pub pong: u64,
    pub close: u64,
}

impl Counts {
    pub fn of(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Text => self.text,
            Kind::Binary => self.binary,
            Kind::Ping => self.ping,
            Kind::Pong => self.pong,
            Kind::Close => self.close,
        }
    }

    pub fn messages(&self) -> u64 {
        self.text + self.binary
    }

    pub fn controls(&self) -> u64 {
        self.ping + self.pong
    }
}

/// Why a scan went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Nothing after it is forwarded.
    Closed(Closed),
    Malformed,
    TooBig,
    TooMany,
}

impl Stop {
    /// Why the gate itself ends a session; `None` = one side has.
    pub fn reason(self, sender: Sender) -> Option<Reason> {
        match (self, sender) {
            (Self::Closed(_), _) => None,
            (Self::Malformed, Sender::Client) => Some(Reason::FrameMalformed),
            (Self::Malformed, Sender::Backend) => Some(Reason::UpstreamMalformed),
            (Self::TooBig, _) => Some(Reason::MessageTooBig),
            (Self::TooMany, _) => Some(Reason::MessageRateExceeded),
        }
    }
}

/// How many more of each may begin now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub messages: u64,
    pub controls: u64,
}

impl Budget {
    pub const UNLIMITED: Self = Self { messages: u64::MAX, controls: u64::MAX };
}

/// What a chunk holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// So many bytes from the start may be forwarded.
    pub approved: usize,
    pub counts: Counts,
    pub stop: Option<Stop>,
    /// What follows the approved bytes is a pong of the gate's own, [`TAGGED_PONG`] bytes, with this
    /// counter: to be taken out.
    pub pong: Option<u16>,
}

#[derive(Clone, Copy, Debug)]
struct Message {
    bytes: u64,
    /// Not 0, so that one more or less costs no room.
    fragments: NonZeroU32,
}

/// One direction of one socket. Invariant: what was approved ends at a frame boundary or inside the
/// payload of an approved frame; an incomplete header is held back.
#[derive(Clone, Debug)]
pub struct Scanner {
    sender: Sender,
    /// Payload of the current frame that is still to come.
    left: u64,
    held: [u8; MAX_HELD],
    have: u8,
    open: Option<Message>,
    closing: Option<Box<Closing>>,
    /// A Close is no longer let through.
    withholds_close: bool,
}

struct Header {
    length: usize,
    payload: u64,
    fin: bool,
    opcode: u8,
    mask: [u8; 4],
}

impl Scanner {
    pub fn new(sender: Sender) -> Self {
        Self {
            sender,
            left: 0,
            held: [0; MAX_HELD],
            have: 0,
            open: None,
            closing: None,
            withholds_close: false,
        }
    }

    /// Bytes held back: the next chunk must begin with them.
    pub fn held(&self) -> &[u8] {
        self.held.get(..usize::from(self.have)).unwrap_or_default()
    }

    /// Whether a frame of our own may follow what was approved.
    pub fn at_boundary(&self) -> bool {
        self.left == 0
    }

    /// From now on a Close is stopped at instead of let through: another one will follow what was approved.
    pub fn withhold_close(&mut self) {
        self.withholds_close = true;
    }

    /// How much of `chunk` belongs to the frame that is under way, and no further.
    pub fn finish_frame(&mut self, chunk: &[u8]) -> usize {
        let take = self.left.min(chunk.len() as u64);
        self.left -= take;
        usize::try_from(take).unwrap_or(chunk.len())
    }

    /// Reads a chunk that begins with the bytes held back from the one before.
    pub fn scan(&mut self, chunk: &[u8], limits: &FrameLimits, budget: Budget, tag: Option<&Tag>) -> Scan {
        self.have = 0;
        let mut scan = Scan::default();
        loop {
            let rest = chunk.get(scan.approved..).unwrap_or_default();
            if self.left > 0 {
                let taken = self.finish_frame(rest);
                if let Some(closing) = &mut self.closing {
                    closing.note(rest.get(..taken).unwrap_or_default());
                }
                scan.approved += taken;
                if self.left > 0 {
                    return scan;
                }
            }
            if let Some(closing) = &self.closing {
                scan.stop = Some(Stop::Closed(closing.closed()));
                return scan;
            }
            let rest = chunk.get(scan.approved..).unwrap_or_default();
            if rest.is_empty() {
                return scan;
            }
            match self.header(rest) {
                Ok(Some(header)) => {
                    if let Some(tag) = tag.filter(|_| self.may_be_ours(&header)) {
                        let Some(pong) = rest.first_chunk() else {
                            self.hold(rest);
                            return scan;
                        };
                        scan.pong = counter_of(pong, header.mask, *tag);
                        if scan.pong.is_some() {
                            return scan;
                        }
                    }
                    match self.enter(&header, limits, budget, &mut scan.counts) {
                        Ok(()) => scan.approved += header.length,
                        Err(stop) => {
                            scan.stop = Some(stop);
                            return scan;
                        }
                    }
                }
                Ok(None) => {
                    self.hold(rest);
                    return scan;
                }
                Err(stop) => {
                    scan.stop = Some(stop);
                    return scan;
                }
            }
        }
    }

    fn hold(&mut self, rest: &[u8]) {
        self.have = u8::try_from(rest.len()).unwrap_or(0);
        for (held, byte) in self.held.iter_mut().zip(rest) {
            *held = *byte;
        }
    }

    /// A pong as long as ours: only all of it tells.
    fn may_be_ours(&self, header: &Header) -> bool {
        self.sender == Sender::Client && header.opcode == 0xa && header.payload == TAGGED
    }

    /// The header at the start of `bytes`; `None` = not all of it is there yet.
    fn header(&self, bytes: &[u8]) -> Result<Option<Header>, Stop> {
        let Some(&[first, second]) = bytes.first_chunk::<2>() else { return Ok(None) };
        let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
        let (masked, short) = (second & 0x80 != 0, second & 0x7f);
        if masked != (self.sender == Sender::Client) {
            return Err(Stop::Malformed);
        }
        if opcode & 0x08 != 0 {
            if !fin || short > 125 {
                return Err(Stop::Malformed);
            }
        } else if (opcode == 0) != self.open.is_some() {
            return Err(Stop::Malformed);
        }
        let after = bytes.get(2..).unwrap_or_default();
        let (payload, extended) = match short {
            126 => match after.first_chunk::<2>() {
                Some(length) => (u64::from(u16::from_be_bytes(*length)), 2),
                None => return Ok(None),
            },
            127 => match after.first_chunk::<8>() {
                Some(length) => (u64::from_be_bytes(*length), 8),
                None => return Ok(None),
            },
            short => (u64::from(short), 0),
        };
        if payload >> 63 != 0 {
            return Err(Stop::Malformed);
        }
        let mut mask = [0; 4];
        if masked {
            match after.get(extended..).and_then(<[u8]>::first_chunk::<4>) {
                Some(key) => mask = *key,
                None => return Ok(None),
            }
        }
        let length = 2 + extended + if masked { 4 } else { 0 };
        Ok(Some(Header { length, payload, fin, opcode, mask }))
    }

    /// Lets a frame in, or says why not.
    fn enter(
        &mut self,
        header: &Header,
        limits: &FrameLimits,
        budget: Budget,
        counts: &mut Counts,
    ) -> Result<(), Stop> {
        if header.opcode & 0x08 == 0 {
            let message = match self.open {
                Some(Message { bytes, fragments }) => Message {
                    bytes: bytes.saturating_add(header.payload),
                    fragments: fragments.saturating_add(1),
                },
                None => Message { bytes: header.payload, fragments: NonZeroU32::MIN },
            };
            // The limits shield the backend; what it sends itself is its own affair.
            if self.sender == Sender::Client {
                let too_long = limits.message.is_some_and(|limit| message.bytes > limit);
                let too_split = limits.fragments.is_some_and(|limit| message.fragments.get() > limit);
                if too_long || too_split {
                    return Err(Stop::TooBig);
                }
                if header.opcode != 0 && counts.messages() >= budget.messages {
                    return Err(Stop::TooMany);
                }
            }
            self.open = (!header.fin).then_some(message);
        }
        match header.opcode {
            0x1 => counts.text += 1,
            0x2..=0x7 => counts.binary += 1,
            0x8 if self.withholds_close => return Err(Stop::Closed(Closed::of(&[]))),
            0x8 => {
                counts.close += 1;
                self.closing = Some(Box::new(Closing::under(header.mask)));
            }
            0x9 | 0xa if self.sender == Sender::Client && counts.controls() >= budget.controls => {
                return Err(Stop::TooMany);
            }
            0x9 => counts.ping += 1,
            0xa => counts.pong += 1,
            _ => {}
        }
        self.left = header.payload;
        Ok(())
    }
}

/// The counter in a pong with our tag.
fn counter_of(pong: &[u8; TAGGED_PONG], mask: [u8; 4], tag: Tag) -> Option<u16> {
    let mut payload = [0; 10];
    let masked = pong.iter().skip(6).zip(mask.iter().cycle());
    for (slot, (byte, key)) in payload.iter_mut().zip(masked) {
        *slot = byte ^ key;
    }
    let [ours @ .., high, low] = payload;
    (ours == tag).then(|| u16::from_be_bytes([high, low]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::close::close_frame;
    use proptest::prelude::*;

    impl Counts {
        fn add(&mut self, other: &Self) {
            self.text += other.text;
            self.binary += other.binary;
            self.ping += other.ping;
            self.pong += other.pong;
            self.close += other.close;
        }
    }

    fn frame(sender: Sender, first: u8, payload: &[u8]) -> Vec<u8> {
        let masked = if sender == Sender::Client { 0x80 } else { 0 };
        let mut out = vec![first];
        match payload.len() {
            n @ 0..=125 => out.push(masked | u8::try_from(n).unwrap()),
            n @ 126..=65_535 => {
                out.push(masked | 0x7e);
                out.extend_from_slice(&u16::try_from(n).unwrap().to_be_bytes());
            }
            n => {
                out.push(masked | 0x7f);
                out.extend_from_slice(&(n as u64).to_be_bytes());
            }
        }
        if masked != 0 {
            let mask = [1, 2, 3, 4];
            out.extend_from_slice(&mask);
            out.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
        } else {
            out.extend_from_slice(payload);
        }
        out
    }

    fn scan_all(sender: Sender, chunks: &[&[u8]], limits: &FrameLimits) -> (Vec<u8>, Counts, Option<Stop>) {
        let mut scanner = Scanner::new(sender);
        let (mut out, mut counts) = (Vec::new(), Counts::default());
        for chunk in chunks {
            let mut bytes = scanner.held().to_vec();
            bytes.extend_from_slice(chunk);
            let scan = scanner.scan(&bytes, limits, Budget::UNLIMITED, None);
            out.extend_from_slice(&bytes[..scan.approved]);
            counts.add(&scan.counts);
            if scan.stop.is_some() {
                return (out, counts, scan.stop);
            }
        }
        (out, counts, None)
    }

    fn stop(sender: Sender, bytes: &[u8]) -> Option<Stop> {
        scan_all(sender, &[bytes], &FrameLimits::default()).2
    }

    #[test]
    fn frames_that_break_rfc_6455_are_refused_from_their_header_on() {
        let client = |first, payload: &[u8]| frame(Sender::Client, first, payload);
        for (what, bytes) in [
            ("unmasked from a client", frame(Sender::Backend, 0x81, b"hi")),
            ("control frame over 125 bytes", client(0x89, &[0; 126])),
            ("fragmented control frame", client(0x09, b"")),
            ("continuation of nothing", client(0x80, b"x")),
            ("data inside an open message", [client(0x01, b"a"), client(0x81, b"b")].concat()),
            ("length with the top bit", vec![0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]),
        ] {
            let good = client(0x82, b"ok");
            let both = [good.clone(), bytes.clone()].concat();
            let (out, _, stop) = scan_all(Sender::Client, &[&both], &FrameLimits::default());
            assert_eq!(stop, Some(Stop::Malformed), "{what}");
            assert!(out.starts_with(&good), "{what}");
            assert!(out.len() < both.len(), "{what}");
        }
        assert_eq!(stop(Sender::Backend, &client(0x81, b"hi")), Some(Stop::Malformed));
    }

    #[test]
    fn what_the_receiver_judges_passes() {
        for first in [0xc1, 0x83, 0xf2, 0x8b] {
            assert_eq!(stop(Sender::Client, &frame(Sender::Client, first, b"x")), None, "{first:x}");
        }
    }

    #[test]
    fn limits_count_the_whole_message_on_the_wire() {
        let limits = FrameLimits { message: Some(10), fragments: Some(3), ..FrameLimits::default() };
        let client = |first, n| frame(Sender::Client, first, &vec![0; n]);
        let stop = |frames: &[Vec<u8>]| scan_all(Sender::Client, &[&frames.concat()], &limits).2;
        assert_eq!(stop(&[client(0x82, 10)]), None);
        assert_eq!(stop(&[client(0x82, 11)]), Some(Stop::TooBig));
        assert_eq!(stop(&[client(0x02, 5), client(0x89, 100), client(0x80, 5)]), None);
        assert_eq!(stop(&[client(0x02, 5), client(0x80, 6)]), Some(Stop::TooBig));
        assert_eq!(stop(&[client(0x02, 0), client(0x00, 0), client(0x80, 0)]), None);
        assert_eq!(
            stop(&[client(0x02, 0), client(0x00, 0), client(0x00, 0), client(0x80, 0)]),
            Some(Stop::TooBig)
        );
        let huge = frame(Sender::Backend, 0x82, &[0; 11]);
        assert_eq!(scan_all(Sender::Backend, &[&huge], &limits).2, None);
    }

    #[test]
    fn budgets_stop_the_frame_that_exceeds_them() {
        let two = [frame(Sender::Client, 0x81, b"a"), frame(Sender::Client, 0x81, b"b")].concat();
        let scan = |budget| Scanner::new(Sender::Client).scan(&two, &FrameLimits::default(), budget, None);
        let one = scan(Budget { messages: 1, controls: 0 });
        assert_eq!((one.approved, one.stop), (two.len() / 2, Some(Stop::TooMany)));
        assert_eq!(scan(Budget { messages: 2, controls: 0 }).stop, None);
        let pings = [frame(Sender::Client, 0x89, b""), frame(Sender::Client, 0x8a, b"")].concat();
        let scan = Scanner::new(Sender::Client).scan(
            &pings,
            &FrameLimits::default(),
            Budget { messages: 0, controls: 1 },
            None,
        );
        assert_eq!((scan.approved, scan.stop), (pings.len() / 2, Some(Stop::TooMany)));
    }

    #[test]
    fn a_close_ends_the_direction_and_its_code_is_read() {
        for sender in [Sender::Client, Sender::Backend] {
            let close = frame(sender, 0x88, &[0x0f, 0xa1, b'b', b'y', b'e']);
            let after = [close.clone(), frame(sender, 0x81, b"late")].concat();
            let (out, counts, stop) = scan_all(sender, &[&after], &FrameLimits::default());
            assert_eq!((out, stop), (close, Some(Stop::Closed(Closed { code: Some(4001), proper: true }))));
            assert_eq!((counts.close, counts.text), (1, 0));
            assert_eq!(stop_of_split(sender), Some(Stop::Closed(Closed { code: Some(4001), proper: true })));
            assert_eq!(
                self::stop(sender, &frame(sender, 0x88, b"")),
                Some(Stop::Closed(Closed { code: None, proper: true }))
            );
        }
    }

    fn stop_of_split(sender: Sender) -> Option<Stop> {
        let close = frame(sender, 0x88, &[0x0f, 0xa1, b'x']);
        let chunks: Vec<&[u8]> = close.chunks(1).collect();
        scan_all(sender, &chunks, &FrameLimits::default()).2
    }

    #[test]
    fn our_close_frame_is_one_that_the_scanner_accepts() {
        for (sender, mask) in [(Sender::Backend, None), (Sender::Client, Some([9, 8, 7, 6]))] {
            let close = close_frame(Some(4001), "token_expired", mask);
            assert_eq!(stop(sender, &close), Some(Stop::Closed(Closed { code: Some(4001), proper: true })));
        }
        assert_eq!(close_frame(Some(1000), &"x".repeat(500), None).len(), 127);
    }

    /// What passes a scanner that knows the tag, and the counters of the pongs that it has taken out.
    fn without_pongs(chunks: &[&[u8]], tag: Tag) -> (Vec<u8>, Vec<u16>, Counts) {
        let mut scanner = Scanner::new(Sender::Client);
        let (mut out, mut pongs, mut counts) = (Vec::new(), Vec::new(), Counts::default());
        for chunk in chunks {
            let mut bytes = [scanner.held(), chunk].concat();
            loop {
                let scan = scanner.scan(&bytes, &FrameLimits::default(), Budget::UNLIMITED, Some(&tag));
                out.extend_from_slice(&bytes[..scan.approved]);
                counts.add(&scan.counts);
                assert_eq!(scan.stop, None);
                let Some(counter) = scan.pong else { break };
                pongs.push(counter);
                bytes.drain(..scan.approved + TAGGED_PONG);
            }
        }
        (out, pongs, counts)
    }

    #[test]
    fn only_a_pong_with_the_tag_is_taken_out() {
        let tag = *b"12345678";
        let pong = |payload: &[u8]| frame(Sender::Client, 0x8a, payload);
        let (ours, text) = (pong(b"12345678\x01\x02"), frame(Sender::Client, 0x81, b"hi"));
        let stream = [&text[..], &ours, &text, &ours, &ours].concat();
        let (out, pongs, counts) = without_pongs(&[&stream], tag);
        assert_eq!((out, pongs), ([&text[..], &text].concat(), vec![0x0102; 3]));
        assert_eq!((counts.pong, counts.text), (0, 2));
        for other in [&b"12345679\x01\x02"[..], b"12345678\x01", b"12345678\x01\x02\x03", b""] {
            assert_eq!(
                without_pongs(&[&pong(other)], tag),
                (pong(other), vec![], Counts { pong: 1, ..Counts::default() })
            );
        }
        let asked = frame(Sender::Client, 0x89, b"12345678\x01\x02");
        assert_eq!(without_pongs(&[&asked], tag).0, asked);
        assert_eq!(
            scan_all(Sender::Client, &[&ours], &FrameLimits::default()).0,
            ours,
            "no ping was ever sent"
        );
    }

    prop_compose! {
        fn any_frame()(first in prop::sample::select(vec![0x81u8, 0x82, 0x89, 0x8a]), n in 0usize..400) -> (u8, usize) {
            (first, if first & 8 != 0 { n.min(125) } else { n * n / 2 })
        }
    }

    proptest! {
        #[test]
        fn pongs_of_ours_vanish_however_the_stream_is_split(
            frames in prop::collection::vec((any_frame(), any::<bool>()), 1..10),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
        ) {
            let tag = *b"abcdefgh";
            let (mut stream, mut rest, mut ours) = (Vec::new(), Vec::new(), 0);
            for ((first, n), pong) in frames {
                let bytes = frame(Sender::Client, first, &vec![7; n]);
                stream.extend_from_slice(&bytes);
                rest.extend_from_slice(&bytes);
                if pong {
                    stream.extend(frame(Sender::Client, 0x8a, b"abcdefgh\0\x01"));
                    ours += 1;
                }
            }
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            at.extend([0, stream.len()]);
            at.sort_unstable();
            let chunks: Vec<&[u8]> = at.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
            let (out, pongs, _) = without_pongs(&chunks, tag);
            prop_assert_eq!(out, rest);
            prop_assert_eq!(pongs, vec![1; ours]);
        }

        #[test]
        fn any_split_of_a_valid_stream_gives_the_same_bytes(
            frames in prop::collection::vec(any_frame(), 1..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..30),
            client in any::<bool>(),
        ) {
            let sender = if client { Sender::Client } else { Sender::Backend };
            let stream: Vec<u8> = frames.iter().flat_map(|(first, n)| frame(sender, *first, &vec![0x5a; *n])).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
            cuts.sort_unstable();
            cuts.push(stream.len());
            let mut chunks = Vec::new();
            let mut from = 0;
            for cut in cuts {
                chunks.push(&stream[from..cut]);
                from = cut;
            }
            let (out, counts, stop) = scan_all(sender, &chunks, &FrameLimits::default());
            prop_assert_eq!(out, stream);
            prop_assert_eq!(stop, None);
            prop_assert_eq!(counts.messages() + counts.controls(), frames.len() as u64);
        }

        #[test]
        fn no_bytes_make_the_scanner_panic_or_approve_more_than_there_is(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..16),
            client in any::<bool>(),
        ) {
            let sender = if client { Sender::Client } else { Sender::Backend };
            let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            let (out, _, _) = scan_all(sender, &chunks, &FrameLimits::default());
            prop_assert!(chunks.concat().starts_with(&out));
        }
    }
}
