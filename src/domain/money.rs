//! Money: whole minor units and a currency. No fractions, no floats, no silent overflow.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The largest amount anything may have: what every JSON reader can hold exactly (2^53 - 1).
pub const AMOUNT_MAX: i64 = 9_007_199_254_740_991;

macro_rules! currencies {
    ($($(#[$about:meta])* $variant:ident = $code:literal, $decimals:literal;)+) => {
        /// A currency that the marketplace trades in, by its ISO 4217 code.
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
            JsonSchema,
        )]
        pub enum Currency {
            $($(#[$about])* #[serde(rename = $code)] $variant,)+
        }

        impl Currency {
            /// Every currency.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The three upper-case letters.
            pub const fn code(self) -> &'static str {
                match self { $(Self::$variant => $code,)+ }
            }

            /// How many decimal places its major unit has.
            pub const fn decimals(self) -> u32 {
                match self { $(Self::$variant => $decimals,)+ }
            }
        }
    };
}

currencies! {
    /// Vietnamese dong.
    Vnd = "VND", 0;
    /// United States dollar.
    Usd = "USD", 2;
    /// Euro.
    Eur = "EUR", 2;
    /// Pound sterling.
    Gbp = "GBP", 2;
    /// Japanese yen.
    Jpy = "JPY", 0;
    /// South Korean won.
    Krw = "KRW", 0;
    /// Singapore dollar.
    Sgd = "SGD", 2;
    /// Thai baht.
    Thb = "THB", 2;
    /// Australian dollar.
    Aud = "AUD", 2;
    /// Canadian dollar.
    Cad = "CAD", 2;
    /// Swiss franc.
    Chf = "CHF", 2;
    /// Chinese yuan.
    Cny = "CNY", 2;
    /// Indian rupee.
    Inr = "INR", 2;
}

/// The text is not the code of a currency that is traded here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a supported ISO 4217 currency code (three upper-case letters)")]
pub struct UnknownCurrency;

impl std::str::FromStr for Currency {
    type Err = UnknownCurrency;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.iter().find(|currency| currency.code() == text).copied().ok_or(UnknownCurrency)
    }
}

impl std::fmt::Display for Currency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.code())
    }
}

/// An amount of one currency, in its minor units (cents; dong, which has none smaller).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Money {
    /// Minor units.
    pub amount: i64,
    /// The currency.
    pub currency: Currency,
}

impl Money {
    /// `amount` minor units of `currency`.
    pub const fn new(amount: i64, currency: Currency) -> Self {
        Self { amount, currency }
    }

    /// Nothing, in `currency`.
    pub const fn zero(currency: Currency) -> Self {
        Self { amount: 0, currency }
    }

    /// Whether this can be a price: more than nothing and at most [`AMOUNT_MAX`].
    pub const fn is_price(self) -> bool {
        self.amount > 0 && self.amount <= AMOUNT_MAX
    }

    /// The sum; `None` when the currencies differ or it leaves the range.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        let amount = self.amount.checked_add(other.amount)?;
        (self.currency == other.currency).then_some(Self { amount, ..self })?.in_range()
    }

    /// The difference; `None` when the currencies differ or it leaves the range.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        let amount = self.amount.checked_sub(other.amount)?;
        (self.currency == other.currency).then_some(Self { amount, ..self })?.in_range()
    }

    /// This `quantity` times; `None` when it leaves the range.
    pub fn checked_mul(self, quantity: u32) -> Option<Self> {
        let amount = self.amount.checked_mul(i64::from(quantity))?;
        Self { amount, ..self }.in_range()
    }

    fn in_range(self) -> Option<Self> {
        (-AMOUNT_MAX..=AMOUNT_MAX).contains(&self.amount).then_some(self)
    }
}

/// In major units, for people: `15.00 USD`.
impl std::fmt::Display for Money {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let decimals = self.currency.decimals();
        let unit = 10u64.pow(decimals);
        let amount = self.amount.unsigned_abs();
        let sign = if self.amount < 0 { "-" } else { "" };
        write!(f, "{sign}{}", amount / unit)?;
        if decimals > 0 {
            write!(
                f,
                ".{:0width$}",
                amount % unit,
                width = usize::try_from(decimals).unwrap_or(0)
            )?;
        }
        write!(f, " {}", self.currency)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn currencies_have_one_spelling() {
        assert_eq!("VND".parse(), Ok(Currency::Vnd));
        for text in ["vnd", "XXX", "VN", "VNDD", ""] {
            assert_eq!(text.parse::<Currency>(), Err(UnknownCurrency), "{text}");
        }
        for &currency in Currency::ALL {
            let code = currency.code();
            assert!(code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_uppercase()));
            assert_eq!(code.parse(), Ok(currency));
            assert_eq!(serde_json::to_string(&currency).unwrap(), format!("\"{code}\""));
        }
    }

    #[test]
    fn sums_stay_in_one_currency_and_in_range() {
        let dong = Money::new(5, Currency::Vnd);
        assert_eq!(dong.checked_add(Money::new(6, Currency::Vnd)).unwrap().amount, 11);
        assert_eq!(dong.checked_sub(Money::new(6, Currency::Vnd)).unwrap().amount, -1);
        assert_eq!(dong.checked_add(Money::new(6, Currency::Usd)), None);
        assert_eq!(dong.checked_sub(Money::new(6, Currency::Usd)), None);
        assert_eq!(dong.checked_mul(3).unwrap().amount, 15);
        let most = Money::new(AMOUNT_MAX, Currency::Vnd);
        assert!(most.is_price());
        assert_eq!(most.checked_mul(2), None);
        assert_eq!(most.checked_add(dong), None);
        assert_eq!(Money::new(i64::MAX, Currency::Vnd).checked_mul(2), None);
        assert!(!Money::zero(Currency::Vnd).is_price());
    }

    #[test]
    fn floats_are_not_amounts() {
        assert!(serde_json::from_str::<Money>(r#"{"amount":1.5,"currency":"USD"}"#).is_err());
    }

    #[test]
    fn people_read_major_units() {
        assert_eq!(Money::new(1_500_000, Currency::Vnd).to_string(), "1500000 VND");
        assert_eq!(Money::new(-1_205, Currency::Usd).to_string(), "-12.05 USD");
    }
}
