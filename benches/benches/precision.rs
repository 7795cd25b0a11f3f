//! How far each precision is from f32, on the CPU and on a GPU, beside bf16.
//!
//! `cargo bench -p kimi-benches --features gpu --bench precision` prints the table of docs/precision.md: kimi-tiny, random
//! layers of Kimi-K2's shapes, and the checkpoints that mlx-lm's results were recorded of, where `KIMI_SHARED` (or ../shared)
//! has them. `--quick` leaves the random layers out.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kimi_benches::bf16::Bf16;
use kimi_core::Checkpoint;
use kimi_core::device::LoadedStage;
use kimi_core::source::ModelSource;
use kimi_core::stage::{CacheConfig, Stage};
use kimi_core::synthetic::{Synthetic, SyntheticShape};
use kimi_core::weights::Weights;
use kimi_quant::{Backend, BitWidth, Cpu, Precision};
use kimi_server::distance::Distance;
use kimi_server::golden::{self, Case};
use kimi_server::verify::{Engine, PipelineEngine};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Tokens of a prompt through random layers.
const RANDOM_TOKENS: usize = 64;
/// Longest prompt of kimi-tiny: longer ones take long.
const MAX_TOKENS: usize = 300;

/// A model, prompts, and the true logits of each.
struct Subject<'a> {
    name: &'a str,
    source: &'a dyn ModelSource,
    prompts: Vec<Prompt>,
}

struct Prompt {
    ids: Vec<u32>,
    every_position: bool,
    truth: Vec<f32>,
    /// mlx-lm's, in bf16.
    bf16: Option<Vec<f32>>,
}

fn main() -> Outcome<()> {
    let quick = std::env::args().any(|a| a == "--quick") || !std::env::args().any(|a| a == "--bench");
    println!(
        "{:<22} {:<52} {:>9} {:>13} {:>9} {:>10}",
        "model", "computed by", "positions", "largest error", "mean KL", "same token"
    );
    let tiny = Checkpoint::kimi_tiny()?;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kimi-core/assets/kimi-tiny/golden.safetensors");
    let cases = golden::read(&file, tiny.config().vocab_size)?;
    let prompts = cases.into_iter().filter(|case| case.ids.len() <= MAX_TOKENS).map(|case| case.ids);
    compare("kimi-tiny", &Weights::new(&tiny), prompts.collect())?;
    let shared = std::env::var_os("KIMI_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    for [name, golden] in [["a_new", "a_new"], ["b_old", "b_old__lm0291"], ["d_hf_bf16", "d_hf_bf16"]] {
        let oracle = shared.join("oracle");
        if !oracle.exists() {
            println!("skipped: {} is not there (set KIMI_SHARED)", oracle.display());
            break;
        }
        let checkpoint = Checkpoint::open(oracle.join("tiny").join(name))?;
        let vocab = checkpoint.config().vocab_size;
        let cases = golden::read(&oracle.join(format!("verify/{name}.safetensors")), vocab)?;
        let recorded = std::fs::read(oracle.join(format!("golden/{golden}.bf16r.safetensors")))?;
        let prompts =
            cases.into_iter().map(|case| recorded_prompt(case, &recorded)).collect::<Outcome<_>>()?;
        Subject { name, source: &Weights::new(&checkpoint), prompts }.print()?;
    }
    if !quick {
        let config = SyntheticShape::KimiK2.config(2, Some(16))?;
        let vocab = config.vocab_size as u32;
        let ids = (0..RANDOM_TOKENS as u32).map(|i| i.wrapping_mul(2_654_435_761) % vocab).collect();
        compare("K2's shapes, 2 layers", &Synthetic::new(config, BitWidth::B4), vec![ids])?;
    }
    Ok(())
}

fn recorded_prompt(case: Case, recorded: &[u8]) -> Outcome<Prompt> {
    let file = safetensors::SafeTensors::deserialize(recorded)?;
    let tensor = file.tensor(&format!("{}.logits", case.name))?;
    let values = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let Case { ids, every_position, logits: truth, .. } = case;
    Ok(Prompt { ids, every_position, truth, bf16: Some(values.collect()) })
}

/// Against what the CPU computes exactly.
fn compare(name: &str, source: &dyn ModelSource, prompts: Vec<Vec<u32>>) -> Outcome<()> {
    let mut engine = engine(source, Cpu::new())?;
    let prompts = prompts.into_iter().map(|ids| {
        engine.start(ids.len())?;
        Ok(Prompt { truth: engine.feed(&ids, true)?, ids, every_position: true, bf16: None })
    });
    let prompts = prompts.collect::<Outcome<_>>()?;
    Subject { name, source, prompts }.print()
}

/// The whole model on a device.
fn engine<B: Backend>(source: &dyn ModelSource, backend: B) -> Outcome<PipelineEngine> {
    let cache = CacheConfig { pages: 8, page_tokens: 64 };
    let layers = 0..source.config().num_hidden_layers;
    let stage = Stage::load_from(source, Arc::new(backend), layers, cache, &mut |_| {})?;
    Ok(PipelineEngine::new(vec![LoadedStage::new(stage, false)?.runner], cache)?)
}

impl Subject<'_> {
    fn print(&self) -> Outcome<()> {
        for precision in Precision::ALL {
            self.computed(Cpu::new().with_precision(precision))?;
        }
        #[cfg(feature = "gpu")]
        for precision in [Precision::Exact, Precision::Fast] {
            let options = kimi_quant::gpu::GpuOptions { precision, ..kimi_benches::gpu_options()? };
            match kimi_quant::Gpu::new(&options) {
                Ok(gpu) if gpu.precision() == precision => self.computed(gpu)?,
                Ok(gpu) => println!("skipped: {} has no kernels that are fast", gpu.name()),
                Err(error) => println!("skipped: {error}"),
            }
        }
        self.computed(Bf16(Cpu::new()))?;
        let recorded = self.prompts.iter().map(|p| p.bf16.clone()).collect::<Option<Vec<_>>>();
        match recorded {
            Some(all) => self.line("mlx-lm, bf16", all),
            None => Ok(()),
        }
    }

    fn computed<B: Backend>(&self, backend: B) -> Outcome<()> {
        let name = backend.name();
        let mut engine = engine(self.source, backend)?;
        let each = self.prompts.iter().map(|prompt| {
            engine.start(prompt.ids.len())?;
            engine.feed(&prompt.ids, prompt.every_position)
        });
        let all = each.collect::<Result<Vec<_>, _>>()?;
        self.line(&name, all)
    }

    fn line(&self, by: &str, found: Vec<Vec<f32>>) -> Outcome<()> {
        let vocab = self.source.config().vocab_size;
        let each =
            self.prompts.iter().zip(found).map(|(p, found)| Distance::between(&found, &p.truth, vocab));
        let all = each.collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().reduce(Distance::and));
        let Distance { positions, max_abs_err, mean_kl, same_token } =
            all.ok_or_else(|| format!("{}, {by}: what was computed is not a number", self.name))?;
        println!(
            "{:<22} {by:<52} {positions:>9} {max_abs_err:>13.1e} {mean_kl:>9.1e} {same_token:>10}",
            self.name
        );
        Ok(())
    }
}
