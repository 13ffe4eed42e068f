//! What a notification says, to whom: made from its template, its sealed parameters and its
//! recipient. Nothing clear is stored, so this is done again whenever somebody wants to read it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use uuid::Uuid;

use super::command_failed;
use super::notifications::{NONCE, RESET_NONCE};
use super::templates::{RenderError, Rendered, Templates};
use crate::domain::notification::{Channel, Notification, NotificationDetails};
use crate::domain::user::{User, UserDetails, UserStatus};

/// Makes the verification token of a user from its nonce.
pub type TokenOf = Arc<dyn Fn(Uuid, &str) -> String + Send + Sync>;

/// Why a message cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ComposeError {
    /// There is nobody to write to any more.
    #[error("the recipient has been erased")]
    Erased,
    /// The recipient wants no text messages (any more), or has no number.
    #[error("the recipient wants no text messages")]
    NotWanted,
    /// The template does not fit.
    #[error(transparent)]
    Render(#[from] RenderError),
}

impl ComposeError {
    /// A stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Erased => "recipient_erased",
            Self::NotWanted => "not_opted_in",
            Self::Render(_) => "template_unusable",
        }
    }
}

/// Writes messages. Cheap to clone.
#[derive(Clone)]
pub struct Composer {
    templates: Arc<Templates>,
    token_of: TokenOf,
}

impl Composer {
    /// Writes with these templates.
    pub fn new(templates: Arc<Templates>, token_of: TokenOf) -> Self {
        Self { templates, token_of }
    }

    fn values(
        &self,
        details: &NotificationDetails,
        user: Option<&UserDetails>,
    ) -> Result<BTreeMap<String, String>, ComposeError> {
        let mut values = details.params.get().cloned().ok_or(ComposeError::Erased)?;
        values.insert("user_id".to_owned(), details.recipient.to_string());
        if let Some(first_name) = user.and_then(|user| user.first_name.get()) {
            values.entry("first_name".to_owned()).or_insert_with(|| first_name.clone());
        }
        if let Some(nonce) = values.remove(NONCE) {
            let token = (self.token_of)(details.recipient.uuid(), &nonce);
            values.insert("verification_token".to_owned(), token);
        }
        if let Some(nonce) = values.remove(RESET_NONCE) {
            let token = (self.token_of)(details.recipient.uuid(), &nonce);
            values.insert("reset_token".to_owned(), token);
        }
        Ok(values)
    }

    /// The templates.
    pub fn templates(&self) -> &Templates {
        &self.templates
    }

    /// The address and the words of a mail.
    pub fn mail(
        &self,
        details: &NotificationDetails,
        user: Option<&UserDetails>,
    ) -> Result<(String, Rendered), ComposeError> {
        let to = match &details.to {
            Some(address) => address.get(),
            None => user.and_then(|user| user.email.get()),
        };
        let to = to.cloned().ok_or(ComposeError::Erased)?;
        let words = self.words(details, user).map_err(|error| match user {
            // What the words lack has been forgotten meanwhile.
            Some(user) if user.status == UserStatus::Erased => ComposeError::Erased,
            _ => error,
        })?;
        Ok((to, words))
    }

    /// The number and the words of a text message, as long as its recipient wants any.
    pub fn sms(
        &self,
        details: &NotificationDetails,
        user: Option<&UserDetails>,
    ) -> Result<(String, String), ComposeError> {
        let user = user.ok_or(ComposeError::Erased)?;
        let number = user.sms_number(details.requested_at).ok_or(ComposeError::NotWanted)?;
        let words = self.templates.sms(&details.template, &self.values(details, Some(user))?)?;
        Ok((number.clone(), words))
    }

    /// The words of a message that is read inside the marketplace, or of a mail without its address.
    pub fn words(
        &self,
        details: &NotificationDetails,
        user: Option<&UserDetails>,
    ) -> Result<Rendered, ComposeError> {
        Ok(self.templates.render(&details.template, &self.values(details, user)?)?)
    }
}

/// Takes the messages of one channel alone, by the request for each. One that cannot be read is taken too, and
/// becomes a letter.
pub fn of_channel(
    channel: Channel,
) -> impl Fn(&StoredEvent) -> Option<Uuid> + Send + Sync + 'static {
    #[derive(Deserialize)]
    struct Requested {
        channel: Channel,
    }
    move |event| {
        let requested = serde_json::from_str::<Requested>(&event.data);
        let is_anothers = requested.is_ok_and(|requested| requested.channel != channel);
        (!is_anothers).then_some(event.aggregate_id)
    }
}

/// A notification, if there is one, and its recipient, who may be nobody.
pub async fn look_up(
    runtime: &Runtime,
    id: Uuid,
) -> Result<Option<(NotificationDetails, Option<UserDetails>)>, Failure> {
    let notifications = runtime.aggregate::<Notification>();
    let read = notifications.read_inside(id, |notification| notification.details.clone()).await;
    let Some(details) = read.map_err(|error| command_failed(&error))?.value else {
        return Ok(None);
    };
    let users = runtime.aggregate::<User>();
    let read = users.read_inside(details.recipient.uuid(), |user| user.details.clone()).await;
    let user = read.map_err(|error| command_failed(&error))?.value;
    Ok(Some((details, user)))
}

#[cfg(test)]
mod tests {
    use souk_actors::aggregate::Aggregate as _;
    use souk_actors::personal::Personal;
    use souk_actors::world::Timestamp;

    use super::*;
    use crate::domain::caller::Caller;
    use crate::domain::ids::{EmailClaimId, NotificationId, UserId};
    use crate::domain::notification::{Audience, NotificationStatus, Params};
    use crate::domain::user::{Registration, UserCommand};

    fn details(params: Personal<Params>, to: Option<Personal<String>>) -> NotificationDetails {
        NotificationDetails {
            notification_id: NotificationId(Uuid::from_u128(1)),
            recipient: UserId(Uuid::from_u128(7)),
            audience: Audience::User,
            channel: Channel::Email,
            template: "welcome_verification".to_owned(),
            to,
            params,
            order_id: None,
            cause_event_id: Uuid::nil(),
            status: NotificationStatus::Requested,
            attempts: 0,
            unknown: 0,
            provider_message_id: None,
            adapter: None,
            failure: None,
            bounced_for_good: false,
            requested_at: Timestamp::from_millis(0),
            sent_at: None,
            read_at: None,
            acknowledged_at: None,
            escalated_at: None,
        }
    }

    #[test]
    fn each_channel_has_its_own_messages() {
        let mut event = crate::projections::testing::stored(
            &crate::domain::category::CategoryEvent::Created(
                crate::domain::category::CategoryCreated {
                    category_id: crate::domain::ids::CategoryId(Uuid::nil()),
                    name: String::new(),
                    slug: String::new(),
                    created_at: Timestamp::from_millis(0),
                },
            ),
            "notification",
            Uuid::from_u128(7),
        );
        let (mails, texts) = (of_channel(Channel::Email), of_channel(Channel::Sms));
        let mut of = |data: &str| {
            event.data = data.into();
            (mails(&event).is_some(), texts(&event).is_some())
        };
        assert_eq!(of(r#"{"template":"receipt","channel":"email"}"#), (true, false));
        assert_eq!(of(r#"{"channel":"sms"}"#), (false, true));
        assert_eq!(of(r#"{"channel":"in_app"}"#), (false, false));
        // Nobody passes over what nobody can read.
        for unreadable in ["{}", r#"{"channel":"pigeon"}"#, "no JSON"] {
            assert_eq!(of(unreadable), (true, true), "{unreadable}");
        }
    }

    fn composer() -> Composer {
        let token_of = |user: Uuid, nonce: &str| format!("token-{}-{nonce}", user.as_u128());
        Composer::new(Arc::new(Templates::built_in()), Arc::new(token_of))
    }

    #[test]
    fn the_token_is_made_from_the_nonce_and_only_the_mail_has_it() {
        let subject = Uuid::from_u128(7);
        let params = Params::from([
            (NONCE.to_owned(), "abc".to_owned()),
            ("first_name".to_owned(), "Ada".to_owned()),
        ]);
        let to = Some(Personal::new(subject, "ada@example.com".to_owned()));
        let stored = details(Personal::new(subject, params), to);
        let (to, words) = composer().mail(&stored, None).unwrap();
        assert_eq!(to, "ada@example.com");
        assert!(words.text.contains("token-7-abc") && words.html.contains("token-7-abc"));
        assert!(!words.text.contains(NONCE));
    }

    #[test]
    fn nobody_writes_to_somebody_who_was_forgotten() {
        let subject = Uuid::from_u128(7);
        let params = || Personal::new(subject, Params::new());
        let erased_address = details(params(), Some(Personal::Erased { subject }));
        assert_eq!(composer().mail(&erased_address, None), Err(ComposeError::Erased));
        assert_eq!(composer().mail(&details(params(), None), None), Err(ComposeError::Erased));
    }

    #[test]
    fn who_is_forgotten_while_a_mail_is_written_is_no_failure_of_its_template() {
        let (subject, now) = (Uuid::from_u128(7), Timestamp::from_millis(0));
        let mut user = User::default();
        let register = UserCommand::Register(Box::new(Registration {
            user_id: UserId(subject),
            email: "ada@example.com".to_owned(),
            first_name: "Ada".to_owned(),
            last_name: "Lovelace".to_owned(),
            email_claim_id: EmailClaimId(Uuid::nil()),
            verification_token_hash: String::new(),
            verification_token_nonce: String::new(),
            verification_expires_at: now,
            now,
        }));
        let erase = UserCommand::Erase { caller: Caller::System, reason: None, now };
        let params = Params::from([(NONCE.to_owned(), "abc".to_owned())]);
        let to = Some(Personal::new(subject, "ada@example.com".to_owned()));
        let stored = details(Personal::new(subject, params), to);
        let mut written = Vec::new();
        for command in [register, erase] {
            for event in user.decide(&command).unwrap() {
                user.apply(&event);
            }
            written.push(composer().mail(&stored, user.details.as_ref()).map(|(to, _)| to));
        }
        assert_eq!(written, [Ok("ada@example.com".to_owned()), Err(ComposeError::Erased)]);
    }
}
