//! Placeholder of the runtime's facade until the real one lands.
#![allow(missing_docs, clippy::unimplemented, unused_variables)]

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::aggregate::{Aggregate, Command, Rejection};
use crate::command::{CommandContext, CommandError, ControlWrite, Done};
use crate::event::{DecodeError, EventDescriptor, EventPayload, Position, StoredEvent};
use crate::journal;
use crate::saga::Saga;
use crate::world::World;

#[derive(Clone)]
pub struct Runtime {
    world: Arc<dyn World>,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Health {
    pub journal_writable: bool,
    pub draining: bool,
    pub subscriptions_started: bool,
    pub supervisors_alive: bool,
}

impl Runtime {
    pub fn world(&self) -> &Arc<dyn World> {
        &self.world
    }
    pub fn partitions(&self) -> u16 {
        unimplemented!()
    }
    pub fn aggregate<A: Aggregate>(&self) -> Handle<A> {
        unimplemented!()
    }
    pub fn saga<S: Saga>(&self) -> Handle<SagaInstance<S>> {
        unimplemented!()
    }
    pub fn journal(&self) -> &JournalReader {
        unimplemented!()
    }
    pub fn control(&self) -> &Control {
        unimplemented!()
    }
    pub fn subscriptions(&self) -> &Subscriptions {
        unimplemented!()
    }
    pub fn dead_letters(&self) -> &DeadLetters {
        unimplemented!()
    }
    pub fn faults(&self) -> &Arc<Faults> {
        unimplemented!()
    }
    pub fn advance_clock(&self, by: Duration) -> bool {
        unimplemented!()
    }
    pub fn health(&self) -> Health {
        unimplemented!()
    }
    pub async fn drain(&self, timeout: Duration) -> bool {
        unimplemented!()
    }
    pub async fn fatal(&self) {
        unimplemented!()
    }
}

pub struct Handle<A>(PhantomData<fn() -> A>);

impl<A> Clone for Handle<A> {
    fn clone(&self) -> Self {
        Self(PhantomData)
    }
}

impl<A: Aggregate> Handle<A> {
    pub async fn send<R: Send + 'static>(
        &self,
        id: Uuid,
        command: A::Command,
        context: CommandContext,
        view: impl FnOnce(&A) -> R + Send + 'static,
    ) -> Result<Done<R>, CommandError<A::Rejection>> {
        unimplemented!()
    }
    pub async fn read<R: Send + 'static>(
        &self,
        id: Uuid,
        view: impl FnOnce(&A) -> R + Send + 'static,
    ) -> Result<Done<R>, CommandError<A::Rejection>> {
        unimplemented!()
    }
    pub async fn at_version<R>(
        &self,
        id: Uuid,
        version: u64,
        view: impl FnOnce(&A) -> R,
    ) -> Result<Option<R>, journal::Error> {
        unimplemented!()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reveal {
    Clear,
    Redacted,
}

pub struct JournalReader;
impl JournalReader {
    pub async fn event(&self, id: Uuid) -> Result<Option<Arc<StoredEvent>>, journal::Error> {
        unimplemented!()
    }
    pub async fn event_at(&self, at: Position) -> Result<Option<Arc<StoredEvent>>, journal::Error> {
        unimplemented!()
    }
    pub async fn read_from(
        &self,
        partition: u16,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, journal::Error> {
        unimplemented!()
    }
    pub async fn read_aggregate(
        &self,
        id: Uuid,
        after_version: u64,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, journal::Error> {
        unimplemented!()
    }
    pub async fn by_correlation(
        &self,
        correlation_id: &str,
        limit: usize,
    ) -> Result<Vec<Arc<StoredEvent>>, journal::Error> {
        unimplemented!()
    }
    pub fn heads(&self) -> Vec<Position> {
        unimplemented!()
    }
    pub async fn wait_past(&self, after: Position, timeout: Duration) -> bool {
        unimplemented!()
    }
    pub async fn reveal(
        &self,
        event: &StoredEvent,
        personal: Reveal,
    ) -> Result<serde_json::Value, journal::Error> {
        unimplemented!()
    }
    pub async fn decode<E: EventPayload>(&self, event: &StoredEvent) -> Result<E, DecodeError> {
        unimplemented!()
    }
}

pub struct Control;
impl Control {
    pub async fn get(&self, space: &str, key: &[u8]) -> Result<Option<Vec<u8>>, journal::Error> {
        unimplemented!()
    }
    pub async fn put(&self, writes: Vec<ControlWrite>) -> Result<(), journal::Error> {
        unimplemented!()
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct SubscriptionStatus {
    pub name: String,
    pub context: String,
    pub patterns: Vec<String>,
}

pub struct Subscriptions;
impl Subscriptions {
    pub fn list(&self) -> Vec<SubscriptionStatus> {
        unimplemented!()
    }
    pub fn pause(&self, name: &str) -> bool {
        unimplemented!()
    }
    pub fn resume(&self, name: &str) -> bool {
        unimplemented!()
    }
    pub async fn wait_for(&self, name: &str, at: Position, timeout: Duration) -> bool {
        unimplemented!()
    }
    pub fn position(&self, name: &str, partition: u16) -> Option<u64> {
        unimplemented!()
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct Letter {
    pub subscription: String,
    pub partition: u16,
    pub key: Uuid,
    pub position: u64,
}

pub struct DeadLetters;
impl DeadLetters {
    pub async fn list(
        &self,
        subscription: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Letter>, journal::Error> {
        unimplemented!()
    }
    pub async fn retry(
        &self,
        subscription: &str,
        partition: u16,
        key: Uuid,
    ) -> Result<bool, journal::Error> {
        unimplemented!()
    }
    pub async fn discard(
        &self,
        subscription: &str,
        partition: u16,
        key: Uuid,
        position: u64,
    ) -> Result<bool, journal::Error> {
        unimplemented!()
    }
}

pub struct Faults;
impl Faults {
    pub fn add(&self, fault: serde_json::Value) -> u64 {
        unimplemented!()
    }
    pub fn remove(&self, id: u64) -> bool {
        unimplemented!()
    }
    pub fn list(&self) -> Vec<(u64, serde_json::Value)> {
        unimplemented!()
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Nothing {}
impl Command for Nothing {
    fn name(&self) -> &'static str {
        "Nothing"
    }
}
impl std::fmt::Display for Nothing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("nothing")
    }
}
impl std::error::Error for Nothing {}
impl Rejection for Nothing {
    fn code(&self) -> &'static str {
        "nothing"
    }
}
impl EventPayload for Nothing {
    fn descriptors() -> &'static [EventDescriptor] {
        &[]
    }
    fn descriptor(&self) -> &'static EventDescriptor {
        unimplemented!()
    }
    fn encode(&self) -> String {
        unimplemented!()
    }
    fn decode_current(event_type: &str, data: &str) -> Result<Self, DecodeError> {
        unimplemented!()
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct SagaInstance<S: Saga> {
    pub key: Uuid,
    pub state: S,
    pub history: BTreeMap<u32, String>,
}

impl<S: Saga> Aggregate for SagaInstance<S> {
    const TYPE: &'static str = "saga";
    type Command = Nothing;
    type Event = Nothing;
    type Rejection = Nothing;
    fn decide(&self, command: &Nothing) -> Result<Vec<Nothing>, Nothing> {
        unimplemented!()
    }
    fn apply(&mut self, event: &Nothing) {}
}
