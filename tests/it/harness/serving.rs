//! One connection of the backend: what it hears is kept, what it answers is scripted.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::backend::{Heard, Script, Shared};
use super::client::take_frame;
use super::{PATIENCE, eventually};

/// What RFC 6455 §4.2.2 computes.
pub fn accept_of(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

/// Serves one connection until it ends.
pub(super) fn serve(mut stream: TcpStream, shared: &Shared) {
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if !fill(&mut stream, &mut buffer) {
                return;
            }
        };
        let heard = Heard { head: buffer.drain(..end).collect(), ..Heard::default() };
        let upgrade = heard.header("upgrade").is_some();
        let n = {
            let mut all = shared.heard.lock().unwrap();
            all.push((heard.clone(), stream.try_clone().unwrap()));
            all.len() - 1
        };
        if upgrade {
            serve_upgrade(&mut stream, shared, n, &heard, &buffer);
            return;
        }
        if !serve_plain(&mut stream, shared, n, &heard, &mut buffer) {
            shared.heard.lock().unwrap()[n].0.ended = true;
            return;
        }
    }
}

fn fill(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> bool {
    let mut chunk = vec![0; 65536];
    match stream.read(&mut chunk) {
        Ok(n) if n > 0 => {
            buffer.extend_from_slice(&chunk[..n]);
            true
        }
        _ => false,
    }
}

/// Reads the body and answers; false = the connection is over.
fn serve_plain(
    stream: &mut TcpStream,
    shared: &Shared,
    n: usize,
    heard: &Heard,
    buffer: &mut Vec<u8>,
) -> bool {
    let length = heard.header("content-length").map(|length| length.parse::<usize>().unwrap());
    let chunked = heard.header("transfer-encoding").is_some();
    let end = loop {
        let end = if chunked {
            buffer.windows(5).position(|five| five == b"0\r\n\r\n").map(|at| at + 5)
        } else {
            Some(length.unwrap_or(0)).filter(|length| buffer.len() >= *length)
        };
        match end {
            Some(end) => break end,
            None if !fill(stream, buffer) => return false,
            None => {}
        }
    };
    let body: Vec<u8> = buffer.drain(..end).collect();
    shared.heard.lock().unwrap()[n].0.after = body;
    let answer = shared.plain.lock().unwrap().clone();
    stream.write_all(&answer).is_ok()
}

fn serve_upgrade(stream: &mut TcpStream, shared: &Shared, n: usize, heard: &Heard, early: &[u8]) {
    let script = shared.upgrade.lock().unwrap().clone();
    shared.heard.lock().unwrap()[n].0.after.extend_from_slice(early);
    let accept = accept_of(&heard.header("sec-websocket-key").unwrap_or_default());
    let switching = |lines: &[String]| {
        let lines = lines.iter().map(|line| format!("{line}\r\n")).collect::<Vec<_>>().concat();
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n{lines}\r\n"
        )
        .into_bytes()
    };
    let bytes = match &script {
        Script::Echo(lines) | Script::Listen(lines) => switching(lines),
        Script::Bytes(bytes) | Script::BytesThenClose(bytes) => {
            let text: Vec<u8> = bytes.clone();
            match std::str::from_utf8(&text) {
                Ok(text) => text.replace("{accept}", &accept).into_bytes(),
                Err(_) => text,
            }
        }
        Script::Silence | Script::Close => Vec::new(),
    };
    // The answer may have to wait, and what comes meanwhile is to be heard.
    let mut writer = stream.try_clone().unwrap();
    let answered = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let held = shared.held.lock().unwrap();
            drop(shared.released.wait_timeout_while(held, PATIENCE, |held| *held).unwrap());
            let _ = writer.write_all(&bytes);
            match script {
                Script::BytesThenClose(_) => drop(writer.shutdown(Shutdown::Write)),
                Script::Close => drop(writer.shutdown(Shutdown::Both)),
                Script::Echo(_) | Script::Listen(_) | Script::Bytes(_) | Script::Silence => {}
            }
            answered.store(true, Ordering::SeqCst);
        });
        let mut frames = early.to_vec();
        loop {
            if matches!(script, Script::Echo(_)) && !frames.is_empty() {
                eventually("the answer to the upgrade", || answered.load(Ordering::SeqCst).then_some(()));
                if !echo(stream, &mut frames) {
                    return;
                }
            }
            let mut chunk = Vec::new();
            if !fill(stream, &mut chunk) {
                break;
            }
            frames.extend_from_slice(&chunk);
            shared.heard.lock().unwrap()[n].0.after.extend_from_slice(&chunk);
        }
        shared.heard.lock().unwrap()[n].0.ended = true;
    });
}

/// Sends whole frames back; false = that was a Close.
fn echo(stream: &mut TcpStream, frames: &mut Vec<u8>) -> bool {
    while let Some(frame) = take_frame(frames) {
        let opcode = frame.opcode();
        let answer = unmasked(if opcode == 9 { 0x8a } else { frame.first }, &frame.payload);
        if stream.write_all(&answer).is_err() {
            return false;
        }
        if opcode == 8 {
            let _ = stream.shutdown(Shutdown::Write);
            return false;
        }
    }
    true
}

/// A frame of a server.
pub fn unmasked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        n @ 0..126 => frame.push(u8::try_from(n).unwrap()),
        n @ 126..65536 => {
            frame.push(126);
            frame.extend(u16::try_from(n).unwrap().to_be_bytes());
        }
        n => {
            frame.push(127);
            frame.extend(u64::try_from(n).unwrap().to_be_bytes());
        }
    }
    frame.extend(payload);
    frame
}
