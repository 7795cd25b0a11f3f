//! `kimi doctor`.
