//! What this machine is.

use std::path::PathBuf;

/// Name of this machine, for people.
pub fn host_name() -> String {
    let from_file = || std::fs::read_to_string("/etc/hostname").ok();
    let from_command = || {
        let output = std::process::Command::new("hostname").output().ok()?;
        String::from_utf8(output.stdout).ok()
    };
    let name = from_file().or_else(from_command).map(|name| name.trim().to_owned());
    name.filter(|n| !n.is_empty()).unwrap_or_else(|| "this-machine".to_owned())
}

/// Where kimi's configuration is: `$XDG_CONFIG_HOME/kimi`, else `~/.config/kimi`; `None` if neither variable is set.
pub fn config_folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = variable("XDG_CONFIG_HOME").or_else(|| Some(variable("HOME")?.join(".config")))?;
    Some(config.join("kimi"))
}

/// Where kimi keeps what it learns and can do without: `$XDG_STATE_HOME/kimi`, else `~/.local/state/kimi`; `None` if neither
/// variable is set.
pub fn state_folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")))?;
    Some(state.join("kimi"))
}

/// Where kimi keeps what it can make again: `$XDG_CACHE_HOME/kimi`, else `~/.cache/kimi`; `None` if neither variable is set.
pub fn cache_folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))?;
    Some(cache.join("kimi"))
}

/// Most bytes that the allocator keeps of what was freed, for each of its arenas. With half of it a step of 512 tokens of kimi-tiny
/// got its largest activations from the system every time, which took an eighth of the step.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAX_KEPT: libc::c_int = 8 << 20;

/// Makes the allocator give large blocks back as soon as they are freed. glibc takes the largest block that it has ever seen
/// freed as the measure of what it keeps, in each arena, and [`return_freed_memory`] does not reach the end of an arena:
/// after some bodies of 30 MB it kept 30 MB for every thread. Takes effect for the whole process, so it is for `main`.
pub fn keep_little_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: they have no preconditions. A value that is refused changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAX_KEPT);
        libc::mallopt(libc::M_TRIM_THRESHOLD, MAX_KEPT);
    }
}

/// Gives freed memory back to the system, where the allocator keeps it otherwise. Takes milliseconds.
pub fn return_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it has no preconditions; it takes the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Open files that a server wants: each of its connections is one. macOS gives no more.
#[cfg(unix)]
const OPEN_FILES: u64 = 10_240;

/// Lets this process have as many open files as it may: macOS begins with 256, fewer than the server's connections, and
/// Linux with 1,024. For `main`.
pub fn allow_open_files() {
    #[cfg(unix)]
    {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
        let wanted = hard.min(OPEN_FILES);
        if soft < wanted
            && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)
        {
            tracing::debug!(%error, "can't raise the limit of open files");
        }
    }
}
