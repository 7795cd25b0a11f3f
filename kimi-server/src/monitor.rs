//! What the program does at the moment: one [`Snapshot`], which `/health`, `/metrics` and `kimi top` all show, and what two
//! of them say about why it is slow.

mod process;
#[cfg(feature = "cli")]
mod slow;
#[cfg(feature = "cli")]
mod snapshot;

pub use process::ProcessState;
#[cfg(feature = "cli")]
pub use slow::{Cause, Slow, why_slow};
#[cfg(feature = "cli")]
pub use snapshot::{
    Batches, Drafts, LinkState, LoadState, ModelState, ModelStatus, Pages, PrefixCache, Seen, Sequences,
    Snapshot, StageState, StageStatus,
};
