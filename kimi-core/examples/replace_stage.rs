//! Loses half of the model in the middle of an answer, loads it again, and goes on with the same text.
//!
//! ```sh
//! cargo run --release -p kimi-core --features tiny --example replace_stage
//! ```

use std::sync::Arc;
use std::time::Duration;

use kimi_core::batch::Batch;
use kimi_core::stage::{Done, Hidden, StageRunner, StageSpan};
use kimi_core::{ChatFiles, ChatModel, ChatRequest, Checkpoint, DeviceChoice, ModelOptions};

type AnyError = Box<dyn std::error::Error>;

/// A stage that is lost after so many batches, as one on another machine may be.
struct Unlucky {
    stage: Box<dyn StageRunner>,
    batches_left: usize,
}

impl StageRunner for Unlucky {
    fn span(&self) -> StageSpan {
        self.stage.span()
    }

    fn submit(&mut self, batch: Arc<Batch>, input: Option<Hidden>, done: Done) {
        match self.batches_left.checked_sub(1) {
            Some(left) => {
                self.batches_left = left;
                self.stage.submit(batch, input, done);
            }
            None => drop(done), // nobody answers any more
        }
    }
}

fn main() -> Result<(), AnyError> {
    let checkpoint = Checkpoint::kimi_tiny()?;
    let options = ModelOptions { recovery: Duration::from_secs(60), ..ModelOptions::default() };
    let load = {
        let (checkpoint, cache) = (checkpoint.clone(), options.cache(&checkpoint));
        move |layers| DeviceChoice::cpu().load(&checkpoint, layers, cache, &mut |_| {}).map(|s| s.runner)
    };
    let half = checkpoint.config().num_hidden_layers / 2;
    let first = Unlucky { stage: load(0..half)?, batches_left: 20 };
    let second = load(half..checkpoint.config().num_hidden_layers)?;

    let files = ChatFiles::open(&checkpoint)?;
    let model = ChatModel::start(files, &checkpoint, vec![Box::new(first), second], &options)?;
    model.engine().recover_with(move |lost| {
        eprintln!("\n[stage {} is lost: {}]", lost.stage, lost.reason);
        load(0..half).map_err(|error| error.to_string())
    })?;
    for event in model.chat(ChatRequest::user("How do I connect two Macs?"))? {
        print!("{}", event.text());
    }
    let stats = model.stats();
    println!("\n[{} steps, {} stage lost and replaced]", stats.steps, stats.losses);
    Ok(())
}
