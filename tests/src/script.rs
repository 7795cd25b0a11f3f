//! A model that does as it is told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kimi_core::chat_model::FinishReason;
use kimi_core::engine::{EngineError, EngineStats, Usage};
use kimi_core::{ChatError, ChatEvent, ChatRequest};
use kimi_server::http::{ChatEngine, EventSink, Running};

/// What it says that every prompt has.
const PROMPT_TOKENS: usize = 3;

/// Plays a list of events, after a pause.
#[derive(Debug)]
pub struct Script {
    /// The model's id.
    pub id: &'static str,
    /// How long it thinks.
    pub pause: Duration,
    /// Its answer, without the end.
    pub events: Vec<ChatEvent>,
    /// Refuses every request.
    pub refuse: Option<fn() -> EngineError>,
    /// Says that it is down.
    pub down: bool,
    /// What it was asked, oldest first. Clones of it show it to a test.
    pub asked: Arc<Mutex<Vec<ChatRequest>>>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            id: "script",
            pause: Duration::ZERO,
            events: Vec::new(),
            refuse: None,
            down: false,
            asked: Arc::default(),
        }
    }
}

struct Cancel(Arc<AtomicBool>);

impl Running for Cancel {
    fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn prompt_tokens(&self) -> usize {
        PROMPT_TOKENS
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl ChatEngine for Script {
    fn id(&self) -> &str {
        self.id
    }

    fn context_tokens(&self) -> usize {
        100
    }

    fn stats(&self) -> EngineStats {
        EngineStats::default()
    }

    fn down(&self) -> Option<String> {
        self.down.then(|| "a worker is lost".to_owned())
    }

    fn chat(&self, request: ChatRequest, mut sink: EventSink) -> Result<Box<dyn Running>, ChatError> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        if let Some(error) = self.refuse {
            return Err(error().into());
        }
        let cancelled = Arc::new(AtomicBool::new(false));
        let (seen, events, pause) = (cancelled.clone(), self.events.clone(), self.pause);
        std::thread::spawn(move || {
            std::thread::sleep(pause);
            let calls = events.iter().any(|event| matches!(event, ChatEvent::ToolCallBegin { .. }));
            for event in events {
                let failed = matches!(event, ChatEvent::Failed(_));
                sink(event);
                if failed {
                    return;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            let reason = match (seen.load(Ordering::Relaxed), calls) {
                (true, _) => FinishReason::Cancelled,
                (false, true) => FinishReason::ToolCalls,
                (false, false) => FinishReason::Stop,
            };
            let usage = Usage {
                prompt_tokens: PROMPT_TOKENS,
                cached_tokens: 2,
                completion_tokens: 4,
                ..Usage::default()
            };
            sink(ChatEvent::Finished { reason, usage });
        });
        Ok(Box::new(Cancel(cancelled)))
    }
}

/// An answer with reasoning and two tool calls.
pub fn two_calls() -> Vec<ChatEvent> {
    let call = |index, city: &str| {
        vec![
            ChatEvent::ToolCallBegin {
                index,
                id: format!("functions.weather:{index}"),
                name: "weather".to_owned(),
            },
            ChatEvent::ToolCallArguments { index, fragment: "{\"city\": ".to_owned() },
            ChatEvent::ToolCallArguments { index, fragment: format!("\"{city}\"}}") },
            ChatEvent::ToolCallEnd { index },
        ]
    };
    let reasoning = vec![ChatEvent::Reasoning("Two ".to_owned()), ChatEvent::Reasoning("cities.".to_owned())];
    [reasoning, call(0, "Oslo"), call(1, "京都")].concat()
}
