//! Events of an older version, read by programs that upcast them wrongly, and by one that does not.
//! A letter points at its event, so that a program whose upcaster is mended works it as it is now.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use souk_actors::event::{EventPayload, StoredEvent, Upcaster};
use souk_actors::journal::LetterState;
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::{Handler, Redrive, Redriven, Subscription};
use uuid::Uuid;

use crate::account::{Rig, options};

/// The second version of what an account tells: in cents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChangedByCents {
    pub cents: i64,
}

const fn upcaster(upcast: fn(Value) -> Value) -> Upcaster {
    Upcaster { event_type: "account.changed", from: 1, upcast }
}

/// Looks for a field that there never was.
const WRONG: &[Upcaster] = &[upcaster(|data| json!({ "cents": data["money"] }))];
/// Does not expect what it is given.
const PANICS: &[Upcaster] = &[upcaster(|data| {
    let text = data["amount"].as_str().expect("an amount is a text");
    json!({ "cents": text })
})];
const RIGHT: &[Upcaster] =
    &[upcaster(|data| json!({ "cents": data["amount"].as_i64().map(|amount| amount * 100) }))];

souk_actors::events! {
    /// As a program with a wrong upcaster has them.
    pub enum Wrong in "accounts" as "account-service" upcast by WRONG {
        /// Money came or went.
        Changed(ChangedByCents) = "account.changed", "AccountChanged", 2.0, [];
    }
}
souk_actors::events! {
    /// As a program with an upcaster that panics has them.
    pub enum Panics in "accounts" as "account-service" upcast by PANICS {
        /// Money came or went.
        Changed(ChangedByCents) = "account.changed", "AccountChanged", 2.0, [];
    }
}
souk_actors::events! {
    /// As a program has them that upcasts them as they are.
    pub enum Right in "accounts" as "account-service" upcast by RIGHT {
        /// Money came or went.
        Changed(ChangedByCents) = "account.changed", "AccountChanged", 2.0, [];
    }
}

type Seen = Arc<Mutex<Vec<(u128, i64)>>>;

/// Notes whose account changed by how many cents.
struct Reads<E> {
    seen: Seen,
    cents: fn(E) -> i64,
}

#[async_trait]
impl<E: EventPayload> Handler for Reads<E> {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let decoded = runtime.journal().decode::<E>(event).await;
        let decoded = decoded.map_err(|error| Failure::permanent(error.to_string()))?;
        let cents = (self.cents)(decoded);
        self.seen.lock().unwrap().push((event.aggregate_id.as_u128(), cents));
        Ok(())
    }
}

/// The next program on what the last one has left behind.
async fn next<E: EventPayload>(last: Rig, seen: &Seen, cents: fn(E) -> i64) -> Rig {
    assert!(last.runtime.drain(Duration::from_secs(5)).await);
    let Rig { store, folder, .. } = last;
    let handler = Arc::new(Reads { seen: seen.clone(), cents });
    let subscription = Subscription::handler("cents", "tests", &["account.changed"], handler);
    Rig::on(store, folder, options(), |builder| builder.subscribe(subscription)).await
}

async fn quiet(rig: &Rig) {
    assert!(rig.runtime.subscriptions().quiesce(Duration::from_secs(30)).await);
}

async fn retry(rig: &Rig, account: u128) -> Redriven {
    let (letters, key) = (rig.runtime.dead_letters(), Uuid::from_u128(account));
    let why = Some("the upcaster is mended".to_owned());
    let done = letters.redrive("cents", 0, key, Redrive::Retry, rig.context(), why).await;
    done.unwrap().unwrap()
}

/// The accounts of the letters, with their states and how often they were tried.
async fn letters(rig: &Rig) -> Vec<(u128, LetterState, u32)> {
    let letters = rig.runtime.dead_letters().list(Some("cents"), 10).await.unwrap();
    let told = letters.into_iter().map(|of| (of.key.as_u128(), of.state, of.attempts));
    let mut told: Vec<_> = told.collect();
    told.sort_by_key(|(account, ..)| *account);
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_of_what_could_not_be_upcast_is_worked_once_the_upcaster_is_mended() {
    let first = Rig::on_sqlite().await;
    for (account, amount) in [(1, 5), (1, 7), (2, 3)] {
        first.change(account, amount).await.unwrap();
    }
    let seen = Seen::default();
    let wrong = next(first, &seen, |Wrong::Changed(of)| of.cents).await;
    quiet(&wrong).await;
    let (dead, waiting) = (LetterState::Dead, LetterState::Waiting);
    assert_eq!(letters(&wrong).await, [(1, dead, 1), (1, waiting, 0), (2, dead, 1)]);
    let all = wrong.runtime.dead_letters().list(Some("cents"), 10).await.unwrap();
    assert_eq!(&*all[0].class, "permanent");
    assert!(all[0].error.contains("account.changed does not fit its schema"), "{}", all[0].error);
    let still = retry(&wrong, 1).await;
    assert_eq!((still.handled, still.left), (0, 2));

    // The next attempt at it panics, and is no end either.
    let panics = next(wrong, &seen, |Panics::Changed(of)| of.cents).await;
    let still = retry(&panics, 2).await;
    assert_eq!((still.handled, still.left), (0, 1));
    assert_eq!(letters(&panics).await.len(), 3);
    assert!(seen.lock().unwrap().is_empty());

    let right = next(panics, &seen, |Right::Changed(of)| of.cents).await;
    let done = retry(&right, 1).await;
    assert_eq!((done.handled, done.left), (2, 0));
    let done = retry(&right, 2).await;
    assert_eq!((done.handled, done.left), (1, 0));
    right.change(1, 1).await.unwrap();
    quiet(&right).await;
    assert_eq!(letters(&right).await, []);
    assert_eq!(*seen.lock().unwrap(), [(1, 500), (1, 700), (2, 300), (1, 100)]);
}
