//! kimi's wire: how a coordinator and its workers talk.
//!
//! A model too large for one machine is cut into stages of consecutive layers. The **coordinator** connects to one
//! **worker** for each stage (a star, one TCP connection each), has it load its layers, and then sends it a stage's
//! input for every step and receives the output. This crate knows numbers and bytes, nothing of models.
//!
//! | module | holds |
//! |---|---|
//! | [`frame`] | the bytes on the wire, size limits, receiving without copies |
//! | [`message`] | what is said |
//! | [`protocol`] | when it may be said: a state machine without sockets and without a clock |
//! | [`driver`] | the same on tokio: handles to connect, load, compute |
//! | [`key`], [`secure`] | the secret of a cluster, and encryption with it |
//! | [`tune`] | socket options |
//!
//! # A frame
//!
//! ```text
//! offset  bytes  field (little endian)
//!      0      4  magic "KIMI"
//!      4      2  version of the frame layout: 1
//!      6      2  kind: Hello 1, Welcome 2, Assign 3, LoadProgress 4, Ready 5, Forward 6, Result 7,
//!                Activity 8, Ping 9, Pong 10, Error 11, Goodbye 12, Look 13, Status 14,
//!                Fetch 15, Piece 16
//!      8      4  h: bytes of the header, at most 1 MiB (64 KiB before the handshake is over)
//!     12      8  p: bytes of the payload, at most what Assign or Fetch allows, and 1 GiB; 0 but for
//!                Forward, Result and Piece
//!     20      h  header: the message's fields, encoded by postcard
//! 20 + h      p  payload: a tensor's elements as they are in memory
//! ```
//!
//! Sizes, the kind and its place in the protocol are checked on the 20 bytes alone. The header is checked against the
//! payload's size before the payload is received: [`Forward`] with rows x cols x 4 other than `p` is
//! refused, as is one with more tokens or pages than its [`Assign`] allows, or with which the unanswered steps would take more
//! than 48 MiB. The payload is read from the socket into its final buffer, and written from the caller's.
//!
//! # A link
//!
//! ```text
//!             coordinator                 worker
//!  Greeting   Hello          ──────────▶            versions, role
//!                            ◀──────────  Welcome   (or a fatal Error: version, role)
//!  Idle       Assign         ──────────▶
//!  Loading                   ◀──────────  LoadProgress, any number
//!                            ◀──────────  Ready     (or Error about the assignment: back to Idle)
//!  Serving    Forward + x    ──────────▶            several may be in flight
//!                            ◀──────────  Result + y, in the order of the Forwards (or Error about the step)
//!             Activity       ──────────▶            sequences are running, or none is
//!             Assign         ──────────▶            with no step in flight: back to Loading
//!  Idle       Look           ──────────▶            from an observer in a coordinator's place: any number
//!                            ◀──────────  Status    one for each
//!             Fetch          ──────────▶            from an observer: up to 4 unanswered
//!                            ◀──────────  Piece + bytes, in the order of the Fetches
//!  Closed     Goodbye or a fatal Error, from either side at any time
//! ```
//!
//! From `Idle` on both sides ping each other; the answer says how much the node has computed so far, so that one that is
//! stuck shows. A coordinator whose link broke may come back over a new one and go on with the worker's caches
//! ([`Assign::resume`]). A link ends when nothing was received for 10 s, when a handshake takes
//! more than 5 s or a frame more than 120 s, at the first frame that is out of order, malformed or over a limit, and
//! when the connection is lost; both sides are told why as far as the connection allows it. All of it is in
//! [`Config`].
//!
//! Below the frames, a link is TLS 1.3 between two ends that have the same [`ClusterKey`]: see [`secure`]. A link in the
//! clear is made only where both ends are told [`Trust::Insecure`].
//!
//! # Example
//!
//! ```
//! use kimi_net::*;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), LinkError> {
//! let key = ClusterKey::generate().expect("the system gives random numbers");
//! let trust = Trust::Key(key); // the same on both machines
//! let listener = Listener::bind(([127, 0, 0, 1], 0).into(), trust.clone(), Tuning::default()).await?;
//! let addr = listener.local_addr()?;
//! tokio::spawn(async move {
//!     let mut worker = listener.accept().await?.handshake(Config::new("worker")).await?;
//!     let sender = worker.sender();
//!     loop {
//!         match worker.next().await? {
//!             Event::Assigned(_) => {
//!                 let device = "cpu".into();
//!                 sender.ready(Ready { weight_bytes: 0, cache_bytes: 0, load_micros: 0, device })?;
//!             }
//!             Event::Forward(f, x) => {
//!                 let Forward { step, rows, cols, .. } = f;
//!                 let header = StepResult { step, rows, cols, compute_micros: 0, device_micros: 0, queue_micros: 0 };
//!                 sender.result(header, x)?; // a stage without layers: the output is the input
//!             }
//!             _ => {}
//!         }
//!     }
//!     # #[allow(unreachable_code)]
//!     Ok::<(), LinkError>(())
//! });
//!
//! let link = connect(addr, &trust, &Tuning::default(), Config::new("coordinator")).await?;
//! let stage = Assign {
//!     model: "kimi-tiny".into(),
//!     fingerprint: Fingerprint([7; 32]),
//!     description: Vec::new(),
//!     layers: 0..4,
//!     first: false,
//!     precision: Precision::Exact,
//!     state: LayerState::LatentPages,
//!     cache_pages: 8,
//!     page_tokens: 64,
//!     max_tokens: 16,
//!     hidden_size: 2,
//!     session: 1,
//!     resume: false,
//! };
//! link.assign(stage, |progress| println!("{} bytes loaded", progress.loaded_bytes)).await?;
//!
//! let sequence = SequenceStep { id: 1, start: 0, count: 1, tokens: Vec::new(), pages: vec![0] };
//! let header = Forward { step: 1, sequences: vec![sequence], rows: 1, cols: 2 };
//! let reply = link.forward(header, Bytes::from_static(&[0, 0, 128, 63, 0, 0, 0, 64])).await?;
//! assert_eq!(&reply.payload[4..], 2f32.to_le_bytes());
//! link.close("done").await;
//! # Ok(())
//! # }
//! ```
// `println!` and `eprintln!` panic where nobody reads.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod driver;
pub mod error;
pub mod frame;
pub mod key;
mod kind;
pub mod message;
pub mod protocol;
pub mod secure;
pub mod tune;

pub use bytes::Bytes;

pub use driver::{
    Coordinator, Incoming, LinkStats, Listener, Observer, Reply, StepTiming, Worker, WorkerSender, connect,
    observe,
};
pub use error::LinkError;
pub use frame::{FrameError, Limits, PAYLOAD_ALIGNMENT};
pub use key::{ClusterId, ClusterKey, KeyError};
pub use kind::Kind;
pub use message::{
    Activity, Assign, ErrorCode, ErrorReport, Fetch, Filling, Fingerprint, Forward, Goodbye, Hello, Holding,
    Item, LayerState, LoadProgress, Look, MAX_FETCHES, MAX_FILLING, MAX_LOOKS, MAX_PIECE, Message,
    MessageError, ModelFiles, Piece, Ping, Pong, Precision, Ready, Role, SequenceStep, Status, StepBounds,
    StepResult, Subject, Versions, Welcome, printable,
};
pub use protocol::{Config, Event, ProgressCount, Protocol, ProtocolError, State};
pub use secure::Trust;
pub use tune::{Tuned, Tuning};
