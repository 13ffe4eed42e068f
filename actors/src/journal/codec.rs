//! Sealing personal data on its way into the journal, and opening it on its way out.
//!
//! Every person has a random key of their own. A personal field is stored as
//! `{"$sealed": {"subject": "<uuid>", "box": "<base64>"}}`, where the box is a 24-byte nonce and
//! the XChaCha20-Poly1305 sealing of the field's JSON text, bound to the format, the subject, the
//! record it is in and its place (a JSON pointer). The person's key is itself sealed under the
//! master key and stored in the transaction of the first event that uses it. Destroying it erases
//! the person everywhere; no stored event changes.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use dashmap::DashMap;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::event::StoredEvent;
use crate::journal::{Error, PersonKey, Store};
use crate::personal::{CLEAR_MARK, SEALED_MARK};
use crate::world::World;

/// How many persons' keys are kept in memory: about 10 MB.
const KEYS_MAX: usize = 100_000;
/// How many destroyed keys are remembered in the order of their end, for states that are in memory.
const DESTROYED_MAX: usize = 1_024;

/// Stored in every sealed box's associated data; never change.
const FORMAT: &str = "souk.sealed.v1";

type Key = Zeroizing<[u8; 32]>;

/// How personal fields are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reveal {
    /// Their values; `"[erased]"` where the key is gone.
    Clear,
    /// `"[redacted]"`.
    Redacted,
}

#[derive(Clone)]
enum Held {
    /// In the journal.
    Stored(Arc<Key>),
    /// Made by this process, and stored with the first append that uses it.
    Pending(Arc<Key>, PersonKey),
    /// Destroyed.
    Gone,
}

/// The keys of persons, and the master key that wraps them.
pub struct Keyring {
    master: XChaCha20Poly1305,
    held: DashMap<Uuid, Held>,
    making: tokio::sync::Mutex<()>,
    world: Arc<dyn World>,
    destroyed: Destroyed,
}

/// Whose keys were destroyed in this life, the latest of them by name.
#[derive(Default)]
struct Destroyed {
    count: AtomicU64,
    latest: Mutex<VecDeque<Uuid>>,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring").finish_non_exhaustive()
    }
}

impl Keyring {
    /// A keyring under this master key.
    pub fn new(master: &[u8; 32], world: Arc<dyn World>) -> Self {
        Self {
            master: XChaCha20Poly1305::new(master.into()),
            held: DashMap::new(),
            making: tokio::sync::Mutex::new(()),
            world,
            destroyed: Destroyed::default(),
        }
    }

    /// Seals every personal field of `json` for a record (an event's id, or one that stands for a
    /// snapshot). Keys that are not stored yet are added to `new_keys`: they must be appended in
    /// the same transaction. Text without personal fields is returned as it is.
    pub async fn seal(
        &self,
        store: &dyn Store,
        record: Uuid,
        json: String,
        new_keys: &mut Vec<PersonKey>,
    ) -> Result<String, Error> {
        if !json.contains(CLEAR_MARK) {
            return Ok(json);
        }
        let mut value: Value = serde_json::from_str(&json)
            .map_err(|_| Error::Damaged("a record to seal is not JSON".into()))?;
        let mut subjects = Vec::new();
        find_subjects(&value, CLEAR_MARK, &mut subjects);
        let mut keys = Vec::new();
        for subject in subjects {
            let held = self.hold(store, subject, true).await?;
            if let Some(Held::Pending(_, row)) = &held
                && !new_keys.contains(row)
            {
                new_keys.push(row.clone());
            }
            keys.push((subject, held));
        }
        let nonce = || {
            let mut nonce = [0; 24];
            self.world.fill(&mut nonce);
            nonce
        };
        seal_fields(&mut value, record, &mut String::new(), &keys, &nonce);
        Ok(value.to_string())
    }

    /// Opens every sealed field of `json` into the working form that [`crate::personal::Personal`]
    /// reads.
    pub async fn open(
        &self,
        store: &dyn Store,
        record: Uuid,
        json: &str,
    ) -> Result<Option<String>, Error> {
        if !json.contains(SEALED_MARK) {
            return Ok(None);
        }
        let value = self.opened(store, record, json, &|subject, value| {
            let mut marked = json!({ "subject": subject });
            if let Some(value) = value {
                marked["value"] = value;
            }
            json!({ CLEAR_MARK: marked })
        });
        Ok(Some(value.await?.to_string()))
    }

    /// An event's data for people to read.
    pub async fn reveal(
        &self,
        store: &dyn Store,
        event: &StoredEvent,
        reveal: Reveal,
    ) -> Result<Value, Error> {
        let shown = |_, value| shown(reveal, value);
        self.opened(store, event.event_id, &event.data, &shown).await
    }

    async fn opened(
        &self,
        store: &dyn Store,
        record: Uuid,
        json: &str,
        shown: &(dyn Fn(Uuid, Option<Value>) -> Value + Send + Sync),
    ) -> Result<Value, Error> {
        let mut value: Value = serde_json::from_str(json)
            .map_err(|_| Error::Damaged(format!("the data of {record} is not JSON")))?;
        let mut subjects = Vec::new();
        if json.contains(SEALED_MARK) {
            find_subjects(&value, SEALED_MARK, &mut subjects);
        }
        let mut keys = Vec::new();
        for subject in subjects {
            let held = self.hold(store, subject, false).await?;
            if held.is_none() {
                return Err(Error::Damaged(format!(
                    "the key that {record} is sealed with is gone"
                )));
            }
            keys.push((subject, held));
        }
        open_fields(&mut value, record, &mut String::new(), &keys, shown)?;
        Ok(value)
    }

    /// These keys have been committed.
    pub fn stored(&self, keys: &[PersonKey]) {
        for row in keys {
            if let Some(mut held) = self.held.get_mut(&row.subject)
                && let Held::Pending(key, _) = &*held
            {
                *held = Held::Stored(key.clone());
            }
        }
    }

    /// This person's key has been destroyed in the journal: forget it.
    pub fn destroyed(&self, subject: Uuid) {
        self.held.insert(subject, Held::Gone);
        let mut latest = self.destroyed.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.push_back(subject);
        if latest.len() > DESTROYED_MAX {
            latest.pop_front();
        }
        self.destroyed.count.fetch_add(1, Ordering::Release);
    }

    /// How many keys have been destroyed in this life.
    pub(crate) fn destroyed_count(&self) -> u64 {
        self.destroyed.count.load(Ordering::Acquire)
    }

    /// Whose keys have been destroyed behind the first `seen`, with how many there are now; none when
    /// that is longer ago than is remembered.
    pub(crate) fn destroyed_since(&self, seen: u64) -> Option<(u64, Vec<Uuid>)> {
        let latest = self.destroyed.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let count = self.destroyed_count();
        let new = usize::try_from(count.saturating_sub(seen)).unwrap_or(usize::MAX);
        let known = latest.len().checked_sub(new)?;
        Some((count, latest.range(known..).copied().collect()))
    }

    async fn hold(
        &self,
        store: &dyn Store,
        subject: Uuid,
        make: bool,
    ) -> Result<Option<Held>, Error> {
        if let Some(held) = self.held.get(&subject) {
            return Ok(Some(held.clone()));
        }
        let _one_maker = self.making.lock().await;
        if let Some(held) = self.held.get(&subject) {
            return Ok(Some(held.clone()));
        }
        if self.held.len() >= KEYS_MAX {
            self.held.retain(|_, held| matches!(held, Held::Pending(..)));
        }
        let held = match store.person_key(subject).await? {
            Some(row) if row.wrapped.is_empty() => Held::Gone,
            Some(row) => Held::Stored(Arc::new(self.unwrap_key(&row)?)),
            None if make => self.make_key(subject),
            None => return Ok(None),
        };
        // It may have been destroyed since it was read.
        Ok(Some(self.held.entry(subject).or_insert(held).clone()))
    }

    fn make_key(&self, subject: Uuid) -> Held {
        let mut key = Zeroizing::new([0; 32]);
        self.world.fill(&mut *key);
        let mut wrapped = vec![0; 24];
        self.world.fill(&mut wrapped);
        let nonce: [u8; 24] = wrapped[..].try_into().expect("24 bytes");
        let aad = format!("souk.key.v1|{subject}");
        let sealed = self
            .master
            .encrypt(&nonce.into(), Payload { msg: &key[..], aad: aad.as_bytes() })
            .expect("sealing 32 bytes in memory cannot fail");
        wrapped.extend_from_slice(&sealed);
        Held::Pending(Arc::new(key), PersonKey { subject, wrapped })
    }

    fn unwrap_key(&self, row: &PersonKey) -> Result<Key, Error> {
        let wrong = || {
            Error::Mismatch(format!(
                "the key of person {} cannot be opened: MASTER_KEY is not the one that the journal was written with",
                row.subject
            ))
        };
        let (nonce, sealed) = row.wrapped.split_at_checked(24).ok_or_else(wrong)?;
        let nonce: [u8; 24] = nonce.try_into().map_err(|_| wrong())?;
        let aad = format!("souk.key.v1|{}", row.subject);
        let opened = self
            .master
            .decrypt(&nonce.into(), Payload { msg: sealed, aad: aad.as_bytes() })
            .map_err(|_| wrong())?;
        let key: [u8; 32] = opened.try_into().map_err(|_| wrong())?;
        Ok(Zeroizing::new(key))
    }
}

fn marked<'a>(value: &'a Value, mark: &str) -> Option<(Uuid, &'a Value)> {
    let object = value.as_object().filter(|object| object.len() == 1)?;
    let inner = object.get(mark)?;
    let subject = inner.get("subject")?.as_str()?.parse().ok()?;
    Some((subject, inner))
}

fn find_subjects(value: &Value, mark: &str, found: &mut Vec<Uuid>) {
    if let Some((subject, _)) = marked(value, mark) {
        if !found.contains(&subject) {
            found.push(subject);
        }
        return;
    }
    match value {
        Value::Object(members) => members.values().for_each(|v| find_subjects(v, mark, found)),
        Value::Array(items) => items.iter().for_each(|v| find_subjects(v, mark, found)),
        _ => {}
    }
}

/// Calls `change` for every member and item with its JSON pointer (unescaped: the codec's own).
fn children(value: &mut Value, path: &mut String, change: &mut dyn FnMut(&mut Value, &mut String)) {
    let depth = path.len();
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                path.push('/');
                path.push_str(name);
                change(member, path);
                path.truncate(depth);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                path.push('/');
                path.push_str(&index.to_string());
                change(item, path);
                path.truncate(depth);
            }
        }
        _ => {}
    }
}

fn associated(record: Uuid, subject: Uuid, path: &str) -> String {
    format!("{FORMAT}|{subject}|{record}|{path}")
}

type Keys = [(Uuid, Option<Held>)];

/// Replaces every personal field of a working form by what people may read of it.
pub(crate) fn show(value: &mut Value, reveal: Reveal) {
    match marked(value, CLEAR_MARK) {
        Some((_, inner)) => *value = shown(reveal, inner.get("value").cloned()),
        None => children(value, &mut String::new(), &mut |child, _| show(child, reveal)),
    }
}

/// A state without what belongs to these people; none: it has nothing of theirs.
pub(crate) fn without<A: Serialize + DeserializeOwned>(
    state: &A,
    people: &[Uuid],
) -> Result<Option<A>, serde_json::Error> {
    let text = Zeroizing::new(serde_json::to_string(state)?);
    let concerns = |person: &Uuid| text.contains(&person.to_string());
    if !text.contains(CLEAR_MARK) || !people.iter().any(concerns) {
        return Ok(None);
    }
    let mut value = serde_json::from_str(&text)?;
    erase(&mut value, people);
    serde_json::from_value(value).map(Some)
}

/// Takes these people's values out of a working form.
fn erase(value: &mut Value, people: &[Uuid]) {
    match marked(value, CLEAR_MARK) {
        Some((subject, _)) if people.contains(&subject) => {
            *value = json!({ CLEAR_MARK: { "subject": subject } });
        }
        Some(_) => {}
        None => children(value, &mut String::new(), &mut |child, _| erase(child, people)),
    }
}

/// What people read of a personal value; none: it is erased.
fn shown(reveal: Reveal, value: Option<Value>) -> Value {
    match (reveal, value) {
        (Reveal::Redacted, _) => json!("[redacted]"),
        (Reveal::Clear, Some(value)) => value,
        (Reveal::Clear, None) => json!("[erased]"),
    }
}

fn key_of(keys: &Keys, subject: Uuid) -> Option<Arc<Key>> {
    match keys.iter().find(|(known, _)| *known == subject)?.1.as_ref()? {
        Held::Stored(key) | Held::Pending(key, _) => Some(key.clone()),
        Held::Gone => None,
    }
}

fn seal_fields(
    value: &mut Value,
    record: Uuid,
    path: &mut String,
    keys: &Keys,
    nonce: &dyn Fn() -> [u8; 24],
) {
    let Some((subject, inner)) = marked(value, CLEAR_MARK) else {
        children(value, path, &mut |child, path| seal_fields(child, record, path, keys, nonce));
        return;
    };
    let sealed = inner.get("value").zip(key_of(keys, subject)).map(|(clear, key)| {
        let nonce = nonce();
        let aad = associated(record, subject, path);
        let text = Zeroizing::new(clear.to_string());
        let sealed = XChaCha20Poly1305::new((&**key).into())
            .encrypt(
                XNonce::from_slice(&nonce),
                Payload { msg: text.as_bytes(), aad: aad.as_bytes() },
            )
            .expect("sealing in memory cannot fail");
        STANDARD_NO_PAD.encode([&nonce[..], &sealed].concat())
    });
    *value = json!({ SEALED_MARK: { "subject": subject, "box": sealed } });
}

fn open_fields(
    value: &mut Value,
    record: Uuid,
    path: &mut String,
    keys: &Keys,
    shown: &dyn Fn(Uuid, Option<Value>) -> Value,
) -> Result<(), Error> {
    let Some((subject, inner)) = marked(value, SEALED_MARK) else {
        let mut result = Ok(());
        children(value, path, &mut |child, path| {
            if result.is_ok() {
                result = open_fields(child, record, path, keys, shown);
            }
        });
        return result;
    };
    let damaged = || Error::Damaged(format!("a personal field of {record} cannot be opened"));
    let clear = match (inner.get("box").and_then(Value::as_str), key_of(keys, subject)) {
        (Some(sealed), Some(key)) => {
            let sealed = STANDARD_NO_PAD.decode(sealed).map_err(|_| damaged())?;
            let (nonce, sealed) = sealed.split_at_checked(24).ok_or_else(damaged)?;
            let aad = associated(record, subject, path);
            let opened = XChaCha20Poly1305::new((&**key).into())
                .decrypt(XNonce::from_slice(nonce), Payload { msg: sealed, aad: aad.as_bytes() })
                .map_err(|_| damaged())?;
            Some(serde_json::from_slice(&opened).map_err(|_| damaged())?)
        }
        _ => None,
    };
    *value = shown(subject, clear);
    Ok(())
}
