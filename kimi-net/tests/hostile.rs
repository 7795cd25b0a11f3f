//! Arbitrary input: no panic, and no allocation beyond what the limits allow.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helpers fail the test")]

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    time::Instant,
};

use bytes::BufMut;
use common::*;
use kimi_net::{
    frame::{Frame, FrameReader, OutFrame, Progress},
    *,
};
use proptest::{collection::vec, prelude::*};

/// The system's allocator, noting the largest request of each thread and what it holds.
struct Noting;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
    /// Bytes that are held now, and the most that were since the last look.
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

fn note(freed: usize, size: usize) {
    // Fails only while a thread ends, when nobody asks any more.
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
    let _ = HELD.try_with(|held| {
        let (before, peak) = held.get();
        let now = before + size as isize - freed as isize;
        held.set((now, peak.max(now)));
    });
}

/// The most memory that `work` holds at a time, beyond what was held before.
fn peak_memory(work: impl FnOnce()) -> usize {
    let (before, _) = HELD.get();
    HELD.set((before, before));
    work();
    usize::try_from(HELD.get().1 - before).unwrap()
}

// SAFETY: every call is handed to the system's allocator unchanged; noting a number allocates nothing.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(0, layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        note(layout.size(), 0);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(layout.size(), size);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Noting = Noting;

/// The largest single allocation that `work` makes.
fn largest_allocation(work: impl FnOnce()) -> usize {
    LARGEST.set(0);
    work();
    LARGEST.get()
}

/// Takes all frames out of bytes that arrive `chunk` at a time.
fn read_all(bytes: &[u8], chunk: usize, limits: Limits) -> Result<Vec<Frame>, FrameError> {
    let mut reader = FrameReader::new(limits);
    let mut frames = Vec::new();
    for mut piece in bytes.chunks(chunk) {
        while !piece.is_empty() {
            let mut target = reader.target();
            let (taken, rest) = piece.split_at(piece.len().min(target.remaining_mut()));
            target.put_slice(taken);
            piece = rest;
            loop {
                match reader.poll()? {
                    Progress::NeedMore => break,
                    Progress::Prefix(_) | Progress::Header => {}
                    Progress::Frame(frame) => frames.push(frame),
                }
            }
        }
    }
    Ok(frames)
}

fn any_sequence() -> impl Strategy<Value = SequenceStep> {
    let fields = (any::<u64>(), 0..u32::MAX - 100, 1..20u32, any::<bool>(), vec(any::<u32>(), 0..40));
    fields.prop_map(|(id, start, count, with_tokens, pages)| {
        let tokens = if with_tokens { (0..count).collect() } else { Vec::new() };
        SequenceStep { id, start, count, tokens, pages }
    })
}

fn any_forward() -> impl Strategy<Value = (Message, Bytes)> {
    (any::<u64>(), vec(any_sequence(), 1..5), 1..40u32).prop_map(|(step, sequences, cols)| {
        let rows = sequences.iter().map(|sequence| sequence.count).sum();
        let payload = vec![7; (rows * cols * 4) as usize];
        (Message::Forward(Forward { step, sequences, rows, cols }), payload.into())
    })
}

fn any_hello() -> impl Strategy<Value = Hello> {
    let fields = (0..9u16, 9..99u16, ".{0,30}", any::<bool>(), any::<u32>());
    fields.prop_map(|(min, max, name, worker, max_in_flight)| Hello {
        versions: Versions { min, max },
        software: name.clone(),
        node_id: name,
        role: if worker { Role::Worker } else { Role::Coordinator },
        max_in_flight,
    })
}

fn any_message() -> impl Strategy<Value = (Message, Bytes)> {
    let bare = prop_oneof![
        any_hello().prop_map(Message::Hello),
        (any::<u16>(), any_hello()).prop_map(|(version, hello)| Message::Welcome(Welcome { version, hello })),
        (0..60u32, 1..9u32, 1..9u32).prop_map(|(start, layers, cache_pages)| {
            Message::Assign(Assign { layers: start..start + layers, cache_pages, ..assign() })
        }),
        (any::<u64>(), any::<u64>()).prop_map(|(loaded_bytes, total_bytes)| {
            Message::LoadProgress(LoadProgress {
                loaded_bytes,
                total_bytes,
                kernels: Some((loaded_bytes as u32, 9)),
            })
        }),
        any::<u64>().prop_map(|weight_bytes| Message::Ready(Ready { weight_bytes, ..ready() })),
        any::<bool>().prop_map(|active| Message::Activity(Activity { active })),
        any::<(u64, u64, bool)>().prop_map(|(nonce, timestamp_micros, back)| {
            let (progress, paged_in_bytes) = (nonce ^ timestamp_micros, !nonce);
            match back {
                true => Message::Pong(Pong { nonce, timestamp_micros, progress, paged_in_bytes }),
                false => Message::Ping(Ping { nonce, timestamp_micros }),
            }
        }),
        (any::<u16>(), any::<u64>(), any::<bool>(), ".{0,60}").prop_map(|(code, step, fatal, message)| {
            let report = ErrorReport::new(code.into(), Subject::Step(step), message);
            Message::Error(ErrorReport { fatal, ..report })
        }),
        ".{0,60}".prop_map(|reason| Message::Goodbye(Goodbye { reason })),
        (".{0,30}", 0..99u32, 0..999usize).prop_map(|(model, reply_bytes, bytes)| {
            Message::Look(Look { model, reply_bytes, filling: Filling::of(bytes) })
        }),
        (".{0,30}", any::<[u8; 32]>(), any::<bool>(), 0..999usize).prop_map(|(text, hash, found, bytes)| {
            let fingerprint = Fingerprint(hash);
            let model = match found {
                true => ModelFiles::Found(fingerprint),
                false => ModelFiles::Unusable(text.clone()),
            };
            let holding =
                Holding { fingerprint, first_layer: 1, last_layer: 2, weight_bytes: 3, cache_bytes: 4 };
            Message::Status(Box::new(Status {
                device: text.clone(),
                coordinator: text,
                holding: found.then_some(holding),
                model: Some(model),
                filling: Filling::of(bytes),
                ..Status::default()
            }))
        }),
        (".{0,30}", any::<u32>(), any::<u64>(), 1..MAX_PIECE as u32).prop_map(|(model, n, offset, bytes)| {
            let item = [Item::Manifest, Item::File(n), Item::Tensor(n)][n as usize % 3];
            Message::Fetch(Fetch { model, item, offset, bytes })
        }),
        any::<[u8; 32]>().prop_map(|hash| Message::Piece(Piece { total: 7, hash })),
    ];
    let answer = (any::<u64>(), 0..9u32, 0..99u32).prop_map(|(step, rows, cols)| {
        (Message::Result(result(step, rows, cols)), Bytes::from(vec![3; (rows * cols * 4) as usize]))
    });
    prop_oneof![3 => bare.prop_map(|message| (message, Bytes::new())), 1 => answer, 1 => any_forward()]
}

/// A message as its receiver sees it.
fn shown(mut message: Message) -> Message {
    let show = |text: &mut String| *text = printable(text).into_owned();
    match &mut message {
        Message::Hello(hello) | Message::Welcome(Welcome { hello, .. }) => {
            show(&mut hello.software);
            show(&mut hello.node_id);
        }
        Message::Error(report) => show(&mut report.message),
        Message::Goodbye(goodbye) => show(&mut goodbye.reason),
        Message::Look(look) => show(&mut look.model),
        Message::Fetch(fetch) => show(&mut fetch.model),
        Message::Status(status) => {
            show(&mut status.device);
            show(&mut status.coordinator);
            if let Some(ModelFiles::Unusable(reason)) = &mut status.model {
                show(reason);
            }
        }
        _ => {}
    }
    message
}

fn encode(messages: &[(Message, Bytes)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (message, payload) in messages {
        let frame = OutFrame::new(message, payload.clone(), &Limits::default()).unwrap();
        bytes.extend_from_slice(&frame.head);
        bytes.extend_from_slice(&frame.payload);
    }
    bytes
}

/// Small limits; a decoder may take room for 1 MiB of a collection's elements on its word, as serde does, and
/// elements in memory are up to 24 times as large as their shortest encoding.
const SMALL: Limits = Limits { max_header: 4 << 10, max_payload: 8 << 10 };
const MOST: usize = 1 << 20;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn frames_come_out_as_they_went_in(messages in vec(any_message(), 1..6), chunk in 1..200usize) {
        let frames = read_all(&encode(&messages), chunk, Limits::default()).unwrap();
        prop_assert_eq!(frames.len(), messages.len());
        for (frame, (message, payload)) in frames.iter().zip(&messages) {
            prop_assert_eq!(&frame.message, &shown(message.clone()));
            prop_assert_eq!(&frame.payload, payload);
            prop_assert!(payload.is_empty() || (frame.payload.as_ptr() as usize).is_multiple_of(PAYLOAD_ALIGNMENT));
        }
    }

    #[test]
    fn garbage_after_a_true_prefix(kind in 0..16u16, header in 0..5000u32, payload in any::<u64>(),
                                   shift in 0..64u32, bytes in vec(any::<u8>(), 0..6000)) {
        let mut input = prefix(1, kind, header, payload >> shift);
        input.extend(bytes);
        let largest = largest_allocation(|| drop(read_all(&input, 512, SMALL)));
        prop_assert!(largest <= MOST, "{largest} bytes at once");
    }

    #[test]
    fn true_frames_with_wrong_bytes(messages in vec(any_message(), 1..4),
                                    wrong in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = encode(&messages);
        for (at, byte) in wrong {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let largest = largest_allocation(|| drop(read_all(&bytes, 100, SMALL)));
        prop_assert!(largest <= MOST, "{largest} bytes at once");
    }

    /// Both roles, in each state, against anything: they end in an error or wait for more.
    #[test]
    fn a_protocol_survives_any_stream(messages in vec(any_message(), 0..5), state in 0..4usize,
                                      garbage in vec(any::<u8>(), 0..100), chunk in 1..300usize) {
        for who in [COORDINATOR, WORKER] {
            let mut pair = match state {
                0 => Pair::plain(),
                3 => Pair::serving(),
                _ => {
                    let mut pair = Pair::plain();
                    pair.settle();
                    if state == 2 {
                        pair.send(COORDINATOR, Message::Assign(assign()));
                        pair.settle();
                    }
                    pair
                }
            };
            let mut bytes = encode(&messages);
            bytes.extend(&garbage);
            let peer = &mut pair.peers[who];
            let largest = largest_allocation(|| bytes.chunks(chunk).for_each(|piece| {
                peer.handle_input(Instant::now(), piece);
                peer.handle_timeout(Instant::now());
            }));
            prop_assert!(largest <= MOST, "{largest} bytes at once");
            peer.handle_end();
            prop_assert_eq!(peer.state(), State::Closed);
            let events: Vec<Event> = std::iter::from_fn(|| peer.poll_event()).collect();
            let ends = events.iter().filter(|event| matches!(event, Event::Closed(_))).count();
            prop_assert!(ends == 1 && matches!(events.last(), Some(Event::Closed(_))), "{events:?}");
        }
    }
}

#[test]
fn no_text_of_a_peer_reaches_a_terminal_as_it_is() {
    let evil = "up\x1b[1A\nERROR all is well\u{202e}";
    let hello = Hello {
        versions: Versions::OURS,
        software: evil.into(),
        node_id: evil.into(),
        role: Role::Worker,
        max_in_flight: 1,
    };
    let report = ErrorReport { message: evil.into(), ..ErrorReport::fatal(ErrorCode::Internal, "") };
    let messages = [
        Message::Hello(hello.clone()),
        Message::Welcome(Welcome { version: 1, hello }),
        Message::Assign(Assign { model: evil.into(), ..assign() }),
        Message::Ready(Ready { device: evil.into(), ..ready() }),
        Message::Error(report.clone()),
        Message::Goodbye(Goodbye { reason: evil.into() }),
    ];
    for message in messages {
        let bytes = encode(&[(message, Bytes::new())]);
        let shown = format!("{:?}", read_all(&bytes, 64, Limits::default()).unwrap());
        // The backslash of an escape is escaped once more by Debug; a raw character would be escaped once.
        assert!(shown.contains(r"up\\u{1b}[1A\\nERROR all is well\\u{202e}"), "{shown}");
    }
    let mut pair = Pair::plain();
    pair.settle();
    pair.inject(COORDINATOR, &encode(&[(Message::Error(report), Bytes::new())]));
    pair.settle();
    let reason = pair.reason(COORDINATOR).to_string();
    assert!(!reason.contains(|c: char| c.is_control() || c == '\u{202e}'), "{reason:?}");
}

#[test]
fn a_truncated_stream_gives_no_frame_and_no_error() {
    let bytes = encode(&[(Message::Forward(forward(1, 2, 4)), hidden(2, 4))]);
    for end in 0..bytes.len() {
        assert_eq!(read_all(&bytes[..end], 5, Limits::default()), Ok(Vec::new()), "{end}");
    }
    assert_eq!(read_all(&bytes, 5, Limits::default()).unwrap().len(), 1);
}

#[test]
fn a_claim_alone_does_not_allocate() {
    // A step of 1 GiB, of which the head and 100 KB come.
    let header = postcard::to_stdvec(&forward(1, 37_449, 7168)).unwrap();
    let claimed = 37_449 * 7168 * 4;
    let mut input = prefix(1, Kind::Forward.number(), header.len() as u32, claimed);
    input.extend(header);
    input.extend([0; 100_000]);
    let mut reader = FrameReader::new(Limits::default());
    let largest = largest_allocation(|| {
        let mut rest = &input[..];
        while !rest.is_empty() {
            let mut target = reader.target();
            let (taken, left) = rest.split_at(rest.len().min(target.remaining_mut()));
            target.put_slice(taken);
            rest = left;
            while let Progress::Prefix(_) | Progress::Header = reader.poll().unwrap() {}
        }
    });
    assert!(largest <= (16 << 20) + 64, "{largest} bytes at once");
    assert!(reader.position().unwrap().contains("100000 of 1073737728"), "{:?}", reader.position());
}

/// What a worker may hold beyond its assignment, its steps' payloads included.
const MEMORY: usize = 64 << 20;

/// Sends a worker of Kimi-K2's width steps until it refuses one; `answer` is what it does with each.
fn flood(mut answer: impl FnMut(&mut Protocol, Forward, Bytes)) -> (usize, LinkError) {
    let mut worker = {
        let Pair { peers: [_, worker], .. } = Pair::serving();
        worker
    };
    let payload = vec![0; 512 * 7168 * 4];
    let mut reason = None;
    let peak = peak_memory(|| {
        for step in 1.. {
            let header = postcard::to_stdvec(&forward(step, 512, 7168)).unwrap();
            let head = prefix(1, Kind::Forward.number(), header.len() as u32, payload.len() as u64);
            for bytes in [&head[..], &header, &payload] {
                worker.handle_input(Instant::now(), bytes);
            }
            match worker.poll_event() {
                Some(Event::Forward(forward, payload)) => answer(&mut worker, forward, payload),
                Some(Event::Closed(error)) => {
                    reason = Some(error);
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
    });
    (peak, reason.unwrap())
}

#[test]
fn a_flood_of_steps_takes_no_more_memory_than_is_allowed() {
    // A worker that computes nothing: the inputs pile up.
    let mut inputs = Vec::new();
    let (peak, reason) = flood(|_, _, payload| inputs.push(payload));
    assert_eq!(inputs.len(), 3);
    assert!(peak < MEMORY, "{peak} bytes");
    assert!(matches!(reason, LinkError::Protocol(ProtocolError::TooMuchInFlight { .. })), "{reason}");
    assert_eq!(reason.code(), Some(ErrorCode::Overloaded));

    // A worker that answers at once, and a peer that does not read: the outputs pile up.
    let mut answers = 0;
    let (peak, reason) = flood(|worker, forward, payload| {
        let result = result(forward.step, forward.rows, forward.cols);
        worker.send(Message::Result(result), payload).unwrap();
        answers += 1;
    });
    assert_eq!(answers, 3);
    assert!(peak < MEMORY, "{peak} bytes");
    assert!(matches!(reason, LinkError::Protocol(ProtocolError::TooMuchInFlight { .. })), "{reason}");
}

#[test]
fn a_step_larger_than_all_steps_may_be_goes_alone() {
    let mut pair = Pair::plain();
    pair.settle();
    pair.send(COORDINATOR, Message::Assign(Assign { max_tokens: 4096, ..assign() }));
    pair.settle();
    pair.send(WORKER, Message::Ready(ready()));
    pair.settle();
    let large = forward(1, 2000, 7168);
    assert!(pair.peers[COORDINATOR].has_room_for(&large));
    pair.send_with(COORDINATOR, Message::Forward(large), hidden(2000, 7168));
    pair.settle();
    let small = forward(2, 1, 4);
    assert!(!pair.peers[COORDINATOR].has_room_for(&small));
    pair.send_with(WORKER, Message::Result(result(1, 2000, 7168)), hidden(2000, 7168));
    pair.settle();
    assert!(pair.peers[COORDINATOR].has_room_for(&small));
    pair.send_with(COORDINATOR, Message::Forward(small), hidden(1, 4));
    pair.settle();
    assert!(matches!(pair.events[WORKER].last(), Some(Event::Forward(Forward { step: 2, .. }, _))));
}

#[test]
fn a_large_payload_grows_and_stays_aligned() {
    let rows = 40 << 20 >> 12; // 40 MiB of rows of 4 KiB
    let payload: Bytes = (0..rows * 1024).flat_map(|i: u32| i.to_le_bytes()).collect::<Vec<u8>>().into();
    let bytes = encode(&[(Message::Forward(forward(1, rows, 1024)), payload.clone())]);
    let mut frames = Vec::new();
    let largest = largest_allocation(|| frames = read_all(&bytes, 1 << 20, Limits::default()).unwrap());
    assert!(largest <= payload.len() + 64, "{largest} bytes at once");
    assert!(frames[0].payload == payload);
    assert_eq!(frames[0].payload.as_ptr() as usize % PAYLOAD_ALIGNMENT, 0);
}
