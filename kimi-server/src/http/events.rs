//! The events of one answer, from the model's thread to the response.

use kimi_core::ChatEvent;
use kimi_core::chat_model::FinishReason;
use kimi_core::engine::Usage;
use tokio::sync::mpsc::UnboundedReceiver;

use super::engine::Running;
use super::error::ApiError;

/// Events of an answer. Dropping them cancels the answer: that is how a client that goes away frees its sequence.
///
/// The channel needs no bound: it holds at most the tokens of one context.
pub(super) struct Events {
    receiver: UnboundedReceiver<ChatEvent>,
    running: Box<dyn Running>,
    /// Whether the client takes several tool calls.
    parallel_calls: bool,
    /// Whether a second tool call was cut off.
    cut: bool,
}

/// What can still happen once failures are taken out.
pub(super) enum Event {
    /// More of the answer.
    Part(ChatEvent),
    /// The end.
    Finished(FinishReason, Usage),
}

impl Events {
    pub(super) fn new(
        receiver: UnboundedReceiver<ChatEvent>,
        running: Box<dyn Running>,
        parallel_calls: bool,
    ) -> Self {
        Self { receiver, running, parallel_calls, cut: false }
    }

    /// The next event. May be dropped while it waits; nothing is lost.
    ///
    /// # Errors
    /// If the model failed or was stopped.
    pub(super) async fn next(&mut self) -> Result<Event, ApiError> {
        loop {
            let Some(event) = self.receiver.recv().await else {
                return Err(ApiError::internal("the model stopped without a word; see the server's log"));
            };
            match event {
                ChatEvent::Finished { usage, .. } if self.cut => {
                    return Ok(Event::Finished(FinishReason::ToolCalls, usage));
                }
                ChatEvent::Finished { reason: FinishReason::Cancelled, .. } => {
                    return Err(ApiError::unavailable(
                        "the answer was cancelled: the server is shutting down",
                    ));
                }
                ChatEvent::Finished { reason, usage } => return Ok(Event::Finished(reason, usage)),
                ChatEvent::Failed(error) => return Err(ApiError::from(error)),
                ChatEvent::ToolCallBegin { index, .. } if index > 0 && !self.parallel_calls => {
                    self.cut = true;
                    self.running.cancel();
                }
                _ if self.cut => {}
                part => return Ok(Event::Part(part)),
            }
        }
    }
}
