//! Values and rows as PostgreSQL has them.

use sqlx::Row;
use sqlx::encode::{Encode, IsNull};
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgRow, PgTypeInfo, PgValueRef, Postgres};
use sqlx::{Decode, Type};
use uuid::Uuid;

use crate::journal::rows::{BoxError, Columns};

/// An id as a `uuid`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Id(pub Uuid);

/// What PostgreSQL calls the type, and an array of it, in every database.
const UUID: Oid = Oid(2950);
const UUID_ARRAY: Oid = Oid(2951);

impl Type<Postgres> for Id {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(UUID)
    }
}

impl PgHasArrayType for Id {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(UUID_ARRAY)
    }
}

impl Encode<'_, Postgres> for Id {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }
}

impl Decode<'_, Postgres> for Id {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        Ok(Self(Uuid::from_slice(value.as_bytes()?)?))
    }
}

impl Columns for PgRow {
    fn id(&self, column: &str) -> Result<Uuid, BoxError> {
        Ok(self.try_get::<Id, _>(column)?.0)
    }

    fn number(&self, column: &str) -> Result<i64, BoxError> {
        Ok(self.try_get(column)?)
    }

    fn text(&self, column: &str) -> Result<&str, BoxError> {
        Ok(self.try_get(column)?)
    }

    fn text_or_none(&self, column: &str) -> Result<Option<&str>, BoxError> {
        Ok(self.try_get(column)?)
    }

    fn bytes(&self, column: &str) -> Result<&[u8], BoxError> {
        Ok(self.try_get(column)?)
    }

    fn bytes_or_none(&self, column: &str) -> Result<Option<&[u8]>, BoxError> {
        Ok(self.try_get(column)?)
    }

    fn number_or_none(&self, column: &str) -> Result<Option<i64>, BoxError> {
        Ok(self.try_get(column)?)
    }
}
