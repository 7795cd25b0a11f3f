//! Every specialisation that the program makes, for devices and models of many kinds: it is valid WGSL, is what the table of
//! operations says, keeps to the device's limits, and translates to SPIR-V and to Metal's language, whose types clang checks
//! where it is installed. On any machine.

use std::collections::{BTreeMap, HashSet};

use naga::back::{msl, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy, Layouter};
use naga::valid::{Capabilities, FunctionInfo, ModuleInfo, SubgroupOperationSet, ValidationFlags, Validator};
use naga::{AddressSpace, Block, Module, Statement, StorageAccess, TypeInner};

use rayon::prelude::*;

use super::super::shader::{ALL, Dot, MATVEC_VARIED, Op, Spec};
use super::super::tuning;
use super::fake::{LOOKS, Looks, of_one_token, specialisations};

/// Parsed and validated.
pub(super) fn parse(source: &str) -> Result<(Module, ModuleInfo), String> {
    let module = naga::front::wgsl::parse_str(source).map_err(|e| e.emit_to_string(source))?;
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
    let info = validator.validate(&module).map_err(|e| e.emit_to_string(source))?;
    Ok((module, info))
}

/// What Metal and cooperative matrices ask for and naga does not check.
fn check_portable(op: &Op, module: &Module, info: &ModuleInfo) -> Result<(), String> {
    let entries = module.entry_points.iter().enumerate();
    let functions = module.functions.iter().map(|(handle, f)| (f, &info[handle]));
    for (function, info) in entries.map(|(i, e)| (&e.function, info.get_entry_point(i))).chain(functions) {
        if writes_components(module, info, &function.body) {
            let what = "one value of a vector that threads share is written: on Metal that writes all of it";
            return Err(what.to_owned());
        }
    }
    if op.name.ends_with("cooperative")
        && let Some(name) = misaligned(module)
    {
        return Err(format!(
            "{name} has no multiple of 16 bytes: what is behind it in shared memory is misaligned"
        ));
    }
    Ok(())
}

/// Bindings, parameters and shared memory are those of the table and within the device's limits.
fn check_table(
    op: &Op,
    spec: &Spec,
    looks: &Looks,
    module: &Module,
    info: &ModuleInfo,
) -> Result<(), String> {
    let mut bindings = BTreeMap::new();
    let (mut params, shared) = (0, shared_bytes(module, info)?);
    let mut layouter = Layouter::default();
    layouter.update(module.to_ctx()).map_err(|e| e.to_string())?;
    for (_, variable) in module.global_variables.iter() {
        match (variable.space, &variable.binding) {
            (AddressSpace::Storage { access }, Some(binding)) => {
                bindings.insert(binding.binding as usize, access.contains(StorageAccess::STORE));
            }
            (AddressSpace::Immediate, _) => params = layouter[variable.ty].to_stride() / 4,
            (AddressSpace::WorkGroup | AddressSpace::Private, _) => {}
            (space, _) => return Err(format!("{:?} is in {space:?}", variable.name)),
        }
    }
    let writes: BTreeMap<_, _> = spec.writes(op).into_iter().enumerate().collect();
    if bindings != writes {
        return Err(format!("the shader writes {bindings:?}, the table says {writes:?}"));
    }
    if params as usize != op.params {
        return Err(format!("the shader has {params} words of parameters, the table says {}", op.params));
    }
    if shared > looks.shared {
        return Err(format!("{shared} bytes of shared memory are more than {}", looks.shared));
    }
    let threads: u32 = module.entry_points[0].workgroup_size.iter().product();
    if threads > looks.threads {
        return Err(format!("{threads} threads are more than {}", looks.threads));
    }
    if op.name == "matvec" {
        // What its sizes were chosen by. Each variable is filled up to 16 bytes above.
        let counted = tuning::shared_bytes_of(spec);
        if !(counted..counted + 48).contains(&shared) {
            return Err(format!("{shared} bytes of shared memory were counted as {counted}"));
        }
    }
    Ok(())
}

const UNCHECKED: BoundsCheckPolicies = BoundsCheckPolicies {
    index: BoundsCheckPolicy::Unchecked,
    buffer: BoundsCheckPolicy::Unchecked,
    image_load: BoundsCheckPolicy::Unchecked,
    binding_array: BoundsCheckPolicy::Unchecked,
};

/// To SPIR-V, as wgpu's Vulkan backend does for a trusted shader without checks and without zeroed shared memory.
pub(super) fn spirv(module: &Module, info: &ModuleInfo) -> Result<Vec<u32>, String> {
    // Of Vulkan 1.3.
    let options = spv::Options {
        lang_version: (1, 6),
        flags: spv::WriterFlags::LABEL_VARYINGS | spv::WriterFlags::FORCE_POINT_SIZE,
        bounds_check_policies: UNCHECKED,
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        emit_int_div_checks: false,
        ..Default::default()
    };
    let entry = "main".to_owned();
    let pipeline = spv::PipelineOptions { shader_stage: naga::ShaderStage::Compute, entry_point: entry };
    spv::write_vec(module, info, &options, Some(&pipeline)).map_err(|e| format!("SPIR-V: {e}"))
}

/// The bindings of parameters and of buffers' sizes.
pub(super) const PARAMETERS: u8 = 30;
pub(super) const SIZES: u8 = 29;

/// To Metal's language, as wgpu's Metal backend does for such a shader.
pub(super) fn metal(op: &Op, spec: &Spec, module: &Module, info: &ModuleInfo) -> Result<String, String> {
    let entry = "main".to_owned();
    let resources = msl::EntryPointResources {
        resources: spec.writes(op).iter().enumerate().map(|(i, written)| bind(i, *written)).collect(),
        immediates_buffer: Some(PARAMETERS),
        sizes_buffer: Some(SIZES),
    };
    // Of macOS 14.
    let options = msl::Options {
        lang_version: (3, 1),
        per_entry_point_map: [(entry.clone(), resources)].into_iter().collect(),
        fake_missing_bindings: false,
        bounds_check_policies: UNCHECKED,
        zero_initialize_workgroup_memory: false,
        force_loop_bounding: false,
        emit_int_div_checks: false,
        ..Default::default()
    };
    let pipeline = msl::PipelineOptions {
        entry_point: Some((naga::ShaderStage::Compute, entry)),
        vertex_pulling_transform: true,
        ..Default::default()
    };
    let translated = msl::write_string(module, info, &options, &pipeline);
    translated.map(|(text, _)| text).map_err(|e| format!("MSL: {e}"))
}

/// Bytes of shared memory that a shader's variables take.
pub(super) fn shared_bytes(module: &Module, info: &ModuleInfo) -> Result<u32, String> {
    let mut layouter = Layouter::default();
    layouter.update(module.to_ctx()).map_err(|e| e.to_string())?;
    let used = |(handle, variable): &(naga::Handle<naga::GlobalVariable>, &naga::GlobalVariable)| {
        variable.space == AddressSpace::WorkGroup && !info.get_entry_point(0)[*handle].is_empty()
    };
    let all = module.global_variables.iter().filter(used);
    Ok(all.map(|(_, variable)| layouter[variable.ty].size.next_multiple_of(16)).sum())
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

/// Its text in Metal's language.
fn check(op: &Op, spec: &Spec, looks: &Looks) -> Result<String, String> {
    let (module, info) = parse(&spec.source(op))?;
    check_portable(op, &module, &info)?;
    check_table(op, spec, looks, &module, &info)?;
    spirv(&module, &info)?;
    metal(op, spec, &module, &info)
}

#[test]
fn every_specialisation_is_what_the_table_says_and_translates() {
    let mut failed = BTreeMap::new();
    let mut metal_texts = Vec::new();
    let mut seen = HashSet::new();
    for looks in &LOOKS {
        let mut texts = HashSet::new();
        let mut all = specialisations(looks).unwrap();
        seen.extend(all.iter().map(|(op, _)| std::ptr::from_ref(*op)));
        all.retain(|(op, spec)| texts.insert(spec.source(op)));
        println!("{}: {} shaders", looks.name, all.len());
        let check = |(op, spec): &(&'static Op, Spec)| {
            check(op, spec, looks)
                .map(|text| (op.name, text))
                .map_err(|what| ((looks.name, op.name), format!("{}: {spec:?}:\n{what}", looks.name)))
        };
        let checked: Vec<_> = all.par_iter().map(check).collect();
        for result in checked {
            match result {
                Ok(text) if looks.is_metal() => metal_texts.push(text),
                Ok(_) => {}
                Err((operation, what)) => drop(failed.insert(operation, what)), // one of each is enough to read
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.into_values().collect::<Vec<_>>().join("\n"));
    let unseen = ALL.iter().filter(|op| !seen.contains(&std::ptr::from_ref(**op))).map(|op| op.name);
    assert_eq!(unseen.collect::<Vec<_>>(), [""; 0], "operations without a specialisation");
    super::msl::check_types(&metal_texts);
}

/// The code of a layer's dense projections has to stay in the GPU's instruction cache.
#[test]
fn dense_projections_of_a_layer_share_their_code() {
    let varied = |op, spec: &Spec| std::ptr::eq(op, &MATVEC_VARIED) && spec.dot == Some(Dot::Integer);
    let mut texts = BTreeMap::<_, HashSet<String>>::new();
    for (op, spec) in of_one_token(&LOOKS[0]).unwrap() {
        if let Some(packing) = spec.packing.filter(|_| varied(op, &spec)) {
            texts.entry(packing.cols).or_default().insert(spec.source(op));
        }
    }
    assert!(texts[&7168].intersection(&texts[&1536]).any(|text| texts[&8192].contains(text)));
}
