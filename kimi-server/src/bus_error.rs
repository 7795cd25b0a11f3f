//! A shard that is cut while it is mapped ends the process at its next touch (SIGBUS), whatever the process does. So that
//! people learn why, the signal's handler names the shard before the end.

use kimi_core::checkpoint::Checkpoint;

/// From now on, a touch of what a shard of the checkpoint has lost ends the process with the shard's name on stderr. Call it
/// where the checkpoint's files stay mapped for as long as the process lives.
#[cfg(unix)]
pub fn name_shards_of(checkpoint: &Checkpoint) {
    unix::name_shards_of(checkpoint);
}

/// Other systems tell such a touch otherwise.
#[cfg(not(unix))]
pub fn name_shards_of(_: &Checkpoint) {}

#[cfg(unix)]
mod unix {
    use std::ops::Range;
    use std::ptr;
    use std::sync::Once;
    use std::sync::atomic::{AtomicPtr, Ordering};

    use kimi_core::checkpoint::Checkpoint;

    /// Where a shard is mapped, and what to say of it.
    struct Map {
        addresses: Range<usize>,
        text: Vec<u8>,
    }

    /// The maps of the checkpoint that was given last. A list is never freed or changed, since the handler may be reading it.
    static MAPS: AtomicPtr<Vec<Map>> = AtomicPtr::new(ptr::null_mut());
    static HANDLER: Once = Once::new();
    /// Exit code of a process that SIGBUS ends, as shells say it.
    const EXIT: i32 = 128 + libc::SIGBUS;

    pub(super) fn name_shards_of(checkpoint: &Checkpoint) {
        let maps = checkpoint.maps().map(|(name, addresses)| {
            let text = format!(
                "error: shard {name} of {} was cut while it is in use: it ends before what was to be read. Put the file back \
                 and start kimi again\n",
                checkpoint.name()
            );
            Map { addresses, text: text.into_bytes() }
        });
        let maps: Vec<Map> = maps.collect();
        if maps.is_empty() {
            return;
        }
        MAPS.store(Box::into_raw(Box::new(maps)), Ordering::Release);
        HANDLER.call_once(|| {
            // SAFETY: the handler does only what a signal handler may: it reads memory that never changes, and calls
            // write and _exit.
            let handled = unsafe { signal_hook_registry::register_sigaction(libc::SIGBUS, on_bus_error) };
            if let Err(error) = handled {
                tracing::debug!(%error, "can't handle SIGBUS");
            }
        });
    }

    fn on_bus_error(signal: &libc::siginfo_t) {
        // SAFETY: for SIGBUS the field is set.
        let address = unsafe { signal.si_addr() } as usize;
        // SAFETY: null, or a list that is never freed or changed.
        let maps = unsafe { MAPS.load(Ordering::Acquire).as_ref() };
        let map = maps.into_iter().flatten().find(|map| map.addresses.contains(&address));
        let text: &[u8] = map.map_or(b"error: a bus error (SIGBUS)\n", |map| &map.text);
        // SAFETY: the text is valid for its length. A failure can't be told to anybody; returning would touch the same
        // address again.
        unsafe {
            libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
            libc::_exit(EXIT);
        }
    }
}
