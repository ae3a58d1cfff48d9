//! The header of a safetensors file: eight bytes of length, then JSON that names every tensor.
//!
//! serde_json reads each entry and each text with escapes. The object around them is walked here, so that what is
//! allocated can be counted *before* it is: serde_json copies texts with escapes into a buffer that doubles, and quotes
//! what it does not expect, of any length, in its message. What is read is a subset of what the reference parser
//! reads; `tests/weights.rs` holds the two against each other.

use super::dtype::Dtype;
use super::message;
use crate::error::{Result, ensure};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// The reference parser's limit on the header.
pub(super) const MAX_HEADER: u64 = 100_000_000;
/// What may be allocated above the file's size, with a reserve for one entry and messages.
const SLACK: u64 = (1 << 20) - (96 << 10);
/// No legal entry of the header is shorter: `"":{"dtype":"U8","shape":[],"data_offsets":[0,1]}`.
const SHORTEST_ENTRY: usize = 49;
/// A longer entry is refused: what serde_json allocates for one is a few times its length.
const LONGEST_ENTRY: usize = 4096;

/// An entry of the header, as it stands there.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry<'a> {
    pub dtype: Dtype,
    pub shape: Cow<'a, [usize]>,
    pub data_offsets: (u64, u64),
}

/// A tensor of a file: where it lies and what it holds.
///
/// ```
/// use everloop::weights::{self, Dtype, Export, Weights};
/// use everloop::{Parameters, Rng, layers::DenseConfig};
/// # fn main() -> everloop::Result<()> {
/// let mut parameters = Parameters::new();
/// DenseConfig::new(3, 2).declare(&mut parameters, "head", &mut Rng::new(1))?;
/// let file = Weights::from_bytes(&weights::to_bytes(&parameters, &Export::new())?)?;
/// let bias = file.get("head.bias").unwrap();
/// assert_eq!((bias.shape(), bias.dtype(), file.bytes(bias).len()), (&[2][..], Dtype::F32, 8));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    name: Box<str>,
    shape: Box<[usize]>,
    dtype: Dtype,
    pub(super) start: u64,
    pub(super) end: u64,
}

impl TensorInfo {
    /// Its name, as the file has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Row-major shape; empty for a scalar, and sizes of zero are legal in a file.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Bytes of data.
    pub fn bytes(&self) -> u64 {
        self.end - self.start
    }
}

/// A parsed header: tensors by name, and the file's metadata.
#[derive(Debug, Clone, Default)]
pub(super) struct Header {
    pub tensors: Vec<TensorInfo>,
    pub metadata: Vec<(Box<str>, Box<str>)>,
}

/// The header's length from the first eight bytes, checked against the file's length.
pub(super) fn length(first: [u8; 8], file_len: u64) -> Result<u64> {
    let len = u64::from_le_bytes(first);
    let given = format!("the header's length is given as {len} bytes, ");
    ensure!(len <= MAX_HEADER, message::file(format!("{given}the limit is {MAX_HEADER}")));
    ensure!(len <= file_len.saturating_sub(8), message::file(format!("{given}the file has {file_len}")));
    Ok(len)
}

/// Parses the header of a file with `data_len` bytes of data behind it.
pub(super) fn parse(bytes: &[u8], data_len: u64) -> Result<Header> {
    let text = std::str::from_utf8(bytes)
        .map_err(|e| message::file(format!("the header is not UTF-8 at byte {}", e.valid_up_to())))?;
    ensure!(text.starts_with('{'), message::file("the header does not begin with `{`"));
    let mut cursor = Cursor { text, at: 0, spent: 0, data_len };
    let braces = bytes.iter().filter(|b| **b == b'{').count() - 1;
    let capacity = braces.min(bytes.len() / SHORTEST_ENTRY);
    cursor.spend(capacity * size_of::<TensorInfo>()).map_err(message::file)?;
    let mut header = Header { tensors: Vec::with_capacity(capacity), metadata: Vec::new() };
    let mut has_metadata = false;
    cursor.object(|cursor, name| {
        if *name == *METADATA {
            ensure!(!std::mem::replace(&mut has_metadata, true), message::tensor(METADATA, TWICE));
            return cursor.metadata(&mut header.metadata);
        }
        let entry = cursor.entry().map_err(|cause| message::tensor(&name, cause))?;
        let (shape, (start, end)) = (entry.shape.into_owned().into_boxed_slice(), entry.data_offsets);
        header.tensors.push(TensorInfo { name, shape, dtype: entry.dtype, start, end });
        Ok(())
    })?;
    cursor.blank();
    let wanted = "nothing but blanks behind the header's closing brace";
    ensure!(cursor.at == text.len(), message::file(cursor.wrong(wanted)));
    header.tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = header.tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(message::tensor(&pair[0].name, TWICE));
    }
    check_offsets(&mut header.tensors, data_len)?;
    header.tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    header.metadata.sort_unstable();
    if let Some(pair) = header.metadata.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(message::tensor(METADATA, format!("the key `{}` stands twice", message::escape(&pair[0].0))));
    }
    Ok(header)
}

/// The name of the pairs that are no tensor.
pub(super) const METADATA: &str = "__metadata__";
const TWICE: &str = "the name stands twice in the header";

/// Every byte of the data belongs to one tensor, and every tensor has the bytes that its shape and type need.
fn check_offsets(tensors: &mut [TensorInfo], data_len: u64) -> Result<()> {
    tensors.sort_unstable_by_key(|t| (t.start, t.end));
    let mut at = 0;
    for tensor in tensors.iter() {
        let (start, end) = (tensor.start, tensor.end);
        let what = || format!("shape {} of {}", message::shape(&tensor.shape), tensor.dtype.name());
        let elements = tensor.shape.iter().try_fold(1usize, |n, size| n.checked_mul(*size));
        let cause = match elements.and_then(|n| n.checked_mul(tensor.dtype.bits())) {
            _ if end < start => format!("its data ends at {end}, before its start at {start}"),
            _ if start > at => format!("its data starts at {start}: a hole, the data before ends at {at}"),
            _ if start < at => format!("its data starts at {start}: an overlap, the data before ends at {at}"),
            None => format!("{} overflows", what()),
            Some(bits) if bits % 8 != 0 => format!("{} is no whole number of bytes", what()),
            Some(bits) if bits as u64 / 8 != end - start => {
                format!("{} needs {} bytes, its offsets span {}", what(), bits / 8, end - start)
            }
            Some(_) => {
                at = end;
                continue;
            }
        };
        return Err(message::tensor(&tensor.name, cause));
    }
    let cause = format!("the tensors end at byte {at} of the data, the file has {data_len} bytes of data");
    match tensors.last() {
        _ if at == data_len => Ok(()),
        Some(last) => Err(message::tensor(&last.name, cause)),
        None => Err(message::file(cause)),
    }
}

/// Walks the header's objects. Errors are causes.
struct Cursor<'a> {
    text: &'a str,
    at: usize,
    /// Bytes allocated for the index.
    spent: u64,
    data_len: u64,
}

type Caused<T> = std::result::Result<T, String>;

impl<'a> Cursor<'a> {
    /// Counts what is about to be allocated. When the data is read the index is there and the header is gone; until
    /// then the header is there and the data is not.
    fn spend(&mut self, bytes: usize) -> Caused<()> {
        self.spent += bytes as u64;
        self.fits(self.spent, self.data_len.min(self.text.len() as u64))
    }

    fn fits(&self, bytes: u64, room: u64) -> Caused<()> {
        ensure!(bytes <= SLACK + room, "its index would need more than 1 MiB of memory above the file's size".into());
        Ok(())
    }

    fn wrong(&self, wanted: &str) -> String {
        let found = match self.text.get(self.at..).and_then(|rest| rest.chars().next()) {
            Some(c) => format!("`{}`", c.escape_debug()),
            None => "its end".to_string(),
        };
        format!("byte {} of the header: expected {wanted}, found {found}", self.at)
    }

    fn blank(&mut self) {
        let rest = &self.text.as_bytes()[self.at..];
        self.at += rest.iter().take_while(|b| matches!(b, b' ' | b'\n' | b'\r' | b'\t')).count();
    }

    fn take(&mut self, wanted: u8) -> bool {
        self.blank();
        let found = self.text.as_bytes().get(self.at) == Some(&wanted);
        self.at += found as usize;
        found
    }

    fn expect(&mut self, wanted: u8, what: &str) -> Caused<()> {
        ensure!(self.take(wanted), self.wrong(what));
        Ok(())
    }

    /// `{"key": value, ..}`; `value` reads one value.
    fn object(&mut self, mut value: impl FnMut(&mut Self, Box<str>) -> Result<()>) -> Result<()> {
        self.expect(b'{', "`{`").map_err(message::file)?;
        let mut more = !self.take(b'}');
        while more {
            let key = self.text().map_err(message::file)?;
            self.expect(b':', "`:`").map_err(message::file)?;
            value(self, key)?;
            more = self.take(b',');
            if !more {
                self.expect(b'}', "`,` or `}`").map_err(message::file)?;
            }
        }
        Ok(())
    }

    fn metadata(&mut self, into: &mut Vec<(Box<str>, Box<str>)>) -> Result<()> {
        self.object(|cursor, key| {
            // a doubling vector holds at most three times its elements while it grows
            cursor.spend(3 * size_of::<(Box<str>, Box<str>)>()).map_err(message::file)?;
            into.push((key, cursor.text().map_err(message::file)?));
            Ok(())
        })
    }

    /// A string with its quotes, which may hold escapes that are wrong.
    fn string(&mut self) -> Caused<&'a str> {
        self.expect(b'"', "a string")?;
        let start = self.at - 1;
        loop {
            self.at += match self.text.as_bytes().get(self.at) {
                Some(b'"') => break,
                Some(b'\\') => 2,
                Some(0x20..) => 1,
                // control characters, and the end
                _ => return Err(self.wrong("a closing quote")),
            };
        }
        self.at += 1;
        Ok(&self.text[start..self.at])
    }

    /// A string's content.
    fn text(&mut self) -> Caused<Box<str>> {
        let quoted = self.string()?;
        self.spend(quoted.len())?;
        if !quoted.contains('\\') {
            return Ok(quoted[1..quoted.len() - 1].into());
        }
        // serde_json's buffer, the one it grew out of, and the content
        self.fits(self.spent + 4 * quoted.len() as u64, self.data_len)?;
        serde_json::from_str(quoted).map_err(|error| self.cause(quoted, &error))
    }

    /// What describes a tensor: an object without objects in it.
    fn entry(&mut self) -> Caused<Entry<'static>> {
        self.blank();
        let start = self.at;
        self.expect(b'{', "`{`")?;
        while !self.take(b'}') {
            match self.text.as_bytes().get(self.at) {
                Some(b'"') => drop(self.string()?),
                Some(_) => self.at += 1,
                None => return Err(self.wrong("`}`")),
            }
            ensure!(self.at - start <= LONGEST_ENTRY, format!("its entry has more than {LONGEST_ENTRY} bytes"));
        }
        let object = &self.text[start..self.at];
        let entry: Entry<'_> = serde_json::from_str(object).map_err(|error| self.cause(object, &error))?;
        self.spend(size_of_val(&*entry.shape))?;
        Ok(entry)
    }

    /// Why serde_json refuses what was read last.
    fn cause(&self, read: &str, error: &serde_json::Error) -> String {
        let text = error.to_string();
        let text = text.rsplit_once(" at line ").map_or(&*text, |(text, _)| text);
        let text = text.rsplit_once(", expected one of").map_or(text, |(text, _)| text);
        let known = ["missing field ", "duplicate field ", "unknown field ", "unknown variant "];
        let known = known.iter().find_map(|known| Some((known, text.strip_prefix(known)?)));
        message::printable(&match known {
            Some((&"missing field ", name)) => format!("{name} is missing"),
            Some((&"duplicate field ", name)) => format!("the field {name} stands twice"),
            Some((&"unknown variant ", name)) => format!("unknown dtype {name}"),
            Some(_) => text.to_string(),
            None => {
                let lines = read.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len);
                let within = lines.sum::<usize>() + error.column().saturating_sub(1);
                format!("byte {} of the header: {text}", self.at - read.len() + within)
            }
        })
    }
}
