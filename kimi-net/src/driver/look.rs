//! The handle of a node that only looks.

use std::time::Instant;

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};

use super::{Link, MAX_UNREAD_EVENTS, WorkerSender, pump::Route};
use crate::{
    error::LinkError,
    message::{Hello, Look, Message, Role, Status},
    protocol::{Config, Event, Protocol},
    secure::{self, Trust},
    tune::Tuned,
};

/// A link to a worker that asks it for its [`Status`] and for pieces of its files; the worker goes on with what it does.
pub struct Observer {
    pub(super) link: Link,
    pub(super) events: mpsc::Receiver<Event>,
}

impl Observer {
    /// Proves the key on a stream, says hello and waits for the welcome. Call it within a tokio runtime.
    ///
    /// # Errors
    /// Why there is no link.
    pub async fn handshake<S>(stream: S, trust: &Trust, config: Config) -> Result<Observer, LinkError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Observer::start(stream, trust, config, None).await
    }

    pub(super) async fn start<S>(
        stream: S,
        trust: &Trust,
        config: Config,
        socket: Option<Tuned>,
    ) -> Result<Observer, LinkError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let limit = config.handshake_timeout;
        let protocol = Protocol::observer(config, Instant::now())?; // both handshakes together have the time of one
        let (sender, events) = mpsc::channel(MAX_UNREAD_EVENTS);
        let route = Route::Worker { events: sender };
        let link = match trust {
            Trust::Insecure => Link::open(secure::buffered(stream), protocol, route, socket).await?,
            Trust::Key(key) => {
                let stream = secure::handshake(stream, key, Role::Observer, limit).await?;
                Link::open(stream, protocol, route, socket).await?
            }
        };
        Ok(Observer { link, events })
    }

    /// The worker's introduction.
    pub fn peer(&self) -> &Hello {
        &self.link.peer
    }

    /// Asks; [`answer`](Self::answer) returns the answers in the order of the questions.
    ///
    /// # Errors
    /// The link is over.
    pub fn ask(&self, look: Look) -> Result<(), LinkError> {
        self.link.send(Message::Look(look), Bytes::new())
    }

    /// Waits for the next answer.
    ///
    /// # Errors
    /// The link is over, as it is when the worker says nothing for [`Config::idle_timeout`].
    pub async fn answer(&mut self) -> Result<Status, LinkError> {
        loop {
            match self.events.recv().await {
                Some(Event::Status(status)) => return Ok(*status),
                Some(Event::Failed(report)) => return Err(LinkError::Failed(report)),
                Some(_) => {}
                None => return Err(self.link.reason()),
            }
        }
    }

    /// Says goodbye and waits until that is sent.
    pub async fn close(self) {
        self.link.close("I have seen enough".to_owned()).await;
    }
}

impl WorkerSender {
    /// Answers the oldest unanswered [`Look`].
    ///
    /// # Errors
    /// The link is over.
    pub fn status(&self, status: Status) -> Result<(), LinkError> {
        self.link.send(Message::Status(Box::new(status)), Bytes::new())
    }
}
