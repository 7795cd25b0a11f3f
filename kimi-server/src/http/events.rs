//! The events of one answer, from the model's thread to the response.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, ready};

use kimi_core::ChatEvent;
use kimi_core::chat_model::FinishReason;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::answer::End;
use super::engine::Running;
use super::error::ApiError;
use super::{metrics, record};

/// Events that a client may leave unread before its answer is paused: some seconds of text.
const MAX_UNREAD: usize = 256;
/// Unread events at which it goes on.
const RESUME_AT: usize = 64;

/// Where a model's events go. A client that does not read pauses its answer, so that the channel needs no bound.
pub(super) struct EventSender {
    sender: UnboundedSender<ChatEvent>,
    flow: Arc<Flow>,
}

/// What both ends of the channel know.
#[derive(Default)]
struct Flow {
    unread: AtomicUsize,
    paused: AtomicBool,
    /// Set once the answer has begun.
    running: OnceLock<Weak<dyn Running>>,
}

impl EventSender {
    pub(super) fn send(&self, event: ChatEvent) {
        let unread = self.flow.unread.fetch_add(1, Ordering::SeqCst) + 1;
        // Nobody listens once the client is gone, and the answer is being cancelled then.
        let _ = self.sender.send(event);
        if unread > MAX_UNREAD
            && let Some(running) = self.flow.running.get().and_then(Weak::upgrade)
            && !self.flow.paused.swap(true, Ordering::SeqCst)
        {
            running.set_paused(true);
        }
    }
}

/// Both ends of an answer's events; the second becomes [`Events`] with the answer itself.
pub(super) fn channel() -> (EventSender, PendingEvents) {
    let (sender, receiver) = unbounded_channel();
    let flow = Arc::new(Flow::default());
    (EventSender { sender, flow: flow.clone() }, PendingEvents { receiver, flow })
}

/// Events of an answer that is about to begin.
pub(super) struct PendingEvents {
    receiver: UnboundedReceiver<ChatEvent>,
    flow: Arc<Flow>,
}

impl PendingEvents {
    pub(super) fn of(
        self,
        running: Box<dyn Running>,
        parallel_calls: bool,
        counted: metrics::Request,
    ) -> Events {
        let running: Arc<dyn Running> = running.into();
        let _ = self.flow.running.set(Arc::downgrade(&running)); // nobody else sets it
        let Self { receiver, flow } = self;
        Events { receiver, flow, running, parallel_calls, cut: false, counted }
    }
}

/// Events of an answer. Dropping them cancels the answer: that is how a client that goes away frees its sequence.
pub(super) struct Events {
    receiver: UnboundedReceiver<ChatEvent>,
    flow: Arc<Flow>,
    running: Arc<dyn Running>,
    /// Whether the client takes several tool calls.
    parallel_calls: bool,
    /// Whether a second tool call was cut off.
    cut: bool,
    counted: metrics::Request,
}

/// What can still happen once failures are taken out.
pub(super) enum Event {
    /// More of the answer.
    Part(ChatEvent),
    /// The end.
    Finished(End),
}

impl Events {
    /// How many tokens the prompt has; 0 where that is not known.
    pub(super) fn prompt_tokens(&self) -> usize {
        self.running.prompt_tokens()
    }

    /// The next event, if there is one yet.
    ///
    /// # Errors
    /// If the model failed or was stopped.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, ApiError>> {
        loop {
            let Some(event) = ready!(self.receiver.poll_recv(cx)) else {
                self.counted.failed();
                let message = "the model stopped without a word; see the server's log";
                return Poll::Ready(Err(ApiError::internal(message)));
            };
            let unread = self.flow.unread.fetch_sub(1, Ordering::SeqCst) - 1;
            if unread <= RESUME_AT && self.flow.paused.swap(false, Ordering::SeqCst) {
                self.running.set_paused(false);
            }
            match event {
                ChatEvent::Finished { reason, usage } => {
                    let reason = if self.cut { FinishReason::ToolCalls } else { reason };
                    self.counted.finished(reason, &usage);
                    return Poll::Ready(match reason {
                        FinishReason::Cancelled => Err(ApiError::shutdown()),
                        reason => Ok(Event::Finished(End { reason, usage })),
                    });
                }
                ChatEvent::Failed(error) => {
                    self.counted.failed();
                    return Poll::Ready(Err(ApiError::from(error)));
                }
                ChatEvent::ToolCallBegin { index, .. } if index > 0 && !self.parallel_calls => {
                    self.cut = true;
                    self.running.cancel();
                }
                _ if self.cut => {}
                part => {
                    record::part(&part);
                    return Poll::Ready(Ok(Event::Part(part)));
                }
            }
        }
    }
}
