//! Properties of stored events and snapshots: what fits a type's published schema is read and
//! written back the same, and whatever else stands in a row is refused without a panic.

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use serde_json::{Map, Value, json};
use souk_actors::aggregate::Aggregate;
use souk_actors::custody::{Custody, CustodyEvent};
use souk_actors::event::EventPayload;
use souk_actors::oversight::SubscriptionEvent;
use souk_actors::oversight::letters::DeadLetterEvent;
use souk_actors::saga::{SagaEvent, SagaInstance};
use uuid::Uuid;

use crate::domain::activity::{Activity, ActivityEvent};
use crate::domain::alert::{Alert, AlertEvent};
use crate::domain::announcement::{Announcement, AnnouncementEvent};
use crate::domain::category::{Category, CategoryEvent};
use crate::domain::email_claim::{EmailClaim, EmailClaimEvent};
use crate::domain::engagement::{Engagement, EngagementEvent};
use crate::domain::escrow::{Escrow, EscrowEvent};
use crate::domain::event_source::{EventSourceEvent, EventSources};
use crate::domain::event_type::{EventType, EventTypeEvent};
use crate::domain::interest::{Interest, InterestEvent};
use crate::domain::listing::{Listing, ListingEvent};
use crate::domain::loyalty::{LoyaltyAccount, LoyaltyEvent};
use crate::domain::notification::{Notification, NotificationEvent};
use crate::domain::order::{Order, OrderEvent};
use crate::domain::order_saga::OrderSaga;
use crate::domain::payment::{Payment, PaymentEvent};
use crate::domain::projection_care::{ProjectionCare, ProjectionEvent};
use crate::domain::promotion::{Promotion, PromotionEvent};
use crate::domain::publication::{Publication, PublicationEvent};
use crate::domain::reporting::{Reporting, ReportingEvent};
use crate::domain::review::{Review, ReviewEvent};
use crate::domain::search_entry::{SearchEntry, SearchEntryEvent};
use crate::domain::seller_account::{SellerAccount, SellerAccountEvent};
use crate::domain::service::{Service, ServiceEvent};
use crate::domain::service_token::{ServiceToken, ServiceTokenEvent};
use crate::domain::session::{Session, SessionEvent};
use crate::domain::shipment::{Shipment, ShipmentEvent};
use crate::domain::user::{User, UserEvent};
use crate::domain::webhook_delivery::{WebhookDelivery, WebhookDeliveryEvent};
use crate::domain::webhook_endpoint::{WebhookEndpoint, WebhookEndpointEvent};

/// A value that fits a JSON Schema of the kind that payloads have.
fn fitting(schema: &Value, root: &Value, random: &mut StdRng) -> Value {
    if let Some(target) = schema["$ref"].as_str() {
        let found = root.pointer(target.trim_start_matches('#'));
        return fitting(found.expect("references lead somewhere"), root, random);
    }
    if let Some(only) = schema.get("const") {
        return only.clone();
    }
    if let Some(all) = schema["enum"].as_array() {
        return all.choose(random).cloned().unwrap_or_default();
    }
    if is_personal(schema) {
        return personal(&schema["anyOf"][0], root, random);
    }
    for several in ["oneOf", "anyOf"] {
        if let Some(all) = schema[several].as_array() {
            return fitting(all.choose(random).expect("not empty"), root, random);
        }
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        kind => kind.as_str().into_iter().collect(),
    };
    match kinds.choose(random).copied() {
        Some("null") => Value::Null,
        Some("boolean") => json!(random.random_bool(0.5)),
        Some("integer" | "number") => {
            let low = schema["minimum"].as_i64().unwrap_or(0);
            json!(random.random_range(low..low + 200))
        }
        Some("array") => {
            let count = random.random_range(1..3);
            Value::Array((0..count).map(|_| fitting(&schema["items"], root, random)).collect())
        }
        Some("string") => Value::from(match schema["format"].as_str() {
            Some("uuid") => Uuid::from_u128(random.random()).to_string(),
            Some("date-time") => "2026-11-20T10:30:00.123Z".to_owned(),
            _ => ["", "x", "né\u{0}", "VND", "👩‍👧"].choose(random).unwrap_or(&"").to_string(),
        }),
        Some("object") => object(schema, root, random),
        // Anything goes.
        _ => json!({ "any": [1, "thing"] }),
    }
}

/// Whether this is a personal field, as its schema shows it to those who read events.
fn is_personal(schema: &Value) -> bool {
    schema.pointer("/anyOf/1/enum/1") == Some(&json!("[erased]"))
}

/// A personal field as the codec hands it on: with its value or, after an erasure, without.
fn personal(schema: &Value, root: &Value, random: &mut StdRng) -> Value {
    let mut marked = json!({ "subject": Uuid::from_u128(random.random()) });
    if random.random_bool(0.8) {
        marked["value"] = fitting(schema, root, random);
    }
    json!({ "$personal": marked })
}

fn object(schema: &Value, root: &Value, random: &mut StdRng) -> Value {
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    let mut members = Map::new();
    for (name, of) in schema["properties"].as_object().into_iter().flatten() {
        if required.contains(&json!(name)) || random.random_bool(0.5) {
            members.insert(name.clone(), fitting(of, root, random));
        }
    }
    Value::Object(members)
}

/// Every type of `E`: what fits its schema is read, and comes back as it was.
fn round_trip<E: EventPayload + PartialEq>(random: &mut StdRng) -> Result<(), TestCaseError> {
    for descriptor in E::descriptors() {
        let schema = (descriptor.schema)();
        let data = fitting(&schema, &schema, random).to_string();
        let read = E::decode(descriptor.event_type, descriptor.major, &data);
        prop_assert!(read.is_ok(), "{}: {:?} of {}", descriptor.event_type, read, data);
        let event = read.unwrap();
        let again = E::decode(descriptor.event_type, descriptor.major, &event.encode()).unwrap();
        prop_assert!(again == event, "{event:?} came back as {again:?}");
    }
    Ok(())
}

/// Anything as a row of any type of `E` and of any version: read or refused.
fn refused_in_words<E: EventPayload>(data: &str, major: u16) -> Result<(), TestCaseError> {
    for descriptor in E::descriptors() {
        for major in [major, descriptor.major] {
            if let Err(error) = E::decode(descriptor.event_type, major, data) {
                let told = error.to_string();
                prop_assert!(data.len() < 12 || !told.contains(data), "it repeats data: {told}");
            }
        }
    }
    Ok(())
}

/// A state that came from events is written and read back the same; anything else is refused.
fn snapshot<A: Aggregate>(random: &mut StdRng, other: &str) -> Result<(), TestCaseError>
where
    A::Event: PartialEq,
{
    let mut state = A::default();
    let descriptor = A::Event::descriptors().choose(random).expect("there are types");
    let schema = (descriptor.schema)();
    let data = fitting(&schema, &schema, random).to_string();
    state.apply(&A::Event::decode(descriptor.event_type, descriptor.major, &data).unwrap());
    let written = serde_json::to_string(&state).unwrap();
    let read: A = serde_json::from_str(&written).unwrap();
    prop_assert_eq!(serde_json::to_string(&read).unwrap(), written.clone());
    let _: Result<A, _> = serde_json::from_str(other);
    let cut: String = written.chars().take(written.len() / 2).collect();
    prop_assert!(serde_json::from_str::<A>(&cut).is_err());
    Ok(())
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[\\[\\]{}\",:0-9a-z$ .-]{0,60}",
        "\\{\"[a-z_]{1,12}\":(null|\\[\\]|\\{\\}|-1|1e999|\"x\")\\}",
    ]
}

/// Does the same for every type of event.
macro_rules! every_event {
    ($what:ident($($argument:expr),*)) => {
        [
            $what::<UserEvent>($($argument),*),
            $what::<EmailClaimEvent>($($argument),*),
            $what::<SessionEvent>($($argument),*),
            $what::<CategoryEvent>($($argument),*),
            $what::<ListingEvent>($($argument),*),
            $what::<SearchEntryEvent>($($argument),*),
            $what::<ActivityEvent>($($argument),*),
            $what::<AlertEvent>($($argument),*),
            $what::<ServiceEvent>($($argument),*),
            $what::<OrderEvent>($($argument),*),
            $what::<PaymentEvent>($($argument),*),
            $what::<EscrowEvent>($($argument),*),
            $what::<SellerAccountEvent>($($argument),*),
            $what::<ShipmentEvent>($($argument),*),
            $what::<PromotionEvent>($($argument),*),
            $what::<LoyaltyEvent>($($argument),*),
            $what::<EngagementEvent>($($argument),*),
            $what::<ReportingEvent>($($argument),*),
            $what::<ReviewEvent>($($argument),*),
            $what::<InterestEvent>($($argument),*),
            $what::<AnnouncementEvent>($($argument),*),
            $what::<NotificationEvent>($($argument),*),
            $what::<ServiceTokenEvent>($($argument),*),
            $what::<EventTypeEvent>($($argument),*),
            $what::<EventSourceEvent>($($argument),*),
            $what::<PublicationEvent>($($argument),*),
            $what::<WebhookEndpointEvent>($($argument),*),
            $what::<WebhookDeliveryEvent>($($argument),*),
            $what::<SagaEvent>($($argument),*),
            $what::<SubscriptionEvent>($($argument),*),
            $what::<DeadLetterEvent>($($argument),*),
            $what::<ProjectionEvent>($($argument),*),
            $what::<CustodyEvent>($($argument),*),
        ]
    };
}

proptest! {
    #[test]
    fn what_fits_the_published_schema_is_read_and_comes_back(seed: u64) {
        let random = &mut StdRng::seed_from_u64(seed);
        for come_back in every_event!(round_trip(random)) {
            come_back?;
        }
    }

    #[test]
    fn nothing_in_a_row_panics(text in any_text(), major: u16) {
        for refused in every_event!(refused_in_words(&text, major)) {
            refused?;
        }
    }

    #[test]
    fn snapshots_come_back_and_nothing_else_does(seed: u64, text in any_text()) {
        let random = &mut StdRng::seed_from_u64(seed);
        snapshot::<User>(random, &text)?;
        snapshot::<EmailClaim>(random, &text)?;
        snapshot::<Session>(random, &text)?;
        snapshot::<Category>(random, &text)?;
        snapshot::<Listing>(random, &text)?;
        snapshot::<SearchEntry>(random, &text)?;
        snapshot::<Activity>(random, &text)?;
        snapshot::<Alert>(random, &text)?;
        snapshot::<Service>(random, &text)?;
        snapshot::<Order>(random, &text)?;
        snapshot::<Payment>(random, &text)?;
        snapshot::<Escrow>(random, &text)?;
        snapshot::<SellerAccount>(random, &text)?;
        snapshot::<Shipment>(random, &text)?;
        snapshot::<Promotion>(random, &text)?;
        snapshot::<LoyaltyAccount>(random, &text)?;
        snapshot::<Engagement>(random, &text)?;
        snapshot::<Reporting>(random, &text)?;
        snapshot::<Review>(random, &text)?;
        snapshot::<Interest>(random, &text)?;
        snapshot::<Announcement>(random, &text)?;
        snapshot::<Notification>(random, &text)?;
        snapshot::<ServiceToken>(random, &text)?;
        snapshot::<EventType>(random, &text)?;
        snapshot::<EventSources>(random, &text)?;
        snapshot::<Publication>(random, &text)?;
        snapshot::<WebhookEndpoint>(random, &text)?;
        snapshot::<WebhookDelivery>(random, &text)?;
        snapshot::<SagaInstance<OrderSaga>>(random, &text)?;
        snapshot::<ProjectionCare>(random, &text)?;
        snapshot::<Custody>(random, &text)?;
    }
}
