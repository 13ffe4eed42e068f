//! The register of all the marketplace's event types and of every name they go by.

use std::collections::HashMap;
use std::sync::LazyLock;

use souk_actors::custody::CustodyEvent;
use souk_actors::event::{EventDescriptor, EventPayload, Upcaster};
use souk_actors::oversight::SubscriptionEvent;
use souk_actors::oversight::letters::DeadLetterEvent;
use souk_actors::saga::SagaEvent;

use super::activity::ActivityEvent;
use super::alert::AlertEvent;
use super::announcement::AnnouncementEvent;
use super::category::CategoryEvent;
use super::email_claim::EmailClaimEvent;
use super::engagement::EngagementEvent;
use super::escrow::EscrowEvent;
use super::event_source::EventSourceEvent;
use super::event_type::EventTypeEvent;
use super::interest::InterestEvent;
use super::listing::ListingEvent;
use super::loyalty::LoyaltyEvent;
use super::notification::NotificationEvent;
use super::order::OrderEvent;
use super::payment::PaymentEvent;
use super::projection_care::ProjectionEvent;
use super::promotion::PromotionEvent;
use super::publication::PublicationEvent;
use super::reporting::ReportingEvent;
use super::review::ReviewEvent;
use super::search_entry::SearchEntryEvent;
use super::seller_account::SellerAccountEvent;
use super::service::ServiceEvent;
use super::service_token::ServiceTokenEvent;
use super::session::SessionEvent;
use super::shipment::ShipmentEvent;
use super::user::UserEvent;
use super::webhook_delivery::WebhookDeliveryEvent;
use super::webhook_endpoint::WebhookEndpointEvent;

/// What every kind of event declares, by aggregate.
macro_rules! of_all_events {
    ($declared:ident) => {
        [
            UserEvent::$declared(),
            EmailClaimEvent::$declared(),
            SessionEvent::$declared(),
            CategoryEvent::$declared(),
            ListingEvent::$declared(),
            SearchEntryEvent::$declared(),
            ActivityEvent::$declared(),
            AlertEvent::$declared(),
            ServiceEvent::$declared(),
            ReportingEvent::$declared(),
            OrderEvent::$declared(),
            PaymentEvent::$declared(),
            EscrowEvent::$declared(),
            SellerAccountEvent::$declared(),
            ShipmentEvent::$declared(),
            PromotionEvent::$declared(),
            LoyaltyEvent::$declared(),
            EngagementEvent::$declared(),
            ReviewEvent::$declared(),
            InterestEvent::$declared(),
            AnnouncementEvent::$declared(),
            NotificationEvent::$declared(),
            ServiceTokenEvent::$declared(),
            EventTypeEvent::$declared(),
            EventSourceEvent::$declared(),
            PublicationEvent::$declared(),
            WebhookEndpointEvent::$declared(),
            WebhookDeliveryEvent::$declared(),
            SagaEvent::$declared(),
            SubscriptionEvent::$declared(),
            DeadLetterEvent::$declared(),
            ProjectionEvent::$declared(),
            CustodyEvent::$declared(),
        ]
        .into_iter()
        .flatten()
    };
}

/// Every event type of the marketplace, by aggregate and in the order of declaration.
pub fn all_descriptors() -> impl Iterator<Item = &'static EventDescriptor> {
    of_all_events!(descriptors)
}

/// Every step from one major version of a type to the next.
pub fn all_upcasters() -> impl Iterator<Item = &'static Upcaster> {
    of_all_events!(upcasters)
}

/// Whether a name belongs to the marketplace's own event types: it is one of theirs, or of a family
/// (the first word) that has some. Their subscribers count on knowing every type of a family.
pub fn is_own(name: &str) -> bool {
    let family = |name: &'static str| name.split('.').next().unwrap_or(name);
    let first = name.split('.').next().unwrap_or(name);
    first == "system"
        || find(name).is_some()
        || all_descriptors().any(|descriptor| family(descriptor.event_type) == first)
}

/// What a name stands for.
#[derive(Debug, Clone, Copy)]
pub struct Named {
    /// The event type.
    pub descriptor: &'static EventDescriptor,
    /// The major version that the name asked for, if it asked for one.
    pub major: Option<u16>,
}

/// The event type that goes by `name`: its canonical type, its Pascal name or one of its aliases,
/// each also with a major version behind it (`order.placed.v1`). A version that is newer than the
/// program knows names nothing.
pub fn find(name: &str) -> Option<Named> {
    if let Some(descriptor) = by_name(name) {
        return Some(Named { descriptor, major: None });
    }
    let (name, major) = name.rsplit_once(".v")?;
    let digits = !major.starts_with('0') && major.bytes().all(|byte| byte.is_ascii_digit());
    let major: u16 = digits.then_some(major)?.parse().ok()?;
    let descriptor = by_name(name).filter(|descriptor| major <= descriptor.major)?;
    Some(Named { descriptor, major: Some(major) })
}

fn by_name(name: &str) -> Option<&'static EventDescriptor> {
    static NAMES: LazyLock<HashMap<&'static str, &'static EventDescriptor>> =
        LazyLock::new(|| all_descriptors().flat_map(names).collect());
    NAMES.get(name).copied()
}

/// Every name of one type, with the type.
fn names(
    descriptor: &'static EventDescriptor,
) -> impl Iterator<Item = (&'static str, &'static EventDescriptor)> {
    [descriptor.event_type, descriptor.name]
        .into_iter()
        .chain(descriptor.aliases.iter().copied())
        .map(move |name| (name, descriptor))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// `^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*){1,2}$`
    fn is_canonical(name: &str) -> bool {
        let word = |word: &str| {
            word.starts_with(|first: char| first.is_ascii_lowercase())
                && word
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        };
        (2..=3).contains(&name.split('.').count()) && name.split('.').all(word)
    }

    #[test]
    fn types_have_the_canonical_form_and_names_are_in_pascal_case() {
        assert!(!is_canonical("order") && !is_canonical("a.b.c.d") && !is_canonical("a.B"));
        for descriptor in all_descriptors() {
            let EventDescriptor { event_type, name, .. } = descriptor;
            assert!(is_canonical(event_type), "{event_type}");
            assert!(name.starts_with(|first: char| first.is_ascii_uppercase()), "{name}");
            assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{name}");
            assert_eq!(descriptor.major, 1, "{event_type}");
        }
    }

    /// The journal holds these names for ever: one may be added here, none changed.
    const STORED: &[&str] = &[
        "user.registered",
        "user.registration_abandoned",
        "user.email_verified",
        "user.role_granted",
        "user.profile_updated",
        "user.contact_updated",
        "user.upgraded_to_seller",
        "seller.verified",
        "seller.rejected",
        "user.suspended",
        "user.reinstated",
        "user.preferences_updated",
        "seller.rating_updated",
        "user.email_unreachable",
        "user.email_reachable",
        "user.erased",
        "user.verification_requested",
        "user.password_reset_requested",
        "user.password_reset",
        "user.password_changed",
        "user.sessions_ended",
        "user.address_added",
        "user.address_changed",
        "user.address_removed",
        "email_claim.claimed",
        "email_claim.confirmed",
        "email_claim.lapsed",
        "email_claim.released",
        "session.started",
        "session.refreshed",
        "session.revoked",
        "category.created",
        "category.deactivated",
        "category.activated",
        "listing.created",
        "listing.updated",
        "catalog.price.changed",
        "listing.archived",
        "listing.image_added",
        "listing.image_removed",
        "listing.images_reordered",
        "listing.published",
        "listing.reactivated",
        "listing.reserved",
        "listing.sold",
        "listing.relisted",
        "inventory.reserved",
        "inventory.reservation_failed",
        "inventory.reservation_barred",
        "inventory.allocated",
        "inventory.released",
        "inventory.returned",
        "inventory.picked",
        "inventory.restocked",
        "listing.indexed",
        "analytics.event.recorded",
        "analytics.alert.triggered",
        "analytics.alert.resolved",
        "service.deployment",
        "service.error",
        "analytics.reporting.started",
        "analytics.report.requested",
        "analytics.report.generated",
        "order.placed",
        "order.confirmed",
        "order.paid",
        "order.payment_failed",
        "order.shipped",
        "order.rejected",
        "order.cancelled",
        "order.failed",
        "order.delivered",
        "order.completed",
        "order.return_requested",
        "order.return_refused",
        "order.returned",
        "order.disputed",
        "order.dispute_resolved",
        "order.settlement_due",
        "order.settlement_postponed",
        "order.reviewed",
        "payment.initiated",
        "payment.instructed",
        "payment.timed_out",
        "payment.authorized",
        "payment.captured",
        "payment.failed",
        "payment.rejected",
        "payment.void_requested",
        "payment.voided",
        "payment.refund_requested",
        "payment.refunded",
        "payment.inquiry_requested",
        "payment.closed",
        "payment.refund_failed",
        "escrow.created",
        "escrow.funded",
        "escrow.released",
        "escrow.refunded",
        "escrow.barred",
        "payout.requested",
        "payout.completed",
        "payout.failed",
        "shipment.created",
        "shipment.dispatched",
        "shipment.delivered",
        "shipment.cancelled",
        "promotion.created",
        "promotion.ended",
        "promotion.redeemed",
        "promotion.redemption_refused",
        "promotion.redemption_barred",
        "promotion.redemption_released",
        "loyalty.points_accrued",
        "loyalty.points_reversed",
        "user.engagement_updated",
        "review.created",
        "review.replied",
        "review.reply_edited",
        "review.hidden",
        "review.restored",
        "user.followed",
        "user.unfollowed",
        "favourite.added",
        "favourite.removed",
        "announcement.started",
        "announcement.advanced",
        "announcement.completed",
        "notification.requested",
        "notification.muted",
        "notification.email.attempted",
        "notification.email.sent",
        "notification.email.failed",
        "notification.email.deferred",
        "notification.email.outcome_unknown",
        "notification.sms.attempted",
        "notification.sms.sent",
        "notification.sms.failed",
        "notification.sms.deferred",
        "notification.sms.outcome_unknown",
        "notification.user.sent",
        "notification.admin.sent",
        "notification.email.bounced",
        "notification.acknowledged",
        "notification.admin.escalated",
        "notification.read",
        "service_token.issued",
        "service_token.revoked",
        "service_token.used",
        "event_type.registered",
        "event_source.configured",
        "event_source.reset",
        "publication.buffered",
        "publication.expired",
        "publication.resumed",
        "publication.discarded",
        "webhook.endpoint_created",
        "webhook.endpoint_updated",
        "webhook.secret_rotated",
        "webhook.endpoint_pinged",
        "webhook.endpoint_failed",
        "webhook.endpoint_recovered",
        "webhook.endpoint_disabled",
        "webhook.endpoint_enabled",
        "webhook.endpoint_deleted",
        "webhook.delivery.queued",
        "webhook.delivery.started",
        "webhook.delivery.succeeded",
        "webhook.delivery.failed",
        "webhook.delivery.exhausted",
        "webhook.delivery.deferred",
        "webhook.delivery.skipped",
        "webhook.redelivery.requested",
        "saga.started",
        "saga.advanced",
        "saga.completed",
        "saga.failed",
        "saga.retry_requested",
        "saga.compensation_requested",
        "subscription.paused",
        "subscription.resumed",
        "subscription.retry_requested",
        "subscription.discard_requested",
        "subscription.retry_policy_changed",
        "subscription.handler_timeout_changed",
        "subscription.skip_requested",
        "subscription.dlq_filled",
        "subscription.dlq_relieved",
        "subscription.replay_requested",
        "subscription.replay_completed",
        "subscription.replay_cancelled",
        "subscription.replay_failed",
        "system.event_dead_lettered",
        "projection.rebuild_requested",
        "projection.rebuild_paused",
        "projection.rebuild_resumed",
        "projection.cut_over",
        "projection.rolled_back",
        "projection.version_discarded",
        "aggregate.quarantined",
        "aggregate.released",
    ];

    #[test]
    fn stored_names_never_change() {
        let found: Vec<_> = all_descriptors().map(|descriptor| descriptor.event_type).collect();
        assert_eq!(found, STORED);
    }

    #[test]
    fn no_name_stands_for_two_types() {
        let mut seen = HashSet::new();
        for (name, _) in all_descriptors().flat_map(names) {
            assert!(seen.insert(name), "{name} is taken twice");
            assert!(!name.contains(".v1"), "{name}");
        }
        assert!(seen.len() > 100, "only {} names", seen.len());
    }

    #[test]
    fn every_name_is_found_with_and_without_a_version() {
        for (name, descriptor) in all_descriptors().flat_map(names) {
            let found = find(name).unwrap();
            assert_eq!((found.descriptor.event_type, found.major), (descriptor.event_type, None));
            let found = find(&format!("{name}.v1")).unwrap();
            assert_eq!(
                (found.descriptor.event_type, found.major),
                (descriptor.event_type, Some(1))
            );
        }
        for name in ["order.vanished", "order.placed.v2", "order.placed.v0", "order.placed.v", ""] {
            assert!(find(name).is_none(), "{name}");
        }
    }

    #[test]
    fn the_documents_names_are_known() {
        let known = [
            ("TransactionCreated", "order.placed"),
            ("order.created", "order.placed"),
            ("UserCreated", "user.registered"),
            ("user.created", "user.registered"),
            ("customer.registered", "user.registered"),
            ("customer.verified", "user.email_verified"),
            ("PaymentCompleted", "payment.captured"),
            ("PaymentProcessed", "payment.captured"),
            ("payment.received", "payment.captured"),
            ("EmailSent", "notification.email.sent"),
            ("NotificationSent", "notification.email.sent"),
            ("catalog.product.created", "listing.created"),
            ("search.index.updated", "listing.indexed"),
            ("InventoryReservationFailed", "inventory.reservation_failed"),
            ("FulfillmentCreated", "shipment.created"),
        ];
        for (name, event_type) in known {
            assert_eq!(find(name).unwrap().descriptor.event_type, event_type, "{name}");
        }
    }

    #[test]
    fn every_type_has_a_schema_of_an_object() {
        for descriptor in all_descriptors() {
            let schema = (descriptor.schema)();
            assert_eq!(schema["type"], "object", "{}", descriptor.event_type);
            assert!(schema["properties"].as_object().is_some_and(|members| !members.is_empty()));
        }
    }
}
