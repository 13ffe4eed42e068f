//! Tokens of services outside: an administrator issues one with what it may do, and takes it back.
//! The token's text is never stored: it is signed, and this says whether it is still good.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command};
use souk_actors::broker::Pattern;
use souk_actors::world::Timestamp;

use super::caller::Caller;
use super::ids::ServiceTokenId;
use super::rejection::{invalid_from_fields, rejections};
use super::text::{self, FieldError, Fields};

/// May publish events: of all types, or `publisher:<topic pattern>` of some.
const PUBLISHER: &str = "publisher";
/// May read events: of all types, or `events:read:<topic pattern>` of some.
const READER: &str = "events:read";
/// May read what is personal in them.
const PERSONAL: &str = "pii:read";
/// How many scopes a token may have.
const SCOPES_MAX: usize = 16;
/// How much a token may be allowed at most: events, and seconds.
const QUOTA_MAX: u64 = 100_000_000;
const WINDOW_SECONDS_MAX: u64 = 24 * 60 * 60;

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
}

impl Command for ServiceTokenCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Issue { .. } => "IssueServiceToken",
            Self::Revoke { .. } => "RevokeServiceToken",
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
    }
}

/// A token was issued.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceTokenIssued {
    /// The token.
    pub token_id: ServiceTokenId,
    /// What people call it.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// Its own quota.
    pub quota: Option<Quota>,
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

rejections! {
    /// Why a token refuses a command.
    pub enum ServiceTokenRejection {
        /// Administrators only.
        Forbidden = "forbidden", "only administrators keep service tokens";
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
}

impl ServiceTokenDetails {
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

fn issue(command: &ServiceTokenCommand) -> Result<Vec<ServiceTokenEvent>, ServiceTokenRejection> {
    let ServiceTokenCommand::Issue { token_id, name, scopes, quota, now, expires_at, .. } = command
    else {
        return Err(ServiceTokenRejection::NotFound);
    };
    let mut fields = Fields::default();
    let name = fields.line("/name", name, text::NAME_MAX);
    let count = (1..=SCOPES_MAX).contains(&scopes.len());
    fields.require(count, "/scopes", "out_of_range", "must have 1 to 16 items");
    for (index, scope) in scopes.iter().enumerate() {
        let detail = "must be publisher, events:read, either with :<topic pattern> behind it \
            (publisher:partner.*, events:read:order.#), or pii:read";
        let pointer = format!("/scopes/{index}");
        fields.require(is_scope(scope), &pointer, "unknown_scope", detail);
    }
    fields.require(expires_at > now, "/expires_in", "out_of_range", "must be longer than nothing");
    let fits = quota.is_none_or(|quota| {
        (1..=QUOTA_MAX).contains(&quota.events) && (1..=WINDOW_SECONDS_MAX).contains(&quota.seconds)
    });
    let detail = "must be 1 to 100000000 events in 1 to 86400 seconds";
    fields.require(fits, "/rate_limit", "out_of_range", detail);
    fields.finish()?;
    Ok(vec![ServiceTokenEvent::Issued(ServiceTokenIssued {
        token_id: *token_id,
        name,
        scopes: scopes.clone(),
        quota: *quota,
        issued_at: *now,
        expires_at: *expires_at,
    })])
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
        let (ServiceTokenCommand::Issue { caller, .. }
        | ServiceTokenCommand::Revoke { caller, .. }) = command;
        if !caller.is_staff() {
            return Err(ServiceTokenRejection::Forbidden);
        }
        match (command, &self.details) {
            (ServiceTokenCommand::Issue { .. }, None) => issue(command),
            (ServiceTokenCommand::Issue { .. }, Some(_)) => {
                Err(ServiceTokenRejection::AlreadyIssued)
            }
            (ServiceTokenCommand::Revoke { .. }, None) => Err(ServiceTokenRejection::NotFound),
            (ServiceTokenCommand::Revoke { now, .. }, Some(details)) => {
                let revoked = ServiceTokenRevoked { token_id: details.token_id, revoked_at: *now };
                let is_new = details.revoked_at.is_none();
                Ok(is_new.then_some(ServiceTokenEvent::Revoked(revoked)).into_iter().collect())
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
                });
            }
            (ServiceTokenEvent::Revoked(event), Some(details)) => {
                details.revoked_at = Some(event.revoked_at);
            }
            (ServiceTokenEvent::Revoked(_), None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::testing::{assert_folds, run};

    const NOW: Timestamp = Timestamp::from_millis(1_000);
    const LATER: Timestamp = Timestamp::from_millis(9_000);

    fn issue(scopes: &[&str]) -> ServiceTokenCommand {
        ServiceTokenCommand::Issue {
            caller: Caller::System,
            token_id: ServiceTokenId(Uuid::from_u128(1)),
            name: "the warehouse".to_owned(),
            scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
            quota: None,
            now: NOW,
            expires_at: LATER,
        }
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
        let ServiceTokenCommand::Issue { token_id, name, scopes, quota, now, expires_at, .. } =
            issue(&["publisher"])
        else {
            panic!("it issues")
        };
        let caller = Caller::Anonymous;
        let command =
            ServiceTokenCommand::Issue { caller, token_id, name, scopes, quota, now, expires_at };
        assert_eq!(state.decide(&command), Err(ServiceTokenRejection::Forbidden));
    }
}
