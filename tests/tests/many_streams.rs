//! Many streams at once: each gets its share, also while long prompts arrive.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may

use std::sync::atomic::{AtomicUsize, Ordering};

use kimi_tests::api::Server;
use serde_json::json;

const STREAMS: usize = 24;
/// Tokens of each of them.
const TOKENS: usize = 120;
/// Chats with a long prompt that come while they run.
const PROMPTS: usize = 3;

#[test]
fn no_stream_starves() {
    let server = Server::tiny();
    let ask = |content: String, tokens: usize| {
        let messages = json!([{"role": "user", "content": content}]);
        json!({"messages": messages, "max_tokens": tokens, "ignore_eos": true, "temperature": 0})
    };
    let counts: Vec<AtomicUsize> = (0..STREAMS).map(|_| AtomicUsize::new(0)).collect();
    // How far each was when the first one ended.
    let progress = std::sync::OnceLock::new();
    std::thread::scope(|scope| {
        for (i, count) in counts.iter().enumerate() {
            let (server, counts, progress) = (&server, &counts, &progress);
            scope.spawn(move || {
                for event in server.stream(&ask(format!("Tell me story {i}."), TOKENS)) {
                    count.fetch_add(usize::from(event.contains("\"content\"")), Ordering::SeqCst);
                    if event == "[DONE]" {
                        let all =
                            || counts.iter().map(|count| count.load(Ordering::SeqCst)).collect::<Vec<_>>();
                        progress.get_or_init(all);
                    }
                }
            });
        }
        for i in 0..PROMPTS {
            let server = &server;
            scope.spawn(move || server.chat(&ask(format!("{i} {}", "far away ".repeat(500)), 4)).ok());
        }
    });
    let progress = progress.into_inner().unwrap();
    // All began at about the same time, so that all are nearly through; a machine with much else to do blurs that.
    let least = progress.iter().min().unwrap();
    assert!(
        *least >= TOKENS / 4,
        "when the first of the streams ended, the others had {progress:?} parts of {TOKENS}"
    );
}
