//! What must hold once everything has come to rest, in ordinary sequential code.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use uuid::Uuid;

use super::actors::aggregate_of;
use super::domain::{Account, Alarm, Charge, Counter, Kind, Transfer};
use super::plan::{Ask, Target};
use super::process::{World, states};
use super::record::Answer;
use crate::aggregate::Aggregate;
use crate::event::{EventPayload, StoredEvent};
use crate::journal::{Store, chain};
use crate::runtime::Runtime;

/// A stored event and its data.
struct Read {
    event: Arc<StoredEvent>,
    data: Value,
}

/// Every event, by partition and position.
async fn journal(world: &World) -> Vec<Read> {
    let mut all = Vec::new();
    for partition in 0..world.plan.partitions {
        let events = world.store.disk.read_from(partition, 0, usize::MAX).await;
        for event in events.unwrap_or_default() {
            let data = serde_json::from_str(&event.data).unwrap_or_default();
            all.push(Read { event, data });
        }
    }
    all
}

/// Checks everything; returns how many events there are.
pub(super) async fn check(world: &World, runtime: Option<&Runtime>) -> u64 {
    for partition in 0..world.plan.partitions {
        let verified = chain::verify(&*world.store.disk, partition, |_| {}).await;
        let damage = verified.map_or(None, |verified| verified.damage);
        world.record.check(damage.is_none(), || format!("journal: it is damaged: {damage:?}"));
    }
    let events = journal(world).await;
    commands(world, &events);
    deliveries(world, &events);
    money(world, &events);
    if let Some(runtime) = runtime {
        live_states(world, runtime, &events).await;
    }
    events.len() as u64
}

/// What was accepted is there once; what was not is not.
fn commands(world: &World, events: &[Read]) {
    let mut by_op: BTreeMap<u32, Vec<&StoredEvent>> = BTreeMap::new();
    for read in events {
        let op = read.data["op"].as_u64().and_then(|op| u32::try_from(op).ok()).unwrap_or(0);
        by_op.entry(op).or_default().push(&read.event);
    }
    let answers: Vec<_> = {
        let inner = world.record.inner();
        let answers =
            |(number, op): (&u32, &super::record::Op)| (*number, op.ask, op.answers.clone());
        inner.ops.iter().map(answers).collect()
    };
    let totals = totals(events);
    for (number, ask, answers) in answers {
        let stored = by_op.get(&number).map_or(&[][..], Vec::as_slice);
        if let Ask::Read { .. } = ask {
            let id = aggregate_of(number, ask);
            for answer in &answers {
                if let Answer::Accepted { version, value, .. } = answer {
                    let total = totals.get(&(id, *version)).copied().unwrap_or(0);
                    world.record.check(*value == total, || {
                        format!("reads: {number} saw {value} at version {version}; it was {total}")
                    });
                }
            }
            continue;
        }
        world.record.check(stored.len() <= 1, || {
            format!("effect: {number} ({ask:?}) is stored {} times: {answers:?}", stored.len())
        });
        for answer in &answers {
            let wrong = contradiction(answer, &answers, stored, &totals);
            world.record.check(wrong.is_none(), || {
                format!("effect: {number} ({ask:?}) was answered {answer:?}, but {wrong:?}")
            });
        }
    }
}

/// What is wrong with an answer, seen from the end.
fn contradiction(
    answer: &Answer,
    answers: &[Answer],
    stored: &[&StoredEvent],
    totals: &BTreeMap<(Uuid, u64), i64>,
) -> Option<String> {
    match (answer, stored.first()) {
        (Answer::Accepted { .. }, None) => Some("it is not in the journal".to_owned()),
        (Answer::Accepted { version, value, events, .. }, Some(event)) => {
            let at = event.aggregate_version;
            let total = totals.get(&(event.aggregate_id, at)).copied();
            if *version != at {
                Some(format!("it stands at version {at}"))
            } else if *events != 1 {
                Some("it led to one event".to_owned())
            } else {
                total.filter(|total| total != value).map(|total| format!("the total was {total}"))
            }
        }
        (Answer::Rejected { .. }, Some(_)) => Some("it is in the journal".to_owned()),
        // Said of the only attempt, "nothing happened" is a promise.
        (Answer::Nothing(_), Some(_)) if answers.len() == 1 => {
            Some("it is in the journal".to_owned())
        }
        _ => None,
    }
}

/// What each counter, and each account, came to at each version.
fn totals(events: &[Read]) -> BTreeMap<(Uuid, u64), i64> {
    let mut now: BTreeMap<Uuid, i64> = BTreeMap::new();
    let mut totals = BTreeMap::new();
    for Read { event, data } in events {
        let by = match &*event.event_type {
            "counter.counted" => data["by"].as_i64().unwrap_or(0),
            "account.moved" => change(data).1,
            _ => continue,
        };
        let total = now.entry(event.aggregate_id).or_default();
        *total += by;
        totals.insert((event.aggregate_id, event.aggregate_version), *total);
    }
    totals
}

/// What a movement did to the sum of all money, and to its account.
fn change(data: &Value) -> (i64, i64) {
    let amount = data["amount"].as_i64().unwrap_or(0);
    let kind: Option<Kind> = serde_json::from_value(data["kind"].clone()).ok();
    match kind {
        Some(Kind::Deposited) => (amount, amount),
        Some(Kind::Withdrawn) => (-amount, -amount),
        Some(Kind::Expired | Kind::Released | Kind::Restored | Kind::Credited) => (0, amount),
        Some(Kind::Held | Kind::Reversed) => (0, -amount),
        _ => (0, 0),
    }
}

/// Every subscriber saw everything of its topics.
fn deliveries(world: &World, events: &[Read]) {
    let inner = world.record.inner();
    let mut missing = Vec::new();
    for Read { event, .. } in events {
        let (id, version) = (event.aggregate_id, event.aggregate_version);
        let audited = ["account", "counter", "alarm"].contains(&&*event.aggregate_type);
        for target in [Target::Audit, Target::View] {
            let seen = inner.seen.get(&(target, id)).is_some_and(|seen| seen.contains(&version));
            let wanted = target == Target::View || audited;
            if wanted && !seen && !inner.dropped.contains(&(target, id, version)) {
                let position = event.position;
                missing.push(format!("delivery: {target:?} never saw position {position}"));
            }
        }
    }
    drop(inner);
    for missing in missing {
        world.record.check(false, || missing);
    }
}

/// Money is neither made nor lost, and every transfer is whole: done everywhere, or nowhere.
fn money(world: &World, events: &[Read]) {
    let (mut came, mut there) = (0, 0);
    let mut transfers: BTreeMap<Uuid, (Vec<Kind>, bool)> = BTreeMap::new();
    for Read { event, data } in events {
        match &*event.event_type {
            "account.moved" => {
                let (sum, own) = change(data);
                came += sum;
                there += own;
                let transfer = data["transfer"].as_str().and_then(|id| id.parse::<Uuid>().ok());
                let kind = serde_json::from_value(data["kind"].clone()).ok();
                if let (Some(transfer), Some(kind)) = (transfer.filter(|id| !id.is_nil()), kind) {
                    transfers.entry(transfer).or_default().0.push(kind);
                }
            }
            "transfer.requested" => {
                transfers.entry(event.aggregate_id).or_default();
            }
            "transfer.completed" => transfers.entry(event.aggregate_id).or_default().1 = true,
            "transfer.failed" => transfers.entry(event.aggregate_id).or_default().1 = false,
            _ => {}
        }
    }
    world.record.check(came == there, || format!("money: {came} came in, {there} is there"));
    for (transfer, (kinds, completed)) in transfers {
        let has = |kind| kinds.contains(&kind);
        let gone = has(Kind::Taken) && !has(Kind::Restored);
        let came = has(Kind::Credited) && !has(Kind::Reversed);
        let held =
            has(Kind::Held) && !(has(Kind::Taken) || has(Kind::Released) || has(Kind::Expired));
        let outside = world.record.inner().outside.get(&transfer).copied().unwrap_or_default();
        let whole = gone == completed && came == completed && outside.charged == completed;
        world.record.check(whole && !held && outside.charges <= 1, || {
            format!("money: transfer {transfer}: completed {completed}, {kinds:?}, {outside:?}")
        });
    }
}

/// What an actor says of itself follows from its events.
async fn live_states(world: &World, runtime: &Runtime, events: &[Read]) {
    let mut histories: BTreeMap<(Arc<str>, Uuid), Vec<&StoredEvent>> = BTreeMap::new();
    for Read { event, .. } in events {
        let key = (event.aggregate_type.clone(), event.aggregate_id);
        histories.entry(key).or_default().push(event);
    }
    let ids: Vec<_> = histories.keys().cloned().collect();
    for (aggregate_type, id, version, state) in states(runtime, &ids).await {
        let history = &histories[&(aggregate_type.clone(), id)];
        let folded = match &*aggregate_type {
            "account" => folded::<Account>(history),
            "transfer" => folded::<Transfer>(history),
            "charge" => folded::<Charge>(history),
            "counter" => folded::<Counter>(history),
            _ => folded::<Alarm>(history),
        };
        let expected = (history.len() as u64, folded);
        world.record.check((version, &state) == (expected.0, &expected.1), || {
            format!("state: {aggregate_type} {id} is {state} at {version}; events say {expected:?}")
        });
    }
}

fn folded<A: Aggregate>(history: &[&StoredEvent]) -> String {
    let mut state = A::default();
    for event in history {
        if let Ok(event) = A::Event::decode(&event.event_type, event.major, &event.data) {
            state.apply(&event);
        }
    }
    serde_json::to_string(&state).unwrap_or_default()
}
