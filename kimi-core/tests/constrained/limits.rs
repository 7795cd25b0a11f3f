//! Forms that are made to take too much time or memory: each is refused, or bounded.

use kimi_core::grammar::{Form, GrammarFault};
use serde_json::{Value, json};

use crate::sampler::{KIMI, Random, set_bits};

/// A few tokens of the form, if it is taken.
fn try_form(form: &Form<'_>) -> Result<(), GrammarFault> {
    let constraint = KIMI.grammars.hold(form)?;
    let mut random = Random(1);
    for _ in 0..8 {
        let mask = constraint.mask(&[]);
        let allowed: Vec<u32> = set_bits(mask.words().unwrap()).collect();
        // A grammar that grows over its bounds allows nothing more.
        if allowed.is_empty() || allowed.contains(&KIMI.end) {
            break;
        }
        constraint.accept(allowed[random.below(allowed.len())]);
    }
    Ok(())
}

#[test]
fn hostile_expressions() {
    let nested = format!("{}a{}", "(".repeat(5000), ")".repeat(5000));
    let alternatives: Vec<String> = (0..3000).map(|i| format!("w{i}x*")).collect();
    let alternatives = alternatives.join("|");
    for expression in [
        "((a{1000}){1000}){1000}",
        "(a|aa|aaa)+b",
        "(.*a.{200}){50}",
        "[a-z]{1,100000}",
        "(x+x+)+y",
        &nested,
        &alternatives,
    ] {
        let _ = try_form(&Form::Regex(expression));
    }
    assert!(matches!(try_form(&Form::Regex(&nested)), Err(GrammarFault::Invalid { .. })));
    let long = "a".repeat(1 << 20);
    assert!(matches!(try_form(&Form::Regex(&long)), Err(GrammarFault::TooLarge { .. })));
}

#[test]
fn hostile_grammars() {
    let chain: String = (0..4000).map(|i| format!("r{i}: r{}\n", i + 1)).collect();
    let chain = format!("start: r0\n{chain}r4000: \"a\"\n");
    let nested = format!("start: {}\"a\"{}", "(".repeat(8000), ")".repeat(8000));
    let grammars = [
        "start: start start | \"a\"",
        "start: a{100000}\na: b{100000}\nb: \"x\"",
        "start: A\nA: B{1000}\nB: C{1000}\nC: /[a-z]{1000}/",
        "start: start",
        "start: nowhere",
        "start: (",
        &chain,
        &nested,
    ];
    for grammar in grammars {
        let _ = try_form(&Form::Lark(grammar));
    }
    assert!(try_form(&Form::Lark("start: nowhere")).is_err());
}

#[test]
fn hostile_schemas() {
    let mut deep = json!({"type": "string"});
    for _ in 0..500 {
        deep = json!({"type": "object", "properties": {"x": deep}, "required": ["x"]});
    }
    assert!(matches!(try_form(&Form::Json(&deep)), Err(GrammarFault::TooLarge { .. })));

    let values: Vec<String> = (0..100_000).map(|i| format!("v{i}")).collect();
    assert!(matches!(try_form(&Form::Json(&json!({"enum": values}))), Err(GrammarFault::TooLarge { .. })));

    // Products of alternatives.
    let pair = |i: usize| json!({"anyOf": [{"properties": {format!("a{i}"): {"type": "integer"}}}, {"properties": {format!("b{i}"): {"type": "string"}}}]});
    let product = json!({"type": "object", "allOf": (0..40).map(pair).collect::<Vec<_>>()});
    assert!(try_form(&Form::Json(&product)).is_err());

    // References in a circle, and many of them.
    let circle =
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}});
    assert!(try_form(&Form::Json(&circle)).is_err());
    let chain: serde_json::Map<String, Value> = (0..3000)
        .map(|i| (format!("d{i}"), json!({"$ref": format!("#/$defs/d{}", i + 1)})))
        .chain([("d3000".to_owned(), json!({"type": "null"}))])
        .collect();
    let _ = try_form(&Form::Json(&json!({"$ref": "#/$defs/d0", "$defs": chain})));

    let heavy = [
        json!({"type": "string", "minLength": 60_000, "maxLength": 60_000}),
        json!({"type": "array", "items": {"type": "array", "items": {"type": "integer"}, "minItems": 5000}, "minItems": 5000}),
        json!({"type": "string", "pattern": "^(a{1,500}b{1,500}){1,500}$", "minLength": 3}),
        json!({"type": "object", "patternProperties": {"(a|b)*a(a|b){18}$": {}, "(a|b)*b(a|b){18}$": {}}}),
        json!({"type": "object", "properties": (0..5000).map(|i| (format!("p{i}"), json!({"type": "integer"}))).collect::<serde_json::Map<_, _>>()}),
    ];
    for schema in &heavy {
        let _ = try_form(&Form::Json(schema));
    }
}

#[test]
fn what_is_not_supported_is_named() {
    let cases = [
        (
            json!({"type": "object", "properties": {"a/b": {"type": "string", "pattern": "(?=x)"}}}),
            "#/properties/a~1b/pattern",
        ),
        (json!({"$ref": "https://example.com/other.json"}), "#/$ref"),
        (json!({"type": "array", "items": {"$dynamicRef": "#x"}}), "#/items/$dynamicRef"),
        (json!({"type": "text"}), "#/type"),
        (
            json!({"type": "object", "properties": {"s": {"type": "string", "minLength": 99_999_999}}}),
            "#/properties/s/minLength",
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "uniqueItems": true, "minItems": 3}),
            "#/uniqueItems",
        ),
        (
            json!({"oneOf": [{"type": "string", "pattern": "^a"}, {"type": "string", "pattern": "b$"}]}),
            "#/oneOf",
        ),
        (
            json!({"$defs": {"x": {"not": {"pattern": "a"}}}, "properties": {"y": {"$ref": "#/$defs/x"}}}),
            "#/$defs/x/not",
        ),
        (
            json!({"allOf": [{"unevaluatedProperties": {"type": "string"}}]}),
            "#/allOf/0/unevaluatedProperties",
        ),
    ];
    for (schema, expected) in cases {
        match KIMI.grammars.hold(&Form::Json(&schema)) {
            Err(GrammarFault::Schema { path, .. }) => assert_eq!(path, expected),
            other => panic!("{schema}: {other:?}"),
        }
    }
}

#[test]
fn other_forms() {
    let words = ["yes".to_owned(), "yesterday".to_owned(), "no".to_owned()];
    for seed in 0..20 {
        let text = KIMI.write(&Form::Choice(&words), seed).unwrap().unwrap();
        assert!(words.contains(&text), "{text}");
        let text = KIMI.write(&Form::Regex(r"^[A-Z]{2}-\d{3}$"), seed).unwrap().unwrap();
        assert!(text.len() == 6 && text.as_bytes()[2] == b'-', "{text}");
        let text = KIMI.write(&Form::Lark("start: \"a\" b\nb: \"(\" b \")\" | \"x\""), seed).unwrap();
        if let Some(text) = text {
            assert_eq!(text.matches('(').count(), text.matches(')').count());
        }
    }
    assert!(KIMI.grammars.hold(&Form::Choice(&[])).is_err());
    let lark = KIMI.grammars.hold(&Form::Lark("start: <|im_user|> \"x\"")).unwrap();
    let user = KIMI.tokenizer.id_of("<|im_user|>").unwrap();
    assert_eq!(
        set_bits(lark.mask(&[]).words().unwrap()).collect::<Vec<_>>(),
        [user],
        "only where a grammar names it"
    );
}

/// Guesses ahead are followed without being taken.
#[test]
fn masks_after_guesses() {
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    let text = r#"{"city": "Oslo"}"#;
    let tokens = KIMI.tokenizer.encode(text).unwrap();
    let (ahead, step) = (
        KIMI.grammars.hold(&Form::Json(&schema)).unwrap(),
        KIMI.grammars.hold(&Form::Json(&schema)).unwrap(),
    );
    for place in 0..=tokens.len() {
        let guessed = ahead.mask(&tokens[..place]);
        let taken = step.mask(&[]);
        assert_eq!(guessed.words(), taken.words(), "after {place} of {} tokens", tokens.len());
        if let Some(&token) = tokens.get(place) {
            step.accept(token);
        }
    }
    let end: Vec<u32> = set_bits(step.mask(&[]).words().unwrap()).collect();
    assert_eq!(end, [KIMI.end], "a complete answer can only end");
    // What was guessed wrong leaves no trace.
    let _ = ahead.mask(&KIMI.tokenizer.encode(r#"{"town"#).unwrap()).words();
    tokens.iter().for_each(|&token| ahead.accept(token));
    assert_eq!(ahead.mask(&[]).words(), step.mask(&[]).words());
}
