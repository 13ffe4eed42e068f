//! Checks of what people type.
//!
//! A check gives the cleaned text and notes what is wrong under a JSON pointer, so that one answer
//! names every bad field at once. Messages never repeat the text itself.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One thing that is wrong with one field of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FieldError {
    /// Where, as a JSON pointer into the request's body (`/items/0/quantity`).
    pub pointer: String,
    /// What, as a stable code.
    pub code: String,
    /// What, as a sentence.
    pub detail: String,
}

impl FieldError {
    /// An error at `pointer`.
    pub fn new(pointer: impl Into<String>, code: &str, detail: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), code: code.to_owned(), detail: detail.into() }
    }
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(value.into(), 16).unwrap_or_default();
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// The longest e-mail address (RFC 5321 §4.5.3.1.3, without the angle brackets).
pub const EMAIL_MAX: usize = 254;
/// The longest name of a person, a business or a category.
pub const NAME_MAX: usize = 100;
/// The longest title of a listing.
pub const TITLE_MAX: usize = 200;
/// The longest description of a listing.
pub const DESCRIPTION_MAX: usize = 10_000;
/// The longest postal address in one line.
pub const ADDRESS_MAX: usize = 300;
/// The longest reason that somebody gives for something.
pub const REASON_MAX: usize = 500;
/// The longest name for links.
pub const SLUG_MAX: usize = 64;
/// The longest address on the web.
pub const URL_MAX: usize = 2_048;

/// Collects the errors of one request.
#[derive(Debug, Default)]
pub struct Fields {
    errors: Vec<FieldError>,
}

impl Fields {
    /// Notes an error.
    pub fn error(&mut self, pointer: impl Into<String>, code: &str, detail: impl Into<String>) {
        self.errors.push(FieldError::new(pointer, code, detail));
    }

    /// Notes an error unless `holds`.
    pub fn require(&mut self, holds: bool, pointer: &str, code: &str, detail: &str) {
        if !holds {
            self.error(pointer, code, detail);
        }
    }

    /// One line of text that must not be empty: trimmed, at most `characters_max` long.
    pub fn line(&mut self, pointer: &str, text: &str, characters_max: usize) -> String {
        let text = text.trim();
        self.require(!text.is_empty(), pointer, "required", "must not be empty");
        self.bounded(pointer, text, characters_max, |character| character.is_control());
        text.to_owned()
    }

    /// One line of text that may be missing; an empty one counts as missing.
    pub fn optional_line(
        &mut self,
        pointer: &str,
        text: Option<&str>,
        characters_max: usize,
    ) -> Option<String> {
        let text = text.map(str::trim).filter(|text| !text.is_empty())?;
        Some(self.line(pointer, text, characters_max))
    }

    /// Several lines of text that must not be empty.
    pub fn lines(&mut self, pointer: &str, text: &str, characters_max: usize) -> String {
        let text = text.trim();
        self.require(!text.is_empty(), pointer, "required", "must not be empty");
        self.bounded(pointer, text, characters_max, |character| {
            character.is_control() && !matches!(character, '\n' | '\r' | '\t')
        });
        text.to_owned()
    }

    /// An e-mail address: trimmed and in lower case, since people write the same one differently.
    pub fn email(&mut self, pointer: &str, text: &str) -> String {
        let email = normal_email(text);
        if email.is_empty() {
            self.error(pointer, "required", "must not be empty");
        } else if !is_email(&email) {
            self.error(pointer, "invalid_email", "must be an e-mail address (name@example.com)");
        }
        email
    }

    /// A telephone number: digits with the usual punctuation.
    pub fn phone(&mut self, pointer: &str, text: &str) -> String {
        let text = self.line(pointer, text, 32);
        let digits = text.bytes().filter(u8::is_ascii_digit).count();
        let usual = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-(). ".contains(&byte));
        let fits = text.is_empty() || (usual && (6..=15).contains(&digits));
        let detail = "must be a telephone number of 6 to 15 digits";
        self.require(fits, pointer, "invalid_phone", detail);
        text
    }

    /// The number of a mobile telephone, for text messages: `+`, the country and the rest (E.164),
    /// without the punctuation that people put between.
    pub fn mobile(&mut self, pointer: &str, text: &str) -> String {
        let number: String =
            text.trim().chars().filter(|character| !"-(). ".contains(*character)).collect();
        let digits = number.strip_prefix('+').unwrap_or_default();
        let fits = (8..=15).contains(&digits.len())
            && !digits.starts_with('0')
            && digits.bytes().all(|byte| byte.is_ascii_digit());
        let detail = "must be a number with its country, as +84901234567";
        self.require(fits, pointer, "invalid_phone", detail);
        number
    }

    /// An address on the web without a user, a password or a fragment.
    pub fn url(&mut self, pointer: &str, text: &str, allows_http: bool) -> String {
        let url = self.line(pointer, text, URL_MAX);
        let rest = match url.split_once("://") {
            Some(("https", rest)) => Some(rest),
            Some(("http", rest)) if allows_http => Some(rest),
            _ => None,
        };
        let authority =
            rest.and_then(|rest| rest.split(['/', '?', '#']).next()).unwrap_or_default();
        let plain = !url.contains(char::is_whitespace) && !url.contains(['#', '\\']);
        let named =
            !authority.is_empty() && !authority.starts_with(':') && !authority.contains('@');
        let detail = if allows_http {
            "must be an http or https address without user, password or fragment"
        } else {
            "must be an https address without user, password or fragment"
        };
        self.require(rest.is_some() && plain && named, pointer, "invalid_url", detail);
        url
    }

    /// A name for links: lower-case letters and digits, single hyphens between.
    pub fn slug(&mut self, pointer: &str, text: &str) -> String {
        let part = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        let fits = text.len() <= SLUG_MAX && text.split('-').all(part);
        self.require(
            fits,
            pointer,
            "invalid_slug",
            "must be 1 to 64 lower-case letters and digits, with single hyphens between",
        );
        text.to_owned()
    }

    /// Nothing was wrong, or everything that was.
    pub fn finish(self) -> Result<(), Vec<FieldError>> {
        if self.errors.is_empty() { Ok(()) } else { Err(self.errors) }
    }

    fn bounded(
        &mut self,
        pointer: &str,
        text: &str,
        characters_max: usize,
        refused: impl Fn(char) -> bool,
    ) {
        if text.chars().count() > characters_max {
            let detail = format!("must be at most {characters_max} characters long");
            self.error(pointer, "too_long", detail);
        }
        if text.chars().any(refused) {
            self.error(pointer, "control_character", "must not contain control characters");
        }
    }
}

/// The one spelling under which an address is claimed and stored.
pub fn normal_email(text: &str) -> String {
    text.trim().to_lowercase()
}

/// Whether a normal address has the form `dot-atom@domain` (RFC 5322 §3.4.1) with at least two
/// labels in the domain. Quoted local parts, address literals and addresses outside ASCII are not
/// accepted: hardly anybody has one, and mail providers refuse them.
pub fn is_email(email: &str) -> bool {
    let Some((local, domain)) = email.split_once('@') else { return false };
    let atom = |atom: &str| {
        let allowed =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&byte);
        !atom.is_empty() && atom.bytes().all(allowed)
    };
    let label = |label: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let Some((_, top)) = domain.rsplit_once('.') else { return false };
    email.len() <= EMAIL_MAX
        && local.len() <= 64
        && local.split('.').all(atom)
        && domain.split('.').all(label)
        && top.len() >= 2
        && top.bytes().any(|byte| byte.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(check: impl FnOnce(&mut Fields)) -> Vec<(String, String)> {
        let mut fields = Fields::default();
        check(&mut fields);
        let errors = fields.finish().err().unwrap_or_default();
        errors.into_iter().map(|error| (error.pointer, error.code)).collect()
    }

    #[test]
    fn addresses_are_trimmed_and_folded() {
        let mut fields = Fields::default();
        assert_eq!(
            fields.email("/email", "  Ann.Lee+souk@Example.COM "),
            "ann.lee+souk@example.com"
        );
        assert_eq!(fields.finish(), Ok(()));
    }

    #[test]
    fn mobile_numbers_have_one_spelling() {
        for text in ["+84 90 123-45.67", " +84901234567 ", "+84(90)1234567"] {
            let mut fields = Fields::default();
            assert_eq!(fields.mobile("/phone", text), "+84901234567");
            assert_eq!(fields.finish(), Ok(()), "{text}");
        }
        for text in ["", "+", "0901234567", "+0901234567", "+8490123456789012", "+84x01234567"] {
            let found = errors(|fields| drop(fields.mobile("/phone", text)));
            assert_eq!(found, [("/phone".to_owned(), "invalid_phone".to_owned())], "{text}");
        }
    }

    #[test]
    fn good_addresses_pass() {
        for email in ["a@b.co", "a.b-c_d@sub.example.org", "o'hara@example.xn--p1ai", "1@2.io"] {
            assert!(is_email(email), "{email}");
        }
    }

    #[test]
    fn bad_addresses_do_not() {
        let long_local = format!("{}@example.com", "a".repeat(65));
        let long_label = format!("a@{}.com", "b".repeat(64));
        let long = format!("a@{}com", "bbbbbbbbb.".repeat(26));
        let bad = [
            "",
            "plain",
            "@example.com",
            "a@",
            "a@example",
            "a@@example.com",
            "a@b@example.com",
            "a b@example.com",
            ".a@example.com",
            "a.@example.com",
            "a..b@example.com",
            "a@.example.com",
            "a@example.com.",
            "a@example..com",
            "a@-example.com",
            "a@example-.com",
            "a@exa mple.com",
            "a@example.c",
            "a@example.123",
            "a@[127.0.0.1]",
            "\"a b\"@example.com",
            "a,b@example.com",
            "a@example.com\u{0}",
            "ä@example.com",
            "a<b>@example.com",
            "a@exam_ple.com",
            &long_local,
            &long_label,
            &long,
        ];
        for email in bad {
            assert!(!is_email(email), "{email}");
            assert_eq!(errors(|fields| drop(fields.email("/email", email))).len(), 1, "{email}");
        }
    }

    #[test]
    fn lines_are_bounded_and_free_of_control_characters() {
        let code = |text: &str| errors(|fields| drop(fields.line("/name", text, 5)));
        assert_eq!(code("  abcde "), []);
        assert_eq!(code("ééééé"), []);
        assert_eq!(code(" \t "), [("/name".into(), "required".into())]);
        assert_eq!(code("abcdef"), [("/name".into(), "too_long".into())]);
        assert_eq!(code("a\nb"), [("/name".into(), "control_character".into())]);
        let lines = |text: &str| errors(|fields| drop(fields.lines("/text", text, 9)));
        assert_eq!(lines("a\nb\tc"), []);
        assert_eq!(lines("a\u{7}b"), [("/text".into(), "control_character".into())]);
        assert_eq!(lines(""), [("/text".into(), "required".into())]);
    }

    #[test]
    fn phones_and_slugs_have_a_form() {
        for phone in ["+84 28 3822 1234", "(028) 3822-1234"] {
            assert_eq!(errors(|fields| drop(fields.phone("/phone", phone))), [], "{phone}");
        }
        for phone in ["12345", "call me on 123456", "1234567890123456"] {
            let found = errors(|fields| drop(fields.phone("/phone", phone)));
            assert_eq!(found, [("/phone".into(), "invalid_phone".into())], "{phone}");
        }
        for slug in ["books", "second-hand-books", "2nd"] {
            assert_eq!(errors(|fields| drop(fields.slug("/slug", slug))), [], "{slug}");
        }
        for slug in ["", "-a", "a-", "a--b", "A", "a b"] {
            let found = errors(|fields| drop(fields.slug("/slug", slug)));
            assert_eq!(found, [("/slug".into(), "invalid_slug".into())], "{slug}");
        }
    }

    #[test]
    fn a_missing_optional_line_is_no_error() {
        let mut fields = Fields::default();
        assert_eq!(fields.optional_line("/line2", None, 5), None);
        assert_eq!(fields.optional_line("/line2", Some("  "), 5), None);
        assert_eq!(fields.optional_line("/line2", Some(" x "), 5), Some("x".into()));
        assert_eq!(fields.finish(), Ok(()));
    }
}
