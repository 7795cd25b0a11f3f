//! Stages on hosts of their own, over encrypted links that delay, lose, repeat and reorder packets: the tokens are those of
//! one process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;
use std::time::Duration;

use common::cable::{Cable, Hosts};
use common::hosts::kimi_in;
use common::{Running, key, shared, with_key};
use kimi_core::engine::{Engine, EngineConfig, Request, TokenEvent};
use kimi_core::plan::ModelBytes;
use kimi_core::sampler::{RawSamplingParams, SamplingParams};
use kimi_core::stage::{CacheConfig, StageRunner};
use kimi_core::{Checkpoint, DeviceChoice};
use kimi_net::Trust;
use kimi_server::cluster::{self, Dialer, Placement, Wanted};
use kimi_server::local::silent;
use kimi_server::placement::local_plan;

const CACHE: CacheConfig = CacheConfig { pages: 16, page_tokens: 64 };
const PATIENCE: Duration = Duration::from_secs(60);
/// Tokens that are generated.
const TOKENS: u32 = 24;

/// Several answers at a time, some greedy and some drawn, one of them with a prompt of several pieces.
fn answers(checkpoint: &Checkpoint, stages: Vec<Box<dyn StageRunner>>) -> Vec<Vec<u32>> {
    let vocabulary = checkpoint.config().vocab_size as u32;
    let config = EngineConfig { token_budget: 64, ..EngineConfig::new(vocabulary, 512, CACHE) };
    let engine = Engine::start(stages, config).unwrap();
    let prompts =
        [5, 20, 150].map(|count| (0..count).map(|i| (i * 37 + 11) % vocabulary).collect::<Vec<_>>());
    let running = prompts.into_iter().zip([0.0, 1.0, 1.0]).map(|(prompt, temperature)| {
        let params = RawSamplingParams { temperature, seed: Some(7), ..RawSamplingParams::default() };
        let params = SamplingParams::new(params).unwrap();
        engine.generate(Request { prompt, params, max_tokens: Some(TOKENS), ..Request::default() }).unwrap()
    });
    let running: Vec<_> = running.collect();
    let tokens = |events: kimi_core::engine::Tokens| {
        events
            .filter_map(|event| match event {
                TokenEvent::Token { id, .. } => Some(id),
                TokenEvent::Failed { error } => panic!("{error}"),
                TokenEvent::Finished { .. } => None,
            })
            .collect()
    };
    running.into_iter().map(tokens).collect()
}

fn alone(checkpoint: &Checkpoint) -> Vec<Vec<u32>> {
    let layers = 0..checkpoint.config().num_hidden_layers;
    let stage = DeviceChoice::cpu().load(checkpoint, layers, CACHE, &mut |_| {}).unwrap();
    answers(checkpoint, vec![stage.runner])
}

/// A worker on a host, with this model.
fn worker(hosts: &Hosts, host: usize, model: &str) -> Running {
    let mut command = with_key(kimi_in(&hosts.name(host)));
    let (id, address) = (format!("w{host}"), Hosts::address(host));
    command.args(["worker", "--node-id", &id, "--node-host", &address, "--node-port", "5000", "--json"]);
    Running::spawn(command.args(["--no-mdns", "--backend", "cpu", "--default-model", model]))
}

/// The same answers over so many hosts.
fn together(
    test: &str,
    model: &str,
    checkpoint: &Checkpoint,
    stages: usize,
    cable: Cable,
) -> Option<Vec<Vec<u32>>> {
    let hosts = Hosts::new(test, stages - 1, cable)?;
    let _workers: Vec<_> = (1..stages).map(|host| worker(&hosts, host, model)).collect();
    let checkpoint = checkpoint.clone();
    Some(hosts.on(0, move || {
        let mut names: Vec<_> = (1..stages).map(|host| format!("w{host}")).collect();
        let wanted: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(i, id)| Wanted::at(id.clone(), format!("{}:5000", Hosts::address(i + 1))))
            .collect();
        names.push("me".to_owned());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let plan = local_plan(&ModelBytes::of(&checkpoint).unwrap(), &names, CACHE.tokens()).unwrap();
        let dialer = Dialer::new("me", Trust::Key(key()));
        let placement = Placement::new(plan, CACHE, "model", DeviceChoice::cpu(), dialer);
        let connecting = cluster::connect(&wanted, wanted.len(), PATIENCE, &placement.dialer);
        let workers = runtime.block_on(connecting).unwrap();
        let built = cluster::build(&checkpoint, &placement, workers, runtime.handle(), &silent()).unwrap();
        answers(&checkpoint, built.stages)
    }))
}

fn millis(delay: u64) -> Cable {
    Cable { delay: Duration::from_millis(delay), ..Cable::default() }
}

/// 1 ms each way, and one packet of a hundred each is lost, sent twice and late.
const BAD: Cable = Cable { delay: Duration::from_millis(1), lost: 10, repeated: 10, late: 10 };

#[test]
fn two_to_four_stages_give_the_tokens_of_one_process() {
    let checkpoint = Checkpoint::kimi_tiny().unwrap();
    let expected = alone(&checkpoint);
    assert!(expected.iter().all(|tokens| tokens.len() == TOKENS as usize), "{expected:?}");
    let cables = [("a", millis(0)), ("b", millis(1)), ("c", millis(20)), ("d", BAD)];
    for (name, cable) in cables {
        for stages in 2..=4 {
            let test = format!("k{name}{stages}");
            let Some(found) = together(&test, "kimi-tiny", &checkpoint, stages, cable) else { return };
            assert_eq!(found, expected, "{stages} stages, {cable:?}");
        }
    }
}

#[test]
fn the_checkpoints_of_mlx_too() {
    for name in ["a_new", "b_old", "c_noentries", "d_hf_bf16"] {
        let Some(path) = shared(&format!("oracle/tiny/{name}")) else { return };
        let checkpoint = Checkpoint::open(Path::new(&path)).unwrap();
        let expected = alone(&checkpoint);
        let path = path.to_str().unwrap();
        for (stages, cable) in [(2, millis(1)), (3, BAD)] {
            let test = format!("o{}{stages}", &name[..1]);
            let Some(found) = together(&test, path, &checkpoint, stages, cable) else { return };
            assert_eq!(found, expected, "{name}, {stages} stages, {cable:?}");
        }
    }
}
