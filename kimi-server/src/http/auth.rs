//! Who may use the API, and how much of it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use hyper::header::{AUTHORIZATION, HeaderMap};
use hyper::{Method, Request};

use super::config::HttpConfig;
use super::error::ApiError;
use super::page;
use crate::api_keys::{self, ApiKey};

/// Between two looks at whether the file of keys has changed.
const LOOK: Duration = Duration::from_secs(1);
/// What limits count by.
const MINUTE: f64 = 60.0;

/// The keys that are good at the moment.
#[derive(Debug)]
pub(super) struct Keys {
    /// Those of the command line.
    fixed: Vec<ApiKey>,
    file: Option<PathBuf>,
    /// Whether `/metrics` needs no key.
    open_metrics: bool,
    holders: RwLock<Vec<Arc<Holder>>>,
}

/// Who has a key, and what is left of its limits.
#[derive(Debug)]
struct Holder {
    key: ApiKey,
    chats: AtomicU32,
    requests: Mutex<Bucket>,
    tokens: Mutex<Bucket>,
}

/// A request of someone who may make it. Dropping it gives back its place among the key's chats.
#[derive(Debug)]
pub(super) struct Admitted {
    holder: Arc<Holder>,
    is_chat: bool,
}

impl Keys {
    pub(super) fn new(config: &HttpConfig) -> Self {
        let (fixed, file) = (config.api_keys.clone(), config.api_key_file.clone());
        let keys = Self { fixed, file, open_metrics: config.open_metrics, holders: RwLock::default() };
        keys.read();
        keys
    }

    /// Reads the file again whenever it changes: a key that is revoked ends within seconds, and the server goes on.
    pub(super) async fn watch(&self) {
        let mut seen = self.stamp();
        while self.file.is_some() {
            tokio::time::sleep(LOOK).await;
            let now = self.stamp();
            if now != seen {
                self.read();
                seen = now;
            }
        }
    }

    fn stamp(&self) -> Option<(Option<SystemTime>, u64)> {
        let metadata = std::fs::metadata(self.file.as_ref()?).ok()?;
        Some((metadata.modified().ok(), metadata.len()))
    }

    /// Takes the file's keys. Those that were there go on with what is left of their limits.
    fn read(&self) {
        let listed = match self.file.as_ref().map(|file| api_keys::read(file)).transpose() {
            Ok(listed) => listed.unwrap_or_default(),
            Err(error) => {
                tracing::error!("{error}; the keys that were read before stay good");
                return;
            }
        };
        let mut holders = self.holders.write().unwrap_or_else(PoisonError::into_inner);
        let holder = |key: &ApiKey| {
            let known = holders.iter().find(|known| known.key == *key).cloned();
            known.unwrap_or_else(|| Arc::new(Holder::new(key.clone())))
        };
        let all: Vec<_> = self.fixed.iter().chain(&listed).map(holder).collect();
        *holders = all;
    }

    /// Whether everybody may use the API.
    fn is_open(&self) -> bool {
        self.fixed.is_empty() && self.file.is_none()
    }

    /// Lets a request in: `None` where it needs no key.
    ///
    /// # Errors
    /// 401 without a good key, 429 beyond its limits.
    pub(super) fn admit<B>(&self, request: &Request<B>, now: Instant) -> Result<Option<Admitted>, ApiError> {
        let path = request.uri().path();
        let needs_none =
            path == "/health" || page::is_page(path) || (self.open_metrics && path == "/metrics");
        if self.is_open() || needs_none {
            return Ok(None);
        }
        let given: Vec<_> = given(request.headers()).map(blake3::hash).collect();
        let holders = self.holders.read().unwrap_or_else(PoisonError::into_inner);
        // All are compared, so that the time tells nothing.
        let matching = holders.iter().filter(|holder| given.iter().any(|hash| holder.key.matches(hash)));
        let found = matching.fold(None, |_, holder| Some(holder));
        let Some(holder) = found.cloned() else {
            return Err(ApiError::key(!given.is_empty()));
        };
        drop(holders);
        let is_chat = request.method() == Method::POST;
        if is_chat {
            holder.take(now)?;
        }
        Ok(Some(Admitted { holder, is_chat }))
    }
}

/// The keys that a request gives, as OpenAI's and as Anthropic's clients send them.
fn given(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let bearer = headers.get_all(AUTHORIZATION).into_iter().filter_map(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked("bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
    });
    let own = headers.get_all("x-api-key").into_iter().map(|value| value.as_bytes());
    bearer.chain(own).map(<[u8]>::trim_ascii).filter(|key| !key.is_empty())
}

impl Admitted {
    /// Name of the key.
    pub(super) fn name(&self) -> &str {
        &self.holder.key.name
    }

    /// Counts the tokens that a request took.
    pub(super) fn spend(&self, tokens: u64, now: Instant) {
        if let Some(limit) = self.holder.key.limits.tokens {
            lock(&self.holder.tokens).spend(limit, tokens as f64, now);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if self.is_chat {
            self.holder.chats.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Holder {
    fn new(key: ApiKey) -> Self {
        Self { key, chats: AtomicU32::new(0), requests: Mutex::default(), tokens: Mutex::default() }
    }

    /// Takes a place among the key's chats.
    fn take(&self, now: Instant) -> Result<(), ApiError> {
        let ApiKey { name, limits, .. } = &self.key;
        let wait = |limit: u32, what: &str, time: Duration| {
            let seconds = time.as_secs_f64().ceil().clamp(1.0, MINUTE * MINUTE) as u32;
            let message = format!("the key {name} may have {limit} {what}; try again in {seconds} s");
            Err(ApiError::rate_limit(message, seconds))
        };
        let chats = limits.chats.unwrap_or(u32::MAX);
        if self
            .chats
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (n < chats).then_some(n + 1))
            .is_err()
        {
            return wait(chats, "requests at a time", Duration::from_secs(1));
        }
        let give_back = || self.chats.fetch_sub(1, Ordering::SeqCst);
        if let Some(limit) = limits.tokens
            && let Some(time) = lock(&self.tokens).wait(limit, 0.0, now)
        {
            give_back();
            return wait(limit, "tokens a minute", time);
        }
        if let Some(limit) = limits.requests {
            let mut requests = lock(&self.requests);
            if let Some(time) = requests.wait(limit, 1.0, now) {
                give_back();
                return wait(limit, "requests a minute", time);
            }
            requests.spend(limit, 1.0, now);
        }
        Ok(())
    }
}

fn lock(bucket: &Mutex<Bucket>) -> std::sync::MutexGuard<'_, Bucket> {
    bucket.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was used of a limit a minute: it runs off at the limit's rate, so that whoever has rested may use a minute's worth at
/// once.
#[derive(Debug, Default)]
struct Bucket {
    used: f64,
    at: Option<Instant>,
}

impl Bucket {
    /// How long until there is room for so much more; `None` if there is now. Room for 0 is there below the limit.
    fn wait(&mut self, limit: u32, more: f64, now: Instant) -> Option<Duration> {
        let limit = f64::from(limit);
        self.run_off(limit, now);
        let over = self.used + more - limit;
        let full = if more > 0.0 { over > 1e-9 } else { over >= 0.0 };
        full.then(|| Duration::from_secs_f64((over * MINUTE / limit).max(0.0)))
    }

    fn spend(&mut self, limit: u32, more: f64, now: Instant) {
        self.run_off(f64::from(limit), now);
        self.used += more;
    }

    fn run_off(&mut self, limit: f64, now: Instant) {
        let time = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.used = (self.used - limit * time.as_secs_f64() / MINUTE).max(0.0);
        self.at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api_keys::Limits;

    fn keys(limits: Limits) -> Keys {
        let key = ApiKey::of_text("laptop", "secret", limits);
        Keys::new(&HttpConfig { api_keys: vec![key], ..HttpConfig::default() })
    }

    fn post(header: &str, value: &str) -> Request<()> {
        Request::post("/v1/chat/completions").header(header, value).body(()).unwrap()
    }

    fn status(result: Result<Option<Admitted>, ApiError>) -> (u16, Option<u32>) {
        result.map_or_else(|error| (error.status.as_u16(), error.retry_after), |_| (200, None))
    }

    #[test]
    fn keys_come_in_either_header() {
        let keys = keys(Limits::default());
        let now = Instant::now();
        let good = [
            ("authorization", "Bearer secret"),
            ("authorization", "bearer  secret "),
            ("x-api-key", "secret"),
        ];
        for (header, value) in good {
            assert_eq!(keys.admit(&post(header, value), now).unwrap().unwrap().name(), "laptop");
        }
        let bad = [
            ("authorization", "Basic secret"),
            ("authorization", "secret"),
            ("authorization", "Bearer secre"),
            ("authorization", "Bearer "),
            ("x-api-key", ""),
            ("cookie", "secret"),
        ];
        for (header, value) in bad {
            assert_eq!(status(keys.admit(&post(header, value), now)).0, 401, "{header}: {value}");
        }
        for open in ["/health", "/", "/page/main.js"] {
            let request = Request::get(open).body(()).unwrap();
            assert!(keys.admit(&request, now).unwrap().is_none(), "{open}");
        }
        for closed in ["/metrics", "/v1/models", "/nowhere", "/page", "/health/"] {
            let request = Request::get(closed).body(()).unwrap();
            assert_eq!(status(keys.admit(&request, now)).0, 401, "{closed}");
        }
    }

    #[test]
    fn chats_at_a_time() {
        let keys = keys(Limits { chats: Some(2), ..Limits::default() });
        let now = Instant::now();
        let ask = || keys.admit(&post("x-api-key", "secret"), now);
        let (first, _second) = (ask().unwrap(), ask().unwrap());
        assert_eq!(status(ask()), (429, Some(1)));
        drop(first);
        assert_eq!(status(ask()), (200, None));
    }

    #[test]
    fn requests_a_minute() {
        let keys = keys(Limits { requests: Some(6), ..Limits::default() });
        let start = Instant::now();
        let ask =
            |seconds| status(keys.admit(&post("x-api-key", "secret"), start + Duration::from_secs(seconds)));
        assert!((0..6).all(|_| ask(0) == (200, None)));
        assert_eq!(ask(0), (429, Some(10)));
        assert_eq!(ask(7), (429, Some(3)));
        assert_eq!(ask(10), (200, None));
        assert_eq!(ask(10), (429, Some(10)));
        // A rest gives back a minute's worth, not more.
        assert!((0..6).all(|_| ask(1000) == (200, None)));
        assert_eq!(ask(1000).0, 429);
    }

    #[test]
    fn tokens_a_minute() {
        let keys = keys(Limits { tokens: Some(600), ..Limits::default() });
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let ask = |seconds| keys.admit(&post("x-api-key", "secret"), at(seconds));
        let admitted = ask(0).unwrap().unwrap();
        admitted.spend(500, at(0));
        assert_eq!(status(ask(0)), (200, None));
        // An answer may be longer than what is left; the next one waits for it.
        admitted.spend(300, at(0));
        assert_eq!(status(ask(0)), (429, Some(20)));
        assert_eq!(status(ask(21)), (200, None));
        // Refused requests took no place.
        assert_eq!(keys.holders.read().unwrap()[0].chats.load(Ordering::SeqCst), 1);
    }
}
