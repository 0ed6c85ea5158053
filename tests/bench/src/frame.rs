//! As much of RFC 6455's framing as an echo needs.

pub(crate) const BINARY: u8 = 0x2;
pub(crate) const CLOSE: u8 = 0x8;
pub(crate) const PING: u8 = 0x9;
pub(crate) const PONG: u8 = 0xA;

/// Longest header: 2 bytes, 8 of length, 4 of mask.
pub(crate) const MAX_HEADER: usize = 14;

#[derive(Clone, Copy)]
pub(crate) struct Header {
    pub(crate) opcode: u8,
    /// Bytes of this header.
    pub(crate) size: usize,
    pub(crate) payload: usize,
    pub(crate) mask: Option<[u8; 4]>,
}

impl Header {
    /// `None`: more bytes are needed.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let (&first, &second) = (bytes.first()?, bytes.get(1)?);
        let (payload, at) = match second & 0x7F {
            126 => (u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?).into(), 4),
            127 => (usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?, 10),
            short => (short.into(), 2),
        };
        let masked = second & 0x80 != 0;
        let mask = if masked { Some(bytes.get(at..at + 4)?.try_into().ok()?) } else { None };
        Some(Self { opcode: first & 0x0F, size: at + if masked { 4 } else { 0 }, payload, mask })
    }

    pub(crate) fn whole(&self) -> usize {
        self.size + self.payload
    }
}

/// A whole frame with FIN.
pub(crate) fn frame(opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut out = Vec::with_capacity(MAX_HEADER + payload.len());
    header(&mut out, opcode, payload.len(), mask);
    let body = out.len();
    out.extend_from_slice(payload);
    if let Some(mask) = mask {
        apply(mask, &mut out[body..]);
    }
    out
}

#[expect(clippy::cast_possible_truncation, reason = "each arm has just been compared with its bound")]
pub(crate) fn header(out: &mut Vec<u8>, opcode: u8, payload: usize, mask: Option<[u8; 4]>) {
    let bit = if mask.is_some() { 0x80 } else { 0 };
    out.push(0x80 | opcode);
    match payload {
        0..126 => out.push(bit | payload as u8),
        126..65536 => {
            out.push(bit | 0x7E);
            out.extend_from_slice(&(payload as u16).to_be_bytes());
        }
        _ => {
            out.push(bit | 0x7F);
            out.extend_from_slice(&(payload as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(mask.as_ref().map_or(&[], |mask| mask.as_slice()));
}

pub(crate) fn apply(mask: [u8; 4], bytes: &mut [u8]) {
    let (blocks, rest) = bytes.as_chunks_mut::<16>();
    for block in blocks {
        for (at, byte) in block.iter_mut().enumerate() {
            *byte ^= mask[at % 4];
        }
    }
    for (at, byte) in rest.iter_mut().enumerate() {
        *byte ^= mask[at % 4];
    }
}
