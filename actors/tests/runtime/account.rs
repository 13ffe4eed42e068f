//! An account to test with, and a rig that runs it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command, Rejection, TimerChange};
use souk_actors::command::{CommandContext, CommandError, Done, Once};
use souk_actors::journal::Store;
use souk_actors::journal::codec::Keyring;
use souk_actors::journal::memory::MemoryStore;
use souk_actors::journal::postgres::{PostgresOptions, PostgresStore};
use souk_actors::journal::sqlite::SqliteStore;
use souk_actors::personal::Personal;
use souk_actors::runtime::{Builder, Handle, Options, Runtime};
use souk_actors::world::{SeededWorld, SystemWorld, Timestamp, World};
use tempfile::TempDir;
use uuid::Uuid;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Opened {
    pub owner: Personal<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Changed {
    pub amount: i64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Reminded {
    pub at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReminderSet {
    pub at: Timestamp,
}

souk_actors::events! {
    /// What happens to accounts.
    pub enum AccountEvent in "accounts" as "account-service" {
        /// It was opened.
        Opened(Opened) = "account.opened", "AccountOpened", 1.0, [];
        /// Money came or went.
        Changed(Changed) = "account.changed", "AccountChanged", 1.0, [];
        /// A reminder was set.
        ReminderSet(ReminderSet) = "account.reminder_set", "AccountReminderSet", 1.0, [];
        /// A timer fired.
        Reminded(Reminded) = "account.reminded", "AccountReminded", 1.0, [];
    }
}

#[derive(Debug, Clone)]
pub enum AccountCommand {
    Open { subject: Uuid, owner: String },
    Change(i64),
    Remind { at: Timestamp },
    TimeIsUp { now: Timestamp },
    PanicInDecide,
    PanicInApply,
}

impl Command for AccountCommand {
    fn name(&self) -> &'static str {
        "AccountCommand"
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum AccountRejection {
    #[error("the balance would be {0}")]
    Overdrawn(i64),
}

impl Rejection for AccountRejection {
    fn code(&self) -> &'static str {
        "overdrawn"
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Account {
    pub owner: Option<Personal<String>>,
    pub balance: i64,
    pub changes: u64,
    pub reminded: u64,
}

/// `on_timer` of an account with this balance panics as often as this says.
pub const TIMER_PANICS_AT: i64 = 13;
pub static TIMER_PANICS: AtomicU32 = AtomicU32::new(0);

/// `apply` panics on this amount.
pub const POISON: i64 = 666;

impl Aggregate for Account {
    const TYPE: &'static str = "account";
    type Command = AccountCommand;
    type Event = AccountEvent;
    type Rejection = AccountRejection;

    fn decide(&self, command: &AccountCommand) -> Result<Vec<AccountEvent>, AccountRejection> {
        Ok(vec![match command {
            AccountCommand::Open { subject, owner } => {
                AccountEvent::Opened(Opened { owner: Personal::new(*subject, owner.clone()) })
            }
            AccountCommand::Change(amount) if self.balance + amount < 0 => {
                return Err(AccountRejection::Overdrawn(self.balance + amount));
            }
            AccountCommand::Change(0) => return Ok(Vec::new()),
            AccountCommand::Change(amount) => AccountEvent::Changed(Changed { amount: *amount }),
            AccountCommand::Remind { at } => AccountEvent::ReminderSet(ReminderSet { at: *at }),
            AccountCommand::TimeIsUp { now } => AccountEvent::Reminded(Reminded { at: *now }),
            AccountCommand::PanicInDecide => panic!("decide panics"),
            AccountCommand::PanicInApply => AccountEvent::Changed(Changed { amount: POISON }),
        }])
    }

    fn apply(&mut self, event: &AccountEvent) {
        match event {
            AccountEvent::Opened(Opened { owner }) => self.owner = Some(owner.clone()),
            AccountEvent::Changed(Changed { amount }) => {
                assert_ne!(*amount, POISON, "apply panics");
                self.balance += amount;
                self.changes += 1;
            }
            AccountEvent::ReminderSet(_) => {}
            AccountEvent::Reminded(_) => self.reminded += 1,
        }
    }

    fn timers(&self, event: &AccountEvent) -> Vec<TimerChange> {
        match event {
            AccountEvent::ReminderSet(ReminderSet { at }) => {
                vec![TimerChange::Set { name: "reminder".to_owned(), at: *at }]
            }
            _ => Vec::new(),
        }
    }

    fn on_timer(&self, _name: &str, now: Timestamp) -> Option<AccountCommand> {
        if self.balance == TIMER_PANICS_AT {
            let left = TIMER_PANICS
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            assert!(left.is_err(), "on_timer panics");
        }
        Some(AccountCommand::TimeIsUp { now })
    }
}

/// A runtime on a store, and what is needed to start it again.
pub struct Rig {
    pub runtime: Runtime,
    pub store: Arc<dyn Store>,
    pub world: Arc<dyn World>,
    pub folder: Option<TempDir>,
}

pub const MASTER: [u8; 32] = [7; 32];

pub fn options() -> Options {
    Options { poll_interval: Duration::from_millis(100), ..Options::default() }
}

pub async fn sqlite(folder: &TempDir, partitions: u16) -> Arc<dyn Store> {
    let path = folder.path().join("journal.db");
    Arc::new(SqliteStore::open(&path, partitions).await.unwrap())
}

/// The journal in this database, as [`PostgresStore::open`] gives it.
pub async fn postgres(
    url: &str,
    partitions: Option<u16>,
) -> Result<PostgresStore, souk_actors::journal::Error> {
    PostgresStore::open(PostgresOptions::new(url)?, partitions).await
}

impl Rig {
    /// On SQLite, one partition.
    pub async fn on_sqlite() -> Self {
        Self::build(true, 1, options(), |builder| builder).await
    }

    pub async fn build(
        durable: bool,
        partitions: u16,
        options: Options,
        more: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        let folder = durable.then(|| tempfile::tempdir().unwrap());
        let store: Arc<dyn Store> = match &folder {
            Some(folder) => sqlite(folder, partitions).await,
            None => Arc::new(MemoryStore::new(partitions)),
        };
        Self::on(store, folder, options, more).await
    }

    pub async fn on(
        store: Arc<dyn Store>,
        folder: Option<TempDir>,
        options: Options,
        more: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        Self::with_world(store, folder, options, Arc::new(SystemWorld::movable()), more).await
    }

    /// In a world of its own, where everything follows from a seed.
    pub async fn seeded(store: Arc<dyn Store>, seed: u64) -> Self {
        let world = Arc::new(SeededWorld::new(seed));
        Self::with_world(store, None, options(), world, |builder| builder).await
    }

    async fn with_world(
        store: Arc<dyn Store>,
        folder: Option<TempDir>,
        options: Options,
        world: Arc<dyn World>,
        more: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        let keys = Arc::new(Keyring::new(&MASTER, world.clone()));
        let builder = Runtime::builder(store.clone(), world.clone(), keys, options);
        let runtime = more(builder.aggregate::<Account>()).start().await.unwrap();
        Self { runtime, store, world, folder }
    }

    pub fn accounts(&self) -> Handle<Account> {
        self.runtime.aggregate()
    }

    pub fn context(&self) -> CommandContext {
        CommandContext::outside(&*self.world, "test", "request")
    }

    pub fn keyed(&self, key: u128) -> CommandContext {
        CommandContext {
            command_id: Uuid::from_u128(key),
            once: Some(Once { request_hash: [1; 32] }),
            ..self.context()
        }
    }

    pub async fn change(
        &self,
        account: u128,
        amount: i64,
    ) -> Result<Done<i64>, CommandError<AccountRejection>> {
        let command = AccountCommand::Change(amount);
        let id = Uuid::from_u128(account);
        self.accounts().send(id, command, self.context(), |account| account.balance).await
    }

    /// Releases an account from quarantine. Whether it was there.
    pub async fn release(&self, account: Uuid) -> bool {
        let (context, reason) = (self.context(), Some("mended".to_owned()));
        self.runtime.release(Account::TYPE, account, context, reason).await.unwrap()
    }

    pub async fn balance(&self, account: u128) -> i64 {
        let id = Uuid::from_u128(account);
        self.accounts().read(id, |account| account.balance).await.unwrap().value
    }
}
