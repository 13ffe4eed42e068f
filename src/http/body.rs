//! Request bodies: JSON within limits, read so that one answer names every bad field.
//!
//! A body is parsed into a value first and then read field by field through [`Fields`], which notes
//! what is missing or of the wrong type under a JSON pointer and goes on. Members that nobody asks
//! for are tolerated. What a field may say is the domain's business, not this module's.

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Body as _;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::App;
use super::problem::{ApiError, FieldProblem};

/// How deep a body may nest. Nothing that is asked for nests deeper than four.
const DEPTH_MAX: usize = 32;

/// A type that is read from a JSON object.
pub trait FromFields: Sized {
    /// Reads what it needs; what is wrong is noted in `fields`. `None` only after a note.
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self>;
}

/// A request's JSON body, read and whole.
#[derive(Debug, Clone)]
pub struct Valid<T> {
    /// What was asked.
    pub body: T,
    /// The body in canonical form, for the request's hash: member order does not matter.
    pub canonical: Vec<u8>,
}

impl<T: FromFields + Send> FromRequest<App> for Valid<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        Unread(request).read(app).await
    }
}

/// A request's body before anybody looked at it, for handlers that must first find out whether the
/// caller may ask at all.
#[derive(Debug)]
pub struct Unread(Request);

impl FromRequest<App> for Unread {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &App) -> Result<Self, ApiError> {
        Ok(Self(request))
    }
}

impl Unread {
    /// Takes the body in and reads it.
    pub async fn read<T: FromFields>(self, app: &App) -> Result<Valid<T>, ApiError> {
        let (_, bytes) = self.bytes(app, is_json).await?;
        read(&bytes)
    }

    /// The boundary between the parts of a form, and the body that has them.
    pub(super) fn form(self) -> Result<(String, Body), ApiError> {
        let (parts, body) = self.0.into_parts();
        let content_type = parts.headers.get(header::CONTENT_TYPE);
        let boundary =
            content_type.and_then(|value| multer::parse_boundary(value.to_str().ok()?).ok());
        match boundary {
            Some(boundary) if !is_encoded(&parts.headers) => Ok((boundary, body)),
            _ => Err(unsupported("the body must be multipart/form-data with a boundary")),
        }
    }

    /// Takes the body in, if there is none or it is of one of these media types.
    pub(super) async fn bytes(
        self,
        app: &App,
        is_taken: impl Fn(&HeaderMap) -> bool,
    ) -> Result<(HeaderMap, axum::body::Bytes), ApiError> {
        let (parts, body) = self.0.into_parts();
        // What will not be read need not be taken in.
        if is_encoded(&parts.headers) {
            let refused = unsupported("the body must not be compressed or otherwise encoded");
            let identity = header::HeaderValue::from_static("identity");
            return Err(refused.with_header(header::ACCEPT_ENCODING, identity));
        }
        let bytes = collect(app, body).await?;
        if !(bytes.is_empty() || is_taken(&parts.headers)) {
            return Err(unsupported("the body must be application/json"));
        }
        Ok((parts.headers, bytes))
    }
}

fn unsupported(detail: &str) -> ApiError {
    ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
}

fn is_encoded(headers: &HeaderMap) -> bool {
    let plain = |value: &header::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    !headers.get_all(header::CONTENT_ENCODING).iter().all(plain)
}

fn is_json(headers: &HeaderMap) -> bool {
    is_json_type(&essence(headers))
}

/// The media type of a request without its parameters, in lower case; empty when there is none.
pub(super) fn essence(headers: &HeaderMap) -> String {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.unwrap_or("").split(';').next().unwrap_or("");
    essence.trim().to_ascii_lowercase()
}

/// Whether a media type is JSON.
pub(super) fn is_json_type(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// Takes in a body within the limits of size and time.
async fn collect(app: &App, body: Body) -> Result<axum::body::Bytes, ApiError> {
    let settings = &app.settings().http;
    let too_large = || {
        let detail = format!("the body is larger than {} bytes", settings.body_bytes_max);
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", detail)
    };
    // A length that was announced is believed before anything is read.
    if body.size_hint().lower() > u64::try_from(settings.body_bytes_max).unwrap_or(u64::MAX) {
        return Err(too_large());
    }
    let limited = Limited::new(body, settings.body_bytes_max);
    match tokio::time::timeout(settings.body_timeout, limited.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(ApiError::bad_request("bad_request", "the body broke off")),
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "request_timeout",
            "the body took too long to arrive",
        )),
    }
}

/// Reads a whole body. An empty one counts as an object without members.
pub(super) fn read<T: FromFields>(bytes: &[u8]) -> Result<Valid<T>, ApiError> {
    let value = parse(bytes)?;
    let Value::Object(object) = &value else {
        return Err(ApiError::invalid_field("", "wrong_type", "the body must be a JSON object"));
    };
    let mut fields = Fields::new(object);
    let body = T::from_fields(&mut fields);
    match (body, fields.errors.is_empty()) {
        (Some(body), true) => Ok(Valid { body, canonical: canonical(&value) }),
        (_, _) => Err(ApiError::invalid(fields.errors)),
    }
}

/// The JSON value of a body, if it does not nest too deep. An empty body is an object.
pub(super) fn parse(bytes: &[u8]) -> Result<Value, ApiError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Object(Map::new()));
    }
    let value: Value = serde_json::from_slice(bytes).map_err(|error| {
        let detail = format!(
            "the body is not JSON: reading stopped at line {}, column {}",
            error.line(),
            error.column()
        );
        ApiError::bad_request("malformed_json", detail)
    })?;
    if depth(&value) > DEPTH_MAX {
        let detail = format!("the body nests deeper than {DEPTH_MAX}");
        return Err(ApiError::bad_request("malformed_json", detail));
    }
    Ok(value)
}

/// `serde_json` itself stops at 128, so this cannot run away.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Members sorted, no white space: two spellings of one request have one hash.
fn canonical(value: &Value) -> Vec<u8> {
    fn write(value: &Value, out: &mut Vec<u8>) {
        match value {
            Value::Object(members) => {
                let mut sorted: Vec<_> = members.iter().collect();
                sorted.sort_by_key(|(name, _)| *name);
                out.push(b'{');
                for (name, value) in sorted {
                    out.extend(Value::from(name.as_str()).to_string().into_bytes());
                    out.push(b':');
                    write(value, out);
                    out.push(b',');
                }
                out.push(b'}');
            }
            Value::Array(items) => {
                out.push(b'[');
                for item in items {
                    write(item, out);
                    out.push(b',');
                }
                out.push(b']');
            }
            other => out.extend(other.to_string().into_bytes()),
        }
    }
    let mut out = Vec::new();
    write(value, &mut out);
    out
}

/// A body that may be missing altogether and has no members of interest.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nothing;

impl FromFields for Nothing {
    fn from_fields(_: &mut Fields<'_>) -> Option<Self> {
        Some(Self)
    }
}

/// The longest reason that is recorded.
const REASON_CHARS_MAX: usize = 500;

/// Why.
#[derive(ToSchema)]
pub struct Reason {
    /// The reason, for those it concerns. It is recorded.
    #[schema(max_length = 500)]
    pub reason: Option<String>,
}

impl FromFields for Reason {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let reason = fields.optional_text(&["reason"]);
        if reason.as_ref().is_some_and(|reason| reason.chars().count() > REASON_CHARS_MAX) {
            fields.error("reason", "too_long", "at most 500 characters");
        }
        Some(Self { reason })
    }
}

/// The members of one JSON object, and what is wrong with them so far.
pub struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// The pointer of the object itself.
    at: String,
    errors: Vec<FieldProblem>,
}

impl<'a> Fields<'a> {
    fn new(object: &'a Map<String, Value>) -> Self {
        Self { object, at: String::new(), errors: Vec::new() }
    }

    /// The members of an object that stands at a pointer.
    pub(super) fn within_list(object: &'a Map<String, Value>, at: String) -> Self {
        Self { object, at, errors: Vec::new() }
    }

    /// What is wrong.
    pub(super) fn into_errors(self) -> Vec<FieldProblem> {
        self.errors
    }

    /// Notes a problem of the member `name`.
    pub fn error(&mut self, name: &str, code: &str, detail: impl Into<String>) {
        let pointer = format!("{}/{name}", self.at);
        self.errors.push(FieldProblem::new(pointer, code, detail));
    }

    /// The first of these members that is there; null counts as absent.
    fn find(&self, names: &[&'static str]) -> Option<(&'static str, &'a Value)> {
        names.iter().find_map(|&name| {
            let value = self.object.get(name).filter(|value| !value.is_null())?;
            Some((name, value))
        })
    }

    fn required<T>(&mut self, names: &[&'static str], found: Option<T>) -> Option<T> {
        if found.is_none() {
            self.error(names[0], "required", "is required");
        }
        found
    }

    /// Whether any of these members is there.
    pub fn has(&self, names: &[&'static str]) -> bool {
        self.find(names).is_some()
    }

    /// A text, under the first of `names` that is there. The canonical name comes first.
    pub fn text(&mut self, names: &[&'static str]) -> Option<String> {
        let found = self.find(names);
        self.required(names, found)?;
        self.optional_text(names)
    }

    /// A text that may be absent; of the wrong type it is noted and absent.
    pub fn optional_text(&mut self, names: &[&'static str]) -> Option<String> {
        let (name, value) = self.find(names)?;
        let Some(text) = value.as_str() else {
            self.error(name, "wrong_type", "must be a string");
            return None;
        };
        // Not every store can keep one, and nobody means it.
        if text.contains('\0') {
            self.error(name, "control_character", "must not contain the character U+0000");
            return None;
        }
        Some(text.to_owned())
    }

    /// A value that is written as text, such as an id.
    pub fn parsed<T: std::str::FromStr>(&mut self, names: &[&'static str]) -> Option<T>
    where
        T::Err: std::fmt::Display,
    {
        let found = self.find(names);
        self.required(names, found)?;
        self.optional_parsed(names)
    }

    /// The same where it may be absent.
    pub fn optional_parsed<T: std::str::FromStr>(&mut self, names: &[&'static str]) -> Option<T>
    where
        T::Err: std::fmt::Display,
    {
        let (name, _) = self.find(names)?;
        let text = self.optional_text(names)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.error(name, "invalid", format!("{error}"));
                None
            }
        }
    }

    /// A whole number. Numbers with a fraction or an exponent are refused, even `1.0`.
    pub fn integer(&mut self, names: &[&'static str]) -> Option<i64> {
        let found = self.find(names);
        self.required(names, found)?;
        self.optional_integer(names)
    }

    /// The same where it may be absent.
    pub fn optional_integer(&mut self, names: &[&'static str]) -> Option<i64> {
        let (name, value) = self.find(names)?;
        let number = value.as_i64();
        if number.is_none() {
            self.error(name, "wrong_type", "must be a whole number");
        }
        number
    }

    /// A truth value that may be absent.
    pub fn optional_bool(&mut self, names: &[&'static str]) -> Option<bool> {
        let (name, value) = self.find(names)?;
        let truth = value.as_bool();
        if truth.is_none() {
            self.error(name, "wrong_type", "must be true or false");
        }
        truth
    }

    /// A count of at least one.
    pub fn count(&mut self, names: &[&'static str]) -> Option<u32> {
        let number = self.integer(names)?;
        self.in_count_range(names, number)
    }

    /// The same where it may be absent.
    pub fn optional_count(&mut self, names: &[&'static str]) -> Option<u32> {
        let number = self.optional_integer(names)?;
        self.in_count_range(names, number)
    }

    fn in_count_range(&mut self, names: &[&'static str], number: i64) -> Option<u32> {
        let count = u32::try_from(number).ok().filter(|count| *count > 0);
        if count.is_none() {
            self.error(names[0], "out_of_range", "must be a whole number from 1");
        }
        count
    }

    /// An object, read by `read`.
    pub fn object<T>(
        &mut self,
        names: &[&'static str],
        read: impl FnOnce(&mut Fields<'_>) -> Option<T>,
    ) -> Option<T> {
        let found = self.find(names);
        self.required(names, found)?;
        self.optional_object(names, read)
    }

    /// The same where it may be absent.
    pub fn optional_object<T>(
        &mut self,
        names: &[&'static str],
        read: impl FnOnce(&mut Fields<'_>) -> Option<T>,
    ) -> Option<T> {
        let (name, value) = self.find(names)?;
        let Some(object) = value.as_object() else {
            self.error(name, "wrong_type", "must be an object");
            return None;
        };
        let at = format!("{}/{name}", self.at);
        self.within(object, at, read)
    }

    /// A list of objects, each read by `read`; wrong ones are noted and left out.
    pub fn objects<T>(
        &mut self,
        names: &[&'static str],
        items_max: usize,
        mut read: impl FnMut(&mut Fields<'_>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let found = self.find(names);
        let (name, value) = self.required(names, found)?;
        let Some(items) = value.as_array() else {
            self.error(name, "wrong_type", "must be a list");
            return None;
        };
        if items.is_empty() || items.len() > items_max {
            self.error(name, "out_of_range", format!("must have 1 to {items_max} items"));
            return None;
        }
        let mut all = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            match item.as_object() {
                Some(object) => {
                    let at = format!("{}/{name}/{index}", self.at);
                    all.extend(self.within(object, at, &mut read));
                }
                None => self.error(&format!("{name}/{index}"), "wrong_type", "must be an object"),
            }
        }
        Some(all)
    }

    /// A list of texts that may be absent.
    pub fn optional_texts(&mut self, names: &[&'static str]) -> Vec<String> {
        let Some((name, value)) = self.find(names) else { return Vec::new() };
        let Some(items) = value.as_array() else {
            self.error(name, "wrong_type", "must be a list of strings");
            return Vec::new();
        };
        let mut texts = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            match item.as_str() {
                Some(text) => texts.push(text.to_owned()),
                None => self.error(&format!("{name}/{index}"), "wrong_type", "must be a string"),
            }
        }
        texts
    }

    /// The raw value of a member.
    pub fn value(&self, name: &'static str) -> Option<&'a Value> {
        self.find(&[name]).map(|(_, value)| value)
    }

    /// The object as it was sent.
    pub fn whole(&self) -> Value {
        Value::Object(self.object.clone())
    }

    fn within<T>(
        &mut self,
        object: &Map<String, Value>,
        at: String,
        read: impl FnOnce(&mut Fields<'_>) -> Option<T>,
    ) -> Option<T> {
        let mut inner = Fields { object, at, errors: std::mem::take(&mut self.errors) };
        let value = read(&mut inner);
        self.errors = inner.errors;
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Shape {
        name: String,
        price: i64,
        quantities: Vec<u32>,
    }

    impl FromFields for Shape {
        fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
            let name = fields.text(&["name", "fullName"]);
            let price = fields.object(&["price"], |price| price.integer(&["amount"]));
            let quantities = fields.objects(&["items"], 3, |item| item.count(&["quantity"]));
            Some(Self { name: name?, price: price?, quantities: quantities? })
        }
    }

    fn problems(text: &str) -> Vec<(String, String)> {
        let error = read::<Shape>(text.as_bytes()).unwrap_err();
        assert_eq!(error.status(), StatusCode::UNPROCESSABLE_ENTITY);
        error.errors().iter().map(|e| (e.pointer.clone(), e.code.clone())).collect()
    }

    #[test]
    fn a_good_body_is_read_whatever_else_it_holds() {
        let text = r#"{"fullName":"Ann","price":{"amount":5},"items":[{"quantity":2}],"more":[1]}"#;
        let valid = read::<Shape>(text.as_bytes()).unwrap();
        assert_eq!(valid.body.name, "Ann");
        assert_eq!((valid.body.price, valid.body.quantities), (5, vec![2]));
    }

    #[test]
    fn every_bad_field_is_named_at_once() {
        let pair = |pointer: &str, code: &str| (pointer.to_owned(), code.to_owned());
        assert_eq!(
            problems(""),
            [pair("/name", "required"), pair("/price", "required"), pair("/items", "required")]
        );
        assert_eq!(
            problems(r#"{"name":7,"price":{"amount":1.5},"items":[{"quantity":0},{},3]}"#),
            [
                pair("/name", "wrong_type"),
                pair("/price/amount", "wrong_type"),
                pair("/items/0/quantity", "out_of_range"),
                pair("/items/1/quantity", "required"),
                pair("/items/2", "wrong_type"),
            ]
        );
        assert_eq!(problems("[]"), [pair("", "wrong_type")]);
    }

    #[test]
    fn broken_json_says_where() {
        let error = read::<Shape>(b"{\"name\":\n oops}").unwrap_err();
        assert_eq!(error.status(), StatusCode::BAD_REQUEST);
        assert_eq!(error.code(), "malformed_json");
        let deep = format!("{}{}", "[".repeat(40), "]".repeat(40));
        assert_eq!(read::<Shape>(deep.as_bytes()).unwrap_err().code(), "malformed_json");
        let abyss = "[".repeat(100_000);
        assert_eq!(read::<Shape>(abyss.as_bytes()).unwrap_err().code(), "malformed_json");
    }

    #[test]
    fn the_canonical_form_ignores_order_and_space() {
        let canonical = |text: &str| read::<Nothing>(text.as_bytes()).unwrap().canonical;
        assert_eq!(canonical(r#"{"a":1,"b":[2,3]}"#), canonical("{ \"b\": [2, 3], \"a\": 1 }"));
        assert_ne!(canonical(r#"{"a":[1,2]}"#), canonical(r#"{"a":[2,1]}"#));
    }

    #[test]
    fn only_json_is_json() {
        let with = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(value));
            is_json(&headers)
        };
        assert!(with("application/json; charset=utf-8"));
        assert!(with("application/merge-patch+json"));
        assert!(!with("text/plain"));
        assert!(!with("application/xml"));
    }
}
