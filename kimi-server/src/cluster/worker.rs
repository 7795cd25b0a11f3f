//! A worker: holds layers for one coordinator at a time.
//!
//! A second coordinator is refused while one is connected; when one leaves the next is served. The loaded layers stay,
//! so that a coordinator that comes back with the same assignment need not wait.

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use kimi_net::{Config, ErrorCode, ErrorReport, Event, Fingerprint, Incoming, LinkError, Listener, Worker};
use tokio::sync::{Semaphore, oneshot};

pub use super::config::WorkerConfig;
use super::host::{Host, Job, Session, Work};

/// Peers that may introduce themselves at the same time.
const MAX_GREETINGS: usize = 32;
/// Pause after a connection could not be accepted, mostly because too many files are open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serves coordinators, one after another, until the returned future is dropped.
///
/// # Errors
/// If the operating system gives no thread, or the thread that computes has ended by a fault of ours.
pub async fn serve(listener: Listener, config: WorkerConfig) -> std::io::Result<()> {
    let mut link = Config::new(config.node_id.clone());
    link.fingerprint = config.model.as_ref().map(|c| Fingerprint(c.fingerprint()));
    let (jobs, source) = mpsc::channel();
    let host = Host::new(config);
    let (alive, mut ended) = oneshot::channel::<()>();
    let compute = move || {
        let _alive = alive; // dropped by a panic too
        host.run(&source);
    };
    std::thread::Builder::new().name("kimi-worker".into()).spawn(compute)?;
    let office = Office { jobs, link, coordinator: Arc::default() };
    let greetings = Arc::new(Semaphore::new(MAX_GREETINGS));
    loop {
        let Ok(permit) = greetings.clone().acquire_owned().await else { return Ok(()) };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut ended => return Err(std::io::Error::other("the thread that computes has ended")),
        };
        match accepted {
            Ok(incoming) => {
                let office = office.clone();
                tokio::spawn(async move {
                    let peer = incoming.peer_addr();
                    let greeted = office.greet(incoming).await;
                    drop(permit);
                    match greeted {
                        Ok(Some((worker, desk))) => attend(worker, desk).await,
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
struct Office {
    jobs: mpsc::Sender<Job>,
    link: Config,
    /// Name of the coordinator that is served.
    coordinator: Arc<Mutex<Option<String>>>,
}

/// The place of the one coordinator; free again when dropped.
struct Desk {
    jobs: mpsc::Sender<Job>,
    name: String,
    coordinator: Arc<Mutex<Option<String>>>,
}

impl Drop for Desk {
    fn drop(&mut self) {
        *self.coordinator.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Office {
    /// Shakes hands, and turns a second coordinator away with the reason.
    async fn greet(&self, incoming: Incoming) -> Result<Option<(Worker, Desk)>, LinkError> {
        let peer = incoming.peer_addr();
        let worker = incoming.handshake(self.link.clone()).await?;
        let name = format!("{} ({peer})", worker.peer().node_id);
        match self.take_desk(name.clone()) {
            Ok(desk) => Ok(Some((worker, desk))),
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

    fn take_desk(&self, name: String) -> Result<Desk, String> {
        let mut coordinator = self.coordinator.lock().unwrap_or_else(PoisonError::into_inner);
        match &*coordinator {
            Some(other) => Err(other.clone()),
            None => {
                *coordinator = Some(name.clone());
                Ok(Desk { jobs: self.jobs.clone(), name, coordinator: self.coordinator.clone() })
            }
        }
    }
}

/// Passes a coordinator's wishes to the thread that computes, until the link ends.
async fn attend(mut worker: Worker, desk: Desk) {
    tracing::info!(coordinator = desk.name, "a coordinator has connected");
    let session = Session::new(worker.sender());
    loop {
        let work = match worker.next().await {
            Ok(Event::Assigned(assign)) => Work::Load(assign),
            Ok(Event::Forward(forward, payload)) => Work::Step(forward, payload, Instant::now()),
            Ok(_) => continue,
            Err(reason) => {
                tracing::info!(coordinator = desk.name, %reason, "the coordinator has left");
                break;
            }
        };
        if desk.jobs.send(Job { work, session: session.clone() }).is_err() {
            break;
        }
    }
    session.end();
}
