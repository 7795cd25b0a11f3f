//! The `kimi` program: command line, HTTP API, and the glue of kimi-core to kimi-net.
//!
//! | module | holds |
//! |---|---|
//! | [`cli`] | arguments, defaults, exit codes |
//! | [`commands`] | what each command does |
//! | [`http`], [`api_keys`] | the OpenAI-compatible API, and the keys of those who may use it |
//! | [`cluster`] | stages on other machines; the worker |
//! | [`cluster_key`] | where a machine keeps the secret that makes links |
//! | [`local`] | a cluster of processes on this machine |
//! | [`models`] | from a model's name to its folder |
//! | [`discovery`], [`host`], [`placement`] | the machines, where they are, and which holds what |
//! | [`membership`], [`capacity`] | finding machines without a file; what this one offers |
//! | [`chips`] | what is published of chips, for predictions |
//! | [`survey`], [`network`] | how each machine is reached, and how fast |
//! | [`doctor`] | what keeps a model from running |
//! | [`monitor`] | what the program does at the moment, and why it is slow |
//! | [`pull`] | layers from a machine that has them |
//! | [`devices`] | what this machine can compute on |
//! | [`mod@table`] | text in columns |
//! | [`mod@bench`] | how fast a device computes |
//! | [`inspect`], [`golden`], [`verify`], [`distance`] | checkpoints taken apart and checked |
//!
//! The feature `cli` (a default) is the program. Without it, and without its dependencies, there is what a coordinator and a
//! worker need in another program: `examples/embed.rs` is both in a page.
// `println!` and `eprintln!` panic where nobody reads. See `cli::ui`.
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![warn(missing_docs)]

#[cfg(feature = "cli")]
pub mod api_keys;
#[cfg(feature = "cli")]
pub mod bench;
pub mod bus_error;
pub mod capacity;
pub mod chips;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod client;
pub mod cluster;
pub mod cluster_key;
#[cfg(feature = "cli")]
pub mod commands;
#[cfg(feature = "cli")]
pub mod devices;
pub mod discovery;
#[cfg(feature = "cli")]
pub mod distance;
#[cfg(feature = "cli")]
pub mod doctor;
#[cfg(feature = "cli")]
pub mod golden;
pub mod host;
#[cfg(feature = "cli")]
pub mod http;
#[cfg(feature = "cli")]
pub mod inspect;
pub mod local;
pub mod membership;
pub mod models;
pub mod monitor;
pub mod network;
pub mod placement;
pub mod pull;
#[cfg(feature = "cli")]
pub mod rates;
#[cfg(feature = "cli")]
pub mod serving;
pub mod survey;
pub mod system;
pub mod table;
#[cfg(feature = "cli")]
pub mod verify;
