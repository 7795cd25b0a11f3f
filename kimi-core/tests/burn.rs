//! Stages and the reference model on one GPU: burn tensors against downloaded values, and against the reference.
//!
//! Without an adapter nothing is tested, unless `KIMI_REQUIRE_GPU` is set.
#![cfg(feature = "burn")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod checkpoints;

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use checkpoints::max_abs_err;
use checkpoints::random::{fixed, write};
use kimi_core::batch::{Batch, Output, SequenceId, SequenceSlice};
use kimi_core::burn::{BurnError, SharedGpu};
use kimi_core::checkpoint::Checkpoint;
use kimi_core::reference::{Cache, Model};
use kimi_core::stage::{CacheConfig, Stage, StageOutput};
use kimi_quant::gpu::GpuOptions;
use kimi_quant::{Backend, Gpu};

const TOKENS: usize = 7;

fn shared() -> Option<SharedGpu> {
    match Gpu::new(&GpuOptions::default()) {
        Ok(gpu) => Some(SharedGpu::new(Arc::new(gpu)).unwrap()),
        Err(e) if std::env::var_os("KIMI_REQUIRE_GPU").is_none() => {
            println!("skipped: no adapter ({e})");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

/// A checkpoint of three layers, experts among them.
fn checkpoint(folder: &Path) -> Checkpoint {
    let mut spec = fixed();
    spec.sizes.layers = 3;
    write(&spec, folder);
    Checkpoint::open(folder).unwrap()
}

fn stages(checkpoint: &Checkpoint, gpu: &Arc<Gpu>) -> [Stage<Gpu>; 2] {
    let cache = CacheConfig { pages: 3, page_tokens: 4 };
    [0..1, 1..3].map(|layers| Stage::load(checkpoint, gpu.clone(), layers, cache, &mut |_| {}).unwrap())
}

fn batch(ids: &[u32]) -> Batch {
    let sequence = SequenceSlice {
        id: SequenceId(1),
        start: 0,
        tokens: ids.to_vec(),
        pages: vec![2, 0],
        output: Output::AllLogits,
    };
    Batch { sequences: vec![sequence], ..Default::default() }
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.try_into_vec_as().unwrap()
}

#[test]
fn stages_hand_burn_tensors_on_and_agree_with_the_reference_beside_them() {
    let Some(shared) = shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(folder.path());
    let vocabulary = checkpoint.config().vocab_size;
    let ids: Vec<u32> = (0..TOKENS).map(|i| (i * 5 % vocabulary) as u32).collect();
    let batch = batch(&ids);

    let [mut first, mut last] = stages(&checkpoint, shared.gpu());
    let StageOutput::Hidden(hidden) = first.forward(&batch, None, None).unwrap() else { panic!("logits") };
    let StageOutput::Sequences(outputs) = last.forward(&batch, Some(hidden.clone()), None).unwrap() else {
        panic!("activations")
    };

    // Once more, with tensors from end to end.
    let [mut first, mut last] = stages(&checkpoint, shared.gpu());
    let tensor = shared.forward(&mut first, &batch, None).unwrap();
    let expected: Vec<f32> = bytemuck::pod_collect_to_vec(&hidden.data);
    assert_eq!(values(tensor.clone()), expected);
    // burn's own arithmetic before and after the hand-over.
    let doubled = tensor * 2.0;
    let logits = shared.forward(&mut last, &batch, Some(doubled / 2.0)).unwrap();
    assert_eq!(logits.dims(), [TOKENS, vocabulary]);
    assert_eq!(values(logits.clone()), outputs[0].logits);

    let model = Model::load_on(&checkpoint, shared.device()).unwrap();
    let reference = model.activations(&ids, &mut Cache::new()).unwrap();
    let margin = reference.choices.iter().flatten().map(|c| c.margin).fold(f32::INFINITY, f32::min);
    assert!(margin >= 1e-4, "a choice of experts is decided by {margin:.1e}: choose another checkpoint");
    assert!(reference.choices.iter().any(|choices| !choices.is_empty()), "no layer has experts");
    let worst = (logits - reference.logits.clone()).abs().max().into_scalar::<f32>();
    let on_cpu = Model::load(&checkpoint).unwrap().forward(&ids).unwrap();
    let beside = max_abs_err(&values(reference.logits), &on_cpu);
    let engine = max_abs_err(&outputs[0].logits, &on_cpu);
    let size = on_cpu.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    println!(
        "logits up to {size}: engine and reference on the GPU differ by {worst:.1e}; \
         from the reference on the CPU by {engine:.1e} and {beside:.1e}"
    );
    assert!(beside <= 1e-4, "burn on the GPU against burn on the CPU: {beside}");
    // The engine's kernels give away some bits of an activation's 24 where codes share a word.
    assert!(worst.max(engine) <= 1e-4 * size, "the engine: {worst}, {engine}");
}

#[test]
fn tensors_of_any_layout_come_in_and_out() {
    let Some(shared) = shared() else { return };
    let rows: Vec<f32> = (0..15).map(|i| i as f32).collect();
    let tensor = Tensor::<1>::from_floats(rows.as_slice(), shared.device()).reshape([3, 5]);
    let turned = shared.import(tensor.transpose()).unwrap();
    let expected: Vec<f32> = (0..5).flat_map(|col| (0..3).map(move |row| (5 * row + col) as f32)).collect();
    assert_eq!(shared.gpu().download(&turned).unwrap(), expected);
    assert_eq!(values(shared.export(&turned).unwrap()), expected);
    // Memory that burn uses again at once, many times over.
    for round in 0..50 {
        let size = 1 + round % 7;
        let value = Tensor::<2>::full([size, 64], round as f32, shared.device()) + 1.0;
        let inside = shared.import(value).unwrap();
        let noise = Tensor::<2>::zeros([size, 64], shared.device()) - 9.0;
        let outside = shared.export(&inside).unwrap() + noise;
        assert_eq!(values(outside), vec![round as f32 - 8.0; 64 * size]);
    }
}

#[test]
fn what_is_elsewhere_is_refused() {
    let Some(shared) = shared() else { return };
    let elsewhere = Tensor::<2>::zeros([2, 2], &Device::flex());
    assert!(matches!(shared.import(elsewhere), Err(BurnError::OtherDevice("the tensor"))));
    let folder = tempfile::tempdir().unwrap();
    let other = Arc::new(Gpu::new(&GpuOptions::default()).unwrap());
    let [mut first, _] = stages(&checkpoint(folder.path()), &other);
    let error = shared.forward(&mut first, &batch(&[1]), None).unwrap_err();
    assert!(matches!(error, BurnError::OtherDevice("the stage")), "{error}");
}
