//! What macOS says of itself, by the calls of its C library that need `unsafe`: one place for all of kimi. What the answers
//! mean is read elsewhere, in code that is tested on any system. Nothing of this has run on a Mac; CI checks its types.

/// The value of a name of `sysctl`, at most 64 bytes of it.
pub fn sysctl(name: &str) -> Option<Vec<u8>> {
    let name = std::ffi::CString::new(name).ok()?;
    let mut value = vec![0u8; 64];
    let mut length = value.len();
    // SAFETY: `name` ends in 0; the system writes at most `length` bytes into `value`, which has as many, and how many it
    // wrote into `length`. Nothing is set.
    let failed = unsafe {
        libc::sysctlbyname(name.as_ptr(), value.as_mut_ptr().cast(), &mut length, std::ptr::null_mut(), 0)
    };
    value.truncate(length);
    (failed == 0).then_some(value)
}

/// The value of a name of `sysctl` that is an integer of 4 or 8 bytes.
pub fn sysctl_integer(name: &str) -> Option<u64> {
    let value = sysctl(name)?;
    let four = || Some(u64::from(u32::from_ne_bytes(value.as_slice().try_into().ok()?)));
    value.as_slice().try_into().ok().map(u64::from_ne_bytes).or_else(four)
}

/// Pages of the machine's memory, by what they hold.
#[derive(Debug, Clone, Copy)]
pub struct MemoryPages {
    /// Bytes of a page.
    pub page_bytes: u64,
    /// With nothing in them, or read ahead from files and not used yet.
    pub free: u64,
    /// Not used for a while.
    pub inactive: u64,
    /// That their owners allow the system to drop.
    pub purgeable: u64,
}

impl MemoryPages {
    /// As counted now; these are the numbers of `vm_stat`.
    pub fn now() -> Option<Self> {
        // SAFETY: it names the machine; no resource is taken.
        #[allow(
            deprecated,
            reason = "libc has no other name for it, and one call is no reason for a crate more"
        )]
        let host = unsafe { libc::mach_host_self() };
        // SAFETY: a structure of integers.
        let mut counts: libc::vm_statistics64 = unsafe { std::mem::zeroed() };
        let mut words = libc::HOST_VM_INFO64_COUNT;
        // SAFETY: the system writes at most `words` words to `counts`, which has as many.
        let failed = unsafe {
            let to = (&raw mut counts).cast();
            libc::host_statistics64(host, libc::HOST_VM_INFO64, to, &mut words)
        };
        let count = |pages: libc::natural_t| u64::from(pages);
        (failed == libc::KERN_SUCCESS).then_some(())?;
        Some(Self {
            page_bytes: sysctl_integer("hw.pagesize")?,
            free: count(counts.free_count),
            inactive: count(counts.inactive_count),
            purgeable: count(counts.purgeable_count),
        })
    }
}
