//! What the runtime reads back from disk or is told from outside: anything may stand there, nothing
//! makes it panic, and what it wrote itself comes back the same.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use souk_actors::broker::Pattern;
use souk_actors::event::Position;
use souk_actors::journal::codec::Keyring;
use souk_actors::journal::memory::MemoryStore;
use souk_actors::personal::Personal;
use souk_actors::world::{SystemWorld, Timestamp};
use uuid::Uuid;

/// The member that holds a sealed value's bytes in a stored row.
const BOX: &str = "\"box\":\"";

/// Any JSON, the marks of the codec included.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        ".{0,20}".prop_map(Value::from),
        any::<u128>().prop_map(|id| Value::from(Uuid::from_u128(id).to_string())),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        let name = prop_oneof![
            Just("$personal".to_owned()),
            Just("$sealed".to_owned()),
            Just("subject".to_owned()),
            Just("value".to_owned()),
            Just("box".to_owned()),
            "[a-z~/]{0,5}",
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((name, inner), 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn keyring() -> Keyring {
    Keyring::new(&[7; 32], Arc::new(SystemWorld::new()))
}

/// Seals `json` and returns what a row would hold.
async fn sealed(keys: &Keyring, store: &MemoryStore, record: Uuid, json: &Value) -> String {
    keys.seal(store, record, json.to_string(), &mut Vec::new()).await.unwrap()
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// The same meaning as [`Pattern`]'s, written the obvious way.
fn fits(pattern: &[&str], topic: &[&str]) -> bool {
    match (pattern, topic) {
        ([], topic) => topic.is_empty(),
        (["#", rest @ ..], topic) => (0..=topic.len()).any(|skip| fits(rest, &topic[skip..])),
        ([word, rest @ ..], [first, others @ ..]) => {
            (*word == "*" || word == first) && fits(rest, others)
        }
        (_, []) => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_position_is_read_back(partition: u16, position: u64) {
        let at = Position { partition, position };
        prop_assert_eq!(at.to_string().parse(), Ok(at));
    }

    #[test]
    fn no_text_but_a_position_is_one(text in "[0-9:+ -]{0,12}|.{0,12}") {
        if let Ok(at) = text.parse::<Position>() {
            let canonical = |part: &str| part.trim_start_matches('0').to_owned();
            let (partition, position) = text.split_once(':').unwrap();
            let read = at.to_string();
            let (first, second) = read.split_once(':').unwrap();
            prop_assert_eq!(canonical(partition), canonical(first));
            prop_assert_eq!(canonical(position), canonical(second));
        }
    }

    #[test]
    fn a_time_is_read_back(millis in Timestamp::MIN.millis()..=Timestamp::MAX.millis()) {
        let at = Timestamp::from_millis(millis);
        prop_assert_eq!(Timestamp::parse(&at.to_string()), Some(at));
    }

    #[test]
    fn whatever_is_read_as_a_time_can_be_written(
        text in "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{1,9})?[+-][0-2][0-9]:[0-5][0-9]|.{0,30}",
    ) {
        if let Some(at) = Timestamp::parse(&text) {
            prop_assert_eq!(Timestamp::parse(&at.to_string()), Some(at));
        }
    }

    #[test]
    fn no_time_is_behind_the_last(millis: i64, seconds: u64) {
        let later = Timestamp::from_millis(millis).plus(Duration::from_secs(seconds));
        prop_assert!(later <= Timestamp::MAX);
    }

    #[test]
    fn patterns_mean_what_they_say(
        pattern in prop::collection::vec(prop_oneof!["a|b|c", Just("*".to_owned()), Just("#".to_owned())], 1..6),
        topic in prop::collection::vec("a|b|c", 1..6),
    ) {
        let parsed = Pattern::parse(&pattern.join(".")).unwrap();
        let words: Vec<_> = pattern.iter().map(String::as_str).collect();
        let parts: Vec<_> = topic.iter().map(String::as_str).collect();
        prop_assert_eq!(parsed.matches(&topic.join(".")), fits(&words, &parts));
    }

    #[test]
    fn no_pattern_panics(text in "~?.{0,40}|~(\\(|\\)|a|\\*|\\+|\\{9{1,4}\\}|\\|){0,40}", topic in ".{0,40}") {
        if let Ok(pattern) = Pattern::parse(&text) {
            let _: bool = pattern.matches(&topic);
            prop_assert_eq!(pattern.as_str(), text);
        }
    }

    #[test]
    fn a_personal_value_is_read_back_and_stored_sealed(text in "[a-z]{12,40}", subject: u128, record: u128) {
        let (keys, store) = (keyring(), MemoryStore::new(1));
        let record = Uuid::from_u128(record);
        let personal = Personal::new(Uuid::from_u128(subject), text.clone());
        let clear = json!({ "a": [{ "name": personal }], "b": 1 });
        let (row, opened) = wait(async {
            let row = sealed(&keys, &store, record, &clear).await;
            let opened = keys.open(&store, record, &row).await.unwrap().unwrap();
            (row, opened)
        });
        prop_assert!(!row.contains(&text));
        prop_assert_eq!(serde_json::from_str::<Value>(&opened).unwrap(), clear);
    }

    #[test]
    fn a_sealed_value_cannot_be_changed_or_moved(
        text in ".{0,20}", at: prop::sample::Index, bit in 0..6_u8, record: u128, other: u128,
    ) {
        prop_assume!(record != other);
        let (keys, store) = (keyring(), MemoryStore::new(1));
        let clear = json!({ "name": Personal::new(Uuid::from_u128(1), text) });
        let record = Uuid::from_u128(record);
        wait(async {
            let row = sealed(&keys, &store, record, &clear).await;
            // Of another record, or under another name.
            prop_assert!(keys.open(&store, Uuid::from_u128(other), &row).await.is_err());
            let moved = row.replace("\"name\"", "\"nickname\"");
            prop_assert!(keys.open(&store, record, &moved).await.is_err());
            // One character of the box is another one.
            let start = row.find(BOX).unwrap() + BOX.len();
            let length = row[start..].find('"').unwrap();
            let mut bytes = row.into_bytes();
            let place = start + at.index(length);
            const ALPHABET: &[u8; 64] =
                b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
            let value = ALPHABET.iter().position(|of| *of == bytes[place]).unwrap();
            bytes[place] = ALPHABET[value ^ (1 << bit)];
            let changed = String::from_utf8(bytes).unwrap();
            prop_assert!(keys.open(&store, record, &changed).await.is_err());
            Ok(())
        })?;
    }

    #[test]
    fn anything_can_be_sealed_and_opened_without_a_panic(json in any_json(), record: u128) {
        let (keys, store) = (keyring(), MemoryStore::new(1));
        let record = Uuid::from_u128(record);
        wait(async {
            // As a row that somebody wrote, and as a working form.
            let _: Result<_, _> = keys.open(&store, record, &json.to_string()).await;
            if let Ok(row) = keys.seal(&store, record, json.to_string(), &mut Vec::new()).await {
                let _: Result<_, _> = keys.open(&store, record, &row).await;
            }
        });
    }

    #[test]
    fn no_bytes_are_opened_with_a_panic(text in ".{0,200}|\\{\"\\$sealed\":.{0,60}\\}", record: u128) {
        let (keys, store) = (keyring(), MemoryStore::new(1));
        let _: Result<_, _> = wait(keys.open(&store, Uuid::from_u128(record), &text));
    }
}

#[test]
fn patterns_that_would_cost_too_much_are_refused() {
    for giant in [
        "~(a{1000}){1000}".to_owned(),
        "~\\w{5000}".to_owned(),
        format!("~{}a{}", "(".repeat(200), ")".repeat(200)),
        format!("~{}", "a|".repeat(1_000)),
        "#.".repeat(1_000),
    ] {
        assert!(Pattern::parse(&giant).is_err(), "{giant:.40}");
    }
    // What would run away elsewhere takes its time in proportion here.
    let nested = Pattern::parse("~^(a+)+$").unwrap();
    assert!(!nested.matches(&format!("{}b", "a".repeat(50_000))));
    let many = Pattern::parse(&format!("{}z", "#.".repeat(250))).unwrap();
    assert!(!many.matches(&["a"; 2_000].join(".")));
}

/// The sealed mark is data where nothing is sealed: it must not be taken for a seal that is gone.
#[test]
fn what_only_looks_sealed_is_left_as_it_is() {
    let (keys, store) = (keyring(), MemoryStore::new(1));
    let odd = json!({ "$sealed": { "subject": "nobody", "box": 1 } });
    let opened = wait(keys.open(&store, Uuid::nil(), &odd.to_string())).unwrap().unwrap();
    assert_eq!(serde_json::from_str::<Value>(&opened).unwrap(), odd);
}
