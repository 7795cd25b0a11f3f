//! Rendered chats, against Jinja in Python set up as transformers does (the expected texts were made with
//! it).
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{k2, shared};
use kimi_core::chat::{
    ChatTemplate, Message, PromptRequest, RenderLimits, TemplateError, Tool, tools_to_typescript,
};
use kimi_core::tokenizer::SpecialTokens;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn messages(value: Value) -> Vec<Message> {
    serde_json::from_value(value).expect("messages")
}

fn variables(value: Value) -> Map<String, Value> {
    serde_json::from_value(value).expect("an object")
}

fn render(
    template: &ChatTemplate,
    chat: &[Message],
    tools: &[Tool],
    kwargs: Value,
) -> Result<String, TemplateError> {
    let variables = variables(kwargs);
    let request = PromptRequest { messages: chat, tools, add_generation_prompt: true, variables: &variables };
    template.render(&request, k2().special()).map(|p| p.text().to_owned())
}

fn weather() -> Vec<Tool> {
    serde_json::from_value(json!([{"type": "function", "function": {
        "name": "weather", "description": "Current weather.\nIn <b>°C</b>.",
        "parameters": {"type": "object", "required": ["city"], "properties": {
            "days": {"type": "integer", "default": 1, "minimum": 1.0},
            "city": {"type": "string", "description": "Name & country"}}}}}]))
    .expect("a tool")
}

fn conversation() -> Vec<Message> {
    messages(json!([
        {"role": "user", "content": "Wie ist das Wetter in Bern?"},
        {"role": "assistant", "content": "Let me look.", "reasoning_content": "Old thought.", "tool_calls": [
            {"id": "functions.weather:0", "type": "function",
             "function": {"name": "weather", "arguments": "{\"city\": \"Bern\"}"}}]},
        {"role": "tool", "tool_call_id": "functions.weather:0", "content": "{\"t\": 21.5}"},
        {"role": "assistant", "content": "21.5 °C", "reasoning_content": "Done."},
        {"role": "user", "name": "Ana", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "Rome?\n"}]},
        {"role": "assistant", "content": null, "reasoning_content": "New thought.", "tool_calls": [
            {"id": "functions.weather:1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]},
    ]))
}

const TOOLS_JSON: &str = concat!(
    "<|im_system|>tool_declare<|im_middle|>",
    r#"[{"function": {"description": "Current weather.\nIn <b>°C</b>.", "name": "weather", "parameters": {"properties": "#,
    r#"{"city": {"description": "Name & country", "type": "string"}, "#,
    r#""days": {"default": 1, "minimum": 1.0, "type": "integer"}}, "required": ["city"], "type": "object"}}, "#,
    r#""type": "function"}]<|im_end|>"#,
);

const TOOLS_TYPESCRIPT: &str = concat!(
    "# Tools\n\n## functions\nnamespace functions {\n",
    "// Current weather.\n",
    "// In <b>°C</b>.\n",
    "type weather = (_: {\n",
    "  // Name & country\n",
    "  city: string,\n",
    "  // minimum: 1.0\n",
    "  // Default: 1\n",
    "  days?: number\n",
    "}) => any;\n}\n",
);

#[test]
fn the_default_template_has_k2_instructs_form() {
    let template = ChatTemplate::from_files(None, None, None).unwrap().0;
    let expected = [
        TOOLS_JSON,
        "<|im_system|>system<|im_middle|>You are Kimi, an AI assistant created by Moonshot AI.<|im_end|>",
        "<|im_user|>user<|im_middle|>Wie ist das Wetter in Bern?<|im_end|>",
        "<|im_assistant|>assistant<|im_middle|>Let me look.<|tool_calls_section_begin|><|tool_call_begin|>",
        "functions.weather:0<|tool_call_argument_begin|>{\"city\": \"Bern\"}<|tool_call_end|>",
        "<|tool_calls_section_end|><|im_end|>",
        "<|im_system|>tool<|im_middle|>## Return of functions.weather:0\n{\"t\": 21.5}<|im_end|>",
        "<|im_assistant|>assistant<|im_middle|>21.5 °C<|im_end|>",
        "<|im_user|>Ana<|im_middle|>And Rome?\n<|im_end|>",
        "<|im_assistant|>assistant<|im_middle|><|tool_calls_section_begin|><|tool_call_begin|>functions.weather:1",
        "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|><|im_end|>",
        "<|im_assistant|>assistant<|im_middle|>",
    ];
    assert_eq!(render(&template, &conversation(), &weather(), json!({})).unwrap(), expected.concat());
}

#[test]
fn k25_template() {
    let Some(source) = shared("kimi/K2.5/chat_template.jinja") else { return };
    let template = ChatTemplate::from_files(Some(&source), None, Some(b"{}")).unwrap().0;
    let turns = |thought: &str| {
        [
            "<|im_user|>user<|im_middle|>Wie ist das Wetter in Bern?<|im_end|>",
            "<|im_assistant|>assistant<|im_middle|><think></think>Let me look.<|tool_calls_section_begin|>",
            "<|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{\"city\": \"Bern\"}<|tool_call_end|>",
            "<|tool_calls_section_end|><|im_end|>",
            "<|im_system|>tool<|im_middle|>## Return of functions.weather:0\n{\"t\": 21.5}<|im_end|>",
            "<|im_assistant|>assistant<|im_middle|><think></think>21.5 °C<|im_end|>",
            "<|im_user|>Ana<|im_middle|>And Rome?\n<|im_end|>",
            "<|im_assistant|>assistant<|im_middle|><think>",
            thought,
            "</think><|tool_calls_section_begin|><|tool_call_begin|>functions.weather:1<|tool_call_argument_begin|>{}",
            "<|tool_call_end|><|tool_calls_section_end|><|im_end|><|im_assistant|>assistant<|im_middle|><think>",
        ]
        .concat()
    };
    let declared = format!("<|im_system|>tool_declare<|im_middle|>{TOOLS_TYPESCRIPT}<|im_end|>");
    let found = render(&template, &conversation(), &weather(), json!({})).unwrap();
    assert_eq!(found, declared + &turns("New thought."));
    let found = render(&template, &conversation(), &[], json!({"thinking": false})).unwrap();
    assert_eq!(found, turns("") + "</think>");
    // A schema without a TypeScript form is printed as compact JSON.
    let odd: Vec<Tool> = serde_json::from_value(json!([{"type": "function", "function": {
        "name": "f", "parameters": {"type": "object", "properties": {"x": {"title": "?"}}}}}]))
    .unwrap();
    let found = render(&template, &[], &odd, json!({})).unwrap();
    assert!(found.contains(
        r#"[{"function":{"name":"f","parameters":{"properties":{"x":{"title":"?"}},"type":"object"}},"#
    ));
}

#[test]
fn release_day_template() {
    let path = "kimi/K2-Instruct-july2025/chat_template.release-day.via-llamacpp-02f4a63.jinja";
    let Some(source) = shared(path) else { return };
    let source = String::from_utf8(source).unwrap();
    let mut chat = conversation();
    chat.drain(1..3);
    chat.truncate(3);
    let expected = [
        TOOLS_JSON,
        "<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|>",
        "<|im_user|>user<|im_middle|>Wie ist das Wetter in Bern?<|im_end|>",
        "<|im_assistant|>assistant<|im_middle|>21.5 °C<|im_end|>",
        "<|im_user|>user<|im_middle|>And Rome?\n<|im_end|><|im_assistant|>assistant<|im_middle|>",
    ];
    // In mid-2025 the template was inside tokenizer_config.json, with Windows line ends.
    let config = json!({"chat_template": source.replace('\n', "\r\n")}).to_string();
    let named = json!({"chat_template": [{"name": "other", "template": "x"}, {"name": "default", "template": source}]});
    for config in [config, named.to_string()] {
        let template = ChatTemplate::from_files(None, None, Some(config.as_bytes())).unwrap().0;
        assert_eq!(render(&template, &chat, &weather(), json!({})).unwrap(), expected.concat());
    }
    let template = ChatTemplate::new(&source).unwrap();
    let chat = messages(json!([
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Hi there"},
        {"role": "assistant", "content": "How are you?"},
    ]));
    let request =
        PromptRequest { messages: &chat, tools: &[], add_generation_prompt: false, variables: &Map::new() };
    let Some(vectors) = shared("kimi/vectors/templates.json") else { return };
    let vectors: Value = serde_json::from_slice(&vectors).unwrap();
    let public = vectors["public_assertions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|a| a["template"] == "K2-Instruct release");
    let found = template.render(&request, k2().special()).unwrap();
    assert_eq!(found.text(), public.unwrap()["rendered"].as_str().unwrap());
}

#[test]
fn typescript_vectors() {
    let Some(vectors) = shared("kimi/vectors/templates.json") else { return };
    let vectors: Value = serde_json::from_slice(&vectors).unwrap();
    let cases = vectors["typescript_tools"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let tools: Vec<Tool> = serde_json::from_value(case["tools"].clone()).unwrap();
        assert_eq!(
            tools_to_typescript(&tools).ok().as_deref(),
            case["expected"].as_str(),
            "{}",
            case["name"]
        );
    }
}

#[test]
fn typescript_of_everything() {
    let tools: Vec<Tool> = serde_json::from_value(json!([{"type": "function", "function": {
        "name": "all", "description": "One.\n\nTwo.", "parameters": {
            "$defs": {"Node": {"description": "A node.", "type": "object", "properties": {
                "next": {"$ref": "#/$defs/Node"}}, "additionalProperties": false}},
            "properties": {
                "any": {}, "yes": true, "no": false, "null": {"type": "null"},
                "both": {"type": ["string", "null", "integer", "array", "object"]},
                "choice": {"enum": ["a", 1, 2.0, null, true], "default": "a"},
                "either": {"anyOf": [{"type": "string"}, {"type": "object"}], "description": "Either."},
                "list": {"type": "array", "minItems": 1, "maxItems": 9, "items": {"type": "string", "pattern": "^a", "minLength": 2}},
                "lists": {"type": "array", "items": {"type": "array"}},
                "map": {"type": "object", "additionalProperties": {"type": "number"}, "default": {"a": [1.0]}},
                "node": {"$ref": "#/$defs/Node"}},
            "required": ["node", "any"]}}}]))
    .unwrap();
    let expected = "# Tools\n\n## functions\nnamespace functions {\n\
        // A node.\ninterface Node {\n  next?: Node,\n  [k: string]: never\n}\n\
        // One.\n\n// Two.\ntype all = (_: {\n  any: any,\n  node: Node,\n\
        \x20 both?: string | null | number | Array<any> | {},\n\
        \x20 // Default: \"a\"\n  choice?: \"a\" | 1 | 2.0 | None | True,\n\
        \x20 // Either.\n  either?: string | {},\n\
        \x20 // maxItems: 9, minItems: 1\n  list?: Array<\n    // minLength: 2, pattern: ^a\n    string\n  >,\n\
        \x20 lists?: Array<Array<any>>,\n\
        \x20 // Default: {\"a\": [1.0]}\n  map?: {\n    [k: string]: number\n  },\n\
        \x20 no?: null,\n  null?: null,\n  yes?: any\n}) => any;\n}\n";
    assert_eq!(tools_to_typescript(&tools).unwrap(), expected);
    let itself = json!([{"type": "function", "function": {"name": "tree", "parameters": {
        "type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}}}}]);
    let expected = "# Tools\n\n## functions\nnamespace functions {\ninterface parameters {\n  children?: Array<parameters>\n}\n\
        type tree = (_: parameters) => any;\n}\n";
    assert_eq!(tools_to_typescript(&serde_json::from_value::<Vec<Tool>>(itself).unwrap()).unwrap(), expected);
}

/// Names that each need a look-up among all the others: one by one this would take minutes.
#[test]
fn typescript_of_many_names() {
    const NAMES: usize = 100_000;
    let names: Vec<String> = (0..NAMES).map(|i| format!("n{i}")).collect();
    let properties: Map<String, Value> =
        names.iter().map(|n| (n.clone(), json!({"$ref": format!("#/$defs/{n}")}))).collect();
    let definitions: Map<String, Value> =
        names.iter().map(|n| (n.clone(), json!({"type": "object"}))).collect();
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {
        "$defs": definitions, "properties": properties, "required": names}}});
    let text = tools_to_typescript(&[Tool::try_from(tool).unwrap()]).unwrap();
    assert!(text.contains("interface n99999 {}\n") && text.ends_with("\n  n99999: n99999\n}) => any;\n}\n"));
    assert_eq!(text.matches('\n').count(), 2 * NAMES + 7);
}

#[test]
fn tools_in_templates() {
    let cases = [
        ("{{ tools | length }} {{ tools[0].type }} {{ tools[0]['function'].name }}", "1 function weather"),
        ("{% for t in tools %}{{ t.function.parameters.required | join }}{% endfor %}", "city"),
        ("{% for k, v in tools[0].function.items() %}{{ k }} {% endfor %}", "description name parameters "),
        (
            "{{ tools[0].function.parameters.properties.days }}",
            "{'default': 1, 'minimum': 1.0, 'type': 'integer'}",
        ),
        (
            "{{ tools[0].function.get('x', 'none') }} {{ 'name' in tools[0].function }} {{ tools[1] }}",
            "none True ",
        ),
        ("{{ tools[0].function.parameters.required | tojson(indent=1) }}", "[\n \"city\"\n]"),
        (
            "{{ {'b': tools[0].type, 'a': [tools[0].function.parameters.required]} | tojson }}",
            "{\"b\": \"function\", \"a\": [[\"city\"]]}",
        ),
        ("{{ tools is none or tools is string }} {{ tools[0] is mapping }}", "False True"),
    ];
    for (source, expected) in cases {
        let template = ChatTemplate::new(source).unwrap();
        assert_eq!(render(&template, &[], &weather(), json!({})).unwrap(), expected, "{source}");
    }
    let none = ChatTemplate::new("{{ tools is none }} {{ tools_ts_str is defined }}").unwrap();
    assert_eq!(render(&none, &[], &[], json!({})).unwrap(), "True False");
}

#[test]
fn a_prompt_ends_at_its_limits() {
    let tools = weather();
    let chat = messages(json!([{"role": "user", "content": "x".repeat(100)}]));
    let within = |source: &str, limits: &RenderLimits| {
        let request = PromptRequest {
            messages: &chat,
            tools: &tools,
            add_generation_prompt: true,
            variables: &Map::new(),
        };
        ChatTemplate::new(source).unwrap().render_within(&request, k2().special(), limits)
    };
    let short = RenderLimits { max_bytes: 99, ..RenderLimits::default() };
    let printing = [
        "{{ messages[0].content }}",
        "{% for i in range(100) %}x{% endfor %}",
        "{{ tools | tojson }}",
        "{% set text = messages | tojson %}",
        "{{ tools_ts_str }}",
    ];
    for source in printing {
        assert!(within(source, &RenderLimits::default()).is_ok(), "{source}");
        let found = within(source, &short);
        assert!(matches!(found, Err(TemplateError::TooLong { limit: 99 })), "{source}: {found:?}");
    }
    // What the template does not ask for is not made.
    assert_eq!(within("{{ messages[0].role }}", &short).unwrap().text(), "user");

    let cancelled = RenderLimits::default();
    cancelled.cancel.cancel();
    for source in printing {
        let found = within(source, &cancelled);
        assert!(matches!(found, Err(TemplateError::Cancelled)), "{source}: {found:?}");
    }
}

#[test]
fn python_in_templates() {
    let cases = [
        ("{{ v | tojson }}", "{\"b\": [1, 2.0, 1e-05, null, true], \"a\": \"é<&>\"}"),
        (
            "{{ v | tojson(separators=(',', ':'), sort_keys=true) }}",
            "{\"a\":\"é<&>\",\"b\":[1,2.0,1e-05,null,true]}",
        ),
        ("{{ v.a | tojson(ensure_ascii=True) }}", "\"\\u00e9<&>\""),
        ("{{ v.b[:2] | tojson(indent=2) }}", "[\n  1,\n  2.0\n]"),
        ("{{ v.get('a', 1) }}{{ v.get('z', 'none') }}{{ ' x '.strip().upper() }}", "é<&>noneX"),
        (
            "{% for i in range(9) %}\n  {% if i == 2 %}{% break %}{% endif %}\n  {{ i }}\n{% endfor %}\n.",
            "  0\n  1\n.",
        ),
        (
            "{% set n = namespace(x=1) %}{% for i in [1, 2] %}{% set n.x = n.x + i %}{% endfor %}{{ n.x }}",
            "4",
        ),
        ("{{ bos_token }}{{ v.b[2] }}{{ missing }}\n", "[BOS]1e-05"),
        ("{{ 'a' if missing is defined else strftime_now('%Y') | length }}", "4"),
    ];
    for (source, expected) in cases {
        let template = ChatTemplate::new(source).unwrap();
        let found = render(&template, &[], &[], json!({"v": {"b": [1, 2.0, 1e-5, null, true], "a": "é<&>"}}));
        assert_eq!(found.unwrap(), expected, "{source}");
    }
}

#[test]
fn bad_templates_and_bad_variables_are_errors() {
    assert!(matches!(ChatTemplate::new("{% if %}"), Err(TemplateError::Compile(_))));
    assert!(matches!(ChatTemplate::new(&"x".repeat(2 << 20)), Err(TemplateError::TooLarge { .. })));
    assert!(matches!(ChatTemplate::new(&"{% if x %}".repeat(90_000)), Err(TemplateError::Compile(_))));
    assert!(matches!(ChatTemplate::from_files(Some(b"\xff"), None, None), Err(TemplateError::File { .. })));
    assert!(matches!(ChatTemplate::from_files(None, None, Some(b"[")), Err(TemplateError::File { .. })));
    let failing = [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ missing | tojson }}",
        "{{ missing.field }}",
        "{{ [].append(1) }}",
    ];
    for source in failing {
        let template = ChatTemplate::new(source).unwrap();
        let found = render(&template, &[], &[], json!({}));
        assert!(matches!(found, Err(TemplateError::Render(_))), "{source}: {found:?}");
    }
    let template = ChatTemplate::new("{{ messages }}").unwrap();
    let found = render(&template, &[], &[], json!({"messages": 1}));
    assert!(matches!(found, Err(TemplateError::Reserved { name }) if name == "messages"));
    let deep = (0..200).fold(json!(1), |inner, _| json!([inner]));
    let found = render(&template, &[], &[], json!({"x": deep}));
    assert!(matches!(found, Err(TemplateError::TooDeep { .. })));
}

/// Lists that a few characters make, and that nobody could wait for.
#[test]
fn lists_of_any_length_are_not_made_text() {
    let long = [
        "8*5**9*4*[missing]",
        "[['x'] * 99999999] * 99999999",
        "[[1] * 99999999, [1]]",
        "{'a': [[1] * 99999999] * 9999}",
        "['x' * 1000000] * 1000000",
        "doubled.list",
    ];
    let texts = [
        "{{ LONG }}",
        "{% set text %}{{ LONG }}{% endset %}",
        "{{ LONG | string | length }}",
        "{{ LONG | upper }}",
        "{{ LONG | e }}",
        "{{ LONG | safe }}",
        "{{ LONG | indent(2) }}",
        "{{ '%s' | format(LONG) }}",
        "{{ raise_exception(LONG) }}",
        "{{ LONG | join }}",
        "{{ [LONG] | join(', ') }}",
        "{{ 'x' | replace('x', LONG) }}",
        "{{ LONG | tojson }}",
        "{{ ','.join([LONG]) }}",
    ];
    let doubled = "{% set doubled = namespace(list=['x']) %}{% for i in range(26) %}\
                   {% set doubled.list = doubled.list + doubled.list %}{% endfor %}";
    for long in long {
        for text in texts {
            let source = text.replace("LONG", &format!("({long})"));
            let template = ChatTemplate::new(&format!("{doubled}{source}")).unwrap();
            match render(&template, &[], &[], json!({})) {
                Err(TemplateError::Render(error)) => assert!(error.contains("fuel"), "{source}: {error}"),
                other => panic!("{source}: {other:?}"),
            }
        }
    }
    // The length is nobody's concern while it stays a list.
    for (source, expected) in [
        ("{{ ([1] * 99999999) | length }}", "99999999"),
        ("{{ [1, 'x'] * 2 }}", "[1, 'x', 1, 'x']"),
        ("{{ ([1] * 3) | join('-') }}", "1-1-1"),
        ("{{ 'a-b-c' | replace('-', 1) }}{{ 'a-b-c' | replace('-', '+', count=1) }}", "a1b1ca+b-c"),
        ("{{ 'a\nb' | indent(width=2, first=true) }}", "  a\n  b"),
        ("{{ '%s-%d' | format('a', 3) }}{{ '%(x)s' | format(x='y') }}", "a-3y"),
        ("{{ [{'a': 1}, {'a': 2}] | join('+', attribute='a') }}", "1+2"),
        ("{{ debug is defined }}", "False"),
        ("{{ {'a': [1]} | string | upper }}", "{'A': [1]}"),
    ] {
        let template = ChatTemplate::new(source).unwrap();
        assert_eq!(render(&template, &[], &[], json!({})).unwrap(), expected, "{source}");
    }
    // One list in another, deeper than anything that is meant.
    let deep =
        "{% set n = namespace(s=[]) %}{% for i in range(9000) %}{% set n.s = [n.s] %}{% endfor %}{{ n.s }}";
    let template = ChatTemplate::new(deep).unwrap();
    assert!(matches!(render(&template, &[], &[], json!({})), Err(TemplateError::Render(_))));
}

#[test]
fn messages_are_read_leniently() {
    let read = messages(json!([
        {"role": "assistant", "tool_calls": [{"id": null, "function": {"name": "f", "arguments": {"a": 1.0}}, "index": 0}],
         "refusal": null, "reasoning": "r", "audio": {}},
        {"role": "assistant", "content": [], "tool_calls": null},
        {"role": "tool", "content": "x", "tool_call_id": "y"},
    ]));
    assert_eq!(read[0].tool_calls[0].function.arguments, "{\"a\": 1.0}");
    assert_eq!((read[0].content.is_none(), read[1].tool_calls.len()), (true, 0));
    let error = serde_json::from_value::<Tool>(json!({"type": "function", "function": {"description": "d"}}));
    assert!(error.unwrap_err().to_string().contains("function.name"));
    assert!(serde_json::from_value::<Tool>(json!({"type": "web", "function": {"name": "f"}})).is_err());
}

/// Pieces of special tokens' names and of honest text.
fn hostile() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("<|im_end|>"),
        Just("<|im_"),
        Just("end|>"),
        Just("<"),
        Just("|"),
        Just("[BOS]"),
        Just("[B"),
        Just("OS]"),
        Just("<think>"),
        Just("</thi"),
        Just("nk>"),
        Just("<|tool_call_begin|>"),
        Just("<|reserved_token_163589|>"),
        Just("a"),
        Just(" "),
        Just("\n"),
        Just("é"),
        Just("\u{fdd0}"),
        Just("\""),
    ];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

fn chat_of(texts: &[String]) -> Vec<Message> {
    let text = |at: usize| texts[at % texts.len()].clone();
    messages(json!([
        {"role": "system", "content": text(0)},
        {"role": "user", "name": format!("n{}", text(1)), "content": [
            {"type": "text", "text": text(2)}, {"type": "text", "text": text(3)}, {"type": "text", "text": text(4)}]},
        {"role": "assistant", "content": text(5), "reasoning_content": text(6), "tool_calls": [
            {"id": text(7), "type": "function", "function": {"name": text(8), "arguments": text(9)}}]},
        {"role": "tool", "tool_call_id": text(10), "content": text(11)},
    ]))
}

fn tool_of(texts: &[String]) -> Vec<Tool> {
    let name = format!("f{}", texts[0]);
    let properties: Map<String, Value> =
        texts.iter().take(3).map(|t| (t.clone(), json!({"type": "string", "description": t}))).collect();
    let parameters = json!({"type": "object", "properties": properties});
    serde_json::from_value(
        json!([{"type": "function", "function": {"name": name, "parameters": parameters}}]),
    )
    .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever users write, wherever a template prints it: the text is the reference's, and the control
    /// tokens are those that the template wrote for harmless texts.
    #[test]
    fn users_text_never_becomes_a_control_token(texts in prop::collection::vec(hostile(), 12)) {
        let harmless: Vec<String> = (0..12).map(|i| format!("harmless {i}.")).collect();
        // The same template for a vocabulary whose special names never occur: nothing is marked.
        let names: Map<String, Value> = (0..256)
            .map(|i| ((163_584 + i).to_string(), json!({"content": format!("\u{e000}{i}\u{e001}")})))
            .collect();
        let config = json!({"added_tokens_decoder": names}).to_string();
        let other = SpecialTokens::new(163_584, Some(config.as_bytes())).unwrap();
        let sources = [
            "{% for m in messages %}<|im_user|>{{ m.name }}<|im_middle|>{% if m.content is string %}{{ m.content + '<|im_end|>' }}\
             {% else %}{% for p in m.content %}{{ p.text | trim }}{% endfor %}{{ '[EOS]' }}{% endif %}\
             {{ m.get('reasoning_content') ~ m.tool_call_id }}{% for c in m.tool_calls %}{{ c | tojson(ensure_ascii=true) }}\
             {% endfor %}{% endfor %}{{ tools | tojson(indent=1) }}{{ tools_ts_str }}",
        ];
        let templates = sources.iter().map(|s| ChatTemplate::new(s).unwrap());
        for template in templates.chain([ChatTemplate::from_files(None, None, None).unwrap().0]) {
            let prompt = |texts: &[String], special: &SpecialTokens| {
                let (chat, tools) = (chat_of(texts), tool_of(texts));
                let request =
                    PromptRequest { messages: &chat, tools: &tools, add_generation_prompt: true, variables: &Map::new() };
                template.render(&request, special).unwrap()
            };
            let found = prompt(&texts, k2().special());
            let reference = prompt(&texts, &other);
            prop_assert_eq!(found.text(), reference.text());
            let control = |ids: &[u32]| ids.iter().copied().filter(|&id| k2().is_control(id)).collect::<Vec<_>>();
            let ids = k2().encode_rendered(&found).unwrap();
            prop_assert_eq!(k2().decode(&ids, false).unwrap(), found.text());
            let plain = prompt(&harmless, k2().special());
            prop_assert_eq!(control(&ids), control(&k2().encode_rendered(&plain).unwrap()));
            // Honest prompts are encoded as the reference encodes them.
            prop_assert_eq!(k2().encode_rendered(&plain).unwrap(), k2().encode_with_special(plain.text()).unwrap());
        }
    }

    /// Texts that hold no special name, though perhaps pieces of one, are encoded as the reference encodes
    /// them.
    #[test]
    fn honest_prompts_are_encoded_like_the_reference(
        texts in prop::collection::vec("([a-zA-Z ]{0,9}|[<|>\\[\\]]|.)", 12..20),
    ) {
        let chat = chat_of(&texts);
        let template = ChatTemplate::from_files(None, None, None).unwrap().0;
        let request = PromptRequest { messages: &chat, tools: &[], add_generation_prompt: true, variables: &Map::new() };
        let prompt = template.render(&request, k2().special()).unwrap();
        prop_assert_eq!(k2().encode_rendered(&prompt).unwrap(), k2().encode_with_special(prompt.text()).unwrap());
    }
}
