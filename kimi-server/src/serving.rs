//! A model behind the HTTP API, from before it is loaded.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use kimi_core::chat_model::{ChatError, ChatModel, ChatRequest, ModelDefaults};
use kimi_core::checkpoint::Checkpoint;
use kimi_core::engine::{EngineError, EngineStats, StageStats};
use kimi_core::plan::Plan;

use crate::cluster::{ClusterStatus, Loading};
use crate::http::{self, ChatEngine, EventSink, HttpConfig, Running, ServedModel, StageInfo};
use crate::placement::layer_text;
use crate::rates::{self, Split};

/// The place of a model in the API, under the name that people gave it, which need not be its folder's. Until the model is
/// there the API says how far loading is. Clones share it.
#[derive(Debug, Clone)]
pub struct Slot(Arc<Place>);

#[derive(Debug)]
struct Place {
    id: String,
    aliases: Vec<String>,
    context_tokens: usize,
    defaults: ModelDefaults,
    status: ClusterStatus,
    plan: OnceLock<Plan>,
    loaded: OnceLock<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    model: ChatModel,
    /// Each stage's device, for people.
    devices: Vec<String>,
    /// The checkpoint, where this process computes from its mapped files.
    mapped: Option<Checkpoint>,
}

impl Slot {
    /// A place for a model that will be served under `names`, the first of which is its id, with a context of so many tokens,
    /// and with tokens chosen by `defaults` where requests don't say. `status` tells what its nodes do.
    pub fn new(
        names: &[String],
        context_tokens: usize,
        defaults: ModelDefaults,
        status: ClusterStatus,
    ) -> Self {
        let (id, aliases) =
            names.split_first().map_or_else(Default::default, |(id, rest)| (id.clone(), rest.to_vec()));
        Self(Arc::new(Place {
            id,
            aliases,
            context_tokens,
            defaults,
            status,
            plan: OnceLock::new(),
            loaded: OnceLock::new(),
        }))
    }

    /// Says which stages there will be.
    pub fn planned(&self, plan: &Plan) {
        self.0.plan.get_or_init(|| plan.clone());
    }

    /// Has the model answer from now on. `devices` are those of its stages; `mapped` is the checkpoint where this process
    /// computes from its mapped files: if one of those changes, the model is unavailable.
    pub fn loaded(&self, model: ChatModel, devices: Vec<String>, mapped: Option<Checkpoint>) {
        self.0.loaded.get_or_init(|| Loaded { model, devices, mapped });
    }

    /// The model, when it is there.
    pub fn model(&self) -> Option<&ChatModel> {
        Some(&self.0.loaded.get()?.model)
    }

    /// How fast its nodes are, once enough answers have shown it; `None` where there is one node.
    pub fn measured(&self) -> Option<Split> {
        let stats = self.model()?.stats();
        let single =
            |stage: &StageStats| (stage.single.steps, stage.single.mean().unwrap_or_default().as_secs_f64());
        rates::measured(self.0.plan.get()?, &stats.stages.iter().map(single).collect::<Vec<_>>())
    }

    /// The model for the API.
    pub fn served(&self) -> ServedModel {
        ServedModel::new(self.clone()).with_aliases(self.0.aliases.iter().cloned())
    }

    /// The model, if it can answer.
    fn able(&self) -> Result<&ChatModel, ChatError> {
        match self.changed() {
            Some(reason) => Err(EngineError::Down { reason }.into()),
            None => self.model().ok_or_else(not_loaded),
        }
    }

    /// What happened to a file that answers are computed from.
    fn changed(&self) -> Option<String> {
        let changed = self.0.loaded.get()?.mapped.as_ref()?.changed_shard()?;
        Some(format!("{changed}, so that answers would be wrong; put the file back and start kimi again"))
    }
}

impl ChatEngine for Slot {
    fn id(&self) -> &str {
        &self.0.id
    }

    fn context_tokens(&self) -> usize {
        self.0.context_tokens
    }

    fn stats(&self) -> EngineStats {
        self.model().map(ChatModel::stats).unwrap_or_default()
    }

    fn down(&self) -> Option<String> {
        self.model().and_then(ChatEngine::down).or_else(|| self.changed())
    }

    fn loading(&self) -> Option<Loading> {
        self.model().is_none().then(|| self.0.status.loading().unwrap_or_default())
    }

    fn stages(&self) -> Vec<StageInfo> {
        let Place { plan, loaded, status, .. } = &*self.0;
        let stages = plan.get().map(|plan| plan.stages.as_slice()).unwrap_or_default();
        let info = |(i, stage): (usize, &kimi_core::plan::PlannedStage)| {
            let device = loaded.get().and_then(|loaded| loaded.devices.get(i));
            let device = device.map_or(String::new(), |device| format!(" on {device}"));
            let holds = format!("{}: layers {}{device}", stage.node, layer_text(&stage.layers()));
            StageInfo {
                holds,
                name: stage.node.clone(),
                layers: stage.layers(),
                bytes: stage.weight_bytes + stage.cache_bytes,
                node: status.get(&stage.node),
            }
        };
        stages.iter().enumerate().map(info).collect()
    }

    fn defaults(&self) -> ModelDefaults {
        self.0.defaults
    }

    fn tokens(&self, request: &ChatRequest) -> Result<Vec<u32>, ChatError> {
        ChatEngine::tokens(self.model().ok_or_else(not_loaded)?, request)
    }

    fn text(&self, tokens: &[u32]) -> Result<String, ChatError> {
        ChatEngine::text(self.model().ok_or_else(not_loaded)?, tokens)
    }

    fn chat(&self, request: ChatRequest, sink: EventSink) -> Result<Box<dyn Running>, ChatError> {
        ChatEngine::chat(self.able()?, request, sink)
    }

    fn choices(
        &self,
        request: ChatRequest,
        sinks: Vec<EventSink>,
    ) -> Result<Vec<Box<dyn Running>>, ChatError> {
        ChatEngine::choices(self.able()?, request, sinks)
    }
}

fn not_loaded() -> ChatError {
    EngineError::Down { reason: "it is not loaded yet".to_owned() }.into()
}

/// A socket that listens for the API, before a model is loaded: a port in use shows at once.
///
/// # Errors
/// The system's; or without `open`, which is with keys or by the user's will, an address that others can reach.
pub fn bind(addr: SocketAddr, open: bool) -> anyhow::Result<std::net::TcpListener> {
    anyhow::ensure!(
        open || addr.ip().to_canonical().is_loopback(),
        "{addr} is not a loopback address, and there are no API keys: whoever can reach it could use it. Make a key with \
         `kimi api-key new NAME`, or use 127.0.0.1, or pass --open-api on a network that you trust"
    );
    let listener = std::net::TcpListener::bind(addr)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves within the limits of `config` until `shutdown` is ready.
///
/// # Errors
/// If the socket can't be used.
pub async fn serve(
    listener: std::net::TcpListener,
    model: ServedModel,
    config: HttpConfig,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener).context("can't use the socket of the API")?;
    http::serve(listener, vec![model], config, shutdown).await;
    Ok(())
}
