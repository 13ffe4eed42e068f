//! Which aggregates have events, as far as that is known without asking the journal.
//!
//! Every aggregate begins with a look for its stream, and most of those that begin have none. A Bloom
//! filter (Bloom 1970) of the partition's streams says so of nearly all of them without a round trip.
//! Of an aggregate that has events it never says that it has none: those from before the start are read
//! from the journal, and until all of them are there it says nothing at all; those since then are added
//! before their first event is queued. No other process adds any: it would have the partition.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

use crate::journal::{Error, Store};

/// How many streams the first layer is made for; each one after it is for twice as many.
const FIRST_LAYER: usize = 1 << 13;
/// Bits for each stream, and how many of them it sets: a full layer is wrong about 6 in 10,000.
const BITS_EACH: usize = 16;
const SET_EACH: u64 = 8;
/// Streams read at a time.
const PAGE: usize = 2_000;

/// The streams of one partition.
#[derive(Debug, Default)]
pub(crate) struct KnownStreams {
    layers: Mutex<Vec<Layer>>,
    /// Whether those from before the start are in it.
    whole: AtomicBool,
}

/// A filter that grows by another one when it is full (Almeida et al., Scalable Bloom Filters, 2007).
#[derive(Debug)]
struct Layer {
    words: Vec<u64>,
    left: usize,
}

impl Layer {
    fn new(streams: usize) -> Self {
        Self { words: vec![0; streams * BITS_EACH / 64], left: streams }
    }

    /// Where the bits of a stream are: two halves of a hash stand for as many as are wanted (Kirsch and
    /// Mitzenmacher 2006).
    fn places(&self, hash: u128) -> impl Iterator<Item = (usize, u64)> + use<> {
        #[expect(clippy::cast_possible_truncation, reason = "the halves")]
        let (first, step) = (hash as u64, (hash >> 64) as u64 | 1);
        // A power of two.
        let mask = (self.words.len() * 64) as u64 - 1;
        (0..SET_EACH).map(move |nth| {
            let bit = first.wrapping_add(nth.wrapping_mul(step)) & mask;
            (usize::try_from(bit / 64).unwrap_or(0), 1 << (bit % 64))
        })
    }

    fn has(&self, hash: u128) -> bool {
        self.places(hash).all(|(word, bit)| self.words[word] & bit != 0)
    }

    fn add(&mut self, hash: u128) {
        self.places(hash).for_each(|(word, bit)| self.words[word] |= bit);
        self.left = self.left.saturating_sub(1);
    }
}

fn hash(aggregate_type: &str, id: Uuid) -> u128 {
    // An id is of one type nearly always, and who has two is asked for.
    let seed = xxhash_rust::xxh3::xxh3_64(aggregate_type.as_bytes());
    xxhash_rust::xxh3::xxh3_128_with_seed(id.as_bytes(), seed)
}

impl KnownStreams {
    /// Whether it is sure that this aggregate has no events.
    pub(crate) fn has_none(&self, aggregate_type: &str, id: Uuid) -> bool {
        // Looked at first: what is added after that was not queued yet when this was called.
        self.whole.load(Ordering::Acquire) && !self.has(hash(aggregate_type, id))
    }

    fn has(&self, hash: u128) -> bool {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.iter().rev().any(|layer| layer.has(hash))
    }

    /// This aggregate is about to have some.
    pub(crate) fn add(&self, aggregate_type: &str, id: Uuid) {
        let hash = hash(aggregate_type, id);
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        if layers.last().is_none_or(|layer| layer.left == 0) {
            let layer = Layer::new(FIRST_LAYER << layers.len());
            layers.push(layer);
        }
        if let Some(layer) = layers.last_mut() {
            layer.add(hash);
        }
    }

    /// All from before the start are in it: from here on it says what it knows.
    pub(crate) fn set_whole(&self) {
        self.whole.store(true, Ordering::Release);
    }

    /// Reads those of a partition that were there before the start.
    pub(crate) async fn read(&self, store: &dyn Store, partition: u16) -> Result<(), Error> {
        let mut after = 0;
        loop {
            let page = store.streams(partition, after, PAGE).await?;
            for stream in &page {
                self.add(&stream.aggregate_type, stream.aggregate_id);
                after = stream.stream;
            }
            if page.len() < PAGE {
                break;
            }
            // Others have their turn on a long journal.
            tokio::task::yield_now().await;
        }
        self.set_whole();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> Uuid {
        Uuid::from_u128(u128::from(number) << 64 | 0x8000_0000_0000_0000)
    }

    #[test]
    fn nothing_is_said_before_all_of_them_are_there() {
        let known = KnownStreams::default();
        assert!(!known.has_none("order", id(1)));
        known.set_whole();
        assert!(known.has_none("order", id(1)));
        known.add("order", id(1));
        assert!(!known.has_none("order", id(1)));
        assert!(known.has_none("listing", id(1)), "of another type");
    }

    #[test]
    fn what_has_events_is_never_denied_and_what_has_none_seldom_asked_for() {
        let known = KnownStreams::default();
        known.set_whole();
        let count = 5 * FIRST_LAYER as u64;
        (0..count).for_each(|number| known.add("order", id(number)));
        assert!((0..count).all(|number| !known.has_none("order", id(number))));
        let others = count..2 * count;
        let asked = others.filter(|number| !known.has_none("order", id(*number))).count() as f64;
        assert!(asked / (count as f64) < 0.002, "{asked} of {count}");
        assert_eq!(known.layers.lock().unwrap().len(), 3);
    }

    /// Ids that follow from others and from times are not even: their bits have to be all the same.
    #[test]
    fn ids_in_turn_set_bits_all_over() {
        let mut layer = Layer::new(FIRST_LAYER);
        (0..FIRST_LAYER as u64).for_each(|number| layer.add(hash("order", id(number))));
        let set: u32 = layer.words.iter().map(|word| word.count_ones()).sum();
        let share = f64::from(set) / (layer.words.len() * 64) as f64;
        // 1 - e^(-8/16)
        assert!((share - 0.393).abs() < 0.01, "{share}");
    }
}
