//! What is simulated: accounts, transfers between them by a saga with a charge outside, a hot
//! counter and alarms. Small, and made so that every mistake of the runtime shows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::aggregate::{Aggregate, Command, NoRejection, Rejection, TimerChange};
use crate::event::{DecodeError, EventPayload as _, StoredEvent};
use crate::saga::{Progress, Saga, Step};
use crate::world::Timestamp;

/// A credit that would take an account above this is refused: so a transfer fails late, too.
pub(super) const LIMIT: i64 = 400;
/// How long money is held for a transfer.
pub(super) const HOLD: Duration = Duration::from_secs(45);
const STEP: Duration = Duration::from_secs(20);

/// A panic that the panic hook does not report: it was planned.
fn planned_panic(what: &'static str) -> ! {
    std::panic::resume_unwind(Box::new(what))
}

/// Why a command is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub(super) enum Refusal {
    #[error("the balance is too small")]
    Insufficient,
    #[error("nothing is held for the transfer")]
    NoHold,
    #[error("the account is full")]
    Full,
    #[error("it was called off before it began")]
    Barred,
}

impl Rejection for Refusal {
    fn code(&self) -> &'static str {
        match self {
            Self::Insufficient => "insufficient",
            Self::NoHold => "no_hold",
            Self::Full => "full",
            Self::Barred => "barred",
        }
    }
}

// ------------------------------------------------------------------------------------ accounts

/// What became of money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Deposited,
    Withdrawn,
    Held,
    Expired,
    Released,
    HoldBarred,
    Taken,
    Restored,
    Credited,
    Reversed,
    CreditBarred,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct Movement {
    pub op: u32,
    pub transfer: Uuid,
    pub kind: Kind,
    pub amount: i64,
    pub at: Timestamp,
    pub due: Timestamp,
}

crate::events! {
    /// What happens to accounts.
    pub(super) enum AccountEvent in "accounts" as "account-service" {
        /// Money came, went or was held.
        Moved(Movement) = "account.moved", "AccountMoved", 1.0, [];
    }
}

#[derive(Debug, Clone)]
pub(super) enum AccountCommand {
    Deposit { op: u32, amount: i64 },
    Withdraw { op: u32, amount: i64 },
    Transfer { transfer: Uuid, kind: Kind, amount: i64, now: Timestamp },
}

impl Command for AccountCommand {
    fn name(&self) -> &'static str {
        "AccountCommand"
    }
}

/// An account: its money, and where each transfer stands with it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Account {
    pub balance: i64,
    pub transfers: BTreeMap<Uuid, (Kind, i64, Timestamp)>,
}

impl Account {
    fn phase(&self, transfer: Uuid) -> Option<Kind> {
        self.transfers.get(&transfer).map(|(kind, ..)| *kind)
    }

    fn step(&self, transfer: Uuid, kind: Kind, amount: i64) -> Result<Option<Kind>, Refusal> {
        let phase = self.phase(transfer);
        Ok(match (kind, phase) {
            (Kind::Held, Some(Kind::HoldBarred)) | (Kind::Credited, Some(Kind::CreditBarred)) => {
                return Err(Refusal::Barred);
            }
            (Kind::Held, None) if self.balance < amount => return Err(Refusal::Insufficient),
            (Kind::Credited, None) if self.balance + amount > LIMIT => return Err(Refusal::Full),
            (Kind::Held | Kind::Credited, None) => Some(kind),
            (Kind::Released, None) => Some(Kind::HoldBarred),
            (Kind::Reversed, None) => Some(Kind::CreditBarred),
            (Kind::Taken | Kind::Released | Kind::Expired, Some(Kind::Held))
            | (Kind::Restored, Some(Kind::Taken))
            | (Kind::Reversed, Some(Kind::Credited)) => Some(kind),
            (Kind::Taken, Some(Kind::Taken)) => None,
            (Kind::Taken, _) => return Err(Refusal::NoHold),
            _ => None,
        })
    }
}

impl Aggregate for Account {
    const TYPE: &'static str = "account";
    type Command = AccountCommand;
    type Event = AccountEvent;
    type Rejection = Refusal;

    fn decide(&self, command: &AccountCommand) -> Result<Vec<AccountEvent>, Refusal> {
        let zero = Timestamp::from_millis(0);
        let plain = |op: u32, kind: Kind, amount: i64| {
            let (transfer, at, due) = (Uuid::nil(), zero, zero);
            vec![AccountEvent::Moved(Movement { op, transfer, kind, amount, at, due })]
        };
        match *command {
            AccountCommand::Deposit { op, amount } => Ok(plain(op, Kind::Deposited, amount)),
            AccountCommand::Withdraw { amount, .. } if self.balance < amount => {
                Err(Refusal::Insufficient)
            }
            AccountCommand::Withdraw { op, amount } => Ok(plain(op, Kind::Withdrawn, amount)),
            AccountCommand::Transfer { transfer, kind, amount, now } => {
                let known = self.transfers.get(&transfer);
                let amount = known.map_or(amount, |(_, amount, _)| *amount);
                let due = known.map_or(now.plus(HOLD), |(.., due)| *due);
                let next = self.step(transfer, kind, amount)?;
                Ok(next
                    .map(|kind| Movement { op: 0, transfer, kind, amount, at: now, due })
                    .map(AccountEvent::Moved)
                    .into_iter()
                    .collect())
            }
        }
    }

    fn apply(&mut self, event: &AccountEvent) {
        let AccountEvent::Moved(moved) = event;
        match moved.kind {
            Kind::Deposited | Kind::Expired | Kind::Released | Kind::Restored | Kind::Credited => {
                self.balance += moved.amount
            }
            Kind::Withdrawn | Kind::Held | Kind::Reversed => self.balance -= moved.amount,
            Kind::Taken | Kind::HoldBarred | Kind::CreditBarred => {}
        }
        if !moved.transfer.is_nil() {
            self.transfers.insert(moved.transfer, (moved.kind, moved.amount, moved.due));
        }
    }

    fn timers(&self, event: &AccountEvent) -> Vec<TimerChange> {
        let AccountEvent::Moved(moved) = event;
        let name = format!("hold {}", moved.transfer);
        match moved.kind {
            Kind::Held => vec![TimerChange::Set { name, at: moved.due }],
            Kind::Taken | Kind::Released => vec![TimerChange::Clear { name }],
            _ => Vec::new(),
        }
    }

    fn on_timer(&self, name: &str, now: Timestamp) -> Option<AccountCommand> {
        let transfer = name.strip_prefix("hold ")?.parse().ok()?;
        Some(AccountCommand::Transfer { transfer, kind: Kind::Expired, amount: 0, now })
    }
}

// ----------------------------------------------------------------------------------- transfers

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct Requested {
    pub op: u32,
    pub from: Uuid,
    pub to: Uuid,
    pub amount: i64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct Nothing {}

crate::events! {
    /// What happens to transfers.
    pub(super) enum TransferEvent in "transfers" as "transfer-service" {
        /// Somebody wants it.
        Requested(Requested) = "transfer.requested", "TransferRequested", 1.0, [];
        /// The money is over there.
        Completed(Nothing) = "transfer.completed", "TransferCompleted", 1.0, [];
        /// Everything is as it was.
        Failed(Nothing) = "transfer.failed", "TransferFailed", 1.0, [];
    }
}

#[derive(Debug, Clone)]
pub(super) enum TransferCommand {
    Request(Requested),
    Complete,
    Fail,
}

impl Command for TransferCommand {
    fn name(&self) -> &'static str {
        "TransferCommand"
    }
}

/// A transfer as its client sees it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Transfer {
    pub requested: bool,
    pub completed: bool,
    pub failed: bool,
}

impl Aggregate for Transfer {
    const TYPE: &'static str = "transfer";
    type Command = TransferCommand;
    type Event = TransferEvent;
    type Rejection = Refusal;

    fn decide(&self, command: &TransferCommand) -> Result<Vec<TransferEvent>, Refusal> {
        Ok(match command {
            TransferCommand::Request(requested) => {
                vec![TransferEvent::Requested(requested.clone())]
            }
            TransferCommand::Complete if self.failed => return Err(Refusal::Barred),
            TransferCommand::Complete if self.completed => Vec::new(),
            TransferCommand::Complete => vec![TransferEvent::Completed(Nothing {})],
            TransferCommand::Fail if self.failed => Vec::new(),
            TransferCommand::Fail => vec![TransferEvent::Failed(Nothing {})],
        })
    }

    fn apply(&mut self, event: &TransferEvent) {
        match event {
            TransferEvent::Requested(_) => self.requested = true,
            TransferEvent::Completed(_) => self.completed = true,
            TransferEvent::Failed(_) => {
                self.failed = true;
                self.completed = false;
            }
        }
    }
}

// ------------------------------------------------------------------------------------- charges

/// How a charge outside stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ChargeState {
    #[default]
    None,
    Initiated,
    TimedOut,
    Captured,
    Declined,
    Cancelling,
    Cancelled,
    Barred,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct Became {
    pub transfer: Uuid,
    pub state: ChargeState,
}

crate::events! {
    /// What happens to charges.
    pub(super) enum ChargeEvent in "charges" as "charge-service" {
        /// It stands otherwise.
        Became(Became) = "charge.became", "ChargeBecame", 1.0, [];
    }
}

/// For which transfer, and the state that somebody wants it to take.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChargeCommand(pub Uuid, pub ChargeState);

/// The id of a transfer's charge.
pub(super) fn charge_of(transfer: Uuid) -> Uuid {
    crate::id::derived("simulated.charge", &[transfer.as_bytes()])
}

impl Command for ChargeCommand {
    fn name(&self) -> &'static str {
        "ChargeCommand"
    }
}

/// A charge with a provider outside: what it knows of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Charge {
    pub state: ChargeState,
}

impl Aggregate for Charge {
    const TYPE: &'static str = "charge";
    type Command = ChargeCommand;
    type Event = ChargeEvent;
    type Rejection = Refusal;

    fn decide(&self, command: &ChargeCommand) -> Result<Vec<ChargeEvent>, Refusal> {
        let ChargeCommand(transfer, wanted) = command;
        use ChargeState as S;
        let next = match (self.state, *wanted) {
            (S::Barred, S::Initiated) => return Err(Refusal::Barred),
            (S::None, S::Cancelling) => S::Barred,
            (S::None, S::Initiated)
            | (S::Initiated, S::TimedOut)
            | (S::Initiated | S::TimedOut, S::Captured | S::Declined)
            | (S::Initiated | S::TimedOut | S::Captured, S::Cancelling)
            | (S::Cancelling, S::Cancelled) => *wanted,
            _ => return Ok(Vec::new()),
        };
        Ok(vec![ChargeEvent::Became(Became { transfer: *transfer, state: next })])
    }

    fn apply(&mut self, event: &ChargeEvent) {
        let ChargeEvent::Became(became) = event;
        self.state = became.state;
    }
}

// ---------------------------------------------------------------------------- counters, alarms

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct Counted {
    pub op: u32,
    pub by: i64,
    pub explodes: bool,
}

crate::events! {
    /// What happens to counters.
    pub(super) enum CounterEvent in "counters" as "counter-service" {
        /// It went on.
        Counted(Counted) = "counter.counted", "CounterCounted", 1.0, [];
    }
}

/// Goes on by `by`. The first `panics` times this panics, when it decides or when it applies.
#[derive(Debug, Clone)]
pub(super) struct Count {
    pub op: u32,
    pub by: i64,
    pub panics: Arc<AtomicU32>,
}

impl Command for Count {
    fn name(&self) -> &'static str {
        "Count"
    }
}

/// A counter: hot, so that commands are decided while earlier ones are not durable.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Counter {
    pub total: i64,
    pub counts: u64,
}

impl Aggregate for Counter {
    const TYPE: &'static str = "counter";
    type Command = Count;
    type Event = CounterEvent;
    type Rejection = Refusal;

    fn decide(&self, count: &Count) -> Result<Vec<CounterEvent>, Refusal> {
        let left = count
            .panics
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .unwrap_or(0);
        if left > 0 && left.is_multiple_of(2) {
            planned_panic("decide panics, as planned");
        }
        if self.total + count.by < 0 {
            return Err(Refusal::Insufficient);
        }
        let Count { op, by, .. } = *count;
        Ok(vec![CounterEvent::Counted(Counted { op, by, explodes: left > 0 })])
    }

    fn apply(&mut self, event: &CounterEvent) {
        let CounterEvent::Counted(counted) = event;
        if counted.explodes {
            planned_panic("apply panics, as planned");
        }
        self.total += counted.by;
        self.counts += 1;
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct AlarmSet {
    pub op: u32,
    pub due: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct AlarmRung {
    pub due: Option<Timestamp>,
    pub at: Timestamp,
}

crate::events! {
    /// What happens to alarms.
    pub(super) enum AlarmEvent in "alarms" as "alarm-service" {
        /// It will ring.
        Set(AlarmSet) = "alarm.set", "AlarmSet", 1.0, [];
        /// It rang.
        Rung(AlarmRung) = "alarm.rung", "AlarmRung", 1.0, [];
    }
}

#[derive(Debug, Clone)]
pub(super) enum AlarmCommand {
    Set { op: u32, due: Timestamp },
    Ring { now: Timestamp },
}

impl Command for AlarmCommand {
    fn name(&self) -> &'static str {
        "AlarmCommand"
    }
}

/// An alarm, set again and again: it rings when the last setting is due, and only then. It trusts
/// the runtime and looks at no clock.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Alarm {
    pub due: Option<Timestamp>,
    pub rung: u64,
}

impl Aggregate for Alarm {
    const TYPE: &'static str = "alarm";
    type Command = AlarmCommand;
    type Event = AlarmEvent;
    type Rejection = NoRejection;

    fn decide(&self, command: &AlarmCommand) -> Result<Vec<AlarmEvent>, NoRejection> {
        Ok(vec![match *command {
            AlarmCommand::Set { op, due } => AlarmEvent::Set(AlarmSet { op, due }),
            AlarmCommand::Ring { now } => AlarmEvent::Rung(AlarmRung { due: self.due, at: now }),
        }])
    }

    fn apply(&mut self, event: &AlarmEvent) {
        match event {
            AlarmEvent::Set(set) => self.due = Some(set.due),
            AlarmEvent::Rung(_) => {
                self.due = None;
                self.rung += 1;
            }
        }
    }

    fn timers(&self, event: &AlarmEvent) -> Vec<TimerChange> {
        match event {
            AlarmEvent::Set(set) => {
                vec![TimerChange::Set { name: "ring".to_owned(), at: set.due }]
            }
            AlarmEvent::Rung(_) => Vec::new(),
        }
    }

    fn on_timer(&self, _name: &str, now: Timestamp) -> Option<AlarmCommand> {
        Some(AlarmCommand::Ring { now })
    }
}

// ------------------------------------------------------------------------------------ the saga

/// Moves money: hold it, charge for it outside, take it, credit it, say that it is done.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Mover {
    transfer: Uuid,
    from: Uuid,
    to: Uuid,
    amount: i64,
    moved: Vec<Kind>,
    charges: Vec<ChargeState>,
    completed: bool,
    failed: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Fact {
    Requested { transfer: Uuid, from: Uuid, to: Uuid, amount: i64 },
    Moved(Kind),
    Charge(ChargeState),
    Completed,
    Failed,
}

/// A command of the saga, and whom it is for.
#[derive(Debug, Clone)]
pub(super) enum Order {
    Account(Uuid, AccountCommand),
    Charge(Uuid, ChargeCommand),
    Transfer(Uuid, TransferCommand),
}

impl Mover {
    fn was(&self, kinds: &[Kind]) -> bool {
        kinds.iter().any(|kind| self.moved.contains(kind))
    }

    fn charged(&self, states: &[ChargeState]) -> bool {
        states.iter().any(|state| self.charges.contains(state))
    }

    fn account(&self, id: Uuid, kind: Kind, now: Timestamp) -> Vec<Order> {
        let (transfer, amount) = (self.transfer, self.amount);
        vec![Order::Account(id, AccountCommand::Transfer { transfer, kind, amount, now })]
    }

    fn charge(&self, wanted: ChargeState) -> Vec<Order> {
        let command = ChargeCommand(self.transfer, wanted);
        vec![Order::Charge(charge_of(self.transfer), command)]
    }

    fn told(&self, command: TransferCommand) -> Vec<Order> {
        vec![Order::Transfer(self.transfer, command)]
    }
}

fn done(done: bool) -> Progress {
    if done { Progress::Done } else { Progress::Pending }
}

static STEPS: &[Step<Mover>] = &[
    Step {
        name: "hold",
        done_as: "HELD",
        act: |saga, now| saga.account(saga.from, Kind::Held, now),
        progress: |saga| match saga.was(&[Kind::Expired]) {
            true => Progress::Failed("expired".to_owned()),
            false => done(saga.was(&[Kind::Held])),
        },
        undo: |saga, now| saga.account(saga.from, Kind::Released, now),
        undone: |saga| saga.was(&[Kind::Released, Kind::Expired, Kind::Restored, Kind::HoldBarred]),
        time_limit: |_| STEP,
        retries_max: 0,
        optional: false,
    },
    Step {
        name: "charge",
        done_as: "CHARGED",
        act: |saga, _| saga.charge(ChargeState::Initiated),
        progress: |saga| match saga.charged(&[ChargeState::Declined]) {
            true => Progress::Failed("declined".to_owned()),
            false => done(saga.charged(&[ChargeState::Captured])),
        },
        undo: |saga, _| saga.charge(ChargeState::Cancelling),
        undone: |saga| {
            let over = [ChargeState::Declined, ChargeState::Cancelled, ChargeState::Barred];
            saga.charged(&over)
        },
        time_limit: |_| STEP,
        retries_max: 1,
        optional: false,
    },
    Step {
        name: "take",
        done_as: "TAKEN",
        act: |saga, now| saga.account(saga.from, Kind::Taken, now),
        progress: |saga| done(saga.was(&[Kind::Taken])),
        undo: |saga, now| saga.account(saga.from, Kind::Restored, now),
        undone: |saga| saga.was(&[Kind::Restored]),
        time_limit: |_| STEP,
        retries_max: 0,
        optional: false,
    },
    Step {
        name: "credit",
        done_as: "CREDITED",
        act: |saga, now| saga.account(saga.to, Kind::Credited, now),
        progress: |saga| done(saga.was(&[Kind::Credited])),
        undo: |saga, now| saga.account(saga.to, Kind::Reversed, now),
        undone: |saga| saga.was(&[Kind::Reversed, Kind::CreditBarred]),
        time_limit: |_| STEP,
        retries_max: 0,
        optional: false,
    },
    Step {
        name: "complete",
        done_as: "DONE",
        act: |saga, _| saga.told(TransferCommand::Complete),
        progress: |saga| done(saga.completed),
        undo: |saga, _| saga.told(TransferCommand::Fail),
        undone: |saga| saga.failed,
        time_limit: |_| STEP,
        retries_max: 0,
        optional: false,
    },
];

/// What a mover understands of an event.
fn told(event: &StoredEvent, data: &Value) -> Option<(Uuid, Fact)> {
    let own = event.aggregate_id;
    let id = |name: &str| data[name].as_str().and_then(|text| text.parse().ok());
    match &*event.event_type {
        "transfer.requested" => {
            let (from, to, amount) = (id("from")?, id("to")?, data["amount"].as_i64()?);
            Some((own, Fact::Requested { transfer: own, from, to, amount }))
        }
        "transfer.completed" => Some((own, Fact::Completed)),
        "transfer.failed" => Some((own, Fact::Failed)),
        "account.moved" => {
            let transfer = id("transfer").filter(|transfer: &Uuid| !transfer.is_nil())?;
            let kind = serde_json::from_value(data["kind"].clone()).ok()?;
            Some((transfer, Fact::Moved(kind)))
        }
        "charge.became" => {
            let state = serde_json::from_value(data["state"].clone()).ok()?;
            Some((id("transfer")?, Fact::Charge(state)))
        }
        _ => None,
    }
}

impl Saga for Mover {
    const NAME: &'static str = "mover_saga";
    const TOPICS: &'static [&'static str] = &["transfer.*", "account.*", "charge.*"];
    type Fact = Fact;
    type Command = Order;

    fn fact(event: &StoredEvent) -> Result<Option<(Uuid, Fact)>, DecodeError> {
        Ok(match &*event.aggregate_type {
            Account::TYPE => told(event, &AccountEvent::read(event)?),
            Transfer::TYPE => told(event, &TransferEvent::read(event)?),
            Charge::TYPE => told(event, &ChargeEvent::read(event)?),
            _ => None,
        })
    }

    fn starts(fact: &Fact) -> bool {
        matches!(fact, Fact::Requested { .. })
    }

    fn observe(&mut self, fact: &Fact) {
        match *fact {
            Fact::Requested { transfer, from, to, amount } => {
                (self.transfer, self.from, self.to, self.amount) = (transfer, from, to, amount);
            }
            Fact::Moved(kind) if !self.moved.contains(&kind) => self.moved.push(kind),
            Fact::Charge(state) if !self.charges.contains(&state) => self.charges.push(state),
            Fact::Moved(_) | Fact::Charge(_) => {}
            Fact::Completed => self.completed = true,
            Fact::Failed => self.failed = true,
        }
    }

    fn steps(&self) -> &'static [Step<Self>] {
        STEPS
    }

    fn aborted(&self) -> Option<String> {
        (self.was(&[Kind::Expired]) && !self.was(&[Kind::Taken])).then(|| "expired".to_owned())
    }

    fn conclude(&self, _step: &str, _reason: &str, _now: Timestamp) -> Vec<Order> {
        self.told(TransferCommand::Fail)
    }
}
