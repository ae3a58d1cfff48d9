//! The header of a safetensors file: eight bytes of length, then JSON that names every tensor.
//!
//! The JSON is read by a cursor of its own rather than by serde_json, for two reasons: what it allocates is counted
//! against a budget *before* it is allocated, and each message can name the tensor it is about. It accepts a subset
//! of what the reference parser accepts; `tests/weights.rs` holds the two against each other.

use super::dtype::Dtype;
use super::message;
use crate::error::{Error, Result};

/// The reference parser's limit on the header.
pub(super) const MAX_HEADER: u64 = 100_000_000;
/// What may be allocated above the file's size, with a reserve for messages and buffers.
const SLACK: u64 = (1 << 20) - (32 << 10);
/// No legal entry of the header is shorter: `"":{"dtype":"U8","shape":[],"data_offsets":[0,1]}`.
const SHORTEST_ENTRY: usize = 49;

/// A tensor of a file: where it lies and what it holds.
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
    if len > MAX_HEADER {
        return Err(message::file(format!("the header's length is given as {len} bytes, the limit is {MAX_HEADER}")));
    }
    if len > file_len.saturating_sub(8) {
        return Err(message::file(format!("the header's length is given as {len} bytes, the file has {file_len}")));
    }
    Ok(len)
}

/// Parses the header of a file with `data_len` bytes of data behind it.
pub(super) fn parse(bytes: &[u8], data_len: u64) -> Result<Header> {
    let text = std::str::from_utf8(bytes)
        .map_err(|e| message::file(format!("the header is not UTF-8 at byte {}", e.valid_up_to())))?;
    let budget = SLACK + data_len.min(bytes.len() as u64);
    let mut cursor = Cursor { text, at: 0, budget };
    if !text.starts_with('{') {
        return Err(message::file("the header does not begin with `{`"));
    }
    let braces = bytes.iter().filter(|b| **b == b'{').count() - 1;
    let capacity = braces.min(bytes.len() / SHORTEST_ENTRY);
    cursor.spend(capacity * size_of::<TensorInfo>())?;
    let mut header = Header { tensors: Vec::with_capacity(capacity), metadata: Vec::new() };
    let mut has_metadata = false;
    cursor.object(|cursor, key| {
        if key.is("__metadata__") {
            if std::mem::replace(&mut has_metadata, true) {
                return Err(message::tensor("__metadata__", "the name stands twice in the header"));
            }
            return cursor.metadata(&mut header.metadata);
        }
        cursor.spend(key.raw.len())?;
        let name = key.decode();
        let info = cursor.tensor(name)?;
        header.tensors.push(info);
        Ok(())
    })?;
    cursor.blank();
    if cursor.at != text.len() {
        return Err(cursor.wrong("nothing but blanks behind the header's closing brace"));
    }
    header.tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = header.tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(message::tensor(&pair[0].name, "the name stands twice in the header"));
    }
    check_offsets(&mut header.tensors, data_len)?;
    header.tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    header.metadata.sort_unstable();
    if let Some(pair) = header.metadata.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(message::tensor("__metadata__", format!("the key `{}` stands twice", message::escape(&pair[0].0))));
    }
    Ok(header)
}

/// Every byte of the data belongs to one tensor, and every tensor has the bytes that its shape and type need.
fn check_offsets(tensors: &mut [TensorInfo], data_len: u64) -> Result<()> {
    tensors.sort_unstable_by_key(|t| (t.start, t.end));
    let mut at = 0;
    for tensor in tensors.iter() {
        let (start, end) = (tensor.start, tensor.end);
        let wrong = |cause: String| Err(message::tensor(&tensor.name, cause));
        if end < start {
            return wrong(format!("its data ends at {end}, before its start at {start}"));
        }
        if start > at {
            return wrong(format!("its data starts at {start}: a hole, the data before ends at {at}"));
        }
        if start < at {
            return wrong(format!("its data starts at {start}: an overlap, the data before ends at {at}"));
        }
        let shape = message::shape(&tensor.shape);
        let elements = tensor.shape.iter().try_fold(1usize, |n, size| n.checked_mul(*size));
        let Some(bits) = elements.and_then(|n| n.checked_mul(tensor.dtype.bits())) else {
            return wrong(format!("shape {shape} of {} overflows", tensor.dtype.name()));
        };
        if bits % 8 != 0 {
            return wrong(format!("shape {shape} of {} is no whole number of bytes", tensor.dtype.name()));
        }
        if bits as u64 / 8 != end - start {
            let (needed, dtype) = (bits / 8, tensor.dtype.name());
            return wrong(format!("shape {shape} of {dtype} needs {needed} bytes, its offsets span {}", end - start));
        }
        at = end;
    }
    match at == data_len {
        true => Ok(()),
        false => {
            let cause = format!("the tensors end at byte {at} of the data, the file has {data_len} bytes of data");
            Err(match tensors.last() {
                Some(last) => message::tensor(&last.name, cause),
                None => message::file(cause),
            })
        }
    }
}

/// A JSON string between its quotes, checked but still with its escapes.
struct Raw<'a> {
    raw: &'a str,
    escaped: bool,
}

impl Raw<'_> {
    fn is(&self, text: &str) -> bool {
        // an escaped spelling of a short name decodes to the same name; a longer one cannot
        if self.escaped { self.raw.len() <= 6 * text.len() && *self.decode() == *text } else { self.raw == text }
    }

    /// Never longer than `raw`: the shortest escape of n bytes has more than n.
    fn decode(&self) -> Box<str> {
        if !self.escaped {
            return self.raw.into();
        }
        let decoded_len = decoded(self.raw).map(char::len_utf8).sum();
        let mut text = String::with_capacity(decoded_len);
        text.extend(decoded(self.raw));
        text.into_boxed_str()
    }
}

/// The characters of a checked string.
fn decoded(raw: &str) -> impl Iterator<Item = char> + '_ {
    let mut chars = raw.chars();
    std::iter::from_fn(move || {
        let c = chars.next()?;
        if c != '\\' {
            return Some(c);
        }
        let unit = |chars: &mut std::str::Chars<'_>| {
            chars.by_ref().take(4).fold(0, |n, c| n * 16 + c.to_digit(16).unwrap_or(0))
        };
        Some(match chars.next()? {
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let first = unit(&mut chars);
                if (0xd800..0xdc00).contains(&first) {
                    chars.by_ref().take(2).for_each(drop);
                    let second = unit(&mut chars);
                    char::from_u32(0x10000 + ((first & 0x3ff) << 10) + (second & 0x3ff)).unwrap_or('\u{fffd}')
                } else {
                    char::from_u32(first).unwrap_or('\u{fffd}')
                }
            }
            other => other,
        })
    })
}

struct Cursor<'a> {
    text: &'a str,
    at: usize,
    budget: u64,
}

impl<'a> Cursor<'a> {
    /// Takes from the budget what is about to be allocated.
    fn spend(&mut self, bytes: usize) -> Result<()> {
        match self.budget.checked_sub(bytes as u64) {
            Some(left) => {
                self.budget = left;
                Ok(())
            }
            None => Err(message::file("its index would need more than 1 MiB of memory above the file's size")),
        }
    }

    fn wrong(&self, wanted: &str) -> Error {
        let found = match self.text[self.at..].chars().next() {
            Some(c) => format!("`{}`", c.escape_debug()),
            None => "its end".to_string(),
        };
        message::file(format!("byte {} of the header: expected {wanted}, found {found}", self.at))
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

    fn expect(&mut self, wanted: u8, what: &str) -> Result<()> {
        if self.take(wanted) { Ok(()) } else { Err(self.wrong(what)) }
    }

    /// `{"key": value, ..}`; `value` reads one value.
    fn object(&mut self, mut value: impl FnMut(&mut Self, Raw<'a>) -> Result<()>) -> Result<()> {
        self.expect(b'{', "`{`")?;
        if self.take(b'}') {
            return Ok(());
        }
        loop {
            let key = self.string()?;
            self.expect(b':', "`:`")?;
            value(self, key)?;
            if self.take(b'}') {
                return Ok(());
            }
            self.expect(b',', "`,` or `}`")?;
        }
    }

    /// `[number, ..]`; `value` is given each.
    fn numbers(&mut self, mut value: impl FnMut(&Self, u64) -> Result<()>) -> Result<()> {
        self.expect(b'[', "`[`")?;
        if self.take(b']') {
            return Ok(());
        }
        loop {
            let number = self.number()?;
            value(self, number)?;
            if self.take(b']') {
                return Ok(());
            }
            self.expect(b',', "`,` or `]`")?;
        }
    }

    fn number(&mut self) -> Result<u64> {
        self.blank();
        let rest = &self.text[self.at..];
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number = match rest[..digits].parse() {
            Ok(number) if digits == 1 || !rest.starts_with('0') => number,
            _ => return Err(self.wrong("a whole number below 2^64")),
        };
        self.at += digits;
        if rest[digits..].starts_with(['.', 'e', 'E']) {
            return Err(self.wrong("a whole number"));
        }
        Ok(number)
    }

    fn string(&mut self) -> Result<Raw<'a>> {
        self.expect(b'"', "a string")?;
        let start = self.at;
        let bytes = self.text.as_bytes();
        let mut escaped = false;
        loop {
            match bytes.get(self.at) {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                Some(0x20..) => self.at += 1,
                // control characters, and the end
                _ => return Err(self.wrong("a closing quote")),
            }
        }
        let raw = &self.text[start..self.at];
        self.at += 1;
        Ok(Raw { raw, escaped })
    }

    fn escape(&mut self) -> Result<()> {
        let bytes = self.text.as_bytes();
        let unit = |at: usize| -> Option<u32> {
            let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
            digits.iter().try_fold(0, |n, b| Some(n * 16 + (*b as char).to_digit(16)?))
        };
        let len = match bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
            Some(b'u') => match (unit(self.at), unit(self.at + 6)) {
                (Some(0xd800..0xdc00), Some(0xdc00..0xe000)) => 12,
                (None | Some(0xd800..0xe000), _) => return Err(self.wrong("a legal escape")),
                _ => 6,
            },
            _ => return Err(self.wrong("a legal escape")),
        };
        self.at += len;
        Ok(())
    }

    fn metadata(&mut self, into: &mut Vec<(Box<str>, Box<str>)>) -> Result<()> {
        self.object(|cursor, key| {
            let value = cursor.string()?;
            // a doubling vector holds at most three times its elements while it grows
            cursor.spend(key.raw.len() + value.raw.len() + 3 * size_of::<(Box<str>, Box<str>)>())?;
            into.push((key.decode(), value.decode()));
            Ok(())
        })
    }

    fn tensor(&mut self, name: Box<str>) -> Result<TensorInfo> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        let wrong = |cause: String| message::tensor(&name, cause);
        let read = self.object(|cursor, key| {
            let known = ["dtype", "shape", "data_offsets"].into_iter().find(|field| key.is(field));
            let repeated = match known {
                Some("dtype") => dtype.replace(cursor.dtype()?).is_some(),
                Some("shape") => shape.replace(cursor.shape()?).is_some(),
                Some(_) => offsets.replace(cursor.offsets()?).is_some(),
                None => return Err(message::file(format!("unknown field `{}`", message::escape(key.raw)))),
            };
            match repeated {
                true => Err(message::file(format!("the field `{}` stands twice", key.raw))),
                false => Ok(()),
            }
        });
        match read {
            Ok(()) => {}
            Err(Error::Weights { cause, .. }) => return Err(wrong(cause)),
            Err(other) => return Err(other),
        }
        let dtype = dtype.ok_or_else(|| wrong("`dtype` is missing".into()))?;
        let shape = shape.ok_or_else(|| wrong("`shape` is missing".into()))?;
        let (start, end) = offsets.ok_or_else(|| wrong("`data_offsets` is missing".into()))?;
        Ok(TensorInfo { name, shape, dtype, start, end })
    }

    fn dtype(&mut self) -> Result<Dtype> {
        let name = self.string()?;
        let known = if name.raw.len() <= 64 { Dtype::parse(&name.decode()) } else { None };
        known.ok_or_else(|| message::file(format!("unknown dtype `{}`", message::escape(name.raw))))
    }

    fn shape(&mut self) -> Result<Box<[usize]>> {
        let start = self.at;
        let mut count = 0;
        self.numbers(|cursor, number| {
            count += 1;
            usize::try_from(number).map(drop).map_err(|_| cursor.wrong("a size that fits this machine"))
        })?;
        self.spend(count * size_of::<usize>())?;
        // a second pass over checked text: the list is allocated once, at its size
        let mut shape = Vec::with_capacity(count);
        self.at = start;
        self.numbers(|_, number| {
            shape.push(number as usize);
            Ok(())
        })?;
        Ok(shape.into_boxed_slice())
    }

    fn offsets(&mut self) -> Result<(u64, u64)> {
        let (mut pair, mut count) = ([0; 2], 0);
        self.numbers(|cursor, number| {
            *pair.get_mut(count).ok_or_else(|| cursor.wrong("two offsets"))? = number;
            count += 1;
            Ok(())
        })?;
        if count == 2 { Ok((pair[0], pair[1])) } else { Err(self.wrong("two offsets")) }
    }
}
