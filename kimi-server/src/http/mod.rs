//! The OpenAI-compatible HTTP API.
//!
//! | path | what |
//! |---|---|
//! | `POST /v1/chat/completions` | a chat completion, streamed or not |
//! | `POST /v1/completions` | text that goes on, without messages and template |
//! | `POST /v1/responses` and below | OpenAI's Responses API; what it stores is in memory |
//! | `POST /v1/messages`, `POST /v1/messages/count_tokens` | Anthropic's API |
//! | `POST /v1/tokenize`, `POST /v1/detokenize` | from a text or a chat to tokens, and back |
//! | `GET /v1/models`, `GET /v1/models/{id}` | the models served |
//! | `GET /health` | state of each model: stages, sequences, cache pages; why it is slow; 503 if one cannot answer |
//! | `GET /`, `GET /page/..` | the chat page for browsers; what is served where, for others |
//! | `GET /metrics` | the same in numbers, and more, for Prometheus |
//!
//! Limits are in [`HttpConfig`]: memory of all bodies, connections, chats at a time. Where one is met the status is 503 with
//! `Retry-After`; a body that is too large alone gets 413, or 400 where its JSON or prompt is.
//!
//! [`serve`] runs it on a listener. A model is anything that is a [`ChatEngine`], above all
//! [`kimi_core::ChatModel`]. Errors are made in [`error`] and have OpenAI's shape everywhere.
//!
//! Beyond OpenAI's fields a request may have those of vLLM (`top_k`, `min_p`, `repetition_penalty`, `min_tokens`,
//! `stop_token_ids`, `ignore_eos`, `chat_template_kwargs`, `continue_final_message`, `structured_outputs`) and of Moonshot's
//! own API (`thinking`, and in messages `partial` and `reasoning_content`). `model` may be left out if only one model is
//! served. Fields that mean nothing here (`user`, `metadata`, `store`, ...) are ignored; fields of other servers that would
//! change the answer are refused by name with status 400.

mod answer;
mod anthropic;
mod auth;
mod body;
mod budget;
mod chat;
mod chat_writer;
mod completion_writer;
mod completions;
mod config;
mod connections;
mod cors;
mod engine;
pub mod error;
mod events;
mod foreign;
mod front;
mod host;
mod json;
mod messages;
mod metrics;
mod options;
mod output;
mod page;
mod peer;
mod read;
mod record;
mod request_id;
mod response;
mod responses;
mod routes;
mod server;
mod stream;
mod thinking;
mod tokens;
mod unknown;

pub use config::HttpConfig;
pub use cors::Origin;
pub use engine::{ChatEngine, EventSink, Running, ServedModel, StageInfo};
pub(crate) use error::down_text;
pub use server::serve;

/// Body of every response.
type Body = http_body_util::combinators::UnsyncBoxBody<bytes::Bytes, std::convert::Infallible>;
