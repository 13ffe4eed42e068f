//! How far each projection is. The stored checkpoint goes with the rows; what lies between it and
//! the newest event that concerned the projection is only remembered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::db::{Query, ReadDb, ReadError};

/// Shared by the projections, which move them, and the readers, who are told. A plain lock: it is
/// held for one look-up and never across a wait.
#[derive(Clone, Default)]
pub struct Positions(Arc<Mutex<HashMap<(&'static str, u16), Position>>>);

#[derive(Clone, Copy)]
struct Position {
    stored: u64,
    passed: u64,
}

impl Positions {
    fn with<R>(
        &self,
        use_them: impl FnOnce(&mut HashMap<(&'static str, u16), Position>) -> R,
    ) -> R {
        use_them(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The stored checkpoint, if it is known by now.
    pub fn stored(&self, name: &'static str, partition: u16) -> Option<u64> {
        self.with(|known| known.get(&(name, partition)).map(|position| position.stored))
    }

    /// The checkpoint has been committed.
    pub fn store(&self, name: &'static str, partition: u16, to: u64) {
        self.with(|known| known.insert((name, partition), Position { stored: to, passed: to }));
    }

    /// Nothing up to here concerned the projection.
    pub fn pass(&self, name: &'static str, partition: u16, to: u64) {
        self.with(|known| {
            if let Some(position) = known.get_mut(&(name, partition)) {
                position.passed = position.passed.max(to);
            }
        });
    }

    /// How far the projection is.
    pub async fn get(
        &self,
        db: &ReadDb,
        name: &'static str,
        partition: u16,
    ) -> Result<u64, ReadError> {
        let known = self.with(|known| known.get(&(name, partition)).copied());
        if let Some(position) = known {
            return Ok(position.passed);
        }
        let query = Query::new("SELECT position FROM projection_checkpoints WHERE projection = ")
            .value(name)
            .then(" AND partition = ")
            .value(partition);
        let stored = db.fetch_as(query, |row| row.count(0)).await?.first().copied().unwrap_or(0);
        self.with(|known| {
            let fresh = Position { stored, passed: stored };
            Ok(known.entry((name, partition)).or_insert(fresh).passed)
        })
    }
}
