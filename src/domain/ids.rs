//! Ids: one type per kind, so that an order is never taken for a listing.
//!
//! An id is written as a UUID and read as `<uuid>`, `order-<uuid>` or `order_<uuid>`, where the
//! prefix is the kind's own name in any case. Ids that follow from something are made here, so that
//! whoever needs them comes to the same result.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::id::{derived, keyed};
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::notification::Channel;
use super::text::normal_email;

/// The text is not an id of the kind that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an id: expected <uuid>, {kind}-<uuid> or {kind}_<uuid>")]
pub struct ParseIdError {
    /// The kind that was asked for.
    pub kind: &'static str,
}

macro_rules! ids {
    ($($(#[$about:meta])* $name:ident = $kind:literal;)+) => {$(
        $(#[$about])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// The name of the kind, as it stands before an id of it.
            pub const KIND: &'static str = $kind;

            /// The bare UUID.
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse($kind, text).map(Self).ok_or(ParseIdError { kind: $kind })
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "format": "uuid" })
            }
        }
    )+};
}

ids! {
    /// A user: buyer, seller or administrator.
    UserId = "user";
    /// The claim on an e-mail address; it follows from a keyed hash of the address, made outside.
    EmailClaimId = "email_claim";
    /// A login.
    SessionId = "session";
    /// An address in somebody's address book.
    AddressId = "address";
    /// A category of listings.
    CategoryId = "category";
    /// A listing, also called a product.
    ListingId = "listing";
    /// An order, also called a transaction.
    OrderId = "order";
    /// A purchase across sellers: one order each.
    CheckoutId = "checkout";
    /// The stock that one listing holds for one order.
    ReservationId = "reservation";
    /// The payment of an order.
    PaymentId = "payment";
    /// Money of a payment that goes back.
    RefundId = "refund";
    /// Goods of an order that come back.
    ReturnId = "return";
    /// The escrow of an order.
    EscrowId = "escrow";
    /// The account of a seller.
    SellerAccountId = "seller_account";
    /// Money on its way to a seller.
    PayoutId = "payout";
    /// The shipment of an order.
    ShipmentId = "shipment";
    /// The account of a buyer's points.
    LoyaltyAccountId = "loyalty_account";
    /// How much somebody takes part.
    EngagementId = "engagement";
    /// The reports of the business, together.
    ReportingId = "reporting";
    /// The report of an hour.
    ReportId = "report";
    /// A promotion code.
    PromotionId = "promotion";
    /// The review of an order.
    ReviewId = "review";
    /// What one person wants to hear of.
    InterestId = "interest";
    /// An event that is told to many.
    AnnouncementId = "announcement";
    /// A message to one person by one channel.
    NotificationId = "notification";
    /// The token of a service outside.
    ServiceTokenId = "service_token";
    /// An event type that an administrator registered.
    EventTypeId = "event_type";
    /// The events that one source outside tells of one key.
    PublicationId = "publication";
    /// Where events are sent to.
    WebhookEndpointId = "webhook";
    /// What the search has of a listing.
    SearchEntryId = "search_entry";
}

/// A hyphenated UUID, with or without the kind before it. Other spellings of UUIDs are refused, so
/// that one id has one spelling in logs and links.
fn parse(kind: &str, text: &str) -> Option<Uuid> {
    const HYPHENATED: usize = 36;
    let (prefix, bare) = text.split_at_checked(text.len().checked_sub(HYPHENATED)?)?;
    let named = || {
        let before = prefix.strip_suffix(['-', '_'])?;
        before.eq_ignore_ascii_case(kind).then_some(())
    };
    if !prefix.is_empty() {
        named()?;
    }
    Uuid::try_parse(bare).ok()
}

impl UserId {
    /// Nobody's id: it stands for all administrators, where something is addressed to them together.
    pub const ADMINISTRATORS: Self = Self(Uuid::nil());
}

impl EmailClaimId {
    /// The claim on an address, however it is written; without the key nobody can tell whose it is.
    pub fn of_address(key: &[u8; 32], address: &str) -> Self {
        Self(keyed(key, "email_claim", &[normal_email(address).as_bytes()]))
    }
}

impl PaymentId {
    /// The payment of an order.
    pub fn of(order: OrderId) -> Self {
        Self(derived("payment", &[order.0.as_bytes()]))
    }

    /// The reference under which the buyer and the gateway know the payment.
    pub fn reference(self) -> String {
        format!("PAY-{}", crockford(self.0))
    }
}

impl RefundId {
    /// The refund of a payment, or of what is left of it.
    pub fn of(payment: PaymentId) -> Self {
        Self(derived("refund", &[payment.0.as_bytes()]))
    }

    /// The refund for goods that came back.
    pub fn of_return(of: ReturnId) -> Self {
        Self(derived("refund of return", &[of.0.as_bytes()]))
    }

    /// The refund that a dispute about an order was decided by.
    pub fn of_dispute(order: OrderId) -> Self {
        Self(derived("refund of dispute", &[order.0.as_bytes()]))
    }

    /// The key under which the provider makes it: the id, and where so many attempts have come to
    /// nothing for good, one that follows from it.
    pub fn key(self, failed_attempts: u32) -> Uuid {
        match failed_attempts {
            0 => self.0,
            failed => derived("refund attempt", &[self.0.as_bytes(), &failed.to_be_bytes()]),
        }
    }
}

impl OrderId {
    /// The order of a checkout that goes to one seller.
    pub fn of_checkout(checkout: CheckoutId, seller: UserId) -> Self {
        Self(derived("order of checkout", &[checkout.0.as_bytes(), seller.0.as_bytes()]))
    }
}

impl SellerAccountId {
    /// The account of a seller.
    pub fn of(seller: UserId) -> Self {
        Self(derived("seller account", &[seller.0.as_bytes()]))
    }
}

impl EscrowId {
    /// The escrow of an order.
    pub fn of(order: OrderId) -> Self {
        Self(derived("escrow", &[order.0.as_bytes()]))
    }
}

impl ShipmentId {
    /// The shipment of an order.
    pub fn of(order: OrderId) -> Self {
        Self(derived("shipment", &[order.0.as_bytes()]))
    }

    /// The number under which the carrier and the buyer follow the shipment.
    pub fn tracking_number(self) -> String {
        format!("SOUK{}", crockford(self.0))
    }
}

impl AnnouncementId {
    /// What is told of an event to those who take an interest in it.
    pub fn of(event_id: Uuid) -> Self {
        Self(derived("announcement", &[event_id.as_bytes()]))
    }
}

impl LoyaltyAccountId {
    /// The account of somebody.
    pub fn of(user: UserId) -> Self {
        Self(derived("loyalty account", &[user.0.as_bytes()]))
    }
}

impl EngagementId {
    /// The score of somebody.
    pub fn of(user: UserId) -> Self {
        Self(derived("engagement", &[user.0.as_bytes()]))
    }
}

impl ReportingId {
    /// There is one.
    pub fn only() -> Self {
        Self(derived("reporting", &[]))
    }
}

impl ReportId {
    /// The report of the hour that begins then.
    pub fn of(from: Timestamp) -> Self {
        Self(derived("report", &[&from.millis().to_be_bytes()]))
    }
}

impl PromotionId {
    /// The promotion of a code in its one spelling.
    pub fn of_code(code: &str) -> Self {
        Self(derived("promotion", &[code.as_bytes()]))
    }
}

impl ReviewId {
    /// The review of an order: two of the same order meet in one aggregate.
    pub fn of(order: OrderId) -> Self {
        Self(derived("review", &[order.0.as_bytes()]))
    }
}

impl ReservationId {
    /// The stock that `listing` holds for `order`.
    pub fn of(listing: ListingId, order: OrderId) -> Self {
        Self(derived("reservation", &[listing.0.as_bytes(), order.0.as_bytes()]))
    }
}

impl SearchEntryId {
    /// What the search has of `listing`.
    pub fn of(listing: ListingId) -> Self {
        Self(derived("search_entry", &[listing.0.as_bytes()]))
    }
}

impl CategoryId {
    /// The category with this slug: two of the same slug meet in one aggregate.
    pub fn of_slug(slug: &str) -> Self {
        Self(derived("category", &[slug.as_bytes()]))
    }
}

impl EventTypeId {
    /// The registered type of this name.
    pub fn of_name(name: &str) -> Self {
        Self(derived("event_type", &[name.as_bytes()]))
    }
}

impl PublicationId {
    /// What `source` tells of `key`.
    pub fn of(source: &str, key: &str) -> Self {
        Self(derived("publication", &[source.as_bytes(), key.as_bytes()]))
    }
}

/// The id here of an event that `source` calls `id`: told again, it is the same.
pub fn outside_event_id(tenant: &str, source: &str, id: &str) -> Uuid {
    derived("outside event", &[tenant.as_bytes(), source.as_bytes(), id.as_bytes()])
}

impl NotificationId {
    /// The message that `template` makes of an event for one person.
    pub fn of(cause_event_id: Uuid, template: &str, recipient: UserId) -> Self {
        let parts: [&[u8]; 3] =
            [cause_event_id.as_bytes(), template.as_bytes(), recipient.0.as_bytes()];
        Self(derived("notification", &parts))
    }

    /// The same message by another channel, where somebody is told by several.
    pub fn of_copy(
        cause_event_id: Uuid,
        template: &str,
        channel: Channel,
        recipient: UserId,
    ) -> Self {
        Self::of(cause_event_id, &format!("{template}.{}", channel.as_str()), recipient)
    }
}

/// The number that people read out: `ORD-20261120-` and twelve characters of the order's id.
pub fn order_number(order: OrderId, placed_at: Timestamp) -> String {
    let day = placed_at.to_string();
    let day: String = day.chars().take(10).filter(char::is_ascii_digit).collect();
    format!("ORD-{day}-{}", crockford(order.0))
}

/// The last 60 bits of an id in Crockford's base 32, which has no letters that look like digits.
/// Those are the random bits of a UUIDv7.
pub(crate) fn crockford(id: Uuid) -> String {
    const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let bits = id.as_u128();
    (0..12u32)
        .rev()
        .map(|place| char::from(ALPHABET[usize::try_from((bits >> (place * 5)) & 31).unwrap_or(0)]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::interest::InterestOf;
    use crate::domain::webhook_delivery::{delivery_id, lane_of};

    const TEXT: &str = "0198c5a4-0000-7000-8000-0123456789ab";

    #[test]
    fn an_id_is_read_with_or_without_its_own_prefix() {
        let id = OrderId(Uuid::try_parse(TEXT).unwrap());
        for text in [TEXT.to_owned(), format!("order-{TEXT}"), format!("ORDER_{TEXT}")] {
            assert_eq!(text.parse(), Ok(id), "{text}");
        }
        for text in
            [format!("user-{TEXT}"), format!("order{TEXT}"), format!("-{TEXT}"), "order-".into()]
        {
            assert_eq!(text.parse::<OrderId>(), Err(ParseIdError { kind: "order" }), "{text}");
        }
        assert!("{0198c5a4-0000-7000-8000-0123456789ab}".parse::<OrderId>().is_err());
        assert!("ordér-0198c5a4-0000-7000-8000-0123456789a".parse::<OrderId>().is_err());
    }

    #[test]
    fn an_id_is_written_as_its_uuid() {
        let id: OrderId = TEXT.parse().unwrap();
        assert_eq!(id.to_string(), TEXT);
        assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{TEXT}\""));
    }

    #[test]
    fn the_ids_of_an_order_differ_by_kind_and_never_change() {
        let order: OrderId = TEXT.parse().unwrap();
        let ids =
            [PaymentId::of(order).uuid(), EscrowId::of(order).uuid(), ShipmentId::of(order).uuid()];
        assert_ne!(ids[0], ids[1]);
        assert_ne!(ids[1], ids[2]);
        assert_eq!(ids[0], derived("payment", &[order.uuid().as_bytes()]));
    }

    /// The last 60 bits, read off the text: fifteen hexadecimal digits are twelve of base 32.
    fn expected_of(text: &str) -> String {
        let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        let bits: String =
            hex[17..].chars().map(|digit| format!("{:04b}", digit.to_digit(16).unwrap())).collect();
        let digit = |at: usize| usize::from_str_radix(&bits[at * 5..at * 5 + 5], 2).unwrap();
        (0..12).map(|at| char::from(b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"[digit(at)])).collect()
    }

    /// Stored ids rest on these exact values.
    #[test]
    fn derived_ids_never_change() {
        let order = OrderId(Uuid::from_u128(1));
        let ids = [
            PaymentId::of(order).to_string(),
            EscrowId::of(order).to_string(),
            ShipmentId::of(order).to_string(),
            ReservationId::of(ListingId(Uuid::from_u128(2)), order).to_string(),
            RefundId::of(PaymentId(Uuid::from_u128(3))).to_string(),
            CategoryId::of_slug("books").to_string(),
            NotificationId::of(Uuid::from_u128(4), "welcome", UserId(Uuid::from_u128(5)))
                .to_string(),
            lane_of(WebhookEndpointId(Uuid::from_u128(6)), order.0).to_string(),
            delivery_id(WebhookEndpointId(Uuid::from_u128(6)), Uuid::from_u128(7)).to_string(),
            ReviewId::of(order).to_string(),
            InterestId::of(
                UserId(Uuid::from_u128(5)),
                InterestOf::Listing(ListingId(Uuid::from_u128(2))),
            )
            .to_string(),
            AnnouncementId::of(Uuid::from_u128(4)).to_string(),
            EngagementId::of(UserId(Uuid::from_u128(5))).to_string(),
        ];
        let expected = [
            "71879d66-f4dc-8d2c-a0b7-a64855cc6ebf",
            "4ff60751-63e6-826c-9bdd-dff84cb921b7",
            "b6f78f10-a9a5-8153-9247-c13a4f6722a8",
            "4edd7c87-a0d8-84f8-afbb-06a18fa040ca",
            "1f576f41-2663-8490-980c-1a4ac78e475c",
            "c84dd7b5-4b7f-8e1f-ae23-e34f5a9de4fe",
            "e7fa75ca-617b-8b75-b635-d53d89ac7203",
            "7d43aeca-9c05-809c-8ca4-fae27efe7850",
            "46664e64-2297-84f6-8291-15876432b937",
            "97a974af-349a-8c00-8c9e-74001e12e4af",
            "54edac6e-f1da-8d42-b82b-7332e27bcf14",
            "4d15dacb-7c86-8d38-b5c6-1509d84fb78c",
            "1bfcb681-972d-89a1-8ccc-e5d35c835555",
        ];
        assert_eq!(ids, expected);
    }

    #[test]
    fn an_order_number_has_the_day_and_twelve_characters() {
        let at = Timestamp::parse("2026-11-20T10:30:00Z").unwrap();
        let number = order_number(TEXT.parse().unwrap(), at);
        assert_eq!(number, format!("ORD-20261120-{}", expected_of(TEXT)));
        assert_eq!(number.len(), 25);
        assert_eq!(crockford(Uuid::from_u128(31)), "00000000000Z");
        assert_eq!(crockford(Uuid::from_u128(32)), "000000000010");
    }
}
