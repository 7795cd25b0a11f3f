//! Connections: accepting, limiting, timing out and shutting down.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;
use tower::ServiceBuilder;
use tower::util::option_layer;
use tower_http::cors::CorsLayer;

use super::auth::Keys;
use super::budget::Budget;
use super::config::HttpConfig;
use super::connections::{Connections, Place};
use super::engine::ServedModel;
use super::host::Names;
use super::peer::Peer;
use super::routes::{App, Client};
use super::{cors, front};
use crate::monitor::why_slow;

/// How long to wait after `accept` failed, mostly because too many files are open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Between two looks at what makes the server slow: some hundred steps.
const SPEED_WINDOW: Duration = Duration::from_secs(10);
/// How long the last words of answers that are cut short may take to be sent.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Largest head of a request, and most bytes that are read ahead of a connection.
const READ_BUFFER: usize = 64 << 10;

/// Serves the API until `shutdown` is ready. Then it accepts no more connections, lets the responses under way end
/// within [`HttpConfig::shutdown_grace`], and cuts the rest short with an error.
///
/// A request for a model names one of `models` by its id or an alias. A client that goes away cancels its request.
pub async fn serve(
    listener: TcpListener,
    models: Vec<ServedModel>,
    config: HttpConfig,
    shutdown: impl Future<Output = ()>,
) {
    let (end, ending) = watch::channel(false);
    let connections = Connections::new(config.max_connections, config.per_address());
    let loopback = is_loopback(&listener);
    let app = Arc::new(App::new(models, config.clone(), connections.clone(), loopback, ending));
    let cors = cors::layer(&config.cors);
    let mut watches = JoinSet::new();
    watches.spawn(watch_speed(app.clone()));
    let keys = app.clone();
    watches.spawn(async move { keys.keys.watch().await });
    let (stop, stopped) = watch::channel(());
    let mut tasks = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, from)) => match connections.admit(from.ip()) {
                Some(place) => {
                    let client = Client { peer: Peer::new(socket), place };
                    tasks.spawn(connection(app.clone(), client, cors.clone(), stopped.clone()));
                }
                None => tracing::debug!(%from, "refused a connection: all others are busy"),
            },
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while tasks.try_join_next().is_some() {}
    }
    drop(listener);
    stop.send_replace(());
    if !all_end(&mut tasks, config.shutdown_grace).await {
        tracing::warn!(open = tasks.len(), "cutting short the responses that have not ended");
        end.send_replace(true);
        all_end(&mut tasks, LAST_WORDS).await;
    }
    tasks.shutdown().await;
    watches.shutdown().await;
}

/// Looks now and then whether the server is slow. Says so in the log when that begins, and when the reason is another one.
async fn watch_speed(app: Arc<App>) {
    let mut before = app.snapshot();
    loop {
        tokio::time::sleep(SPEED_WINDOW).await;
        let now = app.snapshot();
        let slow = why_slow(&before, &now);
        let known = std::mem::replace(&mut *app.slow(), slow.clone());
        if let Some(slow) = slow.filter(|slow| slow.is_news(known.as_ref())) {
            tracing::warn!("slow: {}", slow.text);
        }
        before = now;
    }
}

impl App {
    fn new(
        models: Vec<ServedModel>,
        config: HttpConfig,
        connections: Arc<Connections>,
        loopback: bool,
        ending: watch::Receiver<bool>,
    ) -> Self {
        let (chats, waiting) = config.chats();
        let [chats, waiting] = [chats, waiting].map(|places| places.min(Semaphore::MAX_PERMITS));
        Self {
            budget: Budget::new(config.max_bodies_memory),
            chats: Arc::new(Semaphore::new(chats)),
            waiting: Arc::new(Semaphore::new(waiting)),
            metrics: Arc::default(),
            responses: Arc::default(),
            slow: Mutex::default(),
            began: Instant::now(),
            keys: Keys::new(&config),
            names: Names::new(&config.allow_hosts),
            connections,
            models,
            config,
            loopback,
            ending,
        }
    }
}

fn is_loopback(listener: &TcpListener) -> bool {
    listener.local_addr().is_ok_and(|addr| addr.ip().to_canonical().is_loopback())
}

/// Whether all tasks end in time.
async fn all_end(tasks: &mut JoinSet<()>, within: Duration) -> bool {
    let ended = async { while tasks.join_next().await.is_some() {} };
    tokio::time::timeout(within, ended).await.is_ok()
}

/// Serves one connection, request after request.
async fn connection(
    app: Arc<App>,
    client: Client,
    cors: Option<CorsLayer>,
    mut stopped: watch::Receiver<()>,
) {
    let Client { peer, place } = client.clone();
    peer.send_at_once();
    let config = app.config.clone();
    let mut socket = TimeoutStream::new(peer.clone());
    socket.set_write_timeout(Some(config.write_timeout));
    let guarded = {
        let app = app.clone();
        let guarded = move |request| front::guarded(app.clone(), client.clone(), request);
        ServiceBuilder::new().layer(option_layer(cors)).service_fn(guarded)
    };
    let answered = place.clone();
    let service =
        service_fn(move |request| front::answer(app.clone(), answered.clone(), guarded.clone(), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        .max_buf_size(READ_BUFFER)
        .half_close(true)
        .serve_connection(TokioIo::new(Box::pin(socket)), service);
    let mut connection = std::pin::pin!(connection);
    let useless = async {
        tokio::select! {
            () = peer.gone() => "it was reset",
            () = place.lost() => "another one needed its place",
            () = silent(&place, config.first_request_timeout) => "it sent no request",
        }
    };
    let mut useless = std::pin::pin!(useless);
    let mut stopping = false;
    loop {
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a connection ended early");
                }
                return;
            }
            why = useless.as_mut() => {
                tracing::debug!("a connection was closed: {why}");
                return;
            }
            _ = stopped.changed(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Waits until a connection has had its time for a first request.
async fn silent(place: &Place, timeout: Duration) {
    tokio::time::sleep(timeout).await;
    if place.has_asked() {
        std::future::pending::<()>().await;
    }
}
