//! Tokens of services outside: an administrator issues one with what it may do, and takes it back.
//! The token's text is never stored: it is signed, and this says whether it is still good.
//!
//! A token that has an owner is a person's key for their own programs: what it does is done by the
//! owner, within its scopes. It belongs to the epoch of logins that its owner was in when it was made
//! (see [`user`](super::user)): whatever ends the owner's logins ends the key.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command};
use souk_actors::broker::Pattern;
use souk_actors::personal::Personal;
use souk_actors::world::Timestamp;

use super::caller::{Caller, Role};
use super::ids::{ServiceTokenId, UserId};
use super::rejection::{invalid_from_fields, rejections};
use super::text::{self, FieldError, Fields};

/// May publish events: of all types, or `publisher:<topic pattern>` of some.
const PUBLISHER: &str = "publisher";
/// May read events: of all types, or `events:read:<topic pattern>` of some.
const READER: &str = "events:read";
/// May read what is personal in them.
const PERSONAL: &str = "pii:read";
/// How many scopes a token may have: all that there are for an administrator's key.
const SCOPES_MAX: usize = 19;
/// How much a token may be allowed at most: events, and seconds.
const QUOTA_MAX: u64 = 100_000_000;
const WINDOW_SECONDS_MAX: u64 = 24 * 60 * 60;
/// A use is not recorded when another was so short a time ago.
const USE_EVERY: Duration = Duration::from_secs(60 * 60);

/// What a person's key may be for, together with `:read` or `:write`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// Who the owner is: the profile, the address book, the business, points and figures.
    Profile,
    /// What the owner sells.
    Listings,
    /// What the owner buys and sells: orders with all that belongs to them.
    Orders,
    /// Promotion codes.
    Promotions,
    /// The balance and what is paid out of it.
    Payouts,
    /// Reviews and answers to them.
    Reviews,
    /// Whom the owner follows, and favourites.
    Interests,
    /// What the owner is told.
    Notifications,
    /// The marketplace, for administrators.
    Admin,
}

impl Area {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Profile,
        Self::Listings,
        Self::Orders,
        Self::Promotions,
        Self::Payouts,
        Self::Reviews,
        Self::Interests,
        Self::Notifications,
        Self::Admin,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Profile => "profile",
            Self::Listings => "listings",
            Self::Orders => "orders",
            Self::Promotions => "promotions",
            Self::Payouts => "payouts",
            Self::Reviews => "reviews",
            Self::Interests => "interests",
            Self::Notifications => "notifications",
            Self::Admin => "admin",
        }
    }
}

/// One thing that a person's key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyScope {
    /// In which part of the marketplace.
    pub area: Area,
    /// Whether to change things there, and not to look at them.
    pub writes: bool,
}

impl KeyScope {
    /// All that there are.
    pub fn all() -> impl Iterator<Item = Self> {
        Area::ALL.into_iter().flat_map(|area| [false, true].map(|writes| Self { area, writes }))
    }
}

impl fmt::Display for KeyScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.area.as_str(), if self.writes { "write" } else { "read" })
    }
}

/// Whose key a token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewOwner {
    /// The person.
    pub user_id: UserId,
    /// The epoch of logins that they are in.
    pub epoch: u32,
}

/// How many events a token may publish in how many seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Quota {
    /// So many events.
    pub events: u64,
    /// In so many seconds.
    pub seconds: u64,
}

/// What to do with a token.
#[derive(Debug, Clone, PartialEq)]
pub enum ServiceTokenCommand {
    /// Issue it.
    Issue {
        /// Who asks.
        caller: Caller,
        /// The new token.
        token_id: ServiceTokenId,
        /// What people call it.
        name: String,
        /// What it may do.
        scopes: Vec<String>,
        /// Its own quota; none: the one for all.
        quota: Option<Quota>,
        /// Whose key it is; none: it is a service's.
        owner: Option<NewOwner>,
        /// When.
        now: Timestamp,
        /// Until when it is good.
        expires_at: Timestamp,
    },
    /// Take it back.
    Revoke {
        /// Who asks.
        caller: Caller,
        /// When.
        now: Timestamp,
    },
    /// Note that it was used.
    Use {
        /// When.
        now: Timestamp,
    },
}

impl Command for ServiceTokenCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Issue { .. } => "IssueServiceToken",
            Self::Revoke { .. } => "RevokeServiceToken",
            Self::Use { .. } => "UseServiceToken",
        }
    }
}

souk_actors::events! {
    /// What happens to tokens of services.
    pub enum ServiceTokenEvent in "publishing" as "gateway-service" {
        /// It was issued.
        Issued(ServiceTokenIssued) = "service_token.issued", "ServiceTokenIssued", 1.0, [];
        /// It was taken back.
        Revoked(ServiceTokenRevoked) = "service_token.revoked", "ServiceTokenRevoked", 1.0, [];
        /// It was used, for the first time in a while.
        Used(ServiceTokenUsed) = "service_token.used", "ServiceTokenUsed", 1.0, [];
    }
}

/// A token was issued.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceTokenIssued {
    /// The token.
    pub token_id: ServiceTokenId,
    /// What people call it; empty for a person's key.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// Its own quota.
    pub quota: Option<Quota>,
    /// Whose key it is; none: it is a service's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
    /// The epoch of the owner's logins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u32>,
    /// What its owner calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<Personal<String>>,
    /// When.
    pub issued_at: Timestamp,
    /// Until when it is good.
    pub expires_at: Timestamp,
}

/// A token was taken back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceTokenRevoked {
    /// The token.
    pub token_id: ServiceTokenId,
    /// When.
    pub revoked_at: Timestamp,
}

/// A token was used. The next use that is recorded is an hour later at the earliest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceTokenUsed {
    /// The token.
    pub token_id: ServiceTokenId,
    /// When.
    pub used_at: Timestamp,
}

rejections! {
    /// Why a token refuses a command.
    pub enum ServiceTokenRejection {
        /// Administrators only, or the owner.
        Forbidden = "forbidden", "only administrators keep service tokens, and people their own keys";
        /// The id is taken.
        AlreadyIssued = "already_issued", "this token has already been issued";
        /// Never issued.
        NotFound = "not_found", "there is no such token";
        /// Fields are wrong.
        Invalid {
            /// Which, and how.
            errors: Vec<FieldError>,
        } = "invalid", "some fields are not valid";
    }
}
invalid_from_fields!(ServiceTokenRejection);

/// A token, or the absence of one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceToken {
    /// Everything about it, once issued.
    pub details: Option<ServiceTokenDetails>,
}

/// What is known of a token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceTokenDetails {
    /// The token.
    pub token_id: ServiceTokenId,
    /// What people call it.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// Its own quota.
    pub quota: Option<Quota>,
    /// When it was issued.
    pub issued_at: Timestamp,
    /// Until when it is good.
    pub expires_at: Timestamp,
    /// Since when it is not good any more, though its time is not over.
    pub revoked_at: Option<Timestamp>,
    /// Whose key it is; none: it is a service's.
    #[serde(default)]
    pub owner: Option<Owner>,
    /// When it was last used, to the hour.
    #[serde(default)]
    pub last_used_at: Option<Timestamp>,
}

/// Whose key a token is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Owner {
    /// The person.
    pub user_id: UserId,
    /// The epoch of logins that it belongs to.
    pub epoch: u32,
    /// What its owner calls it.
    pub label: Personal<String>,
}

impl Owner {
    fn of(event: &ServiceTokenIssued) -> Option<Self> {
        let (user_id, label) = (event.user_id?, event.label.clone()?);
        Some(Self { user_id, epoch: event.epoch.unwrap_or_default(), label })
    }
}

impl ServiceTokenDetails {
    /// Whose key it is.
    pub fn owner_id(&self) -> Option<UserId> {
        self.owner.as_ref().map(|owner| owner.user_id)
    }

    /// Whether it lets anybody in at `now`.
    pub fn is_good(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && now < self.expires_at
    }

    /// Which types it may publish.
    pub fn topics(&self) -> Vec<Pattern> {
        self.scopes.iter().filter_map(|scope| topic(PUBLISHER, scope)).collect()
    }

    /// Which types it may read.
    pub fn readable(&self) -> Vec<Pattern> {
        self.scopes.iter().filter_map(|scope| topic(READER, scope)).collect()
    }

    /// Whether a use at `now` would be recorded.
    pub fn is_use_news(&self, now: Timestamp) -> bool {
        self.last_used_at.is_none_or(|last| last.plus(USE_EVERY) <= now)
    }

    /// Whether it lets its owner do this.
    pub fn allows(&self, scope: KeyScope) -> bool {
        let scope = scope.to_string();
        self.scopes.contains(&scope)
    }

    /// Whether it may read what is personal in events.
    pub fn reads_personal(&self) -> bool {
        self.scopes.iter().any(|scope| scope == PERSONAL)
    }
}

/// Whether there is such a scope.
fn is_scope(scope: &str) -> bool {
    scope == PERSONAL || topic(PUBLISHER, scope).is_some() || topic(READER, scope).is_some()
}

/// The types that a scope is for, if it lets do this.
fn topic(what: &str, scope: &str) -> Option<Pattern> {
    let pattern = match scope.strip_prefix(what)? {
        "" => "#",
        rest => rest.strip_prefix(':').filter(|pattern| !pattern.starts_with('~'))?,
    };
    Pattern::parse(pattern).ok()
}

/// What is wrong with the scopes of a person's key.
fn check_scopes_of_key(fields: &mut Fields, caller: &Caller, scopes: &[String]) {
    for (index, scope) in scopes.iter().enumerate() {
        let pointer = format!("/scopes/{index}");
        let known = KeyScope::all().find(|of| of.to_string() == *scope);
        if scope == PERSONAL || known.is_some_and(|of| of.area == Area::Admin) {
            let detail = "is for administrators";
            fields.require(caller.has(Role::Admin), &pointer, "not_yours", detail);
        } else if known.is_none() {
            let all: Vec<_> = KeyScope::all().map(|of| of.to_string()).collect();
            let detail = format!("must be one of {}, {PERSONAL}", all.join(", "));
            fields.error(&pointer, "unknown_scope", detail);
        }
    }
}

fn check_scopes_of_service(fields: &mut Fields, scopes: &[String]) {
    for (index, scope) in scopes.iter().enumerate() {
        let detail = "must be publisher, events:read, either with :<topic pattern> behind it \
            (publisher:partner.*, events:read:order.#), or pii:read";
        let pointer = format!("/scopes/{index}");
        fields.require(is_scope(scope), &pointer, "unknown_scope", detail);
    }
}

fn issue(command: &ServiceTokenCommand) -> Result<Vec<ServiceTokenEvent>, ServiceTokenRejection> {
    let ServiceTokenCommand::Issue {
        caller,
        token_id,
        name,
        scopes,
        quota,
        owner,
        now,
        expires_at,
    } = command
    else {
        return Err(ServiceTokenRejection::NotFound);
    };
    let mut fields = Fields::default();
    let name = fields.line("/name", name, text::NAME_MAX);
    let count = (1..=SCOPES_MAX).contains(&scopes.len());
    fields.require(count, "/scopes", "out_of_range", "must have 1 to 19 items");
    match owner {
        Some(_) => check_scopes_of_key(&mut fields, caller, scopes),
        None => check_scopes_of_service(&mut fields, scopes),
    }
    fields.require(expires_at > now, "/expires_in", "out_of_range", "must be longer than nothing");
    let fits = quota.is_none_or(|quota| {
        (1..=QUOTA_MAX).contains(&quota.events) && (1..=WINDOW_SECONDS_MAX).contains(&quota.seconds)
    });
    let detail = "must be 1 to 100000000 events in 1 to 86400 seconds";
    fields.require(fits, "/rate_limit", "out_of_range", detail);
    fields.finish()?;
    let (name, label) = match owner {
        Some(owner) => (String::new(), Some(Personal::new(owner.user_id.uuid(), name))),
        None => (name, None),
    };
    Ok(vec![ServiceTokenEvent::Issued(ServiceTokenIssued {
        token_id: *token_id,
        name,
        scopes: scopes.clone(),
        quota: *quota,
        user_id: owner.as_ref().map(|owner| owner.user_id),
        epoch: owner.as_ref().map(|owner| owner.epoch),
        label,
        issued_at: *now,
        expires_at: *expires_at,
    })])
}

/// Whether somebody may keep tokens of this owner.
fn keeps(caller: &Caller, owner: Option<UserId>) -> bool {
    caller.is_staff() || owner.is_some_and(|owner| caller.is(owner))
}

impl Aggregate for ServiceToken {
    const TYPE: &'static str = "service_token";
    type Command = ServiceTokenCommand;
    type Event = ServiceTokenEvent;
    type Rejection = ServiceTokenRejection;

    fn decide(
        &self,
        command: &ServiceTokenCommand,
    ) -> Result<Vec<ServiceTokenEvent>, ServiceTokenRejection> {
        match (command, &self.details) {
            (ServiceTokenCommand::Issue { caller, owner, .. }, details) => {
                // A key is made by its owner alone.
                let may = match owner {
                    Some(owner) => caller.is(owner.user_id),
                    None => caller.is_staff(),
                };
                match (may, details) {
                    (false, _) => Err(ServiceTokenRejection::Forbidden),
                    (true, Some(_)) => Err(ServiceTokenRejection::AlreadyIssued),
                    (true, None) => issue(command),
                }
            }
            (ServiceTokenCommand::Revoke { caller, now }, details) => {
                let owner = details.as_ref().and_then(ServiceTokenDetails::owner_id);
                if !keeps(caller, owner) {
                    return Err(ServiceTokenRejection::Forbidden);
                }
                let details = details.as_ref().ok_or(ServiceTokenRejection::NotFound)?;
                let revoked = ServiceTokenRevoked { token_id: details.token_id, revoked_at: *now };
                let is_new = details.revoked_at.is_none();
                Ok(is_new.then_some(ServiceTokenEvent::Revoked(revoked)).into_iter().collect())
            }
            (ServiceTokenCommand::Use { .. }, None) => Err(ServiceTokenRejection::NotFound),
            (ServiceTokenCommand::Use { now }, Some(details)) => {
                let used = ServiceTokenUsed { token_id: details.token_id, used_at: *now };
                let is_news = details.is_good(*now) && details.is_use_news(*now);
                Ok(is_news.then_some(ServiceTokenEvent::Used(used)).into_iter().collect())
            }
        }
    }

    fn apply(&mut self, event: &ServiceTokenEvent) {
        match (event, &mut self.details) {
            (ServiceTokenEvent::Issued(event), details) => {
                *details = Some(ServiceTokenDetails {
                    token_id: event.token_id,
                    name: event.name.clone(),
                    scopes: event.scopes.clone(),
                    quota: event.quota,
                    issued_at: event.issued_at,
                    expires_at: event.expires_at,
                    revoked_at: None,
                    owner: Owner::of(event),
                    last_used_at: None,
                });
            }
            (ServiceTokenEvent::Revoked(event), Some(details)) => {
                details.revoked_at = Some(event.revoked_at);
            }
            (ServiceTokenEvent::Used(event), Some(details)) => {
                details.last_used_at = Some(event.used_at);
            }
            (ServiceTokenEvent::Revoked(_) | ServiceTokenEvent::Used(_), None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::testing::{BUYER, admin, assert_folds, buyer, run, stranger, user};

    const NOW: Timestamp = Timestamp::from_millis(1_000);
    const LATER: Timestamp = Timestamp::from_millis(9_000);

    fn issue(scopes: &[&str]) -> ServiceTokenCommand {
        ServiceTokenCommand::Issue {
            caller: Caller::System,
            token_id: ServiceTokenId(Uuid::from_u128(1)),
            name: "the warehouse".to_owned(),
            scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
            quota: None,
            owner: None,
            now: NOW,
            expires_at: LATER,
        }
    }

    fn key(caller: Caller, scopes: &[&str]) -> ServiceTokenCommand {
        ServiceTokenCommand::Issue {
            caller,
            token_id: ServiceTokenId(Uuid::from_u128(1)),
            name: "my program".to_owned(),
            scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
            quota: None,
            owner: Some(NewOwner { user_id: user(BUYER), epoch: 3 }),
            now: NOW,
            expires_at: LATER,
        }
    }

    #[test]
    fn people_make_and_take_back_keys_of_their_own() {
        let revoke = |caller| ServiceTokenCommand::Revoke { caller, now: NOW };
        let made = key(buyer(), &["orders:read", "listings:write"]);
        let (state, history) = run::<ServiceToken>(&[made.clone(), revoke(buyer())]);
        assert_folds(&state, &history);
        let details = state.details.unwrap();
        let owner = details.owner.as_ref().unwrap();
        assert_eq!((owner.user_id, owner.epoch), (user(BUYER), 3));
        assert_eq!(owner.label.get().map(String::as_str), Some("my program"));
        assert_eq!(details.name, "", "what a person calls it is sealed");
        assert!(details.revoked_at.is_some());
        let scope = |area, writes| KeyScope { area, writes };
        assert!(details.allows(scope(Area::Orders, false)));
        assert!(!details.allows(scope(Area::Orders, true)));
        assert!(!details.allows(scope(Area::Listings, false)), "to write is not to read");
        assert!(details.topics().is_empty() && details.readable().is_empty());
        let (state, _) = run::<ServiceToken>(&[made]);
        assert_eq!(state.decide(&revoke(stranger())), Err(ServiceTokenRejection::Forbidden));
        assert!(state.decide(&revoke(admin())).is_ok());
        for caller in [stranger(), admin(), Caller::System, Caller::Anonymous] {
            let refused = ServiceToken::default().decide(&key(caller, &["orders:read"]));
            assert_eq!(refused, Err(ServiceTokenRejection::Forbidden));
        }
    }

    #[test]
    fn a_key_has_no_more_than_its_owner_and_nothing_of_a_services() {
        for scope in
            ["admin:read", "publisher", "events:read", "pii:read", "orders", "orders:*", ""]
        {
            let refused = ServiceToken::default().decide(&key(buyer(), &[scope])).unwrap_err();
            assert!(matches!(refused, ServiceTokenRejection::Invalid { .. }), "{scope}");
        }
        let boss = Caller::user(user(BUYER), [Role::Admin]);
        let mut all: Vec<_> = KeyScope::all().map(|scope| scope.to_string()).collect();
        all.push(PERSONAL.to_owned());
        let all: Vec<_> = all.iter().map(String::as_str).collect();
        let (state, _) = run::<ServiceToken>(&[key(boss.clone(), &all)]);
        assert!(state.details.unwrap().reads_personal());
        let (state, _) = run::<ServiceToken>(&[key(boss, &["admin:read"])]);
        assert!(!state.details.unwrap().reads_personal());
        assert!(ServiceToken::default().decide(&issue(&["orders:read"])).is_err());
    }

    #[test]
    fn a_use_is_recorded_once_an_hour() {
        let at = |seconds| NOW.plus(Duration::from_secs(seconds));
        let used = |seconds| ServiceTokenCommand::Use { now: at(seconds) };
        let mut made = issue(&["publisher"]);
        if let ServiceTokenCommand::Issue { expires_at, .. } = &mut made {
            *expires_at = at(10_000);
        }
        let (state, history) =
            run::<ServiceToken>(&[made, used(1), used(3_600), used(3_601), used(10_000)]);
        assert_eq!(history.len(), 3, "{history:?}");
        assert_folds(&state, &history);
        assert_eq!(state.details.unwrap().last_used_at, Some(at(3_601)));
    }

    #[test]
    fn a_token_is_good_until_its_time_is_over_or_it_is_taken_back() {
        let revoke = ServiceTokenCommand::Revoke { caller: Caller::System, now: NOW };
        let commands = [issue(&["publisher:partner.*"]), revoke.clone(), revoke];
        let (state, history) = run::<ServiceToken>(&commands[..1]);
        let details = state.details.unwrap();
        assert!(details.is_good(NOW) && !details.is_good(LATER));
        let [topic] = &details.topics()[..] else { panic!("one scope") };
        assert!(topic.matches("partner.counted") && !topic.matches("other.counted"));
        assert_eq!(history.len(), 1);
        let (state, history) = run::<ServiceToken>(&commands);
        assert_eq!(history.len(), 2);
        assert_folds(&state, &history);
        assert!(!state.details.unwrap().is_good(NOW));
    }

    #[test]
    fn what_may_be_read_is_one_thing_and_what_may_be_published_another() {
        let scopes = ["events:read:order.*", "events:read:payment.captured", "publisher:partner.#"];
        let (state, _) = run::<ServiceToken>(&[issue(&scopes)]);
        let details = state.details.unwrap();
        let reads = |event_type| details.readable().iter().any(|of| of.matches(event_type));
        assert!(reads("order.placed") && reads("payment.captured"));
        assert!(!reads("payment.failed") && !reads("partner.counted"));
        assert!(!details.topics().iter().any(|of| of.matches("order.placed")));
        assert!(!details.reads_personal());
        let (state, _) = run::<ServiceToken>(&[issue(&["events:read", "pii:read"])]);
        let details = state.details.unwrap();
        assert!(details.readable()[0].matches("any.thing.at_all") && details.reads_personal());
        assert!(details.topics().is_empty());
    }

    #[test]
    fn only_administrators_issue_tokens_and_only_with_scopes_that_there_are() {
        let state = ServiceToken::default();
        for scopes in [
            &[][..],
            &["admin"],
            &["publisher:"],
            &["publisher:~.*"],
            &["publishers"],
            &["events"],
            &["events:read:"],
            &["events:read:~.*"],
            &["events:write"],
            &["pii:read:order.*"],
        ] {
            let refused = state.decide(&issue(scopes)).unwrap_err();
            assert!(matches!(refused, ServiceTokenRejection::Invalid { .. }), "{scopes:?}");
        }
        let mut command = issue(&["publisher"]);
        if let ServiceTokenCommand::Issue { caller, .. } = &mut command {
            *caller = Caller::Anonymous;
        }
        assert_eq!(state.decide(&command), Err(ServiceTokenRejection::Forbidden));
    }
}
