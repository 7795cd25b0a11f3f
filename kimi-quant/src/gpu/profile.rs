//! The time of every single dispatch.

use super::recorder::Recorder;
use crate::BackendError;

type Result<T> = std::result::Result<T, BackendError>;

/// Dispatches whose times one set of queries holds.
const SET: usize = 1024;
/// Bytes of the two timestamps of a dispatch.
const TIMES: usize = 16;

/// One dispatch and its time.
#[derive(Debug, Clone, PartialEq)]
pub struct DispatchTime {
    /// Name of its shader.
    pub shader: &'static str,
    /// Packed matrices that it reads.
    pub matrices: u32,
    /// From its beginning to its end.
    pub nanoseconds: f64,
}

/// Timestamps of dispatches while they are recorded.
#[derive(Default)]
pub(super) struct Profile {
    sets: Vec<wgpu::QuerySet>,
    /// Shader and matrices of each dispatch.
    dispatches: Vec<(&'static str, u32)>,
}

impl Profile {
    /// Where the next dispatch writes its times.
    pub(super) fn next(
        &mut self,
        device: &wgpu::Device,
        shader: &'static str,
        matrices: u32,
    ) -> wgpu::ComputePassTimestampWrites<'_> {
        let (set, index) = (self.dispatches.len() / SET, 2 * (self.dispatches.len() % SET) as u32);
        self.dispatches.push((shader, matrices));
        if self.sets.len() <= set {
            self.sets.push(queries(device, SET));
        }
        wgpu::ComputePassTimestampWrites {
            query_set: &self.sets[set],
            beginning_of_pass_write_index: Some(index),
            end_of_pass_write_index: Some(index + 1),
        }
    }
}

/// Queries for `count` pairs of timestamps.
pub(super) fn queries(device: &wgpu::Device, count: usize) -> wgpu::QuerySet {
    device.create_query_set(&wgpu::QuerySetDescriptor {
        label: Some("times"),
        ty: wgpu::QueryType::Timestamp,
        count: 2 * count as u32,
    })
}

impl Recorder {
    /// The times of all dispatches that `work` records; `None` where the adapter has no clock. Everything else waits.
    pub(super) fn profiled(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Vec<DispatchTime>>> {
        self.flush()?;
        if !self.device.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            work()?;
            return self.flush().map(|()| None);
        }
        self.lock().profile = Some(Profile::default());
        let recorded = work();
        let profile = self.lock().profile.take();
        recorded?;
        profile.map(|p| self.times(&p)).transpose()
    }

    fn times(&self, profile: &Profile) -> Result<Vec<DispatchTime>> {
        let times = self.nanoseconds(&profile.sets, profile.dispatches.len())?;
        let time = |(&(shader, matrices), nanoseconds)| DispatchTime { shader, matrices, nanoseconds };
        Ok(profile.dispatches.iter().zip(times).map(time).collect())
    }

    /// Submits, waits, and returns the time between each of `count` pairs of timestamps, [`SET`] of them in each set.
    pub(super) fn nanoseconds(&self, sets: &[wgpu::QuerySet], count: usize) -> Result<Vec<f64>> {
        let bytes = (TIMES * count) as u64;
        if count == 0 {
            return Ok(Vec::new());
        }
        let device = &self.device.device;
        let resolved = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("times"),
            size: bytes.next_multiple_of(256),
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let out = self.pool.take(bytes, false)?;
        {
            let mut state = self.lock();
            state.pass = None;
            let encoder =
                state.encoder.get_or_insert_with(|| device.create_command_encoder(&Default::default()));
            for (i, set) in sets.iter().enumerate() {
                let queries = 2 * (count - i * SET).min(SET) as u32;
                encoder.resolve_query_set(set, 0..queries, &resolved, (i * SET * TIMES) as u64);
            }
            encoder.copy_buffer_to_buffer(&resolved, 0, &out.raw, 0, Some(bytes));
        }
        let read = self.read(&[(&out, 0..bytes)])?;
        let ticks: Vec<[u64; 2]> = read.first().map(|b| bytemuck::pod_collect_to_vec(b)).unwrap_or_default();
        let period = f64::from(self.device.queue.get_timestamp_period());
        Ok(ticks.into_iter().map(|[start, end]| end.wrapping_sub(start) as f64 * period).collect())
    }
}
