//! What the model has sampled is the same tokens when it comes back in a history, though the client sends text.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may
#![cfg(feature = "tiny")]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use kimi_core::batch::{Batch, Output};
use kimi_core::chat::{Content, FunctionCall, Message, Tool, ToolCall};
use kimi_core::chat_model::ChatEvent;
use kimi_core::sampler::Sampled;
use kimi_core::stage::{
    Compute, Finish, Hidden, SequenceOutput, StageError, StageOutput, StageSpan, StageThread,
};
use kimi_core::{ChatFiles, ChatModel, ChatRequest, Checkpoint, ModelOptions};
use serde_json::json;

/// Says what it is told to, and then ends its turn.
struct Scripted {
    span: StageSpan,
    script: Arc<Mutex<VecDeque<u32>>>,
    end: u32,
}

impl Compute for Scripted {
    fn span(&self) -> StageSpan {
        self.span.clone()
    }

    fn start(&mut self, batch: &Batch, _: Option<Hidden>) -> Result<Finish, StageError> {
        let asked = batch.sequences.iter().filter(|slice| slice.output != Output::None);
        let outputs = asked.map(|slice| {
            let token = self.script.lock().unwrap().pop_front().unwrap_or(self.end);
            let sampled = vec![Ok(Sampled { token, logprob: 0.0, top: vec![] })];
            SequenceOutput { id: slice.id, sampled, logits: vec![] }
        });
        let output = StageOutput::Sequences(outputs.collect());
        Ok(Box::new(move || Ok(output)))
    }
}

struct Script {
    model: ChatModel,
    script: Arc<Mutex<VecDeque<u32>>>,
}

/// An answer as a client sees it.
#[derive(Debug, Default)]
struct Answer {
    content: String,
    reasoning: String,
    calls: Vec<(String, String, String)>,
}

impl Script {
    /// kimi-tiny's tokenizer, with this template in place of its own.
    fn new(template: Option<&str>) -> Self {
        let tiny = Checkpoint::kimi_tiny().unwrap();
        let checkpoint = match template {
            None => tiny,
            Some(template) => {
                let names =
                    ["config.json", "tiktoken.model", "tokenizer_config.json", "generation_config.json"];
                let files = names.into_iter().filter_map(|name| Some((name, tiny.file(name).unwrap()?)));
                let template = ("chat_template.jinja", template.as_bytes().to_vec().into());
                let mut files: Vec<_> = files.chain([template]).collect();
                let shards = tiny.shards().to_vec();
                for name in &shards {
                    files.push((name.as_str(), tiny.file(name).unwrap().unwrap()));
                }
                Checkpoint::from_memory("scripted", files).unwrap()
            }
        };
        let files = ChatFiles::open(&checkpoint).unwrap();
        let layers = checkpoint.config().num_hidden_layers;
        let script = Arc::default();
        let stage = Scripted {
            span: StageSpan { layers: 0..layers, first: true, last: true },
            script: Arc::clone(&script),
            end: files.stop_ids()[0],
        };
        let stage = StageThread::spawn(Box::new(stage), false).unwrap();
        let options = ModelOptions { context_tokens: Some(4096), ..ModelOptions::default() };
        let model = ChatModel::start(files, &checkpoint, vec![Box::new(stage)], &options).unwrap();
        Self { model, script }
    }

    /// A text in other tokens than those that encoding it gives: one or more for each character.
    fn spelt(&self, text: &str) -> Vec<u32> {
        let tokenizer = self.model.tokenizer();
        let spelt: Vec<u32> = text.chars().flat_map(|c| tokenizer.encode(&c.to_string()).unwrap()).collect();
        assert_ne!(spelt, tokenizer.encode(text).unwrap());
        spelt
    }

    fn control(&self, name: &str) -> u32 {
        self.model.tokenizer().id_of(name).unwrap()
    }

    /// Has the model say these tokens.
    fn say(&self, tokens: &[u32], request: &ChatRequest) -> Answer {
        *self.script.lock().unwrap() = tokens.to_vec().into();
        let mut answer = Answer::default();
        for event in self.model.chat(request.clone()).unwrap() {
            match event {
                ChatEvent::Content(text) => answer.content.push_str(&text),
                ChatEvent::Reasoning(text) => answer.reasoning.push_str(&text),
                ChatEvent::ToolCallBegin { id, name, .. } => answer.calls.push((id, name, String::new())),
                ChatEvent::ToolCallArguments { index, fragment } => {
                    answer.calls[index].2.push_str(&fragment);
                }
                ChatEvent::Failed(error) => panic!("{error}"),
                _ => {}
            }
        }
        answer
    }
}

fn contains(ids: &[u32], run: &[u32]) -> bool {
    ids.windows(run.len()).any(|window| window == run)
}

const TEXT: &str = "Lighthouses warn ships, \u{fc}ber Nacht: \u{706f}\u{53f0} \u{1f6a2}.";

#[test]
fn an_answers_text_is_the_tokens_that_were_sampled() {
    let script = Script::new(None);
    let mut chat = ChatRequest::user("What is a lighthouse for?");
    let sampled = script.spelt(TEXT);
    let begun = [script.model.prompt(&chat).unwrap(), sampled.clone()].concat();
    let answer = script.say(&sampled, &chat);
    assert_eq!(answer.content, TEXT);
    chat.messages.push(Message::new("assistant", answer.content));
    chat.messages.push(Message::new("user", TEXT));
    let ids = script.model.prompt(&chat).unwrap();
    assert!(ids.starts_with(&begun));
    assert!(
        contains(&ids[begun.len()..], &script.model.tokenizer().encode(TEXT).unwrap()),
        "a user samples nothing"
    );
    // The prompt's text is the same as where nothing is remembered.
    let (fresh, tokenizer) = (Script::new(None), script.model.tokenizer());
    let other = fresh.model.prompt(&chat).unwrap();
    assert_ne!(other, ids);
    assert_eq!(tokenizer.decode(&other, false).unwrap(), tokenizer.decode(&ids, false).unwrap());
    // Another text is encoded as ever.
    chat.messages[1] = Message::new("assistant", format!("{TEXT} "));
    assert_eq!(script.model.prompt(&chat).unwrap(), fresh.model.prompt(&chat).unwrap());
}

#[test]
fn an_answer_that_goes_on_is_remembered_whole() {
    let script = Script::new(None);
    let user = ChatRequest::user("What is a lighthouse for?");
    let begun = Message::new("assistant", "A light");
    let partial = ChatRequest {
        messages: [user.messages.clone(), vec![begun]].concat(),
        continue_last: true,
        ..user.clone()
    };
    let prompt = script.model.prompt(&partial).unwrap();
    let sampled = script.spelt("house warns ships.");
    let answer = script.say(&sampled, &partial);
    let mut next = user;
    next.messages.push(Message::new("assistant", format!("A light{}", answer.content)));
    next.messages.push(Message::new("user", "And then?"));
    assert!(script.model.prompt(&next).unwrap().starts_with(&[prompt, sampled].concat()));
}

#[test]
fn calls_that_say_the_same_are_the_tokens_that_were_sampled() {
    let script = Script::new(None);
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    let function = json!({"name": "get_weather", "parameters": parameters});
    let tool = Tool::try_from(json!({"type": "function", "function": function})).unwrap();
    let mut chat = ChatRequest { tools: vec![tool], ..ChatRequest::user("Rain in Oslo?") };
    let control = |name| vec![script.control(name)];
    let plain = |text| script.model.tokenizer().encode(text).unwrap();
    let sampled = [
        script.spelt("I look it up."),
        control("<|tool_calls_section_begin|>"),
        control("<|tool_call_begin|>"),
        plain("functions.get_weather:0"),
        control("<|tool_call_argument_begin|>"),
        script.spelt("\n{ \"city\" : \"Oslo\",  \"days\": 2.0 }\n"),
        control("<|tool_call_end|>"),
        control("<|tool_calls_section_end|>"),
    ]
    .concat();
    let begun = [script.model.prompt(&chat).unwrap(), sampled.clone()].concat();
    let answer = script.say(&sampled, &chat);
    let [(id, name, arguments)] = &*answer.calls else { panic!("{answer:?}") };
    assert_eq!(arguments, "{ \"city\" : \"Oslo\",  \"days\": 2.0 }");
    // As it came, as JavaScript writes it, and as Python does.
    for arguments in [arguments, r#"{"city":"Oslo","days":2}"#, r#"{"days": 2.0, "city": "Oslo"}"#] {
        let function = FunctionCall { name: name.clone(), arguments: arguments.to_owned() };
        let call = ToolCall { id: id.clone(), kind: "function".into(), function };
        let content = Some(Content::Text(answer.content.clone()));
        let said =
            Message { role: "assistant".into(), content, tool_calls: vec![call], ..Message::default() };
        let result = Message { tool_call_id: Some(id.clone()), ..Message::new("tool", "no") };
        chat.messages.truncate(1);
        chat.messages.extend([said, result]);
        assert!(script.model.prompt(&chat).unwrap().starts_with(&begun), "{arguments}");
    }
}

#[test]
fn templates_that_leave_the_thinking_out_keep_the_answers_tokens() {
    let template = "{% for message in messages %}<|im_{{ message.role }}|>{{ message.role }}<|im_middle|>\
        {% if message.role == 'assistant' %}<think></think>{% endif %}{{ message.content }}<|im_end|>{% endfor %}\
        {% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}";
    let script = Script::new(Some(template));
    let mut chat = ChatRequest::user("What is a lighthouse for?");
    let (thought, said) = (script.spelt("They ask for lighthouses."), script.spelt(TEXT));
    let [open, close] = ["<think>", "</think>"].map(|name| vec![script.control(name)]);
    let sampled = [open.clone(), thought.clone(), close.clone(), said.clone()].concat();
    let answer = script.say(&sampled, &chat);
    assert_eq!((answer.reasoning.as_str(), answer.content.as_str()), ("They ask for lighthouses.", TEXT));
    let reasoning_content = Some(answer.reasoning);
    chat.messages.push(Message { reasoning_content, ..Message::new("assistant", answer.content) });
    chat.messages.push(Message::new("user", "Thanks"));
    let ids = script.model.prompt(&chat).unwrap();
    assert!(contains(&ids, &[open, close, said, vec![script.control("<|im_end|>")]].concat()));
    assert!(!contains(&ids, &thought));
}

#[test]
fn what_a_stop_string_cut_is_encoded_as_ever() {
    let script = Script::new(None);
    let mut chat = ChatRequest::user("What is a lighthouse for?");
    let stopped = ChatRequest { stop: vec![" ships".into()], ..chat.clone() };
    let answer = script.say(&script.spelt("Lighthouses warn ships, and more."), &stopped);
    assert_eq!(answer.content, "Lighthouses warn");
    chat.messages.push(Message::new("assistant", answer.content));
    chat.messages.push(Message::new("user", "And then?"));
    assert_eq!(script.model.prompt(&chat).unwrap(), Script::new(None).model.prompt(&chat).unwrap());
}
