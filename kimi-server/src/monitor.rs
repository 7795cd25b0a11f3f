//! What the program does at the moment: one [`Snapshot`], which `/health`, `/metrics` and `kimi top` all show, and what two
//! of them say about why it is slow.

mod process;
mod slow;
mod snapshot;

pub use process::ProcessState;
pub use slow::{Cause, Slow, why_slow};
pub use snapshot::{
    Batches, LinkState, LoadState, ModelState, ModelStatus, Pages, Seen, Sequences, Snapshot, StageState,
    StageStatus,
};
