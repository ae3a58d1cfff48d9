//! Every WGSL file: valid, translatable to every backend, bindings and uniform layout equal to the Rust
//! description, and the list of kernels equal to the folder. No device is needed.

use everloop::kernel::{Access, Binding};
use everloop::kernels::{ALL, Description, ShaderFile};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use std::collections::BTreeSet;

fn parse(source: &str) -> Result<(naga::Module, naga::valid::ModuleInfo), String> {
    let module = naga::front::wgsl::parse_str(source).map_err(|e| e.emit_to_string(source))?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::empty())
        .validate(&module)
        .map_err(|e| e.emit_to_string(source))?;
    Ok((module, info))
}

/// What of a shader differs from its Rust description.
fn compare(source: &str, kernel: &Description, bindings: &[Binding]) -> Result<(), String> {
    let (module, _) = parse(source)?;
    let mut storage = Vec::new();
    let mut fields = None;
    for (_, variable) in module.global_variables.iter() {
        let Some(binding) = &variable.binding else { continue };
        match (variable.space, binding.group, binding.binding) {
            (naga::AddressSpace::Storage { access }, 0, index) => {
                let naga::TypeInner::Array { base, .. } = module.types[variable.ty].inner else {
                    return Err(format!("{:?} is not an array", variable.name));
                };
                let scalar = module.types[base].inner.scalar().map(|s| s.kind);
                let access = match (access.contains(naga::StorageAccess::STORE), scalar) {
                    (true, _) => Access::Write,
                    (false, Some(naga::ScalarKind::Uint)) => Access::Tokens,
                    (false, _) => Access::Read,
                };
                storage.push((index, variable.name.clone().unwrap_or_default(), access));
            }
            (naga::AddressSpace::Uniform, 1, 0) => {
                let naga::TypeInner::Struct { members, .. } = &module.types[variable.ty].inner else {
                    return Err("params is not a struct".into());
                };
                let field = |m: &naga::StructMember| {
                    let kind = module.types[m.ty].inner.scalar().map(|s| s.kind);
                    (m.name.clone().unwrap_or_default(), m.offset, kind == Some(naga::ScalarKind::Float))
                };
                fields = Some(members.iter().map(field).collect::<Vec<_>>());
            }
            (naga::AddressSpace::Uniform, 1, 1) => {}
            other => return Err(format!("unexpected binding {other:?}")),
        }
    }
    storage.sort_by_key(|s| s.0);
    let mut wanted: Vec<_> = (0u32..).zip(bindings).map(|(i, b)| (i, b.name.to_string(), b.access)).collect();
    // one file that serves several bindings has a name of its own for the place
    for (found, wanted) in storage.iter_mut().zip(&mut wanted) {
        if ["weight", "states", "output"].contains(&found.1.as_str()) {
            wanted.1.clone_from(&found.1);
        }
    }
    if storage.len() > 8 {
        return Err("more storage buffers than every device has".into());
    }
    if storage != wanted {
        return Err(format!("bindings {storage:?}, in Rust {wanted:?}"));
    }
    let wanted: Vec<_> =
        (0u32..).zip(kernel.fields).map(|(i, f)| (f.to_string(), 4 * i, kernel.floats.contains(f))).collect();
    if fields.as_ref() != Some(&wanted) {
        return Err(format!("uniform {fields:?}, in Rust {wanted:?}"));
    }
    match kernel.fields.len() <= 16 {
        true => Ok(()),
        false => Err("more than 64 bytes of parameters".into()),
    }
}

fn each(mut check: impl FnMut(&Description, &ShaderFile) -> Result<(), String>) {
    let mut wrong = Vec::new();
    for kernel in ALL {
        for file in (kernel.shaders)() {
            if let Err(message) = check(kernel, &file) {
                wrong.push(format!("{}: {message}", file.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_list_of_kernels_equals_the_folder() {
    let folder: BTreeSet<_> = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let listed: BTreeSet<_> =
        ALL.iter().flat_map(|k| (k.shaders)()).map(|file| format!("{}.wgsl", file.name)).collect();
    assert_eq!(folder, listed);
    for kernel in ALL {
        assert!(
            (kernel.shaders)().iter().any(|file| file.name == kernel.name),
            "{} has no shader of its name",
            kernel.name
        );
        let twin = format!("{}/src/kernels/{}.rs", env!("CARGO_MANIFEST_DIR"), kernel.name);
        assert!(std::path::Path::new(&twin).exists(), "{twin} is missing");
    }
}

#[test]
fn bindings_and_uniforms_equal_the_rust_description() {
    each(|kernel, file| compare(file.source, kernel, &file.bindings));
}

#[test]
fn every_shader_translates_to_spirv_msl_and_hlsl() {
    each(|_, file| {
        let source = file.source;
        let (module, info) = parse(source)?;
        // as pipeline creation does: override declarations get their values first
        let names: Vec<String> = module.overrides.iter().filter_map(|(_, o)| o.name.clone()).collect();
        // all combinations of a few; of many, none, each alone, each left out, and all
        let all = (1u32 << names.len()) - 1;
        let of_many = || (0..names.len()).flat_map(|i| [1 << i, all & !(1 << i)]).chain([0, all]).collect();
        let chosen: Vec<u32> = if names.len() < 4 { (0..=all).collect() } else { of_many() };
        chosen.into_iter().try_for_each(|bits| translate(&module, &info, &names, bits))
    });
}

fn translate(module: &naga::Module, info: &naga::valid::ModuleInfo, names: &[String], bits: u32) -> Result<(), String> {
    let value = |i: usize| (bits >> i & 1) as f64;
    let constants = names.iter().enumerate().map(|(i, name)| (name.clone(), value(i))).collect();
    let (module, info) = naga::back::pipeline_constants::process_overrides(module, info, None, &constants)
        .map_err(|e| format!("overrides: {e}"))?;
    let spirv = naga::back::spv::write_vec(&module, &info, &naga::back::spv::Options::default(), None)
        .map_err(|e| format!("SPIR-V: {e}"))?;
    let (msl, _) = naga::back::msl::write_string(
        &module,
        &info,
        &naga::back::msl::Options { fake_missing_bindings: true, ..Default::default() },
        &naga::back::msl::PipelineOptions::default(),
    )
    .map_err(|e| format!("MSL: {e}"))?;
    let mut hlsl = String::new();
    let options = naga::back::hlsl::Options::default();
    naga::back::hlsl::Writer::new(&mut hlsl, &options, &naga::back::hlsl::PipelineOptions::default())
        .write(&module, &info, None)
        .map_err(|e| format!("HLSL: {e}"))?;
    match spirv.is_empty() || msl.is_empty() || hlsl.is_empty() {
        true => Err("an empty translation".into()),
        false => Ok(()),
    }
}

#[test]
fn no_built_in_tanh_no_atomics_no_writes_to_components() {
    let bare =
        |source: &str| source.lines().map(|l| l.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    each(|_, file| {
        let source = file.source;
        let code = bare(source).replace("lstm_tanh(", "");
        match ["tanh(", "sinh(", "cosh(", "atomic", "isnan", "]["].iter().find(|w| code.contains(**w)) {
            Some(word) => Err(format!("uses {word}")),
            None => Ok(()),
        }
    });
}

/// A file stands alone, so what several need is written out in each: it must stay one text.
#[test]
fn the_activations_are_one_text() {
    for function in ["fn is_nan(", "fn lstm_sigmoid(", "fn lstm_tanh(", "fn madd(", "fn total("] {
        let texts: BTreeSet<_> = ALL
            .iter()
            .flat_map(|k| (k.shaders)())
            .filter_map(|file| {
                let source = file.source;
                let start = source.find(function)?;
                Some(&source[start..start + source[start..].find("\n}").unwrap()])
            })
            .collect();
        assert_eq!(texts.len(), 1, "{function} differs between files: {texts:#?}");
    }
}

#[test]
fn planted_errors_are_seen() {
    let kernel = ALL.iter().find(|k| k.name == "lstm_forward").unwrap();
    let file = (kernel.shaders)().into_iter().find(|file| file.name == "lstm_forward").unwrap();
    let source = file.source;
    assert_eq!(compare(source, kernel, &file.bindings), Ok(()));
    for (plant, from, to) in [
        ("a binding moved", "@binding(0) var<storage, read> weight_hh", "@binding(9) var<storage, read> weight_hh"),
        ("access", "var<storage, read_write> h:", "var<storage, read> h:"),
        ("name", "gates: array<f32>", "gate: array<f32>"),
        ("field order", "  steps: u32,\n  batch: u32,", "  batch: u32,\n  steps: u32,"),
        ("a field more", "  steps: u32,", "  steps: u32,\n  more: u32,"),
        ("a reserved word", "let f =", "let var ="),
        ("syntax", "let row = row0 + li.y;", "let row = row0 + ;"),
    ] {
        let broken = source.replace(from, to);
        assert_ne!(broken, source, "{plant}: nothing was planted");
        assert!(compare(&broken, kernel, &file.bindings).is_err(), "{plant}");
    }
    let broken = source
        .replace("forget_bias: f32", "forget_bias: u32")
        .replace("params.forget_bias;", "f32(params.forget_bias);");
    assert!(compare(&broken, kernel, &file.bindings).is_err());
}
