//! A worker: holds layers for one coordinator at a time.
//!
//! A second coordinator is refused while one is connected; when one leaves the next is served. One of the same name takes the
//! place of the one that is connected: it is the same one, whose connection broke or which was started again, and the end of
//! its old connection may not be known yet. The loaded layers stay, so that a coordinator that comes back with the same
//! assignment need not wait, and the caches stay, so that it can go on with them.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kimi_net::{Config, ErrorCode, ErrorReport, Event, Incoming, LinkError, Listener, Role, Worker};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::AbortHandle;

use super::host::{Host, status};
use crate::monitor::ProcessState;

pub use super::config::WorkerConfig;

/// Peers that may introduce themselves at the same time, each with some 64 KiB of buffers. One more takes the place of the one
/// that has been at it for longest, so that peers who say nothing keep nobody out.
const MAX_GREETINGS: usize = 128;
/// Observers that are answered at the same time.
const MAX_OBSERVERS: usize = 8;
/// How long a worker that is stopped takes to say goodbye.
const GOODBYE_TIME: Duration = Duration::from_secs(2);
/// Pause after a connection could not be accepted, mostly because too many files are open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Between two looks at what this machine pages in; coordinators are told with every answer to a ping.
const PAGING_LOOK: Duration = Duration::from_secs(2);

/// Serves coordinators, one after another, until `stop` is ready; then says goodbye to the one that is connected.
///
/// # Errors
/// If the operating system gives no thread, or the thread that loads has ended by a fault of ours.
pub async fn serve(
    listener: Listener,
    config: WorkerConfig,
    stop: impl Future<Output = ()>,
) -> std::io::Result<()> {
    let node_id = config.node_id.clone();
    let (host, jobs) = Host::new(config);
    let link = Config { progress: host.progress(), ..Config::new(node_id) };
    let paged_in = link.paged_in.clone();
    let mut process = ProcessState::now();
    let mut look = tokio::time::interval(PAGING_LOOK);
    let (alive, mut ended) = oneshot::channel::<()>();
    let loader = host.clone();
    let load = move || {
        let _alive = alive; // dropped by a panic too
        loader.run(&jobs);
    };
    std::thread::Builder::new().name("kimi-worker".into()).spawn(load)?;
    let (stopping, stopped) = watch::channel(());
    let observers = Arc::new(Semaphore::new(MAX_OBSERVERS));
    let state = WorkerState { host, link, coordinator: Arc::default(), observers, stopped };
    let mut greetings = VecDeque::new();
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = look.tick() => {
                let now = ProcessState::now();
                paged_in.fetch_add(now.paged_in_since(&process), Ordering::Relaxed);
                process = now;
                continue;
            }
            _ = &mut ended => return Err(std::io::Error::other("the thread that loads has ended")),
            () = &mut stop => break,
        };
        match accepted {
            Ok(incoming) => {
                greetings.retain(|greeting: &AbortHandle| !greeting.is_finished());
                if greetings.len() >= MAX_GREETINGS
                    && let Some(oldest) = greetings.pop_front()
                {
                    oldest.abort();
                }
                greetings.push_back(tokio::spawn(state.clone().serve_peer(incoming)).abort_handle());
            }
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    greetings.iter().for_each(AbortHandle::abort);
    drop(state);
    // Links hold a receiver each; the coordinator that is connected is told by its link's task. Receivers that stay longer
    // belong to peers that do not read.
    let _ = stopping.send(());
    let _ = tokio::time::timeout(GOODBYE_TIME, stopping.closed()).await;
    Ok(())
}

/// What all connections share.
#[derive(Clone)]
struct WorkerState {
    host: Arc<Host>,
    link: Config,
    /// The coordinator that is served.
    coordinator: Arc<Mutex<Option<Served>>>,
    observers: Arc<Semaphore>,
    /// Changes when the worker is stopped.
    stopped: watch::Receiver<()>,
}

/// The coordinator that has the place.
struct Served {
    node_id: String,
    peer: SocketAddr,
    /// Is told the address of the one that takes the place over.
    evict: oneshot::Sender<SocketAddr>,
    /// Disconnected when the place is free.
    left: watch::Receiver<()>,
}

impl Served {
    /// For people.
    fn name(&self) -> String {
        format!("{} ({})", self.node_id, self.peer)
    }
}

/// The place of the one coordinator; free again when dropped.
struct CoordinatorLease {
    host: Arc<Host>,
    name: String,
    coordinator: Arc<Mutex<Option<Served>>>,
    evicted: oneshot::Receiver<SocketAddr>,
    _here: watch::Sender<()>,
}

impl Drop for CoordinatorLease {
    fn drop(&mut self) {
        *self.coordinator.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl WorkerState {
    /// Greets a peer, and serves it in a task of its own if it is the coordinator.
    async fn serve_peer(self, incoming: Incoming) {
        let peer = incoming.peer_addr();
        match self.greet(incoming).await {
            Ok(Some((worker, lease))) => drop(tokio::spawn(serve_link(worker, lease, self.stopped))),
            Ok(None) => {}
            Err(error) => tracing::warn!(%peer, %error, "a peer was turned away"),
        }
    }

    /// Shakes hands, and turns a second coordinator away with the reason.
    async fn greet(&self, incoming: Incoming) -> Result<Option<(Worker, CoordinatorLease)>, LinkError> {
        let peer = incoming.peer_addr();
        let worker = incoming.handshake(self.link.clone()).await?;
        if worker.peer().role == Role::Observer {
            self.answer_observer(worker);
            return Ok(None);
        }
        match self.take_lease(&worker.peer().node_id, peer).await {
            Ok(lease) => Ok(Some((worker, lease))),
            Err(other) => {
                let text = format!(
                    "this worker serves coordinator {other}; stop that one first, or use another worker"
                );
                tracing::warn!(coordinator = worker.peer().node_id, %peer, "refused: {text}");
                // An error means that the peer has gone already.
                let _ = worker.sender().fail(ErrorReport::fatal(ErrorCode::Overloaded, text));
                Ok(None)
            }
        }
    }

    /// Tells an observer what it asks, in a task of its own.
    fn answer_observer(&self, observer: Worker) {
        let Ok(permit) = self.observers.clone().try_acquire_owned() else {
            let text = format!("{MAX_OBSERVERS} others look at this worker already; try again");
            // An error means that the observer has gone already.
            return drop(observer.sender().fail(ErrorReport::fatal(ErrorCode::Overloaded, text)));
        };
        let (host, coordinator) = (self.host.clone(), self.coordinator.clone());
        let served = move || {
            let coordinator = coordinator.lock().unwrap_or_else(PoisonError::into_inner);
            coordinator.as_ref().map(Served::name)
        };
        tokio::spawn(async move {
            status::answer(observer, host, served).await;
            drop(permit);
        });
    }

    /// Takes the place, from one of the same name if need be.
    ///
    /// # Errors
    /// Who has it.
    async fn take_lease(&self, node_id: &str, peer: SocketAddr) -> Result<CoordinatorLease, String> {
        let name = format!("{node_id} ({peer})");
        loop {
            let mut left = {
                let mut coordinator = self.coordinator.lock().unwrap_or_else(PoisonError::into_inner);
                match coordinator.take() {
                    None => {
                        let (evict, evicted) = oneshot::channel();
                        let (here, left) = watch::channel(());
                        *coordinator = Some(Served { node_id: node_id.to_owned(), peer, evict, left });
                        let (host, coordinator) = (self.host.clone(), self.coordinator.clone());
                        return Ok(CoordinatorLease { host, name, coordinator, evicted, _here: here });
                    }
                    Some(served) if served.node_id != node_id || served.evict.is_closed() => {
                        let other = served.name();
                        *coordinator = Some(served);
                        return Err(other);
                    }
                    Some(Served { node_id, peer: before, evict, left }) => {
                        // Fails if it leaves at this moment anyway.
                        let _ = evict.send(peer);
                        let (evict, _) = oneshot::channel(); // only one takes the place of one
                        *coordinator = Some(Served { node_id, peer: before, evict, left: left.clone() });
                        left
                    }
                }
            };
            // An error: nothing is ever sent, the sender is dropped with the lease.
            let _ = left.changed().await;
        }
    }
}

/// Does what a coordinator asks for, until the link ends.
async fn serve_link(mut worker: Worker, mut lease: CoordinatorLease, mut stopped: watch::Receiver<()>) {
    let CoordinatorLease { host, name, evicted, .. } = &mut lease;
    tracing::info!(coordinator = name, "a coordinator has connected");
    let sender = worker.sender();
    loop {
        let event = tokio::select! {
            biased;
            by = &mut *evicted => {
                let by = by.map_or_else(|_| "another address".to_owned(), |by| by.to_string());
                let text = format!("a coordinator of the same name has taken this worker over, from {by}");
                tracing::info!(coordinator = name, "{text}");
                // An error means that the link is over, which is what is wanted.
                let _ = sender.fail(ErrorReport::fatal(ErrorCode::Replaced, text));
                break;
            }
            // An error too: whoever would say it has ended.
            _ = stopped.changed() => {
                host.set_active(false);
                return worker.close("the worker was stopped").await;
            }
            event = worker.next() => event,
        };
        match event {
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
