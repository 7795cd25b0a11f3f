//! A loaded model behind the HTTP API.

use std::future::Future;
use std::net::SocketAddr;

use anyhow::Context;
use kimi_core::chat_model::{ChatError, ChatModel, ChatRequest};
use kimi_core::checkpoint::Checkpoint;
use kimi_core::engine::{EngineError, EngineStats};
use kimi_core::plan::Plan;

use crate::http::{self, ChatEngine, EventSink, HttpConfig, Running, ServedModel};
use crate::placement::layer_text;

/// A model under the name that people gave it, which need not be its folder's.
struct Named {
    id: String,
    model: ChatModel,
    /// The checkpoint, where this process computes from its mapped files.
    mapped: Option<Checkpoint>,
}

impl Named {
    /// What happened to a file that answers are computed from.
    fn changed(&self) -> Option<String> {
        let changed = self.mapped.as_ref()?.changed_shard()?;
        Some(format!("{changed}, so that answers would be wrong; put the file back and start kimi again"))
    }
}

impl ChatEngine for Named {
    fn id(&self) -> &str {
        &self.id
    }

    fn context_tokens(&self) -> usize {
        self.model.context_tokens()
    }

    fn stats(&self) -> EngineStats {
        self.model.stats()
    }

    fn down(&self) -> Option<String> {
        ChatEngine::down(&self.model).or_else(|| self.changed())
    }

    fn chat(&self, request: ChatRequest, sink: EventSink) -> Result<Box<dyn Running>, ChatError> {
        match self.changed() {
            Some(reason) => Err(EngineError::Down { reason }.into()),
            None => ChatEngine::chat(&self.model, request, sink),
        }
    }
}

/// The model as the API serves it: under `id` and its folder's name, with its stages and their devices as `/health` shows
/// them. `mapped` is the checkpoint where this process computes from its mapped files: if one of those changes, the model is
/// unavailable.
pub fn served(
    id: &str,
    model: ChatModel,
    plan: &Plan,
    devices: &[String],
    mapped: Option<Checkpoint>,
) -> ServedModel {
    let folder = model.id().to_owned();
    let stages = plan.stages.iter().zip(devices);
    let stages =
        stages.map(|(s, device)| format!("{}: layers {} on {device}", s.node, layer_text(&s.layers())));
    let aliases = if folder == id { Vec::new() } else { vec![folder] };
    ServedModel::new(Named { id: id.to_owned(), model, mapped }).with_aliases(aliases).with_stages(stages)
}

/// A socket that listens for the API, before a model is loaded: a port in use shows at once.
///
/// # Errors
/// The system's; or without `insecure` an address that others can reach.
pub fn bind(addr: SocketAddr, insecure: bool) -> anyhow::Result<std::net::TcpListener> {
    anyhow::ensure!(
        insecure || addr.ip().to_canonical().is_loopback(),
        "{addr} is not a loopback address, and the API is not encrypted and asks for no key yet: whoever can reach it \
         can use it. Use 127.0.0.1 or pass --insecure on a network that you trust"
    );
    let listener = std::net::TcpListener::bind(addr)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves until `shutdown` is ready.
///
/// # Errors
/// If the socket can't be used.
pub async fn serve(
    listener: std::net::TcpListener,
    model: ServedModel,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener).context("can't use the socket of the API")?;
    http::serve(listener, vec![model], HttpConfig::default(), shutdown).await;
    Ok(())
}
