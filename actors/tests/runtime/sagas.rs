//! Sagas: forward, back, across restarts.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use souk_actors::command::{CommandContext, CommandError, Refused};
use souk_actors::event::StoredEvent;
use souk_actors::faults::{Fault, Mode};
use souk_actors::retry::FailureKind;
use souk_actors::runtime::Runtime;
use souk_actors::saga::{
    Progress, Routed, Saga, SagaInstance, SagaRouter, SagaStatus, Step, Transition,
};
use souk_actors::world::Timestamp;
use uuid::Uuid;

use crate::account::{AccountCommand, Rig, options};

/// Moves ten from account 1 to account 2, once account 0 was changed by ten times the key.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Transfer {
    taken: i64,
    given: i64,
    start: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum Fact {
    Start,
    Moved { account: u128, amount: i64, version: u64 },
}

const TRIGGER: u128 = 1_000;
const FROM: u128 = 1;
const TO: u128 = 2;

impl Saga for Transfer {
    const NAME: &'static str = "transfer_saga";
    const TOPICS: &'static [&'static str] = &["account.changed"];
    type Fact = Fact;
    type Command = (u128, i64);

    fn fact(event: &StoredEvent, data: &serde_json::Value) -> Option<(Uuid, Fact)> {
        let amount = data["amount"].as_i64()?;
        let account = event.aggregate_id.as_u128();
        let version = event.aggregate_version;
        let fact = match account {
            TRIGGER => Fact::Start,
            FROM | TO if amount.abs() == 10 => Fact::Moved { account, amount, version },
            _ => return None,
        };
        Some((Uuid::from_u128(5), fact))
    }

    fn starts(fact: &Fact) -> bool {
        matches!(fact, Fact::Start)
    }

    fn observe(&mut self, fact: &Fact) {
        match fact {
            Fact::Start => self.start = true,
            Fact::Moved { account: FROM, amount, .. } => self.taken -= amount,
            Fact::Moved { amount, .. } => self.given += amount,
        }
    }

    fn steps(&self) -> &'static [Step<Self>] {
        static STEPS: &[Step<Transfer>] = &[
            Step {
                name: "take",
                done_as: "TAKEN",
                act: |_, _| vec![(FROM, -10)],
                progress: |saga| if saga.taken >= 10 { Progress::Done } else { Progress::Pending },
                undo: |saga, _| if saga.taken > 0 { vec![(FROM, 10)] } else { vec![(FROM, 0)] },
                undone: |saga| saga.taken == 0,
                time_limit: |_| Duration::from_secs(30),
                retries_max: 0,
                optional: false,
            },
            Step {
                name: "give",
                done_as: "GIVEN",
                act: |_, _| vec![(TO, 10)],
                progress: |saga| if saga.given >= 10 { Progress::Done } else { Progress::Pending },
                undo: |_, _| Vec::new(),
                undone: |saga| saga.given == 0,
                time_limit: |_| Duration::from_secs(30),
                retries_max: 1,
                optional: false,
            },
        ];
        STEPS
    }

    fn conclude(&self, _: &str, _: &str, _: Timestamp) -> Vec<(u128, i64)> {
        vec![(3, 1)]
    }
}

#[derive(Default)]
struct Router {
    /// Commands to this account go nowhere.
    swallows: Mutex<Option<u128>>,
    routed: Mutex<Vec<(u128, i64)>>,
    /// This command is refused.
    refuses: Mutex<Option<(u128, i64)>>,
}

#[async_trait]
impl SagaRouter<Transfer> for Router {
    async fn route(
        &self,
        runtime: &Runtime,
        (account, amount): (u128, i64),
        context: CommandContext,
    ) -> Result<Routed, CommandError<Refused>> {
        self.routed.lock().unwrap().push((account, amount));
        if *self.refuses.lock().unwrap() == Some((account, amount)) {
            let rejection = Refused { code: "closed", message: "closed".to_owned() };
            return Err(CommandError::Rejected { rejection, version: 1, replayed: false });
        }
        if *self.swallows.lock().unwrap() == Some(account) {
            return Ok(Routed { events: 1 });
        }
        let accounts = runtime.aggregate::<crate::account::Account>();
        let command = AccountCommand::Change(amount);
        let done = accounts.send(Uuid::from_u128(account), command, context, |_| ()).await;
        done.map(|done| Routed { events: done.events }).map_err(CommandError::erased)
    }
}

async fn rig(router: &Arc<Router>) -> Rig {
    let router = router.clone();
    Rig::build(true, 1, options(), |builder| builder.saga::<Transfer>(router)).await
}

async fn until(rig: &Rig, status: SagaStatus) -> SagaInstance<Transfer> {
    let id = SagaInstance::<Transfer>::id_of(Uuid::from_u128(5));
    loop {
        let saga = rig.runtime.saga::<Transfer>().read(id, Clone::clone).await.unwrap().value;
        if saga.status == status {
            assert!(rig.runtime.subscriptions().quiesce(Duration::from_secs(30)).await);
            return saga;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_goes_through_its_steps() {
    let rig = rig(&Arc::default()).await;
    rig.change(FROM, 100).await.unwrap();
    rig.change(TRIGGER, 1).await.unwrap();
    let saga = until(&rig, SagaStatus::Completed).await;
    let states = saga.history.iter().filter_map(|entry| match &entry.transition {
        Transition::StepCompleted { state, .. } => Some(state.as_str()),
        _ => None,
    });
    let states: Vec<_> = states.collect();
    assert_eq!(states, ["TAKEN", "GIVEN"]);
    assert_eq!((rig.balance(FROM).await, rig.balance(TO).await), (90, 10));
    assert_eq!(rig.store.next_timer(0).await.unwrap(), None, "the time limit is gone with it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_step_is_undone_without_a_trace() {
    let rig = rig(&Arc::default()).await;
    rig.change(FROM, 5).await.unwrap();
    rig.change(TRIGGER, 1).await.unwrap();
    let saga = until(&rig, SagaStatus::Compensated).await;
    let failure = saga.failure.unwrap();
    assert_eq!((&*failure.step, &*failure.reason), ("take", "overdrawn"));
    assert_eq!((rig.balance(FROM).await, rig.balance(TO).await), (5, 0));
    assert_eq!(rig.balance(3).await, 1, "the conclusion was sent, once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_takes_too_long_is_tried_again_then_everything_is_undone() {
    let router = Arc::<Router>::default();
    *router.swallows.lock().unwrap() = Some(TO);
    let rig = rig(&router).await;
    rig.change(FROM, 100).await.unwrap();
    rig.change(TRIGGER, 1).await.unwrap();
    for attempt in 1..=2 {
        while router.routed.lock().unwrap().iter().filter(|sent| **sent == (TO, 10)).count()
            < attempt
        {
            tokio::task::yield_now().await;
        }
        assert!(rig.runtime.subscriptions().quiesce(Duration::from_secs(30)).await);
        rig.runtime.advance_clock(Duration::from_secs(31));
    }
    let saga = until(&rig, SagaStatus::Compensated).await;
    let failure = saga.failure.unwrap();
    assert_eq!((&*failure.step, &*failure.reason), ("give", "timeout"));
    assert_eq!(rig.balance(FROM).await, 100);
    assert_eq!(rig.balance(3).await, 1);
}

/// Nobody may conclude that money is back when giving it back was refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_undo_waits_for_people() {
    let router = Arc::<Router>::default();
    *router.refuses.lock().unwrap() = Some((FROM, 10));
    let rig = rig(&router).await;
    // The step that fails.
    *router.swallows.lock().unwrap() = Some(TO);
    rig.change(FROM, 100).await.unwrap();
    rig.change(TRIGGER, 1).await.unwrap();
    for attempt in 1..=2 {
        let tries = || router.routed.lock().unwrap().iter().filter(|c| **c == (TO, 10)).count();
        while tries() < attempt {
            tokio::task::yield_now().await;
        }
        assert!(rig.runtime.subscriptions().quiesce(Duration::from_secs(30)).await);
        rig.runtime.advance_clock(Duration::from_secs(31));
    }
    let letters = rig.runtime.dead_letters();
    let letter = loop {
        if let Some(letter) = letters.list(None, 10).await.unwrap().pop() {
            break letter;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(&*letter.subscription, "transfer_saga-commands");
    assert_eq!(letter.error, "the undo of take was refused: closed");
    until(&rig, SagaStatus::Compensating).await;
    assert_eq!(rig.balance(FROM).await, 90);
    *router.refuses.lock().unwrap() = None;
    let what = souk_actors::subscriber::Redrive::Retry;
    let name = "transfer_saga-commands";
    letters.redrive(name, 0, letter.key, what, rig.context(), None).await.unwrap().unwrap();
    until(&rig, SagaStatus::Compensated).await;
    assert_eq!((rig.balance(FROM).await, rig.balance(3).await), (100, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_on_the_way_costs_a_retry_and_nothing_else() {
    let rig = rig(&Arc::default()).await;
    for target in ["transfer_saga-facts", "transfer_saga-commands"] {
        rig.runtime.faults().add(Fault {
            target: target.to_owned(),
            mode: Mode::Panic,
            kind: FailureKind::Transient,
            times: Some(1),
            key: None,
            delay_ms: 0,
        });
    }
    rig.change(FROM, 100).await.unwrap();
    rig.change(TRIGGER, 1).await.unwrap();
    until(&rig, SagaStatus::Completed).await;
    assert_eq!((rig.balance(FROM).await, rig.balance(TO).await), (90, 10));
    assert_eq!(rig.runtime.dead_letters().list(None, 10).await.unwrap(), []);
}

/// The service stops between any two steps and starts again: the end is the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_saga_goes_on_after_a_restart_at_any_point() {
    for pause_ms in [0, 1, 2, 4, 8, 16, 32] {
        let router = Arc::<Router>::default();
        let first = rig(&router).await;
        first.change(FROM, 100).await.unwrap();
        first.change(TRIGGER, 1).await.unwrap();
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        assert!(first.runtime.drain(Duration::from_secs(10)).await);
        let Rig { store, folder, .. } = first;
        let again = Rig::on(store, folder, options(), |b| b.saga::<Transfer>(router.clone())).await;
        until(&again, SagaStatus::Completed).await;
        assert_eq!((again.balance(FROM).await, again.balance(TO).await), (90, 10));
    }
}
