//! Every shader that a variant of some kernel is put together to: valid, its constants complete, its bindings and
//! uniforms those of the stage, translatable to every backend. The files are those that are used, and the numbers of
//! the equations stand in the document, the twins, the lanes and in WGSL. No device is needed.

use everloop::Dtype;
use everloop::instruments::kernels::{ALL, Description};
use everloop::instruments::plan_of;
use everloop::kernel::{Access, Bind};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::OnceLock;

/// What one dispatch asks of its shader.
#[derive(Debug, Clone)]
struct Shader {
    kernel: Description,
    stage: &'static str,
    source: String,
    constants: Vec<(&'static str, f64)>,
    binds: Vec<Bound>,
    /// Names behind the fields in the uniform block.
    operands: Vec<&'static str>,
}

#[derive(Debug, Clone)]
struct Bound {
    name: &'static str,
    access: Access,
    /// None of scratch, which holds anything.
    dtype: Option<Dtype>,
    /// Whether other dispatches of the same file bind another operand at this place.
    shared: bool,
}

/// Names in WGSL that stand for whatever is bound, where that differs.
const ANY: [&str; 3] = ["weight", "states", "output"];

/// Of every variant of every step of every case, each text once with each set of constants.
fn shaders() -> &'static [Shader] {
    static ALL_SHADERS: OnceLock<Vec<Shader>> = OnceLock::new();
    ALL_SHADERS.get_or_init(|| {
        let mut known = BTreeMap::new();
        let mut at_place: BTreeMap<(&str, usize), BTreeSet<&str>> = BTreeMap::new();
        for kernel in ALL {
            for case in (kernel.cases)() {
                let plan = plan_of(&case).unwrap_or_else(|e| panic!("{}: {e}", case.name));
                let steps = plan.steps().iter().filter(|step| step.operation.name() == kernel.name);
                for (operation, variant) in
                    steps.flat_map(|s| (kernel.variants)().into_iter().map(move |variant| (&s.operation, variant)))
                {
                    let scratch = operation.scratch(variant);
                    let bound = |bind: &Bind| match bind {
                        Bind::Operand(at) => {
                            let of = operation.bindings()[*at];
                            Bound { name: of.name, access: of.access, dtype: Some(of.dtype), shared: false }
                        }
                        Bind::Scratch(at) => {
                            Bound { name: scratch[*at].0, access: Access::Write, dtype: None, shared: false }
                        }
                    };
                    for dispatch in operation.dispatches(variant) {
                        let binds: Vec<Bound> = dispatch.binds.iter().map(bound).collect();
                        for (place, bound) in binds.iter().enumerate() {
                            at_place.entry((dispatch.name, place)).or_default().insert(bound.name);
                        }
                        let bits: Vec<_> = dispatch.constants.iter().map(|(name, v)| (*name, v.to_bits())).collect();
                        let names: Vec<_> = binds.iter().map(|bound| bound.name).collect();
                        known.entry((dispatch.source.clone(), bits, names)).or_insert_with(|| Shader {
                            kernel: *kernel,
                            stage: dispatch.name,
                            source: dispatch.source,
                            constants: dispatch.constants,
                            binds,
                            operands: operation.bindings().iter().map(|binding| binding.name).collect(),
                        });
                    }
                }
            }
        }
        let mut all: Vec<Shader> = known.into_values().collect();
        for shader in &mut all {
            for (place, bound) in shader.binds.iter_mut().enumerate() {
                bound.shared = at_place[&(shader.stage, place)].len() > 1;
            }
        }
        all
    })
}

/// Parses and validates; the message shows the line, counted in the joined text.
fn parse(source: &str) -> Result<(naga::Module, naga::valid::ModuleInfo), String> {
    let module = naga::front::wgsl::parse_str(source).map_err(|e| e.emit_to_string(source))?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::empty())
        .validate(&module)
        .map_err(|e| e.emit_to_string(source))?;
    Ok((module, info))
}

/// What of a shader is not as its dispatch wants it.
fn check(shader: &Shader) -> Result<(), String> {
    let (module, info) = parse(&shader.source)?;
    check_constants(shader, &module)?;
    check_globals(shader, &module)?;
    translate(&module, &info, &shader.constants)
}

fn check_constants(shader: &Shader, module: &naga::Module) -> Result<(), String> {
    let declared: Vec<&str> = module.overrides.iter().filter_map(|(_, o)| o.name.as_deref()).collect();
    if let Some((_, found)) = module.overrides.iter().find(|(_, o)| o.init.is_some()) {
        return Err(format!("the override {:?} has a default", found.name));
    }
    if let Some(name) = declared.iter().find(|name| !shader.constants.iter().any(|(given, _)| given == *name)) {
        return Err(format!("the override `{name}` gets no value"));
    }
    match shader.constants.iter().find(|(given, _)| !declared.contains(given)) {
        Some((name, _)) => Err(format!("the constant `{name}` is not declared")),
        None => Ok(()),
    }
}

fn check_globals(shader: &Shader, module: &naga::Module) -> Result<(), String> {
    let mut storage = Vec::new();
    let (mut params, mut repeat) = (None, None);
    for (_, variable) in module.global_variables.iter() {
        let (Some(binding), inner) = (&variable.binding, &module.types[variable.ty].inner) else { continue };
        let name = variable.name.clone().unwrap_or_default();
        match (variable.space, binding.group, binding.binding) {
            (naga::AddressSpace::Storage { access }, 0, index) => {
                let naga::TypeInner::Array { base, .. } = inner else { return Err(format!("`{name}` is no array")) };
                let access = match access.contains(naga::StorageAccess::STORE) {
                    true => Access::Write,
                    false => Access::Read,
                };
                let dtype = match module.types[*base].inner.scalar() {
                    Some(naga::Scalar { kind: naga::ScalarKind::Float, width: 4 }) => Dtype::F32,
                    Some(naga::Scalar { kind: naga::ScalarKind::Uint, width: 4 }) => Dtype::U32,
                    other => return Err(format!("`{name}` holds {other:?}")),
                };
                storage.push((index, name, access, dtype));
            }
            (naga::AddressSpace::Uniform, 1, 0) => params = Some(members(module, inner)),
            (naga::AddressSpace::Uniform, 1, 1) => repeat = Some(inner.clone()),
            other => return Err(format!("`{name}` is bound in an unexpected way: {other:?}")),
        }
    }
    storage.sort_by_key(|found| found.0);
    if storage.len() > 8 {
        return Err(format!("{} storage buffers, more than every device has", storage.len()));
    }
    if storage.len() != shader.binds.len() {
        return Err(format!("{} bindings, the stage binds {}", storage.len(), shader.binds.len()));
    }
    for ((place, name, access, dtype), (index, bound)) in storage.iter().zip((0u32..).zip(&shader.binds)) {
        let named = name == bound.name || bound.shared && ANY.contains(&name.as_str());
        let wanted = (index, bound.access, bound.dtype.unwrap_or(*dtype));
        if !named || (*place, *access, *dtype) != wanted {
            return Err(format!(
                "binding {place} is `{name}`, {access:?}, {dtype:?}; the stage binds {index}, {bound:?}"
            ));
        }
    }
    let fields = shader.kernel.fields.iter().map(|field| (field.name.to_string(), field.real));
    let wanted = fields.chain(shader.operands.iter().map(|name| (format!("{name}_at"), false)));
    let wanted: Vec<_> = wanted.zip((0u32..).step_by(4)).map(|((name, real), at)| (name, at, real)).collect();
    if params.as_ref() != Some(&wanted) {
        return Err(format!("uniform {params:?}, in Rust {wanted:?}"));
    }
    match repeat {
        Some(naga::TypeInner::Vector { size: naga::VectorSize::Quad, scalar: naga::Scalar::U32 }) => Ok(()),
        other => Err(format!("uniform `repeat` is {other:?}")),
    }
}

/// Name, offset and whether it is a float, of each member of a struct.
fn members(module: &naga::Module, of: &naga::TypeInner) -> Vec<(String, u32, bool)> {
    let naga::TypeInner::Struct { members, .. } = of else { return Vec::new() };
    let float = |m: &naga::StructMember| module.types[m.ty].inner.scalar() == Some(naga::Scalar::F32);
    members.iter().map(|m| (m.name.clone().unwrap_or_default(), m.offset, float(m))).collect()
}

/// To every backend, with the constants as pipeline creation sets them.
fn translate(module: &naga::Module, info: &naga::valid::ModuleInfo, constants: &[(&str, f64)]) -> Result<(), String> {
    let constants = constants.iter().map(|(name, value)| (name.to_string(), *value)).collect();
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
fn every_dispatch_of_every_case_gets_the_shader_it_wants() {
    let wrong: BTreeSet<String> = shaders()
        .iter()
        .filter_map(|shader| check(shader).err().map(|e| format!("{} {:?}: {e}", shader.stage, shader.constants)))
        .collect();
    let texts: BTreeSet<&str> = shaders().iter().map(|shader| shader.source.as_str()).collect();
    println!("{} shaders of {} texts", shaders().len(), texts.len());
    assert!(wrong.is_empty(), "{}", wrong.into_iter().collect::<Vec<_>>().join("\n"));
}

/// All files below a folder, by path without the ending.
fn files(folder: &str, ending: &str) -> BTreeMap<String, String> {
    fn walk(folder: &Path, from: &Path, ending: &str, all: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, from, ending, all);
            } else {
                let name = path.strip_prefix(from).unwrap().to_str().unwrap().replace('\\', "/");
                let name = name.strip_suffix(ending).unwrap_or_else(|| panic!("{name} is no {ending}")).to_string();
                all.insert(name, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let (folder, mut all) = (Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), BTreeMap::new());
    walk(&folder, &folder, ending, &mut all);
    all
}

/// The files that a text was joined from, in order.
fn parts(source: &str, files: &BTreeMap<String, String>) -> Result<Vec<String>, String> {
    let begin = "@group(1) @binding(1) var<uniform> repeat: vec4<u32>;\n";
    let (_, mut rest) = source.split_once(begin).ok_or("no uniform block")?;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let part = files.iter().filter(|(_, text)| rest.starts_with(text.as_str())).max_by_key(|(_, text)| text.len());
        let (name, text) = part.ok_or_else(|| format!("of no file: {}", rest.lines().next().unwrap_or_default()))?;
        rest = &rest[text.len()..];
        rest = rest.strip_prefix('\n').unwrap_or(rest);
        found.push(name.clone());
    }
    Ok(found)
}

/// What of the folder `shaders/` and of the dispatches does not belong together.
fn compare_files(shaders: &[Shader], files: &BTreeMap<String, String>) -> Vec<String> {
    let (mut used, mut wrong) = (BTreeSet::new(), BTreeSet::new());
    for shader in shaders {
        match parts(&shader.source, files) {
            Ok(names) => {
                if names.last().map(String::as_str) != Some(shader.stage) {
                    wrong.insert(format!("{} ends with {names:?}", shader.stage));
                }
                used.extend(names);
            }
            Err(message) => {
                wrong.insert(format!("{}: {message}", shader.stage));
            }
        }
    }
    wrong.extend(files.keys().filter(|name| !used.contains(*name)).map(|name| format!("shaders/{name}.wgsl: unused")));
    wrong.into_iter().collect()
}

/// What of a kernel has no home: a shader of its name, a file or a folder of its name.
fn homeless(kernel: &Description, shaders: &[Shader]) -> Vec<String> {
    let mut wrong = Vec::new();
    if !shaders.iter().any(|shader| shader.kernel.name == kernel.name && shader.stage == kernel.name) {
        wrong.push(format!("{} has no shader of its name", kernel.name));
    }
    let twin = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels").join(kernel.name);
    if !twin.with_extension("rs").exists() && !twin.join("mod.rs").exists() {
        wrong.push(format!("{} has no module of its name", kernel.name));
    }
    wrong
}

#[test]
fn the_folder_of_shaders_equals_the_parts_that_are_used() {
    let files = files("shaders", ".wgsl");
    assert_eq!(compare_files(shaders(), &files), Vec::<String>::new());
    assert_eq!(ALL.iter().flat_map(|kernel| homeless(kernel, shaders())).collect::<Vec<_>>(), Vec::<String>::new());
    // planted: a file that nobody uses, one that is missing, a kernel of another name
    let mut planted = files.clone();
    planted.insert("shared/more".into(), "fn more() {}\n".into());
    assert_eq!(compare_files(shaders(), &planted), ["shaders/shared/more.wgsl: unused"]);
    planted.remove("shared/madd");
    assert!(compare_files(shaders(), &planted).iter().any(|line| line.contains("of no file: // sum + x w")));
    assert_eq!(homeless(&Description { name: "lstm_forwards", ..ALL[0] }, shaders()).len(), 2);
}

/// Words that must not stand in the code of a shader, comments apart.
fn banned(source: &str) -> Option<&'static str> {
    let bare: Vec<&str> = source.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let code = bare.join("\n").replace("lstm_tanh(", "");
    ["tanh(", "sinh(", "cosh(", "atomic", "isnan", "]["].into_iter().find(|word| code.contains(word))
}

#[test]
fn no_built_in_tanh_no_atomics_no_writes_to_components() {
    for (name, source) in files("shaders", ".wgsl") {
        assert_eq!(banned(&source), None, "{name}");
        for (plant, word) in [("tanh(x)", "tanh("), ("atomicAdd(&a, 1u)", "atomic"), ("tile[0][1]", "][")] {
            assert_eq!(banned(&format!("{source}let y = {plant};")), Some(word), "{name}");
        }
        assert_eq!(banned(&format!("{source}// tanh(x)")), None, "{name}");
    }
}

fn one(stage: &str) -> &'static Shader {
    shaders().iter().find(|shader| shader.stage == stage).unwrap()
}

#[test]
fn planted_errors_are_seen() {
    let sound = one("lstm_forward");
    assert_eq!(check(sound), Ok(()));
    // what, from, to, and words of the message
    for (what, from, to, words) in [
        (
            "a binding moved",
            "@binding(0) var<storage, read> weight_hh",
            "@binding(8) var<storage, read> weight_hh",
            "binding 1",
        ),
        ("access", "var<storage, read> mask:", "var<storage, read_write> mask:", "`mask`, Write"),
        ("name", "peephole: array<f32>;", "peep: array<f32>; const peephole = array(0.0);", "`peep`"),
        (
            "no array",
            "var<storage, read> lengths: array<u32>;",
            "var<storage, read> l: u32; const lengths = array(1u);",
            "no array",
        ),
        ("a group", "@group(0) @binding(4)", "@group(2) @binding(4)", "unexpected way"),
        ("field order", "  steps: u32,\n  batch: u32,", "  batch: u32,\n  steps: u32,", "uniform"),
        ("a field more", "  steps: u32,", "  steps: u32,\n  more: u32,", "uniform"),
        ("a field's type", "  epsilon: f32,", "  epsilon: u32,", "uniform"),
        ("repeat", "repeat: vec4<u32>;", "repeat: vec3<u32>;", "`repeat`"),
        ("a default", "override has_lengths: bool;", "override has_lengths: bool = false;", "has a default"),
        (
            "one override more",
            "override has_lengths: bool;",
            "override has_lengths: bool; override fast: bool;",
            "`fast`",
        ),
        ("a reserved word", "let row = row0", "let var = row0", "let var = row0"),
        ("syntax", "let row = row0 + li.y;", "let row = row0 + ;", "let row = row0 + ;"),
        ("a type", "var sums = vec4<f32>();", "var sums = vec3<f32>();", "inconsistent type passed"),
    ] {
        let broken = Shader { source: sound.source.replace(from, to), ..sound.clone() };
        assert_ne!(broken.source, sound.source, "{what}: nothing was planted");
        let message = check(&broken).expect_err(what);
        assert!(message.contains(words), "{what}: {message}");
    }
    let constants = |change: fn(&mut Vec<(&'static str, f64)>)| {
        let mut broken = sound.clone();
        change(&mut broken.constants);
        check(&broken).expect_err("constants")
    };
    assert_eq!(constants(|all| all.retain(|(name, _)| *name != "has_mask")), "the override `has_mask` gets no value");
    assert_eq!(constants(|all| all.push(("fast", 1.0))), "the constant `fast` is not declared");
    // what the stage wants, changed
    let wants = |stage: &str, change: fn(&mut Vec<Bound>)| {
        let mut broken = one(stage).clone();
        change(&mut broken.binds);
        check(&broken).expect_err("bindings")
    };
    assert!(wants("lstm_forward", |all| all[4].dtype = Some(Dtype::F32)).contains("`lengths`, Read, U32"));
    assert!(wants("lstm_forward", |all| all.swap(2, 3)).contains("binding 2 is `h`"));
    assert!(wants("lstm_forward", |all| all.truncate(7)).contains("8 bindings, the stage binds 7"));
    assert_eq!(check(one("lstm_backward")), Ok(()));
    assert!(wants("lstm_backward", |all| all[0].shared = false).contains("`weight`"));
    let mut nine = sound.clone();
    nine.source.push_str("@group(0) @binding(8) var<storage, read> ninth: array<f32>;");
    nine.binds.push(Bound { name: "ninth", ..nine.binds[0].clone() });
    assert!(check(&nine).unwrap_err().contains("more than every device has"));
}

/// An error in a shader is found by its line, which is shown with its number in the joined text.
#[test]
fn a_message_shows_the_line() {
    let source = one("lstm_forward").source.replace("let g = lstm_tanh(v.z);", "let g = lstm_tan(v.z);");
    let line = 1 + source.lines().position(|line| line.contains("lstm_tan(v.z)")).unwrap();
    let message = parse(&source).unwrap_err();
    assert!(message.contains(&format!("wgsl:{line}:")) && message.contains("let g = lstm_tan(v.z)"), "{message}");
}

/// The equations of `docs/lstm.md`.
fn equations() -> Vec<String> {
    let all = [("F", 12), ("B", 12), ("O", 3)];
    all.into_iter().flat_map(|(letter, last)| (1..=last).map(move |n| format!("{letter}{n}"))).collect()
}

fn is_equation(word: &str) -> bool {
    word.strip_prefix(['F', 'B', 'O']).is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// The numbers in comments behind code, or above a function: those with which the comment begins.
fn numbers(text: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let next = text.lines().skip(1).chain([""]);
    for (line, next) in text.lines().zip(next) {
        let Some((code, comment)) = line.split_once("//") else { continue };
        let is_documentation = comment.starts_with(['/', '!']);
        if is_documentation || code.trim().is_empty() && !next.trim_start().starts_with("fn ") {
            continue;
        }
        let words = comment.split([' ', ',']).filter(|word| !word.is_empty());
        all.extend(words.take_while(|word| is_equation(word)).map(String::from));
    }
    all
}

type Files = BTreeMap<String, String>;

/// The places where an equation is computed: what to call it, its files, and which equations are computed there.
fn sides(rust: &Files, wgsl: &Files) -> Vec<(&'static str, Files, Vec<String>)> {
    let of = |keep: &dyn Fn(&str) -> bool| -> Files {
        rust.iter().filter(|(name, _)| keep(name)).map(|(name, text)| (name.clone(), text.clone())).collect()
    };
    let is_fast = |name: &str| name.ends_with("cpu") || name == "recurrence/lstm_lanes";
    let products_and_descent = |equation: &String| equation == "F1" || equation == "B12" || equation.starts_with('O');
    let recurrent: Vec<String> = equations().into_iter().filter(|e| !products_and_descent(e)).collect();
    let cell = ["lstm_forward", "lstm_backward", "recurrence/lstm"];
    vec![
        ("the twins", of(&|name| !is_fast(name)), equations()),
        ("the twins of the recurrence", of(&|name| cell.contains(&name)), recurrent.clone()),
        ("the lanes", of(&is_fast), recurrent),
        ("WGSL", wgsl.clone(), equations()),
    ]
}

/// The equations that a side has no line of.
fn absent(files: &Files, wanted: &[String]) -> Vec<String> {
    let found: BTreeSet<String> = files.values().flat_map(|text| numbers(text)).collect();
    wanted.iter().filter(|number| !found.contains(*number)).cloned().collect()
}

#[test]
fn equation_numbers_hold_document_twins_lanes_and_shaders_together() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/lstm.md");
    let document = std::fs::read_to_string(document).unwrap();
    let named: BTreeSet<&str> =
        document.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| is_equation(word)).collect();
    if named.is_empty() {
        println!("docs/lstm.md has no numbers yet");
    } else {
        let wanted = equations();
        assert_eq!(named, wanted.iter().map(String::as_str).collect(), "docs/lstm.md and this test");
    }
    let sides = sides(&files("src/kernels", ".rs"), &files("shaders", ".wgsl"));
    for (side, files, wanted) in &sides {
        assert_eq!(absent(files, wanted), Vec::<String>::new(), "without a line in {side}");
        // and where one is taken out of a copy, it is missed
        for number in wanted {
            let cut = |line: &str| match line.split_once("//") {
                Some((code, comment)) => {
                    let words: Vec<&str> = comment.split([' ', ',']).filter(|word| word != number).collect();
                    format!("{code}//{}\n", words.join(" "))
                }
                None => format!("{line}\n"),
            };
            let without = |(name, text): (&String, &String)| (name.clone(), text.lines().map(cut).collect::<String>());
            let copy: Files = files.iter().map(without).collect();
            assert_eq!(absent(&copy, wanted), std::slice::from_ref(number), "{side}");
        }
    }
}

#[test]
fn numbers_count_where_code_stands() {
    let found = |text: &str| numbers(text).into_iter().collect::<Vec<_>>();
    assert_eq!(found("*c = sum; // F1, B12"), ["B12", "F1"]);
    assert_eq!(found("// B5 without a norm\nfn clip() {}"), ["B5"]);
    assert_eq!(found("let e = 1;\n// F2 of a header\n"), Vec::<String>::new());
    assert_eq!(found("//! F3\n/// F4\nx; // see F5\ny; // F32x, F"), Vec::<String>::new());
}
