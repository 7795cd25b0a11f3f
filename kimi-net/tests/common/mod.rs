//! Two peers in memory on a virtual clock, and messages to exchange.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::{
    collections::VecDeque,
    sync::OnceLock,
    time::{Duration, Instant},
};

use kimi_net::*;

/// The key of the tests' cluster.
pub fn key() -> ClusterKey {
    static KEY: OnceLock<ClusterKey> = OnceLock::new();
    KEY.get_or_init(|| ClusterKey::generate().unwrap()).clone()
}

pub fn trust() -> Trust {
    Trust::Key(key())
}

pub fn hidden(rows: u32, cols: u32) -> Bytes {
    (0..rows * cols).flat_map(|i| (i as f32).to_le_bytes()).collect::<Vec<u8>>().into()
}

pub fn assign() -> Assign {
    Assign {
        model: "kimi-tiny".into(),
        fingerprint: Fingerprint([1; 32]),
        description: vec![1, 2],
        layers: 0..4,
        first: true,
        precision: Precision::Exact,
        state: LayerState::LatentPages,
        cache_pages: 8,
        page_tokens: 64,
        max_tokens: 512,
        hidden_size: 7168,
        session: 1,
        resume: false,
    }
}

pub fn ready() -> Ready {
    Ready { weight_bytes: 10, cache_bytes: 20, load_micros: 30, device: "cpu".into() }
}

/// A step of one sequence with `rows` rows of `cols` f32.
pub fn forward(step: u64, rows: u32, cols: u32) -> Forward {
    let sequence = SequenceStep { id: 9, start: 5, count: rows, tokens: Vec::new(), pages: vec![3, 1] };
    Forward { step, sequences: vec![sequence], rows, cols }
}

pub fn result(step: u64, rows: u32, cols: u32) -> StepResult {
    StepResult { step, rows, cols, compute_micros: 1, device_micros: 3, queue_micros: 2 }
}

pub fn prefix(version: u16, kind: u16, header: u32, payload: u64) -> Vec<u8> {
    let mut out = b"KIMI".to_vec();
    out.extend(version.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend(header.to_le_bytes());
    out.extend(payload.to_le_bytes());
    out
}

pub const COORDINATOR: usize = 0;
pub const WORKER: usize = 1;

/// Bytes under way to a peer, with their time of arrival; `None` is the end of the stream.
type Wire = VecDeque<(Instant, Option<Vec<u8>>)>;

pub struct Pair {
    pub peers: [Protocol; 2],
    pub events: [Vec<Event>; 2],
    /// Bytes under way to each peer.
    pub wires: [Wire; 2],
    pub start: Instant,
    pub now: Instant,
    pub latency: Duration,
    /// Bytes delivered at a time.
    pub chunk: usize,
    /// Loses everything that is sent, silently.
    pub dead: bool,
    closed: [bool; 2],
}

impl Pair {
    pub fn new(coordinator: Config, worker: Config) -> Pair {
        let now = Instant::now();
        Pair {
            peers: [Protocol::coordinator(coordinator, now).unwrap(), Protocol::worker(worker, now)],
            events: Default::default(),
            wires: Default::default(),
            start: now,
            now,
            latency: Duration::from_millis(3),
            chunk: usize::MAX,
            dead: false,
            closed: [false; 2],
        }
    }

    pub fn plain() -> Pair {
        Pair::new(Config::new("c"), Config::new("w"))
    }

    /// A pair whose worker is in service.
    pub fn serving() -> Pair {
        let mut pair = Pair::plain();
        pair.settle();
        pair.send(COORDINATOR, Message::Assign(assign()));
        pair.settle();
        pair.send(WORKER, Message::Ready(ready()));
        pair.settle();
        pair.events = Default::default();
        pair
    }

    pub fn send(&mut self, who: usize, message: Message) {
        self.peers[who].send(message, Bytes::new()).unwrap();
    }

    pub fn send_with(&mut self, who: usize, message: Message, payload: Bytes) {
        self.peers[who].send(message, payload).unwrap();
    }

    /// Puts bytes on the wire to `to` that no protocol has made.
    pub fn inject(&mut self, to: usize, bytes: &[u8]) {
        self.wires[to].push_back((self.now + self.latency, Some(bytes.to_vec())));
    }

    /// Lets 10 round trips pass.
    pub fn settle(&mut self) {
        self.run(self.latency * 20);
    }

    /// Lets time pass, from one arrival or deadline to the next.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.exchange();
            let arrivals = self.wires.iter().filter_map(|wire| Some(wire.front()?.0));
            let deadlines = self.peers.iter().filter_map(Protocol::next_timeout);
            match arrivals.chain(deadlines).min() {
                Some(next) if next <= end => self.now = self.now.max(next),
                _ => break,
            }
            for (who, peer) in self.peers.iter_mut().enumerate() {
                while self.wires[who].front().is_some_and(|(at, _)| *at <= self.now) {
                    match self.wires[who].pop_front() {
                        Some((_, Some(bytes))) => {
                            bytes.chunks(self.chunk).for_each(|chunk| peer.handle_input(self.now, chunk));
                        }
                        _ => peer.handle_end(),
                    }
                }
                peer.handle_timeout(self.now);
            }
        }
        self.now = end;
    }

    /// Takes frames and events out of both; a closed peer's stream ends after its last frame.
    fn exchange(&mut self) {
        for who in [COORDINATOR, WORKER] {
            let arrival = self.now + self.latency;
            while let Some(frame) = self.peers[who].poll_transmit() {
                if !self.dead {
                    let bytes = [&frame.head[..], &frame.payload[..]].concat();
                    self.wires[1 - who].push_back((arrival, Some(bytes)));
                }
            }
            while let Some(event) = self.peers[who].poll_event() {
                assert!(!self.closed[who], "{event:?} after Closed");
                if matches!(event, Event::Closed(_)) {
                    self.closed[who] = true;
                    if !self.dead {
                        self.wires[1 - who].push_back((arrival, None));
                    }
                }
                if !matches!(event, Event::Pong { .. }) {
                    self.events[who].push(event);
                }
            }
        }
    }

    /// Why a peer's link ended.
    pub fn reason(&self, who: usize) -> &LinkError {
        match self.events[who].last() {
            Some(Event::Closed(reason)) => reason,
            other => panic!("peer {who} is not closed: {other:?}"),
        }
    }

    /// Checks that `who` was told by its peer, with this code.
    pub fn told(&self, who: usize, code: ErrorCode) -> &str {
        match self.reason(who) {
            LinkError::Peer(report) if report.code == code && report.fatal => &report.message,
            other => panic!("expected {code:?}, found {other:?}"),
        }
    }
}
