//! Sagas: forward, back, across restarts.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use souk_actors::command::{CommandContext, CommandError, Refused};
use souk_actors::event::{DecodeError, EventPayload as _, StoredEvent};
use souk_actors::faults::{Fault, Mode};
use souk_actors::retry::FailureKind;
use souk_actors::runtime::Runtime;
use souk_actors::saga::{
    Asked, BY_HAND, Progress, Routed, Saga, SagaCommand, SagaInstance, SagaRejection, SagaRouter,
    SagaStatus, Step, Transition,
};
use souk_actors::world::Timestamp;
use uuid::Uuid;

use crate::account::{AccountCommand, AccountEvent, Changed, Rig, options};

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

    fn fact(event: &StoredEvent) -> Result<Option<(Uuid, Fact)>, DecodeError> {
        let Changed { amount } = AccountEvent::read(event)?;
        let account = event.aggregate_id.as_u128();
        let version = event.aggregate_version;
        let fact = match account {
            TRIGGER => Fact::Start,
            FROM | TO if amount.abs() == 10 => Fact::Moved { account, amount, version },
            _ => return Ok(None),
        };
        Ok(Some((Uuid::from_u128(5), fact)))
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

impl Router {
    fn times(&self, command: (u128, i64)) -> usize {
        self.routed.lock().unwrap().iter().filter(|sent| **sent == command).count()
    }
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

/// A saga whose way back is refused, so that it waits for people.
async fn stuck_on_the_way_back(router: &Arc<Router>) -> Rig {
    *router.refuses.lock().unwrap() = Some((FROM, 10));
    let rig = rig(router).await;
    // The step that fails.
    *router.swallows.lock().unwrap() = Some(TO);
    rig.change(FROM, 100).await.unwrap();
    rig.change(TRIGGER, 1).await.unwrap();
    for attempt in 1..=2 {
        while router.times((TO, 10)) < attempt {
            tokio::task::yield_now().await;
        }
        assert!(rig.runtime.subscriptions().quiesce(Duration::from_secs(30)).await);
        rig.runtime.advance_clock(Duration::from_secs(31));
    }
    while rig.runtime.dead_letters().list(None, 10).await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    until(&rig, SagaStatus::Compensating).await;
    rig
}

/// Nobody may conclude that money is back when giving it back was refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_undo_waits_for_people() {
    let router = Arc::<Router>::default();
    let rig = stuck_on_the_way_back(&router).await;
    let letters = rig.runtime.dead_letters();
    let letter = letters.list(None, 10).await.unwrap().pop().unwrap();
    assert_eq!(&*letter.subscription, "transfer_saga-commands");
    assert_eq!(letter.error, "the undo of take was refused: closed");
    assert_eq!(rig.balance(FROM).await, 90);
    *router.refuses.lock().unwrap() = None;
    let what = souk_actors::subscriber::Redrive::Retry;
    let name = "transfer_saga-commands";
    letters.redrive(name, 0, letter.key, what, rig.context(), None).await.unwrap().unwrap();
    until(&rig, SagaStatus::Compensated).await;
    assert_eq!((rig.balance(FROM).await, rig.balance(3).await), (100, 1));
}

fn asked(rig: &Rig, reason: &str) -> Asked {
    let now = rig.runtime.world().now();
    Asked { by: "olga".to_owned(), reason: Some(reason.to_owned()), now }
}

/// What the saga says to this; its version, if it does it.
async fn ask(rig: &Rig, command: SagaCommand) -> Result<u64, CommandError<SagaRejection>> {
    let id = SagaInstance::<Transfer>::id_of(Uuid::from_u128(5));
    let done = rig.runtime.saga::<Transfer>().send(id, command, rig.context(), |_| ()).await;
    done.map(|done| done.version)
}

fn refused(answer: Result<u64, CommandError<SagaRejection>>) -> SagaRejection {
    match answer {
        Err(CommandError::Rejected { rejection, .. }) => rejection,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_by_hand_works_the_letters_that_hold_a_saga_up() {
    let router = Arc::<Router>::default();
    let rig = stuck_on_the_way_back(&router).await;
    let compensate = SagaCommand::Compensate(asked(&rig, "again"));
    assert_eq!(refused(ask(&rig, compensate).await), SagaRejection::SagaCompensating);
    // Too early: it is refused again, and waits again.
    ask(&rig, SagaCommand::Retry(asked(&rig, "perhaps"))).await.unwrap();
    while router.times((FROM, 10)) < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    until(&rig, SagaStatus::Compensating).await;
    assert_eq!(rig.balance(FROM).await, 90);
    *router.refuses.lock().unwrap() = None;
    ask(&rig, SagaCommand::Retry(asked(&rig, "the account is open again"))).await.unwrap();
    let saga = until(&rig, SagaStatus::Compensated).await;
    assert_eq!((rig.balance(FROM).await, rig.balance(3).await), (100, 1), "and once");
    assert_eq!(rig.runtime.dead_letters().list(None, 10).await.unwrap(), []);
    let told: Vec<_> = saga.interventions.iter().map(|of| (&*of.verb, &*of.by)).collect();
    assert_eq!(told, [("retry", "olga"), ("retry", "olga")]);
    assert_eq!(saga.interventions[1].reason.as_deref(), Some("the account is open again"));
    let again = ask(&rig, SagaCommand::Retry(asked(&rig, "once more"))).await;
    assert_eq!(refused(again), SagaRejection::SagaOver);
}

/// The service stops right after somebody was told that it will be done.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_by_hand_is_done_after_a_restart() {
    let router = Arc::<Router>::default();
    let rig = stuck_on_the_way_back(&router).await;
    rig.runtime.subscriptions().pause("transfer_saga-retries", rig.context(), None).await.unwrap();
    *router.refuses.lock().unwrap() = None;
    ask(&rig, SagaCommand::Retry(asked(&rig, "go on"))).await.unwrap();
    assert!(rig.runtime.drain(Duration::from_secs(10)).await);
    let Rig { store, folder, .. } = rig;
    let again = Rig::on(store, folder, options(), |b| b.saga::<Transfer>(router.clone())).await;
    let subscriptions = again.runtime.subscriptions();
    subscriptions.resume("transfer_saga-retries", again.context(), None).await.unwrap();
    until(&again, SagaStatus::Compensated).await;
    assert_eq!((again.balance(FROM).await, again.balance(3).await), (100, 1));
}

/// A saga whose second step waits for what never comes.
async fn waiting(router: &Arc<Router>) -> Rig {
    let rig = rig(router).await;
    *router.swallows.lock().unwrap() = Some(TO);
    rig.change(FROM, 100).await.unwrap();
    rig.change(TRIGGER, 1).await.unwrap();
    while router.times((TO, 10)) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(rig.runtime.subscriptions().quiesce(Duration::from_secs(30)).await);
    rig
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_waits_is_tried_again_by_hand() {
    let router = Arc::<Router>::default();
    let rig = waiting(&router).await;
    *router.swallows.lock().unwrap() = None;
    rig.runtime.advance_clock(Duration::from_secs(20));
    ask(&rig, SagaCommand::Retry(asked(&rig, "nobody heard"))).await.unwrap();
    let saga = until(&rig, SagaStatus::Completed).await;
    assert_eq!((rig.balance(FROM).await, rig.balance(TO).await), (90, 10));
    let again = Transition::StepStarted { step: "give".to_owned(), attempt: 2 };
    assert!(saga.history.iter().any(|entry| entry.transition == again), "{:?}", saga.history);
    assert_eq!(router.times((FROM, -10)), 1, "what is done is left alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_turns_back_when_somebody_wants_it() {
    let router = Arc::<Router>::default();
    let rig = waiting(&router).await;
    ask(&rig, SagaCommand::Compensate(asked(&rig, "called off"))).await.unwrap();
    let saga = until(&rig, SagaStatus::Compensated).await;
    let failure = saga.failure.unwrap();
    assert_eq!((&*failure.step, &*failure.reason), ("give", BY_HAND));
    assert_eq!((&*saga.interventions[0].verb, &*saga.interventions[0].by), ("compensate", "olga"));
    assert_eq!((rig.balance(FROM).await, rig.balance(3).await), (100, 1));
    assert_eq!(rig.store.next_timer(0).await.unwrap(), None);
    let again = ask(&rig, SagaCommand::Compensate(asked(&rig, "again"))).await;
    assert_eq!(refused(again), SagaRejection::SagaOver);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_that_has_not_begun_is_left_alone() {
    let rig = rig(&Arc::default()).await;
    let nobody = ask(&rig, SagaCommand::Retry(asked(&rig, "who?"))).await;
    assert_eq!(refused(nobody), SagaRejection::NotFound);
    // A fact that overtook the start.
    rig.change(FROM, 100).await.unwrap();
    rig.change(FROM, -10).await.unwrap();
    until(&rig, SagaStatus::Collecting).await;
    assert!(rig.runtime.subscriptions().quiesce(Duration::from_secs(30)).await);
    let early = ask(&rig, SagaCommand::Compensate(asked(&rig, "early"))).await;
    assert_eq!(refused(early), SagaRejection::SagaNotStarted);
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
