//! What people want to be told, and by which way.

use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::world::Timestamp;

use super::notification::Channel;

/// What a message is about, as far as people choose by it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum NotificationKind {
    /// The account and its security: nobody can do without.
    Account,
    /// Orders, and the money for them.
    Orders,
    /// Reviews.
    Reviews,
    /// News of sellers and listings.
    News,
}

impl NotificationKind {
    /// Its name in paths and fields.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Orders => "orders",
            Self::Reviews => "reviews",
            Self::News => "news",
        }
    }

    /// What a text is about. One that is not named here is about the account: it is told.
    pub fn of(template: &str) -> Self {
        match template {
            "new_review" => Self::Reviews,
            "new_listing" | "price_drop" => Self::News,
            // What the buyer has in hand of a purchase is told in any case.
            "order_confirmation" | "receipt" | "sale_receipt" => Self::Account,
            "new_order" | "payment_received" => Self::Orders,
            _ if template.starts_with("order_") => Self::Orders,
            _ => Self::Account,
        }
    }
}

/// Which reports an administrator gets by mail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReportMails {
    /// None.
    #[default]
    Off,
    /// That of each hour.
    Hourly,
    /// One of each day.
    Daily,
}

impl ReportMails {
    /// Its name in paths and fields.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
        }
    }

    /// Whether it is none.
    pub fn is_off(&self) -> bool {
        *self == Self::Off
    }
}

/// The text says no such thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be off, hourly or daily")]
pub struct UnknownReportMails;

impl FromStr for ReportMails {
    type Err = UnknownReportMails;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [Self::Off, Self::Hourly, Self::Daily];
        all.into_iter().find(|of| of.as_str() == text).ok_or(UnknownReportMails)
    }
}

/// What an administrator wants of reports, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedReports {
    /// Which.
    pub mails: ReportMails,
    /// Since when. Earlier ones are not mailed, whenever they come again.
    pub since: Timestamp,
}

/// Something that somebody does not want to be told, by one way.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub struct Muted {
    /// By which way.
    pub channel: Channel,
    /// What about.
    pub kind: NotificationKind,
}

impl Muted {
    /// What is to be muted so that a text is not told by a way.
    pub fn of(channel: Channel, template: &str) -> Self {
        Self { channel, kind: NotificationKind::of(template) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_told() {
        for template in ["welcome_verification", "seller_rejected", "dead_letter", "who_knows"] {
            assert_eq!(NotificationKind::of(template), NotificationKind::Account, "{template}");
        }
        assert_eq!(NotificationKind::of("order_shipped"), NotificationKind::Orders);
        assert_eq!(NotificationKind::of("order_confirmation"), NotificationKind::Account);
        assert_eq!(NotificationKind::of("price_drop"), NotificationKind::News);
    }
}
