//! A GPU of Metal's that is not here, played by the CPU: kernels in Metal's language, compiled by clang (tools/metal).

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::super::device::Device;
use super::super::wgpu;
use super::fake::Looks;
use super::translate::{PARAMETERS, SIZES, metal, parse, shared_bytes};
use super::{Observer, Seen};
use crate::{BackendError, Gpu};

type Result<T> = std::result::Result<T, BackendError>;

fn failed(what: impl Into<String>) -> BackendError {
    BackendError::Device(what.into())
}

/// The compiler: `KIMI_CLANG`, else `clang++`. `None` (with a line on stdout) where it is not installed, unless
/// `KIMI_REQUIRE_CLANG` is set.
pub(super) fn clang() -> Option<&'static str> {
    static FOUND: OnceLock<Option<String>> = OnceLock::new();
    let find = || {
        let name = std::env::var("KIMI_CLANG").unwrap_or_else(|_| "clang++".to_owned());
        match Command::new(&name).arg("--version").output() {
            Ok(output) if output.status.success() => Some(name),
            found => {
                let required = std::env::var_os("KIMI_REQUIRE_CLANG").is_some();
                assert!(!required, "{name} is needed to check Metal's texts, and does not run: {found:?}");
                println!("skipped: {name} does not run (apt-get install clang, or KIMI_CLANG names it)");
                None
            }
        }
    };
    FOUND.get_or_init(find).as_deref()
}

fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/metal")
}

/// Runs clang on C++ as Metal's language means it: numbers without a suffix are single.
pub(super) fn compile(clang: &str, arguments: &[&str], source: &Path) -> io::Result<Output> {
    let mut command = Command::new(clang);
    command.args(["-std=c++17", "-w", "-ferror-limit=5", "-Xclang", "-cl-single-precision-constant"]);
    command.arg("-I").arg(tools().join("include")).arg("-I").arg(tools());
    command.args(arguments).arg(source).output()
}

/// A folder that goes when its holder does.
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    pub(super) fn new() -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("kimi-metal-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0); // what is left there harms nobody
    }
}

/// What is written in place of what in the shaders of an operation: to see that it is noticed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Change {
    pub(super) op: &'static str,
    pub(super) from: &'static str,
    pub(super) to: &'static str,
}

/// Computes dispatches.
pub(super) struct Executor {
    clang: &'static str,
    folder: Folder,
    seed: u32,
    change: Option<Change>,
    changed: AtomicU32,
    /// Names of operations that it has computed.
    ran: Mutex<HashSet<&'static str>>,
    /// By the text in Metal's language.
    programs: Mutex<HashMap<String, PathBuf>>,
}

/// An Apple GPU whose dispatches the CPU computes; fibres are ordered by `seed`. `None` without clang.
pub(super) fn apple(seed: u32, change: Option<Change>) -> Option<(Gpu, Arc<Executor>)> {
    executed(Looks::apple(), seed, change)
}

/// The same for a device of such looks.
pub(super) fn executed(looks: &Looks, seed: u32, change: Option<Change>) -> Option<(Gpu, Arc<Executor>)> {
    let executor = Arc::new(Executor {
        clang: clang()?,
        folder: Folder::new().unwrap(),
        seed,
        change,
        changed: AtomicU32::new(0),
        ran: Mutex::default(),
        programs: Mutex::default(),
    });
    let gpu = looks.gpu().unwrap();
    gpu.recorder.lock().observer = Some(executor.clone());
    Some((gpu, executor))
}

impl Executor {
    /// How many shaders were changed.
    pub(super) fn changed(&self) -> u32 {
        self.changed.load(Ordering::Relaxed)
    }

    /// Whether it has computed an operation of this name.
    pub(super) fn ran(&self, op: &str) -> bool {
        self.ran.lock().unwrap().contains(op)
    }

    /// The program of a kernel.
    fn program(&self, text: &str) -> Result<PathBuf> {
        let mut programs = self.programs.lock().unwrap();
        if let Some(path) = programs.get(text) {
            return Ok(path.clone());
        }
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let path = self.folder.0.join(format!("{:x}", hasher.finish()));
        let source = path.with_extension("cpp");
        let call = call(text).ok_or_else(|| failed(format!("no kernel is in:\n{text}")))?;
        let main = format!(
            "{text}\n#include \"run.h\"\nint main(int count, char **arguments) {{ return run::execute(count, arguments, [] {{ {call}; }}); }}\n"
        );
        std::fs::write(&source, main).map_err(|e| failed(e.to_string()))?;
        let output = compile(self.clang, &["-O1", "-o", &path.to_string_lossy()], &source);
        let output = output.map_err(|e| failed(e.to_string()))?;
        if !output.status.success() {
            return Err(failed(String::from_utf8_lossy(&output.stderr)));
        }
        programs.insert(text.to_owned(), path.clone());
        Ok(path)
    }
}

/// The call of a kernel with the arguments that its text asks for. naga writes one on a line.
fn call(text: &str) -> Option<String> {
    let (_, after) = text.split_once("kernel void main_(")?;
    let (arguments, _) = after.split_once("\n) {")?;
    let mut shared = 0;
    let values =
        arguments.lines().map(|line| line.trim_start_matches([',', ' '])).filter(|line| !line.is_empty());
    let values = values.map(|argument| {
        let attribute =
            argument.split_once("[[").and_then(|(_, rest)| rest.split_once("]]")).map(|(name, _)| name);
        let declared = argument.split('&').next().unwrap_or_default();
        let words = declared.split_whitespace();
        let kind: Vec<_> =
            words.filter(|w| !["device", "constant", "threadgroup", "const"].contains(w)).collect();
        let kind = kind.join(" ");
        let number = |name: &str| name.strip_prefix("buffer(")?.strip_suffix(')')?.parse::<u8>().ok();
        Some(match attribute {
            Some("thread_index_in_threadgroup") => "run::current".to_owned(),
            Some("threadgroup_position_in_grid") => "run::group".to_owned(),
            Some("threadgroups_per_grid") => "run::grid".to_owned(),
            Some("thread_index_in_simdgroup") => "run::lane()".to_owned(),
            Some("simdgroup_index_in_threadgroup") => "run::current / run::lanes".to_owned(),
            Some(name) => match number(name)? {
                PARAMETERS => format!("run::params<{kind}>()"),
                SIZES => format!("run::sizes<{kind}>()"),
                binding => format!("run::buffer<{kind}>({binding})"),
            },
            None => {
                shared += 1;
                format!("run::shared<{kind}, {shared}>()")
            }
        })
    });
    Some(format!("main_({})", values.collect::<Option<Vec<_>>>()?.join(", ")))
}

/// What a buffer has.
fn contents(device: &Device, buffer: &wgpu::Buffer) -> Result<Vec<u8>> {
    let copy = device.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("contents"),
        size: buffer.size(),
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let mut encoder = device.device.create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(buffer, 0, &copy, 0, None);
    device.queue.submit([encoder.finish()]);
    copy.slice(..).map_async(wgpu::MapMode::Read, |_| {});
    device.device.poll(wgpu::PollType::wait_indefinitely()).map_err(|e| failed(e.to_string()))?;
    let view = copy.slice(..).get_mapped_range().map_err(|e| failed(e.to_string()))?;
    Ok(view.to_vec())
}

impl Observer for Executor {
    fn see(&self, device: &Device, seen: &Seen<'_>) -> Result<bool> {
        self.ran.lock().unwrap().insert(seen.op.name);
        let mut source = seen.spec.source(seen.op);
        if let Some(Change { op, from, to }) = self.change
            && op == seen.op.name
            && source.contains(from)
        {
            source = source.replacen(from, to, 1);
            self.changed.fetch_add(1, Ordering::Relaxed);
        }
        let (module, info) = parse(&source).map_err(failed)?;
        let text = metal(seen.op, seen.spec, &module, &info).map_err(failed)?;
        // naga hands vectors where it asks for scalars, and strides in vectors.
        let program =
            self.program(&text.replace("half* ptr, int stride", "run::Rows<half> ptr, int stride"))?;
        // A buffer may be bound twice.
        let mut places: Vec<(u64, &wgpu::Buffer, bool)> = Vec::new();
        let mut bindings = Vec::new();
        for (buffer, written) in seen.buffers.iter().zip(seen.spec.writes(seen.op)) {
            let place = places.iter().position(|(id, ..)| *id == buffer.id).unwrap_or(places.len());
            if place == places.len() {
                places.push((buffer.id, &buffer.raw, false));
            }
            places[place].2 |= written;
            bindings.push(place as u32);
        }
        let threads = module.entry_points[0].workgroup_size.iter().product();
        let shared = shared_bytes(&module, &info).map_err(failed)?;
        let grid = seen.grid.map(|n| n as u32);
        let mut input = vec![self.seed, threads, grid[0], grid[1], grid[2], shared];
        input.push(seen.params.len() as u32);
        input.extend_from_slice(seen.params);
        input.push(bindings.len() as u32);
        input.append(&mut bindings);
        input.push(places.len() as u32);
        for (_, raw, written) in &places {
            let bytes = contents(device, raw)?;
            input.extend([u32::from(*written), bytes.len() as u32 / 4]);
            input.extend(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        }
        let [into, out] = ["input", "output"].map(|name| self.folder.0.join(name));
        std::fs::write(&into, bytemuck::cast_slice(&input)).map_err(|e| failed(e.to_string()))?;
        let run = Command::new(&program).arg(&into).arg(&out).output().map_err(|e| failed(e.to_string()))?;
        if !run.status.success() {
            let said = String::from_utf8_lossy(&run.stderr);
            let op = seen.op.name;
            return Err(failed(format!(
                "{op} ended with {} (a signal: it left its buffers): {said}",
                run.status
            )));
        }
        let mut results = std::fs::read(&out).map_err(|e| failed(e.to_string()))?;
        for (_, raw, written) in &places {
            if *written {
                let rest = results.split_off(raw.size() as usize);
                device.queue.write_buffer(raw, 0, &results);
                results = rest;
            }
        }
        Ok(true)
    }
}
