//! What this machine is.

/// Memory of this machine in bytes, if the system tells.
pub fn memory_bytes() -> Option<u64> {
    if cfg!(target_os = "macos") {
        let output =
            std::process::Command::new("/usr/sbin/sysctl").args(["-n", "hw.memsize"]).output().ok()?;
        return String::from_utf8(output.stdout).ok()?.trim().parse().ok();
    }
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

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
