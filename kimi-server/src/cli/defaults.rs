//! Every number that a flag can change.

use kimi_core::page_store::PageStoreConfig;
use kimi_core::stage::TOKEN_BUDGET;

/// Address of the HTTP API.
pub const HTTP_HOST: &str = "127.0.0.1";
/// Port of the HTTP API.
pub const HTTP_PORT: u16 = 52415;
/// Address a worker listens on.
pub const NODE_HOST: &str = "127.0.0.1";
/// Port a worker listens on.
pub const NODE_PORT: u16 = 52416;
/// Seconds to wait for peers.
pub const PEER_TIMEOUT: u64 = 300;
/// Seconds that answers wait for a lost stage.
pub const RECOVERY_TIMEOUT: u64 = 120;
/// Seconds to look for workers that announce themselves, for commands that list them.
pub const LOOK_SECONDS: u64 = 3;
/// What is logged.
pub const LOG: &str = "warn";
/// What a worker logs that a person started.
pub const WORKER_LOG: &str = "warn,kimi_server=info";
/// What a server logs: also one line a request.
pub const SERVE_LOG: &str = "warn,kimi_server::http::record=info";
/// Gigabytes of the prefix cache on disk.
pub const PREFIX_CACHE_DISK: f64 = PageStoreConfig::MAX_BYTES as f64 / 1e9;
/// Largest difference of logits that passes `kimi verify`.
pub const TOLERANCE: f64 = 1e-3;
/// Tokens of a prefill chunk in `kimi verify`.
pub const VERIFY_CHUNK: usize = TOKEN_BUDGET;
/// Prompt of `kimi demo`.
pub const DEMO_PROMPT: &str = "Hello! What are you?";
/// Most tokens of an answer in `kimi demo`.
pub const DEMO_TOKENS: u32 = 64;
/// Bits of the weights in `kimi bench --synthetic`.
pub const BENCH_BITS: u32 = 4;
/// Most layers that `kimi bench --synthetic` takes by itself.
pub const BENCH_LAYERS: usize = 6;
/// Tokens of context in `kimi bench`.
pub const BENCH_CONTEXT: usize = 1600;
/// Tokens of a prefill in `kimi bench`.
pub const BENCH_PROMPT: usize = 512;
/// Sequences decoded at once in `kimi bench`.
pub const BENCH_SEQUENCES: usize = 8;
