//! This machine: memory, swap, limits, GPU.

use kimi_core::host_memory::{HostMemory, Limit, MacMemory, MemoryPressure};
use kimi_core::plan::HumanBytes;

use super::Finding;
use crate::devices::Report;
use crate::network::output;

/// Open files below which a server with many connections and shards runs out.
const FEW_FILES: u64 = 1024;
/// Open files with which not even a checkpoint's shards can be opened.
const TOO_FEW_FILES: u64 = 64;
/// Swapped-out bytes that are worth a word.
const MUCH_SWAP: u64 = 1 << 30;

/// Everything about this machine that needs no model.
pub fn look() -> Vec<Finding> {
    let mac = MacMemory::now();
    let mut findings = vec![
        Finding::ok(
            "version",
            format!("kimi {}, protocol {}", env!("CARGO_PKG_VERSION"), kimi_net::Versions::OURS),
        ),
        memory(HostMemory::now()),
        swap(swap_bytes(mac)),
    ];
    findings.extend(mac.map(pressure));
    findings.extend(open_files_limit().map(open_files));
    findings.extend(gpu(mac));
    findings.extend(firewall());
    findings
}

fn memory(memory: Option<HostMemory>) -> Finding {
    let Some(HostMemory { total, available, .. }) = memory else {
        return Finding::warn(
            "memory",
            "unknown",
            "the system does not say how much there is; plans can't count it",
        );
    };
    let by = |limit: Limit| match limit {
        Limit::Machine => String::new(),
        other => format!(" by {other}"),
    };
    let found = format!(
        "{}{}, {} free{}",
        HumanBytes(total.bytes),
        by(total.limit),
        HumanBytes(available.bytes),
        by(available.limit)
    );
    match available.bytes < total.bytes / 4 {
        true => Finding::warn("memory", found, "less than a quarter is free: other programs hold the rest")
            .fix("end programs that hold memory (`top -o mem` on a Mac, `top -o %MEM` on Linux list them)"),
        false => Finding::ok("memory", found),
    }
}

/// Bytes of swap in use, and of swap.
fn swap_bytes(mac: Option<MacMemory>) -> Option<(u64, u64)> {
    match mac {
        Some(mac) => Some((mac.swap_bytes, mac.swap_total_bytes)),
        None => meminfo(&std::fs::read_to_string("/proc/meminfo").ok()?),
    }
}

fn meminfo(text: &str) -> Option<(u64, u64)> {
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    let total = value("SwapTotal:")?;
    Some((total.saturating_sub(value("SwapFree:")?), total))
}

fn swap(bytes: Option<(u64, u64)>) -> Finding {
    match bytes {
        None => Finding::ok("swap", "unknown"),
        Some((used, total)) if used >= MUCH_SWAP => Finding::warn(
            "swap",
            format!("{} of {} are in use", HumanBytes(used), HumanBytes(total)),
            "memory was short: what is swapped out slows whatever needs it again",
        )
        .fix(
            "end programs that hold memory, or give this machine fewer layers with a smaller --usable-memory",
        ),
        Some((used, total)) => {
            Finding::ok("swap", format!("{} of {} are in use", HumanBytes(used), HumanBytes(total)))
        }
    }
}

#[cfg(unix)]
fn open_files_limit() -> Option<u64> {
    use nix::sys::resource::{Resource, getrlimit};
    getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft)
}

#[cfg(not(unix))]
fn open_files_limit() -> Option<u64> {
    None
}

fn open_files(limit: u64) -> Finding {
    let found = match limit > 1 << 40 {
        true => "unlimited".to_owned(),
        false => format!("at most {limit}"),
    };
    let fix = "ulimit -n 4096   (in the shell that starts kimi)";
    match limit {
        limit if limit < TOO_FEW_FILES => {
            Finding::fail("open files", found, "a checkpoint's shards can't all be opened").fix(fix)
        }
        limit if limit < FEW_FILES => Finding::warn(
            "open files",
            found,
            "enough for one chat; many clients at once will be turned away",
        )
        .fix(fix),
        _ => Finding::ok("open files", found),
    }
}

fn gpu(mac: Option<MacMemory>) -> Vec<Finding> {
    let report = match Report::new(false) {
        Ok(report) => report,
        Err(error) => {
            return vec![Finding::warn("GPU", format!("{error:#}"), "everything is computed on the CPU")];
        }
    };
    let recommended = report.gpus.iter().flatten().find(|gpu| gpu.auto).and_then(|gpu| gpu.memory_bytes);
    let wired = mac.and_then(|mac| wired_limit(mac.wired_limit_bytes, recommended));
    std::iter::once(of_report(&report)).chain(wired).collect()
}

fn of_report(report: &Report) -> Finding {
    let on_cpu = format!("everything is computed on the CPU ({})", report.cpu.name);
    let gpus = match &report.gpus {
        None => {
            return Finding::warn("GPU", "this program was built without GPUs", on_cpu)
                .fix("cargo install --path kimi-server");
        }
        Some(gpus) => gpus,
    };
    if let Some(gpu) = gpus.iter().find(|gpu| gpu.auto) {
        let memory = gpu.memory_bytes.map_or_else(|| "unknown".to_owned(), |n| HumanBytes(n).to_string());
        let found = format!(
            "{} ({}), driver {}; memory {memory}, largest buffer {}, largest binding {}",
            gpu.name,
            gpu.api,
            gpu.driver,
            HumanBytes(gpu.largest_buffer_bytes),
            HumanBytes(gpu.largest_binding_bytes)
        );
        return Finding::ok("GPU", found);
    }
    match gpus.iter().find_map(|gpu| gpu.missing.as_ref().filter(|_| gpu.kind != "software").map(|m| (gpu, m))) {
        Some((gpu, missing)) => {
            let found = format!("{} (driver {}) can't be used: {missing}", gpu.name, gpu.driver);
            Finding::warn("GPU", found, on_cpu).fix("update the GPU's driver; `kimi devices` shows what it offers")
        }
        None => Finding::warn("GPU", "none but software", on_cpu)
            .fix("on Linux a GPU takes its Vulkan driver and the loader (apt install libvulkan1); `kimi devices` lists GPUs"),
    }
}

/// macOS: how much memory GPUs may hold. Without a limit that somebody set it is what Metal recommends.
fn wired_limit(set: Option<u64>, recommended: Option<u64>) -> Option<Finding> {
    let found = match (set, recommended) {
        (Some(bytes), _) => format!("at most {} (iogpu.wired_limit_mb)", HumanBytes(bytes)),
        (None, Some(bytes)) => format!("at most {}, the system's own limit", HumanBytes(bytes)),
        (None, None) => return None,
    };
    let more = "if layers need more: sudo sysctl iogpu.wired_limit_mb=N, until the next start of the machine";
    Some(match set {
        Some(_) => Finding::ok("GPU memory", found),
        None => Finding::ok("GPU memory", found).fix(more),
    })
}

/// macOS: how short memory is.
fn pressure(mac: MacMemory) -> Finding {
    let found = |word| format!("{word}; {} are compressed", HumanBytes(mac.compressed_bytes));
    let (means, fix) = (
        "macOS compresses and swaps: weights may leave memory between two tokens",
        "end programs that hold memory, or give this machine fewer layers with a smaller --usable-memory",
    );
    match mac.pressure {
        MemoryPressure::Normal => Finding::ok("memory pressure", found("normal")),
        MemoryPressure::Warning => Finding::warn("memory pressure", found("warning"), means).fix(fix),
        MemoryPressure::Critical => Finding::fail("memory pressure", found("critical"), means).fix(fix),
    }
}

/// macOS: whether its firewall is on. Elsewhere a port that can't be reached tells.
fn firewall() -> Option<Finding> {
    if !cfg!(target_os = "macos") {
        return None;
    }
    let state = output("/usr/libexec/ApplicationFirewall/socketfilterfw", &["--getglobalstate"])?;
    Some(firewall_state(&state))
}

fn firewall_state(text: &str) -> Finding {
    match text.contains("enabled") || text.contains("State = 1") || text.contains("State = 2") {
        true => Finding::warn("firewall", "on", "a worker on this machine can be reached only once kimi is allowed in")
            .fix("sudo /usr/libexec/ApplicationFirewall/socketfilterfw --add \"$(which kimi)\" --unblockapp \"$(which kimi)\""),
        false => Finding::ok("firewall", "off"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn swap_is_read_from_both_systems() {
        let linux = "MemTotal: 100 kB\nSwapTotal:       2097148 kB\nSwapFree:         524284 kB\n";
        assert_eq!(meminfo(linux), Some((1_572_864 << 10, 2_097_148 << 10)));
        let mac = MacMemory { swap_bytes: 5, swap_total_bytes: 9, ..MacMemory::default() };
        assert_eq!((swap_bytes(Some(mac)), meminfo("")), (Some((5, 9)), None));
        assert_eq!(swap(Some((2 << 30, 4 << 30))).level, Level::Warn);
        assert_eq!((swap(Some((0, 0))).level, swap(None).level), (Level::Ok, Level::Ok));
    }

    #[test]
    fn limits_have_levels_and_remedies() {
        for (limit, level) in
            [(20, Level::Fail), (256, Level::Warn), (1024, Level::Ok), (u64::MAX, Level::Ok)]
        {
            let finding = open_files(limit);
            assert_eq!(finding.level, level, "{finding}");
            assert_eq!(finding.fix.is_some(), level != Level::Ok);
        }
        assert_eq!(memory(None).level, Level::Warn);
    }

    #[test]
    fn macos_says_what_holds_there() {
        let limit = |set, recommended| wired_limit(set, recommended).map(|finding| finding.found);
        let own = wired_limit(None, Some(384 << 30)).unwrap();
        assert!(own.found.contains("the system's own limit") && own.fix.is_some(), "{own}");
        assert!(limit(Some(460_000 << 20), Some(1)).unwrap().contains("482.3 GB"));
        assert_eq!(limit(None, None), None);
        let levels = [MemoryPressure::Normal, MemoryPressure::Warning, MemoryPressure::Critical]
            .map(|level| pressure(MacMemory { pressure: level, ..MacMemory::default() }).level);
        assert_eq!(levels, [Level::Ok, Level::Warn, Level::Fail]);
        assert_eq!(firewall_state("Firewall is enabled. (State = 1)").level, Level::Warn);
        assert_eq!(firewall_state("Firewall is disabled. (State = 0)").level, Level::Ok);
    }

    #[test]
    fn a_gpu_that_can_not_be_used_is_named() {
        let mut report = Report::new(false).unwrap();
        report.gpus = Some(Vec::new());
        assert_eq!(of_report(&report).level, Level::Warn);
        report.gpus = None;
        assert!(of_report(&report).found.contains("built without"));
    }
}
