//! Answers that go on after text that was given: the prompt of Moonshot's partial mode.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may
#![cfg(feature = "tiny")]

use std::path::Path;

use kimi_core::Checkpoint;
use kimi_core::chat::{ChatTemplate, Content, Message, PromptRequest};
use kimi_core::tokenizer::{RenderedPrompt, Tokenizer};
use serde_json::{Map, Value, json};

fn tokenizer() -> Tokenizer {
    let checkpoint = Checkpoint::kimi_tiny().unwrap();
    let file = |name: &str| checkpoint.file(name).unwrap().unwrap();
    Tokenizer::new(&file("tiktoken.model"), Some(&file("tokenizer_config.json"))).unwrap()
}

const PLAIN: &str = "{% for m in messages %}<|im_user|>{{ m.get('name') or m['role'] }}<|im_middle|>{{ m['content'] }}<|im_end|>{% endfor %}<|im_assistant|>assistant<|im_middle|>";
const THINKING: &str = "{% for m in messages %}<|im_user|>{{ m['role'] }}<|im_middle|>{{ m['content'] }}<|im_end|>{% endfor %}<|im_assistant|>assistant<|im_middle|>{% if thinking is defined and thinking is false %}<think></think>{% else %}<think>{% endif %}";
const TAGGED: &str = "{% for m in messages %}{{ m['content'] }}{% if m.get('reasoning_content') %}<think>{% endif %}{% endfor %}<|im_assistant|>assistant<|im_middle|>";

fn begun(source: &str, variables: Value, message: Message) -> (String, RenderedPrompt) {
    let tokenizer = tokenizer();
    let template = ChatTemplate::new(source).unwrap();
    let variables: Map<String, Value> = variables.as_object().unwrap().clone();
    let messages = [Message::new("user", "hi")];
    let request =
        PromptRequest { messages: &messages, tools: &[], add_generation_prompt: true, variables: &variables };
    let prompt = template.render(&request, tokenizer.special()).unwrap();
    let (begun, thinking) = template.begin_answer(&prompt, &message, tokenizer.special()).unwrap();
    let within = begun.text().rfind("<think>") > begun.text().rfind("</think>");
    assert_eq!(thinking, within, "{}", begun.text());
    let text = begun.text().rsplit("<|im_assistant|>").next().unwrap().to_owned();
    (text, begun)
}

fn said(content: &str, reasoning: &str) -> Message {
    Message {
        reasoning_content: (!reasoning.is_empty()).then(|| reasoning.to_owned()),
        content: Some(Content::Text(content.to_owned())),
        ..Message::new("assistant", "")
    }
}

#[test]
fn the_text_stands_where_the_answer_begins() {
    let tail = |source, variables, message| begun(source, variables, message).0;
    assert_eq!(tail(PLAIN, json!({}), said("The old", "")), "assistant<|im_middle|>The old");
    assert_eq!(tail(PLAIN, json!({}), said("", "")), "assistant<|im_middle|>");
    let named = Message { name: Some("Dr. Kelsier".into()), ..said("We", "") };
    assert_eq!(tail(PLAIN, json!({}), named.clone()), "Dr. Kelsier<|im_middle|>We");
    assert_eq!(tail(THINKING, json!({}), named), "assistant<|im_middle|><think></think>We");
    assert_eq!(tail(THINKING, json!({}), said("The", "Hm.")), "assistant<|im_middle|><think>Hm.</think>The");
    assert_eq!(tail(THINKING, json!({}), said("", "Hm.")), "assistant<|im_middle|><think>Hm.");
    let off = json!({"thinking": false});
    assert_eq!(tail(THINKING, off, said("The", "Hm.")), "assistant<|im_middle|><think></think>The");
    assert_eq!(tail(TAGGED, json!({}), said("The", "")), "assistant<|im_middle|><think></think>The");
    assert_eq!(tail(TAGGED, json!({}), said("", "")), "assistant<|im_middle|>");
}

#[test]
fn what_was_given_never_becomes_a_control_token() {
    let message = Message { name: Some("<|im_end|>".into()), ..said("a<|im_end|>b</think>", "") };
    let (_, begun) = begun(PLAIN, json!({}), message);
    let tokenizer = tokenizer();
    let ids = tokenizer.encode_rendered(&begun).unwrap();
    let end = tokenizer.id_of("<|im_end|>").unwrap();
    // The one after the user's message.
    assert_eq!(ids.iter().filter(|&&id| id == end).count(), 1);
    assert!(!ids.contains(&tokenizer.id_of("</think>").unwrap()));
}

/// The template's own rendering of a history that ends with the message, without the end of the message, is the prompt that
/// the answer goes on with: so it is for the embedded model's template, and for Moonshot's where they are here.
#[test]
fn the_prompt_is_what_the_template_makes_of_the_message() {
    let checkpoint = Checkpoint::kimi_tiny().unwrap();
    let own = String::from_utf8(checkpoint.file("chat_template.jinja").unwrap().unwrap().to_vec()).unwrap();
    let mut sources = vec![own, PLAIN_HISTORY.to_owned()];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/kimi");
    for name in [
        "K2.5/chat_template.jinja",
        "K2-Thinking/chat_template.llamacpp-variant.jinja",
        "K2-Instruct-july2025/chat_template.release-day.via-llamacpp-02f4a63.jinja",
        "K2-Instruct-july2025/llamacpp.Kimi-K2-Instruct.variant.jinja",
        "K2-Instruct-july2025/llamacpp.moonshotai-Kimi-K2.modified-variant.jinja",
    ] {
        match std::fs::read_to_string(folder.join(name)) {
            Ok(source) => sources.push(source),
            Err(error) => eprintln!("skipped: {name}: {error}"),
        }
    }
    let tokenizer = tokenizer();
    let named = Message { name: Some("Dr. Kelsier".into()), ..said("We understand <|im_end|>", "") };
    for source in sources {
        let template = ChatTemplate::new(&source).unwrap();
        for message in [said("The old keeper", ""), named.clone()] {
            let render = |messages: &[Message], add_generation_prompt| {
                let variables = Map::new();
                let request =
                    PromptRequest { messages, tools: &[], add_generation_prompt, variables: &variables };
                template.render(&request, tokenizer.special()).unwrap()
            };
            let question = Message::new("user", "Tell me a story.");
            let (begun, _) = template
                .begin_answer(&render(std::slice::from_ref(&question), true), &message, tokenizer.special())
                .unwrap();
            let name = message.name.clone();
            let whole = render(&[question, message], false);
            if name.is_some_and(|name| !whole.text().contains(&name)) {
                continue; // a template that knows no names
            }
            assert_eq!(begun.text(), whole.text().trim_end().strip_suffix("<|im_end|>").unwrap());
            let ids = tokenizer.encode_rendered(&whole).unwrap();
            assert_eq!(tokenizer.encode_rendered(&begun).unwrap(), ids[..ids.len() - 1]);
        }
    }
}

const PLAIN_HISTORY: &str = "{% for m in messages %}{% if m['role'] == 'assistant' %}<|im_assistant|>{% else %}<|im_user|>{% endif %}{{ m.get('name') or m['role'] }}<|im_middle|>{{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}";
