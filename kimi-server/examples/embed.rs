//! A coordinator and a worker from the library. Here they share a process; each half could be on a machine of its own, with
//! the same key and the same checkpoint.
//!
//! ```sh
//! cargo run --release -p kimi-server --no-default-features --example embed
//! ```

use std::sync::{Arc, mpsc};
use std::time::Duration;

use kimi_core::plan::ModelBytes;
use kimi_core::{ChatFiles, ChatModel, ChatRequest, Checkpoint, DeviceChoice, ModelOptions};
use kimi_net::{ClusterKey, Listener, Trust, Tuning};
use kimi_server::cluster::worker::{WorkerConfig, serve};
use kimi_server::cluster::{Dialer, LoadWatch, Placement, Wanted, build, connect};
use kimi_server::models::Lookup;
use kimi_server::placement::local_plan;
use tokio::sync::oneshot;

/// Runs the example.
pub fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let checkpoint = Checkpoint::kimi_tiny()?;
    let trust = Trust::Key(ClusterKey::generate()?);

    // The worker: it serves whoever has the key, until it is told to stop.
    let bound = Listener::bind(([127, 0, 0, 1], 0).into(), trust.clone(), Tuning::default());
    let listener = runtime.block_on(bound)?;
    let wanted = [Wanted::at("worker", listener.local_addr()?.to_string())];
    let config = WorkerConfig {
        node_id: "worker".into(),
        model: Some(checkpoint.clone()),
        lookup: Lookup::of_this_machine(None)?, // for models that only the coordinator names
        device: DeviceChoice::cpu(),
    };
    let (stop, stopped) = oneshot::channel::<()>();
    runtime.spawn(serve(listener, config, async { drop(stopped.await) }));

    // The coordinator: it plans by bytes, connects, and has all layers loaded at the same time.
    let options = ModelOptions { recovery: Duration::from_secs(60), ..ModelOptions::default() };
    let cache = options.cache(&checkpoint);
    let names = ["worker".to_owned(), "coordinator".to_owned()];
    let plan = local_plan(&ModelBytes::of(&checkpoint)?, &names, cache.tokens())?;
    let dialer = Dialer::new("coordinator", trust);
    let workers = runtime.block_on(connect(&wanted, 1, Duration::from_secs(10), &dialer))?;
    let placement = Placement::new(plan, cache, "kimi-tiny", DeviceChoice::cpu(), dialer);
    let watch: LoadWatch =
        Arc::new(|stage, load| println!("stage {stage}: {} of {} bytes", load.loaded, load.total));
    let built = build(&checkpoint, &placement, workers, runtime.handle(), &watch)?;
    let model = ChatModel::start(ChatFiles::open(&checkpoint)?, &checkpoint, built.stages, &options)?;

    // Called when a stage is lost, in an answer or while idle. `cluster::Recovery` would find another one here; this gives up,
    // which ends the engine.
    let (lost, losses) = mpsc::channel();
    model.engine().recover_with(move |stage| {
        let _ = lost.send(stage.reason.clone()); // fails when main has ended
        Err("this program looks for no other worker".to_owned())
    })?;

    for event in model.chat(ChatRequest::user("How do I connect two Macs?"))? {
        print!("{}", event.text());
    }
    println!();

    // Nothing runs any more, and nobody asks: the loss is heard of all the same.
    drop(stop);
    println!("the worker is lost: {}", losses.recv_timeout(Duration::from_secs(30))?);
    Ok(())
}
