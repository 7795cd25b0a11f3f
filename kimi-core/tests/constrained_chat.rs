//! Answers of the embedded model that are held to a form: forced calls, schemas, on one stage and on two.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may
#![cfg(feature = "tiny")]

use kimi_core::chat::{FunctionCall, Message, Tool, ToolCall};
use kimi_core::chat_model::{
    ChatError, ChatEvent, FinishReason, GrammarFault, GrammarPlace, OutputFormat, ToolChoice,
};
use kimi_core::sampler::{RawSamplingParams, SamplingParams};
use kimi_core::{ChatFiles, ChatModel, ChatRequest, Checkpoint, DeviceChoice, ModelOptions};
use serde_json::{Value, json};

fn model(stages: usize) -> ChatModel {
    let checkpoint = Checkpoint::kimi_tiny().unwrap();
    let options = ModelOptions { context_tokens: Some(4096), ..ModelOptions::default() };
    let (layers, cache) = (checkpoint.config().num_hidden_layers, options.cache(&checkpoint));
    let load = |stage| {
        let range = layers * stage / stages..layers * (stage + 1) / stages;
        DeviceChoice::cpu().load(&checkpoint, range, cache, &mut |_| {}).unwrap().runner
    };
    let runners = (0..stages).map(load).collect();
    ChatModel::start(ChatFiles::open(&checkpoint).unwrap(), &checkpoint, runners, &options).unwrap()
}

/// An answer: content, calls with id, name and arguments, and how it ended.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    content: String,
    calls: Vec<(String, String, String)>,
    end: Option<FinishReason>,
}

fn ask(model: &ChatModel, request: ChatRequest) -> Answer {
    let mut answer = Answer::default();
    for event in model.chat(request).unwrap() {
        match event {
            ChatEvent::Content(text) => answer.content.push_str(&text),
            ChatEvent::ToolCallBegin { id, name, .. } => answer.calls.push((id, name, String::new())),
            ChatEvent::ToolCallArguments { index, fragment } => answer.calls[index].2.push_str(&fragment),
            ChatEvent::Finished { reason, .. } => answer.end = Some(reason),
            ChatEvent::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
    answer
}

fn tool(name: &str, parameters: &Value, strict: bool) -> Tool {
    let function = json!({"name": name, "parameters": parameters, "strict": strict});
    Tool::try_from(json!({"type": "function", "function": function})).unwrap()
}

fn tools(strict: bool) -> Vec<Tool> {
    let flight = json!({"type": "object", "properties": {"from": {"enum": ["OSL", "BER"]}, "seats": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["from", "seats"], "additionalProperties": false});
    let weather = json!({"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]});
    vec![tool("book_flight", &flight, strict), tool("get_weather", &weather, strict)]
}

fn request(choice: ToolChoice) -> ChatRequest {
    ChatRequest {
        tools: tools(false),
        tool_choice: choice,
        max_tokens: Some(400),
        ..ChatRequest::user("Tell me a story about a lighthouse.")
    }
}

fn check(schema: &Value, text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{text:?}: {e}"));
    if let Err(error) = jsonschema::validate(schema, &value) {
        panic!("{text}: {error}");
    }
}

#[test]
fn calls_are_forced_on_any_number_of_stages() {
    let mut answers = Vec::new();
    for stages in [1, 2] {
        let model = model(stages);
        let named =
            ChatRequest { parallel_tool_calls: false, ..request(ToolChoice::Named("book_flight".into())) };
        let answer = ask(&model, named);
        assert_eq!((answer.end, answer.content.as_str()), (Some(FinishReason::ToolCalls), ""), "{answer:?}");
        let [(id, name, arguments)] = &*answer.calls else { panic!("{answer:?}") };
        assert_eq!((id.as_str(), name.as_str()), ("functions.book_flight:0", "book_flight"));
        check(tools(false)[0].parameters().unwrap(), arguments);

        let required = ChatRequest { parallel_tool_calls: false, ..request(ToolChoice::Required) };
        let any = ask(&model, required);
        assert_eq!((any.end, any.calls.len()), (Some(FinishReason::ToolCalls), 1), "{any:?}");
        answers.push((answer, any));
    }
    assert_eq!(answers[0], answers[1], "the number of stages shows in an answer");
}

#[test]
fn ids_count_the_calls_of_the_conversation() {
    let model = model(1);
    let call = |id: &str| ToolCall {
        id: id.into(),
        kind: "function".into(),
        function: FunctionCall { name: "get_weather".into(), arguments: r#"{"city": "Oslo"}"#.into() },
    };
    let mut request = request(ToolChoice::Named("book_flight".into()));
    let calls = vec![call("functions.get_weather:0"), call("functions.get_weather:1")];
    request.messages.push(Message { tool_calls: calls, ..Message::new("assistant", "") });
    for id in ["functions.get_weather:0", "functions.get_weather:1"] {
        request.messages.push(Message { tool_call_id: Some(id.into()), ..Message::new("tool", "rain") });
    }
    let answer = ask(&model, request);
    assert_eq!(answer.calls[0].0, "functions.book_flight:2", "{answer:?}");
}

#[test]
fn only_allowed_tools_are_called_and_none_where_none_is_allowed() {
    let model = model(1);
    let allowed = ToolChoice::Allowed { required: true, names: vec!["book_flight".into()] };
    let answer = ask(&model, request(allowed));
    assert!(
        !answer.calls.is_empty() && answer.calls.iter().all(|call| call.1 == "book_flight"),
        "{answer:?}"
    );
    // Asked for the weather the model would call the tool for it.
    let weather = |choice| ChatRequest {
        messages: vec![Message::new("user", "What is the weather in Oslo?")],
        ..request(choice)
    };
    for choice in
        [ToolChoice::None, ToolChoice::Allowed { required: false, names: vec!["book_flight".into()] }]
    {
        let answer = ask(&model, weather(choice));
        assert!(answer.calls.iter().all(|call| call.1 == "book_flight"), "{answer:?}");
        assert!(!answer.content.contains("<|tool"), "{answer:?}");
    }
}

#[test]
fn strict_tools_are_held_to_their_schema_wherever_they_are_called() {
    let model = model(1);
    // What the model writes by itself does not fit this one.
    let schema = json!({"type": "object", "properties": {"station": {"enum": ["Blindern", "Tegel"]}, "days": {"type": "integer", "minimum": 3, "maximum": 5}}, "required": ["station", "days"], "additionalProperties": false});
    let ask_weather = |strict| ChatRequest {
        messages: vec![Message::new("user", "What is the weather in Oslo?")],
        tools: vec![tool("get_weather", &schema, strict)],
        max_tokens: Some(200),
        ..ChatRequest::default()
    };
    let free = ask(&model, ask_weather(false));
    let answer = ask(&model, ask_weather(true));
    assert_eq!(free.calls.is_empty(), answer.calls.is_empty(), "{free:?} {answer:?}");
    answer.calls.iter().for_each(|call| check(&schema, &call.2));
}

#[test]
fn texts_have_the_form_that_is_asked_for() {
    for stages in [1, 2] {
        let model = model(stages);
        let schema = json!({"type": "object", "properties": {"title": {"type": "string", "maxLength": 30}, "stars": {"type": "integer", "minimum": 1, "maximum": 5}, "tags": {"type": "array", "items": {"enum": ["sea", "night"]}, "maxItems": 2}}, "required": ["title", "stars", "tags"], "additionalProperties": false});
        let ask_for =
            |output| ask(&model, ChatRequest { tools: vec![], output, ..request(ToolChoice::Auto) });
        let json =
            ask_for(OutputFormat::JsonSchema { name: "review".into(), schema: schema.clone(), strict: true });
        assert_eq!(json.end, Some(FinishReason::Stop), "{json:?}");
        check(&schema, &json.content);
        let choice = ask_for(OutputFormat::Choice(vec!["sea".into(), "land".into()]));
        assert!(["sea", "land"].contains(&&*choice.content), "{choice:?}");
        let regex = ask_for(OutputFormat::Regex(r"[A-Z][a-z]{2,8}\.".into()));
        assert!(regex.content.ends_with('.') && regex.content.len() <= 10, "{regex:?}");
        // With tools beside it, it is either a call or text of the form.
        let output =
            OutputFormat::JsonSchema { name: "review".into(), schema: schema.clone(), strict: false };
        let either = ask(&model, ChatRequest { output, ..request(ToolChoice::Auto) });
        if either.calls.is_empty() {
            check(&schema, &either.content);
        } else {
            assert_eq!(either.content, "");
        }
    }
}

#[test]
fn an_answer_cut_short_says_so() {
    let model = model(1);
    let output = OutputFormat::JsonSchema {
        name: "x".into(),
        schema: json!({"type": "object", "properties": {"text": {"type": "string", "minLength": 500}}, "required": ["text"]}),
        strict: true,
    };
    let answer = ask(&model, ChatRequest { output, max_tokens: Some(12), ..ChatRequest::user("A story.") });
    assert_eq!(answer.end, Some(FinishReason::Length));
    assert!(answer.content.starts_with('{'), "{answer:?}");
}

#[test]
fn what_cannot_be_enforced_is_refused_with_its_place() {
    let model = model(1);
    let refused = |request: ChatRequest| match model.chat(request) {
        Err(ChatError::Grammar(error)) => error,
        other => panic!("{:?}", other.err()),
    };
    let lookaround = json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "(?!x)"}}});
    let tools = vec![tool("ok", &json!({"type": "object"}), true), tool("bad", &lookaround, true)];
    let error = refused(ChatRequest { tools, ..ChatRequest::user("hi") });
    assert_eq!(error.place, GrammarPlace::Tool { index: 1 });
    assert!(error.to_string().contains("#/properties/a/pattern"), "{error}");
    let output = OutputFormat::JsonSchema { name: "x".into(), schema: lookaround, strict: false };
    assert_eq!(refused(ChatRequest { output, ..ChatRequest::user("hi") }).place, GrammarPlace::Output);
    let error = refused(request(ToolChoice::Named("nothing".into())));
    assert!(matches!(error.fault, GrammarFault::UnknownTool { .. }), "{error}");
    let error = refused(ChatRequest { tools: vec![], ..request(ToolChoice::Required) });
    assert_eq!(error.fault, GrammarFault::NoTools);
}

/// The schemas of the file that `KIMI_SCHEMAS` names, as parameters of a tool that must be called.
#[test]
fn tools_of_a_file_are_called_with_valid_arguments() {
    let Some(path) = std::env::var_os("KIMI_SCHEMAS") else {
        println!("skipped: KIMI_SCHEMAS names no file");
        return;
    };
    let schemas: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let model = model(1);
    let mut faults = Vec::new();
    for (place, schema) in schemas.iter().enumerate() {
        for temperature in [0.0, 0.6] {
            let raw =
                RawSamplingParams { temperature, seed: Some(place as u64), ..RawSamplingParams::default() };
            let request = ChatRequest {
                tools: vec![tool("case", schema, true)],
                tool_choice: ToolChoice::Required,
                params: SamplingParams::new(raw).unwrap(),
                max_tokens: Some(2048),
                ..ChatRequest::user(
                    "Call the case tool exactly once with minimal arguments that satisfy its schema.",
                )
            };
            let answer = ask(&model, request);
            let valid = answer.calls.first().is_some_and(|call| {
                let mut schema = schema.clone();
                schema.as_object_mut().unwrap().remove("$id");
                serde_json::from_str(&call.2).is_ok_and(|value: Value| jsonschema::is_valid(&schema, &value))
            });
            if !valid || answer.end != Some(FinishReason::ToolCalls) {
                let shown: String = format!("{answer:?}").chars().take(300).collect();
                faults.push(format!("{place} at {temperature}: {shown} of {schema}"));
            }
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// The form is that of the whole answer, the beginning that the request gives included.
#[test]
fn a_given_beginning_is_part_of_the_form() {
    let model = model(1);
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 10, "maximum": 99}}, "required": ["n"], "additionalProperties": false});
    let continued = |beginning: &str| {
        let mut request = ChatRequest {
            output: OutputFormat::JsonSchema { name: "x".into(), schema: schema.clone(), strict: true },
            continue_last: true,
            max_tokens: Some(50),
            ..ChatRequest::user("A number.")
        };
        request.messages.push(Message::new("assistant", beginning));
        request
    };
    let answer = ask(&model, continued(r#"{"n":"#));
    check(&schema, &format!(r#"{{"n":{}"#, answer.content));
    let refused = model.chat(continued("Well,")).err().unwrap().to_string();
    assert!(refused.contains("Well,"), "{refused}");
}
