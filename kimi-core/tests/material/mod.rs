//! Where the shared material is.

use std::path::{Path, PathBuf};

/// A file or folder of the shared material, or `None` (with a line that says so) where it is absent. An error where
/// `KIMI_REQUIRE_SHARED` is set.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("KIMI_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    let found = root.join(path);
    if found.exists() {
        return Some(found);
    }
    let required = std::env::var_os("KIMI_REQUIRE_SHARED").is_some();
    assert!(!required, "{} is not there (set KIMI_SHARED)", found.display());
    println!("skipped: {} is not there (set KIMI_SHARED)", found.display());
    None
}
