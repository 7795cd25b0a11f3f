//! burn on the engine's GPU: a stage's input and output as burn tensors, with no way through the host.
//!
//! burn is given the engine's own wgpu device and queue. A tensor changes hands by a copy on the device, since burn
//! takes no foreign buffers; both sides submit what they have recorded, and the queue keeps the order, so nobody waits.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # use std::sync::Arc;
//! use kimi_core::{Checkpoint, batch::Batch, burn::SharedGpu, reference::Model, stage::{CacheConfig, Stage}};
//! use kimi_quant::{Gpu, gpu::GpuOptions};
//!
//! let shared = SharedGpu::new(Arc::new(Gpu::new(&GpuOptions::default())?))?;
//! let checkpoint = Checkpoint::open("a_checkpoint")?;
//! let cache = CacheConfig { pages: 16, page_tokens: 16 };
//! let mut stage = Stage::load(&checkpoint, shared.gpu().clone(), 0..2, cache, &mut |_| {})?;
//! # let batch = Batch::default();
//! let hidden = shared.forward(&mut stage, &batch, None)?; // [T, H], a burn tensor
//! let beside = Model::load_on(&checkpoint, shared.device())?; // the reference on the same device
//! # Ok(())
//! # }
//! ```

use std::sync::Arc;

use burn::backend::Wgpu;
use burn::backend::wgpu::{AutoCompiler, CubeTensor, WgpuResource};
use burn::cubecl::server::ServerError;
use burn::cubecl::wgpu::WgpuServer;
use burn::tensor::wgpu::{WgpuInitError, WgpuSetup};
use burn::tensor::{Device, Tensor};
use kimi_quant::gpu::{GpuTensor, Handles};
use kimi_quant::{BackendError, Gpu};

use crate::batch::Batch;
use crate::stage::{Stage, StageError};

/// Why a tensor did not change hands.
#[derive(Debug, thiserror::Error)]
pub enum BurnError {
    /// burn does not take the device.
    #[error("burn can't use the engine's device: {0}")]
    Init(#[from] WgpuInitError),
    /// burn failed on the device.
    #[error("burn failed on the engine's device: {0}")]
    Burn(String),
    /// The tensor or the stage is on another device.
    #[error("{0} is on another device; use the one of SharedGpu")]
    OtherDevice(&'static str),
    /// The engine failed.
    #[error(transparent)]
    Stage(#[from] StageError),
}

impl From<BackendError> for BurnError {
    fn from(error: BackendError) -> Self {
        Self::Stage(error.into())
    }
}

/// A GPU that the engine and burn share.
#[derive(Debug, Clone)]
pub struct SharedGpu {
    gpu: Arc<Gpu>,
    device: Device,
}

impl SharedGpu {
    /// Registers the engine's device with burn. Do so once and clone the result: burn keeps what is registered for the
    /// life of the process.
    ///
    /// # Errors
    /// [`BurnError::Init`].
    pub fn new(gpu: Arc<Gpu>) -> Result<Self, BurnError> {
        let Handles { instance, adapter, device, queue } = gpu.handles();
        let backend = adapter.get_info().backend;
        let setup = WgpuSetup { instance, adapter, device, queue, backend };
        let device = Device::wgpu_options().setup(setup).init()?;
        Ok(Self { gpu, device })
    }

    /// The engine's side: stages are loaded onto this.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// burn's side, for instance for [`Model::load_on`](crate::reference::Model::load_on).
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// [`Stage::forward_on_device`] from tensor to tensor: hidden states `[T, H]`, or from the last stage logits
    /// `[S, V]`.
    ///
    /// # Errors
    /// [`BurnError`].
    pub fn forward(
        &self,
        stage: &mut Stage<Gpu>,
        batch: &Batch,
        input: Option<Tensor<2>>,
    ) -> Result<Tensor<2>, BurnError> {
        if !std::ptr::eq(stage.backend(), self.gpu.as_ref()) {
            return Err(BurnError::OtherDevice("the stage"));
        }
        let input = input.map(|tensor| self.import(tensor)).transpose()?;
        self.export(&stage.forward_on_device(batch, input)?)
    }

    /// Activations as a burn tensor, a copy of them.
    ///
    /// # Errors
    /// [`BurnError`].
    pub fn export(&self, activations: &GpuTensor) -> Result<Tensor<2>, BurnError> {
        let tensor = Tensor::<2>::empty([activations.rows(), activations.cols()], &self.device);
        let cube = self.cube(tensor.clone())?;
        self.at_rest(&cube, |to| self.gpu.copy_to(activations, &to.buffer, to.offset))?;
        Ok(tensor)
    }

    /// A burn tensor as activations, a copy of it.
    ///
    /// # Errors
    /// [`BurnError`].
    pub fn import(&self, tensor: Tensor<2>) -> Result<GpuTensor, BurnError> {
        let [rows, cols] = tensor.dims();
        let mut cube = self.cube(tensor.clone())?;
        if !cube.is_contiguous() {
            // A transposed tensor, say: its values in order.
            let whole = Tensor::<2>::zeros([rows, cols], &self.device);
            cube = self.cube(whole.slice_assign([0..rows, 0..cols], tensor))?;
        }
        self.at_rest(&cube, |from| self.gpu.copy_from(rows, cols, &from.buffer, from.offset))
    }

    fn cube(&self, tensor: Tensor<2>) -> Result<CubeTensor, BurnError> {
        if tensor.device() != self.device {
            return Err(BurnError::OtherDevice("the tensor"));
        }
        tensor.try_into_primitive::<Wgpu>().map_err(|e| BurnError::Burn(format!("{e:?}")))
    }

    /// Runs `copy` with where a tensor's values lie, after burn has submitted all that it had recorded: later work of ours
    /// finds the values, and earlier work of burn's on the same memory comes first. Meanwhile burn gives the memory to
    /// nobody else.
    fn at_rest<R>(
        &self,
        cube: &CubeTensor,
        copy: impl FnOnce(&WgpuResource) -> Result<R, BackendError>,
    ) -> Result<R, BurnError> {
        let failed = |e: ServerError| BurnError::Burn(e.to_string());
        let memory =
            cube.client.get_resource::<WgpuServer<AutoCompiler>>(cube.handle.clone()).map_err(failed)?;
        cube.client.flush().map_err(failed)?;
        Ok(copy(memory.resource())?)
    }
}
