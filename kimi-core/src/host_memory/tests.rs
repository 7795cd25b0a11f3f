use std::fs;

use super::*;

const GB: u64 = 1 << 30;

const MEMINFO: &str = "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    8388608 kB\n\
                       Buffers:               0 kB\nCached:          2097152 kB\n";

fn limits(address_space: &str, data: &str) -> String {
    format!(
        "Limit                     Soft Limit           Hard Limit           Units     \n\
         Max data size             {data:<20} unlimited            bytes     \n\
         Max address space         {address_space:<20} unlimited            bytes     \n"
    )
}

const STATUS: &str = "Name:\tkimi\nVmSize:\t 1048576 kB\nVmData:\t  524288 kB\n";

/// A file system with these files.
fn read(files: &[(&str, &str)]) -> HostMemory {
    let root = tempfile::tempdir().unwrap();
    for (name, text) in [("proc/meminfo", MEMINFO), ("proc/self/status", STATUS)].iter().chain(files) {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    HostMemory::from_files(root.path()).unwrap()
}

fn room(bytes: u64, limit: Limit) -> Room {
    Room { bytes, limit }
}

#[test]
fn a_machine_without_limits() {
    let unlimited = limits("unlimited", "unlimited");
    let memory = read(&[("proc/self/limits", &unlimited), ("proc/self/cgroup", "0::/\n1:cpu:/\n")]);
    let free = room(8 * GB, Limit::Machine);
    assert_eq!(memory, HostMemory { total: room(16 * GB, Limit::Machine), available: free, resident: free });
    let old = MEMINFO.replace("MemAvailable:", "MemOther:");
    assert_eq!(linux::machine(&old).unwrap().free, 3 * GB);
    assert_eq!(linux::machine("nonsense"), None);
}

#[test]
fn control_groups_of_version_2_with_those_above() {
    let stat = "anon 1\ninactive_file 536870912\nactive_file 536870912\nfile 9999999999\n";
    let memory = read(&[
        ("proc/self/cgroup", "0::/a.slice/b.scope\n"),
        ("sys/fs/cgroup/a.slice/memory.max", "4294967296\n"),
        ("sys/fs/cgroup/a.slice/memory.current", "3221225472\n"),
        ("sys/fs/cgroup/a.slice/memory.stat", stat),
        ("sys/fs/cgroup/a.slice/b.scope/memory.max", "max\n"),
        ("sys/fs/cgroup/a.slice/b.scope/memory.high", "3221225472\n"),
        ("sys/fs/cgroup/a.slice/b.scope/memory.current", "0\n"),
    ]);
    assert_eq!(memory.total, room(3 * GB, Limit::Cgroup));
    // 4 GB, of which 3 are used, of which 1 is pages of files.
    assert_eq!(memory.available, room(2 * GB, Limit::Cgroup));
    assert_eq!(memory.resident, memory.available);
}

#[test]
fn the_group_of_a_container_is_the_mounts_root() {
    let memory = read(&[
        ("proc/self/cgroup", "0::/docker/0123/../../x\n"),
        ("sys/fs/cgroup/memory.max", "2147483648\n"),
        ("sys/fs/cgroup/memory.current", "1073741824\n"),
    ]);
    assert_eq!(memory.available, room(GB, Limit::Cgroup));
}

#[test]
fn control_groups_of_version_1() {
    let memory = read(&[
        ("proc/self/cgroup", "4:cpu,memory:/jobs/7\n0::/\n"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1\n"),
        ("sys/fs/cgroup/memory/jobs/7/memory.limit_in_bytes", "5368709120\n"),
        ("sys/fs/cgroup/memory/jobs/7/memory.usage_in_bytes", "5368709120\n"),
        ("sys/fs/cgroup/memory/jobs/7/memory.stat", "inactive_file 1\ntotal_inactive_file 1073741824\n"),
    ]);
    assert_eq!((memory.total, memory.available), (room(5 * GB, Limit::Cgroup), room(GB, Limit::Cgroup)));
}

#[test]
fn limits_of_the_process_bind_its_own_memory_only() {
    let two = limits("2147483648", "unlimited");
    let memory = read(&[("proc/self/limits", &two)]);
    assert_eq!(
        (memory.available, memory.resident),
        (room(GB, Limit::AddressSpace), room(8 * GB, Limit::Machine))
    );
    let both = limits("8589934592", "1073741824");
    let memory = read(&[("proc/self/limits", &both)]);
    assert_eq!((memory.total, memory.available), (room(GB, Limit::Data), room(GB / 2, Limit::Data)));
    let less_than_used = limits("1", "unlimited");
    assert_eq!(read(&[("proc/self/limits", &less_than_used)]).available.bytes, 0);
}

#[test]
fn macs() {
    let free = darwin::free_bytes(16384, [103, 20, 1]);
    assert_eq!(free, 124 * 16384);
    let span = |free| darwin::span(1 << 30, free);
    assert_eq!(span(Some(free)), Span { total: 1 << 30, free });
    assert_eq!(span(Some(2 << 30)).free, 1 << 30, "pages may be counted twice");
    assert_eq!(span(None).free, 1 << 30);
}

#[cfg(any(target_os = "linux", target_os = "macos"))]
#[test]
fn this_machine_says_something() {
    let memory = HostMemory::now().unwrap();
    assert!(memory.available.bytes <= memory.total.bytes && memory.total.bytes > 1 << 20, "{memory:?}");
}
