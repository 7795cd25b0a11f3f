//! Kernels made before they are needed, so that no step waits for a compiler.
//!
//! What is needed is found out by a *rehearsal*: a twin of the device on which the model runs with batches of all sizes.
//! Its operations choose kernels as ever, note them, and compute nothing. The kernels are then made by several threads.
//! Where the driver can hand machine code out (Vulkan), it is kept from one run to the next.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use super::recorder::{Recorder, layout_entry};
use super::shader::{Op, Spec};
use super::{Gpu, Result};
use crate::BackendError;

/// Threads that make kernels at most: more wait for each other in the driver.
const THREADS: usize = 16;

/// Kernels that were made while a step waited, by all GPUs of this process.
static MADE_IN_STEPS: AtomicU64 = AtomicU64::new(0);

/// How many kernels this process has had to make in the middle of steps. After a start that made all that are needed it
/// stays what it was.
pub fn kernels_made_in_steps() -> u64 {
    MADE_IN_STEPS.load(Ordering::Relaxed)
}

/// A kernel that can be run.
pub(super) struct Pipeline {
    /// Tells it from others of its device.
    pub(super) number: usize,
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) layout: wgpu::BindGroupLayout,
}

/// The kernels of a device that are there.
#[derive(Default)]
pub(super) struct Kernels {
    by_spec: HashMap<Spec, Arc<Pipeline>>,
    /// The same by their shaders' whole text: many specialisations have the same.
    by_text: HashMap<String, Arc<Pipeline>>,
}

/// What a twin has noted.
#[derive(Default)]
pub(super) struct Rehearsal {
    /// In the order in which they were first needed, so that the most common ones are made first.
    noted: Vec<(Spec, &'static Op)>,
    places: HashMap<Spec, usize>,
    /// Of all that was noted since it was last asked for.
    trace: DefaultHasher,
}

impl Rehearsal {
    pub(super) fn note(&mut self, op: &'static Op, spec: Spec) {
        spec.hash(&mut self.trace);
        let place = self.places.len();
        self.places.entry(spec).or_insert_with_key(|spec| {
            self.noted.push((spec.clone(), op));
            place
        });
    }
}

impl Kernels {
    pub(super) fn find(&self, spec: &Spec) -> Option<Arc<Pipeline>> {
        self.by_spec.get(spec).cloned()
    }

    fn add(&mut self, text: String, pipeline: impl FnOnce(usize) -> Pipeline) -> Arc<Pipeline> {
        let number = self.by_text.len();
        self.by_text.entry(text).or_insert_with(|| Arc::new(pipeline(number))).clone()
    }
}

impl Recorder {
    /// The kernel, which is made now if it is not there.
    pub(super) fn kernel(&self, kernels: &mut Kernels, op: &'static Op, spec: Spec) -> Arc<Pipeline> {
        if let Some(found) = kernels.find(&spec) {
            return found;
        }
        let text = spec.source(op);
        self.dump(op, &text);
        let made = kernels.add(text.clone(), |number| {
            MADE_IN_STEPS.fetch_add(1, Ordering::Relaxed);
            self.made_in_steps.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(kernel = op.name, "made in the middle of a step");
            let (pipeline, layout) = self.make(op, &spec, &text);
            Pipeline { number, pipeline, layout }
        });
        kernels.by_spec.insert(spec, made.clone());
        made
    }

    /// Counts the kernels made so far as not made in a step: the device was examined with them.
    pub(super) fn examined(&self) {
        let made = self.made_in_steps.swap(0, Ordering::Relaxed);
        MADE_IN_STEPS.fetch_sub(made, Ordering::Relaxed);
    }

    /// Compiles a kernel. Any number of threads may.
    fn make(
        &self,
        op: &'static Op,
        spec: &Spec,
        text: &str,
    ) -> (wgpu::ComputePipeline, wgpu::BindGroupLayout) {
        let device = &self.device.device;
        let entries: Vec<_> = spec.writes(op).iter().enumerate().map(|(i, w)| layout_entry(i, *w)).collect();
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(op.name),
            entries: &entries,
        });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(op.name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 4 * op.params as u32,
        });
        let source = wgpu::ShaderSource::Wgsl(text.into());
        let descriptor = wgpu::ShaderModuleDescriptor { label: Some(op.name), source };
        let checks = wgpu::ShaderRuntimeChecks::unchecked();
        // SAFETY: the shaders are ours. Their loops end; they index buffers within the sizes that the operations check
        // before they dispatch, and tables by expert ids and pages that were checked or made on the device; they divide
        // by constants and by sizes that are not zero.
        let module = unsafe { device.create_shader_module_trusted(descriptor, checks) };
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(op.name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false, // every cell is written before it is read
                ..Default::default()
            },
            cache: self.device.machine_code.get(),
        });
        (pipeline, layout)
    }
}

impl Gpu {
    /// A twin that computes nothing: its operations, with matrices and caches of this one, note the kernels that they would
    /// run. What they return has any contents; nothing can be brought out.
    pub fn rehearsal(&self) -> Self {
        Self {
            recorder: Arc::new(self.recorder.rehearsing()),
            tuning: Mutex::new(self.tuning()),
            batch_kernel: Mutex::new(self.batch_kernel()),
            nothing: self.nothing.clone(),
            last_layout: Mutex::default(),
            nudge: self.nudge.clone(),
        }
    }

    /// A number for the kernels that a twin has noted since the last call, with their order: others have another number.
    pub fn rehearsed(&self) -> u64 {
        let rehearsal = self.recorder.rehearsal.as_ref();
        rehearsal.map_or(0, |r| {
            std::mem::take(&mut r.lock().unwrap_or_else(PoisonError::into_inner).trace).finish()
        })
    }

    /// Makes the kernels that a twin noted and that are not there, on several threads. `progress` is told how many of how
    /// many are made.
    ///
    /// # Errors
    /// [`BackendError::Device`] if the device failed, or the driver takes a kernel for wrong.
    pub fn make_kernels(&self, twin: &Self, progress: &mut dyn FnMut(usize, usize)) -> Result<()> {
        let Some(rehearsal) = &twin.recorder.rehearsal else { return Ok(()) };
        let noted = rehearsal.lock().unwrap_or_else(PoisonError::into_inner).noted.clone();
        let mut texts: HashMap<String, usize> = HashMap::new();
        let mut missing: Vec<(String, &Op, Vec<Spec>)> = Vec::new();
        {
            let kernels = &mut self.recorder.lock().kernels;
            for (spec, op) in noted {
                if kernels.find(&spec).is_some() {
                    continue;
                }
                let text = spec.source(op);
                if let Some(found) = kernels.by_text.get(&text).cloned() {
                    kernels.by_spec.insert(spec, found);
                } else if let Some(&place) = texts.get(&text) {
                    missing[place].2.push(spec);
                } else {
                    texts.insert(text.clone(), missing.len());
                    missing.push((text, op, vec![spec]));
                }
            }
        }
        drop(texts);
        let total = missing.len();
        let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS).min(total.max(1));
        let next = AtomicUsize::new(0);
        let (missing, next, recorder) = (&missing, &next, &self.recorder);
        thread::scope(|scope| {
            let (send, made) = mpsc::channel();
            for _ in 0..threads {
                let send = send.clone();
                scope.spawn(move || {
                    while let Some((text, op, specs)) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let Some(first) = specs.first() else { continue };
                        recorder.dump(op, text);
                        let (pipeline, layout) = recorder.make(op, first, text);
                        let mut state = recorder.lock();
                        let new = |number| Pipeline { number, pipeline, layout };
                        let pipeline = state.kernels.add(text.clone(), new);
                        for spec in specs {
                            state.kernels.by_spec.insert(spec.clone(), pipeline.clone());
                        }
                        drop(state);
                        let _ = send.send(()); // fails only if the receiver's thread has panicked
                    }
                });
            }
            drop(send);
            progress(0, total);
            made.iter().enumerate().for_each(|(i, ())| progress(i + 1, total));
        });
        self.recorder.device.check()
    }

    /// How many kernels had to be made in the middle of a step.
    pub fn kernels_made_in_steps(&self) -> u64 {
        self.recorder.made_in_steps.load(Ordering::Relaxed)
    }

    /// Kernels that are there.
    pub fn kernels(&self) -> usize {
        self.recorder.lock().kernels.by_text.len()
    }

    /// What the machine code of kernels belongs to: the device, its driver and its version. `None` where the driver does not
    /// hand machine code out.
    pub fn machine_code_key(&self) -> Option<String> {
        let device = &self.recorder.device;
        let has = device.device.features().contains(wgpu::Features::PIPELINE_CACHE);
        let key = has.then(|| wgpu::util::pipeline_cache_key(&device.info)).flatten()?;
        let wgpu::AdapterInfo { name, driver, driver_info, .. } = &device.info;
        Some(format!("{key}\n{name}\n{driver}\n{driver_info}"))
    }

    /// Makes kernels from now on with machine code that [`Self::machine_code`] has given in an earlier run, and collects that
    /// of new ones. To be called at most once, before any kernel is made; nothing happens where the driver can't.
    ///
    /// # Safety
    /// `kept` must be what [`Self::machine_code`] has given, of a device with the same [`Self::machine_code_key`]: drivers
    /// need not check it.
    pub unsafe fn keep_machine_code(&self, kept: Option<&[u8]>) {
        let device = &self.recorder.device;
        if self.machine_code_key().is_none() {
            return;
        }
        let descriptor = wgpu::PipelineCacheDescriptor { label: Some("kernels"), data: kept, fallback: true };
        // SAFETY: the caller's promise is what is asked for.
        let cache = unsafe { device.device.create_pipeline_cache(&descriptor) };
        let _ = device.machine_code.set(cache); // the first stays
    }

    /// The machine code of all kernels since [`Self::keep_machine_code`], with what was given there.
    pub fn machine_code(&self) -> Option<Vec<u8>> {
        self.recorder.device.machine_code.get()?.get_data()
    }
}

/// Says that nothing can be brought out of a twin.
pub(super) fn rehearsing() -> BackendError {
    BackendError::Device("nothing is brought out while kernels are rehearsed".to_owned())
}
