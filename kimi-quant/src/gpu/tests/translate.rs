//! Every specialisation is valid WGSL and translates to SPIR-V and to Metal's language, on any machine.

use naga::back::{msl, spv};
use naga::valid::{Capabilities, SubgroupOperationSet, ValidationFlags, Validator};

use super::super::shader::{
    ABSORB, ATTEND, ATTEND_MERGE, COMBINE, COOPERATIVE, EMBED, FEW, GATHER_ROWS, GROUP, HALVES, Op, PRODUCT,
    Packing, READ, RMS_NORM, ROTATE, ROUTE, STORE_LATENT, SWIGLU, Spec, TILED,
};
use crate::{BitWidth, FloatType, Format};

fn formats() -> Vec<Format> {
    let floats = [FloatType::Bf16, FloatType::F16, FloatType::F32];
    let mut all = vec![Format::Mxfp4, Format::Nvfp4, Format::Mxfp8];
    all.extend(floats.map(Format::Float));
    all.extend([32, 64, 128].map(|group| Format::Int4 { group, scales: FloatType::Bf16 }));
    for bits in BitWidth::ALL {
        all.extend([8, 16, 32, 64, 128].map(|group| Format::Affine { bits, group, scales: FloatType::Bf16 }));
        all.push(Format::Affine { bits, group: 64, scales: FloatType::F16 });
        all.push(Format::Affine { bits, group: 64, scales: FloatType::F32 });
    }
    all
}

fn product(packing: Packing, numbers: [u32; 6], share: u32) -> Spec {
    let [mode, tokens, pair, norm, add, chosen] = numbers;
    let constants = vec![
        ("MODE", mode),
        ("TOKENS", tokens),
        ("TILE", 4),
        ("WORKGROUP", 64),
        ("LANES", 32),
        ("ROWS", 2),
        ("BLOCK_ROWS", 4),
        ("SHARE", share),
        ("PAIR", pair),
        ("NORM", norm),
        ("ADD", add),
        ("CHOSEN", chosen),
    ];
    Spec::new(&PRODUCT, constants).with_matrices(packing, 1 + pair)
}

/// Of each kernel of batches; numbers: mode, pair, down, add.
fn batched(packing: Packing, numbers: [u32; 4]) -> [(&'static Op, Spec); 3] {
    let [mode, pair, down, add] = numbers;
    let common = vec![
        ("MODE", mode),
        ("COUNTED", mode),
        ("CHOSEN", 8),
        ("PER_PAIR", down),
        ("WEIGHTED", down),
        ("PAIR", pair),
        ("ADD", add),
        ("SHARE", 1),
    ];
    let few = vec![("LINES", 3), ("WORKGROUP", 64), ("LANES", 32), ("ROWS", 2), ("TILE", 8)];
    // A thread has two rows' codes, or half of one's.
    let [rows, lines, block] = if pair == 1 { [64, 64 >> mode, 8] } else { [128, 16, 4] };
    let sizes = [("LINES", lines), ("BLOCK_LINES", block), ("TILE_ROWS", rows), ("BLOCK_ROWS", rows / 16)];
    let tiled = [sizes.to_vec(), vec![("WORKGROUP", 16 * lines / block)]].concat();
    let few = Spec::new(&FEW, [common.clone(), few].concat()).with_matrices(packing, 1 + pair);
    let tiled = Spec::new(&TILED, [common.clone(), tiled].concat()).with_matrices(packing, 1 + pair);
    let cooperative =
        vec![("LINES", 16 << (mode + pair)), ("WORKGROUP", 128), ("SPLIT", down), ("FACTOR", 16)];
    let cooperative =
        Spec::new(&COOPERATIVE, [common, cooperative].concat()).with_matrices(packing, 1 + pair);
    [(&FEW, few), (&TILED, tiled), (&COOPERATIVE, cooperative)]
}

/// Of every operation all that differ in more than a number.
fn specialisations() -> Vec<(&'static Op, Spec)> {
    let mut all = Vec::new();
    for (i, format) in formats().into_iter().enumerate() {
        let packing = Packing { format, cols: if format.group() < 32 { 272 } else { 256 } };
        let share = [1, 2, 4][i % 3];
        let share = if format.code_bits() == 8 { share.min(2) } else { share };
        all.push((&PRODUCT, product(packing, [0, 1, 0, 1, 0, 1], share)));
        all.push((&PRODUCT, product(packing, [0, 8, 0, 0, 1, 1], share)));
        all.push((&PRODUCT, product(packing, [1, 1, 1, 0, 0, 8], share)));
        all.push((&PRODUCT, product(packing, [2, 1, 0, 0, 1, 8], share)));
        all.extend(
            [[0, 0, 0, 1], [0, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0]].map(|n| batched(packing, n)).concat(),
        );
        let one = vec![("WORKGROUP", 64), ("SHARE", 1)];
        all.push((&EMBED, Spec::new(&EMBED, one.clone()).with_matrices(packing, 1)));
        let absorb = [one, vec![("TOKENS", 2)]].concat();
        all.push((&ABSORB, Spec::new(&ABSORB, absorb).with_matrices(packing, 1)));
    }
    let group = ("WORKGROUP", 64);
    let sums = || vec![group, ("LANES", 32)];
    all.push((&READ, Spec::new(&READ, vec![group, ("CELLS", 8)])));
    all.push((&ROTATE, Spec::new(&ROTATE, vec![group])));
    all.push((&STORE_LATENT, Spec::new(&STORE_LATENT, sums())));
    all.push((&RMS_NORM, Spec::new(&RMS_NORM, sums())));
    all.push((&SWIGLU, Spec::new(&SWIGLU, vec![group])));
    all.push((&GATHER_ROWS, Spec::new(&GATHER_ROWS, vec![group])));
    all.push((&ATTEND_MERGE, Spec::new(&ATTEND_MERGE, vec![group, ("LATENT", 512)])));
    all.push((&GROUP, Spec::new(&GROUP, vec![group, ("EXPERTS", 384)])));
    all.push((&HALVES, Spec::new(&HALVES, vec![group])));
    all.push((&COMBINE, Spec::new(&COMBINE, vec![group, ("CHOSEN", 8)])));
    for (heads, positions) in [(8, 8), (1, 1)] {
        let sizes = vec![("WORKGROUP", 128), ("LATENT", 512), ("ROPE", 64), ("PAGE", 16)];
        let tile = vec![("HEADS", heads), ("POSITIONS", positions)];
        all.push((&ATTEND, Spec::new(&ATTEND, [sizes, tile].concat())));
    }
    for (experts, groups) in [(384, 1), (256, 8), (7, 7)] {
        let sizes = vec![("EXPERTS", experts), ("GROUPS", groups), ("KEPT", 1), ("CHOSEN", 2)];
        all.push((&ROUTE, Spec::new(&ROUTE, [vec![group], sizes].concat())));
    }
    let without: Vec<_> = all.iter().filter(|(op, _)| op.sums).cloned().collect();
    all.iter_mut().for_each(|(_, spec)| spec.subgroups = true);
    all.extend(without);
    all
}

fn translate(op: &Op, spec: &Spec) -> Result<(), String> {
    let source = spec.source(op);
    let module = naga::front::wgsl::parse_str(&source).map_err(|e| e.emit_to_string(&source))?;
    let capabilities = Capabilities::IMMEDIATES
        | Capabilities::SUBGROUP
        | Capabilities::SHADER_FLOAT16_IN_FLOAT32
        | Capabilities::SHADER_FLOAT16
        | Capabilities::COOPERATIVE_MATRIX;
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    validator.subgroup_operations(SubgroupOperationSet::BASIC | SubgroupOperationSet::ARITHMETIC);
    validator.subgroup_stages(naga::valid::ShaderStages::COMPUTE);
    let info = validator.validate(&module).map_err(|e| e.emit_to_string(&source))?;
    let options = spv::Options { lang_version: (1, 3), ..Default::default() };
    spv::write_vec(&module, &info, &options, None).map_err(|e| format!("SPIR-V: {e}"))?;
    let resources = msl::EntryPointResources {
        resources: spec.writes(op).iter().enumerate().map(|(i, written)| bind(i, *written)).collect(),
        immediates_buffer: Some(30),
        sizes_buffer: Some(29),
    };
    let options = msl::Options {
        lang_version: (2, 4),
        per_entry_point_map: [("main".to_owned(), resources)].into_iter().collect(),
        fake_missing_bindings: false,
        ..Default::default()
    };
    msl::write_string(&module, &info, &options, &Default::default()).map_err(|e| format!("MSL: {e}"))?;
    Ok(())
}

fn bind(index: usize, written: bool) -> (naga::ResourceBinding, msl::BindTarget) {
    let binding = naga::ResourceBinding { group: 0, binding: index as u32 };
    (binding, msl::BindTarget { buffer: Some(index as u8), mutable: written, ..Default::default() })
}

#[test]
fn every_specialisation_translates() {
    let mut failed = std::collections::BTreeMap::new();
    for (op, spec) in specialisations() {
        if let Err(what) = translate(op, &spec) {
            failed.entry(op.name).or_insert(format!("{spec:?}:\n{what}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.into_values().collect::<Vec<_>>().join("\n"));
}
