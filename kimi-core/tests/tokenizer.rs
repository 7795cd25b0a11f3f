//! The tokenizer with Kimi-K2's own vocabulary, against ids made by tiktoken, and with broken files.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{k2, k2_file, shared, tiny_file};
use kimi_core::CancelFlag;
use kimi_core::detokenizer::Detokenizer;
use kimi_core::tokenizer::RenderedPrompt;
use kimi_core::tokenizer::{Tokenizer, TokenizerError};
use proptest::prelude::*;
use serde_json::Value;

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).expect("a list of ids")
}

#[test]
fn ids_made_by_tiktoken() {
    let tokenizer = k2();
    let cases: &[(&str, &[u32])] = &[
        ("", &[]),
        ("hello world", &[22931, 2695]),
        ("\n\n\n", &[3898]),
        ("it's a test — isn't it?", &[64072, 261, 1812, 4275, 12531, 483, 30]),
        ("こんにちは世界", &[16444, 29194, 6880, 43566, 8831, 2243]),
        ("emoji: 🚀🌍🎉 mixed", &[33120, 25, 17137, 40101, 5885, 44755, 5885, 236, 231, 15682]),
        ("<|im_end|>", &[163586]),
        ("a<think>b", &[64, 163606, 65]),
    ];
    for (text, expected) in cases {
        assert_eq!(tokenizer.encode_with_special(text).unwrap(), *expected, "{text:?}");
        assert_eq!(tokenizer.decode(expected, false).unwrap(), *text);
    }
    assert_eq!(tokenizer.encode("<|im_end|>").unwrap(), [27, 91, 348, 11129, 91, 29]);
    assert_eq!(tokenizer.encode("<think>").unwrap(), [27, 39964, 29]);
}

#[test]
fn public_vectors() {
    let Some(file) = shared("kimi/vectors/tokenizer_public.json") else { return };
    let file: Value = serde_json::from_slice(&file).unwrap();
    let cases = file["cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let expected = ids(&case["ids"]);
        assert_eq!(k2().encode_with_special(text).unwrap(), expected, "{text:?}");
        assert_eq!(k2().decode(&expected, false).unwrap(), text);
    }
}

/// `space*25001+x`: terms joined by `+`, each a text or a text times a count.
fn evaluate(expression: &str) -> String {
    let term = |term: &str| match term.rsplit_once('*') {
        Some((what, times)) => what.replace("space", " ").repeat(times.parse().unwrap()),
        None => term.replace("space", " "),
    };
    expression.split('+').map(term).collect()
}

#[test]
fn computed_vectors() {
    let Some(file) = shared("kimi/vectors/tokenizer_computed.json") else { return };
    let cases: Vec<Value> = serde_json::from_slice(&file).unwrap();
    assert!(!cases.is_empty());
    for case in &cases {
        let text = match case["text_expr"].as_str() {
            Some(expression) => evaluate(expression),
            None => case["text"].as_str().unwrap().to_owned(),
        };
        let found = k2().encode_with_special(&text).unwrap();
        for key in ["ids", "ids_special"] {
            if case.get(key).is_some() {
                assert_eq!(found, ids(&case[key]), "{text:?}");
            }
        }
        if case.get("ids_ordinary").is_some() {
            assert_eq!(k2().encode(&text).unwrap(), ids(&case["ids_ordinary"]), "{text:?}");
        }
        if let Some(count) = case["n_ids_reference"].as_u64() {
            assert_eq!(found.len() as u64, count);
            assert!(found.starts_with(&ids(&case["head"])) && found.ends_with(&ids(&case["tail"])));
        }
        if let Some(tokens) = case["token_bytes_hex"].as_array() {
            let hex = |id: &u32| {
                k2().token_bytes(*id).unwrap().iter().map(|b| format!("{b:02x}")).collect::<String>()
            };
            assert_eq!(found.iter().map(hex).collect::<Vec<_>>(), *tokens);
        }
    }
}

#[test]
fn long_texts_are_cut_as_the_reference_cuts_them() {
    assert_eq!(k2().encode(&"7".repeat(25_001)).unwrap().len(), 8335);
    assert_eq!(k2().encode(&"ab ".repeat(133_334)).unwrap().len(), 133_336);
    // A cut through a special token's name leaves two pieces of text.
    let cut = "x".repeat(24_995) + "<|im_end|>";
    assert!(!k2().encode_with_special(&cut).unwrap().contains(&163_586));
    let whole = "x".repeat(24_990) + "<|im_end|>";
    assert_eq!(k2().encode_with_special(&whole).unwrap().last(), Some(&163_586));
}

#[test]
fn all_special_ids_have_their_names() {
    let named = [
        (0, "[BOS]"),
        (1, "[EOS]"),
        (2, "<|im_end|>"),
        (3, "<|im_user|>"),
        (4, "<|im_assistant|>"),
        (6, "<|start_header_id|>"),
        (7, "<|end_header_id|>"),
        (9, "[EOT]"),
        (10, "<|im_system|>"),
        (11, "<|tool_calls_section_begin|>"),
        (12, "<|tool_calls_section_end|>"),
        (13, "<|tool_call_begin|>"),
        (14, "<|tool_call_argument_begin|>"),
        (15, "<|tool_call_end|>"),
        (17, "<|im_middle|>"),
        (18, "<|media_begin|>"),
        (19, "<|media_content|>"),
        (20, "<|media_end|>"),
        (21, "<|media_pad|>"),
        (22, "<think>"),
        (23, "</think>"),
        (254, "[UNK]"),
        (255, "[PAD]"),
    ];
    let tiny = Tokenizer::new(&tiny_file(), None).unwrap();
    assert_eq!((k2().vocabulary_size(), tiny.vocabulary_size()), (163_840, 259 + 256));
    for (tokenizer, first) in [(k2(), 163_584), (&tiny, 259)] {
        for offset in 0..256 {
            let id = first + offset;
            let name = named.iter().find(|(o, _)| *o == offset).map(|(_, n)| (*n).to_owned());
            let name = name.unwrap_or_else(|| format!("<|reserved_token_{id}|>"));
            assert_eq!(tokenizer.special().name(id), Some(name.as_str()));
            assert_eq!(tokenizer.id_of(&name), Some(id));
            assert_eq!(tokenizer.token_bytes(id), Some(name.as_bytes()));
            assert_eq!(tokenizer.encode_with_special(&name).unwrap(), [id]);
            assert!(tokenizer.encode(&name).unwrap().iter().all(|&t| t < first));
        }
        assert!(
            tokenizer.is_special(first + 2)
                && !tokenizer.is_special(first + 11)
                && !tokenizer.is_special(first + 22)
        );
        assert_eq!(tokenizer.special().name(first + 256), None);
    }
}

#[test]
fn names_in_the_config_win() {
    let config =
        br#"{"added_tokens_decoder": {"260": {"content": "<end>", "special": true}, "3": {"content": "x"}},
        "eos_token": {"content": "<end>", "lstrip": false}, "chat_template": "", "model_max_length": 1e30}"#;
    let tokenizer = Tokenizer::new(&tiny_file(), Some(config)).unwrap();
    assert_eq!(tokenizer.id_of("<end>"), Some(260));
    assert_eq!(tokenizer.special().name(259), Some("<|reserved_token_259|>"));
    assert_eq!(tokenizer.id_of("<|im_end|>"), None);
    assert!(tokenizer.is_special(260) && !tokenizer.is_special(259));
    assert_eq!(tokenizer.stop_ids(&[]).0, [260]);
    if let Some(official) = shared("kimi/official-kvv-K2.x/tokenizer_config.json") {
        let official = Tokenizer::new(&k2_file(), Some(&official)).unwrap();
        for id in 163_584..163_840 {
            assert_eq!(official.special().name(id), k2().special().name(id));
            assert_eq!(official.is_special(id), k2().is_special(id), "{id}");
        }
    }
}

#[test]
fn generation_stops_on_every_known_end() {
    assert_eq!(k2().stop_ids(&[163_586, 163_585]), (vec![163_585, 163_586], vec![]));
    assert_eq!(k2().stop_ids(&[163_593]).0, [163_585, 163_586, 163_593]);
    // The double quote and what is no token at all would end answers in mid-sentence, or never.
    assert_eq!(k2().stop_ids(&[1, 999_999]), (vec![163_585, 163_586], vec![1, 999_999]));
}

#[test]
fn broken_vocabularies_are_refused_with_their_line() {
    let good = String::from_utf8(tiny_file()).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    let replaced = |at: usize, with: &str| {
        let mut lines = lines.clone();
        lines[at] = with;
        lines.join("\n")
    };
    let error = |file: &str| Tokenizer::new(file.as_bytes(), None).unwrap_err();
    use TokenizerError as E;
    assert!(matches!(error(""), E::NotText { .. }));
    assert!(matches!(error("\n \n"), E::NotText { .. }));
    assert!(matches!(error(&replaced(257, "YWI= 300")), E::Gap { missing: 257, line: 259, next: 258 }));
    assert!(matches!(error(&replaced(258, "YWI= 300")), E::Gap { missing: 258, line: 259, next: 300 }));
    assert!(matches!(error(&replaced(258, "YWI= 7")), E::DuplicateRank { line: 259, first: 8, rank: 7 }));
    assert!(matches!(
        error(&replaced(258, "YQ== 258")),
        E::DuplicateToken { line: 259, first: 98, rank: 258 }
    ));
    assert!(matches!(error(&replaced(5, "Y?== 5")), E::Base64 { line: 6, .. }));
    assert!(matches!(error(&replaced(5, "YQ==")), E::Line { line: 6, .. }));
    assert!(matches!(error(&replaced(5, "YQ== 5 5")), E::Line { line: 6, .. }));
    assert!(matches!(error(&replaced(5, "YQ== five")), E::Rank { line: 6, .. }));
    assert!(matches!(error(&replaced(5, "YQ== -1")), E::Rank { line: 6, .. }));
    assert!(matches!(error(&replaced(5, "YQ== 4294967297")), E::Rank { line: 6, .. }));
    assert!(matches!(error(&replaced(97, "YWFhYQ== 97")), E::MissingByte(b'a')));
    let long = format!("{} 258", "YWFh".repeat(4000));
    assert!(matches!(error(&replaced(258, &long)), E::TokenLength { line: 259, found: 12_000, .. }));
    // Windows line ends and the order of lines do not matter.
    let mut shuffled = lines.clone();
    shuffled.reverse();
    assert!(Tokenizer::new(shuffled.join("\r\n").as_bytes(), None).is_ok());
}

#[test]
fn broken_configs_are_refused() {
    let error = |config: &str| Tokenizer::new(&tiny_file(), Some(config.as_bytes())).unwrap_err();
    use TokenizerError as E;
    assert!(matches!(error("{"), E::Config(_)));
    assert!(matches!(error(r#"{"added_tokens_decoder": {"x": {"content": "ab"}}}"#), E::TokenId { .. }));
    assert!(matches!(error(r#"{"added_tokens_decoder": {"260": {}}}"#), E::Config(_)));
    let twice = r#"{"added_tokens_decoder": {"260": {"content": "<a>"}, "262": {"content": "<a>"}}}"#;
    assert!(matches!(error(twice), E::DuplicateSpecial { first: 260, second: 262, .. }));
    let short = r#"{"added_tokens_decoder": {"260": {"content": "<"}}}"#;
    assert!(matches!(error(short), E::SpecialName { id: 260, .. }));
    assert!(matches!(k2().decode(&[163_840], false), Err(E::UnknownId { id: 163_840, vocabulary: 163_840 })));
}

#[test]
fn streamed_text_never_shows_half_a_character() {
    let text = "🎉👨‍👩‍👧 龘𠮷 Answer ✨!";
    let ids = k2().encode(text).unwrap();
    let mut detokenizer = Detokenizer::new(true);
    let mut streamed = String::new();
    for &id in &ids {
        let piece = detokenizer.push(k2(), id).unwrap();
        assert!(!piece.contains('\u{fffd}') && text[streamed.len()..].starts_with(&piece));
        streamed.push_str(&piece);
    }
    assert_eq!((streamed.as_str(), detokenizer.flush().as_str()), (text, ""));
    // A stream cut within a character shows so only at its end.
    let mut detokenizer = Detokenizer::new(true);
    assert_eq!(detokenizer.push(k2(), 5885).unwrap(), "");
    assert_eq!(detokenizer.flush(), "\u{fffd}");
    // Special tokens are hidden, the parser's markers are not.
    assert_eq!(detokenizer.push(k2(), 163_586).unwrap(), "");
    assert_eq!(detokenizer.push(k2(), 163_606).unwrap(), "<think>");
    assert_eq!(Detokenizer::new(false).push(k2(), 163_586).unwrap(), "<|im_end|>");
    assert!(detokenizer.push(k2(), 163_840).is_err());
}

/// tiktoken's rule, written directly: merge the neighbours that make the token of the lowest rank, the
/// leftmost first.
fn byte_pair_rule(
    tokenizer: &Tokenizer,
    ranks: &std::collections::HashMap<Vec<u8>, u32>,
    piece: &[u8],
) -> Vec<u32> {
    if let Some(&rank) = ranks.get(piece) {
        return vec![rank];
    }
    let mut parts: Vec<Vec<u8>> = piece.iter().map(|&b| vec![b]).collect();
    while let Some((_, at)) =
        (1..parts.len()).filter_map(|i| Some((*ranks.get(&parts[i - 1..=i].concat())?, i))).min()
    {
        let right = parts.remove(at);
        parts[at - 1].extend(right);
    }
    let ids: Vec<u32> = parts.iter().map(|p| ranks[p]).collect();
    assert_eq!(
        ids.iter().flat_map(|&i| tokenizer.token_bytes(i).unwrap().to_vec()).collect::<Vec<_>>(),
        piece
    );
    ids
}

#[test]
fn merges_by_tiktokens_rule() {
    let tokenizer = k2();
    let ranks = (0..163_584).map(|id| (tokenizer.token_bytes(id).unwrap().to_vec(), id)).collect();
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    // Words and numbers of one case, so that the pre-tokenizer leaves each in one piece.
    let word = "( ?[a-z]{1,40})|([一-龥]{1,12})|([а-я]{1,20})|([!-/:-@]{1,20})|( ?(aba|bab|ab|a){1,12})";
    let result = runner.run(&proptest::string::string_regex(word).unwrap(), |piece| {
        prop_assert_eq!(
            tokenizer.encode(&piece).unwrap(),
            byte_pair_rule(tokenizer, &ranks, piece.as_bytes())
        );
        Ok(())
    });
    result.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn text_survives(text in ".{0,80}") {
        let ids = k2().encode(&text).unwrap();
        prop_assert!(ids.iter().all(|&id| id < 163_584));
        prop_assert_eq!(k2().decode(&ids, true).unwrap(), text);
    }

    #[test]
    fn trusted_prompts_are_encoded_like_the_reference(
        parts in prop::collection::vec("(<\\|im_end\\|>|<\\|im_user\\|>|<think>|\\[BOS\\]|[ -~]{0,12}|.{0,6})", 0..10),
    ) {
        let text = parts.concat();
        let prompt = RenderedPrompt::trusted(text.clone());
        prop_assert_eq!(k2().encode_rendered(&prompt).unwrap(), k2().encode_with_special(&text).unwrap());
    }
}

#[test]
fn encoding_ends_at_its_limits() {
    let prompt = RenderedPrompt::trusted("word ".repeat(1000));
    let ids = k2().encode_rendered(&prompt).unwrap();
    let free = CancelFlag::default();
    assert_eq!(k2().encode_within(&prompt, ids.len(), &free).unwrap(), ids);
    let found = k2().encode_within(&prompt, ids.len() - 1, &free);
    assert!(matches!(found, Err(TokenizerError::LongText { limit }) if limit == ids.len() - 1), "{found:?}");
    free.cancel();
    assert!(matches!(k2().encode_within(&prompt, usize::MAX, &free), Err(TokenizerError::Cancelled)));
    let longest = ids.iter().filter_map(|&id| k2().token_bytes(id)).map(<[u8]>::len).max();
    assert!(longest <= Some(k2().longest_token()));
}
