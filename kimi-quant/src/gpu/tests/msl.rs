//! The kernels in Metal's language: their types are checked by clang, and the main ones are executed on the CPU and compared
//! with [`Cpu`](crate::Cpu). Threads are fibres in an order that a seed shuffles, so that a missing barrier shows.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rayon::prelude::*;

use super::super::BatchKernel;
use super::common::both::{Both, FOUR_BITS, close};
use super::execute::{Change, Folder, apple, clang, compile, executed};
use super::fake::Looks;
use crate::{Backend, BitWidth, Cpu, FloatType, Format, HeadShape, RouterShape, SampleRequest, TokenMask};

/// Texts that clang reads at once.
const CHUNK: usize = 48;

/// Checks the types of kernels, given by their operations' names and their texts.
pub(super) fn check_types(texts: &[(&'static str, String)]) {
    let Some(clang) = clang() else { return };
    let folder = Folder::new().unwrap();
    let check = |(number, chunk): (usize, &[(&str, String)])| {
        let mut source = "#include <metal_stdlib>\n".to_owned();
        for (i, (op, text)) in chunk.iter().enumerate() {
            let own = text.lines().filter(|line| !line.starts_with("#include"));
            source.push_str(&format!("#line 1 \"{op}\"\nnamespace kernel_{i} {{\n"));
            own.for_each(|line| source.extend([line, "\n"]));
            source.push_str("}\n");
        }
        let path = folder.0.join(format!("{number}.cpp"));
        std::fs::write(&path, source).unwrap();
        let output = compile(clang, &["-fsyntax-only"], &path).unwrap();
        (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let wrong: Vec<_> = texts.par_chunks(CHUNK).enumerate().filter_map(check).collect();
    println!("{} texts in Metal's language", texts.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn affine(bits: BitWidth) -> Format {
    Format::Affine { bits, group: 64, scales: FloatType::Bf16 }
}

const ROUTER: RouterShape = RouterShape { chosen: 3, groups: 1, kept_groups: 1, normalize: true, scale: 2.5 };

#[test]
fn products_of_one_token_at_every_width() {
    for (seed, bits) in BitWidth::ALL.into_iter().enumerate() {
        let Some((gpu, _)) = apple(seed as u32, None) else { return };
        let mut both = Both::new(&gpu, 1);
        let (m, gm) = both.matrix(72, 384, affine(bits));
        let (norm, gnorm) = both.norm(384);
        let x = both.random.f32s(384);
        let (cx, gx) = (both.cpu.upload(1, 384, &x).unwrap(), gpu.upload(1, 384, &x).unwrap());
        let [c] = both.cpu.norm_project(&cx, &norm, [&m]).unwrap();
        let [g] = gpu.norm_project(&gx, &gnorm, [&gm]).unwrap();
        close(&format!("{bits:?}"), &gpu.download(&g).unwrap(), c.data());
    }
}

/// Gate and up, head, rows of a table, a residual; one token, a few, many.
#[test]
fn every_operation_over_one_matrix() {
    for (tokens, rows) in [(1, 72), (6, 40), (70, 150)] {
        let Some((gpu, _)) = apple(10, None) else { return };
        Both::new(&gpu, 2).projections(FOUR_BITS, tokens, rows, 96);
    }
}

/// Tiles of 16, 32 and 64 lines on matrices of 8x8: an M1 with its few cores is busy with larger ones. Rows of whole units and
/// such that end amid one.
#[test]
fn products_by_matrices_of_8x8() {
    let m1 = Looks::apple().named("Apple M1");
    for (looks, format, tokens, rows, cols) in [
        (Looks::apple(), affine(BitWidth::B3), 65, 150, 128),
        (Looks::apple(), Format::Nvfp4, 65, 33, 48),
        (&m1, Format::Float(FloatType::Bf16), 70, 400, 56),
        (&m1, affine(BitWidth::B6), 130, 400, 64),
    ] {
        let Some((gpu, executor)) = executed(looks, 15, None) else { return };
        Both::new(&gpu, 8).projections(format, tokens, rows, cols);
        assert!(executor.ran("cooperative_8x8"));
    }
}

/// By a thread for all columns, and by teams for some of them each: of 6 lines, and of 13; of two formats.
#[test]
fn products_by_tiles_without_matrices() {
    for (kernel, format, tokens, cols) in [
        (BatchKernel::Tiled, FOUR_BITS, 70, 96),
        (BatchKernel::Teams, FOUR_BITS, 6, 1120),
        (BatchKernel::Teams, affine(BitWidth::B3), 13, 320),
    ] {
        let Some((gpu, executor)) = apple(16, None) else { return };
        gpu.set_batch_kernel(Some(kernel));
        Both::new(&gpu, 9).projections(format, tokens, 150, cols);
        assert!(executor.ran("tiled"));
    }
}

#[test]
fn other_formats() {
    for format in [Format::Mxfp4, Format::Float(FloatType::Bf16)] {
        let Some((gpu, _)) = apple(11, None) else { return };
        Both::new(&gpu, 3).projections(format, 1, 33, 96);
    }
}

#[test]
fn router_and_experts() {
    for tokens in [1, 45] {
        let Some((gpu, _)) = apple(12, None) else { return };
        Both::new(&gpu, 4).experts(
            [affine(BitWidth::B4), affine(BitWidth::B3), FOUR_BITS],
            tokens,
            ROUTER,
            5,
        );
    }
}

#[test]
fn attention() {
    let heads = HeadShape { heads: 20, nope: 32, rope: 16, value: 24, latent: 64 };
    for (split, sequences) in [(true, [(40, 1)]), (false, [(20, 9)])] {
        let Some((gpu, _)) = apple(13, None) else { return };
        Both::new(&gpu, 5).attention(heads, FOUR_BITS, split, 16, &sequences);
    }
}

#[test]
fn sampling() {
    let Some((gpu, _)) = apple(14, None) else { return };
    let cpu = Cpu::new();
    let mut both = Both::new(&gpu, 6);
    let vocabulary = 3000;
    let logits: Vec<f32> = both.random.f32s(vocabulary).iter().map(|x| 9.0 * x * x * x).collect();
    let (on_cpu, on_gpu) =
        (cpu.upload(1, vocabulary, &logits).unwrap(), gpu.upload(1, vocabulary, &logits).unwrap());
    let mask = vec![0xfff0_00f7; vocabulary.div_ceil(32)];
    let greedy = SampleRequest::greedy(0);
    let hot = SampleRequest { temperature: 0.8, uniform: 0.4, ..greedy };
    let requests = [
        greedy,
        SampleRequest { allowed: Some(TokenMask(&mask)), ..greedy },
        hot,
        SampleRequest { top_p: 0.9, top_k: 50, ..hot },
        SampleRequest { top_p: 0.7, uniform: 0.9, ..hot },
    ];
    for request in requests {
        let expected = cpu.sample(&on_cpu, &[request]).unwrap();
        let found = gpu.sample(&on_gpu, &[request]).unwrap();
        let [found, expected] = [found, expected].map(|all| all[0].clone().unwrap().token);
        assert_eq!(found, expected, "{request:?}");
    }
}

/// Whether products of some tokens are right with a shader that was changed.
fn is_right(change: Option<Change>, seed: u32) -> bool {
    let (gpu, executor) = apple(seed, change).unwrap();
    if change.is_some_and(|change| change.op == "tiled") {
        gpu.set_batch_kernel(Some(BatchKernel::Tiled));
    }
    let compare = || Both::new(&gpu, 7).projections(FOUR_BITS, 70, 150, 96);
    let right = catch_unwind(AssertUnwindSafe(compare)).is_ok();
    assert!(change.is_none() || executor.changed() > 0, "nothing was changed: {change:?}");
    right
}

#[test]
fn a_wrong_kernel_is_noticed() {
    if clang().is_none() {
        return;
    }
    assert!(is_right(None, 20));
    let missing_barrier = Change { op: "rms_norm", from: "workgroupBarrier();", to: "" };
    let wrong_shift = Change { op: "tiled", from: ">> shift", to: ">> (shift + 1u)" };
    let row_too_far = Change { op: "tiled", from: "row_at < p.rows", to: "row_at <= p.rows" };
    let laid = "lay(thread, fetched);";
    let not_waited_for = Change {
        op: "cooperative_8x8",
        from: "lay(thread, fetched);\n        workgroupBarrier();",
        to: laid,
    };
    let wrong_rows = Change { op: "cooperative_8x8", from: "multiplied(a, w1,", to: "multiplied(a, w0," };
    let result_too_far =
        Change { op: "cooperative_8x8", from: "row_at + row < p.rows", to: "row_at + row <= p.rows" };
    for change in [missing_barrier, wrong_shift, row_too_far, not_waited_for, wrong_rows, result_too_far] {
        assert!(!is_right(Some(change), 21), "{change:?}");
    }
}
