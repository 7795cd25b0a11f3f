//! An answer that is being generated: ending it, pausing it, and its events.

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};

use super::ChatEvent;
use crate::engine::Generation;

/// Holds the running generation, so that the text itself can end it.
#[derive(Debug, Default)]
pub(super) struct Slot(Mutex<Running>);

#[derive(Debug, Default)]
enum Running {
    #[default]
    Starting,
    Yes(Generation),
    Ended,
}

impl Slot {
    pub(super) fn fill(&self, generation: Generation) {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*running, Running::Starting) {
            *running = Running::Yes(generation);
        } // else the text ended it already, and dropping the generation cancels it
    }

    fn set_paused(&self, paused: bool) {
        if let Running::Yes(generation) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            generation.set_paused(paused);
        }
    }

    pub(super) fn end(&self) {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Running::Yes(generation) = std::mem::replace(&mut *running, Running::Ended) {
            generation.cancel();
        }
    }
}

/// An answer that is being generated. Dropping it cancels it.
#[must_use = "dropping a generation cancels it"]
#[derive(Debug)]
pub struct ChatGeneration {
    slot: Arc<Slot>,
    prompt_tokens: usize,
}

impl ChatGeneration {
    pub(super) fn new(slot: Arc<Slot>, prompt_tokens: usize) -> Self {
        Self { slot, prompt_tokens }
    }

    /// How many tokens its prompt has.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// Ends the answer; the sink gets [`FinishReason::Cancelled`](super::FinishReason::Cancelled) unless it has ended already.
    pub fn cancel(&self) {
        self.slot.end();
    }

    /// Lets the answer rest while nobody takes its events, or go on; see [`Generation::set_paused`].
    pub fn set_paused(&self, paused: bool) {
        self.slot.set_paused(paused);
    }
}

impl Drop for ChatGeneration {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// The events of an answer, see [`ChatModel::chat`](super::ChatModel::chat). Dropping it cancels the answer.
#[derive(Debug)]
pub struct ChatEvents {
    events: Receiver<ChatEvent>,
    generation: ChatGeneration,
}

impl ChatEvents {
    pub(super) fn new(events: Receiver<ChatEvent>, generation: ChatGeneration) -> Self {
        Self { events, generation }
    }

    /// See [`ChatGeneration::cancel`].
    pub fn cancel(&self) {
        self.generation.cancel();
    }
}

impl Iterator for ChatEvents {
    type Item = ChatEvent;

    fn next(&mut self) -> Option<ChatEvent> {
        self.events.recv().ok()
    }
}
