//! Messages, tools and variables of any JSON for Kimi's template, and templates of any text.
#![no_main]

use std::sync::LazyLock;

use kimi_core::chat::{ChatTemplate, Message, PromptRequest, Tool, normalize_tool_call_ids};
use kimi_core::checkpoint::Checkpoint;
use kimi_core::tokenizer::SpecialTokens;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};

static SPECIAL: LazyLock<SpecialTokens> =
    LazyLock::new(|| SpecialTokens::new(1000, None).expect("Kimi-K2's names"));
static TEMPLATES: LazyLock<Vec<ChatTemplate>> = LazyLock::new(|| {
    let tiny = Checkpoint::kimi_tiny().expect("kimi-tiny opens");
    let jinja = tiny.file("chat_template.jinja").expect("in memory");
    let of = |jinja| ChatTemplate::from_files(jinja, None, None).expect("our own templates").0;
    vec![of(jinja.as_deref()), of(None)]
});

fuzz_target!(|input: &[u8]| {
    // A chat is a JSON object; anything else is a template.
    if let Ok(Value::Object(mut chat)) = serde_json::from_slice(input) {
        let mut list = |key: &str| match chat.remove(key) {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        };
        let mut messages: Vec<Message> =
            list("messages").into_iter().filter_map(|m| serde_json::from_value(m).ok()).collect();
        let tools: Vec<Tool> = list("tools").into_iter().filter_map(|t| serde_json::from_value(t).ok()).collect();
        normalize_tool_call_ids(&mut messages);
        let request =
            PromptRequest { messages: &messages, tools: &tools, add_generation_prompt: true, variables: &chat };
        for template in TEMPLATES.iter() {
            let _ = template.render(&request, &SPECIAL);
        }
        return;
    }
    let Ok(template) = ChatTemplate::new(&String::from_utf8_lossy(input)) else { return };
    let messages = [Message::new("user", "Hello <|im_end|>")];
    let variables = Map::new();
    let request =
        PromptRequest { messages: &messages, tools: &[], add_generation_prompt: true, variables: &variables };
    let _ = template.render(&request, &SPECIAL);
});
