//! The bounded contexts: what each publishes and what it listens to. A description, for people and
//! for the AsyncAPI document; delivery rests on the subscriptions.

use serde::Serialize;
use souk_actors::event::EventDescriptor;
use souk_actors::saga::Saga;

use crate::domain::order_saga::OrderSaga;
use crate::domain::registry;
use crate::subscribers::{
    announcements, bounces, email_claims, engagement, erasures, flow_times, loyalty, mail_sender,
    notifications,
    notifications::{escalations, letters, reports as report_mails},
    order_progress, payment_gateway, reports, search_indexer, seller_ratings, sequence_gaps,
    session_endings, sms_sender, webhooks,
};

/// A bounded context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ContextInfo {
    /// Its name.
    pub name: &'static str,
    /// What it is about.
    pub description: &'static str,
    /// The event types that it publishes.
    pub publishes: Vec<&'static str>,
    /// What it listens to.
    pub subscribes: Vec<SubscriptionInfo>,
}

/// What a context listens to, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SubscriptionInfo {
    /// The subscription.
    pub name: &'static str,
    /// Its topics.
    pub topics: &'static [&'static str],
}

/// Every context: name and description.
const CONTEXTS: [(&str, &str); 16] = [
    ("users", "Who there is: registration, verification, sellers, sessions"),
    ("listings", "What is for sale, in which categories, at which price"),
    ("inventory", "Stock: held for orders, sold, given back"),
    ("orders", "What buyers want, and how far it has come"),
    ("payments", "Money taken and given back through a provider"),
    ("escrow", "Money between the buyer's payment and the seller"),
    ("shipments", "Goods on their way"),
    ("promotions", "Codes that take something off an order, and who has used them"),
    ("loyalty", "Points that buyers have for what they kept"),
    ("reviews", "What buyers think of orders, and what sellers say to that"),
    ("notifications", "Messages to people"),
    ("publishing", "What publishers outside tell: their tokens, their event types, their order"),
    ("webhooks", "Events on their way to addresses outside"),
    ("analytics", "Figures of the business, and what people do"),
    ("sagas", "Processes over several contexts"),
    ("system", "The machinery: subscriptions, dead letters, the index of all events"),
];

/// What runs, beyond the read models: context, subscription, topics.
const HANDLERS: [(&str, &str, &[&str]); 23] = [
    ("users", email_claims::NAME, email_claims::TOPICS),
    ("loyalty", loyalty::NAME, loyalty::TOPICS),
    ("analytics", reports::NAME, reports::TOPICS),
    ("users", session_endings::NAME, session_endings::TOPICS),
    ("users", erasures::NAME, erasures::TOPICS),
    ("users", engagement::NAME, engagement::TOPICS),
    ("listings", search_indexer::NAME, search_indexer::TOPICS),
    ("payments", payment_gateway::NAME, payment_gateway::TOPICS),
    ("orders", order_progress::NAME, order_progress::TOPICS),
    ("reviews", seller_ratings::NAME, seller_ratings::TOPICS),
    ("notifications", notifications::NAME, notifications::TOPICS),
    ("notifications", announcements::NAME, announcements::TOPICS),
    ("notifications", escalations::NAME, escalations::TOPICS),
    ("notifications", bounces::NAME, bounces::TOPICS),
    ("notifications", letters::NAME, letters::TOPICS),
    ("notifications", report_mails::NAME, report_mails::TOPICS),
    ("notifications", mail_sender::NAME, mail_sender::TOPICS),
    ("notifications", sms_sender::NAME, sms_sender::TOPICS),
    ("publishing", sequence_gaps::NAME, sequence_gaps::TOPICS),
    ("publishing", sequence_gaps::SETTLED_NAME, sequence_gaps::SETTLED_TOPICS),
    ("webhooks", webhooks::FANOUT, webhooks::FANOUT_TOPICS),
    ("webhooks", webhooks::SENDER, webhooks::SENDER_TOPICS),
    ("system", flow_times::NAME, flow_times::TOPICS),
];

/// Every event type: the marketplace's, and those of the runtime's sagas.
pub fn descriptors() -> impl Iterator<Item = &'static EventDescriptor> {
    registry::all_descriptors()
}

/// Every context.
pub fn contexts() -> Vec<ContextInfo> {
    CONTEXTS
        .into_iter()
        .map(|(name, description)| {
            let publishes = descriptors()
                .filter(|descriptor| descriptor.context == name)
                .map(|descriptor| descriptor.event_type)
                .collect();
            ContextInfo { name, description, publishes, subscribes: subscriptions(name) }
        })
        .collect()
}

fn subscriptions(context: &str) -> Vec<SubscriptionInfo> {
    let saga = ("sagas", OrderSaga::NAME, OrderSaga::TOPICS);
    HANDLERS
        .into_iter()
        .chain([saga])
        .chain(crate::projections::topics())
        .filter(|(owner, ..)| *owner == context)
        .map(|(_, name, topics)| SubscriptionInfo { name, topics })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_event_type_has_exactly_one_context() {
        let all = contexts();
        let published: Vec<_> = all.iter().flat_map(|context| &context.publishes).collect();
        assert_eq!(published.len(), descriptors().count());
        assert_eq!(published.iter().collect::<BTreeSet<_>>().len(), published.len());
    }

    #[test]
    fn every_projection_belongs_to_a_context() {
        let listed: BTreeSet<_> = contexts()
            .into_iter()
            .flat_map(|context| context.subscribes)
            .map(|subscription| subscription.name)
            .collect();
        for name in crate::projections::PROJECTIONS {
            assert!(listed.contains(name), "{name}");
        }
    }
}
