//! `KIMI_KERNELS=FOLDER cargo test -p kimi-quant --features gpu --lib -- --ignored write_kernels` writes what a simulated Apple
//! GPU runs of Kimi-K2, as SPIR-V, for tools/metal/instructions.py.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use super::super::matvec::mode_name;
use super::super::shader::{COOPERATIVE_8X8, MATVEC, MATVEC_VARIED, Op, Spec};
use super::super::tuning::{Tuning, shared_bytes_of};
use super::fake::{LOOKS, of_tokens};
use super::translate::{parse, spirv};
use crate::BitWidth;

/// Sums of a step of the product kernel that are written besides those that the program takes: the difference of two is what a
/// weight costs, without all that does not grow with the weights.
const SUMS: [Option<u32>; 4] = [None, Some(2), Some(4), Some(8)];

#[test]
#[ignore = "writes files for tools/metal/instructions.py"]
fn write_kernels() {
    let folder =
        PathBuf::from(std::env::var_os("KIMI_KERNELS").expect("KIMI_KERNELS names the folder to write to"));
    std::fs::create_dir_all(&folder).unwrap();
    let apple = LOOKS.iter().find(|looks| looks.name.starts_with("Apple")).unwrap();
    let mut seen = HashSet::new();
    let mut table = String::new();
    for bits in BitWidth::ALL {
        for (tokens, sums) in SUMS.into_iter().map(|sums| (1, sums)).chain([(8, None), (512, None)]) {
            let tuning = sums.map(|values| Tuning { unit: 32, values, steps: None, integer: false });
            for (op, spec) in of_tokens(apple, bits, tokens, tuning).unwrap() {
                let product = spec.packing.is_some_and(|packing| packing.bits() <= 8);
                let wanted = product && (sums.is_none() || op.name == MATVEC.name);
                let text = without_matrices(op, spec.source(op));
                if wanted && seen.insert(text.clone()) {
                    let (module, info) = parse(&text).unwrap();
                    let words = spirv(&module, &info).unwrap();
                    let file = format!("{}.spv", seen.len());
                    std::fs::write(folder.join(&file), bytemuck::cast_slice(&words)).unwrap();
                    let threads: u32 = module.entry_points[0].workgroup_size.iter().product();
                    let sums = if sums.is_none() { "chosen" } else { "given" };
                    let bits = bits.bits();
                    let (name, values, shared) = describe(op, &spec);
                    let _ = writeln!(
                        table,
                        "{file}\t{bits}\t{tokens}\t{sums}\t{name}\t{values}\t{threads}\t{shared}"
                    );
                }
            }
        }
    }
    std::fs::write(folder.join("kernels.tsv"), table).unwrap();
}

/// Mesa's compiler has no matrices of 8x8. In its place are the two values of each that a thread has, and for a product two
/// multiply-adds: registers, memory and code are about what they would be.
fn without_matrices(op: &Op, text: String) -> String {
    if !std::ptr::eq(op, &COOPERATIVE_8X8) {
        return text;
    }
    let matrices = include_str!("../../../../shaders/matrix_8x8.wgsl");
    let begin = "    // Loaded like this";
    assert!(text.contains(matrices) && text.contains(begin));
    let own = "    own_row = (thread & 31u) >> 2u;\n    own_column = (thread & 3u) * 2u;\n";
    text.replace(matrices, VALUES_OF_MATRICES).replace(begin, &format!("{own}{begin}"))
}

const VALUES_OF_MATRICES: &str = "
alias Left = vec2<f32>;
alias Right = vec2<f32>;
alias Sum = vec2<f32>;
var<private> own_row: u32;
var<private> own_column: u32;
fn left(at: u32) -> Left {
    let own = at + own_row * PITCH + own_column;
    return vec2(cells[own], cells[own + 1u]);
}
fn right(at: u32) -> Right {
    let own = at + own_column * PITCH + own_row;
    return vec2(cells[own], cells[own + PITCH]);
}
fn sum_from(at: u32) -> Sum {
    return left(at);
}
fn multiplied(x: Left, w: Right, sum: Sum) -> Sum {
    return fma(x, w, sum);
}
fn store(sum: Sum, at: u32, pitch: u32) {
    let own = at + own_row * pitch + own_column;
    cells[own] = sum.x;
    cells[own + 1u] = sum.y;
}
";

/// A name, sums of a step, and bytes of shared memory where they were counted.
fn describe(op: &Op, spec: &Spec) -> (String, u32, u32) {
    let constant = |name| spec.constants.iter().find(|c| c.0 == name).map_or(0, |c| c.1);
    let gated = if constant("GATED") == 1 { ", gated" } else { "" };
    if op.name != "matvec" {
        let mode = if constant("MODE") == 1 { " of experts" } else { "" };
        return (format!("{}{mode}{gated}", op.name), 0, 0);
    }
    let sizes = if std::ptr::eq(op, &MATVEC_VARIED) { ", any size" } else { "" };
    let cols = spec.packing.map_or(0, |packing| packing.cols);
    let cols = if sizes.is_empty() { format!(", {cols} columns") } else { String::new() };
    let values = constant("STEP_ROWS") * (1 + constant("GATED"));
    let sources = constant("SOURCES");
    let name = format!("matvec {}{gated}{sizes}{cols}, {sources} bindings", mode_name(constant("MODE")));
    (name, values, shared_bytes_of(spec))
}
