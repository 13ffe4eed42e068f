//! How people are reached.

use std::path::PathBuf;
use std::sync::Arc;

use lettre::message::Mailbox;
use url::Url;

use super::reader::Reader;
use super::{Credential, keeps_secrets};
use crate::gateways::mail::{LogMailer, Mailer};
use crate::gateways::sendgrid::SendGrid;
use crate::gateways::sms::{LogSms, SmsSender};
use crate::gateways::smtp::Smtp;
use crate::gateways::twilio::Twilio;
use crate::subscribers::templates::Templates;

/// How people are reached. `log` writes messages to the log and to the development outbox.
#[derive(Clone)]
pub struct Messaging {
    /// `EMAIL_ADAPTER`: `log`; `smtp` with `SMTP_URL` and `SMTP_FROM`; `sendgrid` with
    /// `SENDGRID_API_KEY`, `SENDGRID_FROM` and `SENDGRID_URL`.
    pub mailer: Arc<dyn Mailer>,
    /// `SMS_ADAPTER`: `log`; `twilio` with `TWILIO_ACCOUNT_SID`, `TWILIO_AUTH_TOKEN`,
    /// `TWILIO_FROM` and `TWILIO_URL`.
    pub sms: Arc<dyn SmsSender>,
    /// `MAIL_WEBHOOK_TOKEN`: who has it may tell of mails that came back; none: administrators alone.
    pub webhook_token: Option<Credential>,
    /// `TEMPLATES_DIR`: the folder of templates that replace those that come with the program.
    pub templates: Arc<Templates>,
}

impl Default for Messaging {
    fn default() -> Self {
        Self {
            mailer: Arc::new(LogMailer::default()),
            sms: Arc::new(LogSms::default()),
            webhook_token: None,
            templates: Arc::new(Templates::built_in()),
        }
    }
}

impl std::fmt::Debug for Messaging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Messaging")
            .field("email_adapter", &self.mailer.name())
            .field("sms_adapter", &self.sms.name())
            .finish_non_exhaustive()
    }
}

/// Reads all of it.
pub(super) fn messaging(reader: &mut Reader<'_>) -> Messaging {
    let (mailer, sms) = (mailer(reader), sms(reader));
    let folder = reader.text("TEMPLATES_DIR").map(PathBuf::from);
    let templates =
        folder.map_or_else(|| Ok(Templates::built_in()), |of| Templates::of_folder(&of));
    let templates = templates.unwrap_or_else(|error| {
        reader.error("TEMPLATES_DIR", error.to_string());
        Templates::built_in()
    });
    let webhook_token = webhook_token(reader);
    Messaging { mailer, sms, webhook_token, templates: Arc::new(templates) }
}

/// Short ones could be guessed.
const WEBHOOK_TOKEN_CHARS_MIN: usize = 16;

fn webhook_token(reader: &mut Reader<'_>) -> Option<Credential> {
    const NAME: &str = "MAIL_WEBHOOK_TOKEN";
    let token = reader.optional_credential(NAME, "the webhook of the mail provider")?;
    if (1..WEBHOOK_TOKEN_CHARS_MIN).contains(&token.expose().len()) {
        reader.error(NAME, "must have at least 16 characters");
    }
    Some(token).filter(|token| token.expose().len() >= WEBHOOK_TOKEN_CHARS_MIN)
}

fn mailer(reader: &mut Reader<'_>) -> Arc<dyn Mailer> {
    let adapter = reader.text("EMAIL_ADAPTER");
    match adapter.as_deref() {
        None | Some("log") => {}
        Some("smtp") => {
            let url = reader.credential("SMTP_URL", "EMAIL_ADAPTER=smtp");
            let from = sender(reader, "SMTP_FROM", "EMAIL_ADAPTER=smtp");
            if let (Some(from), false) = (from, url.expose().is_empty()) {
                match Smtp::new(&url, from) {
                    Ok(smtp) => return Arc::new(smtp),
                    Err(problem) => reader.error("SMTP_URL", problem),
                }
            }
        }
        Some("sendgrid") => {
            let key = reader.credential("SENDGRID_API_KEY", "EMAIL_ADAPTER=sendgrid");
            let from = sender(reader, "SENDGRID_FROM", "EMAIL_ADAPTER=sendgrid");
            let url = provider(reader, "SENDGRID_URL", "https://api.sendgrid.com");
            if let (Some(url), Some(from)) = (url, from) {
                return Arc::new(SendGrid::new(url, key, from));
            }
        }
        Some(_) => reader.error("EMAIL_ADAPTER", "must be log, smtp or sendgrid"),
    }
    Arc::new(LogMailer::default())
}

fn sms(reader: &mut Reader<'_>) -> Arc<dyn SmsSender> {
    let adapter = reader.text("SMS_ADAPTER");
    match adapter.as_deref() {
        None | Some("log") => {}
        Some("twilio") => {
            let account = required(reader, "TWILIO_ACCOUNT_SID", "SMS_ADAPTER=twilio");
            let token = reader.credential("TWILIO_AUTH_TOKEN", "SMS_ADAPTER=twilio");
            let from = required(reader, "TWILIO_FROM", "SMS_ADAPTER=twilio");
            let url = provider(reader, "TWILIO_URL", "https://api.twilio.com");
            let is_sid = |text: &String| {
                let id = text.strip_prefix("AC").unwrap_or_default();
                id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
            };
            if account.as_ref().is_some_and(|account| !is_sid(account)) {
                reader.error("TWILIO_ACCOUNT_SID", "must be AC and 32 hexadecimal digits");
            }
            if let (Some(url), Some(account), Some(from)) = (url, account, from) {
                return Arc::new(Twilio::new(url, account, token, from));
            }
        }
        Some(_) => reader.error("SMS_ADAPTER", "must be log or twilio"),
    }
    Arc::new(LogSms::default())
}

fn required(reader: &mut Reader<'_>, name: &'static str, needed_for: &str) -> Option<String> {
    let text = reader.text(name);
    if text.is_none() {
        reader.error(name, format!("is required for {needed_for}"));
    }
    text
}

fn sender(reader: &mut Reader<'_>, name: &'static str, needed_for: &str) -> Option<Mailbox> {
    let mailbox = required(reader, name, needed_for)?.parse().ok();
    if mailbox.is_none() {
        reader.error(name, "must be an address (Souk <no-reply@souk.example>)");
    }
    mailbox
}

/// Where a provider is.
fn provider(reader: &mut Reader<'_>, name: &'static str, default: &'static str) -> Option<Url> {
    let url = Url::parse(&reader.text(name).unwrap_or_else(|| default.to_owned())).ok();
    let url = url.filter(keeps_secrets);
    if url.is_none() {
        reader.error(name, "must be an address that begins with https://");
    }
    url
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Source};

    fn load(vars: &[(&str, &str)]) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().to_string_lossy().into_owned();
        let read = |name: &str| {
            let given = vars.iter().find(|(known, _)| *known == name);
            given
                .map(|(_, value)| (*value).to_owned())
                .or((name == "DATA_DIR").then(|| dir.clone()))
        };
        Config::load(&Source::new(&read)).map_err(|errors| errors.to_string())
    }

    #[test]
    fn each_adapter_says_what_it_lacks() {
        let lacks = |adapter: (&str, &str), names: &[&str]| {
            let errors = load(&[adapter]).unwrap_err();
            let mut named: Vec<_> =
                errors.lines().filter_map(|line| line.split(':').next()).collect();
            named.sort_unstable();
            assert_eq!(named, names, "{errors}");
        };
        lacks(("EMAIL_ADAPTER", "smtp"), &["SMTP_FROM", "SMTP_URL"]);
        lacks(("EMAIL_ADAPTER", "sendgrid"), &["SENDGRID_API_KEY", "SENDGRID_FROM"]);
        lacks(
            ("SMS_ADAPTER", "twilio"),
            &["TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN", "TWILIO_FROM"],
        );
        lacks(("EMAIL_ADAPTER", "pigeon"), &["EMAIL_ADAPTER"]);
        lacks(("SMS_ADAPTER", "pigeon"), &["SMS_ADAPTER"]);
    }

    #[test]
    fn adapters_are_chosen_and_their_secrets_not_shown() {
        let config = load(&[
            ("EMAIL_ADAPTER", "sendgrid"),
            ("SENDGRID_API_KEY", "SG.hunter2"),
            ("SENDGRID_FROM", "no-reply@souk.example"),
            ("SMS_ADAPTER", "twilio"),
            ("TWILIO_ACCOUNT_SID", "AC00000000000000000000000000000000"),
            ("TWILIO_AUTH_TOKEN", "hunter2"),
            ("TWILIO_FROM", "+15005550006"),
        ])
        .unwrap();
        let shown = format!("{:?}", config.messaging);
        assert!(shown.contains("sendgrid") && shown.contains("twilio"), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
        let errors = load(&[("MAIL_WEBHOOK_TOKEN", "hunter2")]).unwrap_err();
        assert!(errors.contains("16 characters") && !errors.contains("hunter2"), "{errors}");
        let plain = load(&[
            ("EMAIL_ADAPTER", "sendgrid"),
            ("SENDGRID_API_KEY", "SG.hunter2"),
            ("SENDGRID_FROM", "no-reply@souk.example"),
            ("SENDGRID_URL", "http://api.example"),
        ]);
        let errors = plain.unwrap_err();
        assert!(
            errors.contains("SENDGRID_URL: must be") && !errors.contains("hunter2"),
            "{errors}"
        );
        let url = "http://souk:hunter2@mail.example";
        let wrong = [("EMAIL_ADAPTER", "smtp"), ("SMTP_URL", url), ("SMTP_FROM", "a@b.example")];
        let errors = load(&wrong).unwrap_err();
        assert!(errors.contains("SMTP_URL: must be") && !errors.contains("hunter2"), "{errors}");
    }
}
