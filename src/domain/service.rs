//! The service itself: which version of it runs, and what went wrong inside.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command, NoRejection};
use souk_actors::world::Timestamp;
use uuid::Uuid;

/// A version of the service runs that did not run before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceDeployed {
    /// The version.
    pub version: String,
    /// The revision of the sources, as far as it is known.
    pub revision: String,
    /// When it was first started.
    pub deployed_at: Timestamp,
}

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServiceErrorKind {
    /// An aggregate's actor panicked; it starts again from the journal.
    Panic,
    /// A subscription's circuit opened: what it rests on does not work.
    CircuitOpen,
}

/// Something went wrong inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceError {
    /// What.
    pub kind: ServiceErrorKind,
    /// The type of the aggregate, or the subscription.
    pub subject: String,
    /// The aggregate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggregate_id: Option<Uuid>,
    /// Under which id the log tells of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_id: Option<Uuid>,
    /// When it was noticed.
    pub at: Timestamp,
}

souk_actors::events! {
    /// What happens to the service.
    pub enum ServiceEvent in "system" as "system-service" {
        /// A version runs that did not run before.
        Deployed(ServiceDeployed) = "service.deployment", "ServiceDeployment", 1.0, [];
        /// Something went wrong inside.
        Failed(ServiceError) = "service.error", "ServiceError", 1.0, [];
    }
}

/// What somebody says of the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceCommand {
    /// It starts.
    Start(ServiceDeployed),
    /// Something went wrong.
    Report(ServiceError),
}

impl Command for ServiceCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Start(_) => "StartService",
            Self::Report(_) => "ReportServiceError",
        }
    }
}

/// The service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// The version and the revision that ran last.
    pub running: Option<(String, String)>,
}

impl Service {
    /// The id of the one stream there is.
    pub fn id() -> Uuid {
        souk_actors::id::derived("service", &[])
    }
}

impl Aggregate for Service {
    const TYPE: &'static str = "service";

    type Command = ServiceCommand;
    type Event = ServiceEvent;
    type Rejection = NoRejection;

    fn decide(&self, command: &ServiceCommand) -> Result<Vec<ServiceEvent>, NoRejection> {
        Ok(match command {
            ServiceCommand::Start(new) => {
                let (version, revision) = (&new.version, &new.revision);
                match &self.running {
                    Some((was, of)) if was == version && of == revision => Vec::new(),
                    _ => vec![ServiceEvent::Deployed(new.clone())],
                }
            }
            ServiceCommand::Report(error) => vec![ServiceEvent::Failed(error.clone())],
        })
    }

    fn apply(&mut self, event: &ServiceEvent) {
        if let ServiceEvent::Deployed(new) = event {
            self.running = Some((new.version.clone(), new.revision.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use souk_actors::event::EventPayload as _;

    use super::*;

    #[test]
    fn each_version_is_deployed_once_however_often_it_starts() {
        let mut service = Service::default();
        let mut deployed = Vec::new();
        for version in ["1.0.0", "1.0.0", "1.1.0", "1.1.0", "1.0.0"] {
            let start = ServiceCommand::Start(ServiceDeployed {
                version: version.to_owned(),
                revision: "abc".to_owned(),
                deployed_at: Timestamp::from_millis(0),
            });
            for event in service.decide(&start).unwrap() {
                service.apply(&event);
                deployed.push(version);
            }
        }
        assert_eq!(deployed, ["1.0.0", "1.1.0", "1.0.0"], "going back is a deployment too");
    }

    #[test]
    fn every_error_is_told() {
        let error = ServiceError {
            kind: ServiceErrorKind::CircuitOpen,
            subject: "notification-email".to_owned(),
            aggregate_id: None,
            error_id: None,
            at: Timestamp::from_millis(0),
        };
        let told = Service::default().decide(&ServiceCommand::Report(error.clone())).unwrap();
        assert_eq!(told, [ServiceEvent::Failed(error)]);
        assert!(told[0].encode().contains("\"circuit_open\""));
    }
}
