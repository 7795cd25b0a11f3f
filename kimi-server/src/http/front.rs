//! What every request passes before its route, from the outside in: its id and its line in the log, browsers' questions about
//! origins ([`cors`](super::cors)), the host's name, the page, and the key.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::header::HeaderName;
use hyper::{Request, Response};
use tower::{Service, ServiceExt};

use super::connections::{Phase, Place};
use super::record::{self, Record};
use super::routes::{App, Client, handle};
use super::{Body, error, host, page, request_id};

/// Answers one request with `inner`, and gives it an id and a line in the log.
pub(super) async fn answer<S>(
    app: Arc<App>,
    place: Place,
    inner: S,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible>
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>,
{
    let id = request_id::of(request.headers());
    let path = request.uri().path().to_owned();
    let record = Record::new(id.clone(), request.method().clone(), &path, app.config.log_prompts);
    let exchange = Exchange { _busy: Busy::begin(&place), record: record.clone() };
    let mut response = record.during(inner.oneshot(request)).await?;
    app.metrics.response(&path, response.status());
    record.status(response.status());
    let headers = response.headers_mut();
    if path.starts_with("/v1/messages") {
        headers.insert(HeaderName::from_static(request_id::ANTHROPIC_HEADER), id.clone());
    }
    headers.insert(HeaderName::from_static(request_id::HEADER), id);
    Ok(response.map(|body| Body::new(UntilSent { body: Some(body), exchange })))
}

/// Lets a request through to its route: it names this server, and its key is good.
pub(super) async fn guarded(
    app: Arc<App>,
    client: Client,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path();
    if let Err(error) = host::check(&request, app.loopback.then_some(&app.names)) {
        return Ok(error::response_at(path, &error));
    }
    if let Some(response) = page::response(&request, &app) {
        return Ok(response);
    }
    match app.keys.admit(&request, Instant::now()) {
        Ok(admitted) => admitted.into_iter().for_each(record::admitted),
        Err(error) => return Ok(error::response_at(path, &error)),
    }
    handle(app, client, request).await
}

/// A request under way: it is logged when this is dropped, which is when its response is sent or its client has left.
struct Exchange {
    record: Arc<Record>,
    _busy: Busy,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.record.end();
    }
}

/// A connection that has a request; quiet again when this is dropped.
struct Busy(Place);

impl Busy {
    fn begin(place: &Place) -> Self {
        place.set(Phase::Sending);
        Self(place.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.set(Phase::Quiet);
    }
}

/// A response's body, with what lasts until it is sent.
struct UntilSent {
    /// `None` only while it is dropped.
    body: Option<Body>,
    exchange: Exchange,
}

impl hyper::body::Body for UntilSent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let record = self.exchange.record.clone();
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = record.at(|| Pin::new(&mut *body).poll_frame(cx));
        // hyper does not ask again after the last frame of a body whose length it knows.
        if matches!(frame, Poll::Ready(None)) || (frame.is_ready() && body.is_end_stream()) {
            record.complete();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(hyper::body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, hyper::body::Body::size_hint)
    }
}

impl Drop for UntilSent {
    fn drop(&mut self) {
        let body = self.body.take();
        if body.as_ref().is_some_and(hyper::body::Body::is_end_stream) {
            self.exchange.record.complete(); // an empty one, which nobody polls
        }
        // An answer that is cancelled here is this request's.
        self.exchange.record.at(|| drop(body));
    }
}
