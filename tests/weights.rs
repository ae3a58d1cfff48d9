//! Weights files: what is read, what is refused, what is written, and the layouts of other frameworks.

use everloop::Direction;
use everloop::instruments::gradient_name;
use everloop::layers::{Bias, Connection, DenseConfig, EmbeddingConfig, Fill, Init, Join, LstmConfig};
use everloop::optimizer::SgdConfig;
use everloop::weights::layout::{Layer, Layout};
use everloop::weights::textbook::{self, PARTS, TEXTBOOK};
use everloop::weights::{self, Array, Export, Import, Status, Weights};
use everloop::{Device, Parameters, Recorder, Result, Rng, Store, Workspace, loss};
use safetensors::{SafeTensors, tensor::TensorView};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Counts what is allocated, for `memory_is_bounded`.
#[global_allocator]
static ALLOCATED: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

/// A folder of its own for a test, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("everloop-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Folder(path)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// A legal file with everything the format has: metadata, escapes, small types, an empty tensor, a scalar, blanks.
fn legal() -> Vec<u8> {
    let header = r#"{"__metadata__":{"format":"pt","a\tb":""}, "w\u0041":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},
        "é":{"shape":[],"dtype":"BF16","data_offsets":[8,10]},"4":{"data_offsets":[10,11],"dtype":"F4","shape":[2]},
        "n":{"dtype":"I64","shape":[0,3],"data_offsets":[11,11]},"h":{"dtype":"F16","shape":[1],"data_offsets":[11,13]}}  "#;
    file(header, &[0, 0, 128, 63, 0, 0, 0, 192, 128, 63, 0x21, 0, 0x3c])
}

/// Ours and the reference parser's answer to the same bytes: ours is the same, or a refusal in one short line.
/// Gives (we read it, the reference parser reads it).
fn agree(bytes: &[u8]) -> (bool, bool) {
    let reference = SafeTensors::deserialize(bytes);
    match Weights::from_bytes(bytes) {
        Ok(ours) => {
            let reference = reference.unwrap_or_else(|e| panic!("read, and refused by the reference parser: {e}"));
            assert_eq!(ours.tensors().len(), reference.len());
            for tensor in ours.tensors() {
                let view = reference.tensor(tensor.name()).unwrap();
                assert_eq!(view.dtype().to_string(), tensor.dtype().name());
                assert_eq!((view.shape(), view.data()), (tensor.shape(), ours.bytes(tensor)));
            }
            let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
            let metadata: BTreeMap<_, _> = header.metadata().iter().flatten().collect();
            assert!(metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).eq(ours.metadata()));
            (true, true)
        }
        Err(error) => {
            check_message(&error.to_string());
            (false, reference.is_ok())
        }
    }
}

fn check_message(text: &str) {
    assert!(text.len() < 300 && !text.chars().any(char::is_control), "{text:?}");
}

#[test]
fn every_truncation_and_every_changed_byte_of_the_header_is_refused_or_read_as_the_reference_does() {
    let s01 = std::fs::read(format!("{FIXTURES}/pytorch/s01_basic.weights.safetensors")).unwrap();
    for legal in [legal(), s01] {
        assert_eq!(agree(&legal), (true, true));
        for len in 0..legal.len() {
            assert_eq!(agree(&legal[..len]), (false, false), "cut to {len} bytes");
        }
        assert_eq!(agree(&[&legal[..], &[0]].concat()), (false, false));
        let header = 8 + u64::from_le_bytes(legal[..8].try_into().unwrap()) as usize;
        let (mut read, mut stricter) = (0, 0);
        for at in 0..header {
            let mut bytes = legal.clone();
            for value in 0..=255 {
                bytes[at] = value;
                let (ours, reference) = agree(&bytes);
                read += ours as usize;
                stricter += (!ours && reference) as usize;
            }
        }
        println!("{} changes: {read} read, {stricter} refused that the reference parser reads", header * 256);
        assert!(read > header, "every byte's own value is among them");
    }
}

#[test]
fn random_damage_is_refused_or_read_as_the_reference_does() {
    let (legal, mut rng) = (legal(), Rng::new(7));
    let pieces = [&b"\""[..], b"{", b"}", b"[", b"]", b",", b":", b"\\u0041", b"\\ud83d\\ude00", b"-1", b"1e1", b"0.0"];
    let pieces = [&pieces[..], &[b" ", b"18446744073709551616", b"\xff", b"null", b"\\", b"\"a\":1,"]].concat();
    for _ in 0..200_000 {
        let mut header = legal[8..].to_vec();
        for _ in 0..1 + rng.below(3) {
            let at = rng.below(header.len() - 13);
            match rng.below(4) {
                0 => header[at] = rng.below(256) as u8,
                1 => drop(header.drain(at..at + rng.below(4))),
                2 => drop(header.splice(at..at, pieces[rng.below(pieces.len())].iter().copied())),
                _ => drop(header.splice(at..at + 1, pieces[rng.below(pieces.len())].iter().copied())),
            }
        }
        let len = (header.len() - 13) as u64;
        agree(&[&len.to_le_bytes()[..], &header].concat());
    }
}

#[test]
fn the_corpus_of_the_fuzz_target_is_refused_or_read_as_the_reference_does() {
    let Ok(folder) = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/weights")) else {
        return eprintln!("skipped: no fuzz/corpus here, as in the packed crate");
    };
    let read = folder.map(|entry| agree(&std::fs::read(entry.unwrap().path()).unwrap()).0).filter(|read| *read).count();
    assert!(read >= 10, "only {read} files of the corpus are read");
}

#[test]
fn illegal_headers_are_refused_by_name_and_cause() {
    let one = |entries: &str, data: usize| file(&format!("{{{entries}}}"), &vec![0; data]);
    let u8_at = |name: &str, start, end| {
        format!(r#""{name}":{{"dtype":"U8","shape":[{}],"data_offsets":[{start},{end}]}}"#, end - start)
    };
    let (a, b) = (u8_at("a", 0, 2), u8_at("b", 2, 4));
    for (bytes, wanted) in [
        (one(&format!("{a},{a}"), 2), "tensor `a`: the name stands twice"),
        (one(&format!("{a},{}", a.replace("\"a\"", "\"\\u0061\"")), 2), "tensor `a`: the name stands twice"),
        (one(&format!("{a},{}", u8_at("b", 3, 5)), 5), "tensor `b`: its data starts at 3: a hole"),
        (one(&format!("{a},{}", u8_at("b", 1, 3)), 3), "tensor `b`: its data starts at 1: an overlap"),
        (one(&format!("{a},{b}"), 5), "tensor `b`: the tensors end at byte 4 of the data, the file has 5"),
        (one(&format!("{a},{b}"), 3), "tensor `b`: the tensors end at byte 4 of the data, the file has 3"),
        (one(&a.replace("[0,2]", "[2,0]"), 2), "tensor `a`: its data ends at 0, before its start"),
        (one(&a.replace("[2]", "[3]"), 2), "tensor `a`: shape [3] of U8 needs 3 bytes, its offsets span 2"),
        (one(&a.replace("[2]", "[4294967296,4294967296]"), 2), "tensor `a`: shape [4294967296, 4294967296] of U8 over"),
        (one(&a.replace("[2]", "[2305843009213693952]").replace("U8", "F64"), 2), "tensor `a`: shape"),
        (one(&a.replace("[2]", "[1]").replace("U8", "F4"), 2), "tensor `a`: shape [1] of F4 is no whole number"),
        (one(&a.replace("U8", "U9"), 2), "tensor `a`: unknown dtype `U9`"),
        (one(&a.replace("\"shape\"", "\"shapes\""), 2), "tensor `a`: unknown field `shapes`"),
        (one(&a.replace("\"shape\":[2],", ""), 2), "tensor `a`: `shape` is missing"),
        (one(&a.replace("\"shape\":[2],", "\"shape\":[2],\"shape\":[2],"), 2), "tensor `a`: the field `shape` stands"),
        (one(&a.replace("[0,2]", "[0,2,2]"), 2), "tensor `a`: byte"),
        (one(&a.replace("[2]", "[2.0]"), 2), "tensor `a`: byte"),
        (one(&a.replace("[2]", "[-2]"), 2), "tensor `a`: byte"),
        (one(&a.replace("[2]", "[02]"), 2), "tensor `a`: byte"),
        (one(r#""__metadata__":{},"__metadata__":{}"#, 0), "tensor `__metadata__`: the name stands twice"),
        (one(r#""__metadata__":{"k":"","k":""}"#, 0), "tensor `__metadata__`: the key `k` stands twice"),
        (one(r#""__metadata__":{"k":1}"#, 0), "weights file: byte 21 of the header: expected a string"),
        (file("{},", &[]), "weights file: byte 2 of the header: expected nothing but blanks"),
        (file(" {}", &[]), "weights file: the header does not begin with `{`"),
        (file("", &[]), "weights file: the header does not begin with `{`"),
        (100_000_001u64.to_le_bytes().to_vec(), "weights file: the header's length is given as 100000001 bytes, the l"),
        (9u64.to_le_bytes().to_vec(), "weights file: the header's length is given as 9 bytes, the file has 8"),
        (vec![0; 7], "weights file: 7 bytes are too few"),
        ([&1u64.to_le_bytes()[..], &[0xff]].concat(), "weights file: the header is not UTF-8 at byte 0"),
    ] {
        let message = Weights::from_bytes(&bytes).unwrap_err().to_string();
        assert!(message.starts_with(wanted), "{message}\n{wanted}");
        check_message(&message);
    }
    let hostile = "\\n\\u202e".repeat(10_000) + &"é".repeat(10_000);
    check_message(&Weights::from_bytes(&one(&u8_at(&hostile, 1, 2), 2)).unwrap_err().to_string());
}

#[test]
fn only_regular_files_are_opened() {
    let folder = Folder::new("regular");
    let refused = |path: &Path, wanted: &str| {
        let message = Weights::open(path).unwrap_err().to_string();
        assert!(message.contains(wanted), "{message}");
        check_message(&message);
    };
    refused(&folder.0, "is a folder");
    refused(&folder.0.join("nothing"), "No such file");
    refused(&folder.0.join("x".repeat(200) + "\n"), "\\n");
    std::fs::write(folder.0.join("empty"), []).unwrap();
    refused(&folder.0.join("empty"), "0 bytes are too few");
    std::fs::write(folder.0.join("legal"), legal()).unwrap();
    assert_eq!(Weights::open(folder.0.join("legal")).unwrap().tensors().len(), 5);
    #[cfg(unix)]
    {
        let pipe = folder.0.join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        refused(&pipe, "is not a regular file");
        refused(Path::new("/dev/zero"), "is not a regular file");
        std::os::unix::fs::symlink(&pipe, folder.0.join("link")).unwrap();
        refused(&folder.0.join("link"), "is not a regular file");
        std::os::unix::fs::symlink("legal", folder.0.join("good")).unwrap();
        assert!(Weights::open(folder.0.join("good")).is_ok());
    }
}

/// In a process of its own, where no other test allocates.
#[test]
fn memory_is_bounded() {
    if std::env::var_os("EVERLOOP_MEMORY_TEST").is_none() {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "memory_is_bounded", "--test-threads=1", "--nocapture"]);
        let output = child.env("EVERLOOP_MEMORY_TEST", "1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let folder = Folder::new("memory");
    let entry = |n: usize, start: usize, len: usize| {
        format!(r#""{n}":{{"dtype":"U8","shape":[{len}],"data_offsets":[{start},{}]}}"#, start + len)
    };
    let many = |count: usize, len: usize| {
        let entries: Vec<String> = (0..count).map(|n| entry(n, n * len, len)).collect();
        file(&format!("{{{}}}", entries.join(",")), &vec![0; count * len])
    };
    let name = "\\n".repeat(2_000_000);
    let pairs: Vec<String> = (0..400_000).map(|n| format!(r#""{n}":"""#)).collect();
    let ones = vec!["1"; 2_000_000].join(",");
    // what serde_json would copy into a buffer, or quote in a message
    let (long, digits, tensor) = ("é".repeat(3 << 19), "1".repeat(3 << 20), entry(0, 0, 30 << 20));
    let escaped = format!(r#"{{"__metadata__":{{"k":"{}"}},{tensor}}}"#, "\\n".repeat(1 << 20));
    let rows = [long.as_str(); 3].join(r"\u0000");
    let cases = [
        (legal(), true),
        (many(1, 30 << 20), true),
        (many(8_000, 0), true),
        (many(50_000, 100), true),
        (many(200_000, 0), false),
        (file(&format!(r#"{{"{name}":{{"dtype":"U8","shape":[],"data_offsets":[0,1]}}}}"#), &[0]), false),
        (file(&format!(r#"{{"__metadata__":{{{}}}}}"#, pairs.join(",")), &[]), false),
        (file(&format!(r#"{{"a":{{"dtype":"U8","shape":[{ones}],"data_offsets":[0,1]}}}}"#), &[0]), false),
        (file(&"{".repeat(3 << 20), &[]), false),
        (file(&format!("{{\"{}", "{".repeat(3 << 20)), &[]), false),
        (file(&"[".repeat(3 << 20), &[]), false),
        (99_999_999u64.to_le_bytes().to_vec(), false),
        (file(&escaped, &vec![0; 30 << 20]), true),
        (file(&escaped.replace("31457280", "0"), &[]), false),
        (file(&format!(r#"{{"__metadata__":{{"k":"{long}"}},{tensor}}}"#), &vec![0; 30 << 20]), true),
        (file(&format!(r#"{{"__metadata__":{{"k":"{rows}"}}}}"#), &[]), false),
        (file(&format!(r#"{{"__metadata__":{{"k":{digits}}}}}"#), &[]), false),
        (file(&format!(r#"{{"__metadata__":"{long}"}}"#), &[]), false),
        (file(&format!(r#"{{"{rows}":{{"dtype":"U8","shape":[],"data_offsets":[0,1]}}}}"#), &[0]), false),
        (file(&format!(r#"{{"a":"{long}"}}"#), &[]), false),
        (file(&format!(r#"{{"a":{{"{long}":1}}}}"#), &[]), false),
        (file(&format!(r#"{{"a":{{"dtype":"{rows}"}}}}"#), &[]), false),
        (file(&format!(r#"{{"a":{{"shape":["{rows}"]}}}}"#), &[]), false),
        (file(&format!(r#"{{"a":{{"shape":[{digits}]}}}}"#), &[]), false),
        (file(&format!(r#"{{"a":{{"shape":{}}}}}"#, "[".repeat(3 << 20)), &[]), false),
        (file(&format!(r#"{{"a":{}}}"#, r#"{"a":"#.repeat(1 << 19)), &[]), false),
    ];
    for (number, (bytes, legal)) in cases.into_iter().enumerate() {
        let path = folder.0.join(number.to_string());
        std::fs::write(&path, &bytes).unwrap();
        let measured = |read: &dyn Fn() -> Result<Weights>| {
            let before = ALLOCATED.current_usage();
            ALLOCATED.reset_peak_usage();
            let result = read();
            (ALLOCATED.peak_usage() - before, result.map(drop))
        };
        for (peak, result) in [measured(&|| Weights::from_bytes(&bytes)), measured(&|| Weights::open(&path))] {
            assert!(peak <= bytes.len() + (1 << 20), "case {number}: {peak} bytes for a file of {}", bytes.len());
            assert_eq!(result.is_ok(), legal, "case {number}: {result:?}");
        }
    }
}

#[test]
fn half_precision_converts_exactly() {
    let data: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for (dtype, mantissa) in [("F16", 10), ("BF16", 7)] {
        let header = format!(r#"{{"w":{{"dtype":"{dtype}","shape":[65536],"data_offsets":[0,131072]}}}}"#);
        let values = Weights::from_bytes(&file(&header, &data)).unwrap().values("w").unwrap();
        // IEEE's definition
        let most = (1 << (15 - mantissa)) - 1;
        for (bits, value) in values.into_iter().enumerate() {
            let (exponent, fraction) = ((bits >> mantissa & most) as i32, (bits & ((1 << mantissa) - 1)) as f64);
            let one = 2f64.powi(mantissa);
            let magnitude = match exponent as usize {
                0 => fraction / one * 2f64.powi(1 - most as i32 / 2),
                e if e == most && fraction == 0.0 => f64::INFINITY,
                e if e == most => f64::NAN,
                _ => (1.0 + fraction / one) * 2f64.powi(exponent - most as i32 / 2),
            };
            let wanted = if bits >> 15 == 1 { -magnitude } else { magnitude };
            assert!(value.to_bits() == wanted.to_bits() || value.is_nan() && wanted.is_nan(), "{dtype} {bits:#x}");
        }
    }
    let read = Weights::from_bytes(&legal()).unwrap();
    assert_eq!(read.values("wA").unwrap(), [1.0, -2.0]);
    assert_eq!((read.values("é").unwrap(), read.values("h").unwrap()), (vec![1.0], vec![1.0]));
    assert!(read.values("4").unwrap_err().to_string().contains("tensor `4`: is F4"));
    assert!(read.values("m").unwrap_err().to_string().contains("tensor `m`: is not in the file"));
}

fn model(seed: u64) -> (Parameters, everloop::layers::Lstm) {
    let mut parameters = Parameters::new();
    let config = LstmConfig::new(3, 4).with_layers(2).with_bidirectional(Join::Layers);
    let lstm = config.declare(&mut parameters, "lstm", &mut Rng::new(seed)).unwrap();
    DenseConfig::new(8, 2).declare(&mut parameters, "linear", &mut Rng::new(seed)).unwrap();
    (parameters, lstm)
}

/// The parameters as f32 holds them.
fn rounded(parameters: &Parameters) -> Vec<f64> {
    parameters.block().iter().map(|v| *v as f32 as f64).collect()
}

/// Header and data of a file.
fn split(bytes: &[u8]) -> (&[u8], &[u8]) {
    let (len, rest) = bytes.split_first_chunk::<8>().unwrap();
    rest.split_at(u64::from_le_bytes(*len) as usize)
}

#[test]
fn what_is_saved_is_read_and_is_what_the_reference_writes() {
    let (parameters, _) = model(1);
    for prefix in ["", "encoder", "a.b."] {
        let bytes = weights::to_bytes(&parameters, &Export::new().with_prefix(prefix)).unwrap();
        assert_eq!(agree(&bytes), (true, true));
        let dot = prefix.trim_end_matches('.').to_string() + if prefix.is_empty() { "" } else { "." };
        let data: Vec<(String, Vec<usize>, Vec<u8>)> = parameters
            .iter()
            .map(|p| {
                let values = parameters.get(&p.name).unwrap();
                let bytes = values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect();
                (format!("{dot}{}", p.name), p.shape.clone(), bytes)
            })
            .collect();
        let views = data.iter().map(|(name, shape, bytes)| {
            (name.clone(), TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
        });
        let views: Vec<_> = views.collect();
        let format = || ("format".to_string(), "pt".to_string());
        let mut plain = Parameters::new();
        for p in parameters.iter() {
            plain.declare(&p.name, &p.shape, parameters.get(&p.name).unwrap().to_vec()).unwrap();
        }
        let unconfigured = weights::to_bytes(&plain, &Export::new().with_prefix(prefix)).unwrap();
        assert_eq!(unconfigured, safetensors::serialize(views.clone(), Some([format()].into())).unwrap());
        // with the configurations beside it; the reference writes the pairs of the metadata in any order
        let read = Weights::from_bytes(&bytes).unwrap();
        let pairs: Vec<_> = read.metadata().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        assert!(pairs.len() == 3 && pairs.contains(&format()), "{pairs:?}");
        let reference = safetensors::serialize(views, Some(pairs.into_iter().collect())).unwrap();
        let (ours, theirs) = (split(&bytes), split(&reference));
        assert!(ours.1 == theirs.1 && bytes.len() == reference.len());
        let json = |header: &[u8]| serde_json::from_slice::<serde_json::Value>(header).unwrap();
        assert_eq!(json(ours.0), json(theirs.0));

        let (mut other, _) = model(2);
        let report = Weights::from_bytes(&bytes).unwrap();
        let report = report.import(&mut other, &Import::new().with_prefix(prefix)).unwrap();
        assert!(report.is_complete());
        assert_eq!(other.block(), rounded(&parameters));
        let text = report.to_string();
        assert!(text.contains("18 matched, 0 missing") && text.contains("gates i,f,g,o; bias: two vectors"), "{text}");
    }
    let bytes = weights::to_bytes(&parameters, &Export::new().with_f64()).unwrap();
    let (mut other, _) = model(2);
    Weights::from_bytes(&bytes).unwrap().import(&mut other, &Import::new()).unwrap();
    assert_eq!(other, parameters);
}

#[test]
fn pytorchs_files_are_taken_and_mismatches_refused_by_name() {
    let open = |name: &str| Weights::open(format!("{FIXTURES}/pytorch/{name}.weights.safetensors")).unwrap();
    let s03 = open("s03_l2_bi_bf");
    let found = s03.survey().lstms.remove(0);
    assert_eq!(
        (found.hidden_sizes.len(), found.directions, found.join, found.bias),
        (2, 2, Some(Join::Layers), Bias::Two)
    );
    let mut parameters = Parameters::new();
    found.config().unwrap().declare(&mut parameters, "encoder.lstm", &mut Rng::new(1)).unwrap();
    let before = parameters.clone();
    let refused = |parameters: &mut Parameters, weights: &Weights, import: &Import| {
        let message = weights.import(parameters, import).unwrap_err().to_string();
        check_message(&message);
        assert_eq!(*parameters, before);
        message
    };
    let message = refused(&mut parameters, &s03, &Import::new());
    let wanted =
        "tensor `encoder.lstm.weight_ih_l0`: is missing from the file; the closest name there is `weight_ih_l0`";
    assert!(message.starts_with(wanted), "{message}");
    s03.import(&mut parameters, &Import::new().with_part("encoder.lstm")).unwrap();
    assert_eq!(parameters.get("encoder.lstm.bias_hh_l1_reverse").unwrap(), s03.values("bias_hh_l1_reverse").unwrap());

    let mut parameters = before.clone();
    let s01 = open("s01_basic");
    let part = Import::new().with_part("encoder.lstm");
    let message = refused(&mut parameters, &s01, &part.clone().with_missing());
    assert!(
        message.starts_with("tensor `weight_ih_l0`: has shape [") && message.contains("declared is ["),
        "{message}"
    );
    let report = s01.import(&mut parameters, &part.with_missing().with_unfit()).unwrap();
    assert_eq!(report.count(|s| *s == Status::Matched), 0);
    assert_eq!(parameters, before);

    let (mut parameters, _) = model(1);
    let bytes = weights::to_bytes(&parameters, &Export::new().with_prefix("encoder")).unwrap();
    let whole = Weights::from_bytes(&bytes).unwrap();
    let mut smaller = Parameters::new();
    LstmConfig::new(3, 4).declare(&mut smaller, "lstm", &mut Rng::new(3)).unwrap();
    let import = Import::new().with_prefix("encoder");
    let message = whole.import(&mut smaller, &import).unwrap_err().to_string();
    assert!(message.contains("is taken by no parameter (0 missing, 14 unused)"), "{message}");
    whole.import(&mut smaller, &import.clone().with_unused()).unwrap();
    // with the longer prefix the rest of the file is outside, and no mismatch
    let mut bare = Parameters::new();
    DenseConfig::new(8, 2).declare(&mut bare, "", &mut Rng::new(3)).unwrap();
    let report = whole.import(&mut bare, &Import::new().with_prefix("encoder.linear")).unwrap();
    assert_eq!((report.is_complete(), report.count(|s| *s == Status::Outside)), (true, 16));
    assert!(whole.import(&mut parameters, &import.with_part("no")).unwrap_err().to_string().contains("taken by no"));
    assert!(whole.import(&mut Parameters::new(), &Import::new().with_unused()).is_err());
}

#[test]
fn numbers_that_are_not_finite_are_reported_and_not_imported() {
    let header = r#"{"x":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},"k":{"dtype":"I32","shape":[1],"data_offsets":[12,16]}}"#;
    let data: Vec<u8> = [1.0, f32::NAN, f32::INFINITY, 0.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let read = Weights::from_bytes(&file(header, &data)).unwrap();
    let text = read.survey().to_string();
    assert!(text.contains("x [3] F32 12 bytes; NOT FINITE: 2 values, the first is NaN at element 1"), "{text}");
    let mut parameters = Parameters::new();
    parameters.declare("x", &[3], vec![0.0; 3]).unwrap();
    parameters.declare("k", &[1], vec![0.0]).unwrap();
    let message = read.import(&mut parameters, &Import::new()).unwrap_err().to_string();
    assert_eq!(message, "tensor `x`: element 1 is NaN; 2 of its values are not finite");
    let report = read.import(&mut parameters, &Import::new().with_unfit()).unwrap().to_string();
    assert!(report.contains("unfit") && report.contains("is I32; F16, BF16, F32 and F64 can be weights"), "{report}");
    assert_eq!(parameters.get("x").unwrap(), [0.0; 3]);
}

#[test]
fn names_and_values_that_cannot_be_saved_are_refused() {
    let array = |name: &str, value: f64| Array { name: name.into(), shape: vec![1], values: vec![value] };
    let refused = |arrays: &[Array], export: &Export| {
        let message = weights::arrays_to_bytes(arrays, export).unwrap_err().to_string();
        check_message(&message);
        message
    };
    let plain = Export::new();
    assert!(refused(&[array("", 0.0)], &plain).contains("empty name"));
    assert!(refused(&[array("", 0.0)], &plain.clone().with_prefix("a")).contains("empty name"));
    assert!(refused(&[array("__metadata__", 0.0)], &plain).contains("tensor `__metadata__`: is the format's own name"));
    assert!(refused(&[array("a", 0.0), array("a", 1.0)], &plain).contains("tensor `a`: two tensors"));
    assert!(refused(&[array("a", f64::NAN)], &plain).contains("tensor `a`: element 0 is NaN"));
    assert!(refused(&[array("a", 1e39)], &plain).contains("tensor `a`: element 0 is 1e39, no finite F32"));
    assert!(refused(&[Array { shape: vec![2], ..array("a", 0.0) }], &plain).contains("does not fit its 1 values"));
    let odd = "\"\\\n\u{1}é\u{1f600}";
    let bytes = weights::arrays_to_bytes(&[array(odd, 1e39)], &plain.with_f64()).unwrap();
    assert_eq!(agree(&bytes), (true, true));
    assert_eq!(Weights::from_bytes(&bytes).unwrap().values(odd).unwrap(), [1e39]);
}

#[test]
fn saving_replaces_the_whole_file_or_nothing() {
    let folder = Folder::new("save");
    let (parameters, _) = model(1);
    let (path, bytes) = (folder.0.join("w"), weights::to_bytes(&parameters, &Export::new()).unwrap());
    weights::save(&path, &parameters, &Export::new()).unwrap();
    assert_eq!((folder.names(), std::fs::read(&path).unwrap()), (vec!["w".to_string()], bytes.clone()));

    // refused before anything is touched, and in the midst of it: the old file stays, nothing else is left
    let mut unsafe_name = Parameters::new();
    unsafe_name.declare("__metadata__", &[1], vec![0.0]).unwrap();
    assert!(weights::save(&path, &unsafe_name, &Export::new()).is_err());
    assert!(weights::save(folder.0.join("no/w"), &parameters, &Export::new()).is_err());
    assert!(weights::save(&folder.0, &parameters, &Export::new()).is_err());
    assert!(weights::save("", &parameters, &Export::new()).is_err());
    assert!(weights::save(folder.0.join("w/x"), &parameters, &Export::new()).is_err());
    // a name that the temporary file can have and the real one cannot: the rename fails
    assert!(weights::save(folder.0.join("x".repeat(300)), &parameters, &Export::new()).is_err());
    assert_eq!((folder.names(), std::fs::read(&path).unwrap()), (vec!["w".to_string()], bytes.clone()));
    #[cfg(unix)]
    {
        use std::os::unix::fs::{PermissionsExt, symlink};
        for mode in [0o600, 0o640, 0o444, 0o755] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            weights::save(&path, &parameters, &Export::new().with_f64()).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode);
        }
        std::fs::create_dir(folder.0.join("sub")).unwrap();
        symlink("../w", folder.0.join("sub/link")).unwrap();
        weights::save(folder.0.join("sub/link"), &parameters, &Export::new()).unwrap();
        assert!(std::fs::symlink_metadata(folder.0.join("sub/link")).unwrap().is_symlink());
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        symlink("new", folder.0.join("dangling")).unwrap();
        weights::save(folder.0.join("dangling"), &parameters, &Export::new()).unwrap();
        assert_eq!(std::fs::read(folder.0.join("new")).unwrap(), bytes);
        symlink("round", folder.0.join("round")).unwrap();
        assert!(weights::save(folder.0.join("round"), &parameters, &Export::new()).is_err());
        let pipe = folder.0.join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(weights::save(&pipe, &parameters, &Export::new()).is_err());

        let closed = folder.0.join("closed");
        std::fs::create_dir(&closed).unwrap();
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o555)).unwrap();
        match std::fs::write(closed.join("probe"), []) {
            Ok(()) => eprintln!("skipped: this user may write into any folder"),
            Err(_) => {
                let message = weights::save(closed.join("w"), &parameters, &Export::new()).unwrap_err().to_string();
                assert!(message.contains("creating a temporary file beside it"), "{message}");
            }
        }
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    // a disk that is full
    if Path::new("/dev/full").exists() {
        assert!(weights::save("/dev/full", &parameters, &Export::new()).is_err());
    }
    assert!(folder.names().iter().all(|name| !name.ends_with(".tmp")));
}

/// The order of system calls, where `strace` is there to tell.
#[test]
fn saving_syncs_before_and_after_the_rename() {
    let folder = Folder::new("strace");
    let (parameters, _) = model(1);
    if let Some(path) = std::env::var_os("EVERLOOP_SAVE_TO") {
        return weights::save(path, &parameters, &Export::new()).unwrap();
    }
    let target = folder.0.join("w");
    let mut child = std::process::Command::new("strace");
    child.args(["-f", "-e", "trace=openat,fsync,fdatasync,rename,renameat,renameat2"]);
    child.arg(std::env::current_exe().unwrap());
    child.args(["--exact", "saving_syncs_before_and_after_the_rename", "--test-threads=1"]);
    let Ok(output) = child.env("EVERLOOP_SAVE_TO", &target).output() else {
        return eprintln!("skipped: no strace here");
    };
    let text = String::from_utf8_lossy(&output.stderr).to_string();
    if !target.exists() {
        return eprintln!("skipped: strace does not work here");
    }
    let calls: Vec<&str> = text.lines().skip_while(|l| !(l.contains(".tmp") && l.contains("O_EXCL"))).collect();
    let at = |call: &str, from: usize| from + calls[from..].iter().position(|l| l.contains(call)).expect(call);
    let renamed = at("rename", at("fsync(", 0));
    at("fsync(", renamed);
}

fn all_layouts() -> [Layout; 6] {
    let forget_bias = 1.0;
    [
        Layout::PyTorch,
        Layout::Keras,
        Layout::TensorFlow { forget_bias },
        Layout::Onnx,
        Layout::DeepBreathe { forget_bias },
        Layout::Textbook { forget_bias },
    ]
}

fn random_layer(rng: &mut Rng, input: usize, hidden: usize, forget_bias: f64) -> Layer {
    let mut vector = |len: usize| rng.vector(len, 1.0);
    let (weight_ih, weight_hh) = (vector(4 * hidden * input), vector(4 * hidden * hidden));
    let bias = Some([vector(4 * hidden), vector(4 * hidden)]);
    Layer { weight_ih, weight_hh, bias, forget_bias, ..Layer::zeros(input, hidden) }
}

/// i, f, g, o before activation, for each unit: what every layout must agree on.
fn gates(layer: &Layer, x: &[f64], h: &[f64]) -> Vec<f64> {
    let dot = |w: &[f64], v: &[f64]| w.iter().zip(v).map(|(a, b)| a * b).sum::<f64>();
    let (input, hidden) = (layer.input_size, layer.hidden_size);
    let gate = |row: usize| {
        let bias = layer.bias.as_ref().map_or(0.0, |[ih, hh]| ih[row] + hh[row]);
        let forget = if row / hidden == 1 { layer.forget_bias } else { 0.0 };
        let (ih, hh) = (&layer.weight_ih[row * input..][..input], &layer.weight_hh[row * hidden..][..hidden]);
        dot(ih, x) + dot(hh, h) + bias + forget
    };
    (0..4 * hidden).map(gate).collect()
}

#[test]
fn layouts_round_trip_and_mean_the_same_layer() {
    let mut rng = Rng::new(5);
    for layout in all_layouts() {
        for (input, hidden) in [(1, 1), (3, 2), (2, 5)] {
            for forget_bias in [0.0, 1.0] {
                let layer = random_layer(&mut rng, input, hidden, forget_bias);
                for layer in [layer.clone(), Layer { bias: None, ..layer }] {
                    let arrays = layout.write(std::slice::from_ref(&layer)).unwrap();
                    assert!(arrays.iter().all(|a| a.shape.iter().product::<usize>() == a.values.len()));
                    let read = layout.read(&arrays).unwrap().remove(0);
                    assert_eq!(layout.write(std::slice::from_ref(&read)).unwrap(), arrays, "{layout:?}");
                    let (x, h) = (rng.vector(input, 1.0), rng.vector(hidden, 1.0));
                    let (before, after) = (gates(&layer, &x, &h), gates(&read, &x, &h));
                    // sums of the same few numbers in another order
                    assert!(before.iter().zip(&after).all(|(a, b)| (a - b).abs() < 1e-14), "{layout:?}");
                }
            }
        }
    }
    let pair = [random_layer(&mut rng, 3, 2, 0.0), random_layer(&mut rng, 3, 2, 0.0)];
    let arrays = Layout::Onnx.write(&pair).unwrap();
    assert_eq!(arrays[0].shape, [2, 8, 3]);
    assert_eq!(Layout::Onnx.read(&arrays).unwrap(), pair);
    assert!(Layout::Keras.write(&pair).is_err());
    // planted: two gates swapped are seen by the comparison above
    let (x, h) = (rng.vector(3, 1.0), rng.vector(2, 1.0));
    let mut swapped = pair[0].clone();
    swapped.weight_ih[6..18].rotate_left(6);
    let (right, wrong) = (gates(&pair[0], &x, &h), gates(&swapped, &x, &h));
    assert!(right[2..6].iter().zip(&wrong[2..6]).all(|(a, b)| (a - b).abs() > 1e-3));
}

#[test]
fn gate_orders_stand_where_the_frameworks_have_them() {
    // one unit, one input: row p of our layout holds the number p, so each array spells its own order
    let layer = Layer {
        weight_ih: vec![1.0, 2.0, 3.0, 4.0],
        weight_hh: vec![-1.0, -2.0, -3.0, -4.0],
        bias: Some([vec![10.0, 20.0, 30.0, 40.0], vec![0.0; 4]]),
        ..Layer::zeros(1, 1)
    };
    let expected: [&[&[f64]]; 6] = [
        &[&[1., 2., 3., 4.], &[-1., -2., -3., -4.], &[10., 20., 30., 40.], &[0.; 4]],
        &[&[1., 2., 3., 4.], &[-1., -2., -3., -4.], &[10., 20., 30., 40.]],
        &[&[1., 3., 2., 4., -1., -3., -2., -4.], &[10., 30., 19., 40.]],
        &[&[1., 4., 2., 3.], &[-1., -4., -2., -3.], &[10., 40., 20., 30., 0., 0., 0., 0.]],
        &[&[2., -2., 1., -1., 3., -3., 4., -4.], &[19., 10., 30., 40.]],
        &[&[1.], &[2.], &[4.], &[3.], &[-1.], &[-2.], &[-4.], &[-3.], &[10.], &[19.], &[40.], &[30.]],
    ];
    for (layout, expected) in all_layouts().into_iter().zip(expected) {
        let values: Vec<Vec<f64>> =
            layout.write(std::slice::from_ref(&layer)).unwrap().into_iter().map(|a| a.values).collect();
        assert_eq!(values, expected, "{layout:?}");
    }
}

#[test]
fn layers_that_do_not_fit_are_refused() {
    let array = |name: &str, shape: &[usize]| Array {
        name: name.into(),
        shape: shape.to_vec(),
        values: vec![1.0; shape.iter().product::<usize>().min(1000)],
    };
    let tensorflow = Layout::TensorFlow { forget_bias: 1.0 };
    let textbook = Layout::Textbook { forget_bias: 0.0 };
    for (layout, arrays) in [
        (Layout::PyTorch, vec![]),
        (Layout::PyTorch, vec![array("weight_ih", &[8, 3])]),
        (Layout::PyTorch, vec![array("weight_ih", &[8, 3]), array("weight_hh", &[8, 3])]),
        (Layout::PyTorch, vec![array("weight_ih", &[8, 3]), array("weight_hh", &[8, 2]), array("bias_hh", &[8])]),
        (Layout::PyTorch, vec![array("weight_ih", &[0, 3]), array("weight_hh", &[0, 0])]),
        (Layout::PyTorch, vec![array("weight_ih", &[8, 3]), array("weight_hh", &[8, 2]), array("other", &[8])]),
        (Layout::Keras, vec![array("kernel", &[3, 6]), array("recurrent_kernel", &[2, 6])]),
        (Layout::Keras, vec![array("kernel", &[3]), array("recurrent_kernel", &[2, 8])]),
        (tensorflow, vec![array("kernel", &[2, 8])]),
        (tensorflow, vec![array("kernel", &[5, 8]), array("bias", &[4])]),
        (tensorflow, vec![array("kernel", &[5, 0])]),
        (tensorflow, vec![Array { shape: vec![usize::MAX, 8], ..array("kernel", &[5, 8]) }]),
        (Layout::Onnx, vec![array("W", &[3, 8, 3]), array("R", &[3, 8, 2])]),
        (Layout::Onnx, vec![array("W", &[1, 8, 3]), array("R", &[1, 8, 2]), array("P", &[1, 8])]),
        (Layout::PyTorch, vec![array("weight_ih", &[8, 3]), array("weight_hh", &[8, 1]), array("weight_hr", &[1, 3])]),
        (Layout::PyTorch, vec![array("weight_ih", &[8, 3]), array("weight_hh", &[8, 0]), array("weight_hr", &[0, 2])]),
        (Layout::PyTorch, vec![array("weight_ih", &[8, 3]), array("weight_hh", &[8, 2]), array("layer_norm", &[2, 8])]),
        (tensorflow, vec![array("kernel", &[5, 8]), array("kernel", &[5, 8])]),
        (tensorflow, vec![array("kernel", &[5, 8]), array("input/gamma", &[2]), array("gamma_input", &[2])]),
        (tensorflow, vec![array("kernel", &[5, 8]), array("gamma_input", &[2])]),
        (tensorflow, vec![array("kernel", &[5, 8]), array("w_i_diag", &[2])]),
        (tensorflow, vec![array("kernel", &[5, 8]), array("projection/kernel", &[3, 2])]),
        (tensorflow, vec![array("kernel", &[5, 8]), array("projection/kernel", &[2, 0])]),
        (tensorflow, vec![array("kernel", &[5, 8]), array("projection/kernel", &[2, 5])]),
        (Layout::DeepBreathe { forget_bias: 1.0 }, vec![array("W", &[8, 5]), array("p_i", &[2]), array("p_f", &[2])]),
        (Layout::Onnx, vec![array("W", &[1, 8, 3]), array("R", &[1, 8, 2]), array("B", &[1, 8])]),
        (textbook, vec![array("W_ix", &[2, 3])]),
        (textbook, vec![Array { shape: vec![usize::MAX, 1], ..array("W_ix", &[2, 3]) }]),
    ] {
        let error = layout.read(&arrays).expect_err(&format!("{layout:?} {arrays:?}"));
        check_message(&error.to_string());
    }
    let wrong = Layer { weight_ih: vec![0.0; 3], ..Layer::zeros(3, 2) };
    assert!(all_layouts().iter().all(|layout| layout.write(std::slice::from_ref(&wrong)).is_err()));
    assert!(all_layouts().iter().all(|layout| layout.write(&[Layer::zeros(0, 2)]).is_err()));
    let (mut parameters, lstm) = model(1);
    let before = parameters.clone();
    assert!(Layer::zeros(2, 4).store(&mut parameters, &lstm, (0, Direction::Forward)).is_err());
    assert!(Layer::zeros(3, 4).store(&mut parameters, &lstm, (2, Direction::Forward)).is_err());
    let mut nan = Layer::zeros(3, 4);
    nan.weight_hh[5] = f64::NAN;
    assert!(nan.store(&mut parameters, &lstm, (0, Direction::Forward)).is_err());
    assert_eq!(parameters, before);
}

/// Runs an LSTM on the reference device; gives its output `[T, B, D H]`.
fn run(
    parameters: &Parameters,
    lstm: &everloop::layers::Lstm,
    x: &[f64],
    shape: &[usize],
    state: &[Vec<f64>],
) -> Vec<f64> {
    let mut rec = Recorder::new(parameters);
    let input = rec.input("x", shape).unwrap();
    let ((outputs, hidden), batch) = (lstm.config.state_sizes(0), shape[1]);
    let initial: Vec<everloop::layers::LstmState> = (0..state.len() / 2)
        .map(|n| everloop::layers::LstmState {
            h: rec.input(&format!("h{n}"), &[batch, outputs]).unwrap(),
            c: rec.input(&format!("c{n}"), &[batch, hidden]).unwrap(),
        })
        .collect();
    let output = lstm.record(&mut rec, &input, (!initial.is_empty()).then_some(&initial[..])).unwrap().output;
    let mut workspace = Workspace::new(&Store::new(&Device::reference(), parameters).unwrap(), rec.finish()).unwrap();
    workspace.write(&input, x).unwrap();
    for (n, tensors) in initial.iter().enumerate() {
        workspace.write(&tensors.h, &state[2 * n]).unwrap();
        workspace.write(&tensors.c, &state[2 * n + 1]).unwrap();
    }
    workspace.run().unwrap();
    workspace.read(&output).unwrap()
}

fn close(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    // the manifests' tolerance
    assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() <= 1e-5 + 1e-4 * w.abs()), "{got:?} {want:?}");
}

/// `[A, B, C]` to `[B, A, C]`.
fn swap(values: &[f64], [a, b, c]: [usize; 3]) -> Vec<f64> {
    (0..b).flat_map(|j| (0..a).flat_map(move |i| values[(i * b + j) * c..][..c].iter().copied())).collect()
}

#[test]
fn keras_layers_compute_what_keras_computed() {
    let read = Weights::open(format!("{FIXTURES}/keras/k01_lstm.safetensors")).unwrap();
    let found = read.survey().lstms.remove(0);
    assert_eq!((found.layout, found.input_size, found.hidden_sizes.as_slice()), (Layout::Keras, 4, &[7][..]));
    let mut parameters = Parameters::new();
    let lstm = found.config().unwrap().declare(&mut parameters, "lstm", &mut Rng::new(1)).unwrap();
    let (at, import) = ((0, Direction::Forward), Import::new());
    let message = read.import_layer(&mut parameters, &lstm, at, Layout::Keras, &import).unwrap_err().to_string();
    assert!(message.contains("is taken by no parameter"), "{message}");
    let report = read.import_layer(&mut parameters, &lstm, at, Layout::Keras, &import.with_unused()).unwrap();
    let text = report.to_string();
    assert!(text.contains("lstm.bias_ih_l0; gates i,f,c,o -> i,f,g,o; bias: one vector: bias_ih\n"), "{text}");
    let mut two = Parameters::new();
    let wide = LstmConfig::new(4, 7).declare(&mut two, "lstm", &mut Rng::new(1)).unwrap();
    let text = read.import_layer(&mut two, &wide, at, Layout::Keras, &Import::new().with_unused()).unwrap().to_string();
    let wanted =
        "lstm.bias_ih_l0, lstm.bias_hh_l0; gates i,f,c,o -> i,f,g,o; bias: one vector: bias_ih, with bias_hh = 0";
    assert!(text.contains(wanted), "{text}");
    assert_eq!(two.get("lstm.bias_hh_l0").unwrap(), [0.0; 28]);
    let x = swap(&read.values("input").unwrap(), [3, 9, 4]);
    let output = run(&parameters, &lstm, &x, &[9, 3, 4], &[]);
    close(&swap(&output, [9, 3, 7]), &read.values("output").unwrap());
    let layer = Layer::from_parameters(&parameters, &lstm, at).unwrap();
    for array in Layout::Keras.write(&[layer]).unwrap() {
        assert_eq!(array.values, read.values(&array.name).unwrap());
    }
}

#[test]
fn onnx_nodes_compute_what_onnx_runtime_computed() {
    let read = Weights::open(format!("{FIXTURES}/onnx/o05_bidir.safetensors")).unwrap();
    let found = read.survey().lstms.remove(0);
    assert_eq!((found.layout, found.directions), (Layout::Onnx, 2));
    let mut parameters = Parameters::new();
    let lstm = found.config().unwrap().declare(&mut parameters, "", &mut Rng::new(1)).unwrap();
    for direction in [Direction::Forward, Direction::Reverse] {
        let import = Import::new().with_unused();
        read.import_layer(&mut parameters, &lstm, (0, direction), Layout::Onnx, &import).unwrap();
    }
    let (h, c) = (read.values("initial_h").unwrap(), read.values("initial_c").unwrap());
    let half = h.len() / 2;
    let state = [&h[..half], &c[..half], &h[half..], &c[half..]].map(<[f64]>::to_vec);
    let output = run(&parameters, &lstm, &read.values("X").unwrap(), &[9, 3, 7], &state);
    // Y is [T, D, B, H], ours is [T, B, D H]
    let y = read.values("expect.Y").unwrap();
    let wanted: Vec<f64> = y.chunks_exact(2 * 3 * 17).flat_map(|step| swap(step, [2, 3, 17])).collect();
    close(&output, &wanted);

    let read = Weights::open(format!("{FIXTURES}/onnx/o12_peephole.safetensors")).unwrap();
    let found = read.survey().lstms.remove(0);
    assert!(found.peepholes && found.bias == Bias::Two);
    let (at, import) = ((0, Direction::Forward), Import::new().with_unused());
    let mut parameters = Parameters::new();
    let lstm = found.config().unwrap().declare(&mut parameters, "", &mut Rng::new(1)).unwrap();
    let report = read.import_layer(&mut parameters, &lstm, at, Layout::Onnx, &import).unwrap().to_string();
    assert!(report.contains("P [1, 21] F32 -> weight_peephole_l0; gates i,o,f -> i,f,o\n"), "{report}");
    let state = ["initial_h", "initial_c"].map(|name| read.values(name).unwrap());
    let output = run(&parameters, &lstm, &read.values("X").unwrap(), &[8, 3, 4], &state);
    close(&output, &read.values("expect.Y").unwrap());
    // planted: an order i, f, o of P is seen
    let p = parameters.get("weight_peephole_l0").unwrap().to_vec();
    parameters.set("weight_peephole_l0", &[&p[..7], &p[14..], &p[7..14]].concat()).unwrap();
    let wrong = run(&parameters, &lstm, &read.values("X").unwrap(), &[8, 3, 4], &state);
    assert!(wrong.iter().zip(&output).any(|(a, b)| (a - b).abs() > 1e-3));

    let mut parameters = Parameters::new();
    let lstm = LstmConfig::new(4, 7).declare(&mut parameters, "", &mut Rng::new(1)).unwrap();
    let error = read.import_layer(&mut parameters, &lstm, at, Layout::Onnx, &import).unwrap_err().to_string();
    assert_eq!(error, "tensor `weight_peephole_l0`: the LSTM was declared without peepholes, the layer has some");
    // zeros are no peepholes
    let mut arrays = Layout::Onnx.write(&[Layer::zeros(4, 7)]).unwrap();
    arrays.push(Array { name: "P".into(), shape: vec![1, 21], values: vec![0.0; 21] });
    let zeros = Weights::from_bytes(&weights::arrays_to_bytes(&arrays, &Export::new()).unwrap()).unwrap();
    let report = zeros.import_layer(&mut parameters, &lstm, at, Layout::Onnx, &Import::new()).unwrap();
    assert!(report.lines.iter().any(|l| l.tensor == "P" && l.parameters.is_empty()));
    assert!(parameters.block().iter().all(|v| *v == 0.0));
}

/// A layer with every part.
fn rich_layer(rng: &mut Rng, [input, hidden, outputs]: [usize; 3], forget_bias: f64) -> Layer {
    Layer {
        weight_hh: rng.vector(4 * hidden * outputs, 1.0),
        projection: Some((outputs, rng.vector(outputs * hidden, 1.0))),
        peephole: Some(rng.vector(3 * hidden, 1.0)),
        layer_norm: Some(rng.vector(10 * hidden, 1.0)),
        ..random_layer(rng, input, hidden, forget_bias)
    }
}

#[test]
fn every_part_of_a_layer_round_trips_or_is_refused_by_name() {
    let (mut rng, at) = (Rng::new(6), (0, Direction::Forward));
    for (sizes, bits) in [[3, 4, 2], [1, 1, 3], [2, 5, 5]].into_iter().flat_map(|s| (0..16).map(move |b| (s, b))) {
        let forget_bias = (bits & 8) as f64 / 8.0;
        let mut layer = rich_layer(&mut rng, sizes, forget_bias);
        let [input, hidden, outputs] = sizes;
        if bits & 1 == 0 {
            layer = Layer { projection: None, weight_hh: rng.vector(4 * hidden * hidden, 1.0), ..layer };
        }
        layer.peephole = layer.peephole.filter(|_| bits & 2 != 0);
        layer.layer_norm = layer.layer_norm.filter(|_| bits & 4 != 0);
        for layout in all_layouts() {
            let normed = matches!(layout, Layout::TensorFlow { .. } | Layout::DeepBreathe { .. }) && bits & 4 != 0;
            let holds = match layout {
                Layout::Keras | Layout::Textbook { .. } => bits & 7 == 0,
                Layout::Onnx => bits & 5 == 0,
                _ => true,
            };
            if !holds {
                let error = layout.write(std::slice::from_ref(&layer)).unwrap_err().to_string();
                check_message(&error);
                let parts = [
                    "tensor `weight_hr`: the layer has a projection",
                    "tensor `weight_peephole`",
                    "tensor `layer_norm`",
                ];
                assert!(parts.iter().any(|p| error.starts_with(p)), "{error}");
                continue;
            }
            if normed {
                let error = layout.write(std::slice::from_ref(&layer)).unwrap_err().to_string();
                assert!(error.starts_with("tensor `bias`: a layer norm stands in the place of the biases"), "{error}");
            }
            let zeros = Some([vec![0.0; 4 * hidden], vec![0.0; 4 * hidden]]);
            let layer = if normed { Layer { bias: zeros, ..layer.clone() } } else { layer.clone() };
            let arrays = layout.write(std::slice::from_ref(&layer)).unwrap();
            let read = layout.read(&arrays).unwrap().remove(0);
            assert_eq!(layout.write(std::slice::from_ref(&read)).unwrap(), arrays, "{layout:?}");
            assert_eq!(read.projection, layer.projection);
            assert_eq!(read.peephole, layer.peephole);
            assert_eq!(
                (read.weight_ih.clone(), read.weight_hh.clone()),
                (layer.weight_ih.clone(), layer.weight_hh.clone())
            );
            // the forget bias is where the norm leaves it: behind
            match (&layer.layer_norm, &read.layer_norm) {
                (None, None) => {}
                (Some(a), Some(b)) => {
                    for n in 0..10 * hidden {
                        let moved = if n / hidden == 6 { layer.forget_bias - layout.forget_bias() } else { 0.0 };
                        assert!((a[n] + moved - b[n]).abs() < 1e-15, "{layout:?} {n}");
                    }
                    assert_eq!(read.bias.is_some(), !normed);
                }
                _ => panic!("{layout:?}"),
            }

            // through a file, a survey and a declared LSTM
            let bytes = weights::arrays_to_bytes(&arrays, &Export::new().with_prefix("rnn/cell/").with_f64()).unwrap();
            let file = Weights::from_bytes(&bytes).unwrap();
            let survey = file.survey();
            assert!(survey.broken.is_empty() && survey.lstms.len() == 1, "{survey}");
            let found = &survey.lstms[0];
            assert_eq!((found.input_size, found.hidden_sizes[0]), (input, hidden), "{survey}");
            assert_eq!(found.projection, (bits & 1 != 0).then_some(outputs));
            assert_eq!((found.peepholes, found.layer_norm), (bits & 2 != 0, bits & 4 != 0));
            survey.to_string().lines().for_each(check_message);
            let config = found.config().unwrap().with_forget_bias(layout.forget_bias());
            let mut parameters = Parameters::new();
            let lstm = config.declare(&mut parameters, "lstm", &mut Rng::new(1)).unwrap();
            let import = Import::new().with_prefix("rnn/cell/");
            let report = file.import_layer(&mut parameters, &lstm, at, layout, &import).unwrap();
            assert!(report.is_complete() && report.lines.iter().all(|l| !l.parameters.is_empty()), "{report}");
            assert_eq!(layout.write(&[Layer::from_parameters(&parameters, &lstm, at).unwrap()]).unwrap(), arrays);

            // and saved under our names
            let bytes = weights::to_bytes(&parameters, &Export::new().with_f64()).unwrap();
            let file = Weights::from_bytes(&bytes).unwrap();
            for (there, name) in [(1, "weight_hr"), (2, "weight_peephole"), (4, "layer_norm")] {
                assert_eq!(file.get(&format!("lstm.{name}_l0")).is_some(), bits & there != 0);
            }
            let found = file.survey().lstms.remove(0).config().unwrap().with_forget_bias(config.forget_bias);
            assert_eq!(found, config);
            let mut again = Parameters::new();
            found.declare(&mut again, "lstm", &mut Rng::new(2)).unwrap();
            file.import(&mut again, &Import::new()).unwrap();
            assert_eq!(again, parameters);
        }
    }
    let mut pair = [random_layer(&mut rng, 3, 2, 0.0), random_layer(&mut rng, 3, 2, 0.0)];
    pair[1].peephole = Some(rng.vector(6, 1.0));
    let mut read = Layout::Onnx.read(&Layout::Onnx.write(&pair).unwrap()).unwrap();
    assert_eq!(read[0].peephole.take(), Some(vec![0.0; 6]));
    assert_eq!(read, pair);
    assert!(Layout::Keras.write(&[Layer { peephole: Some(vec![0.0; 6]), ..Layer::zeros(3, 2) }]).is_ok());
}

#[test]
fn parts_that_the_lstm_and_the_layer_do_not_share_are_refused() {
    let mut rng = Rng::new(8);
    let rich = rich_layer(&mut rng, [3, 4, 2], 0.0);
    let unnormed = Layer { layer_norm: None, ..rich.clone() };
    let unpeeped = Layer { peephole: None, ..unnormed.clone() };
    let plain = random_layer(&mut rng, 3, 4, 0.0);
    let config = LstmConfig::new(3, 4);
    let projected = config.clone().with_projection(2);
    for (config, layer, wanted) in [
        (&config, &unpeeped, "tensor `weight_hr_l0`: the LSTM was declared without a projection, the layer has one"),
        (&projected, &plain, "tensor `weight_hr_l0`: the LSTM was declared with a projection, the layer has none"),
        (&projected, &unnormed, "tensor `weight_peephole_l0`: the LSTM was declared without peepholes, the layer has"),
        (
            &projected.clone().with_peephole(),
            &rich,
            "tensor `layer_norm_l0`: the LSTM was declared without a layer norm",
        ),
        (
            &config.clone().with_layer_norm(1e-5),
            &plain,
            "tensor `layer_norm_l0`: the LSTM was declared with a layer norm",
        ),
        (
            &config.clone().with_projection(3),
            &unpeeped,
            "tensor `weight_hh_l0`: is declared as [16, 3], the layer has [16,",
        ),
        (
            &projected.clone().with_bias(Bias::None),
            &unpeeped,
            "tensor `bias_ih_l0`: the LSTM was declared without biases",
        ),
    ] {
        let mut parameters = Parameters::new();
        let lstm = config.declare(&mut parameters, "", &mut Rng::new(1)).unwrap();
        let before = parameters.clone();
        let error = layer.store(&mut parameters, &lstm, (0, Direction::Forward)).unwrap_err().to_string();
        assert!(error.starts_with(wanted), "{error}");
        check_message(&error);
        assert_eq!(parameters, before);
    }
    for wrong in [
        Layer { projection: Some((2, vec![0.0; 7])), ..rich.clone() },
        Layer { peephole: Some(vec![0.0; 11]), ..rich.clone() },
        Layer { layer_norm: Some(vec![0.0; 20]), ..rich.clone() },
        Layer { projection: Some((0, vec![])), weight_hh: vec![], ..rich.clone() },
        Layer { projection: None, ..rich.clone() },
    ] {
        assert!(all_layouts().iter().all(|layout| layout.write(std::slice::from_ref(&wrong)).is_err()));
    }
    // peepholes that the layer lacks are zeros
    let mut parameters = Parameters::new();
    let lstm = projected.with_peephole().declare(&mut parameters, "", &mut Rng::new(1)).unwrap();
    unpeeped.store(&mut parameters, &lstm, (0, Direction::Forward)).unwrap();
    assert_eq!(parameters.get("weight_peephole_l0").unwrap(), [0.0; 12]);
}

#[test]
fn one_bias_vector_takes_the_sum_and_loses_nothing() {
    let mut rng = Rng::new(3);
    let layer = random_layer(&mut rng, 3, 4, 0.0);
    let [ih, hh] = layer.bias.clone().unwrap();
    let at = (0, Direction::Forward);
    let mut one = Parameters::new();
    let lstm = LstmConfig::new(3, 4).with_bias(Bias::One).declare(&mut one, "lstm", &mut Rng::new(1)).unwrap();
    let mut two = Parameters::new();
    let wide = LstmConfig::new(3, 4).declare(&mut two, "lstm", &mut Rng::new(1)).unwrap();
    layer.store(&mut two, &wide, at).unwrap();
    let file = Weights::from_bytes(&weights::to_bytes(&two, &Export::new().with_f64()).unwrap()).unwrap();
    let before = one.clone();
    let error = file.import(&mut one, &Import::new()).unwrap_err().to_string();
    let wanted = "tensor `lstm.bias_hh_l0`: is taken by no parameter: one bias vector was declared";
    assert!(error.starts_with(wanted), "{error}");
    assert_eq!(one, before);
    let report = file.import(&mut one, &Import::new().with_unused()).unwrap().to_string();
    assert!(report.contains("unused  lstm.bias_hh_l0") && report.contains("bias: one vector\n"), "{report}");
    let arrays = Layout::PyTorch.write(std::slice::from_ref(&layer)).unwrap();
    let cell = Weights::from_bytes(&weights::arrays_to_bytes(&arrays, &Export::new().with_f64()).unwrap()).unwrap();
    let report = cell.import_layer(&mut one, &lstm, at, Layout::PyTorch, &Import::new()).unwrap().to_string();
    assert!(report.contains("bias: two vectors, added into bias_ih"), "{report}");
    let sums: Vec<f64> = ih.iter().zip(&hh).map(|(a, b)| a + b).collect();
    assert_eq!(one.get("lstm.bias_ih_l0").unwrap(), sums);
    assert_eq!(textbook::get(&one, &lstm, at, "b_f").unwrap(), sums[4..8]);
    textbook::set(&mut one, &lstm, at, "b_f", &[0.0; 4]).unwrap();

    // saved with one vector, surveyed and read with one
    let bytes = weights::to_bytes(&one, &Export::new()).unwrap();
    let file = Weights::from_bytes(&bytes).unwrap();
    let found = file.survey().lstms.remove(0);
    assert_eq!(found.config().unwrap(), lstm.config);
    file.import(&mut one, &Import::new()).unwrap();
    let lone = [&arrays[..3], &[]].concat();
    assert_eq!(Layout::PyTorch.read(&lone).unwrap()[0].bias, Some([ih, vec![0.0; 16]]));
}

#[test]
fn a_projected_lstm_of_pytorch_computes_what_pytorch_computed() {
    let open = |part: &str| Weights::open(format!("{FIXTURES}/pytorch/s05_proj_l2.{part}.safetensors")).unwrap();
    let (read, io) = (open("weights"), open("io"));
    let found = read.survey().lstms.remove(0);
    assert_eq!((found.projection, &found.hidden_sizes[..]), (Some(5), &[12, 12][..]));
    assert!(read.survey().to_string().contains("  projection to 5\n"));
    let mut parameters = Parameters::new();
    let lstm = found.config().unwrap().declare(&mut parameters, "", &mut Rng::new(1)).unwrap();
    assert!(read.import(&mut parameters, &Import::new()).unwrap().is_complete());
    let mut state = Vec::new();
    if io.get("h0").is_some() {
        let (h, c) = (io.values("h0").unwrap(), io.values("c0").unwrap());
        for (h, c) in h.chunks_exact(h.len() / 2).zip(c.chunks_exact(c.len() / 2)) {
            state.extend([h.to_vec(), c.to_vec()]);
        }
    }
    let shape = io.get("input").unwrap().shape().to_vec();
    let output = run(&parameters, &lstm, &io.values("input").unwrap(), &shape, &state);
    close(&output, &io.values("output").unwrap());
}

#[test]
fn a_layer_norm_lstm_of_tensorflow_computes_what_it_should() {
    let open = |part: &str| Weights::open(format!("{FIXTURES}/pytorch/n01_ln_h4.{part}.safetensors")).unwrap();
    let (read, io) = (open("weights"), open("io"));
    let survey = read.survey();
    assert!(survey.broken.is_empty(), "{survey}");
    let found = survey.lstms[0].clone();
    let tensorflow = Layout::TensorFlow { forget_bias: 1.0 };
    assert_eq!((found.layout, found.input_size, found.bias, found.layer_norm), (tensorflow, 3, Bias::None, true));
    assert_eq!(found.config().unwrap().layer_norm, Some(1e-12));
    assert!(survey.to_string().contains("1e-12 is assumed"), "{survey}");
    let state = ["h0", "c0"].map(|name| io.values(name).unwrap());
    let (x, at) = (io.values("input").unwrap(), (0, Direction::Forward));
    // as TensorFlow has it, and with the forget bias in the shift
    for forget_bias in [1.0, 0.0] {
        let mut parameters = Parameters::new();
        let config = found.config().unwrap().with_forget_bias(forget_bias);
        let lstm = config.declare(&mut parameters, "", &mut Rng::new(1)).unwrap();
        let report = read.import_layer(&mut parameters, &lstm, at, tensorflow, &Import::new()).unwrap();
        let text = report.to_string();
        assert!(report.is_complete() && text.contains("kernel [7, 16] F32 -> weight_ih_l0, weight_hh_l0; gates i,j"));
        let wanted =
            "beta_forget [4] F32 -> layer_norm_l0; gates f; bias: the forget bias stands outside of this shift";
        assert!(text.contains(wanted), "{text}");
        assert_eq!(parameters.get("layer_norm_l0").unwrap()[24..28], [1.0 - forget_bias; 4]);
        close(&run(&parameters, &lstm, &x, &[5, 2, 3], &state), &io.values("output").unwrap());
        // a checkpoint's own names, with the number of the output
        let layer = Layer::from_parameters(&parameters, &lstm, at).unwrap();
        let mut arrays = tensorflow.write(&[layer]).unwrap();
        for array in &mut arrays {
            if let Some((kind, gate)) = array.name.clone().split_once('_') {
                array.name = format!("{gate}/{kind}:0");
            }
        }
        let bytes = weights::arrays_to_bytes(&arrays, &Export::new().with_prefix("rnn/cell/").with_f64()).unwrap();
        let checkpoint = Weights::from_bytes(&bytes).unwrap();
        assert!(checkpoint.get("rnn/cell/transform/gamma:0").is_some());
        assert!(checkpoint.survey().lstms[0].layer_norm);
        let mut again = Parameters::new();
        config.declare(&mut again, "", &mut Rng::new(2)).unwrap();
        let import = Import::new().with_prefix("rnn/cell/");
        checkpoint.import_layer(&mut again, &lstm, at, tensorflow, &import).unwrap();
        assert_eq!(again, parameters);
    }
}

#[test]
fn deep_breathe_layers_compute_what_the_series_computed() {
    let text = std::fs::read_to_string(format!("{FIXTURES}/deep-breathe/single_random.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    let array = |path: &str, name: &str| {
        let tensor = golden.pointer(path).unwrap_or_else(|| panic!("{path}"));
        let list = |key: &str| tensor[key].as_array().unwrap().iter();
        Array {
            name: name.to_string(),
            shape: list("shape").map(|v| v.as_u64().unwrap() as usize).collect(),
            values: list("data").map(|v| v.as_f64().unwrap()).collect(),
        }
    };
    let layout = Layout::DeepBreathe { forget_bias: 1.0 };
    let arrays = [array("/params/fw.0.W", "W"), array("/params/fw.0.b", "b")];
    let bytes = weights::arrays_to_bytes(&arrays, &Export::new().with_prefix("fw.0").with_f64()).unwrap();
    let read = Weights::from_bytes(&bytes).unwrap();
    let found = read.survey().lstms.remove(0);
    assert_eq!((found.layout, found.input_size, found.hidden_sizes.as_slice()), (layout, 10, &[5][..]));
    let import = Import::new().with_prefix("fw.0");
    let mut outputs = Vec::new();
    // the forget bias outside, and the same model with it in the biases
    for forget_bias in [1.0, 0.0] {
        let mut parameters = Parameters::new();
        let config = LstmConfig::new(10, 5).with_forget_bias(forget_bias);
        let lstm = config.declare(&mut parameters, "", &mut Rng::new(1)).unwrap();
        let at = (0, Direction::Forward);
        read.import_layer(&mut parameters, &lstm, at, layout, &import).unwrap();
        let ids = array("/inputs/x_ids", "x_ids").values;
        let one_hot = ids.iter().flat_map(|id| (0..10).map(|k| (k as f64 == *id) as u8 as f64));
        outputs.push(run(&parameters, &lstm, &one_hot.collect::<Vec<f64>>(), &[3, 1, 10], &[]));
        let layer = Layer::from_parameters(&parameters, &lstm, at).unwrap();
        let tensorflow = Layout::TensorFlow { forget_bias: 1.0 }.write(&[layer]).unwrap();
        assert_eq!(tensorflow[0].shape, [15, 20]);
        // and back through a file under TensorFlow's names
        let folder = Folder::new(&format!("tensorflow{forget_bias}"));
        let named: Vec<Array> =
            tensorflow.iter().map(|a| Array { name: format!("{}:0", a.name), ..a.clone() }).collect();
        let export = Export::new().with_prefix("rnn/lstm_cell/").with_f64();
        weights::save_arrays(folder.0.join("w"), &named, &export).unwrap();
        let mut again = Parameters::new();
        config.declare(&mut again, "", &mut Rng::new(2)).unwrap();
        let import = Import::new().with_prefix("rnn/lstm_cell/");
        let layout = Layout::TensorFlow { forget_bias: 1.0 };
        let read = Weights::open(folder.0.join("w")).unwrap();
        assert_eq!(read.survey().lstms[0].layout, layout);
        read.import_layer(&mut again, &lstm, at, layout, &import).unwrap();
        assert!(again.block().iter().zip(parameters.block()).all(|(a, b)| (a - b).abs() < 1e-15));
    }
    for step in 0..3 {
        let wanted = array(&format!("/expected/cells/fw.0.step{step}/h"), "h");
        for output in &outputs {
            close(&output[step * 5..][..5], &wanted.values);
        }
    }
}

#[test]
fn deep_breathes_names_of_parts_are_read() {
    for (name, parts) in [("indep_layernorm_lstm", 11), ("indep_peephole_proj_lstm", 6)] {
        let text = std::fs::read_to_string(format!("{FIXTURES}/deep-breathe/{name}.json")).unwrap();
        let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
        let arrays = golden["params"].as_object().unwrap().iter().filter(|(name, _)| name.starts_with("fw.0."));
        let arrays: Vec<Array> = arrays
            .map(|(name, tensor)| Array {
                name: name.clone(),
                shape: tensor["shape"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect(),
                values: tensor["data"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect(),
            })
            .collect();
        assert_eq!(arrays.len(), parts);
        let bytes = weights::arrays_to_bytes(&arrays, &Export::new().with_f64()).unwrap();
        let read = Weights::from_bytes(&bytes).unwrap();
        let found = read.survey().lstms.remove(0);
        let layout = Layout::DeepBreathe { forget_bias: 1.0 };
        assert_eq!((found.layout, found.input_size, found.hidden_sizes[0]), (layout, 6, 5));
        assert_eq!(
            (found.layer_norm, found.peepholes, found.projection.is_some()),
            (parts == 11, parts == 6, parts == 6)
        );
        let mut config = found.config().unwrap();
        if parts == 6 {
            config = config.with_cell_clip(0.5).with_proj_clip(0.25);
        }
        let mut parameters = Parameters::new();
        let lstm = config.declare(&mut parameters, "", &mut Rng::new(1)).unwrap();
        let at = (0, Direction::Forward);
        read.import_layer(&mut parameters, &lstm, at, layout, &Import::new().with_prefix("fw.0")).unwrap();
        let data = |path: &str| -> Vec<f64> {
            let list = golden.pointer(path).unwrap_or_else(|| panic!("{path}"))["data"].as_array().unwrap();
            list.iter().map(|v| v.as_f64().unwrap()).collect()
        };
        let x = swap(&data("/inputs/x"), [2, 4, 6]);
        let state = ["/inputs/initial_state/fw.0.h0", "/inputs/initial_state/fw.0.c0"].map(data);
        let output = run(&parameters, &lstm, &x, &[4, 2, 6], &state);
        let outputs = output.len() / 8;
        let wanted = data("/expected/outputs");
        assert!(output.iter().zip(swap(&wanted, [2, 4, outputs])).all(|(a, b)| (a - b).abs() < 1e-11), "{name}");
    }
}

/// Of one of the textbook's arrays.
fn textbook_gradient(
    workspace: &mut Workspace,
    lstm: &everloop::layers::Lstm,
    at: (usize, Direction),
    name: &str,
) -> Result<Vec<f64>> {
    let gradient = workspace.plan().tensor(&gradient_name(&textbook::parameter(lstm, at, name)?))?;
    textbook::part(lstm, at, name, &workspace.read::<f64>(&gradient)?)
}

#[test]
fn gradients_of_every_part_are_read() -> Result<()> {
    let config = LstmConfig { peephole: true, ..LstmConfig::new(3, 4) }.with_layer_norm(1e-3).with_projection(2);
    let mut parameters = Parameters::new();
    let lstm = config.with_bias(Bias::One).declare(&mut parameters, "lstm", &mut Rng::new(1))?;
    let at = (0, Direction::Forward);
    let mut rng = Rng::new(9);
    let (x, wanted) = (rng.vector(4 * 2 * 3, 1.0), rng.vector(4 * 2 * 2, 1.0));
    let loss_of = |parameters: &Parameters| -> Result<(f64, Workspace)> {
        let mut rec = Recorder::new(parameters);
        let (input, target) = (rec.input("x", &[4, 2, 3])?, rec.input("wanted", &[4, 2, 2])?);
        let output = lstm.record(&mut rec, &input, None)?.output;
        let loss = loss::mean_squared_error(&mut rec, "loss", &output, &target)?;
        rec.backward(&loss)?;
        SgdConfig::new(0.0).record(&mut rec)?;
        let mut workspace = Workspace::new(&Store::new(&Device::reference(), parameters)?, rec.finish())?;
        workspace.write(&input, &x)?;
        workspace.write(&target, &wanted)?;
        workspace.run()?;
        Ok((workspace.scalar(&loss)?, workspace))
    };
    let (_, mut workspace) = loss_of(&parameters)?;
    for name in TEXTBOOK.iter().chain(&PARTS) {
        let gradient = textbook_gradient(&mut workspace, &lstm, at, name)?;
        let values = textbook::get(&parameters, &lstm, at, name)?;
        assert_eq!(gradient.len(), values.len());
        for element in 0..values.len() {
            let nudged = |by: f64| -> Result<f64> {
                let (mut copy, mut values) = (parameters.clone(), values.clone());
                values[element] += by;
                textbook::set(&mut copy, &lstm, at, name, &values)?;
                Ok(loss_of(&copy)?.0)
            };
            let difference = (nudged(1e-5)? - nudged(-1e-5)?) / 2e-5;
            assert!((gradient[element] - difference).abs() < 1e-8, "{name}: {} {difference}", gradient[element]);
        }
    }
    let plain = LstmConfig::new(3, 4).declare(&mut Parameters::new(), "lstm", &mut Rng::new(1))?;
    let mut bare = Parameters::new();
    plain.config.declare(&mut bare, "lstm", &mut Rng::new(1))?;
    assert!(PARTS.iter().all(|name| textbook::get(&bare, &plain, at, name).is_err()));
    Ok(())
}

#[test]
fn the_textbook_view_reads_sets_and_has_gradients() -> Result<()> {
    let mut parameters = Parameters::new();
    let config = LstmConfig::new(3, 2).with_layers(2).with_bidirectional(Join::Layers).with_forget_bias(1.0);
    let lstm = config.declare(&mut parameters, "lstm", &mut Rng::new(1))?;
    let at = (1, Direction::Reverse);
    let layer = Layer::from_parameters(&parameters, &lstm, at)?;
    let arrays = Layout::Textbook { forget_bias: 1.0 }.write(std::slice::from_ref(&layer))?;
    for array in &arrays {
        assert_eq!(textbook::get(&parameters, &lstm, at, &array.name)?, array.values);
    }
    // block 3 of PyTorch's rows is o, and the textbook's W_ox is that
    assert_eq!(textbook::get(&parameters, &lstm, at, "W_ox")?, parameters.get("lstm.weight_ih_l1_reverse")?[24..]);

    let before = parameters.clone();
    textbook::set(&mut parameters, &lstm, at, "W_ch", &[1.0, 2.0, 3.0, 4.0])?;
    textbook::set(&mut parameters, &lstm, at, "b_f", &[5.0, 6.0])?;
    assert_eq!(parameters.get("lstm.weight_hh_l1_reverse")?[8..12], [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(parameters.get("lstm.bias_ih_l1_reverse")?[2..4], [5.0, 6.0]);
    assert_eq!(parameters.get("lstm.bias_hh_l1_reverse")?[2..4], [0.0, 0.0]);
    let changed = parameters.block().iter().zip(before.block()).filter(|(a, b)| a != b).count();
    assert_eq!(changed, 4 + 2 + 2);
    assert_eq!(textbook::get(&parameters, &lstm, at, "b_f")?, [5.0, 6.0]);
    assert!(textbook::set(&mut parameters, &lstm, at, "b_f", &[1.0]).is_err());
    assert!(textbook::set(&mut parameters, &lstm, at, "b_f", &[1.0, f64::NAN]).is_err());
    assert!(textbook::get(&parameters, &lstm, at, "W_gx").is_err());
    assert!(textbook::get(&parameters, &lstm, (2, Direction::Forward), "W_ix").is_err());

    let mut rng = Rng::new(9);
    let (x, wanted) = (rng.vector(4 * 2 * 3, 1.0), rng.vector(4 * 2 * 4, 1.0));
    let loss_of = |parameters: &Parameters| -> Result<(f64, Workspace)> {
        let mut rec = Recorder::new(parameters);
        let (input, target) = (rec.input("x", &[4, 2, 3])?, rec.input("wanted", &[4, 2, 4])?);
        let output = lstm.record(&mut rec, &input, None)?.output;
        let loss = loss::mean_squared_error(&mut rec, "loss", &output, &target)?;
        rec.backward(&loss)?;
        SgdConfig::new(0.0).record(&mut rec)?;
        let mut workspace = Workspace::new(&Store::new(&Device::reference(), parameters)?, rec.finish())?;
        workspace.write(&input, &x)?;
        workspace.write(&target, &wanted)?;
        workspace.run()?;
        Ok((workspace.scalar(&loss)?, workspace))
    };
    let (_, mut workspace) = loss_of(&parameters)?;
    for name in TEXTBOOK {
        let gradient = textbook_gradient(&mut workspace, &lstm, at, name)?;
        let values = textbook::get(&parameters, &lstm, at, name)?;
        assert_eq!(gradient.len(), values.len());
        for element in 0..values.len() {
            let nudged = |by: f64| -> Result<f64> {
                let (mut copy, mut values) = (parameters.clone(), values.clone());
                values[element] += by;
                textbook::set(&mut copy, &lstm, at, name, &values)?;
                Ok(loss_of(&copy)?.0)
            };
            let difference = (nudged(1e-5)? - nudged(-1e-5)?) / 2e-5;
            assert!((gradient[element] - difference).abs() < 1e-8, "{name}: {} {difference}", gradient[element]);
        }
    }
    Ok(())
}

#[test]
fn the_survey_tells_lstms_from_what_looks_like_them() {
    let survey = |tensors: &[(&str, &[usize])]| {
        let arrays: Vec<Array> = tensors
            .iter()
            .map(|(name, shape)| Array {
                name: name.to_string(),
                shape: shape.to_vec(),
                values: vec![0.0; shape.iter().product()],
            })
            .collect();
        let weights = Weights::from_bytes(&weights::arrays_to_bytes(&arrays, &Export::new()).unwrap()).unwrap();
        let survey = weights.survey();
        survey.to_string().lines().for_each(check_message);
        (survey.lstms.clone(), survey.broken.clone())
    };
    let (lstms, broken) = survey(&[("gru.weight_ih_l0", &[6, 3]), ("gru.weight_hh_l0", &[6, 2])]);
    assert!(lstms.is_empty() && broken[0].1.contains("GRU"));
    let (lstms, broken) = survey(&[("a.weight_ih_l0", &[8, 3]), ("a.weight_ih_l1", &[8, 2])]);
    assert!(lstms.is_empty() && broken[0] == ("a.weight_hh_l0".into(), "is missing, or has not two axes".into()));
    let (lstms, broken) = survey(&[("weight_ih_l1", &[8, 3]), ("weight_hh_l1", &[8, 2])]);
    assert!(lstms.is_empty() && broken.len() == 1);
    let (lstms, broken) = survey(&[("c.weight_ih", &[8, 3]), ("c.weight_hh", &[8, 2]), ("dense.kernel", &[9, 8])]);
    assert!(broken.is_empty() && lstms.len() == 1 && lstms[0].bias == Bias::None && lstms[0].prefix == "c.");
    let (lstms, _) = survey(&[("rnn/basic_lstm_cell/kernel", &[5, 8]), ("rnn/basic_lstm_cell/bias", &[8])]);
    assert_eq!((lstms[0].input_size, lstms[0].hidden_sizes.as_slice()), (3, &[2][..]));
    assert_eq!(lstms[0].config().unwrap().forget_bias, 1.0);
    let (lstms, broken) = survey(&[("weight_ih_l0", &[8, 0]), ("kernel", &[0, 0]), ("W", &[0])]);
    assert!(lstms.is_empty() && broken.len() == 1);
    // the textbook's names are nobody else's, other weights that do not fit are no LSTM's
    let (lstms, broken) = survey(&[("W_ix", &[2, 3]), ("W_ih", &[2, 2])]);
    assert!(lstms.is_empty() && broken[0].0 == "W_fx" && broken[0].1.contains("is missing"), "{broken:?}");
    let (lstms, broken) = survey(&[("W_ix", &[2, 3]), ("W", &[1, 8, 3]), ("kernel", &[3, 6]), ("bias", &[6])]);
    assert!(lstms.is_empty() && broken.is_empty(), "{broken:?}");
    let (lstms, broken) = survey(&[("gru/kernel", &[3, 6]), ("gru/recurrent_kernel", &[2, 6]), ("gru/bias", &[6])]);
    assert!(lstms.is_empty() && broken.is_empty(), "{broken:?}");
    let (lstms, broken) = survey(&[("l/kernel", &[3, 8]), ("l/recurrent_kernel", &[2, 8]), ("l/bias", &[6])]);
    assert!(lstms.is_empty() && broken[0] == ("l/bias".into(), "shape is not [8]".into()), "{broken:?}");
    let (lstms, broken) = survey(&[("W", &[1, 8, 3]), ("R", &[1, 8, 2]), ("B", &[1, 8])]);
    assert!(lstms.is_empty() && broken[0] == ("B".into(), "shape is not [1, 16]".into()), "{broken:?}");
    let stacks: [(&str, &[usize]); 8] = [
        ("weight_ih_l0", &[8, 3]),
        ("weight_hh_l0", &[8, 2]),
        ("weight_ih_l0_reverse", &[8, 3]),
        ("weight_hh_l0_reverse", &[8, 2]),
        ("weight_ih_l1", &[8, 2]),
        ("weight_hh_l1", &[8, 2]),
        ("weight_ih_l1_reverse", &[8, 2]),
        ("weight_hh_l1_reverse", &[8, 2]),
    ];
    assert_eq!(survey(&stacks).0[0].join, Some(Join::Stacks));

    let (lstms, broken) = survey(&[
        ("rnn/lstm_cell/kernel", &[6, 16]),
        ("rnn/lstm_cell/bias", &[16]),
        ("rnn/lstm_cell/projection/kernel", &[4, 2]),
        ("rnn/dense/kernel", &[9, 7]),
        ("decoder/kernel", &[6, 16]),
        ("decoder/projection/kernel", &[3, 2]),
        ("decoder/output/gamma", &[4]),
    ]);
    assert!(broken.is_empty() && lstms.len() == 1, "{lstms:?} {broken:?}");
    assert_eq!((lstms[0].input_size, lstms[0].projection, lstms[0].bias), (4, Some(2), Bias::One));
    let ih: (&str, &[usize]) = ("weight_ih_l0", &[8, 3]);
    let hh: (&str, &[usize]) = ("weight_hh_l0", &[8, 2]);
    for (extra, wanted) in [
        (("weight_peephole_l0", &[8][..]), "shape is not [6]"),
        (("layer_norm_l0", &[20]), "shape is not [2, 10]"),
        (("layer_norm_l1", &[2, 10]), "layers or directions are missing: 1 layers are whole"),
        (("weight_hr_l0", &[1, 2]), "shape does not fit"),
    ] {
        let (lstms, broken) = survey(&[ih, hh, extra]);
        assert!(lstms.is_empty() && broken[0].1 == wanted, "{broken:?}");
    }
    let (lstms, broken) = survey(&[("cell/kernel", &[5, 8]), ("cell/gamma_input", &[2])]);
    assert!(lstms.is_empty() && broken[0].1.contains("is missing, others of its kind are there"), "{broken:?}");
    let mut norm: Vec<(String, [usize; 1])> = vec![("cell/bias".into(), [8])];
    for gate in ["input", "forget", "transform", "output", "state"] {
        norm.extend([(format!("cell/gamma_{gate}"), [2]), (format!("cell/beta_{gate}"), [2])]);
    }
    let mut tensors: Vec<(&str, &[usize])> = norm.iter().map(|(name, shape)| (name.as_str(), &shape[..])).collect();
    tensors.push(("cell/kernel", &[5, 8]));
    let (lstms, broken) = survey(&tensors);
    assert!(lstms.is_empty() && broken[0].1 == "a layer norm stands in the place of the biases", "{broken:?}");

    // a stack with everything that has a name of ours
    for join in [None, Some(Join::Layers), Some(Join::Stacks)] {
        let size = if join == Some(Join::Layers) { 3 } else { 6 };
        let config =
            LstmConfig::new(6, size).with_layers(3).with_bias(Bias::One).with_layer_norm(1e-12).with_peephole();
        let config = LstmConfig { bidirectional: join, ..config };
        for config in [config.clone(), config.clone().with_projection(size)] {
            for config in [config.clone(), config.with_connection(Connection::Highway)] {
                let mut parameters = Parameters::new();
                // a highway in two directions, joined, goes around 2H columns: not this one
                if config.declare(&mut parameters, "", &mut Rng::new(1)).is_err() {
                    continue;
                }
                let bytes = weights::to_bytes(&parameters, &Export::new()).unwrap();
                let weights = Weights::from_bytes(&bytes).unwrap();
                let survey = weights.survey();
                assert!(survey.broken.is_empty(), "{survey}");
                assert_eq!(survey.lstms[0].config().unwrap(), config);
            }
        }
    }
}

/// Configurations with every option, and numbers that have no short decimal form.
fn configs() -> Vec<LstmConfig> {
    let plain = LstmConfig::new(4, 4);
    let deep = plain.clone().with_layers(2);
    vec![
        plain.clone(),
        plain.clone().with_layers(2).with_everything().with_cell_clip(0.1 + 0.2),
        plain.clone().with_projection(3).with_proj_clip(1.0 / 3.0).with_bias(Bias::None),
        plain.clone().with_layer_norm(1e-5 / 3.0).with_forget_bias(-0.0).with_bias(Bias::One),
        plain.clone().with_bidirectional(Join::Stacks).with_batch_first().with_forget_bias(f64::MIN_POSITIVE),
        plain.clone().with_cell_clip(f32::MAX as f64).with_dropout(5e-324),
        plain.clone().with_init(Init {
            input: Fill::Glorot,
            recurrent: Fill::Orthogonal,
            forget_bias: Some(0.7 / 3.0),
        }),
        deep.clone().with_connection(Connection::Residual).with_dropout(0.1).with_recurrent_dropout(1.0 / 7.0),
        deep.clone().with_connection(Connection::Highway).with_variational_dropout().with_forget_bias(1.0),
        deep.clone().with_bidirectional(Join::Layers).with_forget_bias(f32::MIN_POSITIVE as f64),
        deep.with_bidirectional(Join::Stacks).with_hidden_sizes(&[3, 5, 2]).with_cell_clip(3.0000000000000004),
        // around one layer there is no connection, and no weights tell of it
        plain.with_connection(Connection::Highway),
    ]
}

#[test]
fn configs_come_back_from_our_files() {
    for config in configs() {
        for (prefix, name, path) in [
            ("", "", ""),
            ("", "a.lstm", "a.lstm"),
            ("model", "", "model"),
            ("x.", "lstm", "x.lstm"),
            ("y/", "l", "y/l"),
        ] {
            let mut parameters = Parameters::new();
            config.declare(&mut parameters, name, &mut Rng::new(1)).unwrap();
            DenseConfig::new(3, 2).with_bias(false).declare(&mut parameters, name, &mut Rng::new(1)).unwrap();
            EmbeddingConfig::new(5, 2).declare(&mut parameters, "words", &mut Rng::new(1)).unwrap();
            let bytes = weights::to_bytes(&parameters, &Export::new().with_prefix(prefix)).unwrap();
            assert_eq!(agree(&bytes), (true, true));
            let read = Weights::from_bytes(&bytes).unwrap();
            let words = match prefix {
                "" => "words".to_string(),
                "model" => "model.words".to_string(),
                prefix => format!("{prefix}words"),
            };
            let listed: Vec<_> = read.configs().collect();
            assert_eq!(listed, [(path, "DenseConfig"), (&words, "EmbeddingConfig"), (path, "LstmConfig")]);
            let found = read.config::<LstmConfig>(path).unwrap();
            // `==` and Debug together hold every bit of a finite number
            assert_eq!((&found, format!("{found:?}")), (&config, format!("{config:?}")));
            assert_eq!(read.config::<DenseConfig>(path).unwrap(), DenseConfig::new(3, 2).with_bias(false));
            assert_eq!(read.config::<EmbeddingConfig>(&words).unwrap(), EmbeddingConfig::new(5, 2));
            let survey = read.survey();
            assert_eq!(
                (survey.lstms[0].config(), &survey.lstms[0].stored),
                (Some(config.clone()), &Some(config.clone()))
            );
            let text = survey.to_string();
            assert!(text.contains("stored with it: ") && !text.contains("not in the file"), "{text}");
            text.lines().for_each(check_message);

            let mut again = Parameters::new();
            found.declare(&mut again, name, &mut Rng::new(2)).unwrap();
            let import = Import::new().with_prefix(prefix).with_unused();
            read.import(&mut again, &import).unwrap();
            // what was read is saved again as it was, options and all
            let saved = weights::to_bytes(&again, &Export::new().with_prefix(prefix)).unwrap();
            assert_eq!(Weights::from_bytes(&saved).unwrap().config::<LstmConfig>(path).unwrap(), config);
        }
    }
    let mut rng = Rng::new(11);
    for _ in 0..1000 {
        let number = (rng.uniform() - 0.5) * 2f64.powi(rng.below(250) as i32 - 125);
        let mut parameters = Parameters::new();
        LstmConfig::new(1, 1).with_forget_bias(number).declare(&mut parameters, "", &mut Rng::new(1)).unwrap();
        let read = Weights::from_bytes(&weights::to_bytes(&parameters, &Export::new()).unwrap()).unwrap();
        assert_eq!(read.config::<LstmConfig>("").unwrap().forget_bias.to_bits(), number.to_bits());
    }
    // configurations count neither for equality nor for arrays
    let (mut one, mut other) = (Parameters::new(), Parameters::new());
    LstmConfig::new(1, 1).declare(&mut one, "", &mut Rng::new(1)).unwrap();
    LstmConfig::new(1, 1).with_batch_first().declare(&mut other, "", &mut Rng::new(1)).unwrap();
    assert_eq!(one, other);
    let arrays = [Array { name: "a".into(), shape: vec![1], values: vec![0.0] }];
    let arrays = Weights::from_bytes(&weights::arrays_to_bytes(&arrays, &Export::new()).unwrap()).unwrap();
    assert!(arrays.metadata().eq([("format", "pt")]));
}

/// The file with this pair in its metadata, or with none where the value is `None`.
fn with_metadata(bytes: &[u8], key: &str, value: Option<&str>) -> Vec<u8> {
    let (header, data) = split(bytes);
    let mut header: serde_json::Value = serde_json::from_slice(header).unwrap();
    match value {
        Some(value) => header["__metadata__"][key] = value.into(),
        None => drop(header.as_object_mut().unwrap().remove("__metadata__")),
    }
    file(&header.to_string(), data)
}

#[test]
fn files_without_a_config_or_with_a_broken_one_are_read() {
    let config = LstmConfig::new(3, 4).with_layer_norm(1e-3).with_batch_first();
    let mut parameters = Parameters::new();
    config.declare(&mut parameters, "lstm", &mut Rng::new(1)).unwrap();
    DenseConfig::new(4, 2).declare(&mut parameters, "head", &mut Rng::new(1)).unwrap();
    let bytes = weights::to_bytes(&parameters, &Export::new().with_f64()).unwrap();
    // what the shapes tell: not the order of axes, and TensorFlow's epsilon
    let guess = LstmConfig::new(3, 4).with_layer_norm(1e-12);
    let message = |read: &Weights| read.config::<LstmConfig>("lstm").unwrap_err().to_string();

    let bare = Weights::from_bytes(&with_metadata(&bytes, "", None)).unwrap();
    assert_eq!((bare.metadata().count(), bare.configs().count()), (0, 0));
    assert_eq!(message(&bare), "config of `lstm`: the file stores no LstmConfig under this name");
    assert_eq!(bare.survey().lstms[0].config().unwrap(), guess);
    assert!(bare.survey().to_string().contains("1e-12 is assumed"));
    let whole = Weights::from_bytes(&bytes).unwrap();
    let wrong_kind = whole.config::<LstmConfig>("head").unwrap_err().to_string();
    assert_eq!(wrong_kind, "config of `head`: is a DenseConfig, not a LstmConfig");
    assert!(whole.config::<DenseConfig>("lst").is_err() && whole.config::<DenseConfig>("head.").is_err());

    let key = "everloop.LstmConfig:lstm";
    let stored = whole.metadata().find(|(k, _)| *k == key).unwrap().1.to_string();
    let changed = |from: &str, to: &str| {
        assert!(stored.contains(from), "{stored}");
        stored.replacen(from, to, 1)
    };
    for (text, wanted) in [
        (String::new(), "is no LstmConfig: EOF while parsing"),
        ("\u{1b}[31m\n".into(), "is no LstmConfig: expected value"),
        ("5".into(), "is no LstmConfig: invalid type: integer `5`"),
        (stored.clone() + "x", "is no LstmConfig: trailing characters"),
        (stored[..stored.len() - 1].to_string(), "is no LstmConfig: EOF while parsing"),
        (changed("\"batch_first\":true,", ""), "is no LstmConfig: missing field `batch_first`"),
        (
            changed("\"batch_first\":true,", "\"batch_first\":true,\"batch_first\":false,"),
            "is no LstmConfig: duplicate field `batch_first`",
        ),
        (changed("\"Two\"", "\"Tw\\u0007o\""), "is no LstmConfig: unknown variant `Tw\\u{7}o`"),
        (
            changed("\"batch_first\":", "\"zoneout\":0.1,\"batch_first\":"),
            "has the field `zoneout`, which this version does not know",
        ),
        (changed("\"init\":{", "\"init\":{\"gain\":2,"), "has the field `gain`, which this version does not know"),
        (changed("\"hidden_sizes\":[4]", "\"hidden_sizes\":[]"), "layers of an LSTM: expected at least 1, found 0"),
        (changed("\"dropout\":0.0", "\"dropout\":1.5"), "dropout of an LSTM: expected at least 0 and below 1"),
        (changed("\"layer_norm\":0.001", "\"layer_norm\":1e999"), "is no LstmConfig: number out of range"),
        (" ".repeat(70_000), "has 70000 bytes, more than 65536"),
        ("[".repeat(60_000), "is no LstmConfig: "),
    ] {
        let bytes = with_metadata(&bytes, key, Some(&text));
        assert_eq!(agree(&bytes), (true, true));
        let read = Weights::from_bytes(&bytes).unwrap();
        let message = message(&read);
        assert!(message.starts_with(&format!("config of `lstm`: {wanted}")), "{message}");
        check_message(&message);
        let survey = read.survey();
        assert_eq!(survey.lstms[0].config().unwrap(), guess);
        let text = survey.to_string();
        assert!(text.contains(&format!("not taken: {message}")), "{text}");
        text.lines().for_each(check_message);
        // the weights and the other layer's configuration are as they were
        let mut again = Parameters::new();
        config.declare(&mut again, "lstm", &mut Rng::new(2)).unwrap();
        read.config::<DenseConfig>("head").unwrap().declare(&mut again, "head", &mut Rng::new(2)).unwrap();
        assert!(read.import(&mut again, &Import::new()).unwrap().is_complete());
        assert_eq!(again, parameters);
    }
    for (from, to) in [
        ("\"hidden_sizes\":[4]", "\"hidden_sizes\":[5]"),
        ("\"hidden_sizes\":[4]", "\"hidden_sizes\":[4,4]"),
        ("\"bidirectional\":null", "\"bidirectional\":\"Layers\""),
        ("\"bias\":\"Two\"", "\"bias\":\"One\""),
        ("\"peephole\":false", "\"peephole\":true"),
        ("\"layer_norm\":0.001", "\"layer_norm\":null"),
        ("\"proj_size\":null", "\"proj_size\":2"),
        ("\"input_size\":3", "\"input_size\":2"),
    ] {
        let read = Weights::from_bytes(&with_metadata(&bytes, key, Some(&changed(from, to)))).unwrap();
        assert!(read.config::<LstmConfig>("lstm").is_ok());
        let survey = read.survey();
        assert_eq!((&survey.lstms[0].stored, survey.lstms[0].config()), (&None, Some(guess.clone())));
        assert!(survey.to_string().contains("not taken: config of `lstm`: does not fit the weights"), "{survey}");
    }
}
