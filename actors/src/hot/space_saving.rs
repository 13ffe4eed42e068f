//! The heaviest keys of a stream, in fixed memory: the Space-Saving algorithm (Metwally, Agrawal, El
//! Abbadi, 2005), with weights.
//!
//! So many keys are counted. One that is not among them takes the place of the lightest, and inherits
//! its weight: what it may weigh too much for that is its error. Then, with `n` places:
//!
//! - `weight - error <= the key's true weight <= weight`;
//! - no error is more than the total divided by `n`;
//! - a key that truly weighs more than that is among them.

use std::collections::HashMap;
use std::hash::Hash;

/// A key and what it weighs.
#[derive(Debug, Clone, PartialEq)]
pub struct Counted<K> {
    /// The key.
    pub key: K,
    /// It weighs no more than this.
    pub weight: f64,
    /// It weighs no less than its weight without this.
    pub error: f64,
}

/// The heaviest keys.
#[derive(Debug)]
pub struct SpaceSaving<K> {
    slots: Vec<Counted<K>>,
    /// The slot of each key that is counted.
    slot_of: HashMap<K, usize>,
    /// Slots; none is lighter than the one at half its place.
    heap: Vec<usize>,
    /// Where each slot stands in the heap.
    place_of: Vec<usize>,
    capacity: usize,
    total: f64,
}

impl<K: Clone + Eq + Hash> SpaceSaving<K> {
    /// With room for so many keys; at least one.
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        Self {
            slots: Vec::with_capacity(capacity),
            slot_of: HashMap::with_capacity(capacity),
            heap: Vec::with_capacity(capacity),
            place_of: Vec::with_capacity(capacity),
            capacity,
            total: 0.0,
        }
    }

    /// A key became heavier by a weight that is not negative.
    pub fn add(&mut self, key: &K, weight: f64) {
        self.total += weight;
        if let Some(&slot) = self.slot_of.get(key) {
            self.slots[slot].weight += weight;
            self.sink(self.place_of[slot]);
        } else if self.slots.len() < self.capacity {
            let slot = self.slots.len();
            self.slots.push(Counted { key: key.clone(), weight, error: 0.0 });
            self.slot_of.insert(key.clone(), slot);
            self.heap.push(slot);
            self.place_of.push(slot);
            self.rise(slot);
        } else {
            let slot = self.heap[0];
            let lightest = &mut self.slots[slot];
            self.slot_of.remove(&lightest.key);
            let error = lightest.weight;
            *lightest = Counted { key: key.clone(), weight: error + weight, error };
            self.slot_of.insert(key.clone(), slot);
            self.sink(0);
        }
    }

    /// Everything becomes lighter or heavier by the same positive factor.
    pub fn scale(&mut self, factor: f64) {
        self.total *= factor;
        for counted in &mut self.slots {
            counted.weight *= factor;
            counted.error *= factor;
        }
    }

    /// What all keys weigh together, also those that are not counted by themselves.
    pub fn total(&self) -> f64 {
        self.total
    }

    /// A key, if it is counted.
    pub fn get(&self, key: &K) -> Option<&Counted<K>> {
        self.slot_of.get(key).map(|slot| &self.slots[*slot])
    }

    /// The heaviest keys, the heaviest first.
    pub fn heaviest(&self, limit: usize) -> Vec<Counted<K>> {
        let mut all: Vec<_> = self.slots.iter().collect();
        all.sort_by(|a, b| b.weight.total_cmp(&a.weight));
        all.into_iter().take(limit).cloned().collect()
    }

    fn weight_at(&self, place: usize) -> f64 {
        self.slots[self.heap[place]].weight
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.place_of[self.heap[a]] = a;
        self.place_of[self.heap[b]] = b;
    }

    fn sink(&mut self, mut place: usize) {
        loop {
            let below = [2 * place + 1, 2 * place + 2];
            let below = below.into_iter().filter(|below| *below < self.heap.len());
            let lightest = below.min_by(|a, b| self.weight_at(*a).total_cmp(&self.weight_at(*b)));
            match lightest {
                Some(below) if self.weight_at(below) < self.weight_at(place) => {
                    self.swap(place, below);
                    place = below;
                }
                _ => return,
            }
        }
    }

    fn rise(&mut self, mut place: usize) {
        while place > 0 {
            let above = (place - 1) / 2;
            if self.weight_at(above) <= self.weight_at(place) {
                return;
            }
            self.swap(place, above);
            place = above;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn true_weights(stream: &[(u8, u32)]) -> HashMap<u8, f64> {
        let mut weights = HashMap::new();
        for (key, weight) in stream {
            *weights.entry(*key).or_default() += f64::from(*weight);
        }
        weights
    }

    #[test]
    fn what_fits_is_counted_exactly() {
        let mut summary = SpaceSaving::new(3);
        for (key, weight) in [("a", 1.0), ("b", 5.0), ("c", 2.0), ("a", 3.5)] {
            summary.add(&key, weight);
        }
        let heaviest: Vec<_> =
            summary.heaviest(2).into_iter().map(|of| (of.key, of.weight)).collect();
        assert_eq!(heaviest, [("b", 5.0), ("a", 4.5)]);
        assert!(summary.heaviest(9).iter().all(|of| of.error == 0.0));
        // A newcomer inherits the weight of the lightest.
        summary.add(&"d", 1.0);
        let newcomer = Counted { key: "d", weight: 3.0, error: 2.0 };
        assert_eq!(summary.get(&"d"), Some(&newcomer));
        assert_eq!(summary.get(&"c"), None);
        summary.scale(0.5);
        assert_eq!((summary.total(), summary.heaviest(1)[0].weight), (6.25, 2.5));
    }

    #[test]
    fn room_for_none_is_room_for_one() {
        let mut summary = SpaceSaving::new(0);
        summary.add(&1, 2.0);
        summary.add(&2, 1.0);
        assert_eq!(summary.heaviest(9), [Counted { key: 2, weight: 3.0, error: 2.0 }]);
    }

    proptest! {
        /// The three promises, whatever comes in whatever order: many keys with few places, and small
        /// weights beside large ones.
        #[test]
        fn nothing_heavy_is_missed_and_errors_are_bounded(
            stream in prop::collection::vec((0_u8..40, prop_oneof![0_u32..4, 0_u32..1_000]), 0..600),
            capacity in 1_usize..20,
        ) {
            let mut summary = SpaceSaving::new(capacity);
            for (key, weight) in &stream {
                summary.add(key, f64::from(*weight));
            }
            let weights = true_weights(&stream);
            let total: f64 = weights.values().sum();
            prop_assert_eq!(summary.total(), total);
            let counted = summary.heaviest(usize::MAX);
            prop_assert!(counted.len() <= capacity);
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let bound = total / capacity as f64;
            for of in &counted {
                let weight = weights[&of.key];
                prop_assert!(of.weight - of.error <= weight && weight <= of.weight);
                prop_assert!(of.error <= bound);
            }
            for (key, weight) in &weights {
                prop_assert!(*weight <= bound || summary.get(key).is_some());
            }
            // The heap is one: the next newcomer takes the place of the lightest.
            let lightest = counted.iter().map(|of| of.weight).fold(f64::INFINITY, f64::min);
            if counted.len() == capacity {
                summary.add(&200, 0.0);
                prop_assert_eq!(summary.get(&200).map(|of| of.error), Some(lightest));
            }
        }

        /// What is scaled in between is as if everything before had weighed so much less.
        #[test]
        fn scaling_changes_no_order(
            before in prop::collection::vec((0_u8..20, 1_u32..100), 0..200),
            after in prop::collection::vec((0_u8..20, 1_u32..100), 0..200),
        ) {
            let (mut scaled, mut lighter) = (SpaceSaving::new(8), SpaceSaving::new(8));
            for (key, weight) in &before {
                scaled.add(key, f64::from(*weight));
                lighter.add(key, f64::from(*weight) / 4.0);
            }
            scaled.scale(0.25);
            for (key, weight) in &after {
                scaled.add(key, f64::from(*weight));
                lighter.add(key, f64::from(*weight));
            }
            prop_assert_eq!(scaled.heaviest(8), lighter.heaviest(8));
        }
    }
}
