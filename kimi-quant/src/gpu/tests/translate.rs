//! Every specialisation is valid WGSL and translates to SPIR-V and to Metal's language, on any machine.

use naga::back::{msl, spv};
use naga::valid::{Capabilities, FunctionInfo, SubgroupOperationSet, ValidationFlags, Validator};
use naga::{AddressSpace, Block, Module, Statement, TypeInner};

use super::super::shader::{
    ATTEND, ATTEND_COOPERATIVE, COMBINE, COOPERATIVE, Dot, EMBED, FEW, GATHER_ROWS, GROUP, HALVES,
    LATENT_QUERY_BY_INPUTS, LATENT_QUERY_BY_OUTPUTS, LATENT_QUERY_TILED, MATVEC, MATVEC_RAGGED,
    MATVEC_VARIED, NUDGE, Op, Packing, READ, RMS_NORM, ROUTE, SAMPLE_CHOOSE, SAMPLE_DIGIT, SAMPLE_SCAN,
    SAMPLE_WEIGH, SWIGLU, Spec, TILED, UNIT, VALUES, VALUES_TILED,
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

/// One token; numbers: mode, sources, pair, shared.
fn matvec(packing: Packing, numbers: [u32; 4], dot: Dot, subgroups: bool) -> (&'static Op, Spec) {
    let [mode, sources, pair, shared] = numbers;
    let varied = mode == 0 && packing.unit == UNIT && packing.cols.is_multiple_of(4);
    let mut constants = vec![
        ("STEP_ROWS", 8 / (1 + pair)),
        ("WORKGROUP", 96),
        ("LANES", 8),
        ("STAGED", 16),
        ("LOADS", 4),
        ("RUN", if subgroups { 8 } else { 1 }),
        ("MOST_STEPS", 2),
        ("MODE", mode),
        ("PAIR", pair),
        ("CHOICES", 3),
        ("SHARED", shared),
        ("CHOSEN", 2),
        ("PER_PAIR", pair),
        ("WEIGHTED", pair),
        ("SOURCES", sources),
        ("SHARE", (8 / packing.bits() as u32).clamp(1, 4)),
    ];
    if !varied {
        constants.extend([("BESIDE", packing.units() as u32), ("SPAN", 48), ("SLOTS", 2)]);
        constants.extend(["NORM", "ADD", "SEVERAL"].map(|name| (name, 1)));
    }
    let op = match packing.cols.is_multiple_of(4) {
        true if varied => &MATVEC_VARIED,
        true => &MATVEC,
        false => &MATVEC_RAGGED,
    };
    let mut spec = Spec::new(op, constants).with_matrices(packing, sources * (1 + pair));
    (spec.dot, spec.subgroups) = (Some(dot), subgroups);
    (op, spec)
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
        ("SHARE", (8 / packing.bits() as u32).clamp(1, 4)),
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

/// Queries and values by heads, for one token, a few and many.
fn head_products(packing: Packing) -> Vec<(&'static Op, Spec)> {
    let spec = |op: &'static Op, constants: &[(&'static str, u32)]| {
        let sizes = [("NOPE", 128), ("ROPE", 64), ("VALUE", 128), ("LATENT", packing.cols as u32)];
        let more = [("LANES", 32), ("MOST_SEGMENTS", 64), ("SHARE", 1)];
        (op, Spec::new(op, [&sizes[..], &more, constants].concat()).with_matrices(packing, 1))
    };
    let group = ("WORKGROUP", 128);
    let few = [group, ("TOKENS", 1), ("BLOCK_UNITS", 4), ("BLOCK_ROWS", 64), ("LATENT_POWER", 0)];
    let slices = [("SLICES", 2), ("DEPTH", 8)];
    let tile =
        [group, ("TILE_ROWS", 8), ("TILE_COLUMNS", 64), ("SLAB", 8), ("TOKENS", 8), ("LATENT_POWER", 64)];
    let whole = [("SLICES", 1), ("DEPTH", 1)];
    vec![
        spec(&LATENT_QUERY_BY_INPUTS, &few),
        spec(&LATENT_QUERY_BY_OUTPUTS, &few),
        spec(&LATENT_QUERY_TILED, &[&tile[..], &[("BY_COLUMNS", 0)]].concat()),
        spec(&LATENT_QUERY_TILED, &[&tile[..], &[("BY_COLUMNS", 1)]].concat()),
        spec(&VALUES, &[&few[..], &slices].concat()),
        spec(&VALUES_TILED, &[&tile[..], &whole, &[("BY_COLUMNS", 0)]].concat()),
    ]
}

/// Of every operation all that differ in more than a number.
fn specialisations() -> Vec<(&'static Op, Spec)> {
    let (mut all, mut specials) = (Vec::new(), Vec::new());
    let ragged = Packing::new(Format::Float(FloatType::Bf16), 77);
    specials.push(matvec(ragged, [0, 1, 0, 0], Dot::Float, true));
    for (i, format) in formats().into_iter().enumerate() {
        let packing = Packing::new(format, if format.group() < 32 { 272 } else { 256 });
        let modes = [[0, 1, 0, 0], [0, 2, 0, 0], [1, 3, 1, 1], [2, 3, 0, 1], [3, 1, 1, 0]];
        for (numbers, subgroups) in modes.into_iter().zip([true, false, true, false, true]) {
            specials.push(matvec(packing, numbers, Dot::Float, subgroups == (i % 2 == 0)));
            if packing.is_integer() {
                specials.push(matvec(packing, numbers, Dot::Integer, subgroups));
            }
            specials.extend(packing.wide().map(|wide| matvec(wide, numbers, Dot::Integer, subgroups)));
        }
        all.extend(
            [[0, 0, 0, 1], [0, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0]].map(|n| batched(packing, n)).concat(),
        );
        let one = vec![("WORKGROUP", 64), ("SHARE", 1)];
        all.push((&EMBED, Spec::new(&EMBED, one).with_matrices(packing, 1)));
        all.extend(head_products(packing));
    }
    let group = ("WORKGROUP", 64);
    let sums = || vec![group, ("LANES", 32)];
    all.push((&NUDGE, Spec::new(&NUDGE, vec![group, ("STEPS", 256)])));
    all.push((&READ, Spec::new(&READ, vec![group, ("CELLS", 8)])));
    all.push((&RMS_NORM, Spec::new(&RMS_NORM, [sums(), vec![("WIDTH", 100)]].concat())));
    all.push((&SWIGLU, Spec::new(&SWIGLU, vec![group])));
    all.push((&GATHER_ROWS, Spec::new(&GATHER_ROWS, vec![group])));
    all.push((&GROUP, Spec::new(&GROUP, vec![group, ("EXPERTS", 384)])));
    all.push((&HALVES, Spec::new(&HALVES, vec![group, ("WIDTH", 100), ("PAIRS", 64)])));
    all.push((&COMBINE, Spec::new(&COMBINE, vec![group, ("CHOSEN", 8)])));
    for (tile, rope) in [([256, 64, 32, 16], 64), ([64, 32, 8, 8], 6)] {
        let names = ["WORKGROUP", "TILE_ROWS", "TILE_COLUMNS", "SLAB"];
        let sizes = vec![
            ("BY_COLUMNS", 0),
            ("LATENT", 512),
            ("ROPE", rope),
            ("SPAN", tile[0].min(128)),
            ("PAGE", 16),
            ("ROLLED", u32::from(rope == 6)),
        ];
        let constants = [names.into_iter().zip(tile).collect(), sizes].concat();
        all.push((&ATTEND, Spec::new(&ATTEND, constants)));
    }
    for (latent, rope, teams) in [(512, 64, 1), (512, 64, 2), (128, 32, 2), (128, 32, 1), (64, 16, 1)] {
        let sizes = vec![
            ("LATENT", latent),
            ("LATENT_POWER", 64),
            ("ROPE", rope),
            ("PAGE", 64),
            ("HEADS", if teams == 1 { 16 << (rope / 64) } else { 16 }),
            ("WHOLE", u32::from(latent == 512 || teams == 2)),
            ("SINGLE", u32::from(latent == 128 || teams == 2)),
            ("TEAMS", teams),
        ];
        all.push((&ATTEND_COOPERATIVE, Spec::new(&ATTEND_COOPERATIVE, sizes)));
    }
    for (experts, groups) in [(384, 1), (256, 8), (7, 7)] {
        let sizes = vec![("EXPERTS", experts), ("GROUPS", groups), ("KEPT", 1), ("CHOSEN", 2), ("BLOCK", 32)];
        all.push((&ROUTE, Spec::new(&ROUTE, [vec![group], sizes].concat())));
    }
    for (radix, sampled) in [(0, 0), (0, 1), (1, 1)] {
        let sizes = vec![("WORKGROUP", 256), ("EACH", 8), ("RADIX", radix), ("SAMPLED", sampled)];
        for op in [&SAMPLE_SCAN, &SAMPLE_DIGIT, &SAMPLE_WEIGH, &SAMPLE_CHOOSE] {
            all.push((op, Spec::new(op, sizes.clone())));
        }
    }
    let without: Vec<_> = all.iter().filter(|(op, _)| op.sums).cloned().collect();
    all.iter_mut().for_each(|(_, spec)| spec.subgroups = true);
    all.extend(without);
    all.extend(specials);
    all
}

#[test]
fn dense_projections_of_a_layer_share_their_code() {
    let format = Format::Affine { bits: BitWidth::B4, group: 64, scales: FloatType::Bf16 };
    let text = |cols| {
        let (op, spec) = matvec(Packing::new(format, cols), [0, 2, 0, 0], Dot::Integer, true);
        spec.source(op)
    };
    assert!(text(7168) == text(1536) && text(7168) == text(8192), "the text has a size in it");
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
    validator.subgroup_operations(
        SubgroupOperationSet::BASIC | SubgroupOperationSet::ARITHMETIC | SubgroupOperationSet::SHUFFLE,
    );
    validator.subgroup_stages(naga::valid::ShaderStages::COMPUTE);
    let info = validator.validate(&module).map_err(|e| e.emit_to_string(&source))?;
    let entries = module.entry_points.iter().enumerate();
    let functions = module.functions.iter().map(|(handle, f)| (f, &info[handle]));
    for (function, info) in entries.map(|(i, e)| (&e.function, info.get_entry_point(i))).chain(functions) {
        if writes_components(&module, info, &function.body) {
            let what = "one value of a vector that threads share is written: on Metal that writes all of it";
            return Err(what.to_owned());
        }
    }
    if op.name.ends_with("cooperative")
        && let Some(name) = misaligned(&module)
    {
        return Err(format!(
            "{name} has no multiple of 16 bytes: what is behind it in shared memory is misaligned"
        ));
    }
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

/// A variable of shared memory whose size is no multiple of 16 bytes, at which rows of cooperative matrices must begin.
fn misaligned(module: &Module) -> Option<&str> {
    let shared = module.global_variables.iter().filter(|(_, v)| v.space == AddressSpace::WorkGroup);
    let size = |v: &naga::GlobalVariable| module.types[v.ty].inner.size(module.to_ctx());
    shared.filter(|(_, v)| !size(v).is_multiple_of(16)).find_map(|(_, v)| v.name.as_deref())
}

/// Whether a single component of a vector that threads share is stored to.
fn writes_components(module: &Module, info: &FunctionInfo, block: &Block) -> bool {
    block.iter().any(|statement| match statement {
        Statement::Store { pointer, .. } => matches!(
            info[*pointer].ty.inner_with(&module.types),
            TypeInner::ValuePointer {
                size: None,
                space: AddressSpace::WorkGroup | AddressSpace::Storage { .. },
                ..
            }
        ),
        Statement::Block(inner) => writes_components(module, info, inner),
        Statement::If { accept, reject, .. } => {
            [accept, reject].into_iter().any(|inner| writes_components(module, info, inner))
        }
        Statement::Switch { cases, .. } => {
            cases.iter().any(|case| writes_components(module, info, &case.body))
        }
        Statement::Loop { body, continuing, .. } => {
            [body, continuing].into_iter().any(|inner| writes_components(module, info, inner))
        }
        _ => false,
    })
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
