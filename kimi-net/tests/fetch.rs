//! Pieces of files: asked for, bounded by the question, answered in order.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helpers fail the test")]

use std::time::Instant;

use kimi_net::frame::OutFrame;
use kimi_net::*;

fn fetch(bytes: u32) -> Fetch {
    Fetch { model: "kimi-tiny".into(), item: Item::Tensor(3), offset: 5, bytes }
}

fn piece(total: u64) -> Message {
    Message::Piece(Piece { total, hash: [9; 32] })
}

/// The two ends after their greetings.
fn ends() -> (Protocol, Protocol, Instant) {
    let now = Instant::now();
    let mut observer = Protocol::observer(Config::new("o"), now).unwrap();
    let mut worker = Protocol::worker(Config::new("w"), now);
    while carry(&mut observer, &mut worker, now) | carry(&mut worker, &mut observer, now) {}
    events(&mut observer);
    events(&mut worker);
    (observer, worker, now)
}

fn carry(from: &mut Protocol, to: &mut Protocol, now: Instant) -> bool {
    let frames: Vec<_> = std::iter::from_fn(|| from.poll_transmit()).collect();
    for frame in &frames {
        to.handle_input(now, &frame.head);
        to.handle_input(now, &frame.payload);
    }
    !frames.is_empty()
}

fn events(protocol: &mut Protocol) -> Vec<Event> {
    std::iter::from_fn(|| protocol.poll_event()).filter(|e| !matches!(e, Event::Pong { .. })).collect()
}

#[test]
fn pieces_answer_fetches_in_order_and_may_be_shorter() {
    let (mut observer, mut worker, now) = ends();
    for bytes in [4, 1000] {
        observer.send(Message::Fetch(fetch(bytes)), Bytes::new()).unwrap();
    }
    carry(&mut observer, &mut worker, now);
    assert_eq!(events(&mut worker), [Event::Fetched(fetch(4)), Event::Fetched(fetch(1000))]);
    for (total, payload) in [(1, &b"1234"[..]), (2, b"56789")] {
        worker.send(piece(total), Bytes::from_static(payload)).unwrap();
    }
    carry(&mut worker, &mut observer, now);
    let got = events(&mut observer);
    let [Event::Piece(first, a), Event::Piece(second, b)] = &got[..] else { panic!("{got:?}") };
    assert_eq!((first.total, &a[..], second.total, &b[..]), (1, &b"1234"[..], 2, &b"56789"[..]));
}

#[test]
fn more_than_was_asked_for_is_refused_on_the_prefix() {
    let (mut observer, mut worker, now) = ends();
    observer.send(Message::Fetch(fetch(4)), Bytes::new()).unwrap();
    carry(&mut observer, &mut worker, now);
    // This side does not send it either.
    let error = worker.send(piece(9), Bytes::from_static(b"12345")).unwrap_err().to_string();
    assert!(error.contains("payload of 5 bytes; the limit is 4"), "{error}");
    let forged = OutFrame::new(&piece(9), Bytes::from(vec![0; 1 << 20]), &Limits::default()).unwrap();
    observer.handle_input(now, &forged.head);
    let got = events(&mut observer);
    let Some(Event::Closed(reason)) = got.last() else { panic!("{got:?}") };
    assert!(reason.to_string().contains("payload of 1048576 bytes; the limit is 4"), "{reason}");
}

#[test]
fn pieces_that_nobody_asked_for_and_too_many_fetches_are_refused() {
    let (mut observer, mut worker, now) = ends();
    assert_eq!(worker.send(piece(0), Bytes::new()), Err(ProtocolError::UnaskedPiece.into()));
    for _ in 0..MAX_FETCHES {
        observer.send(Message::Fetch(fetch(1)), Bytes::new()).unwrap();
    }
    let limit = ProtocolError::TooManyFetches { limit: MAX_FETCHES };
    assert_eq!(observer.send(Message::Fetch(fetch(1)), Bytes::new()), Err(limit.into()));
    let (mut observer, _, _) = ends();
    let forged = OutFrame::new(&piece(0), Bytes::new(), &Limits::default()).unwrap();
    observer.handle_input(now, &forged.head);
    assert_eq!(events(&mut observer).last(), Some(&Event::Closed(ProtocolError::UnaskedPiece.into())));
}

#[test]
fn a_peer_that_fetches_and_does_not_read_is_cut_off() {
    let (_, mut worker, now) = ends();
    let forged = OutFrame::new(&Message::Fetch(fetch(8)), Bytes::new(), &Limits::default()).unwrap();
    for _ in 0..100 {
        worker.handle_input(now, &forged.head);
        for event in events(&mut worker) {
            match event {
                Event::Fetched(_) => worker.send(piece(8), Bytes::from_static(b"12345678")).unwrap(),
                Event::Closed(reason) => {
                    assert!(reason.to_string().contains("does not read"), "{reason}");
                    return;
                }
                _ => {}
            }
        }
    }
    panic!("the worker answers for ever");
}

#[test]
fn questions_are_bounded() {
    for (bad, part) in [
        (fetch(0), "no bytes"),
        (fetch(MAX_PIECE as u32 + 1), "limit is"),
        (Fetch { model: "m".repeat(5000), ..fetch(1) }, "limit is"),
    ] {
        let error = OutFrame::new(&Message::Fetch(bad), Bytes::new(), &Limits::default()).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
}
