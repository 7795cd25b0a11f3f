//! The server on whatever GPU there is.
//!
//! Without one nothing is tested, unless `KIMI_REQUIRE_GPU` is set.
#![cfg(feature = "gpu")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{has_gpu, http, json, kimi, run, stderr};
use kimi_core::device::LoadedStage;
use kimi_core::plan::ModelBytes;
use kimi_core::stage::Stage;
use kimi_core::{ChatFiles, ChatModel, Checkpoint, ModelOptions};
use kimi_quant::gpu::{Gpu, GpuOptions};
use kimi_server::cluster::ClusterStatus;
use kimi_server::http::HttpConfig;
use kimi_server::placement;
use kimi_server::serving::{self, Slot};
use serde_json::{Value, json as value};

/// A served model whose device can be lost.
struct Server {
    gpu: Arc<Gpu>,
    address: String,
    _runtime: tokio::runtime::Runtime,
}

fn serve() -> Server {
    let checkpoint = Checkpoint::kimi_tiny().unwrap();
    let options = ModelOptions { context_tokens: Some(256), ..ModelOptions::default() };
    let gpu = Arc::new(Gpu::new(&GpuOptions::default()).unwrap());
    let layers = 0..checkpoint.config().num_hidden_layers;
    let stage =
        Stage::load(&checkpoint, gpu.clone(), layers, options.cache(&checkpoint), &mut |_| {}).unwrap();
    let files = ChatFiles::open(&checkpoint).unwrap();
    let stages = vec![LoadedStage::new(stage, true).unwrap().runner];
    let model = ChatModel::start(files, &checkpoint, stages, &options).unwrap();
    let bytes = ModelBytes::of(&checkpoint).unwrap();
    let plan = placement::local_plan(&bytes, &["here".to_owned()], 256).unwrap();
    let slot = Slot::new(&["kimi-tiny".to_owned()], 256, Default::default(), ClusterStatus::default());
    slot.planned(&plan);
    slot.loaded(model, vec![gpu.adapter().to_string()], None);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = serving::bind(([127, 0, 0, 1], 0).into(), false).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    runtime.spawn(serving::serve(listener, slot.served(), HttpConfig::default(), std::future::pending()));
    Server { gpu, address, _runtime: runtime }
}

impl Server {
    fn health(&self) -> (u16, Value) {
        let (status, body) = http(&self.address, "GET", "/health", "");
        (status, serde_json::from_str(&body).unwrap())
    }

    fn chat(&self, stream: bool) -> (u16, String) {
        let request = value!({
            "messages": [{ "role": "user", "content": "Hello" }], "max_tokens": 4, "temperature": 0, "stream": stream,
        });
        http(&self.address, "POST", "/v1/chat/completions", &request.to_string())
    }
}

#[test]
fn a_lost_device_fails_its_chats_and_the_server_survives() {
    if !has_gpu() {
        return;
    }
    let server = serve();
    let (status, body) = server.chat(false);
    assert!(status == 200 && body.contains("content"), "{status} {body}");
    let (status, health) = server.health();
    assert_eq!((status, health["status"].as_str()), (200, Some("ok")));
    let holds = health["models"][0]["stages"][0]["holds"].as_str().unwrap().to_owned();
    assert!(holds.starts_with("here: layers 0-5 on ") && holds.contains("Vulkan"), "{holds}");

    server.gpu.destroy();
    let (_, body) = server.chat(true);
    assert!(body.contains("error") && body.contains("device"), "{body}");
    assert!(
        common::wait_until(Duration::from_secs(10), || server.health().0 == 503),
        "the lost device is not in /health"
    );
    let (_, health) = server.health();
    let reason = health["models"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("device") && reason.contains("lost"), "{reason}");
    let (status, body) = server.chat(false);
    assert!(status == 503 && body.contains("device"), "{status} {body}");
}

#[test]
fn what_does_not_fit_is_said_before_anything_is_loaded() {
    if !has_gpu() {
        return;
    }
    let ask = ["run", "kimi-tiny", "--prompt", "Hi", "--max-tokens", "2", "--gpu-memory", "0.001"];
    let output = run(&[&ask[..], &["--backend", "gpu"]].concat());
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    for part in
        ["layers 0-5 do not fit", "9.0 MB of weights", "1.0 MB are free", "too little", "shorten the context"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn devices_show_what_they_are() {
    if !has_gpu() {
        return;
    }
    let report = json(&run(&["devices", "--json", "--measure"]));
    let gpu = &report["gpus"][0];
    assert!(gpu["largest_binding_bytes"].as_u64().unwrap() >= 128 << 20, "{gpu}");
    assert!(gpu["read_bandwidth"].as_f64().unwrap() > 1e8, "{gpu}");
    assert!(report["cpu"]["read_bandwidth"].as_f64().unwrap() > 1e8, "{report}");
    let (memory, layer) = (gpu["memory_bytes"].as_u64().unwrap(), report["layer_bytes"].as_u64().unwrap());
    assert!(gpu["kimi_k2_layers"].as_u64().unwrap() <= memory / layer, "{gpu}");
    let name = gpu["name"].as_str().unwrap();
    let text = common::stdout(&run(&["devices"]));
    assert!(text.contains(name) && text.contains("subgroups"), "{text}");
    let mut by_environment = kimi();
    by_environment.args(["run", "kimi-tiny", "--prompt", "Hi", "--max-tokens", "2", "--log", "info"]);
    let output = by_environment.env("KIMI_BACKEND", "gpu").env("KIMI_ADAPTER", name).output().unwrap();
    assert!(output.status.success() && stderr(&output).contains(name), "{}", stderr(&output));
    let by_number = |number: &str| {
        let flags = ["run", "kimi-tiny", "--prompt", "Hi", "--max-tokens", "2", "--log", "info"];
        run(&[&flags[..], &["--backend", "gpu", "--adapter", number]].concat())
    };
    let first = by_number("0");
    assert!(first.status.success() && stderr(&first).contains(name), "{}", stderr(&first));
    let none = by_number("99");
    assert_eq!(none.status.code(), Some(1));
    let list = format!("asked for number 99, there is 0: {name} (");
    assert!(stderr(&none).contains(&list), "{}", stderr(&none));
}
