//! An answer of any text, whole and in pieces: both must be read alike, and nothing that is no markup may be lost.
#![no_main]

use kimi_core::chat::{ParserOptions, ReasoningMode, Reply, ReplyParser, ToolMarkup, TrailingText};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, u8, String)| {
    let (options, step, text) = input;
    let options = ParserOptions {
        reasoning: match options % 3 {
            0 => ReasoningMode::Off,
            1 => ReasoningMode::Tagged,
            _ => ReasoningMode::Open,
        },
        tool_markup: match options >> 5 & 3 {
            0 => ToolMarkup::Text,
            1 => ToolMarkup::Drop,
            _ => ToolMarkup::Calls,
        },
        trailing_text: if options & 8 != 0 { TrailingText::Keep } else { TrailingText::Drop },
        ..ParserOptions::default()
    };
    let whole = Reply::parse(&text, options.clone());
    let mut parser = ReplyParser::new(options);
    let mut pieces = Reply::default();
    let step = usize::from(step % 7) + 1;
    let characters: Vec<char> = text.chars().collect();
    for piece in characters.chunks(step) {
        parser.push(&piece.iter().collect::<String>()).into_iter().for_each(|event| pieces.add(event));
    }
    parser.finish().into_iter().for_each(|event| pieces.add(event));
    assert_eq!(format!("{whole:?}"), format!("{pieces:?}"));
    if !text.contains('<') {
        let together = format!("{}{}", whole.reasoning, whole.content);
        assert_eq!(together.trim(), text.trim());
    }
});
