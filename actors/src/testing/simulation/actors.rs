//! Who takes part in a run beside the runtime: clients, subscribers, the provider of charges.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::domain::{
    Account, AccountCommand, Alarm, AlarmCommand, Charge, ChargeCommand, ChargeEvent, ChargeState,
    Count, Counter, Mover, Order, Requested, Transfer, TransferCommand,
};
use super::plan::{Ask, Mishap, Rng, Target};
use super::record::{Answer, EPOCH, Record};
use crate::aggregate::Rejection;
use crate::command::{CommandContext, CommandError, Done, Once, Origin, Refused};
use crate::event::StoredEvent;
use crate::retry::Failure;
use crate::runtime::Runtime;
use crate::saga::{Routed, SagaRouter};
use crate::subscriber::{Handler, Projection};
use crate::world::Timestamp;

/// The id of something with a number.
pub(super) fn id(what: &str, number: u32) -> Uuid {
    crate::id::derived("simulated", &[what.as_bytes(), &number.to_le_bytes()])
}

/// Which aggregate a request concerns.
pub(super) fn aggregate_of(number: u32, ask: Ask) -> Uuid {
    match ask {
        Ask::Deposit { account, .. } | Ask::Withdraw { account, .. } => id("account", account),
        Ask::Transfer { .. } => id("transfer", number),
        Ask::Count { counter, .. } | Ask::Read { counter } => id("counter", counter),
        Ask::Alarm { alarm, .. } => id("alarm", alarm),
    }
}

// -------------------------------------------------------------------------------------- clients

/// Sends a command once.
pub(super) async fn send(runtime: &Runtime, record: &Record, number: u32) -> Answer {
    let Some((ask, keyed, panics, sent_at)) = ({
        let inner = record.inner();
        inner.ops.get(&number).map(|op| (op.ask, op.keyed, op.panics.clone(), op.sent_at))
    }) else {
        return Answer::Unknown;
    };
    let to = aggregate_of(number, ask);
    let mut context = CommandContext::outside(&**runtime.world(), "simulated", "");
    if keyed {
        context.command_id = id("command", number);
        context.once = Some(Once { request_hash: [u8::try_from(number % 251).unwrap_or(0); 32] });
    }
    match ask {
        Ask::Deposit { amount, .. } => {
            let command = AccountCommand::Deposit { op: number, amount };
            let accounts = runtime.aggregate::<Account>();
            answer(record, accounts.send(to, command, context, |account| account.balance).await)
        }
        Ask::Withdraw { amount, .. } => {
            let command = AccountCommand::Withdraw { op: number, amount };
            let accounts = runtime.aggregate::<Account>();
            answer(record, accounts.send(to, command, context, |account| account.balance).await)
        }
        Ask::Transfer { from, to: target, amount } => {
            let (from, target) = (id("account", from), id("account", target));
            let requested = Requested { op: number, from, to: target, amount };
            let command = TransferCommand::Request(requested);
            let transfers = runtime.aggregate::<Transfer>();
            answer(record, transfers.send(to, command, context, |_| 0).await)
        }
        Ask::Count { by, .. } => {
            let command = Count { op: number, by, panics };
            let counters = runtime.aggregate::<Counter>();
            answer(record, counters.send(to, command, context, |counter| counter.total).await)
        }
        Ask::Alarm { after, .. } => {
            let due = i64::try_from(sent_at + after).unwrap_or(0);
            let command =
                AlarmCommand::Set { op: number, due: Timestamp::from_millis(EPOCH + due) };
            let alarms = runtime.aggregate::<Alarm>();
            answer(record, alarms.send(to, command, context, |_| 0).await)
        }
        Ask::Read { .. } => {
            let counters = runtime.aggregate::<Counter>();
            answer(record, counters.read(to, |counter| counter.total).await)
        }
    }
}

fn answer<R: Rejection>(record: &Record, answer: Result<Done<i64>, CommandError<R>>) -> Answer {
    match answer {
        Ok(Done { value, version, events, replayed, .. }) => {
            Answer::Accepted { version, events, value, replayed }
        }
        Err(CommandError::Rejected { rejection, replayed, .. }) => {
            Answer::Rejected { code: rejection.code(), replayed }
        }
        Err(CommandError::OutcomeUnknown) => Answer::Unknown,
        Err(error @ (CommandError::Unavailable(_) | CommandError::Internal(_))) => {
            let CommandError::Internal(_) = error else {
                return Answer::Nothing(error.to_string());
            };
            Answer::Nothing("internal".to_owned())
        }
        Err(error @ (CommandError::KeyReused | CommandError::VersionMismatch { .. })) => {
            record.check(false, || format!("answers: nobody asked for this: {error}"));
            Answer::Unknown
        }
    }
}

// ---------------------------------------------------------------------------------- subscribers

/// What a planned mishap does to a handler before its work; whether it fails after it.
async fn suffer(mishap: Option<Mishap>) -> Result<bool, Failure> {
    match mishap {
        None => Ok(false),
        Some(Mishap::AfterWork) => Ok(true),
        Some(Mishap::Transient) => Err(Failure::transient("as planned")),
        Some(Mishap::Permanent) => Err(Failure::permanent("as planned")),
        Some(Mishap::System) => Err(Failure::system("as planned")),
        Some(Mishap::Panic) => std::panic::resume_unwind(Box::new("as planned")),
        Some(Mishap::Slow(millis)) => {
            tokio::time::sleep(Duration::from_millis(millis.into())).await;
            Ok(false)
        }
    }
}

/// Records what it saw.
pub(super) struct Audit(pub Arc<Record>);

#[async_trait]
impl Handler for Audit {
    async fn handle(&self, _runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        self.0.in_hand(Target::Audit, event);
        let after = suffer(self.0.mishap(Target::Audit, event)).await?;
        let wait = {
            let mut random = self.0.random();
            if random.chance(70) { 0 } else { random.below(8) }
        };
        if wait > 0 {
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
        self.0.handled(Target::Audit, event);
        if after { Err(Failure::transient("after its work, as planned")) } else { Ok(()) }
    }
}

/// Keeps rows: one for each event.
pub(super) struct View(pub Arc<Record>);

#[async_trait]
impl Projection for View {
    async fn checkpoint(&self, partition: u16) -> Result<u64, Failure> {
        Ok(self.0.inner().view_at.get(&partition).copied().unwrap_or(0))
    }

    async fn project(
        &self,
        _runtime: &Runtime,
        partition: u16,
        _from: u64,
        events: &[Arc<StoredEvent>],
        to: u64,
    ) -> Result<(), Failure> {
        let mut after = false;
        for event in events {
            after |= suffer(self.0.mishap(Target::View, event)).await?;
        }
        self.0.project(partition, events, to);
        if after { Err(Failure::transient("after its work, as planned")) } else { Ok(()) }
    }

    async fn redeliver(&self, _runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        suffer(self.0.mishap(Target::View, event)).await?;
        self.0.in_hand(Target::View, event);
        self.0.handled(Target::View, event);
        Ok(())
    }
}

/// Charges outside, and reports back. The provider keeps the transfer's id as the key under which
/// a charge has effect once.
pub(super) struct Gateway {
    pub record: Arc<Record>,
    pub seed: u64,
}

/// What the provider does with a charge.
enum Fate {
    Captures,
    Declines,
    /// It charges, and its answer is lost.
    ChargesSilently,
    /// It never hears of it, and nobody answers.
    Vanishes,
}

impl Gateway {
    fn fate(&self, transfer: Uuid) -> Fate {
        let low = u64::try_from(transfer.as_u128() & u128::from(u64::MAX)).unwrap_or(0);
        match Rng(self.seed ^ low).below(100) {
            0..55 => Fate::Captures,
            55..67 => Fate::Declines,
            67..85 => Fate::ChargesSilently,
            _ => Fate::Vanishes,
        }
    }

    fn charge(&self, transfer: Uuid) -> ChargeState {
        let fate = self.fate(transfer);
        let mut inner = self.record.inner();
        let outside = inner.outside.entry(transfer).or_default();
        if outside.voided {
            return ChargeState::Declined;
        }
        if !outside.charged && matches!(fate, Fate::Captures | Fate::ChargesSilently) {
            outside.charged = true;
            outside.charges += 1;
        }
        match fate {
            Fate::Captures => ChargeState::Captured,
            Fate::Declines => ChargeState::Declined,
            Fate::ChargesSilently | Fate::Vanishes => ChargeState::TimedOut,
        }
    }

    /// Asks what became of a charge; what never came to be cannot come to be after this.
    fn ask(&self, transfer: Uuid) -> ChargeState {
        let mut inner = self.record.inner();
        let outside = inner.outside.entry(transfer).or_default();
        if outside.charged {
            return ChargeState::Captured;
        }
        outside.voided = true;
        ChargeState::Declined
    }

    fn cancel(&self, transfer: Uuid) -> ChargeState {
        let mut inner = self.record.inner();
        let outside = inner.outside.entry(transfer).or_default();
        (outside.voided, outside.charged) = (true, false);
        ChargeState::Cancelled
    }
}

#[async_trait]
impl Handler for Gateway {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        let became = runtime.journal().decode::<ChargeEvent>(event).await;
        let ChargeEvent::Became(became) =
            became.map_err(|error| Failure::permanent(error.to_string()))?;
        let wait = 1 + self.record.random().below(300);
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let transfer = became.transfer;
        let next = match became.state {
            ChargeState::Initiated => self.charge(transfer),
            ChargeState::TimedOut => self.ask(transfer),
            ChargeState::Cancelling => self.cancel(transfer),
            _ => return Ok(()),
        };
        let context = CommandContext::because_of(event, "report", event.aggregate_id);
        let charges = runtime.aggregate::<Charge>();
        let command = ChargeCommand(transfer, next);
        let reported = charges.send(event.aggregate_id, command, context, |_| ()).await;
        reported.map(|_| ()).map_err(|error| error.to_failure())
    }
}

/// Sends the saga's commands.
pub(super) struct Router;

#[async_trait]
impl SagaRouter<Mover> for Router {
    async fn route(
        &self,
        runtime: &Runtime,
        order: Order,
        context: CommandContext,
    ) -> Result<Routed, CommandError<Refused>> {
        debug_assert_eq!(context.origin, Origin::Inside);
        let done = match order {
            Order::Account(to, command) => {
                runtime.aggregate::<Account>().send(to, command, context, |_| ()).await
            }
            Order::Charge(to, command) => {
                runtime.aggregate::<Charge>().send(to, command, context, |_| ()).await
            }
            Order::Transfer(to, command) => {
                runtime.aggregate::<Transfer>().send(to, command, context, |_| ()).await
            }
        };
        done.map(|done| Routed { events: done.events }).map_err(CommandError::erased)
    }
}
