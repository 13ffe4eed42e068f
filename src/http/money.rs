//! Money in requests and answers: whole minor units and a currency.

use serde::Serialize;
use utoipa::ToSchema;

use super::body::Fields;
use crate::domain::listing::SaidPrice;
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

/// A price as somebody saw it. Without a currency it is in whichever the price is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SeenPrice {
    amount: i64,
    currency: Option<Currency>,
}

impl SeenPrice {
    /// Whether this is the price.
    pub fn is(self, price: Money) -> bool {
        let same_currency = self.currency.is_none_or(|currency| currency == price.currency);
        self.amount == price.amount && same_currency
    }
}

impl From<SeenPrice> for SaidPrice {
    fn from(SeenPrice { amount, currency }: SeenPrice) -> Self {
        Self { amount, currency }
    }
}

/// A price as `{amount, currency}`, or as a whole number beside a member `currency`.
pub(super) fn seen_price(fields: &mut Fields<'_>, name: &'static str) -> Option<SeenPrice> {
    let value = fields.value(name)?;
    let currency = |fields: &mut Fields<'_>| match fields.value("currency") {
        Some(_) => fields.optional_parsed(&["currency"]).map(Some),
        None => Some(None),
    };
    if !value.is_object() {
        let (amount, currency) = (fields.optional_integer(&[name]), currency(fields));
        return Some(SeenPrice { amount: amount?, currency: currency? });
    }
    fields.optional_object(&[name], |money| {
        let (amount, currency) = (money.integer(&["amount"]), currency(money));
        Some(SeenPrice { amount: amount?, currency: currency? })
    })
}

/// Money in the same forms, and in the default currency where none is said.
pub(super) fn optional_money(fields: &mut Fields<'_>, name: &'static str) -> Option<Money> {
    let SeenPrice { amount, currency } = seen_price(fields, name)?;
    Some(Money::new(amount, currency.unwrap_or(CURRENCY_DEFAULT)))
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

    #[derive(Debug)]
    struct Seen(SeenPrice);

    impl FromFields for Seen {
        fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
            seen_price(fields, "price").map(Self)
        }
    }

    #[test]
    fn a_price_that_was_seen_has_the_currency_that_was_said() {
        let dollars = Money::new(1_000, Currency::Usd);
        let is = |text: &str| read::<Seen>(text.as_bytes()).unwrap().body.0.is(dollars);
        for (text, same) in [
            (r#"{"price":1000}"#, true),
            (r#"{"price":999}"#, false),
            (r#"{"price":{"amount":1000}}"#, true),
            (r#"{"price":{"amount":1000,"currency":"USD"}}"#, true),
            (r#"{"price":{"amount":1000,"currency":"VND"}}"#, false),
            (r#"{"price":1000,"currency":"VND"}"#, false),
            (r#"{"price":1000,"currency":"USD"}"#, true),
        ] {
            assert_eq!(is(text), same, "{text}");
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
