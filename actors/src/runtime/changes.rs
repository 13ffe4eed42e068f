//! Waiting for the next events of a few aggregates, without looking again at every commit.

use std::sync::Arc;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::event::StoredEvent;

/// Who waits for events of which aggregates of one partition.
#[derive(Debug, Default)]
pub(crate) struct Watchers(DashMap<Uuid, Vec<Arc<Notify>>>);

impl Watchers {
    /// Wakes those who wait for any of these events. Costs nothing while nobody waits.
    pub(crate) fn committed(&self, events: &[Arc<StoredEvent>]) {
        if self.0.is_empty() {
            return;
        }
        for event in events {
            if let Some(waiting) = self.0.get(&event.aggregate_id) {
                waiting.iter().for_each(|one| one.notify_one());
            }
        }
    }

    /// Wakes everybody: what was committed is not known one by one.
    pub(crate) fn moved(&self) {
        for waiting in &self.0 {
            waiting.iter().for_each(|one| one.notify_one());
        }
    }

    fn add(&self, id: Uuid, notify: Arc<Notify>) {
        self.0.entry(id).or_default().push(notify);
    }

    fn remove(&self, id: Uuid, notify: &Arc<Notify>) {
        if let Entry::Occupied(mut waiting) = self.0.entry(id) {
            waiting.get_mut().retain(|one| !Arc::ptr_eq(one, notify));
            if waiting.get().is_empty() {
                waiting.remove();
            }
        }
    }
}

/// New events of a few aggregates, as [`super::JournalReader::changes_of`] watches for them. Ends when
/// it is dropped.
#[derive(Debug)]
pub struct Changes {
    watched: Vec<(Arc<Watchers>, Uuid)>,
    notify: Arc<Notify>,
}

impl Changes {
    pub(crate) fn new(watched: Vec<(Arc<Watchers>, Uuid)>) -> Self {
        let notify = Arc::new(Notify::new());
        for (watchers, id) in &watched {
            watchers.add(*id, notify.clone());
        }
        Self { watched, notify }
    }

    /// Waits until there is an event since the last time this came back, or since this was made. Several
    /// count as one, and it may come back for nothing: look at the aggregates.
    pub async fn next(&mut self) {
        self.notify.notified().await;
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        for (watchers, id) in &self.watched {
            watchers.remove(*id, &self.notify);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::stored_event;

    async fn comes(changes: &mut Changes) -> bool {
        tokio::select! {
            biased;
            () = changes.next() => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn what_happened_before_the_wait_counts_once_and_other_aggregates_do_not() {
        let watchers = Arc::new(Watchers::default());
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let watch =
            |ids: &[Uuid]| Changes::new(ids.iter().map(|id| (watchers.clone(), *id)).collect());
        let event =
            |id| Arc::new(stored_event("order.placed", "order", id, &serde_json::json!({})));
        let (mut both, mut first) = (watch(&[one, two]), watch(&[one]));
        watchers.committed(&[event(two), event(two)]);
        assert!(comes(&mut both).await);
        assert!(!comes(&mut both).await);
        assert!(!comes(&mut first).await);
        watchers.committed(&[event(Uuid::from_u128(3))]);
        assert!(!comes(&mut both).await);
        watchers.moved();
        assert!(comes(&mut both).await && comes(&mut first).await);
        drop((both, first));
        assert!(watchers.0.is_empty());
    }
}
