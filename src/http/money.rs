//! Money in requests and answers: whole minor units and a currency.

use serde::Serialize;
use utoipa::ToSchema;

use super::body::Fields;
use crate::domain::money::{Currency, Money};

/// The currency of a bare number.
pub(super) const CURRENCY_DEFAULT: Currency = Currency::Vnd;

/// An amount of money.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct MoneyBody {
    /// Whole minor units (cents; dong, which has none smaller). Never a fraction.
    #[schema(example = 1_500_000)]
    pub amount: i64,
    /// The ISO 4217 code.
    #[schema(example = "VND")]
    pub currency: String,
}

impl From<Money> for MoneyBody {
    fn from(money: Money) -> Self {
        Self { amount: money.amount, currency: money.currency.code().to_owned() }
    }
}

/// Money as `{amount, currency}`, or as a whole number beside a member `currency`.
pub(super) fn optional_money(fields: &mut Fields<'_>, name: &'static str) -> Option<Money> {
    let value = fields.value(name)?;
    if !value.is_object() {
        let amount = fields.optional_integer(&[name]);
        let currency = match fields.value("currency") {
            Some(_) => fields.optional_parsed(&["currency"])?,
            None => CURRENCY_DEFAULT,
        };
        return Some(Money::new(amount?, currency));
    }
    fields.optional_object(&[name], |money| {
        let amount = money.integer(&["amount"]);
        let currency = match money.value("currency") {
            Some(_) => money.optional_parsed(&["currency"])?,
            None => CURRENCY_DEFAULT,
        };
        Some(Money::new(amount?, currency))
    })
}

/// The same where it must be there.
pub(super) fn money(fields: &mut Fields<'_>, name: &'static str) -> Option<Money> {
    if fields.value(name).is_none() {
        fields.error(name, "required", "is required");
    }
    optional_money(fields, name)
}

#[cfg(test)]
mod tests {
    use super::super::body::{FromFields, read};
    use super::*;

    #[derive(Debug)]
    struct Priced(Money);

    impl FromFields for Priced {
        fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
            money(fields, "price").map(Self)
        }
    }

    #[test]
    fn money_is_whole_in_either_form() {
        let price = |text: &str| read::<Priced>(text.as_bytes()).map(|valid| valid.body.0);
        let dong = Money::new(5, Currency::Vnd);
        assert_eq!(price(r#"{"price":5}"#).unwrap(), dong);
        assert_eq!(price(r#"{"price":{"amount":5,"currency":"VND"}}"#).unwrap(), dong);
        assert_eq!(price(r#"{"price":5,"currency":"USD"}"#).unwrap().currency, Currency::Usd);
        for (text, pointer) in [
            ("{}", "/price"),
            (r#"{"price":1.5}"#, "/price"),
            (r#"{"price":{"amount":1.0}}"#, "/price/amount"),
            (r#"{"price":{"amount":1,"currency":"vnd"}}"#, "/price/currency"),
        ] {
            assert_eq!(price(text).unwrap_err().errors()[0].pointer, pointer, "{text}");
        }
    }
}
