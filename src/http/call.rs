//! One call: who asks, under which ids, with which key and on which version.

use std::sync::Arc;

use axum::extract::{FromRequestParts, MatchedPath};
use axum::http::header;
use axum::http::request::Parts;
use souk_actors::broker::Pattern;
use souk_actors::command::CommandContext;
use souk_actors::event::StoredEvent;
use souk_actors::journal::codec::Reveal;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::App;
use super::conditional::IfMatch;
use super::idempotency::{IdempotencyKey, Scope};
use super::info::RequestInfo;
use super::peer::Peer;
use super::problem::ApiError;
use super::rate_limit::{Caller as Counts, Counted};
use super::scopes;
use crate::cloudevents::metadata;
use crate::domain::caller::{Caller, Role};
use crate::domain::ids::{ServiceTokenId, SessionId, UserId};
use crate::domain::service_token::{
    Area, KeyScope, Owner, Quota, ServiceToken, ServiceTokenCommand, ServiceTokenDetails,
};
use crate::domain::user::UserStatus;
use crate::identity::access::Person;
use crate::identity::service_token;
use crate::identity::token::{Claims, TokenError};

/// The tenant of everything, until there are several.
pub(super) const TENANT: &str = "default";

/// Everything about a request but its parameters and its body.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its ids.
    pub info: RequestInfo,
    /// `If-Match`.
    pub if_match: IfMatch,
    claims: Option<Arc<Claims>>,
    /// The token, where it is a service's, or a person's key that is not for this.
    service: Option<Arc<ServiceTokenDetails>>,
    /// The person's key that it is asked with.
    credential: Option<Credential>,
    /// What a person's key needs for this.
    needs: Option<KeyScope>,
    key: IdempotencyKey,
}

/// A person's key.
#[derive(Debug, Clone, Copy)]
struct Credential {
    key: ServiceTokenId,
    /// Whether it may read what is personal in events.
    reads_personal: bool,
}

/// Who asks, by what was sent with the request.
enum Identity {
    /// Nothing was.
    Nobody,
    /// A person who has logged in.
    Person(Arc<Claims>),
    /// A person's program, with a key that is for what it asks.
    Key(Arc<Claims>, Credential),
    /// A service, or a person's program with a key that is not for what it asks.
    Service(Arc<ServiceTokenDetails>),
}

impl Identity {
    /// Whose requests these are, if they are somebody's whose requests are counted.
    fn counts(&self) -> Option<Counts> {
        match self {
            Self::Nobody => None,
            Self::Person(claims) | Self::Key(claims, _) => Some(Counts::Person(claims.sub)),
            Self::Service(token) => token.owner_id().map(|owner| Counts::Person(owner.uuid())),
        }
    }
}

impl FromRequestParts<App> for Call {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let info = parts.extensions.get::<RequestInfo>().cloned();
        let known = identify(parts, app).await;
        let counted = match &known {
            // Whoever guesses at tokens is counted too.
            Ok(Identity::Nobody) | Err(_) => {
                let Ok(peer) = Peer::from_request_parts(parts, app).await;
                peer.distant_network().map(Counts::Network)
            }
            Ok(somebody) => somebody.counts(),
        };
        if let Some(told) = counted.map(|caller| app.count_request(caller)).transpose()?.flatten()
            && let Some(counted) = parts.extensions.get::<Counted>()
        {
            counted.say(told);
        }
        let (claims, service, credential) = match known? {
            Identity::Nobody => (None, None, None),
            Identity::Person(claims) => (Some(claims), None, None),
            Identity::Key(claims, key) => (Some(claims), None, Some(key)),
            Identity::Service(token) => (None, Some(token), None),
        };
        let is_key = service.as_ref().is_some_and(|service| service.owner.is_some());
        let needs = is_key.then(|| needed_for(parts)).flatten();
        Ok(Self {
            info: info
                .unwrap_or_else(|| RequestInfo::new(&parts.headers, &**app.runtime().world())),
            claims,
            service,
            credential,
            needs,
            if_match: IfMatch::from_request_parts(parts, app).await?,
            key: IdempotencyKey::from_request_parts(parts, app).await?,
        })
    }
}

/// Who asks, by the token: a person or a service, or nobody.
async fn identify(parts: &Parts, app: &App) -> Result<Identity, ApiError> {
    Ok(match bearer(parts)? {
        Some(token) if token.starts_with(service_token::PREFIX) => {
            let token = service(app, token).await?;
            let (id, is_news) = (token.token_id, token.is_use_news(app.now()));
            let identity = match &token.owner {
                Some(owner) => key(parts, app, &token, owner).await?,
                None => Identity::Service(Arc::new(token)),
            };
            if is_news {
                note_use(app, id);
            }
            identity
        }
        Some(token) => Identity::Person(let_in(app, claims(app, token)?).await?),
        None => Identity::Nobody,
    })
}

/// What a person's key lets its bearer do here: what the owner may, if the key is for it, and what
/// anybody may, if not.
async fn key(
    parts: &Parts,
    app: &App,
    token: &ServiceTokenDetails,
    owner: &Owner,
) -> Result<Identity, ApiError> {
    let person = owner_let_in(app, owner).await?;
    let scope = needed_for(parts).filter(|scope| token.allows(*scope));
    let Some(KeyScope { writes, .. }) = scope else {
        return Ok(Identity::Service(Arc::new(token.clone())));
    };
    let mut roles = person.roles();
    // An administrator's key is one of an administrator only if it says so.
    if !token.allows(KeyScope { area: Area::Admin, writes }) {
        roles.remove(&Role::Admin);
    }
    let (until, key) = (token.expires_at, token.token_id);
    let claims = Claims::of_key(owner.user_id, roles, until, key.uuid());
    let credential = Credential { key, reads_personal: token.reads_personal() };
    Ok(Identity::Key(Arc::new(claims), credential))
}

/// How the owner of a key stands, if whoever has the key may still come in.
async fn owner_let_in(app: &App, owner: &Owner) -> Result<Person, ApiError> {
    let person = app.access().person(app.runtime(), owner.user_id).await?;
    let person = person.ok_or_else(service_over)?;
    match person.status {
        UserStatus::Suspended => Err(suspended()),
        UserStatus::Erased => Err(service_over()),
        _ if !person.lets_key(owner.epoch) => Err(service_over()),
        UserStatus::Pending | UserStatus::Active => Ok(person),
    }
}

/// What a person's key needs for this request.
fn needed_for(parts: &Parts) -> Option<KeyScope> {
    let route = parts.extensions.get::<MatchedPath>()?;
    scopes::needed(&parts.method, route.as_str())
}

/// A call of somebody. Whoever is nobody hears 401 before anything else is said about the request:
/// it stands before the path, the query and the body among a handler's arguments.
#[derive(Debug, Clone)]
pub struct SignedIn(pub Call);

impl FromRequestParts<App> for SignedIn {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let call = Call::from_request_parts(parts, app).await?;
        call.someone()?;
        Ok(Self(call))
    }
}

/// A call of an administrator; everybody else hears 401 or 403 first, as with [`SignedIn`].
#[derive(Debug, Clone)]
pub struct Staff(pub Call);

impl FromRequestParts<App> for Staff {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let call = Call::from_request_parts(parts, app).await?;
        call.staff()?;
        Ok(Self(call))
    }
}

/// A call of whoever may publish events: a service with a token for it, or an administrator.
/// Everybody else hears 401 or 403 first, as with [`SignedIn`].
#[derive(Clone)]
pub struct Publisher {
    /// The call.
    pub call: Call,
    id: Uuid,
    /// The types that the token is for; none: all.
    topics: Option<Arc<[Pattern]>>,
    quota: Option<Quota>,
}

impl FromRequestParts<App> for Publisher {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let call = Call::from_request_parts(parts, app).await?;
        if let Some(service) = call.outside_service() {
            let (id, quota) = (service.token_id.uuid(), service.quota);
            return Ok(Self { call, id, topics: Some(service.topics().into()), quota });
        }
        let id = call.someone()?.uuid();
        if call.is_staff() {
            return Ok(Self { call, id, topics: None, quota: None });
        }
        let detail = "this needs a service token with the scope publisher";
        Err(ApiError::forbidden("insufficient_scope", detail))
    }
}

impl Publisher {
    /// Whose quota is used.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// How much may be published.
    pub fn quota(&self, app: &App) -> Quota {
        let common = &app.settings().publishing;
        self.quota.unwrap_or(Quota {
            events: common.rate_events as u64,
            seconds: common.rate_window.as_secs().max(1),
        })
    }

    /// Whether events of this type may be published.
    pub fn may_publish(&self, event_type: &str) -> bool {
        self.topics
            .as_ref()
            .is_none_or(|topics| topics.iter().any(|topic| topic.matches(event_type)))
    }
}

/// A call of whoever may read single events: an administrator, or a service with a token, which may
/// read what it published and what its scopes allow. Everybody else hears 401 or 403 first, as with
/// [`SignedIn`].
#[derive(Clone)]
pub struct EventReader {
    call: Call,
    /// The types that may be read; none: all.
    topics: Option<Arc<[Pattern]>>,
}

impl FromRequestParts<App> for EventReader {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let call = Call::from_request_parts(parts, app).await?;
        let Some(service) = call.outside_service() else {
            call.staff()?;
            return Ok(Self { call, topics: None });
        };
        Ok(Self { call, topics: Some(service.readable().into()) })
    }
}

impl EventReader {
    /// The call.
    pub fn call(&self) -> &Call {
        &self.call
    }

    /// How personal fields are shown.
    pub fn reveal(&self) -> Reveal {
        self.call.reveal()
    }

    /// The types that may be read; none: all.
    pub fn topics(&self) -> Option<&[Pattern]> {
        self.topics.as_deref()
    }

    /// Whether events of this type may be read.
    pub fn may_read_type(&self, event_type: &str) -> bool {
        self.topics().is_none_or(|topics| topics.iter().any(|topic| topic.matches(event_type)))
    }

    /// Whether this event is one that was published with the token.
    pub fn has_published(&self, event: &StoredEvent) -> bool {
        // The marketplace's own events have no attributes.
        metadata(event)
            .is_some_and(|of| !of.attributes.is_empty() && of.actor_id == self.call.actor_id())
    }

    /// 403: what is asked for is not in the token's scopes.
    pub fn out_of_scope(&self, what: &str) -> ApiError {
        let detail = format!("the token's scopes do not allow to read {what}");
        ApiError::forbidden("insufficient_scope", detail)
    }
}

/// The same of whoever may read the log: what was published with a token is not enough.
#[derive(Clone)]
pub struct LogReader(pub EventReader);

impl FromRequestParts<App> for LogReader {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let reader = EventReader::from_request_parts(parts, app).await?;
        if reader.topics().is_some_and(<[_]>::is_empty) {
            let detail = "this needs a service token with the scope events:read";
            return Err(ApiError::forbidden("insufficient_scope", detail));
        }
        Ok(Self(reader))
    }
}

/// The token that was sent.
fn bearer(parts: &Parts) -> Result<Option<&str>, ApiError> {
    let Some(value) = parts.headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(invalid("send Authorization: Bearer with an access token"));
    }
    Ok(Some(token.trim()))
}

fn invalid(detail: &str) -> ApiError {
    ApiError::unauthorized("invalid_token", detail)
}

/// What the token says; a bad one is an error even where none is needed.
fn claims(app: &App, token: &str) -> Result<Arc<Claims>, ApiError> {
    let read = app.tokens().read(token, app.now());
    read.map_err(|error: TokenError| invalid(&error.to_string()))
}

/// Refuses a good token whose login is over, or whose holder may not come in any more. The development
/// administrator's has no login.
async fn let_in(app: &App, claims: Arc<Claims>) -> Result<Arc<Claims>, ApiError> {
    let Some(session) = claims.session() else { return Ok(claims) };
    let (user, runtime) = (UserId(claims.sub), app.runtime());
    let person = app.access().person(runtime, user).await?.ok_or_else(session_over)?;
    let login = app.access().login(runtime, session).await?.ok_or_else(session_over)?;
    match person.status {
        UserStatus::Suspended => Err(suspended()),
        UserStatus::Erased => Err(session_over()),
        _ if !person.lets(user, session, &login) => Err(session_over()),
        UserStatus::Pending | UserStatus::Active => Ok(claims),
    }
}

/// 403: an administrator has locked them out.
pub(super) fn suspended() -> ApiError {
    ApiError::forbidden("account_suspended", "this account is suspended")
}

fn service_over() -> ApiError {
    invalid("the service token is not valid (any more)")
}

fn session_over() -> ApiError {
    ApiError::unauthorized("session_revoked", "this session has ended; log in again")
}

/// Which service's token it is, if it is still good: one that is taken back is so at once.
async fn service(app: &App, token: &str) -> Result<ServiceTokenDetails, ApiError> {
    let key = app.settings().keys.token.bytes();
    let id = service_token::read(key, token).ok_or_else(service_over)?;
    good_token(app, id).await
}

/// What is known of a token, if it is still good.
async fn good_token(app: &App, id: ServiceTokenId) -> Result<ServiceTokenDetails, ApiError> {
    let tokens = app.runtime().aggregate::<ServiceToken>();
    let details = tokens.read(id.uuid(), |token| token.details.clone()).await?.value;
    details.filter(|details| details.is_good(app.now())).ok_or_else(service_over)
}

/// Notes, behind the answer, that a token was used. Where there is no place, a later use will do.
fn note_use(app: &App, token: ServiceTokenId) {
    let Some(place) = app.unhurried_place() else { return };
    let app = app.clone();
    tokio::spawn(async move {
        let (world, id) = (app.runtime().world(), token.to_string());
        let context = CommandContext::inside(&**world, &id, &id);
        let used = ServiceTokenCommand::Use { now: app.now() };
        let tokens = app.runtime().aggregate::<ServiceToken>();
        if let Err(error) = tokens.send(token.uuid(), used, context, |_| ()).await {
            tracing::debug!(error = %error, "the use of a service token was not noted");
        }
        drop(place);
    });
}

impl Call {
    /// Who asks.
    pub fn caller(&self) -> Caller {
        self.claims.as_deref().map_or(Caller::Anonymous, Claims::caller)
    }

    /// Who asks, when it must be somebody.
    pub fn someone(&self) -> Result<UserId, ApiError> {
        if let Some(service) = &self.service {
            let detail = match (&service.owner, self.needs) {
                (None, _) => "a service token is for events only".to_owned(),
                (Some(_), Some(scope)) => format!("this needs an API key with the scope {scope}"),
                (Some(_), None) => "no API key may do this; log in for it".to_owned(),
            };
            return Err(ApiError::forbidden("insufficient_scope", detail));
        }
        self.caller()
            .user_id()
            .ok_or_else(|| ApiError::unauthorized("unauthenticated", "this needs an access token"))
    }

    /// The service whose token it is; none: it is a person's key, or no such token at all.
    fn outside_service(&self) -> Option<Arc<ServiceTokenDetails>> {
        self.service.clone().filter(|service| service.owner.is_none())
    }

    /// How what is personal in events is shown: a token or a key needs a scope of its own for it.
    pub fn reveal(&self) -> Reveal {
        let of_key = self.credential.is_none_or(|of| of.reads_personal);
        let of_service = self.service.as_ref().is_none_or(|of| of.reads_personal());
        if of_key && of_service { Reveal::Clear } else { Reveal::Redacted }
    }

    /// The session of the token.
    pub fn session(&self) -> Option<SessionId> {
        self.claims.as_deref().and_then(Claims::session)
    }

    /// When the token is over; never without one.
    pub fn expires_at(&self) -> Timestamp {
        let service = self.service.as_ref().map(|service| service.expires_at);
        service.or(self.claims.as_deref().map(Claims::expires_at)).unwrap_or(Timestamp::MAX)
    }

    /// Refuses, while a long answer goes on, what would be refused if it were asked for now: a token
    /// that is over or was taken back, a login that has ended, somebody who was suspended.
    pub async fn is_still_let_in(&self, app: &App) -> Result<(), ApiError> {
        if app.now() >= self.expires_at() {
            return Err(invalid(&TokenError::Expired.to_string()));
        }
        let of_service = self.service.as_ref().map(|service| service.token_id);
        if let Some(id) = of_service.or(self.credential.map(|of| of.key)) {
            let token = good_token(app, id).await?;
            if let Some(owner) = &token.owner {
                owner_let_in(app, owner).await?;
            }
        } else if let Some(claims) = &self.claims {
            let_in(app, claims.clone()).await?;
        }
        Ok(())
    }

    /// Whether an administrator asks.
    pub fn is_staff(&self) -> bool {
        self.caller().has(Role::Admin)
    }

    /// Refuses everybody but administrators.
    pub fn staff(&self) -> Result<UserId, ApiError> {
        let user = self.someone()?;
        if self.is_staff() {
            return Ok(user);
        }
        Err(ApiError::forbidden("insufficient_scope", "this is for administrators"))
    }

    /// Whether a repeat of this request must have no second effect.
    pub fn is_repeatable(&self) -> bool {
        self.key.0.is_some()
    }

    /// The context of the one command of this request: its id follows from the idempotency key,
    /// where there is one. `target` and `canonical_body` are what makes a repeat the same request.
    pub fn context(
        &self,
        app: &App,
        operation: &str,
        target: &str,
        canonical_body: &[u8],
    ) -> CommandContext {
        let mut context = self.plain_context(app);
        let actor = self.caller().actor_id();
        if let Some(key) = &self.key.0 {
            let scope = scope(app, &actor, operation);
            context.command_id = scope.id("command", key);
            context.once = Some(scope.once(target, canonical_body));
        }
        context
    }

    /// Who asks, as events name them: a user or a service.
    pub fn actor_id(&self) -> String {
        match &self.service {
            Some(service) => format!("service_token-{}", service.token_id),
            None => self.caller().actor_id(),
        }
    }

    /// The context of a command that is harmless to repeat.
    pub fn plain_context(&self, app: &App) -> CommandContext {
        let world = app.runtime().world();
        let info = &self.info;
        let mut context = CommandContext::outside(&**world, &info.correlation_id, &info.request_id);
        context.actor_id = self.actor_id().into();
        context.credential = self.credential.map(|of| of.key.to_string().into());
        context.tenant_id = Arc::from(TENANT);
        context.traceparent = Some(info.traceparent.clone());
        context.tracestate = info.tracestate.clone();
        context
    }

    /// The context of a change that may rest on a version.
    pub fn change_context(
        &self,
        app: &App,
        operation: &str,
        target: &str,
        canonical_body: &[u8],
    ) -> CommandContext {
        let mut context = self.context(app, operation, target, canonical_body);
        context.expected_version = self.if_match.version();
        context
    }

    /// The id of what this request creates: it follows from the idempotency key, where there is
    /// one, so that repeats meet in one aggregate.
    pub fn new_id(&self, app: &App, operation: &str) -> Uuid {
        let actor = self.caller().actor_id();
        match &self.key.0 {
            Some(key) => scope(app, &actor, operation).id("create", key),
            None => app.runtime().world().new_id(),
        }
    }
}

fn scope<'a>(app: &'a App, caller: &'a str, operation: &'a str) -> Scope<'a> {
    Scope { secret: app.settings().keys.lookup.bytes(), tenant: TENANT, caller, operation }
}
