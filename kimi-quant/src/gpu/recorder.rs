//! Work is recorded into a command encoder, which is submitted now and then; only bringing results out waits.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use super::device::Device;
use super::dump::Dump;
use super::kernels::{Kernels, Pipeline, Rehearsal, rehearsing};
use super::pace::{Pace, Work};
use super::pool::{Buffer, Pool};
use super::profile::{Profile, queries};
use super::shader::{Op, Spec};
use super::tally::{TALLY_BYTES, Tally, unfinished};
use crate::BackendError;

type Result<T> = std::result::Result<T, BackendError>;
type Polled = std::result::Result<wgpu::PollStatus, wgpu::PollError>;

/// From how long before the expected end of a wait the device is polled, and for how long after it.
const ASKING: Duration = Duration::from_millis(1);

/// How long it may take, after a wait has ended, until the callback says that results are there.
const TOLD: Duration = Duration::from_secs(5);

/// When there are so many bind groups, all are dropped and made anew.
const BIND_GROUPS: usize = 16384;

/// Dispatches that are recorded before the device starts on them, after `submitted` submissions that nobody waited for: few
/// at first, so that the device computes while the host records, then more, since a submission takes the host longer than
/// they do. A device that is busy with other work gets many at once.
fn dispatches_of(submitted: usize, busy: bool) -> usize {
    const FIRST: usize = 4;
    const MAX: usize = 128;
    if busy { MAX } else { FIRST.saturating_mul(3usize.saturating_pow(submitted.min(8) as u32)).min(MAX) }
}

#[derive(Default)]
pub(super) struct State {
    pub(super) pass: Option<wgpu::ComputePass<'static>>, // before the encoder, so that it is dropped first
    pub(super) encoder: Option<wgpu::CommandEncoder>,
    recorded: usize,
    /// Submissions that the device was told to count.
    counted: u32,
    /// Submissions since the last that is or was waited for.
    submitted: usize,
    /// Held by results that are on their way too.
    on_the_way: Arc<()>,
    /// How long the device was last waited for.
    last_wait: Duration,
    pace: Pace,
    /// Whether what is recorded must stay in one submission.
    whole: bool,
    /// While each dispatch is timed.
    pub(super) profile: Option<Profile>,
    pub(super) kernels: Kernels,
    bind_groups: HashMap<(usize, Vec<u64>), wgpu::BindGroup>,
    /// Buffers that results came back in.
    readbacks: Vec<wgpu::Buffer>,
    /// All specialisations so far.
    #[cfg(test)]
    pub(super) made: Vec<(&'static Op, Spec)>,
    /// Sees each dispatch, and may compute it in the device's place.
    #[cfg(test)]
    pub(super) observer: Option<Arc<dyn super::tests::Observer>>,
}

/// Bytes on their way from the device.
pub(crate) struct Arriving {
    buffer: wgpu::Buffer,
    lengths: Vec<usize>,
    /// The submission that brings them.
    submission: wgpu::SubmissionIndex,
    work: Work,
    /// Submissions that it must have counted then.
    counted: u32,
    _on_the_way: Arc<()>,
}

/// Records dispatches on one device.
pub(crate) struct Recorder {
    pub(crate) device: Device,
    pub(crate) pool: Arc<Pool>,
    state: Mutex<State>,
    /// While much is uploaded.
    staging: Mutex<Option<Staging>>,
    dispatches: AtomicU64,
    tally: Arc<Tally>,
    dump: Mutex<Dump>,
    /// Kernels that had to be made when they were needed.
    pub(super) made_in_steps: AtomicU64,
    /// Keeps the weights in reach.
    #[cfg(target_os = "macos")]
    pub(super) residency: Option<super::metal_memory::Residency>,
    /// Of a twin that computes nothing.
    pub(super) rehearsal: Option<Mutex<Rehearsal>>,
}

/// Staging memory that is used again and again.
struct Staging {
    belt: wgpu::util::StagingBelt,
    /// Copies that the device may not have made yet, oldest first.
    copies: VecDeque<wgpu::SubmissionIndex>,
}

/// Bytes that are staged at once, and how often: the host fills one piece while the device copies the others.
pub(crate) const STAGED: usize = 16 << 20;
const STAGED_PIECES: usize = 3;

/// One dispatch.
pub(crate) struct Dispatch<'a> {
    pub(crate) op: &'static Op,
    pub(crate) spec: Spec,
    /// In the order of their bindings.
    pub(crate) buffers: &'a [&'a Buffer],
    /// The words of `Params`.
    pub(crate) params: &'a [u32],
    pub(crate) grid: [usize; 3],
}

impl Recorder {
    pub(crate) fn new(device: Device) -> Self {
        let (pool, tally) = (Pool::new(device.device.clone()), Arc::new(Tally::new(&device)));
        Self::over(device, tally, pool, Dump::from_environment(), None)
    }

    /// Of a twin that notes kernels and computes nothing.
    pub(super) fn rehearsing(&self) -> Self {
        let rehearsal = Some(Mutex::default());
        let (device, tally) = (self.device.clone(), self.tally.clone());
        Self::over(device, tally, self.pool.rehearsing(), Dump::default(), rehearsal)
    }

    fn over(
        device: Device,
        tally: Arc<Tally>,
        pool: Arc<Pool>,
        dump: Dump,
        rehearsal: Option<Mutex<Rehearsal>>,
    ) -> Self {
        #[cfg(target_os = "macos")]
        let residency = match rehearsal {
            None => super::metal_memory::Residency::new(&device),
            Some(_) => None,
        };
        Self {
            #[cfg(target_os = "macos")]
            residency,
            device,
            pool,
            state: Mutex::default(),
            staging: Mutex::default(),
            dispatches: AtomicU64::new(0),
            tally,
            dump: Mutex::new(dump),
            made_in_steps: AtomicU64::new(0),
            rehearsal,
        }
    }

    /// Keeps a kernel's text where that is asked for.
    pub(super) fn dump(&self, op: &Op, text: &str) {
        self.dump.lock().unwrap_or_else(PoisonError::into_inner).keep(op.name, text);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the multiply-adds of the next dispatch: a submission holds only so many. For work that may take long.
    pub(crate) fn count(&self, products: f64) {
        self.lock().pace.record(products);
    }

    /// Records one dispatch; an empty grid is nothing.
    pub(crate) fn dispatch(&self, dispatch: Dispatch<'_>) -> Result<()> {
        let Dispatch { op, mut spec, buffers, params, grid } = dispatch;
        if grid.contains(&0) {
            return Ok(());
        }
        let limit = self.device.limits.max_compute_workgroups_per_dimension as usize + 1;
        grid.iter().try_for_each(|&n| BackendError::check_range(op.name, "workgroups", n, limit))?;
        BackendError::check(op.name, "parameters", params.len(), op.params)?;
        BackendError::check(op.name, "bindings", buffers.len(), spec.writes(op).len())?;
        spec.subgroups = self.device.hardware.subgroups;
        if let Some(rehearsal) = &self.rehearsal {
            rehearsal.lock().unwrap_or_else(PoisonError::into_inner).note(op, spec);
            return Ok(());
        }
        let matrices = spec.matrices;
        let mut state = self.lock();
        let state = &mut *state;
        #[cfg(test)]
        if let Some(observer) = &state.observer {
            let seen = super::tests::Seen { op, spec: &spec, buffers, params, grid };
            if observer.see(&self.device, &seen)? {
                return Ok(());
            }
        }
        #[cfg(test)]
        if state.kernels.find(&spec).is_none() {
            state.made.push((op, spec.clone()));
        }
        let pipeline = self.kernel(&mut state.kernels, op, spec);
        if state.bind_groups.len() >= BIND_GROUPS {
            state.bind_groups.clear();
        }
        let key = (pipeline.number, buffers.iter().map(|b| b.id).collect());
        let bind_group =
            state.bind_groups.entry(key).or_insert_with(|| self.bind_group(op, &pipeline, buffers));
        let encoder = state
            .encoder
            .get_or_insert_with(|| self.device.device.create_command_encoder(&Default::default()));
        if state.profile.is_some() {
            state.pass = None; // a pass for each dispatch
        }
        let pass = state.pass.get_or_insert_with(|| {
            let profile = state.profile.as_mut();
            let times = profile.map(|p| p.next(&self.device.device, op.name, matrices));
            let pass = wgpu::ComputePassDescriptor { timestamp_writes: times, ..Default::default() };
            encoder.begin_compute_pass(&pass).forget_lifetime()
        });
        pass.set_pipeline(&pipeline.pipeline);
        pass.set_bind_group(0, &*bind_group, &[]);
        pass.set_immediates(0, bytemuck::cast_slice(params));
        let [x, y, z] = grid.map(|n| n as u32);
        pass.dispatch_workgroups(x, y, z);
        state.recorded += 1;
        self.dispatches.fetch_add(1, Ordering::Relaxed);
        let enough = dispatches_of(state.submitted, Arc::strong_count(&state.on_the_way) > 1);
        if !state.whole && (state.recorded >= enough || state.pace.is_full()) {
            self.submit(state);
        }
        Ok(())
    }

    fn bind_group(&self, op: &Op, pipeline: &Pipeline, buffers: &[&Buffer]) -> wgpu::BindGroup {
        let entries: Vec<_> = buffers
            .iter()
            .enumerate()
            .map(|(i, b)| wgpu::BindGroupEntry { binding: i as u32, resource: b.raw.as_entire_binding() })
            .collect();
        self.device.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(op.name),
            layout: &pipeline.layout,
            entries: &entries,
        })
    }

    /// Lets the device count the submission that is recorded, as its last kernel, if it has any.
    fn count_submission(&self, state: &mut State) {
        if state.recorded == 0 {
            return;
        }
        state.recorded = 0;
        if state.profile.is_some() {
            state.pass = None; // it is timed
        }
        let encoder = state
            .encoder
            .get_or_insert_with(|| self.device.device.create_command_encoder(&Default::default()));
        let new = || encoder.begin_compute_pass(&Default::default()).forget_lifetime();
        self.tally.count(state.pass.get_or_insert_with(new));
        state.counted = state.counted.wrapping_add(1);
    }

    fn submit(&self, state: &mut State) -> wgpu::SubmissionIndex {
        self.count_submission(state);
        state.pass = None;
        #[cfg(target_os = "macos")]
        if let Some(residency) = &self.residency {
            residency.used();
        }
        let index = self.device.queue.submit(state.encoder.take().map(wgpu::CommandEncoder::finish));
        state.recorded = 0;
        state.submitted += 1;
        state.pace.submit(Instant::now());
        self.pool.submitted();
        index
    }

    /// Forgets bind groups, which keep their buffers alive: for when weights go.
    pub(crate) fn forget(&self, id: u64) {
        self.lock().bind_groups.retain(|(_, buffers), _| !buffers.contains(&id));
    }

    /// Writes `bytes`, a multiple of 4, before all work that is recorded and not submitted.
    pub(crate) fn write(&self, buffer: &Buffer, offset: u64, bytes: &[u8]) {
        if self.rehearsal.is_some() {
            return;
        }
        self.device.queue.write_buffer(&buffer.raw, offset, bytes);
    }

    /// The same for up to [`STAGED`] of very many bytes: it waits for earlier ones so that staging memory stays small.
    pub(crate) fn upload(&self, buffer: &Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        let Some(size) = wgpu::BufferSize::new(bytes.len() as u64) else { return Ok(()) };
        let device = &self.device.device;
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let Staging { belt, copies } = staging.get_or_insert_with(|| Staging {
            belt: wgpu::util::StagingBelt::new(device.clone(), STAGED as u64),
            copies: VecDeque::new(),
        });
        if copies.len() == STAGED_PIECES {
            let wait = wgpu::PollType::Wait { submission_index: copies.pop_front(), timeout: None };
            let waited = survive(|| device.poll(wait));
            self.device.check()?;
            waited?.map_err(|e| BackendError::Device(e.to_string()))?;
        }
        let mut encoder = device.create_command_encoder(&Default::default());
        belt.write_buffer(&mut encoder, &buffer.raw, offset, size).copy_from_slice(bytes);
        belt.finish();
        copies.push_back(self.device.queue.submit([encoder.finish()]));
        belt.recall();
        Ok(())
    }

    /// Submits everything recorded so far and, after it, a copy of `bytes` bytes from one buffer and offset to another.
    pub(crate) fn copy(
        &self,
        from: (&wgpu::Buffer, u64),
        to: (&wgpu::Buffer, u64),
        bytes: u64,
    ) -> Result<()> {
        let mut state = self.lock();
        let state = &mut *state;
        state.pass = None;
        let encoder = state
            .encoder
            .get_or_insert_with(|| self.device.device.create_command_encoder(&Default::default()));
        encoder.copy_buffer_to_buffer(from.0, from.1, to.0, to.1, Some(bytes));
        self.submit(state);
        self.device.check()
    }

    /// Dispatches recorded so far.
    pub(crate) fn dispatches(&self) -> u64 {
        self.dispatches.load(Ordering::Relaxed)
    }

    /// Submits without waiting.
    pub(crate) fn start(&self) {
        self.submit(&mut self.lock());
    }

    /// Submits and waits; all staging memory is free then.
    pub(crate) fn flush(&self) -> Result<()> {
        let mut state = self.lock();
        self.submit(&mut state);
        self.wait(&mut state)
    }

    /// Nanoseconds that the device spends on what `work` records, from its first dispatch to the end of its last; `None`
    /// where the adapter has no clock. What was recorded before goes first.
    pub(crate) fn timed(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<f64>> {
        if !self.device.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            work()?;
            return self.flush().map(|()| None);
        }
        self.submit(&mut self.lock());
        let device = &self.device.device;
        let queries = queries(device, 1);
        {
            let mut state = self.lock();
            let mut encoder = device.create_command_encoder(&Default::default());
            let pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: Some("timed"),
                timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                    query_set: &queries,
                    beginning_of_pass_write_index: Some(0),
                    end_of_pass_write_index: Some(1),
                }),
            });
            state.pass = Some(pass.forget_lifetime());
            state.encoder = Some(encoder);
            state.whole = true;
        }
        let recorded = work();
        self.lock().whole = false;
        recorded?;
        Ok(self.nanoseconds(&[queries], 1)?.first().copied())
    }

    /// Waits for all submitted work.
    fn wait(&self, state: &mut State) -> Result<()> {
        let waited = survive(|| self.block(None, None));
        let work = state.pace.submitted();
        state.pace.done(&work, Instant::now());
        state.submitted = 0;
        self.staging.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.device.check()?;
        waited?.map(|_| ()).map_err(|e| BackendError::Device(e.to_string()))
    }

    fn block(&self, submission_index: Option<wgpu::SubmissionIndex>, timeout: Option<Duration>) -> Polled {
        self.device.device.poll(wgpu::PollType::Wait { submission_index, timeout })
    }

    /// Waits until `arrived` for about as long as the `last` wait took, and says whether it has. A blocked thread is woken
    /// late (an H100 was done for 0.1 ms by then), so it asks again and again when the time has nearly come.
    fn ask(
        &self,
        submission: &wgpu::SubmissionIndex,
        last: Duration,
        arrived: &mut dyn FnMut() -> bool,
    ) -> bool {
        if !self.device.about.is_hardware() {
            return false; // software needs the processor itself
        }
        let start = Instant::now();
        if last > ASKING && self.block(Some(submission.clone()), Some(last - ASKING)).is_ok() {
            return arrived();
        }
        while start.elapsed() < last + ASKING {
            if self.device.device.poll(wgpu::PollType::Poll).is_err() {
                return false;
            }
            if arrived() {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    /// Submits, waits, and returns some bytes of some buffers; ranges begin and end at multiples of 4.
    pub(crate) fn read(&self, parts: &[(&Buffer, Range<u64>)]) -> Result<Vec<Vec<u8>>> {
        if self.rehearsal.is_some() {
            return Err(rehearsing());
        }
        let nothing = || BackendError::Device("nothing is brought out while work is timed".to_owned());
        self.finish_read(self.start_read(parts).ok_or_else(nothing)?)
    }

    /// Records copies of some bytes of some buffers as they are now, and submits; [`Self::finish_read`] waits for them.
    /// `None` while what is recorded must stay in one submission.
    pub(crate) fn start_read(&self, parts: &[(&Buffer, Range<u64>)]) -> Option<Arriving> {
        let length = |range: &Range<u64>| range.end - range.start;
        let mut state = self.lock();
        let state = &mut *state;
        if state.whole || self.rehearsal.is_some() {
            return None;
        }
        let results: u64 = parts.iter().map(|(_, range)| length(range).next_multiple_of(8)).sum();
        let total = results + TALLY_BYTES;
        let kept = state.readbacks.iter().position(|buffer| buffer.size() >= total);
        let buffer = match kept {
            Some(i) => state.readbacks.swap_remove(i),
            None => self.device.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("results"),
                size: total.max(4096).next_power_of_two(),
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            }),
        };
        self.count_submission(state);
        state.pass = None;
        let encoder = state
            .encoder
            .get_or_insert_with(|| self.device.device.create_command_encoder(&Default::default()));
        let mut offset = 0;
        for (from, range) in parts.iter().filter(|(_, range)| !range.is_empty()) {
            encoder.copy_buffer_to_buffer(&from.raw, range.start, &buffer, offset, Some(length(range)));
            offset += length(range).next_multiple_of(8);
        }
        encoder.copy_buffer_to_buffer(self.tally.buffer(), 0, &buffer, offset, Some(TALLY_BYTES));
        let counted = state.counted;
        let submission = self.submit(state);
        state.submitted = 0;
        let lengths = parts.iter().map(|(_, range)| length(range) as usize).collect();
        let _on_the_way = state.on_the_way.clone();
        Some(Arriving { buffer, lengths, submission, work: state.pace.submitted(), counted, _on_the_way })
    }

    /// Waits for bytes that were asked for, and for nothing that was recorded after them.
    pub(crate) fn finish_read(&self, arriving: Arriving) -> Result<Vec<Vec<u8>>> {
        let Arriving { buffer, lengths, submission, work, counted, _on_the_way } = arriving;
        let last = self.lock().last_wait;
        let failed = |what: String| BackendError::Device(format!("can't read results: {what}"));
        let start = Instant::now();
        let (send, result) = mpsc::channel();
        buffer.slice(..).map_async(wgpu::MapMode::Read, move |result| drop(send.send(result)));
        let mut mapped = None;
        let mut arrived = || {
            mapped = mapped.take().or_else(|| result.try_recv().ok());
            mapped.is_some()
        };
        let waited = survive(|| {
            let there = self.ask(&submission, last, &mut arrived);
            if there { Ok(()) } else { self.block(Some(submission), None).map(drop) }
        });
        self.device.check()?;
        waited?.map_err(|e| BackendError::Device(e.to_string()))?;
        // Another thread that submits or waits may have been the one to see that they are there, and be about to tell.
        let mapped = mapped.map_or_else(|| result.recv_timeout(TOLD), Ok);
        mapped.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))?;
        let mut out = Vec::with_capacity(lengths.len());
        {
            let view = buffer.slice(..).get_mapped_range().map_err(|e| failed(e.to_string()))?;
            let mut offset = 0;
            for bytes in lengths {
                out.push(view[offset..offset + bytes].to_vec());
                offset += bytes.next_multiple_of(8);
            }
            let found = bytemuck::pod_read_unaligned(&view[offset..offset + TALLY_BYTES as usize]);
            if found != counted {
                let _ = self.device.failure.set(unfinished(found, counted)); // the first failure stays
            }
        }
        buffer.unmap();
        self.device.check()?;
        self.staging.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut state = self.lock();
        state.last_wait = start.elapsed();
        state.pace.done(&work, Instant::now());
        state.readbacks.push(buffer);
        Ok(out)
    }
}

/// wgpu 30 panics where a wait finds the device lost (after it has told so), and offers no other way to wait.
fn survive<R>(wait: impl FnOnce() -> R) -> Result<R> {
    catch_unwind(AssertUnwindSafe(wait))
        .map_err(|_| BackendError::Device("the device was lost while it was waited for".to_owned()))
}

pub(super) fn layout_entry(binding: usize, written: bool) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry {
        binding: binding as u32,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only: !written },
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    }
}

#[cfg(test)]
mod tests {
    use super::survive;
    use crate::BackendError;

    #[test]
    fn a_panic_while_waiting_is_a_lost_device() {
        assert_eq!(survive(|| 1), Ok(1));
        let lost = survive(|| std::panic::resume_unwind(Box::new("Parent device is lost")));
        assert!(matches!(lost, Err::<(), _>(BackendError::Device(what)) if what.contains("lost")));
    }
}
