//! `kimi demo`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use kimi_core::chat_model::ModelOptions;
use kimi_core::plan::{HumanBytes, ModelBytes};
use kimi_core::{ChatFiles, ChatModel};
use serde_json::json;
use tokio::sync::oneshot;

use super::Outcome;
use crate::cli::args::DemoArgs;
use crate::cli::ui;
use crate::client;
use crate::cluster::ClusterStatus;
use crate::http::HttpConfig;
use crate::local::{LocalCluster, silent};
use crate::models::{EMBEDDED, FoundModel};
use crate::placement::{PlanTable, layer_text};
use crate::serving::{self, Slot};

/// Processes that share the layers.
const STAGES: usize = 2;

/// Shows the main job on the embedded model.
///
/// # Errors
/// If anything of it does not work.
pub fn run(args: &DemoArgs) -> anyhow::Result<Outcome> {
    let style = ui::stdout_style();
    let addr = SocketAddr::from(([127, 0, 0, 1], args.port));
    let listener = serving::bind(addr, false).map_err(|e| super::listen_error(e, addr, "--port"))?;
    let addr = listener.local_addr()?;
    let found = FoundModel::embedded();
    let checkpoint = found.open()?;
    let files = ChatFiles::open(&checkpoint)?;
    let bytes = ModelBytes::of(&checkpoint)?;
    // One question is asked at a time: a cache for one whole context.
    let options = ModelOptions { conversations: Some(1), ..ModelOptions::default() };
    let cache = options.cache(&checkpoint);
    let tokens = cache.tokens();
    let cluster = LocalCluster::start(
        &found,
        &checkpoint,
        &bytes,
        STAGES,
        tokens,
        None,
        &args.precision.on(&args.device),
    )?;
    super::print(&format!(
        "{}: a small Kimi-K2 ({} layers, {}) that is part of this program.\nIt shows how kimi works, not what a \
         Kimi-K2 of a trillion parameters can say.\n\n{}\n",
        style.bold(EMBEDDED),
        bytes.layers.len(),
        HumanBytes(checkpoint.bytes()),
        PlanTable { plan: cluster.plan(), limits: false }
    ))?;
    let runtime = super::runtime()?;
    let built = cluster.build(&checkpoint, cache, &silent(), runtime.handle())?;
    for worker in cluster.workers() {
        let wanted = worker.wanted();
        super::print(&format!("{} is process {} at {}\n", wanted.id, worker.process_id(), wanted.target))?;
    }
    let model = ChatModel::start(files, &checkpoint, built.stages, &options)?;
    let _stops = super::Stops(model.engine().clone());
    let watch = Watch { model: model.clone() };
    let names = [EMBEDDED.to_owned()];
    let slot = Slot::new(&names, model.context_tokens(), model.defaults(), ClusterStatus::default());
    slot.planned(cluster.plan());
    slot.loaded(model, built.devices, built.mapped);
    let (stop, stopped) = oneshot::channel::<()>();
    let server = runtime.spawn(serving::serve(listener, slot.served(), HttpConfig::default(), async {
        // An error means that the other half is gone: stop too.
        let _ = stopped.await;
    }));
    super::print(&format!(
        "OpenAI-compatible API at http://{addr}/v1\n\n{} {}\n",
        style.bold(">"),
        args.prompt
    ))?;
    let answer = runtime.block_on(ask(addr, args, &watch))?;
    super::print(&report(&cluster, &answer))?;
    if args.keep {
        super::print("\nserving on until Ctrl-C\n")?;
        runtime.block_on(super::asked_to_stop());
    }
    // An error means that the server has stopped by itself, which the next line shows.
    let _ = stop.send(());
    runtime.block_on(server)??;
    Ok(Outcome::Success)
}

/// Where the stages' times are read.
struct Watch {
    model: ChatModel,
}

impl Watch {
    /// Computing time of every stage so far.
    fn compute(&self) -> Vec<Duration> {
        self.model.stats().stages.iter().map(|stage| stage.time.compute).collect()
    }

    /// Time on the wire and in queues so far.
    fn wire(&self) -> Duration {
        self.model.stats().stages.iter().map(|stage| stage.time.wire + stage.time.queue).sum()
    }
}

/// What was measured at the client, and at the stages while decoding.
struct Answer {
    prompt_tokens: u64,
    tokens: u64,
    first: Duration,
    /// From the first text to the end.
    decode: Duration,
    stages: Vec<Duration>,
    wire: Duration,
}

async fn ask(addr: SocketAddr, args: &DemoArgs, watch: &Watch) -> anyhow::Result<Answer> {
    let request = json!({
        "model": EMBEDDED, "stream": true, "stream_options": { "include_usage": true },
        "max_tokens": args.max_tokens, "temperature": 0,
        "messages": [{ "role": "user", "content": args.prompt }],
    });
    let started = Instant::now();
    let mut stream = client::chat(addr, &request).await?;
    let mut first = None;
    let mut usage = (0, 0);
    while let Some(event) = stream.next().await? {
        if let Some(text) = event["choices"][0]["delta"]["content"].as_str().filter(|t| !t.is_empty()) {
            first.get_or_insert_with(|| (started.elapsed(), watch.compute(), watch.wire()));
            super::print(text)?;
        }
        if let Some(found) = event.get("usage").filter(|u| u.is_object()) {
            let count = |key: &str| found[key].as_u64().unwrap_or(0);
            usage = (count("prompt_tokens"), count("completion_tokens"));
        }
    }
    super::print("\n\n")?;
    let (first, compute, wire) = first.unwrap_or_else(|| (started.elapsed(), watch.compute(), watch.wire()));
    let stages = watch.compute().iter().zip(&compute).map(|(now, then)| now.saturating_sub(*then)).collect();
    Ok(Answer {
        prompt_tokens: usage.0,
        tokens: usage.1,
        first,
        decode: started.elapsed().saturating_sub(first),
        stages,
        wire: watch.wire().saturating_sub(wire),
    })
}

fn report(cluster: &LocalCluster, answer: &Answer) -> String {
    let after_first = answer.tokens.saturating_sub(1) as f64;
    let rate = |time: Duration| match time.is_zero() || after_first == 0.0 {
        true => "-".to_owned(),
        false => format!("{:.1}", after_first / time.as_secs_f64()),
    };
    let mut table = ui::Table::new(&["stage", "layers", "computing alone, tokens/s"], &[1, 2]);
    for (stage, time) in cluster.plan().stages.iter().zip(&answer.stages) {
        table.row([stage.node.clone(), layer_text(&stage.layers()), rate(*time)]);
    }
    let wire = answer.wire.as_secs_f64() * 1e3 / after_first.max(1.0);
    format!(
        "{} prompt tokens, {} answer tokens\ntime to first token: {:.1} ms\ntokens/s in all: {}; on the wire and in \
         queues: {wire:.3} ms a token\n{table}",
        answer.prompt_tokens,
        answer.tokens,
        answer.first.as_secs_f64() * 1e3,
        rate(answer.decode),
    )
}
