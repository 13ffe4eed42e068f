//! The door to the outside: time, randomness and new ids.
//!
//! Nothing in the runtime or the domain asks the operating system for the time or for a random
//! number. It asks a [`World`], so that the same code runs in production, on a clock that a test
//! moves, and in a seeded simulation where the same seed gives the same run.

use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

/// A point in time: milliseconds since 1970-01-01T00:00:00Z. Written as RFC 3339 in UTC with
/// exactly three fractional digits (`2026-11-20T10:30:00.123Z`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The time `millis` milliseconds after the epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the epoch.
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// The last time that can be written and read back: the end of the year 9999.
    pub const MAX: Self = Self(253_402_300_799_999);
    /// The first: the beginning of the year 0.
    pub const MIN: Self = Self(-62_167_219_200_000);

    /// This time plus `duration`; never behind [`Timestamp::MAX`].
    pub fn plus(self, duration: Duration) -> Self {
        let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(millis)).min(Self::MAX)
    }

    /// How long after `earlier` this is; zero when it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Reads an RFC 3339 time with any offset, from [`Timestamp::MIN`] to [`Timestamp::MAX`]; finer
    /// than a millisecond is cut off.
    pub fn parse(text: &str) -> Option<Self> {
        let parsed = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        let millis = i64::try_from(parsed.unix_timestamp_nanos().div_euclid(1_000_000)).ok()?;
        Some(Self(millis)).filter(|at| (Self::MIN..=Self::MAX).contains(at))
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let (date, time) = (at.date(), at.time());
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            date.year(),
            u8::from(date.month()),
            date.day(),
            time.hour(),
            time.minute(),
            time.second(),
            time.millisecond()
        )
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not an RFC 3339 time"))
    }
}

impl JsonSchema for Timestamp {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Timestamp".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "format": "date-time" })
    }
}

/// Time, randomness and ids. Shared by everything in one process (or one simulated process).
pub trait World: Send + Sync + 'static {
    /// The wall-clock time. It may be set back; nothing orders events by it.
    fn now(&self) -> Timestamp;

    /// Fills `bytes` with random bytes fit for keys and nonces.
    fn fill(&self, bytes: &mut [u8]);

    /// A new time-ordered id (UUIDv7 of [`World::now`], RFC 9562 §5.7).
    fn new_id(&self) -> Uuid {
        let mut random = [0; 10];
        self.fill(&mut random);
        let millis = u64::try_from(self.now().millis()).unwrap_or(0);
        uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
    }

    /// A random number in `[0, 1)`, for jitter.
    fn unit(&self) -> f64 {
        let mut bytes = [0; 4];
        self.fill(&mut bytes);
        f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
    }

    /// Moves this world's clock forward, where it can be moved (development and tests) and not to
    /// or behind [`Timestamp::MAX`]. Returns whether it moved.
    fn advance(&self, _by: Duration) -> bool {
        false
    }
}

/// The real world: the system's clock, plus an offset that only development mode ever sets, and
/// the thread's cryptographic generator.
#[derive(Debug, Default)]
pub struct SystemWorld {
    offset_ms: AtomicI64,
    movable: bool,
}

impl SystemWorld {
    /// A world whose clock is the system's and cannot be moved.
    pub fn new() -> Self {
        Self::default()
    }

    /// A world whose clock [`World::advance`] moves ahead of the system's (development only).
    pub fn movable() -> Self {
        Self { movable: true, ..Self::default() }
    }
}

impl World for SystemWorld {
    #[expect(clippy::disallowed_methods, reason = "this is the one place where time comes in")]
    fn now(&self) -> Timestamp {
        let since_epoch = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |elapsed| i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX));
        Timestamp::from_millis(since_epoch.saturating_add(self.offset_ms.load(Ordering::Relaxed)))
    }

    fn fill(&self, bytes: &mut [u8]) {
        rand::rng().fill_bytes(bytes);
    }

    fn advance(&self, by: Duration) -> bool {
        if !self.movable || self.now().plus(by) == Timestamp::MAX {
            return false;
        }
        let millis = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.offset_ms.fetch_add(millis, Ordering::Relaxed);
        true
    }
}

/// A world that a test owns: the clock stands until it is moved (or follows tokio's paused clock),
/// and randomness comes from a seed.
#[derive(Debug)]
pub struct SeededWorld {
    start_ms: AtomicI64,
    began: tokio::time::Instant,
    random: Mutex<StdRng>,
}

impl SeededWorld {
    /// A world at 2026-01-01T00:00:00Z whose clock follows tokio's (which a test pauses) and whose
    /// randomness follows from `seed`. Call it inside a tokio runtime.
    pub fn new(seed: u64) -> Self {
        Self {
            start_ms: AtomicI64::new(1_767_225_600_000),
            began: tokio::time::Instant::now(),
            random: Mutex::new(StdRng::seed_from_u64(seed)),
        }
    }
}

impl World for SeededWorld {
    fn now(&self) -> Timestamp {
        let elapsed = i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX);
        Timestamp::from_millis(self.start_ms.load(Ordering::Relaxed).saturating_add(elapsed))
    }

    fn fill(&self, bytes: &mut [u8]) {
        self.random.lock().unwrap_or_else(std::sync::PoisonError::into_inner).fill_bytes(bytes);
    }

    fn advance(&self, by: Duration) -> bool {
        let millis = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.start_ms.fetch_add(millis, Ordering::Relaxed);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_with_milliseconds_and_read_back() {
        let at = Timestamp::from_millis(1_795_170_600_123);
        assert_eq!(at.to_string(), "2026-11-20T10:30:00.123Z");
        assert_eq!(Timestamp::parse(&at.to_string()), Some(at));
        assert_eq!(Timestamp::parse("2026-11-20T12:30:00.123+02:00"), Some(at));
        assert_eq!(Timestamp::parse("yesterday"), None);
    }

    #[tokio::test]
    async fn the_same_seed_gives_the_same_ids() {
        let ids = |seed| {
            let world = SeededWorld::new(seed);
            (world.unit().to_bits(), world.unit().to_bits())
        };
        assert_eq!(ids(7), ids(7));
        assert_ne!(ids(7), ids(8));
    }
}
