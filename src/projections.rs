//! Placeholder of the read models until the real ones land.
#![allow(missing_docs, clippy::unimplemented, unused_variables)]

use std::collections::BTreeMap;

use souk_actors::event::Position;
use souk_actors::world::Timestamp;
use uuid::Uuid;

#[derive(Clone)]
pub struct ReadModels;

#[derive(Debug, thiserror::Error)]
#[error("read models: {0}")]
pub struct ReadError(pub String);

#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    pub event_types: Vec<String>,
    pub majors: Option<u16>,
    pub aggregate_id: Option<Uuid>,
    pub aggregate_type: Option<String>,
    pub correlation_id: Option<String>,
    pub causation_id: Option<String>,
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
}
#[derive(Debug, Clone, Default)]
pub struct ListingFilter {
    pub seller_id: Option<Uuid>,
    pub status: Option<String>,
    pub category_id: Option<Uuid>,
}
#[derive(Debug, Clone, Default)]
pub struct OrderFilter {
    pub buyer_id: Option<Uuid>,
    pub seller_id: Option<Uuid>,
    pub status: Option<String>,
}
#[derive(Debug, Clone, Default)]
pub struct SagaFilter {
    pub key: Option<Uuid>,
    pub saga: Option<String>,
    pub state: Option<String>,
}
#[derive(Debug, Clone)]
pub struct ListingRow {
    pub listing_id: Uuid,
    pub seller_id: Uuid,
    pub title: String,
    pub category_id: Uuid,
    pub price_amount: i64,
    pub currency: String,
    pub status: String,
    pub available: i64,
    pub reserved: i64,
    pub sold: i64,
    pub version: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}
#[derive(Debug, Clone)]
pub struct OrderRow {
    pub order_id: Uuid,
    pub order_number: String,
    pub buyer_id: Uuid,
    pub seller_id: Uuid,
    pub status: String,
    pub amount: i64,
    pub currency: String,
    pub item_count: i64,
    pub version: i64,
    pub placed_at: Timestamp,
    pub updated_at: Timestamp,
}
#[derive(Debug, Clone)]
pub struct NotificationRow {
    pub notification_id: Uuid,
    pub user_id: Option<Uuid>,
    pub audience: String,
    pub channel: String,
    pub template: String,
    pub status: String,
    pub cause_event_id: Uuid,
    pub provider_message_id: Option<String>,
    pub created_at: Timestamp,
    pub sent_at: Option<Timestamp>,
}
#[derive(Debug, Clone)]
pub struct SagaRow {
    pub saga_id: Uuid,
    pub saga: String,
    pub key: Uuid,
    pub status: String,
    pub step: String,
    pub started_at: Timestamp,
    pub updated_at: Timestamp,
}
#[derive(Debug, Clone)]
pub struct CategoryRow {
    pub category_id: Uuid,
    pub name: String,
    pub slug: String,
    pub active: bool,
}

impl ReadModels {
    pub async fn events(
        &self,
        filter: &EventFilter,
        after: &BTreeMap<u16, u64>,
        limit: u32,
    ) -> Result<Vec<Position>, ReadError> {
        unimplemented!()
    }
    pub async fn listings(
        &self,
        filter: &ListingFilter,
        before: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<ListingRow>, ReadError> {
        unimplemented!()
    }
    pub async fn orders(
        &self,
        filter: &OrderFilter,
        before: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<OrderRow>, ReadError> {
        unimplemented!()
    }
    pub async fn order_by_number(&self, number: &str) -> Result<Option<Uuid>, ReadError> {
        unimplemented!()
    }
    pub async fn shipments(&self, order_id: Uuid) -> Result<Vec<Uuid>, ReadError> {
        unimplemented!()
    }
    pub async fn notifications(
        &self,
        user_id: Option<Uuid>,
        audience_admin: bool,
        before: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<NotificationRow>, ReadError> {
        unimplemented!()
    }
    pub async fn categories(&self) -> Result<Vec<CategoryRow>, ReadError> {
        unimplemented!()
    }
    pub async fn sagas(
        &self,
        filter: &SagaFilter,
        limit: u32,
    ) -> Result<Vec<SagaRow>, ReadError> {
        unimplemented!()
    }
    pub async fn position(&self, projection: &str, partition: u16) -> Result<u64, ReadError> {
        unimplemented!()
    }
}
