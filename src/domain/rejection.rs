//! How an aggregate names its refusals.

/// Declares the refusals of one aggregate: each variant has a stable code, under which it is also
/// stored, and a sentence for people. No variant may hold personal data.
macro_rules! rejections {
    (
        $(#[$outer:meta])*
        pub enum $name:ident {
            $(
                $(#[$inner:meta])*
                $variant:ident $({ $($(#[$about:meta])* $field:ident: $type:ty),+ $(,)? })?
                    = $code:literal, $message:literal;
            )+
        }
    ) => {
        $(#[$outer])*
        #[derive(
            Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, thiserror::Error,
        )]
        #[serde(tag = "code")]
        pub enum $name {
            $(
                $(#[$inner])*
                #[error($message)]
                #[serde(rename = $code)]
                $variant $({ $($(#[$about])* $field: $type),+ })?,
            )+
        }

        impl souk_actors::aggregate::Rejection for $name {
            fn code(&self) -> &'static str {
                match self {
                    $(Self::$variant { .. } => $code,)+
                }
            }
        }
    };
}

/// Lets `?` turn field errors into the variant `Invalid` of an aggregate's rejections.
macro_rules! invalid_from_fields {
    ($name:ident) => {
        impl From<Vec<crate::domain::text::FieldError>> for $name {
            fn from(errors: Vec<crate::domain::text::FieldError>) -> Self {
                Self::Invalid { errors }
            }
        }
    };
}

pub(crate) use {invalid_from_fields, rejections};
