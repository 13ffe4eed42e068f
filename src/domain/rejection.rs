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

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use souk_actors::aggregate::Rejection;

    use crate::domain::order::{OrderRejection, OrderStatus};
    use crate::domain::text::FieldError;
    use crate::domain::user::UserRejection;

    #[track_caller]
    fn check<R: Rejection + PartialEq + Debug>(rejection: R, code: &str, message: &str) {
        let stored = serde_json::to_value(&rejection).unwrap();
        assert_eq!((rejection.code(), &stored["code"]), (code, &code.into()));
        assert_eq!(rejection.to_string(), message);
        assert_eq!(serde_json::from_value::<R>(stored).unwrap(), rejection);
    }

    #[test]
    fn a_refusal_is_stored_under_its_code_and_read_back() {
        check(UserRejection::TokenUnknown, "token_unknown", "this token is not known");
        let from = OrderStatus::Shipped;
        let message = "the order does not allow this any more";
        check(OrderRejection::InvalidTransition { from }, "invalid_transition", message);
        let errors = vec![FieldError::new("/items", "required", "must not be empty")];
        check(OrderRejection::Invalid { errors }, "invalid", "some fields are not valid");
        let listing_id = crate::domain::testing::listing(1);
        let message = format!("the listing {listing_id} cannot be bought now");
        check(OrderRejection::ListingUnavailable { listing_id }, "listing_unavailable", &message);
    }
}
