//! Configurations are plain structs with a method `with_..` for each option.

/// The methods: each takes the configuration and gives it with another value of one field.
macro_rules! options {
    ($($(#[$doc:meta])* $name:ident($($given:ident: $type:ty)?) { $field:ident: $value:expr })*) => {
        $(
            $(#[$doc])*
            pub fn $name(self, $($given: $type)?) -> Self {
                Self { $field: $value, ..self }
            }
        )*
    };
}

pub(crate) use options;
