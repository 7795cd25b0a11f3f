//! Streams an answer: `cargo run --release --example chat -- FOLDER "Why is the sky blue?"`.

use std::io::Write;

use kimi_core::{ChatEvent, ChatModel, ChatRequest};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(folder), Some(question)) = (args.next(), args.next()) else {
        return Err("usage: chat FOLDER QUESTION".into());
    };
    let model = ChatModel::load(folder)?;
    for event in model.chat(ChatRequest::user(question))? {
        match event {
            ChatEvent::Finished { usage, .. } => println!("\n[{} tokens]", usage.completion_tokens),
            ChatEvent::Failed(error) => return Err(error.into()),
            event => print!("{}", event.text()),
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}
