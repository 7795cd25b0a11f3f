//! `KIMI_DUMP_SHADERS=FOLDER`: the text of every shader that is made, for people to read.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

/// Where the texts of shaders go, if anywhere.
#[derive(Debug, Default)]
pub(crate) struct Dump(Option<PathBuf>);

impl Dump {
    /// As the environment says. An empty value is none.
    pub(crate) fn from_environment() -> Self {
        Self::to(std::env::var_os("KIMI_DUMP_SHADERS").as_deref())
    }

    fn to(folder: Option<&OsStr>) -> Self {
        Self(folder.filter(|name| !name.is_empty()).map(PathBuf::from))
    }

    /// Keeps the text of a shader of operation `op`. The first failure is a warning and ends it: nothing that is computed
    /// depends on it.
    pub(crate) fn keep(&mut self, op: &str, text: &str) {
        let Some(folder) = &self.0 else { return };
        if let Err(e) = write(folder, op, text) {
            tracing::warn!("KIMI_DUMP_SHADERS: no shaders are written to {}: {e}", folder.display());
            self.0 = None;
        }
    }
}

/// Writes `FOLDER/OP-HASH.wgsl`, and the folder if it is not there. The same text has the same name.
fn write(folder: &Path, op: &str, text: &str) -> io::Result<PathBuf> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join(format!("{op}-{:08x}.wgsl", hash(text)));
    std::fs::write(&path, text)?;
    Ok(path)
}

/// FNV-1a: the same on every machine and for every compiler.
fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn every_text_has_a_file_and_a_failure_ends_it() {
        let folder = std::env::temp_dir().join(format!("kimi-dump-{}", std::process::id()));
        let mut dump = Dump::to(Some(folder.as_os_str()));
        for text in ["a", "b", "a"] {
            dump.keep("matvec", text);
        }
        let mut files: Vec<_> =
            std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        files.sort();
        assert_eq!(files, ["matvec-e40c292c.wgsl", "matvec-e70c2de5.wgsl"]);
        assert_eq!(std::fs::read_to_string(folder.join(&files[0])).unwrap(), "a");

        let mut below_a_file = Dump::to(Some(folder.join(&files[0]).as_os_str()));
        below_a_file.keep("matvec", "c");
        assert!(below_a_file.0.is_none());
        std::fs::remove_dir_all(&folder).unwrap();

        assert!(Dump::to(None).0.is_none() && Dump::to(Some(OsStr::new(""))).0.is_none());
    }
}
