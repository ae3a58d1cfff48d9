//! Element types of safetensors, and their exact way to `f64`.

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

macro_rules! dtypes {
    ($($dtype:ident $bits:literal,)*) => {
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
            $($dtype,)*
        }

        impl Dtype {
            /// Its name in the header, such as `F32`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Dtype::$dtype => stringify!($dtype),)*
                }
            }

            /// Bits of one element; some types are smaller than a byte.
            pub fn bits(self) -> usize {
                match self {
                    $(Dtype::$dtype => $bits,)*
                }
            }
        }
    };
}

dtypes! {
    BOOL 8, F4 4, F6_E2M3 6, F6_E3M2 6, U8 8, I8 8, F8_E5M2 8, F8_E4M3 8, F8_E8M0 8, F8_E4M3FNUZ 8, F8_E5M2FNUZ 8,
    I16 16, U16 16, F16 16, BF16 16, I32 32, U32 32, F32 32, C64 64, F64 64, I64 64, U64 64,
}

use Dtype::{BF16, F16, F32, F64};

impl Dtype {
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
