//! The GPU's operations against the CPU's, on whatever adapter there is.
//!
//! Without an adapter nothing is tested, unless `KIMI_REQUIRE_GPU` is set.
#![cfg(feature = "gpu")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use common::both::{Both, FOUR_BITS, close, formats, matrix};
use common::device::{gpu, open, spoil};
use common::{Random, misaligned};
use kimi_quant::gpu::{BatchKernel, GpuOptions, Tuning, wgpu};
use kimi_quant::{
    Backend, BackendError, BitWidth, Chip, Cpu, FloatType, Format, HeadShape, PackedMatrix, Router,
    RouterShape,
};

/// Rows and columns that are no multiple of anything, as far as the format allows.
fn shapes(format: Format, random: &mut Random) -> (usize, usize) {
    let step = match format {
        Format::Float(_) | Format::Fp8 { .. } => 1,
        _ => format.group().max(if format.code_bits().is_multiple_of(4) { 1 } else { 8 }),
    };
    let rows = if format.scale_rows() == 1 { 70 } else { 300 };
    (1 + random.below(rows), step * (1 + random.below(600 / step.max(8) + 2)))
}

#[test]
fn projections_of_every_format() {
    let Some(gpu) = gpu() else { return };
    let mut both = Both::new(gpu, 1);
    for format in formats() {
        for tokens in [1, 3, 13] {
            let (rows, cols) = shapes(format, &mut both.random);
            both.projections(format, tokens, rows, cols);
        }
    }
}

#[test]
fn long_rows_take_several_tiles() {
    let Some(gpu) = gpu() else { return };
    let mut both = Both::new(gpu, 2);
    for tokens in [1, 2, 5] {
        both.projections(FOUR_BITS, tokens, 5, 18432);
    }
    both.projections(Format::Float(FloatType::Bf16), 1, 3, 12345);
}

#[test]
fn without_subgroups() {
    let Some(gpu) = open(GpuOptions { no_subgroups: true, staged_upload: true, ..Default::default() }) else {
        return;
    };
    let mut both = Both::new(&gpu, 3);
    both.projections(FOUR_BITS, 1, 37, 512);
    both.projections(FOUR_BITS, 1, 2400, 64);
    both.projections(FOUR_BITS, 5, 37, 512);
    let shape = RouterShape { chosen: 3, groups: 1, kept_groups: 1, normalize: true, scale: 2.5 };
    both.experts([FOUR_BITS; 3], 2, shape, 16);
    let heads = HeadShape { heads: 3, nope: 32, rope: 16, value: 24, latent: 64 };
    both.attention(heads, FOUR_BITS, false, 16, &[(20, 3)]);
    // The tiles of large GPUs, which go by the number of lanes.
    gpu.set_batch_kernel(Some(BatchKernel::Tiled));
    both.projections(FOUR_BITS, 70, 150, 96);
    both.experts([FOUR_BITS; 3], 45, shape, 5);
}

/// The kernels and sizes of a Mac's GPU, as far as this adapter can run them.
#[test]
fn as_metal() {
    let as_metal = Some(Chip::of_apple(Chip::DEFAULT_APPLE).unwrap());
    let Some(gpu) = open(GpuOptions { as_metal, ..Default::default() }) else { return };
    assert!(gpu.name().ends_with(", as M3 Ultra"), "{}", gpu.name());
    assert!(!gpu.batch_kernels().contains(&BatchKernel::Cooperative));
    let mut both = Both::new(&gpu, 17);
    let shape = RouterShape { chosen: 3, groups: 1, kept_groups: 1, normalize: true, scale: 2.5 };
    for bits in BitWidth::ALL {
        let format = Format::Affine { bits, group: 64, scales: FloatType::Bf16 };
        both.projections(format, 1, 72, 384);
    }
    for tokens in [6, 70] {
        both.projections(FOUR_BITS, tokens, 72, 384);
    }
    both.experts([FOUR_BITS; 3], 1, shape, 16);
    both.experts([FOUR_BITS; 3], 45, shape, 5);
    let heads = HeadShape { heads: 20, nope: 32, rope: 16, value: 24, latent: 64 };
    both.attention(heads, FOUR_BITS, false, 16, &[(20, 3)]);
    both.attention(heads, FOUR_BITS, true, 16, &[(40, 9)]);
}

#[test]
fn tunings_agree() {
    let integer = [(32, 1, 1), (32, 2, 3), (64, 4, 2), (32, 8, 2), (64, 16, 1)].map(|sizes| (sizes, true));
    let float = [(32, 1, 5), (32, 8, 1)].map(|sizes| (sizes, false));
    for ((unit, values, steps), integer) in integer.into_iter().chain(float) {
        let tuning = Some(Tuning { unit, values, steps: Some(steps), integer });
        let Some(gpu) = open(GpuOptions { tuning, ..Default::default() }) else { return };
        let mut both = Both::new(&gpu, 4);
        for (bits, group) in BitWidth::ALL.into_iter().zip([32, 64, 128].into_iter().cycle()) {
            let format = Format::Affine { bits, group, scales: FloatType::Bf16 };
            both.projections(format, 1, if values >= 8 { 80 } else { 75 }, 384);
        }
        both.projections(Format::Int4 { group: 32, scales: FloatType::F16 }, 1, 40, 96);
        both.projections(FOUR_BITS, 1, 75, 2240); // with the kernel of 384 columns, if it is for many sizes
        // Several lines of activations at once.
        gpu.set_batch_kernel(Some(BatchKernel::Matvec));
        let shape = RouterShape { chosen: 3, groups: 1, kept_groups: 1, normalize: true, scale: 2.5 };
        for tokens in [3, 7] {
            both.projections(FOUR_BITS, tokens, 40, 384);
            both.experts([FOUR_BITS; 3], tokens, shape, 9);
        }
    }
}

#[test]
fn experts_of_every_format() {
    let Some(gpu) = gpu() else { return };
    let mut both = Both::new(gpu, 5);
    let shape = RouterShape { chosen: 3, groups: 1, kept_groups: 1, normalize: true, scale: 2.5 };
    for format in formats() {
        let tokens = 1 + both.random.below(3);
        both.experts([format; 3], tokens, shape, 12);
    }
    let eight = Format::Affine { bits: BitWidth::B8, group: 64, scales: FloatType::Bf16 };
    both.experts([FOUR_BITS, eight, Format::Mxfp4], 4, shape, 5);
}

/// Blocks of scales and rows that do not end together: of a matrix, of a part of one, of experts, of bindings.
#[test]
fn fp8_blocks_end_anywhere() {
    let Some(gpu) = open(GpuOptions { max_binding: Some(48 << 10), ..Default::default() }) else { return };
    let mut both = Both::new(&gpu, 12);
    let format = Format::Fp8 { scales: FloatType::F32 };
    let shape = RouterShape { chosen: 3, groups: 1, kept_groups: 1, normalize: true, scale: 2.5 };
    let cpu = Cpu::new();
    for kernel in [None].into_iter().chain(gpu.batch_kernels().into_iter().map(Some)) {
        gpu.set_batch_kernel(kernel);
        for tokens in [1, 5] {
            both.experts_of([160, 96], [format; 3], tokens, shape, 7);
            both.experts_of([160, 81], [format; 3], tokens, shape, 7);
            both.experts([format; 3], tokens, shape, 7);
            // Several bindings.
            for rows in [388, 389] {
                let (m, gm) = both.matrix(rows, 260, format);
                let x = both.random.f32s(tokens * 260);
                let mut c = cpu.upload(tokens, rows, &vec![0.0; tokens * rows]).unwrap();
                let mut g = gpu.upload(tokens, rows, c.data()).unwrap();
                cpu.project_add(&cpu.upload(tokens, 260, &x).unwrap(), &m, &mut c).unwrap();
                gpu.project_add(&gpu.upload(tokens, 260, &x).unwrap(), &gm, &mut g).unwrap();
                close("project_add", &gpu.download(&g).unwrap(), c.data());
            }
        }
    }
    for rows in [388, 389] {
        let (m, gm) = both.matrix(rows, 260, format);
        let ids: Vec<u32> = (0..rows as u32).step_by(11).collect();
        let (expected, found) = (cpu.embed(&m, &ids).unwrap(), gpu.embed(&gm, &ids).unwrap());
        assert_eq!(gpu.download(&found).unwrap(), expected.data());
    }
}

#[test]
fn batches_through_every_kernel() {
    let Some(gpu) = open(GpuOptions::default()) else { return };
    let mut both = Both::new(&gpu, 10);
    let bits = |bits, group| Format::Affine { bits, group, scales: FloatType::Bf16 };
    let mixed = [FOUR_BITS, bits(BitWidth::B3, 64), Format::Nvfp4, Format::Float(FloatType::F32)];
    // Every kind, and every number of scales a unit; `projections_of_every_format` has all formats of few tokens.
    let mut kinds = vec![Format::Mxfp4, Format::Mxfp8, Format::Float(FloatType::Bf16), bits(BitWidth::B4, 8)];
    kinds.extend([bits(BitWidth::B2, 128), bits(BitWidth::B5, 32), bits(BitWidth::B6, 16)]);
    kinds.extend([bits(BitWidth::B8, 64), Format::Int4 { group: 32, scales: FloatType::F16 }]);
    for kernel in gpu.batch_kernels() {
        gpu.set_batch_kernel(Some(kernel));
        for &format in mixed.iter().chain(kinds.iter().filter(|_| kernel != BatchKernel::Few)) {
            let (rows, cols) = shapes(format, &mut both.random);
            let tokens = 2 + both.random.below(40);
            both.projections(format, tokens, rows, cols);
        }
        // More than one tile of lines and of rows.
        both.projections(FOUR_BITS, 75, 300, 96);
        let shape = RouterShape { chosen: 3, groups: 1, kept_groups: 1, normalize: true, scale: 2.5 };
        for (i, tokens) in [2, 5, 33, 90].into_iter().enumerate() {
            both.experts([mixed[i]; 3], tokens, shape, 7);
        }
        both.experts([FOUR_BITS, bits(BitWidth::B8, 64), Format::Mxfp4], 21, shape, 5);
    }
}

#[test]
fn weights_are_split_over_bindings() {
    let Some(gpu) = open(GpuOptions { max_binding: Some(48 << 10), ..Default::default() }) else { return };
    let mut both = Both::new(&gpu, 11);
    let shape = RouterShape { chosen: 3, groups: 1, kept_groups: 1, normalize: true, scale: 2.5 };
    for kernel in gpu.batch_kernels() {
        gpu.set_batch_kernel(Some(kernel));
        for tokens in [1, 2, 30] {
            // 18 KiB an expert: two to a binding. The results of 90 pairs fit 128 columns at a time.
            both.experts([FOUR_BITS; 3], tokens, shape, 7);
            // 100 KiB: three bindings.
            let (rows, cols) = (100, 256);
            let (m, gm) = both.matrix(rows, cols, Format::Float(FloatType::F32));
            let (up, gup) = both.matrix(rows, cols, Format::Float(FloatType::F32));
            let (norm, gnorm) = both.norm(cols);
            let x = both.random.f32s(tokens * cols);
            let cx = both.cpu.upload(tokens, cols, &x).unwrap();
            let gx = gpu.upload(tokens, cols, &x).unwrap();
            let [c] = both.cpu.norm_project(&cx, &norm, [&m]).unwrap();
            let [g] = gpu.norm_project(&gx, &gnorm, [&gm]).unwrap();
            close("norm_project", &gpu.download(&g).unwrap(), c.data());
            let c = both.cpu.norm_swiglu(&cx, &norm, &m, &up).unwrap();
            let g = gpu.norm_swiglu(&gx, &gnorm, &gm, &gup).unwrap();
            close("norm_swiglu", &gpu.download(&g).unwrap(), c.data());
        }
    }
}

#[test]
fn routers_with_groups_and_ties() {
    let Some(gpu) = gpu() else { return };
    let mut both = Both::new(gpu, 6);
    for (experts, chosen, groups, kept_groups, normalize) in [
        (384, 8, 1, 1, true),
        (64, 8, 8, 3, true),
        (6, 1, 6, 2, true),
        (16, 16, 1, 1, false),
        (300, 5, 3, 1, false),
    ] {
        let shape = RouterShape { chosen, groups, kept_groups, normalize, scale: 2.827 };
        if experts <= 64 {
            both.experts([FOUR_BITS; 3], 3, shape, experts);
        }
        // All weights zero: every score is a tie, broken by the bias, and that has ties too.
        let zeros = Bytes::from(vec![0; 2 * 64 * experts]);
        let gate =
            PackedMatrix::new(experts, 64, Format::Float(FloatType::Bf16), zeros, Bytes::new(), Bytes::new());
        let gate = gate.unwrap();
        let bias: Vec<f32> = (0..experts).map(|e| ((e * 7) % 5) as f32 * 0.25 - 0.75).collect();
        let (norm, gnorm) = both.norm(64);
        let router = Router { gate: gate.clone(), bias: bias.clone(), shape };
        let grouter =
            Router { gate: gpu.load_matrix(gate).unwrap(), bias: gpu.load_vector(bias).unwrap(), shape };
        let x = both.random.f32s(64);
        let (_, expected) = both.cpu.route(&both.cpu.upload(1, 64, &x).unwrap(), &norm, &router).unwrap();
        let (_, found) = gpu.route(&gpu.upload(1, 64, &x).unwrap(), &gnorm, &grouter).unwrap();
        let expected = both.cpu.download_routing(&expected).unwrap();
        let found = gpu.download_routing(&found).unwrap();
        assert_eq!(found.0, expected.0, "{experts} experts in {groups} groups");
        close("weights", &found.1, &expected.1);
    }
}

#[test]
fn attention_over_pages() {
    let Some(gpu) = gpu() else { return };
    let mut both = Both::new(gpu, 7);
    let small = HeadShape { heads: 3, nope: 32, rope: 16, value: 24, latent: 64 };
    let kimi = HeadShape { heads: 16, nope: 128, rope: 64, value: 128, latent: 512 };
    let odd = HeadShape { heads: 7, nope: 32, rope: 6, value: 11, latent: 96 };
    let whole = HeadShape { heads: 32, nope: 32, rope: 32, value: 16, latent: 128 };
    for (heads, split, sequences) in [
        (small, false, &[(0, 1)][..]),
        (small, true, &[(0, 5)]),
        (odd, false, &[(3, 2), (0, 4), (40, 1)]),
        (odd, true, &[(17, 1)]),
        (kimi, false, &[(700, 1)]),
        (kimi, false, &[(130, 3), (9, 1)]),
        (whole, false, &[(15, 1), (16, 1), (17, 3), (0, 1)]),
        (whole, true, &[(47, 1)]),
    ] {
        both.attention(heads, FOUR_BITS, split, 16, sequences);
    }
    for format in formats().into_iter().filter(|f| f.group() <= 64) {
        let heads = HeadShape { nope: 64, latent: 64, ..small };
        let split = both.random.below(2) == 0;
        both.attention(heads, format, split, 8, &[(11, 1), (0, 2)]);
    }
}

#[test]
fn attention_of_batches() {
    let Some(gpu) = gpu() else { return };
    let mut both = Both::new(gpu, 10);
    // Whatever the segments are: no result of the first runs may be an old value.
    let sizes: Vec<usize> = (6..20).flat_map(|power| [1 << power, 3 << (power - 1)]).collect();
    spoil(gpu, &sizes);
    let small = HeadShape { heads: 3, nope: 32, rope: 16, value: 24, latent: 64 };
    let many = HeadShape { heads: 20, nope: 40, rope: 8, value: 70, latent: 72 };
    let tiles = HeadShape { heads: 18, nope: 24, rope: 16, value: 20, latent: 192 };
    let lengths: Vec<(u32, usize)> = (0..32).map(|i| (i * i * 37 % 301, 1)).collect();
    for (heads, format, split, sequences) in [
        (small, FOUR_BITS, false, &lengths[..9]),
        (small, FOUR_BITS, true, &lengths),
        (many, Format::Float(FloatType::Bf16), false, &[(0, 260)]), // a prompt: 32 heads a tile
        (many, Format::Float(FloatType::F32), true, &[(90, 70), (500, 1), (0, 4)]),
        (tiles, FOUR_BITS, false, &[(0, 260)]), // several tiles a segment
        (tiles, FOUR_BITS, false, &[(90, 70), (500, 1), (0, 4)]),
    ] {
        both.attention(heads, format, split, 16, sequences);
    }
}

#[test]
fn attention_at_the_end_of_a_long_context() {
    let Some(gpu) = gpu() else { return };
    let mut both = Both::new(gpu, 11);
    let heads = HeadShape { heads: 2, nope: 32, rope: 16, value: 8, latent: 64 };
    both.attention(heads, FOUR_BITS, false, 64, &[(131_071, 1)]);
    both.attention(heads, FOUR_BITS, false, 64, &[(131_050, 22), (3, 2)]);
}

#[test]
fn wrong_operands_are_refused() {
    let Some(gpu) = gpu() else { return };
    let mut both = Both::new(gpu, 8);
    let (_, m) = both.matrix(8, 64, FOUR_BITS);
    let x = gpu.upload(1, 32, &[0.0; 32]).unwrap();
    let (_, norm) = both.norm(32);
    assert!(gpu.norm_project(&x, &norm, [&m]).is_err());
    assert!(gpu.embed(&m, &[8]).is_err());
    assert!(gpu.upload(2, 32, &[0.0; 32]).is_err());
    assert!(gpu.load_experts(Vec::new()).is_err());
    assert!(gpu.head(&x, &[1], &norm, &m).is_err());
}

/// What is copied into another user's buffer is what is brought out: also of one token, whose norm is pending and whose
/// shared expert's activations follow the routed ones.
#[test]
fn a_copy_is_what_a_download_is() {
    const HIDDEN: usize = 128;
    let Some(gpu) = gpu() else { return };
    let mut both = Both::new(gpu, 12);
    let shape = RouterShape { chosen: 3, groups: 1, kept_groups: 1, normalize: true, scale: 2.5 };
    let experts: Vec<_> = (0..5).map(|_| matrix(&mut both.random, 64, HIDDEN, FOUR_BITS)).collect();
    let (cexperts, gexperts) =
        (both.cpu.load_experts(experts.clone()).unwrap(), gpu.load_experts(experts).unwrap());
    let (shared, gshared) = both.matrix(64, HIDDEN, FOUR_BITS);
    let (gate, ggate) = both.matrix(5, HIDDEN, Format::Float(FloatType::Bf16));
    let bias = both.random.f32s(5);
    let router = Router { gate, bias: bias.clone(), shape };
    let grouter = Router { gate: ggate, bias: gpu.load_vector(bias).unwrap(), shape };
    let (norm, gnorm) = both.norm(HIDDEN);
    for tokens in [1, 2] {
        let x = both.random.f32s(tokens * HIDDEN);
        let x = (both.cpu.upload(tokens, HIDDEN, &x).unwrap(), gpu.upload(tokens, HIDDEN, &x).unwrap());
        let (cn, cr) = both.cpu.route(&x.0, &norm, &router).unwrap();
        let (gn, gr) = gpu.route(&x.1, &gnorm, &grouter).unwrap();
        let ch = both.cpu.experts_swiglu(&cn, &cr, &cexperts, &cexperts, Some((&shared, &shared))).unwrap();
        let gh = gpu.experts_swiglu(&gn, &gr, &gexperts, &gexperts, Some((&gshared, &gshared))).unwrap();
        let gh = gpu.expert_activations(&gh).unwrap();
        for (what, found, expected) in [
            ("normalised", &gpu.normalized(&gn).unwrap(), &cn),
            ("routed", &gh.routed, &ch.routed),
            ("shared", gh.shared.as_ref().unwrap(), ch.shared.as_ref().unwrap()),
        ] {
            let buffer = gpu.handles().device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: 64 + 4 * expected.data().len() as u64,
                usage: wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            gpu.copy_to(found, &buffer, 64).unwrap();
            let copy = gpu.copy_from(found.rows(), found.cols(), &buffer, 64).unwrap();
            let brought = gpu.download(found).unwrap();
            close(what, &brought, expected.data());
            assert_eq!(gpu.download(&copy).unwrap(), brought, "{what}, {tokens} tokens");
        }
    }
}

/// Norm and scores, choice, gate and up with the shared expert, down with the shared expert: one dispatch each.
#[test]
fn experts_of_one_token_are_four_dispatches() {
    let Some(gpu) = open(GpuOptions::default()) else { return };
    let mut both = Both::new(&gpu, 13);
    let shape = RouterShape { chosen: 3, groups: 1, kept_groups: 1, normalize: true, scale: 2.5 };
    let load = |random: &mut Random, rows, cols| {
        gpu.load_experts((0..5).map(|_| matrix(random, rows, cols, FOUR_BITS)).collect()).unwrap()
    };
    let (up, down) = (load(&mut both.random, 64, 128), load(&mut both.random, 128, 64));
    let ((_, shared_up), (_, shared_down)) =
        (both.matrix(64, 128, FOUR_BITS), both.matrix(128, 64, FOUR_BITS));
    let (_, gate) = both.matrix(5, 128, Format::Float(FloatType::Bf16));
    let router = Router { gate, bias: gpu.load_vector(vec![0.0; 5]).unwrap(), shape };
    let (_, norm) = both.norm(128);
    let mut x = gpu.upload(1, 128, &both.random.f32s(128)).unwrap();
    let before = gpu.dispatches();
    let (normed, routing) = gpu.route(&x, &norm, &router).unwrap();
    let hidden = gpu.experts_swiglu(&normed, &routing, &up, &up, Some((&shared_up, &shared_up))).unwrap();
    gpu.experts_down_add(&hidden, &routing, &down, Some(&shared_down), &mut x).unwrap();
    assert_eq!(gpu.dispatches() - before, 4);
}

#[test]
fn an_input_does_not_overwrite_pending_work() {
    let Some(gpu) = open(GpuOptions::default()) else { return };
    let mut both = Both::new(&gpu, 9);
    let (m, gm) = both.matrix(64, 64, FOUR_BITS);
    let (norm, gnorm) = both.norm(64);
    let x = both.random.f32s(64);
    let (cx, gx) = (both.cpu.upload(1, 64, &x).unwrap(), gpu.upload(1, 64, &x).unwrap());
    let [c] = both.cpu.norm_project(&cx, &norm, [&m]).unwrap();
    let [expected] = both.cpu.norm_project(&c, &norm, [&m]).unwrap();
    // Nothing is submitted before the first result comes out; the first product's buffer is free by then.
    let [g] = gpu.norm_project(&gx, &gnorm, [&gm]).unwrap();
    let [found] = gpu.norm_project(&g, &gnorm, [&gm]).unwrap();
    drop(g);
    let values: Vec<f32> = (0..64).map(|i| i as f32).collect();
    let input = gpu.upload(1, 64, &values).unwrap();
    assert_eq!(gpu.download(&input).unwrap(), values);
    close("two products", &gpu.download(&found).unwrap(), expected.data());
}

/// Also where another thread nudges without pause, and where the host writes an input between a nudge and its submission.
#[test]
fn nudges_change_nothing() {
    let Some(gpu) = open(GpuOptions::default()) else { return };
    let mut both = Both::new(&gpu, 10);
    let (_, square) = both.matrix(64, 64, FOUR_BITS);
    let (_, norm) = both.norm(64);
    let input = both.random.f32s(64);
    // As a step does, with an input that comes after work is recorded. Few enough operations stay recorded to the end.
    let step = |nudge: &dyn Fn()| {
        nudge();
        let x = gpu.upload(1, 64, &input).unwrap();
        nudge();
        let [first] = gpu.norm_project(&x, &norm, [&square]).unwrap();
        drop(x);
        nudge();
        let mut sum = gpu.upload(1, 64, &input).unwrap();
        nudge();
        gpu.project_add(&first, &square, &mut sum).unwrap();
        nudge();
        gpu.download(&sum).unwrap()
    };
    let expected = step(&|| ());
    let dispatches = gpu.dispatches();
    assert_eq!(step(&|| ()), expected);
    let dispatches = gpu.dispatches() - dispatches;
    let before = gpu.dispatches();
    assert_eq!(step(&|| gpu.nudge().unwrap()), expected);
    assert_eq!(gpu.dispatches() - before, dispatches, "a nudge is no operation");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                gpu.nudge().unwrap();
                std::thread::sleep(std::time::Duration::from_millis(1)); // hardware takes a while for each
            }
        });
        let found: Vec<_> = (0..50).map(|_| step(&|| ())).collect();
        done.store(true, Ordering::Relaxed);
        assert!(found.iter().all(|values| *values == expected));
    });
}

/// Three layers of Kimi-K2 with 18 of its experts, in zeros.
#[test]
fn device_memory_is_what_is_stored_and_little_more() {
    const EXPERTS: usize = 18;
    let Some(gpu) = open(GpuOptions::default()) else { return };
    let zeros = |rows: usize, cols: usize| {
        let part = |bytes: usize| Bytes::from(vec![0; bytes]);
        let [weight, scales, biases] = FOUR_BITS.bytes(rows, cols).unwrap().map(part);
        PackedMatrix::new(rows, cols, FOUR_BITS, weight, scales, biases).unwrap()
    };
    let mut stored = 0;
    let mut held = (Vec::new(), Vec::new());
    for _ in 0..3 {
        for (rows, cols) in [(1536, 7168), (12288, 1536), (576, 7168), (16384, 512), (7168, 8192)] {
            let m = zeros(rows, cols);
            stored += m.bytes();
            held.0.push(gpu.load_matrix(m).unwrap());
        }
        for (rows, cols) in [(2048, 7168), (2048, 7168), (7168, 2048)] {
            let experts = vec![zeros(rows, cols); EXPERTS];
            stored += experts.iter().map(PackedMatrix::bytes).sum::<u64>();
            held.1.push(gpu.load_experts(experts).unwrap());
        }
    }
    gpu.wait().unwrap();
    if let Some(allocated) = gpu.allocated() {
        println!("{allocated} bytes allocated for {stored} bytes of weights");
        assert!(allocated as f64 <= stored as f64 * 1.03, "{allocated} for {stored}");
    }
}

/// More than one piece of an upload, at an odd address, with a ragged end.
#[test]
fn long_weights_arrive_whole_by_either_way() {
    const COLS: usize = (17 << 20) / 4 + 5;
    let values: Vec<f32> = (0..2 * COLS).map(|i| i as f32).collect();
    let float = Format::Float(FloatType::F32);
    let bytes = misaligned(bytemuck::cast_slice(&values), 3);
    let table = PackedMatrix::new(2, COLS, float, bytes, Bytes::new(), Bytes::new()).unwrap();
    for staged_upload in [false, true] {
        let Some(gpu) = open(GpuOptions { staged_upload, ..Default::default() }) else { return };
        let on_gpu = gpu.load_matrix(table.clone()).unwrap();
        let found = gpu.embed(&on_gpu, &[1]).and_then(|row| gpu.download(&row)).unwrap();
        assert!(found == values[COLS..], "staged: {staged_upload}");
    }
}

#[test]
fn a_lost_device_is_an_error_from_then_on() {
    let Some(gpu) = open(GpuOptions::default()) else { return };
    let x = gpu.upload(1, 4, &[1.0, 2.0, 3.0, 4.0]).unwrap();
    assert_eq!(gpu.download(&x).unwrap(), [1.0, 2.0, 3.0, 4.0]);
    gpu.destroy();
    for _ in 0..2 {
        let lost = gpu.upload(1, 4, &[1.0; 4]).and_then(|x| gpu.download(&x));
        assert!(matches!(&lost, Err(BackendError::Device(what)) if what.contains("lost")), "{lost:?}");
        assert!(matches!(gpu.wait(), Err(BackendError::Device(_))));
        assert!(matches!(gpu.nudge(), Err(BackendError::Device(_))));
    }
    assert!(gpu.load_vector(vec![1.0; 8]).and_then(|_| gpu.wait()).is_err());
    drop(x);
}
