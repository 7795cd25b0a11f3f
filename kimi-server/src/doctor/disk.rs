//! How fast a checkpoint is read from its disk.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use kimi_core::plan::HumanBytes;

use super::Finding;

/// Most bytes that are read.
const MAX_BYTES: u64 = 256 << 20;
/// Time after which no more is read.
const MAX_TIME: Duration = Duration::from_secs(1);
/// Bytes of a read.
const BLOCK: usize = 4 << 20;
/// Bytes a second below which loading a large model takes long.
const SLOW: f64 = 500e6;

/// Bytes a second of reading a file, past the system's cache where the system allows that.
///
/// # Errors
/// The system's.
pub fn read_rate(path: &Path) -> io::Result<f64> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    // Headers are in the cache already.
    let start = (length / 3) & !(BLOCK as u64 - 1);
    let wanted = MAX_BYTES.min(length - start);
    forget(&file, start, wanted);
    file.seek(SeekFrom::Start(start))?;
    let mut block = vec![0; BLOCK];
    let (began, mut read) = (Instant::now(), 0u64);
    while read < wanted && began.elapsed() < MAX_TIME {
        match file.read(&mut block)? {
            0 => break,
            n => read += n as u64,
        }
    }
    forget(&file, start, wanted); // nobody asked for them
    Ok(read as f64 / began.elapsed().as_secs_f64().max(1e-9))
}

/// Has the system read from the disk again what it keeps of a file. A failure makes the rate look better, no more.
#[cfg(target_os = "linux")]
fn forget(file: &File, start: u64, length: u64) {
    let length = std::num::NonZeroU64::new(length);
    if let Err(error) = rustix::fs::fadvise(file, start, length, rustix::fs::Advice::DontNeed) {
        tracing::debug!(%error, "the file stays in the cache");
    }
}

#[cfg(target_os = "macos")]
fn forget(file: &File, _: u64, _: u64) {
    if let Err(error) = rustix::fs::fcntl_nocache(file, true) {
        tracing::debug!(%error, "the file stays in the cache");
    }
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn forget(_: &File, _: u64, _: u64) {}

/// What a rate means for a checkpoint of so many bytes.
pub fn finding(shard: &str, rate: io::Result<f64>, bytes: u64) -> Finding {
    let rate = match rate {
        Ok(rate) => rate,
        Err(error) => {
            return Finding::fail(
                "disk",
                format!("can't read {shard}: {error}"),
                "the model can't be loaded",
            )
            .fix("check the disk and the file's permissions, or download the file again");
        }
    };
    let seconds = bytes as f64 / rate.max(1.0);
    let found = format!(
        "{shard} is read with {:.1} GB/s: all {} in {}",
        rate / 1e9,
        HumanBytes(bytes),
        time(seconds)
    );
    match rate < SLOW && seconds > 60.0 {
        true => {
            Finding::warn("disk", found, "loading takes that long; a network or USB disk is often the reason")
                .fix("keep the checkpoint on the machine's own SSD")
        }
        false => Finding::ok("disk", found),
    }
}

fn time(seconds: f64) -> String {
    match seconds {
        ..1.0 => "less than 1 s".to_owned(),
        ..120.0 => format!("{seconds:.0} s"),
        _ => format!("{:.0} min", seconds / 60.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn files_of_all_sizes_are_read() {
        let folder = tempfile::tempdir().unwrap();
        for bytes in [1, BLOCK, 3 * BLOCK + 5] {
            let path = folder.path().join("shard");
            std::fs::write(&path, vec![7; bytes]).unwrap();
            assert!(read_rate(&path).unwrap() > 0.0, "{bytes}");
        }
        let missing = folder.path().join("none");
        assert_eq!(finding("none", read_rate(&missing), 1).level, Level::Fail);
    }

    #[test]
    fn a_slow_disk_matters_for_a_large_checkpoint() {
        let large = finding("x", Ok(100e6), 504_000_000_000);
        assert!(large.level == Level::Warn && large.found.contains("84 min"), "{large}");
        assert_eq!(finding("x", Ok(100e6), 1_000_000_000).level, Level::Ok);
        assert_eq!(finding("x", Ok(6e9), 504_000_000_000).level, Level::Ok);
    }
}
