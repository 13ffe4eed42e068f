//! Compares what subscriptions have left behind with the journal: nothing is missing, nothing is
//! doubled, nothing is out of order.
//!
//! | evidence | compared with |
//! | --- | --- |
//! | the journal itself | positions and each aggregate's versions are gapless and in one order; what can happen once to an aggregate has |
//! | `events-index` | it has every event of the journal once, and none besides |
//! | each view's row | the row folded anew from the aggregate's events; and no row without an aggregate |
//! | handlers that leave an event | the event that must follow from theirs: the notification, the mail's outcome, the saga, the claim, the payment's outcome, the delivery |
//! | `webhook-fanout` | each event that an endpoint wants is owed, sent or given up; what is owed has a timer |
//!
//! What is not handled yet is pending and not missing; what has a dead letter, or was given up by an
//! operator, is excused. The audit reads, and changes nothing. It works in pages: a call looks at so
//! many events and says where the next goes on.

pub mod watch;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use souk_actors::broker::Pattern;
use souk_actors::event::{Position, StoredEvent};
use souk_actors::journal;
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::saga::SagaInstance;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::domain::order_saga::OrderSaga;
use crate::domain::webhook_delivery::{WebhookDelivery, lane_of};
use crate::domain::webhook_endpoint::{EndpointDetails, WebhookEndpoint};
use crate::projections::audit::Evidence;
use crate::projections::db::ReadError;
use crate::projections::{EVENTS_INDEX, EventFilter, ReadModels};
use crate::subscribers::{
    command_failed, email_claims, mail_sender, notifications, order_progress, payment_gateway,
    seller_ratings, sms_sender, webhooks,
};

/// Events read at a time.
const PAGE: usize = 256;
/// Findings that a report spells out.
const FINDINGS_MAX: usize = 100;
/// How long the audit waits for read models to catch up with what had happened when it began.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(10);
/// How often a row that differs is looked at again, since its aggregate may be changing.
const LOOKS_MAX: u32 = 5;
/// How long after a change to a webhook endpoint events may still be treated as before it.
const ENDPOINT_SETTLED: Duration = Duration::from_secs(10);
/// Names the journal in reports.
const JOURNAL: &str = "journal";
/// The subscription that makes sagas.
const SAGA_FACTS: &str = "order_saga-facts";

/// What an aggregate can have at most one of.
const ONCE: &[&str] = &[
    "announcement.completed",
    "announcement.started",
    "email_claim.claimed",
    "escrow.created",
    "escrow.funded",
    "escrow.released",
    "listing.created",
    "notification.admin.sent",
    "notification.email.sent",
    "notification.requested",
    "notification.sms.sent",
    "notification.user.sent",
    "order.completed",
    "order.confirmed",
    "order.delivered",
    "order.paid",
    "order.placed",
    "order.reviewed",
    "order.shipped",
    "payment.captured",
    "payment.initiated",
    "review.created",
    "review.replied",
    "saga.completed",
    "saga.failed",
    "saga.started",
    "shipment.created",
    "user.registered",
];
/// What becomes of a mail that is asked for.
const EMAIL_OUTCOMES: &[&str] = &[
    "notification.email.sent",
    "notification.email.failed",
    "notification.email.outcome_unknown",
    "notification.muted",
];
/// What becomes of a text message that is asked for.
const SMS_OUTCOMES: &[&str] = &[
    "notification.sms.sent",
    "notification.sms.failed",
    "notification.sms.outcome_unknown",
    "notification.muted",
];
/// What an aggregate can have at most one of for each of these.
const ONCE_PER: &[(&str, &str)] = &[
    ("inventory.allocated", "order_id"),
    ("inventory.reserved", "order_id"),
    ("inventory.returned", "return_id"),
    ("order.returned", "return_id"),
    ("payment.refund_requested", "refund_id"),
    ("payment.refunded", "refund_id"),
];

/// What an audit stumbled over: neither the journal nor the read models can be blamed for what they
/// cannot say.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The journal could not be read.
    #[error("the journal cannot be read")]
    Journal(#[from] journal::Error),
    /// The read models could not be read.
    #[error("the read models cannot be read")]
    Reads(#[from] ReadError),
    /// A subscription's own look at the event failed.
    #[error("{0}")]
    Look(#[from] Failure),
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Problem {
    /// An event has had no effect, or its effect is gone.
    Missing,
    /// An effect is there twice, or without an event.
    DuplicateEffect,
    /// Something came before what it follows.
    OutOfOrder,
}

/// What was compared of one subscription, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct SubscriptionAudit {
    /// The subscription, or `journal`.
    pub subscription: String,
    /// Events, or rows, whose effect was looked for.
    pub checked: u64,
    /// Without effect.
    pub missing: u64,
    /// With more than one.
    pub duplicate_effects: u64,
    /// In the wrong order.
    pub out_of_order: u64,
    /// Not handled yet.
    pub pending: u64,
    /// With a dead letter, or given up by an operator.
    pub excused: u64,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Finding {
    /// The subscription, or `journal`.
    pub subscription: String,
    /// What is wrong with it.
    pub problem: Problem,
    /// The aggregate.
    pub aggregate_id: Option<Uuid>,
    /// The event.
    pub event_id: Option<Uuid>,
    /// In words.
    pub detail: String,
}

/// What an audit found in the part of the journal that it looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Report {
    /// Events without effect, over all subscriptions.
    pub missing: u64,
    /// Effects that are there twice or without an event.
    pub duplicate_effects: u64,
    /// Events and effects in the wrong order.
    pub out_of_order: u64,
    /// Events looked at.
    pub events: u64,
    /// Aggregates whose rows were made anew.
    pub aggregates: u64,
    /// Rows of read models whose aggregates were looked for.
    pub rows: u64,
    /// By subscription.
    pub subscriptions: Vec<SubscriptionAudit>,
    /// What is wrong, the first hundred.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing is missing, doubled or out of order.
    pub fn is_healthy(&self) -> bool {
        (self.missing, self.duplicate_effects, self.out_of_order) == (0, 0, 0)
    }

    /// Adds what was found in another part.
    fn add(&mut self, part: Self) {
        self.missing += part.missing;
        self.duplicate_effects += part.duplicate_effects;
        self.out_of_order += part.out_of_order;
        self.events += part.events;
        self.aggregates += part.aggregates;
        self.rows += part.rows;
        for of in part.subscriptions {
            let mine = self.subscriptions.iter_mut();
            match mine.into_iter().find(|mine| mine.subscription == of.subscription) {
                Some(mine) => mine.add(&of),
                None => self.subscriptions.push(of),
            }
        }
        let room = FINDINGS_MAX.saturating_sub(self.findings.len());
        self.findings.extend(part.findings.into_iter().take(room));
    }
}

impl SubscriptionAudit {
    fn add(&mut self, part: &Self) {
        self.checked += part.checked;
        self.missing += part.missing;
        self.duplicate_effects += part.duplicate_effects;
        self.out_of_order += part.out_of_order;
        self.pending += part.pending;
        self.excused += part.excused;
    }
}

/// Where an audit goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Looked at, by partition.
    done: BTreeMap<u16, u64>,
    /// What had happened when it began, by partition.
    heads: BTreeMap<u16, u64>,
    /// Rows of read models: which, and behind which id.
    rows: (usize, Option<Uuid>),
}

/// Audits `limit` events and rows, more or less (an aggregate is looked at whole). Returns what it
/// found there, and where the next call goes on, unless that was all.
pub async fn audit(
    runtime: &Runtime,
    reads: &ReadModels,
    from: Option<Progress>,
    limit: u64,
) -> Result<(Report, Option<Progress>), AuditError> {
    let mut progress = from.unwrap_or_else(|| begin(runtime));
    let mut auditor = Auditor::new(runtime, reads, &progress).await?;
    for (partition, head) in progress.heads.clone() {
        let mut done = progress.done.get(&partition).copied().unwrap_or(0);
        while done < head {
            if auditor.work >= limit {
                return Ok((auditor.report(), Some(progress)));
            }
            done = auditor.page(partition, done, head).await?;
            progress.done.insert(partition, done);
        }
    }
    while progress.rows.0 < auditor.evidence.len() {
        if auditor.work >= limit {
            return Ok((auditor.report(), Some(progress)));
        }
        progress.rows = auditor.rows(progress.rows).await?;
    }
    for (partition, head) in &progress.heads {
        auditor.nothing_behind(*partition, *head).await?;
    }
    Ok((auditor.report(), None))
}

fn begin(runtime: &Runtime) -> Progress {
    let heads = runtime.journal().heads();
    Progress {
        done: BTreeMap::new(),
        heads: heads.iter().map(|head| (head.partition, head.position)).collect(),
        rows: (0, None),
    }
}

struct Auditor<'a> {
    runtime: &'a Runtime,
    evidence: Vec<Box<dyn Evidence>>,
    reads: &'a ReadModels,
    /// How far each handler was when the audit began.
    reached: HashMap<(&'static str, u16), u64>,
    patterns: HashMap<&'static str, Vec<Pattern>>,
    given_up: HashSet<(String, Uuid)>,
    endpoints: Vec<Wanting>,
    tallies: BTreeMap<&'static str, SubscriptionAudit>,
    findings: Vec<Finding>,
    report: Report,
    work: u64,
}

/// A webhook endpoint, and what it wants.
struct Wanting {
    details: EndpointDetails,
    wish: webhooks::Wish,
}

impl Wanting {
    /// Whether an event is for the endpoint, and was when it was handled. Before its latest change
    /// the endpoint may have wanted something else.
    fn wants(&self, event: &StoredEvent) -> bool {
        event.timestamp > self.details.updated_at.plus(ENDPOINT_SETTLED)
            && self.wish.includes(&self.details, event)
    }
}

/// The webhook endpoints that there are.
async fn endpoints(runtime: &Runtime) -> Result<Vec<Wanting>, Failure> {
    let mut all = Vec::new();
    for id in webhooks::ids(runtime).await? {
        let endpoints = runtime.aggregate::<WebhookEndpoint>();
        let read = endpoints.read_inside(id.uuid(), |endpoint| endpoint.details.clone()).await;
        if let Some(details) = read.map_err(|error| command_failed(&error))?.value {
            all.push(Wanting { wish: webhooks::Wish::of(&details)?, details });
        }
    }
    Ok(all)
}

/// The handlers whose effects can be looked for.
const HANDLERS: [(&str, &[&str]); 9] = [
    (notifications::NAME, notifications::TOPICS),
    (mail_sender::NAME, mail_sender::TOPICS),
    (sms_sender::NAME, sms_sender::TOPICS),
    (email_claims::NAME, &["user.registered"]),
    (payment_gateway::NAME, &["payment.initiated"]),
    (order_progress::NAME, &["shipment.delivered", "review.created"]),
    (seller_ratings::NAME, seller_ratings::TOPICS),
    (SAGA_FACTS, &["order.placed"]),
    (webhooks::FANOUT, webhooks::FANOUT_TOPICS),
];

impl<'a> Auditor<'a> {
    async fn new(
        runtime: &'a Runtime,
        reads: &'a ReadModels,
        progress: &Progress,
    ) -> Result<Self, AuditError> {
        let parse = |topics: &[&str]| {
            topics.iter().filter_map(|topic| Pattern::parse(topic).ok()).collect::<Vec<_>>()
        };
        let mut auditor = Self {
            runtime,
            evidence: reads.evidence(),
            reads,
            reached: HashMap::new(),
            patterns: HANDLERS.iter().map(|(name, topics)| (*name, parse(topics))).collect(),
            given_up: HashSet::new(),
            endpoints: endpoints(runtime).await?,
            tallies: BTreeMap::new(),
            findings: Vec::new(),
            report: Report::default(),
            work: 0,
        };
        let subscriptions = runtime.subscriptions();
        for status in subscriptions.list() {
            auditor.tally(status.name);
            for (partition, head) in &progress.heads {
                let at = Position { partition: *partition, position: *head };
                if status.kind == "projection" && status.state == "running" {
                    subscriptions.wait_for(status.name, at, CATCH_UP_WITHIN).await;
                }
                let position = subscriptions.position(status.name, *partition).unwrap_or(0);
                auditor.reached.insert((status.name, *partition), position);
            }
        }
        auditor.given_up = auditor.given_up().await?;
        Ok(auditor)
    }

    fn tally(&mut self, name: &'static str) -> &mut SubscriptionAudit {
        self.tallies.entry(name).or_insert_with(|| SubscriptionAudit {
            subscription: name.to_owned(),
            ..SubscriptionAudit::default()
        })
    }

    fn find(
        &mut self,
        subscription: &'static str,
        problem: Problem,
        about: (Option<Uuid>, Option<Uuid>),
        detail: String,
    ) {
        let tally = self.tally(subscription);
        match problem {
            Problem::Missing => tally.missing += 1,
            Problem::DuplicateEffect => tally.duplicate_effects += 1,
            Problem::OutOfOrder => tally.out_of_order += 1,
        }
        if self.findings.len() < FINDINGS_MAX {
            let (aggregate_id, event_id) = about;
            let subscription = subscription.to_owned();
            self.findings.push(Finding { subscription, problem, aggregate_id, event_id, detail });
        }
    }

    fn report(self) -> Report {
        let subscriptions: Vec<_> = self.tallies.into_values().collect();
        let sum = |of: fn(&SubscriptionAudit) -> u64| subscriptions.iter().map(of).sum();
        Report {
            missing: sum(|of| of.missing),
            duplicate_effects: sum(|of| of.duplicate_effects),
            out_of_order: sum(|of| of.out_of_order),
            subscriptions,
            findings: self.findings,
            ..self.report
        }
    }

    /// Keys whose letters somebody gave up.
    async fn given_up(&self) -> Result<HashSet<(String, Uuid)>, AuditError> {
        let filter = EventFilter {
            event_types: vec!["subscription.discard_requested".to_owned()],
            ..EventFilter::default()
        };
        let (mut given_up, mut after) = (HashSet::new(), BTreeMap::new());
        loop {
            let found = self.reads.events(&filter, &after, 200).await?;
            if found.is_empty() {
                return Ok(given_up);
            }
            for at in found.into_iter().map(|found| found.at) {
                after.insert(at.partition, at.position);
                let Some(event) = self.runtime.journal().event_at(at).await? else { continue };
                let data = data(&event);
                let subscription = data["subscription"].as_str().map(str::to_owned);
                given_up.extend(subscription.zip(id_in(&data, "key")));
            }
        }
    }

    /// Looks at a page of the journal behind `after`; returns how far it came.
    async fn page(&mut self, partition: u16, after: u64, head: u64) -> Result<u64, AuditError> {
        let events = self.runtime.journal().read_from(partition, after, PAGE).await?;
        let events: Vec<_> = events.into_iter().filter(|event| event.position <= head).collect();
        let Some(last) = events.last().map(|event| event.position) else {
            let detail = format!("{partition}:{} to {head} cannot be read", after + 1);
            self.find(JOURNAL, Problem::Missing, (None, None), detail);
            return Ok(head);
        };
        self.work += events.len() as u64;
        self.report.events += events.len() as u64;
        for (expected, event) in (after + 1..).zip(&events) {
            if event.position != expected {
                let detail = format!("{} stands where {expected} should", event.position);
                self.find(JOURNAL, Problem::OutOfOrder, (None, Some(event.event_id)), detail);
            }
        }
        self.index(partition, after, last, &events).await?;
        let letters = self.letters(partition, after, last).await?;
        for event in &events {
            if event.aggregate_version == 1 {
                self.aggregate(event.aggregate_id, partition).await?;
            }
            for (name, _) in HANDLERS {
                self.handler(name, event, &letters).await?;
            }
        }
        Ok(last)
    }

    /// The letters of a stretch of the journal: subscription and position.
    async fn letters(
        &self,
        partition: u16,
        after: u64,
        last: u64,
    ) -> Result<BTreeSet<(String, u64)>, AuditError> {
        let letters = self.runtime.dead_letters().between(partition, after, last).await?;
        let place = |letter: journal::Letter| (letter.subscription.to_string(), letter.position);
        Ok(letters.into_iter().map(place).collect())
    }

    /// The index has every event once.
    async fn index(
        &mut self,
        partition: u16,
        after: u64,
        last: u64,
        events: &[Arc<StoredEvent>],
    ) -> Result<(), AuditError> {
        let reached = self.reached.get(&(EVENTS_INDEX, partition)).copied().unwrap_or(0);
        let rows = self.reads.indexed(partition, after + 1, last).await?;
        let rows: BTreeMap<u64, Uuid> = rows.into_iter().collect();
        for event in events {
            let about = (Some(event.aggregate_id), Some(event.event_id));
            match rows.get(&event.position) {
                _ if event.position > reached => self.tally(EVENTS_INDEX).pending += 1,
                Some(id) if *id == event.event_id => self.tally(EVENTS_INDEX).checked += 1,
                Some(id) => {
                    let detail = format!("{} is indexed as {id}", event.position);
                    self.find(EVENTS_INDEX, Problem::OutOfOrder, about, detail);
                }
                None => {
                    let detail = format!("{partition}:{} is not indexed", event.position);
                    self.find(EVENTS_INDEX, Problem::Missing, about, detail);
                }
            }
        }
        let positions: BTreeSet<u64> = events.iter().map(|event| event.position).collect();
        for (position, id) in rows.iter().filter(|(position, _)| !positions.contains(position)) {
            let detail = format!("{partition}:{position} is indexed and has not happened");
            self.find(EVENTS_INDEX, Problem::DuplicateEffect, (None, Some(*id)), detail);
        }
        Ok(())
    }

    /// The index has nothing that is not in the journal.
    async fn nothing_behind(&mut self, partition: u16, head: u64) -> Result<(), AuditError> {
        // What has happened since the audit began may be there by now.
        let heads = self.runtime.journal().heads();
        let now = heads.iter().find(|at| at.partition == partition).map_or(head, |at| at.position);
        let most = i64::MAX.unsigned_abs();
        for (position, id) in self.reads.indexed(partition, now + 1, most).await? {
            let heads = self.runtime.journal().heads();
            if heads.iter().any(|at| at.partition == partition && at.position >= position) {
                continue;
            }
            let detail = format!("{partition}:{position} is indexed and has not happened");
            self.find(EVENTS_INDEX, Problem::DuplicateEffect, (None, Some(id)), detail);
        }
        Ok(())
    }

    /// One aggregate whole: its versions, what happens once, its rows.
    async fn aggregate(&mut self, id: Uuid, partition: u16) -> Result<(), AuditError> {
        self.report.aggregates += 1;
        let history = self.history(id).await?;
        self.work += history.versions;
        for detail in history.out_of_order {
            self.find(JOURNAL, Problem::OutOfOrder, (Some(id), None), detail);
        }
        for detail in history.doubled {
            self.find(JOURNAL, Problem::DuplicateEffect, (Some(id), None), detail);
        }
        self.tally(JOURNAL).checked += history.versions;
        for (index, folded) in history.rows.into_iter().enumerate() {
            let name = self.evidence[index].name();
            let stored = self.evidence[index].stored(id).await?;
            if stored.is_some() || folded.is_some() {
                self.tally(name).checked += 1;
            }
            if stored != folded {
                self.differs(index, id, partition).await?;
            }
        }
        Ok(())
    }

    /// A row differs from what its aggregate's events make: because the aggregate is changing, or
    /// because something is wrong.
    async fn differs(&mut self, index: usize, id: Uuid, partition: u16) -> Result<(), AuditError> {
        let name = self.evidence[index].name();
        let subscriptions = self.runtime.subscriptions();
        let filed = self.runtime.dead_letters().of_key(name, partition, id).await?;
        if filed || self.given_up.contains(&(name.to_owned(), id)) {
            self.tally(name).excused += 1;
            return Ok(());
        }
        for _ in 0..LOOKS_MAX {
            let heads = self.runtime.journal().heads();
            let Some(head) = heads.into_iter().find(|head| head.partition == partition) else {
                break;
            };
            if !subscriptions.wait_for(name, head, CATCH_UP_WITHIN).await {
                self.tally(name).pending += 1;
                return Ok(());
            }
            let folded = self.history(id).await?.rows.swap_remove(index);
            if self.evidence[index].stored(id).await? == folded {
                return Ok(());
            }
        }
        let folded = self.history(id).await?.rows.swap_remove(index);
        let stored = self.evidence[index].stored(id).await?;
        let (problem, detail) = match (stored, folded) {
            (None, _) => (Problem::Missing, "there is no row".to_owned()),
            (Some(_), None) => (Problem::DuplicateEffect, "no event made this row".to_owned()),
            (Some(_), Some(_)) => {
                (Problem::Missing, "the row is not what the events make".to_owned())
            }
        };
        self.find(name, problem, (Some(id), None), detail);
        Ok(())
    }

    async fn history(&self, id: Uuid) -> Result<History, AuditError> {
        let mut refolds: Vec<_> = self.evidence.iter().map(|view| view.refold()).collect();
        let mut history = History::default();
        let mut once = HashSet::new();
        loop {
            let page = self.runtime.journal().read_aggregate(id, history.versions, PAGE).await?;
            for event in &page {
                history.see(event, &mut once);
                for refold in &mut refolds {
                    refold.take(event)?;
                }
            }
            if page.len() < PAGE {
                break;
            }
        }
        history.rows = refolds.iter().map(|refold| refold.row()).collect();
        Ok(history)
    }

    /// Whether the event has had the effect that it must have by way of a handler.
    async fn handler(
        &mut self,
        name: &'static str,
        event: &StoredEvent,
        letters: &BTreeSet<(String, u64)>,
    ) -> Result<(), AuditError> {
        let wanted = &self.patterns[name];
        if !wanted.iter().any(|pattern| pattern.matches(&event.event_type)) {
            return Ok(());
        }
        if name == webhooks::FANOUT && !self.endpoints.iter().any(|of| of.wants(event)) {
            return Ok(());
        }
        if event.position > self.reached.get(&(name, event.partition)).copied().unwrap_or(0) {
            self.tally(name).pending += 1;
            return Ok(());
        }
        if letters.contains(&(name.to_owned(), event.position))
            || self.given_up.contains(&(name.to_owned(), event.aggregate_id))
        {
            self.tally(name).excused += 1;
            return Ok(());
        }
        self.tally(name).checked += 1;
        if let Some(detail) = self.lacks(name, event).await? {
            let about = (Some(event.aggregate_id), Some(event.event_id));
            self.find(name, Problem::Missing, about, detail);
        }
        Ok(())
    }

    /// What is missing of an event's effect, if anything is.
    async fn lacks(&self, name: &str, event: &StoredEvent) -> Result<Option<String>, AuditError> {
        if name == webhooks::FANOUT {
            return self.lacks_messages(event).await;
        }
        if name == seller_ratings::NAME {
            let is_told = seller_ratings::is_told(self.runtime, event).await?;
            return Ok((!is_told).then(|| "the seller's rating does not know of it".to_owned()));
        }
        let data = data(event);
        let order = id_in(&data, "order_id");
        let (target, any_of): (Option<Uuid>, &[&str]) = match name {
            notifications::NAME => {
                for id in notifications::expected(self.runtime, event).await? {
                    if !self.has(id, &["notification.requested"]).await? {
                        return Ok(Some(format!("the notification {id} was not requested")));
                    }
                }
                return Ok(None);
            }
            mail_sender::NAME if data["channel"] != "email" => return Ok(None),
            mail_sender::NAME => (Some(event.aggregate_id), EMAIL_OUTCOMES),
            sms_sender::NAME if data["channel"] != "sms" => return Ok(None),
            sms_sender::NAME => (Some(event.aggregate_id), SMS_OUTCOMES),
            email_claims::NAME => {
                (id_in(&data, "email_claim_id"), &["email_claim.confirmed", "email_claim.released"])
            }
            // A provider that does not answer is asked again, for as long as the payment is open.
            payment_gateway::NAME if &*event.event_type == "payment.authorized" => return Ok(None),
            payment_gateway::NAME => (
                Some(event.aggregate_id),
                &[
                    "payment.instructed",
                    "payment.authorized",
                    "payment.timed_out",
                    "payment.captured",
                    "payment.failed",
                    "payment.voided",
                    "payment.rejected",
                ],
            ),
            order_progress::NAME if &*event.event_type == "review.created" => {
                (order, &["order.reviewed"])
            }
            order_progress::NAME => (
                order,
                &["order.delivered", "order.cancelled", "order.failed", "order.payment_failed"],
            ),
            SAGA_FACTS => {
                (Some(SagaInstance::<OrderSaga>::id_of(event.aggregate_id)), &["saga.started"])
            }
            _ => return Ok(None),
        };
        let Some(target) = target else {
            return Ok(Some("the event does not say whom it concerns".to_owned()));
        };
        let there = self.has(target, any_of).await?;
        Ok((!there).then(|| format!("{target} has none of {}", any_of.join(", "))))
    }

    /// Whether somebody who wants an event will never get it.
    async fn lacks_messages(&self, event: &StoredEvent) -> Result<Option<String>, AuditError> {
        let deliveries = self.runtime.aggregate::<WebhookDelivery>();
        for endpoint in self.endpoints.iter().filter(|endpoint| endpoint.wants(event)) {
            let endpoint_id = endpoint.details.endpoint_id;
            let lane = lane_of(endpoint_id, event.aggregate_id);
            let read = deliveries.read_inside(lane, |delivery| delivery.lane.clone()).await;
            let lane = read.map_err(|error| command_failed(&error))?.value;
            match lane.filter(|lane| lane.until >= event.aggregate_version) {
                None => return Ok(Some(format!("the endpoint {endpoint_id} is owed no message"))),
                Some(lane) if lane.is_stuck() => {
                    return Ok(Some(format!(
                        "the endpoint {endpoint_id} is owed what nobody sends"
                    )));
                }
                Some(_) => {}
            }
        }
        Ok(None)
    }

    /// Whether an aggregate has an event of one of these types.
    async fn has(&self, id: Uuid, any_of: &[&str]) -> Result<bool, AuditError> {
        let mut version = 0;
        loop {
            let page = self.runtime.journal().read_aggregate(id, version, PAGE).await?;
            if page.iter().any(|event| any_of.contains(&&*event.event_type)) {
                return Ok(true);
            }
            match page.last() {
                Some(last) if page.len() == PAGE => version = last.aggregate_version,
                _ => return Ok(false),
            }
        }
    }

    /// Looks at rows of one view: each has an aggregate. Returns where to go on.
    async fn rows(
        &mut self,
        (index, after): (usize, Option<Uuid>),
    ) -> Result<(usize, Option<Uuid>), AuditError> {
        let limit = u32::try_from(PAGE).unwrap_or(u32::MAX);
        let ids = self.evidence[index].ids(after, limit).await?;
        self.work += ids.len() as u64;
        self.report.rows += ids.len() as u64;
        for id in &ids {
            if self.runtime.journal().read_aggregate(*id, 0, 1).await?.is_empty() {
                let name = self.evidence[index].name();
                let detail = "a row without an aggregate".to_owned();
                self.find(name, Problem::DuplicateEffect, (Some(*id), None), detail);
            }
        }
        Ok(match ids.last() {
            Some(last) if ids.len() == PAGE => (index, Some(*last)),
            _ => (index + 1, None),
        })
    }
}

/// What one aggregate's events say.
#[derive(Default)]
struct History {
    versions: u64,
    last: u64,
    rows: Vec<Option<Vec<crate::projections::db::Param>>>,
    out_of_order: Vec<String>,
    doubled: Vec<String>,
}

impl History {
    fn see(&mut self, event: &StoredEvent, once: &mut HashSet<(Arc<str>, String)>) {
        let version = event.aggregate_version;
        if version != self.versions + 1 || event.position <= self.last {
            self.out_of_order.push(format!("version {version} follows {}", self.versions));
        }
        (self.versions, self.last) = (version, event.position);
        let event_type = &*event.event_type;
        let of = if ONCE.contains(&event_type) {
            String::new()
        } else if let Some((_, each)) = ONCE_PER.iter().find(|(once, _)| *once == event_type) {
            data(event)[*each].to_string()
        } else {
            return;
        };
        if !once.insert((event.event_type.clone(), of)) {
            self.doubled.push(format!("{event_type} happened again at version {version}"));
        }
    }
}

fn data(event: &StoredEvent) -> Value {
    serde_json::from_str(&event.data).unwrap_or(Value::Null)
}

fn id_in(data: &Value, name: &str) -> Option<Uuid> {
    data[name].as_str().and_then(|text| Uuid::parse_str(text).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::projections::testing::event;

    fn seen(events: &[Arc<StoredEvent>]) -> History {
        let (mut history, mut once) = (History::default(), HashSet::new());
        events.iter().for_each(|event| history.see(event, &mut once));
        history
    }

    #[test]
    fn gaps_and_repeats_are_noticed() {
        let of = |types: &[&str]| {
            let mut events: Vec<_> = types.iter().map(|name| event(name, "order", 1)).collect();
            for (version, event) in (1..).zip(&mut events) {
                event.aggregate_version = version;
                event.position = version * 10;
            }
            events
        };
        let arcs = |events: Vec<StoredEvent>| events.into_iter().map(Arc::new).collect::<Vec<_>>();
        let fine = seen(&arcs(of(&["order.placed", "order.confirmed", "order.paid"])));
        assert!(fine.out_of_order.is_empty() && fine.doubled.is_empty());
        assert_eq!(fine.versions, 3);
        let twice = seen(&arcs(of(&["order.placed", "order.paid", "order.paid"])));
        assert_eq!(twice.doubled, ["order.paid happened again at version 3"]);
        let mut gap = of(&["order.placed", "order.confirmed", "order.paid"]);
        gap.remove(1);
        assert_eq!(seen(&arcs(gap)).out_of_order, ["version 3 follows 1"]);
        let mut swapped = of(&["order.placed", "order.confirmed"]);
        swapped[1].position = 5;
        assert_eq!(seen(&arcs(swapped)).out_of_order.len(), 1);
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        let finding = |number: usize| Finding {
            subscription: "a".to_owned(),
            problem: Problem::Missing,
            aggregate_id: None,
            event_id: None,
            detail: number.to_string(),
        };
        let part = |name: &str, missing: u64| Report {
            missing,
            events: 10,
            subscriptions: vec![SubscriptionAudit {
                subscription: name.to_owned(),
                checked: 5,
                missing,
                ..SubscriptionAudit::default()
            }],
            findings: (0..60).map(finding).collect(),
            ..Report::default()
        };
        let mut whole = Report::default();
        assert!(whole.is_healthy());
        for part in [part("a", 1), part("b", 0), part("a", 2)] {
            whole.add(part);
        }
        assert_eq!((whole.missing, whole.events, whole.is_healthy()), (3, 30, false));
        let counts: Vec<_> =
            whole.subscriptions.iter().map(|of| (of.checked, of.missing)).collect();
        assert_eq!(counts, [(10, 3), (5, 0)]);
        assert_eq!(whole.findings.len(), FINDINGS_MAX);
    }

    #[test]
    fn one_listing_may_be_reserved_once_for_each_order() {
        let reserved = |version: u64, order: &str| {
            let mut event = event("inventory.reserved", "listing", 1);
            event.aggregate_version = version;
            event.position = version;
            event.data = format!("{{\"order_id\":\"{order}\"}}").into();
            Arc::new(event)
        };
        assert!(seen(&[reserved(1, "a"), reserved(2, "b")]).doubled.is_empty());
        assert_eq!(seen(&[reserved(1, "a"), reserved(2, "b"), reserved(3, "a")]).doubled.len(), 1);
    }
}
