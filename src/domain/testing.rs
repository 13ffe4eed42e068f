//! What the tests of the domain share: short names for ids, times and people, and the properties
//! that hold for every aggregate.

use std::fmt::Debug;
use std::time::Duration;

use souk_actors::aggregate::Aggregate;
use souk_actors::event::EventPayload;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::caller::{Caller, Role};
use super::ids::{ListingId, OrderId, UserId};
use super::money::{Currency, Money};
use super::order::{Address, OrderItem, SagaDefinition};
use super::order_saga::Placed;

pub fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(1_795_170_600_000).plus(Duration::from_secs(seconds))
}

pub fn user(number: u128) -> UserId {
    UserId(Uuid::from_u128(0x1000 + number))
}

pub fn order(number: u128) -> OrderId {
    OrderId(Uuid::from_u128(0x2000 + number))
}

pub fn listing(number: u128) -> ListingId {
    ListingId(Uuid::from_u128(0x3000 + number))
}

pub const BUYER: u128 = 1;
pub const SELLER: u128 = 2;
pub const STRANGER: u128 = 3;

pub fn buyer() -> Caller {
    Caller::user(user(BUYER), [Role::Buyer])
}

pub fn seller() -> Caller {
    Caller::user(user(SELLER), [Role::Buyer, Role::Seller])
}

pub fn stranger() -> Caller {
    Caller::user(user(STRANGER), [Role::Buyer, Role::Seller])
}

pub fn admin() -> Caller {
    Caller::user(user(9), [Role::Admin])
}

pub fn dong(amount: i64) -> Money {
    Money::new(amount, Currency::Vnd)
}

pub fn address() -> Address {
    Address {
        recipient: None,
        line1: "12 Hang Bac".into(),
        line2: None,
        ward: None,
        district: "Hoan Kiem".into(),
        city: "Ha Noi".into(),
        postal_code: None,
        country: "VN".into(),
        phone: Some("+84 24 3825 1234".into()),
    }
}

/// An order of `listings` listings, two units of each at 500 dong.
pub fn placed(definition: SagaDefinition, method: &str, listings: u128) -> Placed {
    let item = |number| OrderItem {
        listing_id: listing(number),
        product_id: listing(number),
        sku: format!("SKU-{number}"),
        quantity: 2,
        unit_price: 500,
    };
    Placed {
        event_id: Uuid::from_u128(77),
        order_id: order(1),
        order_number: "ORD-20261120-000000000001".into(),
        buyer_id: user(BUYER),
        seller_id: user(SELLER),
        items: (0..listings).map(item).collect(),
        total: dong(1_000 * i64::try_from(listings).unwrap()),
        promotion: None,
        payment_method: super::order::PaymentMethod::new(method),
        payment_reference: "PAY-1".into(),
        definition,
    }
}

/// Decides the commands one after the other, as the actor would; gives every event there was.
pub fn run<A: Aggregate>(commands: &[A::Command]) -> (A, Vec<A::Event>) {
    let mut state = A::default();
    let mut history = Vec::new();
    for command in commands {
        let events = state.decide(command).unwrap_or_default();
        events.iter().for_each(|event| state.apply(event));
        history.extend(events);
    }
    (state, history)
}

/// Folding a history in two parts, with a snapshot between them and every event read back from its
/// stored form, gives what the actor had.
pub fn assert_folds<A: Aggregate + PartialEq + Debug>(live: &A, history: &[A::Event])
where
    A::Event: PartialEq,
{
    for cut in 0..=history.len() {
        let mut state = A::default();
        for (index, event) in history.iter().enumerate() {
            if index == cut {
                state = snapshot(&state);
            }
            let descriptor = event.descriptor();
            let stored =
                A::Event::decode(descriptor.event_type, descriptor.major, &event.encode()).unwrap();
            assert_eq!(&stored, event);
            state.apply(&stored);
        }
        assert_eq!(&snapshot(&state), live);
    }
}

pub fn snapshot<T: serde::Serialize + serde::de::DeserializeOwned>(state: &T) -> T {
    serde_json::from_str(&serde_json::to_string(state).unwrap()).unwrap()
}

/// The domain decides and nothing else: it does not wait, store, answer requests, tell the time or
/// throw dice.
#[test]
fn the_domain_is_pure() {
    // Put together from parts, so that this list does not find itself.
    let forbidden = [
        "as#ync fn",
        ".aw#ait",
        "sq#lx",
        "ax#um",
        "tok#io",
        "ra#nd::",
        "Inst#ant",
        "System#Time",
        "now_#v7",
        "new_#v4",
        "crate::h#ttp",
        "std::f#s::write",
        "f#64",
        "f#32",
    ]
    .map(|word| word.replace('#', ""));
    let mut folders = vec![std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/domain")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let source = std::fs::read_to_string(&path).unwrap();
            files += 1;
            for word in &forbidden {
                assert!(!source.contains(word.as_str()), "{word} in {}", path.display());
            }
        }
    }
    assert!(files > 20, "only {files} files");
}
