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
    message::{Hello, Look, Message, Status},
    protocol::{Config, Event, Protocol},
    tune::Tuned,
};

/// A link to a worker that asks it for its [`Status`] and for nothing else; the worker goes on with what it does.
pub struct Observer {
    link: Link,
    events: mpsc::Receiver<Event>,
}

impl Observer {
    /// Says hello on a stream and waits for the welcome. Call it within a tokio runtime.
    pub async fn handshake<S>(stream: S, config: Config) -> Result<Observer, LinkError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        Observer::start(stream, config, None).await
    }

    pub(super) async fn start<S>(
        stream: S,
        config: Config,
        socket: Option<Tuned>,
    ) -> Result<Observer, LinkError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let protocol = Protocol::observer(config, Instant::now())?;
        let (sender, events) = mpsc::channel(MAX_UNREAD_EVENTS);
        let link = Link::open(stream, protocol, Route::Worker { events: sender }, socket).await?;
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
