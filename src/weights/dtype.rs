//! Element types of safetensors, and their exact way to `f64`.

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// Element type of a tensor in a file. All types of the reference parser are legal in a file; only the four
/// floats ([`Dtype::is_float`]) become parameters.
///
/// ```
/// use everloop::weights::Dtype;
/// assert_eq!((Dtype::BF16.name(), Dtype::BF16.bits(), Dtype::BF16.is_float()), ("BF16", 16, true));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(non_camel_case_types, missing_docs)]
#[non_exhaustive]
pub enum Dtype {
    BOOL,
    F4,
    F6_E2M3,
    F6_E3M2,
    U8,
    I8,
    F8_E5M2,
    F8_E4M3,
    F8_E8M0,
    F8_E4M3FNUZ,
    F8_E5M2FNUZ,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
}

use Dtype::*;

/// Type, name in the header, bits of one element.
const ALL: [(Dtype, &str, usize); 22] = [
    (BOOL, "BOOL", 8),
    (F4, "F4", 4),
    (F6_E2M3, "F6_E2M3", 6),
    (F6_E3M2, "F6_E3M2", 6),
    (U8, "U8", 8),
    (I8, "I8", 8),
    (F8_E5M2, "F8_E5M2", 8),
    (F8_E4M3, "F8_E4M3", 8),
    (F8_E8M0, "F8_E8M0", 8),
    (F8_E4M3FNUZ, "F8_E4M3FNUZ", 8),
    (F8_E5M2FNUZ, "F8_E5M2FNUZ", 8),
    (I16, "I16", 16),
    (U16, "U16", 16),
    (F16, "F16", 16),
    (BF16, "BF16", 16),
    (I32, "I32", 32),
    (U32, "U32", 32),
    (F32, "F32", 32),
    (C64, "C64", 64),
    (F64, "F64", 64),
    (I64, "I64", 64),
    (U64, "U64", 64),
];

impl Dtype {
    /// Its name in the header, such as `F32`.
    pub fn name(self) -> &'static str {
        ALL.iter().find(|(dtype, _, _)| *dtype == self).map_or("?", |(_, name, _)| name)
    }

    /// Bits of one element; some types are smaller than a byte.
    pub fn bits(self) -> usize {
        ALL.iter().find(|(dtype, _, _)| *dtype == self).map_or(8, |(_, _, bits)| *bits)
    }

    /// Whether it is F16, BF16, F32 or F64: what can become a parameter. Each of their values is an `f64` exactly.
    pub fn is_float(self) -> bool {
        matches!(self, F16 | BF16 | F32 | F64)
    }

    /// The values of little-endian `bytes`; none for a type that is no float.
    pub(super) fn values(self, bytes: &[u8]) -> impl Iterator<Item = f64> + '_ {
        let width = if self.is_float() { self.bits() / 8 } else { bytes.len() + 1 };
        bytes.chunks_exact(width).map(move |b| match (self, b) {
            (F16, [a, b]) => f16::from_le_bytes([*a, *b]).to_f64(),
            (BF16, [a, b]) => bf16::from_le_bytes([*a, *b]).to_f64(),
            (F32, [a, b, c, d]) => f32::from_le_bytes([*a, *b, *c, *d]) as f64,
            (_, b) => b.try_into().map_or(f64::NAN, f64::from_le_bytes),
        })
    }
}
