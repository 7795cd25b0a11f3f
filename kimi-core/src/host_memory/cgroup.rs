//! Memory limits of control groups, version 2 and 1. The limits of all groups above count too.

use std::path::{Component, Path};

use super::Span;

/// A version 1 group without a limit has this or more: the largest number of whole pages.
const UNLIMITED: u64 = 1 << 62;

/// Names of a group's files in one version.
struct Files {
    folder: &'static str,
    limits: &'static [&'static str],
    used: &'static str,
    /// Pages of files that the system would drop.
    reclaimable: [&'static str; 2],
}

const V2: Files = Files {
    folder: "sys/fs/cgroup",
    limits: &["memory.max", "memory.high"],
    used: "memory.current",
    reclaimable: ["inactive_file", "active_file"],
};

const V1: Files = Files {
    folder: "sys/fs/cgroup/memory",
    limits: &["memory.limit_in_bytes"],
    used: "memory.usage_in_bytes",
    reclaimable: ["total_inactive_file", "total_active_file"],
};

/// The tightest of the limits on this process, whose groups `/proc/self/cgroup` lists.
pub(super) fn smallest(root: &Path, list: &str) -> Option<Span> {
    let groups = list.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        match controllers.split(',').any(|c| c == "memory") {
            true => Some((V1, path)),
            false if number == "0" && controllers.is_empty() => Some((V2, path)),
            false => None,
        }
    });
    let spans = groups.flat_map(|(files, path)| files.spans(root, path));
    // Both numbers count: a group above may be fuller than a tighter one below.
    spans.reduce(|a, b| Span { total: a.total.min(b.total), free: a.free.min(b.free) })
}

impl Files {
    /// The limits of a group and of those above it. In a container the path may be the host's, which is not there: then
    /// the mount's own root is the container's group.
    fn spans(&self, root: &Path, path: &str) -> Vec<Span> {
        let base = root.join(self.folder);
        let parts: Vec<_> = Path::new(path)
            .components()
            .filter_map(|part| match part {
                Component::Normal(name) => Some(name),
                _ => None,
            })
            .collect();
        let groups = (0..=parts.len()).map(|n| parts[..n].iter().fold(base.clone(), |p, name| p.join(name)));
        groups.filter_map(|group| self.span(&group)).collect()
    }

    fn span(&self, group: &Path) -> Option<Span> {
        let read = |name: &str| std::fs::read_to_string(group.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok(); // `max` is no limit
        let total = self.limits.iter().filter_map(|name| number(name)).filter(|n| *n < UNLIMITED).min()?;
        let stat = read("memory.stat").unwrap_or_default();
        let reclaimable: u64 = self.reclaimable.iter().filter_map(|key| entry(&stat, key)).sum();
        let used = number(self.used)?.saturating_sub(reclaimable);
        Some(Span { total, free: total.saturating_sub(used) })
    }
}

/// The number of a line `key number`.
fn entry(stat: &str, key: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}
