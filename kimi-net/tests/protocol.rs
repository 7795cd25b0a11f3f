//! The state machine: two peers in memory, latency, small reads, broken peers, lost connections.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helpers fail the test")]

mod common;

use std::time::Duration;

use common::*;
use kimi_net::*;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_whole_session_however_the_bytes_arrive() {
    for chunk in [1, 7, 4096, usize::MAX] {
        let mut pair = Pair::plain();
        pair.chunk = chunk;
        pair.settle();
        let Event::Connected { peer, version: 1, max_in_flight: 64 } = &pair.events[COORDINATOR][0] else {
            panic!("{:?}", pair.events)
        };
        assert_eq!((peer.node_id.as_str(), peer.role), ("w", Role::Worker));
        pair.send(COORDINATOR, Message::Assign(assign()));
        pair.settle();
        assert_eq!(pair.events[WORKER][1], Event::Assigned(assign()));
        let progress = LoadProgress { loaded_bytes: 10, total_bytes: 10, kernels: Some((3, 40)) };
        pair.send(WORKER, Message::LoadProgress(progress));
        pair.send(WORKER, Message::Ready(ready()));
        pair.settle();
        assert_eq!(pair.events[COORDINATOR][1..], [Event::Progress(progress), Event::Ready(ready())]);

        let input = hidden(3, 100);
        pair.send_with(COORDINATOR, Message::Forward(forward(1, 3, 100)), input.clone());
        pair.settle();
        let Some(Event::Forward(header, payload)) = pair.events[WORKER].last() else { panic!() };
        assert_eq!((header, payload), (&forward(1, 3, 100), &input));
        assert_eq!(payload.as_ptr() as usize % PAYLOAD_ALIGNMENT, 0);
        pair.send_with(WORKER, Message::Result(result(1, 3, 100)), input.clone());
        pair.settle();
        assert_eq!(pair.events[COORDINATOR].last(), Some(&Event::Result(result(1, 3, 100), input)));

        pair.peers[COORDINATOR].goodbye("done");
        pair.settle();
        assert_eq!(*pair.reason(COORDINATOR), LinkError::Closed);
        assert_eq!(*pair.reason(WORKER), LinkError::PeerLeft { reason: "done".into() });
    }
}

#[test]
fn pipelined_steps_are_answered_in_order() {
    let mut pair = Pair::serving();
    for step in [2, 3, 7] {
        pair.send_with(COORDINATOR, Message::Forward(forward(step, 1, 4)), hidden(1, 4));
    }
    pair.settle();
    assert_eq!(pair.events[WORKER].len(), 3);
    // Out of order: refused here, and nothing is lost.
    let early = pair.peers[WORKER].send(Message::Result(result(3, 1, 4)), hidden(1, 4)).unwrap_err();
    assert_eq!(early, ProtocolError::StepOutOfOrder { found: 3, expected: Some(2) }.into());
    pair.send_with(WORKER, Message::Result(result(2, 1, 4)), hidden(1, 4));
    let failed = ErrorReport::new(ErrorCode::StepFailed, Subject::Step(3), "unlucky");
    pair.send(WORKER, Message::Error(failed.clone()));
    pair.send_with(WORKER, Message::Result(result(7, 1, 4)), hidden(1, 4));
    pair.settle();
    let expected = [
        Event::Result(result(2, 1, 4), hidden(1, 4)),
        Event::Failed(failed),
        Event::Result(result(7, 1, 4), hidden(1, 4)),
    ];
    assert_eq!(pair.events[COORDINATOR], expected);
}

#[test]
fn what_the_caller_does_wrong_leaves_the_link_open() {
    let mut pair = Pair::serving();
    let coordinator = &mut pair.peers[COORDINATOR];
    let mut refused = |message, payload: Bytes| coordinator.send(message, payload).unwrap_err().to_string();
    let text = refused(Message::Forward(forward(1, 2, 4)), hidden(1, 4));
    assert!(text.contains("found 16, expected 32"), "{text}");
    let text = refused(Message::Forward(Forward { rows: 3, ..forward(1, 2, 4) }), hidden(3, 4));
    assert!(text.contains("found 3, expected 2"), "{text}");
    let text = refused(Message::Forward(forward(1, 2, 4)), Bytes::new());
    assert!(text.contains("token ids of a sequence: found 0, expected 2"), "{text}");
    let text = refused(Message::Forward(forward(1, 513, 4)), hidden(513, 4));
    assert!(text.contains("513 tokens of a step, the limit is 512"), "{text}");
    let text = refused(Message::Ready(ready()), Bytes::new());
    assert!(text.contains("Ready from the Coordinator is out of order while the link is Serving"), "{text}");
    let text = refused(Message::Ping(Ping { nonce: 1, timestamp_micros: 0 }), Bytes::new());
    assert!(text.contains("out of order"), "{text}");
    let many = vec![forward(1, 1, 4).sequences[0].clone(); 5000];
    let text = refused(Message::Forward(Forward { sequences: many, ..forward(1, 5000, 4) }), hidden(5000, 4));
    assert!(text.contains("5000 sequences, the limit is 4096"), "{text}");
    for step in 1..=64 {
        coordinator.send(Message::Forward(forward(step, 1, 4)), hidden(1, 4)).unwrap();
    }
    let full = coordinator.send(Message::Forward(forward(65, 1, 4)), hidden(1, 4)).unwrap_err();
    assert_eq!(full, ProtocolError::TooManyInFlight { limit: 64 }.into());
    let busy = coordinator.send(Message::Assign(assign()), Bytes::new()).unwrap_err();
    assert_eq!(busy, ProtocolError::AssignWhileBusy { in_flight: 64 }.into());
    pair.settle();
    assert_eq!(pair.events[WORKER].len(), 64);
    pair.send_with(WORKER, Message::Result(result(1, 1, 4)), hidden(1, 4));
    pair.settle();
    let again = pair.peers[COORDINATOR].send(Message::Forward(forward(64, 1, 4)), hidden(1, 4)).unwrap_err();
    assert_eq!(again, ProtocolError::StepNotRising { found: 64, last: 64 }.into());
    assert_eq!(pair.peers[COORDINATOR].state(), State::Serving);
}

#[test]
fn a_first_stage_takes_token_ids_in_place_of_a_hidden_state() {
    let mut pair = Pair::serving();
    let mut header = forward(1, 2, 64);
    header.sequences[0].tokens = vec![163_584, 7];
    pair.send(COORDINATOR, Message::Forward(header.clone()));
    pair.settle();
    assert_eq!(pair.events[WORKER], [Event::Forward(header, Bytes::new())]);
}

#[test]
fn activity_is_told_while_serving() {
    let mut pair = Pair::serving();
    for active in [true, false] {
        pair.send(COORDINATOR, Message::Activity(Activity { active }));
    }
    pair.settle();
    assert_eq!(pair.events[WORKER], [Event::Activity(true), Event::Activity(false)]);
    let active = Message::Activity(Activity { active: true });
    assert!(pair.peers[WORKER].send(active.clone(), Bytes::new()).is_err());
    let mut pair = Pair::plain();
    pair.settle();
    assert!(pair.peers[COORDINATOR].send(active, Bytes::new()).is_err());
}

#[test]
fn a_stage_that_cannot_be_loaded_leaves_room_for_another() {
    let mut pair = Pair::plain();
    pair.settle();
    pair.send(COORDINATOR, Message::Assign(assign()));
    pair.settle();
    let report = ErrorReport::new(ErrorCode::OutOfMemory, Subject::Assignment, "4 GB short");
    pair.send(WORKER, Message::Error(report.clone()));
    pair.settle();
    assert_eq!(pair.events[COORDINATOR].last(), Some(&Event::Failed(report)));
    pair.send(COORDINATOR, Message::Assign(assign()));
    pair.settle();
    pair.send(WORKER, Message::Ready(ready()));
    pair.settle();
    assert_eq!(pair.peers[COORDINATOR].state(), State::Serving);
}

#[test]
fn peers_of_other_versions_are_told_apart() {
    let newer = Config { versions: Versions { min: 2, max: 3 }, ..Config::new("c") };
    let mut pair = Pair::new(newer, Config::new("w"));
    pair.settle();
    let (ours, theirs) = (Versions { min: 1, max: 1 }, Versions { min: 2, max: 3 });
    assert_eq!(*pair.reason(WORKER), ProtocolError::VersionMismatch { ours, theirs }.into());
    let text = pair.told(COORDINATOR, ErrorCode::VersionMismatch);
    assert!(text.contains("ours 1-1, the peer's 2-3"), "{text}");

    // Overlapping ranges meet at the newest common version.
    let wide = |max| Config { versions: Versions { min: 1, max }, ..Config::new("x") };
    let mut pair = Pair::new(wide(5), wide(3));
    pair.settle();
    for events in &pair.events {
        assert!(matches!(events[0], Event::Connected { version: 3, .. }), "{events:?}");
    }

    // Another frame layout.
    let mut pair = Pair::plain();
    pair.inject(COORDINATOR, &prefix(2, 2, 0, 0));
    pair.settle();
    assert_eq!(*pair.reason(COORDINATOR), FrameError::Version { found: 2 }.into());
    pair.told(WORKER, ErrorCode::VersionMismatch);
}

#[test]
fn a_newer_hello_may_have_more_fields() {
    let mut pair = Pair::plain();
    let hello = pair.peers[COORDINATOR].poll_transmit().unwrap();
    let mut bytes = hello.head.to_vec();
    bytes.extend([1, 2, 3]);
    let header = u32::try_from(bytes.len() - 20).unwrap();
    bytes[8..12].copy_from_slice(&header.to_le_bytes());
    pair.inject(WORKER, &bytes);
    pair.settle();
    assert_eq!(pair.peers.each_ref().map(Protocol::state), [State::Idle; 2]);
}

#[test]
fn two_coordinators_or_two_workers_cannot_talk() {
    let mut pair = Pair::plain();
    let hello = Protocol::coordinator(Config::new("c2"), pair.now).unwrap().poll_transmit().unwrap();
    pair.inject(COORDINATOR, &hello.head);
    pair.settle();
    let (found, ours) = (Role::Coordinator, Role::Coordinator);
    assert_eq!(*pair.reason(COORDINATOR), ProtocolError::RoleMismatch { found, ours }.into());
}

#[test]
fn an_http_client_by_mistake() {
    let mut worker = Protocol::worker(Config::new("w"), std::time::Instant::now());
    worker.handle_input(std::time::Instant::now(), b"GET /v1/models HTTP/1.1\r\n\r\n");
    let Some(Event::Closed(error)) = worker.poll_event() else { panic!() };
    assert_eq!(error, FrameError::NotKimi { found: *b"GET " }.into());
    assert!(error.to_string().contains("\"GET \" (an HTTP request), expected \"KIMI\""), "{error}");
    assert!(worker.poll_transmit().is_none(), "nothing is said to a stranger");
}

#[test]
fn a_frame_of_2_to_the_60_bytes() {
    let mut pair = Pair::serving();
    pair.inject(WORKER, &prefix(1, Kind::Forward.number(), 10, 1 << 60));
    pair.settle();
    let (kind, limit) = (Kind::Forward, 1 << 30);
    assert_eq!(*pair.reason(WORKER), FrameError::PayloadTooLarge { kind, claimed: 1 << 60, limit }.into());
    assert!(pair.told(COORDINATOR, ErrorCode::TooLarge).contains("1152921504606846976"));

    let mut pair = Pair::serving();
    pair.inject(WORKER, &prefix(1, Kind::Forward.number(), u32::MAX, 0));
    pair.settle();
    let (claimed, limit) = (u32::MAX.into(), 1 << 20);
    assert_eq!(*pair.reason(WORKER), FrameError::HeaderTooLarge { kind, claimed, limit }.into());

    // A kind without payload may not have one; before the handshake nothing may.
    for (mut pair, kind) in [(Pair::serving(), Kind::Assign), (Pair::plain(), Kind::Forward)] {
        pair.inject(WORKER, &prefix(1, kind.number(), 10, 1));
        pair.settle();
        let expected = FrameError::PayloadTooLarge { kind, claimed: 1, limit: 0 };
        // The plain pair's hello arrives first, after which the frame is out of order instead.
        match pair.reason(WORKER) {
            LinkError::Frame(found) => assert_eq!(*found, expected),
            other => {
                assert!(matches!(other, LinkError::Protocol(ProtocolError::OutOfOrder { .. })), "{other}")
            }
        }
    }
}

#[test]
fn an_unknown_kind_is_an_error_on_both_sides() {
    let mut pair = Pair::serving();
    pair.inject(WORKER, &prefix(1, 99, 0, 0));
    pair.settle();
    assert_eq!(*pair.reason(WORKER), FrameError::UnknownKind { found: 99 }.into());
    pair.told(COORDINATOR, ErrorCode::UnknownKind);
    assert_eq!(ErrorCode::from(9999), ErrorCode::Unknown(9999));
}

#[test]
fn messages_out_of_order_end_the_link() {
    let frame = |message: Message, payload| {
        let frame = frame::OutFrame::new(&message, payload, &Limits::default()).unwrap();
        [&frame.head[..], &frame.payload[..]].concat()
    };
    let cases = [
        (WORKER, frame(Message::Forward(forward(1, 1, 4)), hidden(1, 4)), "Forward from the Coordinator"),
        (WORKER, frame(Message::Ready(ready()), Bytes::new()), "Ready from the Coordinator"),
        (COORDINATOR, frame(Message::Ready(ready()), Bytes::new()), "Ready from the Worker"),
        (COORDINATOR, frame(Message::Result(result(1, 1, 4)), hidden(1, 4)), "Result from the Worker"),
    ];
    for (to, bytes, expected) in cases {
        let mut pair = Pair::plain();
        pair.settle();
        pair.inject(to, &bytes);
        pair.settle();
        assert!(pair.reason(to).to_string().starts_with(expected), "{}", pair.reason(to));
        pair.told(1 - to, ErrorCode::OutOfOrder);
    }
    // An answer that nobody asked for, while serving.
    let mut pair = Pair::serving();
    pair.inject(COORDINATOR, &frame(Message::Result(result(1, 1, 4)), hidden(1, 4)));
    pair.settle();
    let expected = ProtocolError::StepOutOfOrder { found: 1, expected: None };
    assert_eq!(*pair.reason(COORDINATOR), expected.into());
}

#[test]
fn a_header_that_contradicts_its_payload_is_refused_before_the_payload_comes() {
    let good = frame::OutFrame::new(&Message::Forward(forward(1, 2, 4)), hidden(2, 4), &Limits::default());
    let mut bytes = good.unwrap().head.to_vec();
    bytes[12..20].copy_from_slice(&(1u64 << 20).to_le_bytes());
    let mut pair = Pair::serving();
    pair.inject(WORKER, &bytes);
    pair.settle();
    let text = pair.told(COORDINATOR, ErrorCode::Malformed);
    assert!(text.contains("found 1048576, expected 32"), "{text}");
}

#[test]
fn a_step_over_the_assignment_is_refused_before_the_payload_comes() {
    let mut many_pages = forward(1, 2, 4);
    many_pages.sequences[0].pages = vec![0; 9];
    let wide =
        frame::OutFrame::new(&Message::Forward(forward(1, 512, 7169)), hidden(512, 7169), &Limits::default());
    for (header, payload, code, part) in [
        (forward(1, 513, 4), hidden(513, 4), ErrorCode::Malformed, "513 tokens of a step, the limit is 512"),
        (many_pages, hidden(2, 4), ErrorCode::Malformed, "9 pages of a sequence, the limit is 8"),
    ] {
        let frame = frame::OutFrame::new(&Message::Forward(header), payload, &Limits::default());
        let mut pair = Pair::serving();
        pair.inject(WORKER, &frame.unwrap().head);
        pair.settle();
        let text = pair.told(COORDINATOR, code);
        assert!(text.contains(part), "{text}");
    }
    let mut pair = Pair::serving();
    pair.inject(WORKER, &wide.unwrap().head[..20]);
    pair.settle();
    let text = pair.told(COORDINATOR, ErrorCode::TooLarge);
    assert!(text.contains("14682112 bytes; the limit is 14680064"), "{text}");

    // A refused assignment allows nothing.
    let mut pair = Pair::plain();
    pair.settle();
    let empty = Message::Assign(Assign { max_tokens: 0, ..assign() });
    assert!(pair.peers[COORDINATOR].send(empty, Bytes::new()).is_err());
    pair.inject(WORKER, &prefix(1, Kind::Forward.number(), 10, 4));
    pair.settle();
    pair.told(COORDINATOR, ErrorCode::OutOfOrder);
}

#[test]
fn silence_and_slow_bytes_are_bounded() {
    // A peer that says nothing.
    let mut pair = Pair::plain();
    pair.dead = true;
    pair.run(4 * SECOND);
    assert!(pair.events.iter().all(Vec::is_empty));
    pair.run(SECOND);
    assert_eq!(*pair.reason(WORKER), LinkError::HandshakeTimeout { after: 5 * SECOND });
    assert_eq!(*pair.reason(COORDINATOR), LinkError::HandshakeTimeout { after: 5 * SECOND });

    // A hello of one byte a second.
    let mut pair = Pair::plain();
    let hello = pair.peers[COORDINATOR].poll_transmit().unwrap();
    for byte in hello.head.iter().take(5) {
        pair.inject(WORKER, &[*byte]);
        pair.run(SECOND);
    }
    assert_eq!(*pair.reason(WORKER), LinkError::HandshakeTimeout { after: 5 * SECOND });

    // A payload of one byte a second, after the handshake: never silent, and yet over in time.
    let mut pair = Pair::serving();
    let good =
        frame::OutFrame::new(&Message::Forward(forward(1, 2, 400)), hidden(2, 400), &Limits::default());
    pair.inject(WORKER, &good.unwrap().head);
    pair.dead = true;
    for _ in 0..119 {
        pair.inject(WORKER, &[0]);
        pair.run(SECOND);
    }
    assert_eq!(pair.events[WORKER], []);
    pair.inject(WORKER, &[0]);
    pair.run(2 * SECOND);
    assert_eq!(*pair.reason(WORKER), LinkError::FrameTimeout { after: 120 * SECOND });
}

#[test]
fn pings_keep_a_link_alive_and_measure_it() {
    let mut pair = Pair::serving();
    pair.run(100 * SECOND);
    assert!(pair.events.iter().all(Vec::is_empty), "{:?}", pair.events);
    assert!(pair.peers[WORKER].poll_event().is_none());
    // The next ping, by hand.
    let worker = Config::new("w");
    worker.paged_in.store(4096, std::sync::atomic::Ordering::Relaxed);
    let mut alone = Pair::new(Config::new("c"), worker);
    alone.settle();
    alone.run(2 * SECOND - Duration::from_millis(100));
    let [protocol, worker] = &mut alone.peers;
    alone.now = protocol.next_timeout().unwrap();
    protocol.handle_timeout(alone.now);
    let ping = protocol.poll_transmit().unwrap().head;
    worker.handle_input(alone.now + SECOND, &ping);
    let pong = worker.poll_transmit().unwrap().head;
    protocol.handle_input(alone.now + 2 * SECOND, &pong);
    let pong = Event::Pong { round_trip: 2 * SECOND, progress: 0, paged_in_bytes: 4096 };
    assert_eq!(protocol.poll_event(), Some(pong));

    // A cable is pulled: both notice.
    pair.dead = true;
    pair.run(9 * SECOND);
    assert!(pair.events.iter().all(Vec::is_empty));
    pair.run(2 * SECOND);
    assert_eq!(*pair.reason(WORKER), LinkError::Silent { after: 10 * SECOND });
    assert_eq!(*pair.reason(COORDINATOR), LinkError::Silent { after: 10 * SECOND });
}

#[test]
fn a_connection_lost_within_a_payload_says_where() {
    let mut pair = Pair::serving();
    let frame = frame::OutFrame::new(&Message::Forward(forward(1, 2, 4)), hidden(2, 4), &Limits::default());
    let frame = frame.unwrap();
    pair.inject(WORKER, &frame.head);
    pair.inject(WORKER, &frame.payload[..10]);
    pair.wires[WORKER].push_back((pair.now + pair.latency, None));
    pair.settle();
    let text = pair.reason(WORKER).to_string();
    assert_eq!(text, "the connection was lost in the payload of a Forward frame, 10 of 32 bytes received");
    // The event is the last one, and commands say so.
    assert!(pair.peers[WORKER].send(Message::Ready(ready()), Bytes::new()).is_err());
    assert_eq!(pair.peers[WORKER].next_timeout(), None);
}

#[test]
fn a_peer_that_pings_and_never_reads_is_cut_off() {
    let mut pair = Pair::serving();
    let ping = Message::Ping(Ping { nonce: 1, timestamp_micros: 0 });
    let ping = frame::OutFrame::new(&ping, Bytes::new(), &Limits::default()).unwrap().head;
    for _ in 0..2000 {
        pair.peers[WORKER].handle_input(pair.now, &ping);
    }
    let closed = pair.peers[WORKER].poll_event();
    let expected = ProtocolError::PeerNotReading { queued: 1024 };
    assert_eq!(closed, Some(Event::Closed(expected.into())));
}
