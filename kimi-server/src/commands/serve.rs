//! `kimi serve`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use kimi_core::plan::Plan;
use kimi_core::{ChatModel, Checkpoint, ModelOptions};
use serde_json::json;

use super::Outcome;
use super::stages::{self, Model, Stages};
use crate::api_keys;
use crate::cli::args::{ServeArgs, Switch};
use crate::cli::ui;
use crate::cluster::ClusterStatus;
use crate::host::Host;
use crate::http::HttpConfig;
use crate::rates;
use crate::serving::{self, Slot};

/// Serves the API until Ctrl-C.
///
/// # Errors
/// If the model, the discovery file, the port or a worker can't be used.
pub fn run(args: &ServeArgs) -> anyhow::Result<Outcome> {
    let runtime = super::runtime()?;
    let host: Host = args.host.parse().context("--host")?;
    let addr = runtime.block_on(host.lookup(args.port))?;
    let config = args.http.config()?;
    let has_keys = !config.api_keys.is_empty() || config.api_key_file.is_some();
    let open = has_keys || args.open_api || args.peers.trust.insecure;
    let listener = serving::bind(addr, open).map_err(|e| super::listen_error(e, addr, "--port"))?;
    let addr = listener.local_addr()?;
    warn_of_access(addr, &config)?;
    let (found, checkpoint) = super::open(&args.model, None)?;
    let files = found.chat_files(&checkpoint)?;
    let disk = args.prefix_cache_disk.as_ref().filter(|_| args.prefix_cache == Switch::On);
    let options = ModelOptions {
        prompt_time: Some(Duration::from_millis(args.prompt_time)),
        prefix_cache: Some(args.prefix_cache == Switch::On),
        prefix_cache_disk: disk.map(|folder| (folder.clone(), (args.prefix_cache_disk_size * 1e9) as u64)),
        speculation: args.speculation.speculation,
        recovery: Duration::from_secs(args.recovery_timeout),
        ..args.cache.options()
    };
    let status = ClusterStatus::default();
    let names = names(&args.http.served_model_name, &found.id, checkpoint.name());
    let slot = Slot::new(&names, options.context(&checkpoint), files.defaults(), status.clone());
    // From here on the API says how far loading is.
    let server = runtime.spawn(serving::serve(listener, slot.served(), config, stop(slot.clone())));
    let started = Instant::now();
    let planned = |plan: &Plan, limits: bool| {
        slot.planned(plan);
        stages::show(&found.id, plan, limits);
        anyhow::ensure!(
            disk.is_none() || plan.stages.len() == 1,
            "--prefix-cache-disk needs all layers on this machine, but {} machines share them; leave it out, or use this machine \
             alone (--wait-for-peers 0)",
            plan.stages.len()
        );
        Ok(())
    };
    let (cache, device) = (options.cache(&checkpoint), &args.precision.on(&args.device));
    let source =
        Model { found: &found, checkpoint: &checkpoint, cache, device, status: &status, planned: &planned };
    let Stages { built, mut recovery } = stages::start(&args.peers, &source, runtime.handle())?;
    let seconds = started.elapsed().as_secs_f64();
    ui::notice(format_args!("loaded in {seconds:.1} s on {}", built.devices.join(", ")));
    let model = ChatModel::start(files, &checkpoint, built.stages, &options)?;
    let _stops = super::Stops(model.engine().clone());
    let _search = recovery.guard();
    model.engine().recover_with(move |lost| recovery.replace(lost))?;
    args.cache.note_limit(model.context_tokens());
    model.prepare_grammars();
    slot.loaded(model, built.devices, built.mapped);
    announce(args, addr, &names[0], options.context(&checkpoint))?;
    let noting = runtime.spawn(note_rates(slot.clone(), checkpoint.clone()));
    runtime.block_on(server)??;
    noting.abort();
    slot.measured().into_iter().for_each(|split| rates::remember(&checkpoint, split));
    Ok(Outcome::Success)
}

/// Writes down now and then how fast the nodes are, for the next plan.
async fn note_rates(slot: Slot, checkpoint: Checkpoint) {
    const EVERY: Duration = Duration::from_secs(300);
    loop {
        tokio::time::sleep(EVERY).await;
        if let Some(split) = slot.measured() {
            let checkpoint = checkpoint.clone();
            // A disk may be slow; whether it was written is of no interest here.
            let _ = tokio::task::spawn_blocking(move || rates::remember(&checkpoint, split)).await;
        }
    }
}

/// What a model is served as: what the user says, else its name and its folder's.
fn names(given: &[String], id: &str, folder: &str) -> Vec<String> {
    match given {
        [] if id == folder => vec![id.to_owned()],
        [] => vec![id.to_owned(), folder.to_owned()],
        given => given.to_vec(),
    }
}

/// Says who may use the API, where that is everybody or nobody.
fn warn_of_access(addr: SocketAddr, config: &HttpConfig) -> anyhow::Result<()> {
    let keys = match &config.api_key_file {
        Some(file) => api_keys::read(file)?.len() + config.api_keys.len(),
        None => config.api_keys.len(),
    };
    let style = ui::stderr_style();
    if let (0, Some(file)) = (keys, &config.api_key_file) {
        let warning = "has no keys, so that nobody may use the API: make one with `kimi api-key new NAME`, or remove the file";
        ui::notice(style.error(&format!("{} {warning}", file.display())));
    } else if keys == 0 && !addr.ip().to_canonical().is_loopback() {
        let warning = format!(
            "WARNING: the API at {addr} asks for no key: whoever reaches it can use it and read what it says. \
             `kimi api-key new NAME` makes a key, which it asks for from then on"
        );
        ui::notice(style.error(&warning));
    }
    Ok(())
}

/// Waits for Ctrl-C. Answers under way may end after it; a second Ctrl-C ends the program at once, as the first does while
/// the model is being loaded.
async fn stop(slot: Slot) {
    const INTERRUPTED: i32 = 130; // as after SIGINT
    super::asked_to_stop().await;
    let Some(model) = slot.model() else { std::process::exit(INTERRUPTED) };
    let scheduler = model.stats().scheduler;
    let answers = scheduler.running + scheduler.waiting;
    if answers > 0 {
        let noun = if answers == 1 { "answer" } else { "answers" };
        ui::notice(format_args!("finishing {answers} {noun}; Ctrl-C again ends now"));
    }
    tokio::spawn(async {
        super::asked_to_stop().await;
        std::process::exit(INTERRUPTED);
    });
}

fn announce(args: &ServeArgs, addr: SocketAddr, id: &str, context: usize) -> anyhow::Result<()> {
    if args.json {
        return super::print_json(&json!({
            "event": "listening", "address": addr, "url": format!("http://{addr}/v1"), "page": page_address(addr),
            "model": id, "context_tokens": context,
        }));
    }
    let page = page_address(addr);
    ui::tell(format_args!(
        "{id} is served at http://{addr}/v1 (context {context} tokens; state at http://{addr}/health)\n\
         Chat in a browser: {page}\n\
         Or try\n  \
         curl http://{addr}/v1/chat/completions -H 'content-type: application/json' \\\n    \
         -d '{{\"model\": \"{id}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}]}}'\nCtrl-C ends it"
    ));
    Ok(())
}

/// Where a browser on this machine finds the page: an address that stands for all of them is none to go to.
fn page_address(addr: SocketAddr) -> String {
    match addr.ip().is_unspecified() {
        true => format!("http://localhost:{}/", addr.port()),
        false => format!("http://{addr}/"),
    }
}
