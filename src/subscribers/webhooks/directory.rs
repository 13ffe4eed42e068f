//! Which endpoints there are. The list of their ids is a control row, changed in the transactions in
//! which endpoints are created and deleted; what they want is asked of the aggregates and kept in
//! memory, so that an event that nobody wants costs a look.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use souk_actors::aggregate::Aggregate as _;
use souk_actors::command::ControlWrite;
use souk_actors::event::StoredEvent;
use souk_actors::filter::Filter;
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use tokio::sync::{Mutex, OnceCell};

use super::super::command_failed;
use super::secrets::{SPACE, SecretBox, Secrets};
use crate::domain::ids::WebhookEndpointId;
use crate::domain::topics::Topics;
use crate::domain::webhook_endpoint::{EndpointDetails, PING, WebhookEndpoint};

/// Where the list stands. Stored; never rename.
const DIRECTORY_SPACE: &str = "webhook_directory";
/// The list's key. Stored; never rename.
const DIRECTORY_KEY: &[u8] = b"all";
/// How many endpoints there may be: every event is held against each of them.
pub const ENDPOINTS_MAX: usize = 100;

/// An endpoint, as whoever sends to it needs it.
pub struct Endpoint {
    /// What it is.
    pub details: EndpointDetails,
    /// Its secrets.
    pub secrets: Secrets,
    wish: Wish,
}

impl Endpoint {
    /// Whether an event is for it.
    pub fn wants(&self, event: &StoredEvent) -> bool {
        self.wish.includes(&self.details, event)
    }
}

/// Which events are for an endpoint, read and ready.
pub struct Wish {
    topics: Topics,
    filter: Option<Filter>,
}

impl Wish {
    /// What an endpoint wants.
    pub fn of(details: &EndpointDetails) -> Result<Self, Failure> {
        let topics = Topics::parse(details.events.iter().map(String::as_str));
        let topics = topics.map_err(|error| Failure::permanent(error.to_string()))?;
        let filter = details.filter.as_deref().map(Filter::parse).transpose();
        let filter = filter.map_err(|error| Failure::permanent(error.to_string()))?;
        Ok(Self { topics, filter })
    }

    /// Whether an event is for the endpoint. Looking into it comes last: that costs most.
    pub fn includes(&self, details: &EndpointDetails, event: &StoredEvent) -> bool {
        if &*event.event_type == PING {
            return event.aggregate_id == details.endpoint_id.uuid();
        }
        is_sendable(event)
            && self.topics.include(&event.event_type, event.major)
            && details.starts_before(event.partition, event.position)
            && self.filter.as_ref().is_none_or(|filter| filter.matches(event))
    }
}

/// What deliveries themselves say is sent to nobody: it would never end.
fn is_sendable(event: &StoredEvent) -> bool {
    let event_type = &*event.event_type;
    !event_type.starts_with("webhook.delivery.") && !event_type.starts_with("webhook.redelivery.")
}

type Known = HashMap<WebhookEndpointId, (u64, Option<Arc<Endpoint>>)>;

/// The endpoints.
pub struct Directory {
    secrets: SecretBox,
    known: RwLock<Known>,
    loaded: OnceCell<()>,
    changing: Mutex<()>,
}

impl Directory {
    /// An empty one.
    pub fn new(secrets: SecretBox) -> Self {
        Self {
            secrets,
            known: RwLock::default(),
            loaded: OnceCell::new(),
            changing: Mutex::default(),
        }
    }

    /// Seals and opens secrets.
    pub fn secrets(&self) -> &SecretBox {
        &self.secrets
    }

    /// Held by whoever changes the list of ids, or a secret: they rest on what was read before.
    pub async fn change(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    /// Makes sure that what is stored is known.
    pub async fn load(&self, runtime: &Runtime) -> Result<(), Failure> {
        let load = async {
            for id in ids(runtime).await? {
                self.refresh(runtime, id).await?;
            }
            Ok(())
        };
        self.loaded.get_or_try_init(|| load).await.map(drop)
    }

    /// Looks at an endpoint anew.
    pub async fn refresh(&self, runtime: &Runtime, id: WebhookEndpointId) -> Result<(), Failure> {
        let endpoints = runtime.aggregate::<WebhookEndpoint>();
        let read = endpoints.read_inside(id.uuid(), |endpoint| endpoint.details.clone()).await;
        let done = read.map_err(|error| command_failed(&error))?;
        let endpoint = match done.value {
            Some(details) => self.endpoint(runtime, details).await?.map(Arc::new),
            None => None,
        };
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let (version, _) = known.entry(id).or_insert((0, None));
        if done.version >= *version {
            known.insert(id, (done.version, endpoint));
        }
        Ok(())
    }

    async fn endpoint(
        &self,
        runtime: &Runtime,
        details: EndpointDetails,
    ) -> Result<Option<Endpoint>, Failure> {
        let id = details.endpoint_id;
        let Some(secrets) = self.stored(runtime, id).await? else {
            tracing::error!(endpoint_id = %id, "the secret of a webhook endpoint cannot be read: nothing is sent to it until it has another");
            return Ok(None);
        };
        let wish = Wish::of(&details)?;
        Ok(Some(Endpoint { details, secrets, wish }))
    }

    /// The secrets of an endpoint, as they are stored.
    pub async fn stored(
        &self,
        runtime: &Runtime,
        id: WebhookEndpointId,
    ) -> Result<Option<Secrets>, Failure> {
        let row = runtime.control().get(SPACE, id.uuid().as_bytes()).await;
        let row = row.map_err(|error| Failure::system(error.to_string()))?;
        Ok(row.and_then(|row| self.secrets.open(id, &row)))
    }

    /// An endpoint.
    pub fn get(&self, id: WebhookEndpointId) -> Option<Arc<Endpoint>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&id).and_then(|(_, endpoint)| endpoint.clone())
    }

    /// The endpoints that an event is for.
    pub fn that_want(&self, event: &StoredEvent) -> Vec<Arc<Endpoint>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let all = known.values().filter_map(|(_, endpoint)| endpoint.as_ref());
        all.filter(|endpoint| endpoint.wants(event)).cloned().collect()
    }

    /// Whether an event is to be looked at at all.
    pub fn concerns(&self, event: &StoredEvent) -> bool {
        if !is_sendable(event) {
            return false;
        }
        if &*event.aggregate_type == WebhookEndpoint::TYPE || !self.loaded.initialized() {
            return true;
        }
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut all = known.values().filter_map(|(_, endpoint)| endpoint.as_ref());
        all.any(|endpoint| endpoint.wants(event))
    }
}

/// The ids of all endpoints, as they are stored.
pub async fn ids(runtime: &Runtime) -> Result<BTreeSet<WebhookEndpointId>, Failure> {
    let row = runtime.control().get(DIRECTORY_SPACE, DIRECTORY_KEY).await;
    let row = row.map_err(|error| Failure::system(error.to_string()))?;
    let Some(row) = row else { return Ok(BTreeSet::new()) };
    let unreadable = |_| Failure::permanent("the list of webhook endpoints cannot be read");
    serde_json::from_slice(&row).map_err(unreadable)
}

/// The row with these ids.
pub fn row(ids: &BTreeSet<WebhookEndpointId>) -> ControlWrite {
    let value = serde_json::to_vec(ids).expect("ids are plain data");
    ControlWrite {
        space: DIRECTORY_SPACE,
        key: DIRECTORY_KEY.to_vec(),
        value: Some(value),
        expires_at: None,
    }
}
