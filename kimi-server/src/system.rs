//! What this machine is.

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

/// Gives freed memory back to the system, where the allocator keeps it otherwise. Takes milliseconds.
pub fn return_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it has no preconditions; it takes the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
