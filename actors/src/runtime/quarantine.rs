//! Aggregates that failed again and again: which there are, how they are told of, and how one is
//! released.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use uuid::Uuid;

use super::{Runtime, WeakRuntime};
use crate::aggregate::{Aggregate as _, NoRejection};
use crate::command::{CommandContext, CommandError};
use crate::custody::{Custody, CustodyCommand, Quarantined, Released};
use crate::journal::{Batch, Crash, Quarantine};
use crate::retry::Backoff;

/// A quarantined aggregate, and what is known of it.
#[derive(Debug, Clone)]
pub struct QuarantineReport {
    /// The record.
    pub record: Quarantine,
    /// What led to it; the last one is the reason.
    pub crashes: Vec<Crash>,
    /// How often it was quarantined, this time included.
    pub times: u64,
}

impl Runtime {
    /// Quarantined aggregates.
    pub fn quarantined(&self) -> Vec<Quarantine> {
        let registries = self.0.partitions.iter().flat_map(|partition| partition.registries.iter());
        registries.flat_map(|registry| registry.quarantined()).collect()
    }

    /// The record of an aggregate, if it is quarantined.
    pub fn quarantine(&self, aggregate_type: &str, id: Uuid) -> Option<Quarantine> {
        self.registry_for(aggregate_type, id)?.quarantine(id)
    }

    /// What is known of an aggregate, if it is quarantined.
    pub async fn quarantine_report(
        &self,
        aggregate_type: &str,
        id: Uuid,
    ) -> Result<Option<QuarantineReport>, CommandError<NoRejection>> {
        let Some(registry) = self.registry_for(aggregate_type, id) else { return Ok(None) };
        let Some(record) = registry.quarantine(id) else { return Ok(None) };
        let stream = Custody::id_of(aggregate_type, id);
        let told = self.aggregate::<Custody>().read(stream, Custody::clone).await?.value;
        // What crashed in this life is known before it is told.
        let named = (record.since, record.error_id);
        let latest = told.latest.filter(|latest| latest.name() == named);
        let (crashes, times) = match latest {
            Some(latest) => (latest.crashes, told.times),
            None => (Quarantined::new(&record, registry.crashes(id)).crashes, told.times + 1),
        };
        Ok(Some(QuarantineReport { record, crashes, times }))
    }

    /// Lets a quarantined aggregate run again: first it is recorded who does so and why. Whether it
    /// was quarantined.
    pub async fn release(
        &self,
        aggregate_type: &str,
        id: Uuid,
        context: CommandContext,
        reason: Option<String>,
    ) -> Result<bool, CommandError<NoRejection>> {
        let Some(registry) = self.registry_for(aggregate_type, id) else { return Ok(false) };
        let Some(record) = registry.quarantine(id) else { return Ok(false) };
        let release = Released {
            aggregate_type: aggregate_type.to_owned(),
            aggregate_id: id,
            since: record.since,
            error_id: record.error_id,
            reason,
            at: self.world().now(),
        };
        let (stream, command) =
            (Custody::id_of(aggregate_type, id), CustodyCommand::Release(release));
        self.aggregate::<Custody>().send(stream, command, context, |_| ()).await?;
        let released = vec![(aggregate_type.into(), id)];
        let writer = &self.partition_for(id).writer;
        writer.store(Batch { released, ..Batch::default() }).await?;
        Ok(registry.release(id))
    }

    /// Tells of the quarantined aggregates of a partition that `told` does not name yet. Whether that
    /// was all.
    async fn tell_quarantines(&self, partition: u16, told: &mut HashSet<Uuid>) -> bool {
        let registries = &self.0.partitions[usize::from(partition)].registries;
        let mut all = Vec::new();
        for registry in registries.iter() {
            let records = registry.quarantined().into_iter();
            all.extend(records.map(|record| (registry.crashes(record.aggregate_id), record)));
        }
        told.retain(|known| all.iter().any(|(_, record)| record.error_id == *known));
        let mut is_done = true;
        for (crashes, record) in all {
            // Nobody tells of the teller.
            let is_own = &*record.aggregate_type == Custody::TYPE;
            if is_own || told.contains(&record.error_id) {
                continue;
            }
            let id = self.world().new_id().to_string();
            let context = CommandContext::inside(&**self.world(), &id, &id);
            let stream = Custody::id_of(&record.aggregate_type, record.aggregate_id);
            let command = CustodyCommand::Quarantine(Quarantined::new(&record, crashes));
            let sent = self.aggregate::<Custody>().send(stream, command, context, |_| ()).await;
            match sent {
                Ok(_) => drop(told.insert(record.error_id)),
                Err(_) => is_done = false,
            }
        }
        is_done
    }
}

/// Tells of every aggregate of a partition that is quarantined, those first that were so at the
/// start: what crashed before it could be told is told then.
pub(crate) async fn tell(runtime: WeakRuntime, partition: u16, changed: Arc<Notify>) {
    let mut told = HashSet::new();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        let is_done = match runtime.upgrade() {
            Some(runtime) => runtime.tell_quarantines(partition, &mut told).await,
            None => return,
        };
        if is_done {
            backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
            changed.notified().await;
        } else {
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }
}
