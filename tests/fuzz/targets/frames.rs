//! Bytes of a peer, in pieces, for a coordinator and a worker in every state that such bytes may lead them to. The first byte
//! says to whom they are sent and how they are cut.
#![no_main]

use std::time::{Duration, Instant};

use kimi_net::{Config, Event, Message, Protocol, Ready, State};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((first, mut rest)) = input.split_first() else { return };
    let mut now = Instant::now();
    let mut peer = match first & 1 {
        0 => Protocol::worker(Config::new("fuzz"), now),
        _ => Protocol::coordinator(Config::new("fuzz"), now).expect("our own greeting is sound"),
    };
    let step = usize::from(first >> 1) + 1;
    while !rest.is_empty() && peer.state() != State::Closed {
        let (piece, left) = rest.split_at(step.min(rest.len()));
        rest = left;
        now += Duration::from_millis(1);
        peer.handle_input(now, piece);
        while let Some(event) = peer.poll_event() {
            if let Event::Assigned(_) = event {
                let ready = Ready { weight_bytes: 1, cache_bytes: 1, load_micros: 1, device: "fuzz".into() };
                let _ = peer.send(Message::Ready(ready), Default::default());
            }
        }
        while peer.poll_transmit().is_some() {}
    }
    peer.handle_end();
    assert_eq!(peer.state(), State::Closed);
});
