//! What several partitions have to project at the same time, written together.

use std::sync::Arc;

use souk_actors::event::StoredEvent;
use souk_actors::retry::{Failure, FailureKind};
use souk_actors::together::Together as Desk;

/// What a projection is to take in a partition: events in order, and how far it is with them.
#[derive(Debug, Clone)]
pub(super) struct Page {
    pub partition: u16,
    pub events: Arc<[Arc<StoredEvent>]>,
    pub to: u64,
}

/// What waits to be written.
pub(super) struct Together(Desk<Page, Result<(), Failure>>);

impl Default for Together {
    /// Two that write would wait for each other's rows or for the same log.
    fn default() -> Self {
        Self(Desk::new(1))
    }
}

impl Together {
    /// Has a page written by `write`, by itself or with those of others: they are given in the order
    /// of their partitions, of each there is one at most. A page that others fail with for good is
    /// written again alone. Dropped before it is answered the page may still be written.
    pub async fn hand_in<Writing>(
        &self,
        page: Page,
        write: impl Fn(Vec<Page>) -> Writing,
    ) -> Result<(), Failure>
    where
        Writing: Future<Output = Result<(), Failure>>,
    {
        let write_all = |pages| written(pages, &write);
        loop {
            let said = self.0.hand_in(page.partition, page.clone(), write_all).await;
            // Nothing: whoever wrote it ended in the middle, and the transaction with it.
            if let Some(outcome) = said {
                return outcome;
            }
        }
    }
}

async fn written<Writing>(
    pages: Vec<Page>,
    write: &impl Fn(Vec<Page>) -> Writing,
) -> Vec<Result<(), Failure>>
where
    Writing: Future<Output = Result<(), Failure>>,
{
    let outcome = write(pages.clone()).await;
    match &outcome {
        // Only one of them may be bad.
        Err(failure) if pages.len() > 1 && failure.kind == FailureKind::Permanent => {
            let mut outcomes = Vec::with_capacity(pages.len());
            for page in pages {
                outcomes.push(write(vec![page]).await);
            }
            outcomes
        }
        _ => vec![outcome; pages.len()],
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn pages(count: u16) -> Vec<Page> {
        (0..count).map(|partition| Page { partition, events: Arc::new([]), to: 1 }).collect()
    }

    /// How many pages each attempt had, and what became of each page, when partition 2 fails so.
    async fn attempts(failure: Failure) -> (Vec<usize>, Vec<Result<(), Failure>>) {
        let attempts = Mutex::new(Vec::new());
        let write = |pages: Vec<Page>| {
            attempts.lock().unwrap().push(pages.len());
            let is_bad = pages.iter().any(|page| page.partition == 2);
            std::future::ready(if is_bad { Err(failure.clone()) } else { Ok(()) })
        };
        let outcomes = written(pages(4), &write).await;
        (attempts.into_inner().unwrap(), outcomes)
    }

    #[tokio::test]
    async fn a_page_that_cannot_be_written_fails_alone() {
        let bad = Failure::permanent("bad");
        let (attempts, outcomes) = attempts(bad.clone()).await;
        assert_eq!(attempts, [4, 1, 1, 1, 1]);
        assert_eq!(outcomes, [Ok(()), Ok(()), Err(bad), Ok(())]);
    }

    #[tokio::test]
    async fn a_database_that_is_away_is_asked_once() {
        for failure in [Failure::system("away"), Failure::transient("busy")] {
            let (attempts, outcomes) = attempts(failure.clone()).await;
            assert_eq!(attempts, [4]);
            assert_eq!(outcomes, vec![Err(failure); 4]);
        }
    }
}
