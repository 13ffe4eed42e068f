//! What metrics are told of how far projections are.
//!
//! Those who keep the versions of one level, who fill one, and who discard one do so at the same time. A version
//! that was discarded is nowhere from then on, whoever still had it in hands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use souk_actors::subscriber::tell_position;

/// The versions of every projection of a database.
#[derive(Default)]
pub(super) struct Told(Mutex<BTreeMap<&'static str, Versions>>);

#[derive(Default)]
struct Versions {
    /// Those that were level when they were last written.
    level: Vec<u32>,
    /// Since the start; numbers are not given again.
    discarded: BTreeSet<u32>,
}

impl Told {
    fn with(&self, projection: &'static str, tell: impl FnOnce(&mut Versions)) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tell(all.entry(projection).or_default());
    }

    /// These versions of a projection are written together from now on.
    pub(super) fn are_level(&self, projection: &'static str, level: impl Iterator<Item = u32>) {
        self.with(projection, |versions| {
            versions.level.clear();
            versions.level.extend(level);
        });
    }

    /// All that are level have come this far in a partition.
    pub(super) fn level_at(&self, projection: &'static str, partition: u16, position: u64) {
        self.with(projection, |versions| {
            for &version in versions.level.iter().filter(|of| !versions.discarded.contains(of)) {
                tell_position(projection, version, partition, Some(position));
            }
        });
    }

    /// One that is being filled has come this far in a partition.
    pub(super) fn filled_to(
        &self,
        (projection, version): (&'static str, u32),
        partition: u16,
        position: u64,
    ) {
        self.with(projection, |versions| {
            if !versions.discarded.contains(&version) {
                tell_position(projection, version, partition, Some(position));
            }
        });
    }

    /// One is no more.
    pub(super) fn discarded(&self, (projection, version): (&'static str, u32), partitions: u16) {
        self.with(projection, |versions| {
            versions.discarded.insert(version);
            for partition in 0..partitions {
                tell_position(projection, version, partition, None);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn nobody_tells_where_a_version_is_that_was_discarded() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let shown = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            let told = Told::default();
            told.level_at("a-view", 0, 3);
            told.are_level("a-view", [1, 2].into_iter());
            told.level_at("a-view", 0, 7);
            told.filled_to(("a-view", 3), 0, 5);
            told.discarded(("a-view", 1), 2);
            told.discarded(("a-view", 3), 2);
            // Whoever began before tells it after.
            told.level_at("a-view", 0, 8);
            told.level_at("a-view", 1, 9);
            told.filled_to(("a-view", 3), 1, 6);
        });
        let text = shown.render();
        for (version, partition, value) in
            [(1, 0, "NaN"), (1, 1, "NaN"), (2, 0, "8"), (2, 1, "9"), (3, 0, "NaN"), (3, 1, "NaN")]
        {
            let labels = [
                "projection=\"a-view\"".to_owned(),
                format!("version=\"{version}\""),
                format!("partition=\"{partition}\""),
            ];
            let line = text.lines().find(|line| labels.iter().all(|label| line.contains(label)));
            assert!(line.is_some_and(|line| line.ends_with(&format!(" {value}"))), "{line:?}");
        }
    }
}
