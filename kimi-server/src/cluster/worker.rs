//! A worker: holds layers for one coordinator at a time.
//!
//! A second coordinator is refused while one is connected; when one leaves the next is served. The loaded layers stay,
//! so that a coordinator that comes back with the same assignment need not wait.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kimi_net::{Config, ErrorCode, ErrorReport, Event, Incoming, LinkError, Listener, Worker};
use tokio::sync::{Semaphore, oneshot};

use super::host::Host;

pub use super::config::WorkerConfig;
use super::wire;

/// Peers that may introduce themselves at the same time.
const MAX_GREETINGS: usize = 32;
/// Pause after a connection could not be accepted, mostly because too many files are open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serves coordinators, one after another, until the returned future is dropped.
///
/// # Errors
/// If the operating system gives no thread, or the thread that loads has ended by a fault of ours.
pub async fn serve(listener: Listener, config: WorkerConfig) -> std::io::Result<()> {
    let mut link = Config::new(config.node_id.clone());
    link.checkpoint = config.model.as_ref().map(|c| wire::to_description(c.description()));
    let (host, jobs) = Host::new(config);
    let (alive, mut ended) = oneshot::channel::<()>();
    let loader = host.clone();
    let load = move || {
        let _alive = alive; // dropped by a panic too
        loader.run(&jobs);
    };
    std::thread::Builder::new().name("kimi-worker".into()).spawn(load)?;
    let state = WorkerState { host, link, coordinator: Arc::default() };
    let greetings = Arc::new(Semaphore::new(MAX_GREETINGS));
    loop {
        let Ok(permit) = greetings.clone().acquire_owned().await else { return Ok(()) };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut ended => return Err(std::io::Error::other("the thread that loads has ended")),
        };
        match accepted {
            Ok(incoming) => {
                let state = state.clone();
                tokio::spawn(async move {
                    let peer = incoming.peer_addr();
                    let greeted = state.greet(incoming).await;
                    drop(permit);
                    match greeted {
                        Ok(Some((worker, lease))) => serve_link(worker, lease).await,
                        Ok(None) => {}
                        Err(error) => tracing::warn!(%peer, %error, "a peer was turned away"),
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What all connections share.
#[derive(Clone)]
struct WorkerState {
    host: Arc<Host>,
    link: Config,
    /// Name of the coordinator that is served.
    coordinator: Arc<Mutex<Option<String>>>,
}

/// The place of the one coordinator; free again when dropped.
struct CoordinatorLease {
    host: Arc<Host>,
    name: String,
    coordinator: Arc<Mutex<Option<String>>>,
}

impl Drop for CoordinatorLease {
    fn drop(&mut self) {
        *self.coordinator.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl WorkerState {
    /// Shakes hands, and turns a second coordinator away with the reason.
    async fn greet(&self, incoming: Incoming) -> Result<Option<(Worker, CoordinatorLease)>, LinkError> {
        let peer = incoming.peer_addr();
        let worker = incoming.handshake(self.link.clone()).await?;
        let name = format!("{} ({peer})", worker.peer().node_id);
        match self.take_lease(name.clone()) {
            Ok(lease) => Ok(Some((worker, lease))),
            Err(other) => {
                let text = format!(
                    "this worker serves coordinator {other}; stop that one first, or use another worker"
                );
                tracing::warn!(coordinator = name, "refused: {text}");
                // An error means that the peer has gone already.
                let _ = worker.sender().fail(ErrorReport::fatal(ErrorCode::Overloaded, text));
                Ok(None)
            }
        }
    }

    fn take_lease(&self, name: String) -> Result<CoordinatorLease, String> {
        let mut coordinator = self.coordinator.lock().unwrap_or_else(PoisonError::into_inner);
        match &*coordinator {
            Some(other) => Err(other.clone()),
            None => {
                *coordinator = Some(name.clone());
                Ok(CoordinatorLease { host: self.host.clone(), name, coordinator: self.coordinator.clone() })
            }
        }
    }
}

/// Does what a coordinator asks for, until the link ends.
async fn serve_link(mut worker: Worker, lease: CoordinatorLease) {
    let CoordinatorLease { host, name, .. } = &lease;
    tracing::info!(coordinator = name, "a coordinator has connected");
    let sender = worker.sender();
    loop {
        match worker.next().await {
            Ok(Event::Assigned(assign)) => host.load_later(assign, sender.clone()),
            Ok(Event::Forward(forward, payload)) => host.submit(forward, payload, &sender),
            Ok(Event::Activity(active)) => host.set_active(active),
            Ok(_) => {}
            Err(reason) => {
                tracing::info!(coordinator = name, %reason, "the coordinator has left");
                break;
            }
        }
    }
    host.set_active(false);
}
