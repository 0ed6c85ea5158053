//! Close frames (RFC 6455 §5.5.1, §7.4): what one that goes by says, and those of the gate's own.

/// A Close that has gone by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    pub code: Option<u16>,
    /// Its payload is as it may be: empty, or a code that may stand there and a text in UTF-8.
    pub proper: bool,
}

impl Closed {
    pub fn of(payload: &[u8]) -> Self {
        let Some((code, text)) = payload.split_first_chunk() else {
            return Self { code: None, proper: payload.is_empty() };
        };
        let code = u16::from_be_bytes(*code);
        // RFC 6455 §7.4, and what IANA has registered since.
        let may_stand = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
        Self { code: Some(code), proper: may_stand && std::str::from_utf8(text).is_ok() }
    }

    /// The code of the answer to it (RFC 6455 §5.5.1, §7.1.7); `None` = without one.
    pub fn answer(self) -> Option<u16> {
        if self.proper { self.code } else { Some(1002) }
    }
}

/// A Close that is going by.
#[derive(Clone, Debug)]
pub struct Closing {
    mask: [u8; 4],
    /// Unmasked, as far as it has come; never more than 125 bytes.
    payload: Vec<u8>,
}

impl Closing {
    pub fn under(mask: [u8; 4]) -> Self {
        Self { mask, payload: Vec::new() }
    }

    /// More of its payload.
    pub fn note(&mut self, bytes: &[u8]) {
        let mask = self.mask.into_iter().cycle().skip(self.payload.len() % 4);
        self.payload.extend(bytes.iter().zip(mask).map(|(byte, key)| byte ^ key));
    }

    /// All of it has come.
    pub fn closed(&self) -> Closed {
        Closed::of(&self.payload)
    }
}

/// Our own Close frame (RFC 6455 §5.5.1), for the client; for the backend it is masked with `mask`.
pub fn close_frame(code: Option<u16>, text: &str, mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut payload = Vec::with_capacity(125);
    if let Some(code) = code {
        payload.extend_from_slice(&code.to_be_bytes());
        payload.extend_from_slice(text.as_bytes().get(..text.len().min(123)).unwrap_or_default());
    }
    let masked = if mask.is_some() { 0x80 } else { 0 };
    let mut frame = vec![0x88, masked | u8::try_from(payload.len()).unwrap_or(125)];
    if let Some(mask) = mask {
        frame.extend_from_slice(&mask);
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
    }
    frame.extend_from_slice(&payload);
    frame
}
