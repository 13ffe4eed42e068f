//! The raw insert rate of a store: ready batches, one after the other, and nothing else. It is what
//! actors and journal are measured by.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::event::StoredEvent;
use crate::journal::writer::BATCH_ROWS_MAX;
use crate::journal::{Batch, Lease, Store, StreamNumber};
use crate::world::{SystemWorld, World};

/// Appends events like some samples to an empty store, in the largest batches that the journal's
/// writer makes.
pub struct RawInserts {
    store: Arc<dyn Store>,
    lease: Lease,
    samples: Vec<Arc<StoredEvent>>,
    next: usize,
    position: u64,
    versions: HashMap<i64, u64>,
    world: SystemWorld,
}

impl RawInserts {
    /// Takes partition 0 of an empty store.
    ///
    /// # Panics
    /// When there are no samples, or the store cannot be taken.
    pub async fn new(store: Arc<dyn Store>, samples: Vec<Arc<StoredEvent>>) -> Self {
        assert!(!samples.is_empty(), "there are no events to go by");
        let lease = store.acquire(0).await.expect("an empty store can be taken");
        Self {
            store,
            lease,
            samples,
            next: 0,
            position: 0,
            versions: HashMap::new(),
            world: SystemWorld::new(),
        }
    }

    /// Appends at most so many events, one batch at most. Returns how many, and how long the store
    /// took for them: appending, and the housekeeping that an append leaves behind.
    ///
    /// # Panics
    /// When the store does not take them.
    pub async fn append(&mut self, events_max: usize) -> (usize, Duration) {
        let batch = self.batch(events_max.min(BATCH_ROWS_MAX));
        let began = Instant::now();
        self.store.append(self.lease, &batch).await.expect("the store takes a batch");
        self.store.maintain().await;
        (batch.events.len(), began.elapsed())
    }

    /// How many events have been appended.
    pub fn events(&self) -> u64 {
        self.position
    }

    fn batch(&mut self, events: usize) -> Batch {
        let mut batch = Batch::default();
        for _ in 0..events {
            let sample = &self.samples[self.next];
            self.next = (self.next + 1) % self.samples.len();
            self.position += 1;
            let version = self.versions.entry(sample.stream).or_default();
            *version += 1;
            if *version == 1 {
                batch.streams.push(StreamNumber {
                    stream: sample.stream,
                    aggregate_type: sample.aggregate_type.clone(),
                    aggregate_id: sample.aggregate_id,
                });
            }
            batch.events.push(Arc::new(StoredEvent {
                partition: 0,
                position: self.position,
                event_id: self.world.new_id(),
                aggregate_version: *version,
                ..StoredEvent::clone(sample)
            }));
        }
        batch
    }
}
