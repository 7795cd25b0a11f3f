//! The machine that layers are pulled from. Nothing that it says is believed before it was held against what is known.

use std::collections::VecDeque;
use std::net::SocketAddr;

use kimi_net::{Bytes, Config, Fetch, Item, LinkError, MAX_FETCHES, MAX_PIECE, Observer, Trust, Tuning};
use tokio::runtime::Handle;

use super::PullError;
use super::part::Span;

/// Where a model's files are, and how to get there.
#[derive(Debug, Clone)]
pub struct Route {
    /// Address of a worker.
    pub address: SocketAddr,
    /// What the link is protected with.
    pub trust: Trust,
    /// This machine's name.
    pub node_id: String,
    /// How the worker knows the model.
    pub model: String,
}

/// A link to the source.
pub(super) struct Source<'a> {
    observer: Observer,
    runtime: &'a Handle,
    model: &'a str,
}

impl<'a> Source<'a> {
    pub(super) fn connect(route: &'a Route, runtime: &'a Handle) -> Result<Self, PullError> {
        let Route { address, trust, node_id, model } = route;
        let config = Config::new(node_id.as_str());
        let observer = runtime.block_on(kimi_net::observe(*address, trust, &Tuning::default(), config))?;
        Ok(Self { observer, runtime, model })
    }

    fn ask(&self, item: Item, offset: u64, bytes: usize) -> Result<(), LinkError> {
        self.observer.fetch(Fetch { model: self.model.to_owned(), item, offset, bytes: bytes as u32 })
    }

    /// The next piece, which must be of a part of `total` bytes if that is known.
    fn answer(&mut self, what: &str, total: Option<u64>) -> Result<(u64, Bytes, [u8; 32]), PullError> {
        let (piece, payload) = self.runtime.block_on(self.observer.piece())?;
        let wrong = |reason: String| PullError::Source { what: what.to_owned(), reason };
        if let Some(total) = total.filter(|total| *total != piece.total) {
            return Err(wrong(format!("it has {} bytes there, expected {total}", piece.total)));
        }
        if blake3::hash(&payload) != piece.hash {
            return Err(wrong(format!("{} bytes have another hash than it says", payload.len())));
        }
        Ok((piece.total, payload, piece.hash))
    }

    /// A whole part of at most `limit` bytes.
    pub(super) fn whole(&mut self, item: Item, what: &str, limit: u64) -> Result<Vec<u8>, PullError> {
        let (mut bytes, mut total) = (Vec::new(), None);
        loop {
            self.ask(item, bytes.len() as u64, MAX_PIECE)?;
            let (of, payload, _) = self.answer(what, total)?;
            let rest = of.saturating_sub(bytes.len() as u64);
            let expected = rest.min(MAX_PIECE as u64);
            if of > limit || payload.len() as u64 != expected {
                let reason = format!(
                    "it sent {} bytes of {of}; expected {expected}, and at most {limit} in all",
                    payload.len()
                );
                return Err(PullError::Source { what: what.to_owned(), reason });
            }
            bytes.extend_from_slice(&payload);
            if bytes.len() as u64 == of {
                return Ok(bytes);
            }
            total = Some(of);
        }
    }

    /// Pieces of tensors, several of them on their way at a time. `got` is told each, with its hash.
    pub(super) fn spans(
        &mut self,
        spans: &[&Span],
        mut got: impl FnMut(&Span, &[u8], [u8; 32]) -> Result<(), PullError>,
    ) -> Result<(), PullError> {
        let mut waiting = spans.iter();
        let mut asked = VecDeque::new();
        loop {
            while asked.len() < MAX_FETCHES
                && let Some(span) = waiting.next()
            {
                self.ask(Item::Tensor(span.tensor), span.offset, span.bytes)?;
                asked.push_back(*span);
            }
            let Some(span) = asked.pop_front() else { return Ok(()) };
            let (_, payload, hash) = self.answer(&span.name, Some(span.total))?;
            if payload.len() != span.bytes {
                let reason = format!("it sent {} bytes, expected {}", payload.len(), span.bytes);
                return Err(PullError::Source { what: span.name.clone(), reason });
            }
            got(span, &payload, hash)?;
        }
    }

    pub(super) fn close(self) {
        self.runtime.block_on(self.observer.close());
    }
}
