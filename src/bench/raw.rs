//! The raw insert rate of a store: ready batches, one after the other, and nothing else. It is what
//! actors and journal are measured by.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;
use souk_actors::event::StoredEvent;
use souk_actors::journal::writer::BATCH_ROWS_MAX;
use souk_actors::journal::{Batch, NewStream, Store};
use souk_actors::world::{SystemWorld, World as _};

/// What came of it.
#[derive(Debug)]
pub struct Raw {
    /// Events a second.
    pub per_second: f64,
    /// Events stored.
    pub events: u64,
    /// How long an append took, in microseconds.
    pub latencies: Histogram<u64>,
}

/// Appends events like `samples` to an empty store for so long, in the largest batches that the
/// journal's writer makes. Only the store's own time counts.
pub async fn inserts(
    store: &dyn Store,
    samples: &[Arc<StoredEvent>],
    time: Duration,
) -> anyhow::Result<Raw> {
    ensure!(!samples.is_empty(), "there are no events to go by");
    let lease = store.acquire(0).await.context("the store cannot be written")?;
    let mut latencies = Histogram::new_with_bounds(1, 60_000_000, 3).context("bounds")?;
    let mut stamps = Stamps::default();
    let mut samples = samples.iter().cycle();
    let (mut used, mut events) = (Duration::ZERO, 0);
    while used < time {
        let batch = stamps.batch(samples.by_ref().take(BATCH_ROWS_MAX));
        let began = Instant::now();
        store.append(lease, &batch).await.context("an append failed")?;
        let append = began.elapsed();
        store.maintain().await;
        used += began.elapsed();
        events += batch.events.len() as u64;
        latencies.saturating_record(u64::try_from(append.as_micros()).unwrap_or(u64::MAX));
    }
    let head = store.head(0).await.context("the head cannot be read")?;
    ensure!(head.position == events, "{events} events went in and {} are there", head.position);
    #[expect(clippy::cast_precision_loss, reason = "counts of some seconds")]
    let per_second = events as f64 / used.as_secs_f64();
    Ok(Raw { per_second, events, latencies })
}

/// What makes an event another one: its position, its id, its version.
#[derive(Default)]
struct Stamps {
    position: u64,
    versions: HashMap<i64, u64>,
    world: SystemWorld,
}

impl Stamps {
    fn batch<'a>(&mut self, samples: impl Iterator<Item = &'a Arc<StoredEvent>>) -> Batch {
        let mut batch = Batch::default();
        for sample in samples {
            self.position += 1;
            let version = self.versions.entry(sample.stream).or_default();
            *version += 1;
            let (aggregate_type, aggregate_id) =
                (sample.aggregate_type.clone(), sample.aggregate_id);
            if *version == 1 {
                let stream = sample.stream;
                batch.streams.push(NewStream { stream, aggregate_type, aggregate_id });
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
