//! Taking in a request's body.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};
use tokio::time::timeout;

use super::budget::{BodyShare, Budget};
use super::config::HttpConfig;
use super::error::ApiError;
use super::record;

/// Bytes by which the memory for a body grows, at least and at most; in between by a quarter.
const GROWTH: std::ops::RangeInclusive<usize> = 16 << 10..=1 << 20;

/// A whole body, and its share of the server's memory for bodies.
#[derive(Debug)]
pub(super) struct WholeBody {
    pub(super) bytes: Vec<u8>,
    pub(super) share: BodyShare,
}

/// A request's whole body of JSON, within the server's limits.
///
/// # Errors
/// 415, 413, 408; 503 if other bodies take the memory for all of them; 400 if it is not whole.
pub(super) async fn read(
    request: Request<Incoming>,
    config: &HttpConfig,
    budget: &Budget,
) -> Result<WholeBody, ApiError> {
    check_content_type(request.headers())?;
    let body = request.into_body();
    if body.size_hint().lower() > config.max_body_bytes as u64 {
        return Err(ApiError::too_large(config.max_body_bytes));
    }
    match timeout(config.body_timeout, collect(body, config.max_body_bytes, budget)).await {
        Ok(body) => body.inspect(|body| record::prompt(&body.bytes)),
        Err(_) => Err(ApiError::slow_body(config.body_timeout.as_secs())),
    }
}

/// Holds no more than what has come, rounded up: what a client announces costs it nothing.
async fn collect(mut body: Incoming, limit: usize, budget: &Budget) -> Result<WholeBody, ApiError> {
    let announced = body.size_hint().exact().and_then(|size| usize::try_from(size).ok());
    let mut whole = WholeBody { bytes: Vec::new(), share: budget.body() };
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            ApiError::invalid("incomplete_body", format!("the request's body is not whole: {error}"))
        })?;
        if let Ok(data) = frame.into_data() {
            whole.push(&data, announced.unwrap_or(usize::MAX), limit)?;
        }
    }
    Ok(whole)
}

impl WholeBody {
    fn push(&mut self, data: &Bytes, announced: usize, limit: usize) -> Result<(), ApiError> {
        let needed = self.bytes.len() + data.len();
        if needed > limit {
            return Err(ApiError::too_large(limit));
        }
        if needed > self.bytes.capacity() {
            let more = (needed / 4).clamp(*GROWTH.start(), *GROWTH.end());
            let mut capacity = (needed + more).min(announced.max(needed));
            if self.share.cover(capacity).is_err() {
                capacity = needed;
                self.share.cover(capacity)?;
            }
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(data);
        Ok(())
    }
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let encoding = headers.get(CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("not text").trim());
    if let Some(encoding) =
        encoding.filter(|found| !found.is_empty() && !found.eq_ignore_ascii_case("identity"))
    {
        return Err(ApiError::content_encoding(encoding));
    }
    let found = headers.get(CONTENT_TYPE).map(|value| value.to_str().unwrap_or("not text"));
    let kind = found.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    match kind.eq_ignore_ascii_case("application/json") {
        true => Ok(()),
        false => Err(ApiError::content_type(found)),
    }
}
