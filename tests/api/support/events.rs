//! The event store and what moves it, as an administrator sees them.

use std::sync::Mutex;

use serde_json::{Value, json};

use super::{Answer, Server, eventually};

/// The types of events, in their order.
pub fn types_of(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["event_type"].as_str().unwrap()).collect()
}

/// What happened in the one event of a type.
#[track_caller]
pub fn data_of<'a>(events: &'a [Value], event_type: &str) -> &'a Value {
    let mut found = events.iter().filter(|event| event["event_type"] == event_type);
    let event = found.next().unwrap_or_else(|| panic!("no {event_type} in {events:#?}"));
    assert!(found.next().is_none(), "several {event_type}");
    &event["data"]
}

impl Server {
    /// Every event that a query selects (`correlationId=…`), all pages of it, in the order of the
    /// log, up to everything that had happened when this was called.
    pub async fn events(&self, query: &str) -> Vec<Value> {
        self.caught_up("events-index").await;
        let admin = self.admin();
        let mut all = Vec::new();
        let mut cursor = String::new();
        loop {
            let path = format!("/api/v1/events?{query}&limit=200{cursor}");
            let page = admin.get(&path).await.expect(200);
            all.extend_from_slice(page.items());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return all,
            }
        }
    }

    /// The events of one request, in the order of the log.
    pub async fn events_of(&self, correlation_id: &str) -> Vec<Value> {
        self.events(&format!("correlationId={correlation_id}")).await
    }

    /// The one event of a name (of any kind) that a request led to, once it is there.
    pub async fn event(&self, name: &str, correlation_id: &str) -> Value {
        let path = format!("/api/v1/events?eventType={name}&correlationId={correlation_id}");
        let admin = self.admin();
        let found = eventually(&format!("{name} of {correlation_id}"), || async {
            let page = admin.get(&path).await.expect(200);
            (!page.items().is_empty()).then(|| page.items().to_vec())
        })
        .await;
        assert_eq!(found.len(), 1, "{name} of {correlation_id}: {found:#?}");
        found[0].clone()
    }

    /// Waits for an event the way a client would.
    pub async fn await_event(&self, name: &str, correlation_id: &str) -> Value {
        self.awaited(&format!("eventType={name}&correlationId={correlation_id}&timeout=20"))
            .await
            .expect(200)
            .json()
            .clone()
    }

    /// A subscription as its operators see it.
    pub async fn subscription(&self, name: &str) -> Value {
        let path = format!("/api/v1/admin/subscriptions/{name}");
        self.admin().get(&path).await.expect(200).json().clone()
    }

    /// The circuit of something outside.
    pub async fn circuit(&self, target: &str) -> Value {
        let all = self.admin().get("/api/v1/admin/circuits").await.expect(200);
        let found = all.items().iter().find(|circuit| circuit["target"] == target);
        found.unwrap_or_else(|| panic!("no circuit of {target}")).clone()
    }

    /// The sum of a metric's series with this label.
    pub async fn metric(&self, name: &str, label: &str) -> f64 {
        let text = self.visitor().get("/metrics").await.expect(200).raw().to_owned();
        let values = text.lines().filter_map(|line| {
            let (labels, value) = line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} ")?;
            labels.split(',').any(|found| found == label).then(|| value.parse::<f64>().unwrap())
        });
        values.sum()
    }

    /// A metric without labels, if it is there.
    pub async fn metric_of(&self, name: &str) -> Option<f64> {
        let text = self.visitor().get("/metrics").await.expect(200).raw().to_owned();
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
        text.lines().find_map(value)
    }

    /// How many events of a type the log has.
    pub async fn events_counted(&self, event_type: &str) -> usize {
        self.events(&format!("eventType={event_type}")).await.len()
    }

    /// Waits until a subscription has handled everything that had happened when this was called.
    pub async fn caught_up(&self, name: &str) {
        let heads = numbers(&self.subscription(name).await, "head");
        eventually(&format!("{name} to catch up"), || async {
            let reached = numbers(&self.subscription(name).await, "position");
            reached.iter().zip(&heads).all(|(reached, head)| reached >= head).then_some(())
        })
        .await;
    }

    /// Waits until nothing more happens of itself: every subscription has handled everything, and
    /// that led to nothing new.
    pub async fn at_rest(&self) {
        let before = Mutex::new(Vec::new());
        eventually("everything to come to rest", || async {
            let all = self.admin().get("/api/v1/admin/subscriptions").await.expect(200);
            let lagging = |of: &Value| numbers(of, "lag_events").iter().any(|lag| *lag > 0);
            let heads = all.items().first().map(|of| numbers(of, "head")).unwrap_or_default();
            let same = std::mem::replace(&mut *before.lock().unwrap(), heads.clone()) == heads;
            (same && !all.items().iter().any(lagging)).then_some(())
        })
        .await;
    }

    /// Pauses or resumes a subscription.
    pub async fn pause(&self, name: &str) {
        self.steer(name, "pause").await;
    }

    pub async fn resume(&self, name: &str) {
        self.steer(name, "resume").await;
    }

    async fn steer(&self, name: &str, verb: &str) {
        let path = format!("/api/v1/admin/subscriptions/{name}/{verb}");
        self.admin().post(&path, &json!({})).await.expect(200);
    }

    /// Injects failures. `more` holds what the fault needs beyond its target and mode.
    pub async fn fault(&self, target: &str, mode: &str, more: Value) -> u64 {
        let mut body = json!({ "target": target, "mode": mode });
        for (name, value) in more.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        let answer = self.admin().post("/api/v1/dev/faults", &body).await.expect(201);
        answer["id"].as_u64().unwrap()
    }

    /// Takes a fault away.
    pub async fn mend(&self, fault: u64) {
        self.admin().delete(&format!("/api/v1/dev/faults/{fault}")).await.expect(204);
    }

    /// Moves the clock forward.
    pub async fn advance_clock(&self, seconds: u64) -> String {
        let body = json!({ "seconds": seconds });
        self.admin().post("/api/v1/dev/clock/advance", &body).await.expect(200).text("now")
    }

    /// The answer of `/events/await`.
    pub async fn awaited(&self, query: &str) -> Answer {
        self.admin().get(&format!("/api/v1/events/await?{query}")).await
    }
}

/// A number of each partition of a subscription.
fn numbers(subscription: &Value, name: &str) -> Vec<u64> {
    let partitions = subscription["partitions"].as_array().unwrap();
    partitions.iter().map(|of| of[name].as_u64().unwrap()).collect()
}

/// Where an event stands in its partition.
pub fn position(event: &Value) -> u64 {
    event["position"].as_u64().unwrap()
}
