//! A revocation in the middle of many handshakes of one user: whatever order they come in, register and
//! look, write and look, one of the two sides sees the other.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::super::harness::{Handshake, PATIENCE, eventually};
use super::desk::Desk;
use super::racing::{Dice, Heard, Operator, backend};

const STORMS: usize = 400;
/// Handshakes in each: the gate has something to do all the while, so that a revocation meets most of
/// them between two steps.
const EACH: usize = 32;

/// An upgrade that ends, in one way or the other, by the gate's doing.
async fn come_and_go(stream: TcpStream, handshake: Rc<Vec<u8>>) {
    let mut stream = stream;
    stream.write_all(&handshake).await.unwrap();
    let mut answer = Vec::new();
    while stream.read_buf(&mut answer).await.unwrap() > 0 {}
    let text = String::from_utf8_lossy(&answer);
    assert!(text.contains("user_revoked"), "{text:?}");
}

#[test]
fn none_of_many_handshakes_of_one_user_outlives_his_revocation() {
    let heard = Arc::new(Heard::default());
    let upstream = format!("'http://{}'", backend(&heard));
    let desk = Desk::with(|config| config.set("upstream.url", &upstream).set("log.level", "'error'"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let dice = Dice::new(1);
        let mut operator = Operator::connect(&desk).await;
        for storm in 0..STORMS {
            let name = format!("user-{storm}");
            let handshake = Rc::new(Handshake::to("/ws/").bearer(&desk.token_of(&name)).bytes());
            let mut streams = Vec::new();
            for _ in 0..EACH {
                streams.push(TcpStream::connect(desk.gate.address).await.unwrap());
            }
            let come = |stream| tokio::task::spawn_local(come_and_go(stream, Rc::clone(&handshake)));
            let guests: Vec<_> = streams.into_iter().map(come).collect();
            // They take a few milliseconds in all.
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_micros(dice.roll(6_000))).await;
            assert_eq!(operator.revoke(&json!({"sub": name})).await.0, 201);
            for guest in guests {
                let ended = timeout(PATIENCE, guest).await;
                ended.unwrap_or_else(|_| panic!("storm {storm}: one is still live")).unwrap();
            }
        }
    });
    eventually("nobody", || (desk.gate.sessions() == 0).then_some(()));
    let (closed, refused) = (
        desk.gate.metric("websocket_closes_total{reason=\"user_revoked\"}"),
        desk.gate.refused("user_revoked"),
    );
    assert_eq!(closed + refused, (STORMS * EACH) as u64);
    assert!(closed > 0 && refused > 0, "{closed} closed, {refused} refused");
}
