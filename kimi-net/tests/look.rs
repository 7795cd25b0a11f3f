//! Observers: they look at a worker and can do nothing else.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helpers fail the test")]

mod common;

use std::time::Instant;

use common::*;
use kimi_net::*;

/// The protocol's two ends, wired to each other without delay.
struct Ends {
    observer: Protocol,
    worker: Protocol,
    now: Instant,
}

impl Ends {
    fn new() -> Ends {
        let now = Instant::now();
        let observer = Protocol::observer(Config::new("o"), now).unwrap();
        let mut ends = Ends { observer, worker: Protocol::worker(Config::new("w"), now), now };
        ends.settle();
        ends
    }

    fn settle(&mut self) {
        let carry = |from: &mut Protocol, to: &mut Protocol, now| {
            let frames: Vec<_> = std::iter::from_fn(|| from.poll_transmit()).collect();
            frames.iter().for_each(|frame| to.handle_input(now, &frame.head));
            !frames.is_empty()
        };
        while carry(&mut self.observer, &mut self.worker, self.now)
            | carry(&mut self.worker, &mut self.observer, self.now)
        {}
    }

    fn events(protocol: &mut Protocol) -> Vec<Event> {
        std::iter::from_fn(|| protocol.poll_event()).collect()
    }
}

fn look() -> Look {
    Look { model: "kimi-tiny".into(), reply_bytes: 10, filling: Filling::of(1000) }
}

#[test]
fn a_look_is_answered() {
    let mut ends = Ends::new();
    let [Event::Connected { peer, .. }] = &Ends::events(&mut ends.worker)[..] else { panic!() };
    assert_eq!((peer.role, peer.node_id.as_str()), (Role::Observer, "o"));
    ends.observer.send(Message::Look(look()), Bytes::new()).unwrap();
    ends.settle();
    assert_eq!(Ends::events(&mut ends.worker), [Event::Looked(look())]);
    let status = Status { memory_bytes: 7, filling: Filling::of(10), ..Status::default() };
    ends.worker.send(Message::Status(Box::new(status.clone())), Bytes::new()).unwrap();
    ends.settle();
    assert_eq!(Ends::events(&mut ends.observer).last(), Some(&Event::Status(Box::new(status))));
}

#[test]
fn an_observer_can_only_look_and_only_so_often() {
    let mut ends = Ends::new();
    for message in [Message::Assign(assign()), Message::Activity(Activity { active: true })] {
        let error = ends.observer.send(message, Bytes::new()).unwrap_err().to_string();
        assert!(error.contains("Observer is out of order"), "{error}");
    }
    // A worker says nothing unasked.
    let unasked = ends.worker.send(Message::Status(Box::default()), Bytes::new()).unwrap_err();
    assert_eq!(unasked, ProtocolError::UnaskedStatus.into());
    for _ in 0..MAX_LOOKS {
        ends.observer.send(Message::Look(look()), Bytes::new()).unwrap();
    }
    let error = ends.observer.send(Message::Look(look()), Bytes::new()).unwrap_err();
    assert_eq!(error, ProtocolError::TooManyLooks { limit: MAX_LOOKS }.into());
}

#[test]
fn a_coordinator_that_looks_and_a_worker_that_answers_nobody_are_refused() {
    // Its hello says coordinator; the frames are forged.
    let mut pair = Pair::plain();
    pair.settle();
    let forged =
        frame::OutFrame::new(&Message::Look(look()), Bytes::new(), &frame::Limits::default()).unwrap();
    let now = pair.now;
    pair.peers[WORKER].handle_input(now, &forged.head);
    pair.settle();
    assert!(pair.reason(WORKER).to_string().contains("Look from the Coordinator is out of order"));

    let mut ends = Ends::new();
    let status = Message::Status(Box::default());
    let forged = frame::OutFrame::new(&status, Bytes::new(), &frame::Limits::default()).unwrap();
    ends.observer.handle_input(ends.now, &forged.head);
    let events = Ends::events(&mut ends.observer);
    assert_eq!(events.last(), Some(&Event::Closed(ProtocolError::UnaskedStatus.into())));
}

#[test]
fn a_peer_that_asks_and_does_not_read_is_cut_off() {
    let mut ends = Ends::new();
    let forged =
        frame::OutFrame::new(&Message::Look(look()), Bytes::new(), &frame::Limits::default()).unwrap();
    for _ in 0..3 * MAX_LOOKS {
        ends.worker.handle_input(ends.now, &forged.head);
        for event in Ends::events(&mut ends.worker) {
            match event {
                Event::Looked(_) => {
                    let status = Status { filling: Filling::of(MAX_FILLING), ..Status::default() };
                    ends.worker.send(Message::Status(Box::new(status)), Bytes::new()).unwrap();
                }
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
fn what_is_too_large_is_not_sent() {
    let limits = frame::Limits::default();
    for message in [
        Message::Look(Look { filling: Filling(vec![0; MAX_FILLING + 1]), ..Look::default() }),
        Message::Look(Look { reply_bytes: MAX_FILLING as u32 + 1, ..Look::default() }),
        Message::Look(Look { model: "m".repeat(5000), ..Look::default() }),
        Message::Status(Box::new(Status { filling: Filling(vec![0; MAX_FILLING + 1]), ..Status::default() })),
        Message::Status(Box::new(Status {
            model: Some(ModelFiles::Unusable("m".repeat(5000))),
            ..Status::default()
        })),
    ] {
        let error = frame::OutFrame::new(&message, Bytes::new(), &limits).unwrap_err().to_string();
        assert!(error.contains("limit is"), "{error}");
    }
}

#[tokio::test]
async fn over_a_socket() {
    let trust = Trust::Key(ClusterKey::generate().unwrap());
    let listener =
        Listener::bind(([127, 0, 0, 1], 0).into(), trust.clone(), Tuning::default()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let worker = tokio::spawn(async move {
        let mut worker = listener.accept().await.unwrap().handshake(Config::new("w")).await.unwrap();
        let sender = worker.sender();
        while let Ok(event) = worker.next().await {
            let Event::Looked(look) = event else { continue };
            let filling = Filling::of(look.reply_bytes as usize);
            sender.status(Status { device: look.model, filling, ..Status::default() }).unwrap();
        }
    });
    let mut observer = observe(addr, &trust, &Tuning::default(), Config::new("o")).await.unwrap();
    assert_eq!(observer.peer().node_id, "w");
    for reply in 0..MAX_LOOKS {
        observer.ask(Look { reply_bytes: reply as u32, ..look() }).unwrap();
    }
    for reply in 0..MAX_LOOKS {
        let status = observer.answer().await.unwrap();
        assert_eq!((status.device.as_str(), status.filling.0.len()), ("kimi-tiny", reply));
    }
    observer.close().await;
    worker.await.unwrap();
}
