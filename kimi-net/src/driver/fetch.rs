//! Fetching parts of a model's files from a worker.

use bytes::Bytes;

use super::{Observer, WorkerSender};
use crate::{
    error::LinkError,
    message::{Fetch, Message, Piece},
    protocol::Event,
};

impl Observer {
    /// Asks for a piece; [`piece`](Self::piece) returns them in the order of the questions, of which at most
    /// [`MAX_FETCHES`](crate::MAX_FETCHES) may be unanswered.
    ///
    /// # Errors
    /// The link is over.
    pub fn fetch(&self, fetch: Fetch) -> Result<(), LinkError> {
        self.link.send(Message::Fetch(fetch), Bytes::new())
    }

    /// Waits for the next piece. It has no more bytes than were asked for; whether they are the right ones is for the
    /// caller to check.
    ///
    /// # Errors
    /// The link is over: the worker says so if it does not have what was asked for.
    pub async fn piece(&mut self) -> Result<(Piece, Bytes), LinkError> {
        loop {
            match self.events.recv().await {
                Some(Event::Piece(piece, payload)) => return Ok((piece, payload)),
                Some(Event::Failed(report)) => return Err(LinkError::Failed(report)),
                Some(_) => {}
                None => return Err(self.link.reason()),
            }
        }
    }
}

impl WorkerSender {
    /// Answers the oldest unanswered [`Fetch`].
    ///
    /// # Errors
    /// The link is over.
    pub fn piece(&self, piece: Piece, payload: Bytes) -> Result<(), LinkError> {
        self.link.send(Message::Piece(piece), payload)
    }
}
