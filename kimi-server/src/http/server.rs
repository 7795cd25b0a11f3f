//! Connections: accepting, limiting, timing out and shutting down.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;
use tower::util::option_layer;
use tower::{Service, ServiceBuilder};

use super::config::HttpConfig;
use super::engine::ServedModel;
use super::routes::{App, handle};

/// How long to wait after `accept` failed, mostly because too many files are open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serves the API until `shutdown` is ready. Then it accepts no more connections, lets the responses under way end
/// within [`HttpConfig::shutdown_grace`], and cancels the rest.
///
/// A request for a model names one of `models` by its id or an alias. A client that goes away cancels its request.
pub async fn serve(
    listener: TcpListener,
    models: Vec<ServedModel>,
    config: HttpConfig,
    shutdown: impl Future<Output = ()>,
) {
    let slots = Arc::new(Semaphore::new(config.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    let loopback = listener.local_addr().is_ok_and(|addr| addr.ip().to_canonical().is_loopback());
    let app = Arc::new(App { models, config: config.clone(), loopback });
    let service = ServiceBuilder::new()
        .layer(option_layer(config.cors.layer()))
        .service_fn(move |request| handle(app.clone(), request));
    let (stop, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        match accepted {
            Ok((socket, slot)) => {
                connections.spawn(connection(socket, slot, service.clone(), config.clone(), stopped.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    stop.send_replace(());
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(config.shutdown_grace, ended).await.is_err() {
        tracing::warn!(open = connections.len(), "closing connections whose responses have not ended");
    }
    connections.shutdown().await;
}

/// The next connection, once there is room for it.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (socket, _) = listener.accept().await?;
    Ok((socket, slot))
}

/// Serves one connection, request after request.
async fn connection<S>(
    socket: TcpStream,
    _slot: OwnedSemaphorePermit,
    service: S,
    config: HttpConfig,
    mut stopped: watch::Receiver<()>,
) where
    S: Service<Request<Incoming>, Response = Response<super::Body>> + Clone,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "can't set TCP_NODELAY: tokens may arrive in bunches");
    }
    let mut socket = TimeoutStream::new(socket);
    socket.set_write_timeout(Some(config.write_timeout));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        .serve_connection(TokioIo::new(Box::pin(socket)), TowerToHyperService::new(service));
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended early");
    }
}
