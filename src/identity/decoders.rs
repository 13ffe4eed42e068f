//! Properties of tokens and keys: what was issued is read, whatever else is not, and nothing panics.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use souk_actors::world::{SystemWorld, Timestamp};
use uuid::Uuid;

use super::refresh::RefreshToken;
use super::token::{TokenError, Tokens};
use super::verification::{user_of, verification_token};
use crate::config::{Config, Secret, Source};
use crate::domain::caller::Role;
use crate::domain::text::{Fields, is_email, normal_email};

const NOW: Timestamp = Timestamp::from_millis(1_795_170_600_000);

/// One character of a text is another one of the same alphabet.
fn changed(text: &str, place: &prop::sample::Index, letter: char) -> String {
    let mut letters: Vec<_> = text.chars().collect();
    let place = place.index(letters.len());
    letters[place] = letter;
    letters.into_iter().collect()
}

/// The variables that a configuration is read from.
const VARIABLES: &[&str] = &[
    "APP_ENV",
    "HTTP_ADDR",
    "DATABASE_URL",
    "PARTITIONS",
    "MASTER_KEY",
    "TOKEN_KEY",
    "LOOKUP_KEY",
    "MASTER_KEY_FILE",
    "LOG_LEVEL",
    "LOG_TO",
    "MAILBOX_CAP",
    "DLQ_LETTERS_MAX",
    "AGGREGATE_IDLE_TIMEOUT",
    "HTTP_CONNECTIONS_MAX",
    "HTTP_BODY_BYTES_MAX",
    "HTTP_HEADER_TIMEOUT",
    "HTTP_BODY_TIMEOUT",
    "HTTP_WRITE_TIMEOUT",
    "CORS_ALLOWED_ORIGINS",
    "SHUTDOWN_DELAY",
    "SHUTDOWN_TIMEOUT",
    "RETRY_MAX_RETRIES",
    "RETRY_DELAY_MS",
    "RETRY_EXPONENTIAL_BACKOFF",
    "OUTBOX_POLL_INTERVAL",
    "AUDIT_INTERVAL",
    "LOYALTY_RATES",
    "IMAGES_URL",
    "AWS_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "IMAGES_MAX",
    "IMAGE_BYTES_MAX",
    "REVEAL_VERIFICATION_TOKEN",
    "SANDBOX_PAYMENTS",
    "HEALTH_CHECK_INTERVAL",
    "EMAIL_ADAPTER",
    "SMS_ADAPTER",
    "SENDGRID_API_KEY",
    "SENDGRID_FROM",
    "SENDGRID_URL",
    "SMTP_URL",
    "SMTP_FROM",
    "TWILIO_ACCOUNT_SID",
    "TWILIO_AUTH_TOKEN",
    "TWILIO_FROM",
    "MAIL_WEBHOOK_TOKEN",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_changed_token_is_none(user: u128, place: prop::sample::Index, letter in "[A-Za-z0-9_.-]") {
        let tokens = Tokens::new(&[7; 32]);
        let (user, lifetime) = (Uuid::from_u128(user), Duration::from_secs(60));
        let token = tokens.issue(user, None, BTreeSet::from([Role::Buyer]), NOW, lifetime, user);
        prop_assert_eq!(tokens.read(&token, NOW).unwrap().sub, user);
        let other = changed(&token, &place, letter.chars().next().unwrap());
        if other != token {
            prop_assert_eq!(tokens.read(&other, NOW), Err(TokenError::Invalid));
        }
    }

    #[test]
    fn no_text_is_a_token(text in ".{0,80}|[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,44}") {
        prop_assert_eq!(Tokens::new(&[7; 32]).read(&text, NOW), Err(TokenError::Invalid));
        let _: (bool, bool) = (RefreshToken::parse(&text).is_some(), user_of(&text).is_some());
        let _: bool = Secret::parse(&text).is_some();
    }

    #[test]
    fn a_refresh_token_has_one_spelling(session: u128, generation: u32, place: prop::sample::Index, letter in "[A-Za-z0-9_-]") {
        let token = RefreshToken::new(Uuid::from_u128(session), generation, &SystemWorld::new());
        let text = token.text();
        prop_assert!(RefreshToken::parse(&text).is_some_and(|read| read == token));
        let other = changed(&text, &place, letter.chars().next().unwrap());
        let read = RefreshToken::parse(&other);
        let as_good = read.is_some_and(|read| read.hash(&[1; 32]) == token.hash(&[1; 32]));
        prop_assert_eq!(as_good, other == text);
    }

    #[test]
    fn a_verification_token_names_its_user(user: u128, nonce in "[0-9a-f]{32}") {
        let user = Uuid::from_u128(user);
        let token = verification_token(&Secret::new([1; 32]), user, &nonce);
        prop_assert_eq!(user_of(&token), Some(user));
    }

    #[test]
    fn a_key_is_read_in_hexadecimal(bytes: [u8; 32]) {
        let key = Secret::new(bytes);
        prop_assert!(Secret::parse(&key.to_hex()) == Some(key));
    }

    #[test]
    fn what_is_an_address_is_a_plain_one(text in ".{0,40}|[a-z.@-]{0,30}|[a-z]{1,9}@[a-z]{1,9}\\.[a-z]{2,5}") {
        let email = normal_email(&text);
        prop_assert_eq!(normal_email(&email), email.clone());
        if is_email(&email) {
            prop_assert!(email.is_ascii() && email.len() <= 254);
            prop_assert_eq!(email.matches('@').count(), 1);
            prop_assert!(email.bytes().all(|byte| byte.is_ascii_graphic()));
        }
    }

    #[test]
    fn what_passes_the_checks_of_texts_keeps_to_them(text in any::<String>(), most in 0..50_usize) {
        let mut fields = Fields::default();
        let (line, _, _) = (
            fields.line("/line", &text, most),
            fields.lines("/lines", &text, most),
            fields.phone("/phone", &text),
        );
        fields.slug("/slug", &text);
        fields.email("/email", &text);
        if fields.finish().is_ok() {
            prop_assert!(!line.is_empty() && line.chars().count() <= most);
            prop_assert!(!line.chars().any(char::is_control));
        }
    }

    /// Whatever stands in the environment, a configuration is read or refused, and no refusal
    /// repeats a value: it may be a secret.
    #[test]
    fn no_setting_panics_or_is_repeated(
        settings in prop::collection::btree_map(
            prop::sample::select(VARIABLES),
            "[Q-Z]{12,20}|[0-9]{1,25}(ms|s|m|h|days|y)?|-?[0-9]{1,30}|.{0,20}|true|0s|[A-Za-z0-9+/=]{44}",
            0..12,
        ),
    ) {
        let read = |name: &str| match name {
            // Keys are never made up here: this leaves no files.
            "APP_ENV" => Some(settings.get(name).cloned().unwrap_or_else(|| "production".to_owned()))
                .filter(|mode| !mode.trim().is_empty() && !mode.starts_with("dev"))
                .or_else(|| Some("production".to_owned())),
            _ => settings.get(name).cloned(),
        };
        if let Err(errors) = Config::load(&Source::new(&read)) {
            let told = errors.to_string();
            for value in settings.values().filter(|value| value.len() >= 12 && value.bytes().all(|of| (b'Q'..=b'Z').contains(&of))) {
                prop_assert!(!told.contains(value.as_str()), "{}", told);
            }
        }
    }
}
