//! The reply parser, against public cases of other engines and against every way of splitting a stream.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{k2, shared};
use kimi_core::chat::{
    ParsedCall, ParserOptions, ReasoningMode, Reply, ReplyEvent, ReplyParser, ToolMarkup, ToolSignature,
    TrailingText,
};
use kimi_core::detokenizer::Detokenizer;
use proptest::prelude::*;
use serde_json::Value;

fn with_tools() -> ParserOptions {
    ParserOptions { tool_markup: ToolMarkup::Calls, ..ParserOptions::default() }
}

fn with_both() -> ParserOptions {
    ParserOptions { reasoning: ReasoningMode::Tagged, ..with_tools() }
}

fn stream<'a>(deltas: impl IntoIterator<Item = &'a str>, options: ParserOptions) -> Reply {
    let mut parser = ReplyParser::new(options);
    let mut events = Vec::new();
    for delta in deltas {
        events.extend(parser.push(delta));
    }
    events.extend(parser.finish());
    check_order(&events);
    collect(events)
}

fn collect(events: Vec<ReplyEvent>) -> Reply {
    let mut reply = Reply::default();
    events.into_iter().for_each(|e| reply.add(e));
    reply
}

/// Calls are numbered from 0; each begins, then has arguments, then ends, before the next one begins.
fn check_order(events: &[ReplyEvent]) {
    let (mut begun, mut open) = (0, false);
    for event in events {
        match event {
            ReplyEvent::CallBegin { index, id, name } => {
                assert!(*index == begun && !open && !id.is_empty() && !name.is_empty());
                (begun, open) = (begun + 1, true);
            }
            ReplyEvent::CallArguments { index, text } => {
                assert!(open && *index + 1 == begun && !text.is_empty())
            }
            ReplyEvent::CallEnd { index, .. } => {
                assert!(open && *index + 1 == begun);
                open = false;
            }
            ReplyEvent::Content(text) | ReplyEvent::Reasoning(text) => assert!(!text.is_empty() && !open),
        }
    }
    assert!(!open);
}

/// The text as the server would get it: that many tokens at a time.
fn by_tokens(text: &str, tokens: usize) -> Vec<String> {
    let mut detokenizer = Detokenizer::new(true);
    let ids = k2().encode_with_special(text).expect("ids");
    let mut deltas: Vec<String> = ids
        .chunks(tokens)
        .map(|ids| ids.iter().map(|&id| detokenizer.push(k2(), id).expect("a token")).collect())
        .collect();
    deltas.push(detokenizer.flush());
    deltas
}

fn deltas_of(case: &Value) -> Vec<String> {
    if let Some(deltas) = case["deltas"].as_array() {
        return deltas.iter().map(|d| d.as_str().expect("text").to_owned()).collect();
    }
    let text = case["input"].as_str().expect("input");
    match case["tokens_per_delta"].as_u64() {
        Some(tokens) => by_tokens(text, tokens as usize),
        None => vec![text.to_owned()],
    }
}

/// `get_weather(city,unit)`
fn signature(text: &str) -> ToolSignature {
    let (name, arguments) = text.trim_end_matches(')').split_once('(').expect("name(arguments)");
    ToolSignature { name: name.to_owned(), arguments: arguments.split(',').map(str::to_owned).collect() }
}

fn check_calls(found: &[ParsedCall], expected: &Value, name: &str) {
    let expected = expected.as_array().expect("a list of calls");
    assert_eq!(found.len(), expected.len(), "{name}: {found:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.name, expected["name"], "{name}");
        if let Some(raw) = expected["arguments_raw"].as_str() {
            assert_eq!(found.arguments, raw, "{name}");
        } else {
            let arguments: Value = serde_json::from_str(&found.arguments).expect("JSON");
            assert_eq!(arguments, expected["arguments"], "{name}");
        }
        if let Some(id) = expected["id"].as_str() {
            assert_eq!(found.id, id, "{name}");
        }
    }
}

fn vectors() -> Option<Value> {
    shared("kimi/vectors/parser_public.json").map(|file| serde_json::from_slice(&file).expect("JSON"))
}

#[test]
fn public_tool_call_vectors() {
    let Some(vectors) = vectors() else { return };
    let cases = vectors["tool_calls"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let tools =
            case["tools"].as_array().into_iter().flatten().map(|t| signature(t.as_str().unwrap())).collect();
        // Engines differ in what becomes of text after the calls: vLLM alone drops it.
        let vllm = case["source"].as_str().unwrap().starts_with("vllm");
        let trailing_text = if vllm { TrailingText::Drop } else { TrailingText::Keep };
        let options = ParserOptions { tools, trailing_text, ..with_tools() };
        let deltas = deltas_of(case);
        for found in [
            stream(deltas.iter().map(String::as_str), options.clone()),
            Reply::parse(&deltas.concat(), options),
        ] {
            check_calls(&found.calls, &case["expect_calls"], name);
            if let Some(content) = case["expect_content"].as_str() {
                assert_eq!(found.content, content, "{name}");
            }
            let list = |key: &str| case[key].as_array().cloned().unwrap_or_default();
            let has = |text: &Value| found.content.contains(text.as_str().unwrap());
            assert!(!list("content_must_not_contain").iter().any(has), "{name}: {}", found.content);
            assert!(list("content_must_contain").iter().all(has), "{name}: {}", found.content);
            assert!(!found.content.contains("<|"), "{name}: {}", found.content);
        }
    }
}

#[test]
fn public_reasoning_vectors() {
    let Some(vectors) = vectors() else { return };
    let cases = vectors["reasoning"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let name = case["name"].as_str().unwrap();
        // Most cases leave the calls' markup in the content, for a parser that follows.
        let tool_calls = case.get("expect_calls").is_some();
        let tool_markup = if tool_calls { ToolMarkup::Calls } else { ToolMarkup::Text };
        let options =
            ParserOptions { reasoning: ReasoningMode::Open, tool_markup, ..ParserOptions::default() };
        let deltas = deltas_of(case);
        let text = |expected: &Value| match expected {
            Value::Array(parts) => parts.iter().map(|p| p.as_str().unwrap()).collect(),
            other => other.as_str().unwrap_or_default().to_owned(),
        };
        let whole = deltas.concat();
        let tokens = by_tokens(&whole, 1);
        for deltas in [&deltas, &tokens] {
            let found = stream(deltas.iter().map(String::as_str), options.clone());
            assert_eq!(found.reasoning, text(&case["expect_reasoning"]), "{name}");
            assert_eq!(found.content, text(&case["expect_content"]), "{name}");
            if tool_calls {
                check_calls(&found.calls, &case["expect_calls"], name);
            }
        }
    }
}

const TWO_CALLS: &str = "<think>Let me see.</think>I'll look.<|tool_calls_section_begin|>\n<|tool_call_begin|>functions.a-b.c:3 \
    <|tool_call_argument_begin|> {\"x\": \"<div> } {\"}\n <|tool_call_end|>\n<|tool_call_begin|>search:4\
    <|tool_call_argument_begin|>{<|tool_call_end|><|tool_calls_section_end|>";

fn call(id: &str, name: &str, arguments: &str) -> ParsedCall {
    ParsedCall { id: id.into(), name: name.into(), arguments: arguments.into(), complete: true }
}

#[test]
fn reasoning_text_and_calls() {
    let reply = Reply::parse(TWO_CALLS, with_both());
    let calls =
        vec![call("functions.a-b.c:3", "a-b.c", "{\"x\": \"<div> } {\"}"), call("search:4", "search", "{")];
    assert_eq!(reply, Reply { content: "I'll look.".into(), reasoning: "Let me see.".into(), calls });
    // With everything off the markup is text.
    assert_eq!(Reply::parse(TWO_CALLS, ParserOptions::default()).content, TWO_CALLS);
}

#[test]
fn what_models_get_wrong() {
    let begin = "<|tool_call_begin|>";
    let argument = "<|tool_call_argument_begin|>";
    let end = "<|tool_call_end|>";
    let parse = |text: &str| Reply::parse(text, with_both());
    // No section, a section in the singular, no end of the section.
    let plain = format!("a{begin}f:0{argument}{{}}{end}\n{begin}functions.g:1{argument}{{}}{end}\n");
    let reply = parse(&plain);
    assert_eq!((reply.content.as_str(), reply.calls.len()), ("a", 2));
    let singular =
        format!("<|tool_call_section_begin|>{begin}f:0{argument}{{}}{end}<|tool_call_section_end|>b");
    assert_eq!((parse(&singular).content.as_str(), parse(&singular).calls.len()), ("b", 1));
    let cut = format!("<|tool_calls_section_begin|>{begin}f:0{argument}{{}}{end}{begin}f:1{argument}{{\"a\"");
    let calls = parse(&cut).calls;
    assert_eq!((calls[0].complete, calls[1].complete, calls[1].arguments.as_str()), (true, false, "{\"a\""));
    // A call that only its id began is none.
    assert_eq!(parse(&format!("a{begin}functions.f:0")).calls, []);
    // No end of a call before the next one; no arguments at all; an id twice.
    let sloppy = format!("{begin}f:0{argument}{{}}{begin}f:1{end}{begin}f:1{argument} {end}");
    let calls = parse(&sloppy).calls;
    assert_eq!(calls, [call("f:0", "f", "{}"), call("f:1", "f", "{}"), call("functions.f:2", "f", "{}")]);
    // Arguments may speak of other markers, an id may not be endless, stray markers are left out.
    let talk = format!("{begin}f:0{argument}{{\"a\": \"<think></think><|tool_calls_section_begin|>\"}}{end}");
    assert_eq!(parse(&talk).calls[0].arguments, "{\"a\": \"<think></think><|tool_calls_section_begin|>\"}");
    assert_eq!(parse(&format!("{begin}{}:0{argument}{{}}{end}x", "f".repeat(5000))).calls, []);
    assert_eq!(parse(&format!("a{end}{argument}<|tool_calls_section_end|></think>b")).content, "ab");
    // Thinking that a section interrupts goes on after it.
    let inside = format!(
        "<think>a<|tool_calls_section_begin|>{begin}f:0{argument}{{}}{end}<|tool_calls_section_end|>b</think>c"
    );
    let reply = parse(&inside);
    assert_eq!((reply.reasoning.as_str(), reply.content.as_str(), reply.calls.len()), ("ab", "c", 1));
}

#[test]
fn without_tools_markup_is_neither_a_call_nor_text() {
    let options = |reasoning| ParserOptions { tool_markup: ToolMarkup::Drop, reasoning, ..with_tools() };
    let parse = |text: &str, reasoning| Reply::parse(text, options(reasoning));
    let reply = parse(TWO_CALLS, ReasoningMode::Tagged);
    let expected =
        Reply { content: "I'll look.".into(), reasoning: "Let me see.".into(), ..Reply::default() };
    assert_eq!(reply, expected);
    let call = "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{\"a\": \"b\"}<|tool_call_end|>";
    let begin = "<|tool_calls_section_begin|>";
    let end = "<|tool_calls_section_end|>";
    for (text, content) in [
        (format!("{begin}{call}{end}"), ""),
        (format!("a{call}{call}\nb"), "a\nb"),
        (format!("a{begin}{call}{call}{end}b<|im_end|>"), "ab"),
        (format!("a{begin}<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{{\"a\""), "a"),
        (format!("a{begin}<|tool_call_begin|>functions"), "a"),
    ] {
        assert_eq!(parse(&text, ReasoningMode::Off).content, content, "{text}");
        assert_eq!(parse(&text, ReasoningMode::Open).reasoning, content, "{text}");
    }
}

#[test]
fn a_new_call_gets_no_id_of_the_conversation() {
    let used_ids = ["functions.f:0".to_owned(), "functions.f:2".to_owned()].into();
    let options = ParserOptions { calls_before: 2, used_ids, ..with_tools() };
    let text = "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}<|tool_call_end|>";
    assert_eq!(Reply::parse(text, options).calls[0].id, "functions.f:3");
}

#[test]
fn ids_that_do_not_name_the_function() {
    let weather = signature("get_weather(city,unit)");
    let flight = signature("book_flight(from,to)");
    let parse = |id: &str, arguments: &str, tools: &[&ToolSignature]| {
        let text = format!("<|tool_call_begin|>{id}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>");
        let tools = tools.iter().map(|&t| t.clone()).collect();
        Reply::parse(&text, ParserOptions { tools, calls_before: 5, ..with_tools() }).calls
    };
    let oslo = "{\"city\": \"Oslo\"}";
    let expected = |id: &str| vec![call(id, "get_weather", oslo)];
    assert_eq!(parse("3", oslo, &[&weather]), expected("functions.get_weather:3"));
    assert_eq!(parse("0", oslo, &[&weather, &flight]), expected("functions.get_weather:0"));
    assert_eq!(parse("call_9f", oslo, &[&weather, &flight]), expected("functions.get_weather:5"));
    assert_eq!(parse("2b3c-0d", oslo, &[&flight, &weather]), expected("functions.get_weather:5"));
    assert_eq!(parse("get_weather", oslo, &[&flight, &weather]), expected("functions.get_weather:5"));
    assert_eq!(parse("0", oslo, &[]), []);
    assert_eq!(parse("0", oslo, &[&weather, &weather]), []);
    assert_eq!(parse("0", "{}", &[&weather, &flight]), []);
    assert_eq!(parse("0", "{\"city\"", &[&weather, &flight]), []);
    assert_eq!(parse("functions.get_weather.0", oslo, &[&weather]), expected("functions.get_weather:0"));
    // What names another function, or has arguments of another, is not given to the only one.
    let path = "{\"path\": \"/tmp/x\"}";
    let deleted = vec![call("functions.delete_file:1", "delete_file", path)];
    assert_eq!(parse("functions_delete_file_1", path, &[&weather]), deleted);
    assert_eq!(parse("call_9f", path, &[&weather]), []);
}

#[test]
fn events_come_as_early_as_they_are_certain() {
    let mut parser = ReplyParser::new(with_both());
    assert_eq!(parser.push("Hi <"), [ReplyEvent::Content("Hi ".into())]);
    assert_eq!(parser.push("b> <|tool_"), [ReplyEvent::Content("<b> ".into())]);
    assert_eq!(parser.push("call_begin|>functions.f:0"), []);
    let begun = ReplyEvent::CallBegin { index: 0, id: "functions.f:0".into(), name: "f".into() };
    assert_eq!(
        parser.push("<|tool_call_argument_begin|>{\"a\": "),
        [begun, ReplyEvent::CallArguments { index: 0, text: "{\"a\":".into() }]
    );
    assert_eq!(parser.push("1}"), [ReplyEvent::CallArguments { index: 0, text: " 1}".into() }]);
    assert_eq!(parser.push(" <|tool_call_end|>"), [ReplyEvent::CallEnd { index: 0, complete: true }]);
    assert_eq!((parser.finish(), parser.calls()), (vec![], 1));
}

#[test]
fn with_ids_a_model_can_write_about_markers() {
    let mut parser = ReplyParser::new(with_both());
    let mut events = parser.push_literal("Write <think> or <|tool_call");
    events.extend(parser.push_literal("_begin|>."));
    events.extend(parser.push("<think>"));
    events.extend(parser.push_literal("</think>"));
    events.extend(parser.finish());
    let reply = collect(events);
    assert_eq!(
        (reply.content.as_str(), reply.reasoning.as_str()),
        ("Write <think> or <|tool_call_begin|>.", "</think>")
    );
}

/// Answers made of markers, ids, arguments and text in any order.
fn answer() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => prop::sample::select(vec![
            "<|tool_calls_section_begin|>", "<|tool_call_section_begin|>", "<|tool_calls_section_end|>",
            "<|tool_call_section_end|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>",
            "<think>", "</think>",
        ]),
        1 => Just("<|im_end|>"),
        3 => prop::sample::select(vec![
            "functions.f:0", "functions.f:1", " g:2 ", "0", "call_1", "bad id", "{\"a\": 1}", "{\"b\": \"é<\"}", "{\"a\"", " ",
            "\n", "text", "<", "<|", "<|tool_call", "</", "月", "  x  ",
        ]),
    ];
    prop::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_split_of_the_stream_does_not_matter(
        answer in answer(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        reasoning in prop::sample::select(vec![ReasoningMode::Off, ReasoningMode::Tagged, ReasoningMode::Open]),
        tool_markup in prop::sample::select(vec![ToolMarkup::Text, ToolMarkup::Calls, ToolMarkup::Drop]),
        tools in prop::sample::subsequence(vec!["f(a)", "g(b)", "h(a,c)"], 0..=3),
        drop in any::<bool>(),
    ) {
        let options = ParserOptions {
            reasoning,
            tool_markup,
            tools: tools.into_iter().map(signature).collect(),
            calls_before: 1,
            used_ids: ["functions.f:1".to_owned()].into(),
            trailing_text: if drop { TrailingText::Drop } else { TrailingText::Keep },
        };
        let whole = Reply::parse(&answer, options.clone());
        let ends: Vec<usize> = answer.char_indices().map(|(at, _)| at).chain([answer.len()]).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|c| ends[c.index(ends.len())]).chain([0, answer.len()]).collect();
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|w| &answer[w[0]..w[1]]);
        prop_assert_eq!(&stream(pieces, options.clone()), &whole);
        let chars = ends.windows(2).map(|w| &answer[w[0]..w[1]]);
        prop_assert_eq!(&stream(chars, options), &whole);
    }
}
