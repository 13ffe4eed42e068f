//! States of aggregates as of now and earlier, and what each event changed.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use souk_actors::aggregate::Aggregate;
use souk_actors::command::{CommandContext, CommandError};
use souk_actors::journal::codec::{Keyring, Reveal};
use souk_actors::runtime::{AsOf, Runtime, StateError, Step};
use souk_actors::world::{SystemWorld, Timestamp};
use uuid::Uuid;

use crate::account::{
    AccountCommand, AccountEvent, AccountRejection, Changed, MASTER, POISON, Rig, options, sqlite,
};

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

const KIND: &str = "account";

/// What `Rig::state` gives.
type Found = Result<(u64, Value), StateError>;

impl Rig {
    async fn state(&self, id: Uuid, as_of: AsOf) -> Found {
        let found = self.runtime.states().at(KIND, id, as_of, Reveal::Clear).await?;
        Ok((found.event.aggregate_version, found.state))
    }

    /// Versions behind `after` with the balance that each made, or why it has none.
    async fn balances(&self, id: Uuid, page: (u64, usize)) -> Vec<(u64, Result<i64, String>)> {
        let mut found = Vec::new();
        let mut visit = |step: Step<'_>| {
            let after = step.states.map(|(_, after)| after["balance"].as_i64().unwrap());
            found.push((step.event.aggregate_version, after.map_err(str::to_owned)));
        };
        let states = self.runtime.states();
        states.steps(KIND, id, page, Reveal::Clear, &mut visit).await.unwrap();
        found
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_version_of_a_long_history_is_found_again() {
    let rig = Rig::on_sqlite().await;
    for _ in 0..250 {
        rig.change(1, 2).await.unwrap();
    }
    for version in [1, 99, 100, 101, 137, 250] {
        let (at, state) = rig.state(id(1), AsOf::Version(version)).await.unwrap();
        assert_eq!((at, state["balance"].as_u64()), (version, Some(2 * version)));
    }
    assert_eq!(rig.state(id(1), AsOf::Now).await.unwrap().0, 250);
    let beyond = rig.state(id(1), AsOf::Version(251)).await.unwrap_err();
    assert!(matches!(beyond, StateError::Beyond(250)), "{beyond}");
    let unknown = rig.state(id(2), AsOf::Now).await.unwrap_err();
    assert!(matches!(unknown, StateError::Unknown), "{unknown}");
    let nothing = rig.runtime.states().at("acount", id(1), AsOf::Now, Reveal::Clear).await;
    assert!(matches!(nothing, Err(StateError::UnknownType)));
    assert!(rig.runtime.states().types().contains(&KIND));
    // A page in the middle begins at the state before it.
    let expected: Vec<_> =
        (121..=123).map(|version: u64| (version, Ok(2 * version as i64))).collect();
    assert_eq!(rig.balances(id(1), (120, 3)).await, expected);
    assert_eq!(rig.balances(id(1), (250, 3)).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_gives_the_version_of_then() {
    let rig = Rig::on_sqlite().await;
    for n in 0..40 {
        rig.change(1, 1).await.unwrap();
        if n % 7 == 0 {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }
    let events = rig.runtime.journal().read_aggregate(id(1), 0, 100).await.unwrap();
    let begun = events[0].timestamp.millis();
    let ended = events[39].timestamp.millis();
    assert!(events.is_sorted_by_key(|event| event.timestamp), "the clock was not set back");
    for millis in begun..=ended + 1 {
        let time = Timestamp::from_millis(millis);
        let expected = events.iter().filter(|event| event.timestamp <= time).count() as u64;
        assert_eq!(rig.state(id(1), AsOf::Time(time)).await.unwrap().0, expected);
    }
    let before = rig.state(id(1), AsOf::Time(Timestamp::from_millis(begun - 1))).await;
    assert!(matches!(before, Err(StateError::Later(at)) if at.millis() == begun), "{before:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_erased_stays_erased_in_every_version() {
    let rig = Rig::on_sqlite().await;
    let open = AccountCommand::Open { subject: id(77), owner: "jane.doe@example.org".to_owned() };
    rig.accounts().send(id(1), open, rig.context(), |_| ()).await.unwrap();
    // Far enough that it is in a snapshot too.
    for _ in 0..120 {
        rig.change(1, 1).await.unwrap();
    }
    let owners = async || {
        let mut owners = Vec::new();
        for as_of in [AsOf::Version(1), AsOf::Version(110), AsOf::Now] {
            owners.push(rig.state(id(1), as_of).await.unwrap().1["owner"].clone());
        }
        owners
    };
    assert_eq!(owners().await, vec![json!("jane.doe@example.org"); 3]);
    let states = rig.runtime.states();
    let redacted = states.at(KIND, id(1), AsOf::Now, Reveal::Redacted).await.unwrap();
    assert_eq!(redacted.state["owner"], "[redacted]");
    rig.runtime.control().forget(id(77)).await.unwrap();
    assert_eq!(owners().await, vec![json!("[erased]"); 3]);
}

/// Accounts of an earlier program, which took every amount.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Lenient;

impl Aggregate for Lenient {
    const TYPE: &'static str = KIND;
    type Command = AccountCommand;
    type Event = AccountEvent;
    type Rejection = AccountRejection;

    fn decide(&self, command: &AccountCommand) -> Result<Vec<AccountEvent>, AccountRejection> {
        let AccountCommand::Change(amount) = command else { return Ok(Vec::new()) };
        Ok(vec![AccountEvent::Changed(Changed { amount: *amount })])
    }

    fn apply(&mut self, _: &AccountEvent) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_an_event_that_cannot_be_applied_there_are_events_and_no_states() {
    let folder = tempfile::tempdir().unwrap();
    let (store, world) = (sqlite(&folder, 1).await, Arc::new(SystemWorld::movable()));
    let keys = Arc::new(Keyring::new(&MASTER, world.clone()));
    let earlier = Runtime::builder(store.clone(), world.clone(), keys, options());
    let earlier = earlier.aggregate::<Lenient>().start().await.unwrap();
    for amount in [5, POISON, 7] {
        let context = CommandContext::outside(&*world, "test", "request");
        let command = AccountCommand::Change(amount);
        earlier.aggregate::<Lenient>().send(id(1), command, context, |_| ()).await.unwrap();
    }
    assert!(earlier.drain(Duration::from_secs(10)).await);
    let rig = Rig::on(store, Some(folder), options(), |builder| builder).await;
    let (version, state) = rig.state(id(1), AsOf::Version(1)).await.unwrap();
    assert_eq!((version, &state["balance"]), (1, &json!(5)));
    let unreadable = rig.state(id(1), AsOf::Now).await.unwrap_err();
    assert!(matches!(&unreadable, StateError::Unreadable(why) if why.contains("version 2")));
    let why = || Err("apply panicked on version 2".to_owned());
    assert_eq!(rig.balances(id(1), (0, 9)).await, [(1, Ok(5)), (2, why()), (3, why())]);
    assert_eq!(rig.balances(id(1), (2, 9)).await, [(3, why())]);
    let refused = rig.change(1, 1).await.unwrap_err();
    assert!(matches!(refused, CommandError::Internal(_)), "{refused:?}");
}
