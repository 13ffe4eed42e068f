//! Lists as a whole, for what is told all at once: an export, and what it is made of.

use uuid::Uuid;

use crate::projections::ReadError;

/// Rows that are read at a time.
pub(super) const PAGE: u32 = 200;

/// Where a row stands in its list, the newest first: its time and its id.
pub(super) type Place = (i64, Uuid);

/// Every row of a list, in its order. `page` gives the [`PAGE`] rows before a place, `place` says where a
/// row stands.
pub(super) async fn all<R, F>(
    page: impl Fn(Option<Place>) -> F,
    place: impl Fn(&R) -> Place,
) -> Result<Vec<R>, ReadError>
where
    F: Future<Output = Result<Vec<R>, ReadError>>,
{
    let mut all = Vec::new();
    loop {
        let rows = page(all.last().map(&place)).await?;
        // One that is not full is the last.
        let is_last = u32::try_from(rows.len()).is_ok_and(|read| read < PAGE);
        all.extend(rows);
        if is_last {
            return Ok(all);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks for a list of so many rows; how often it was read.
    async fn asked_for(count: u32) -> usize {
        let place = |row: &u32| (i64::from(*row), Uuid::nil());
        let reads = std::cell::Cell::new(0);
        let page = |before: Option<Place>| {
            reads.set(reads.get() + 1);
            let below = before.map_or(count, |(at, _)| u32::try_from(at).unwrap());
            let rows: Vec<u32> = (0..below).rev().take(PAGE as usize).collect();
            async move { Ok(rows) }
        };
        let rows = all(page, place).await.unwrap();
        assert_eq!(rows, (0..count).rev().collect::<Vec<_>>());
        reads.get()
    }

    #[tokio::test]
    async fn every_row_is_read_once() {
        for (count, reads) in [(0, 1), (1, 1), (PAGE - 1, 1), (PAGE, 2), (3 * PAGE + 7, 4)] {
            assert_eq!(asked_for(count).await, reads, "{count} rows");
        }
    }
}
