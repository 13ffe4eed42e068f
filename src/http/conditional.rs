//! Entity tags: `ETag` is an aggregate's version, `If-Match` names the version a change rests on,
//! `If-None-Match` saves sending what the caller has.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use souk_actors::id::derived;

use super::problem::ApiError;

/// What `If-Match` or `If-None-Match` names.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Tags {
    /// `*`
    Any,
    /// Tags as they were sent, quotes and `W/` removed, with whether they are weak.
    These(Vec<(bool, String)>),
}

impl Tags {
    fn read(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Self>, ApiError> {
        let mut all = Vec::new();
        for value in headers.get_all(name) {
            let text = value.to_str().unwrap_or("\u{0}").trim();
            if text == "*" {
                return Ok(Some(Self::Any));
            }
            for tag in elements(text) {
                all.push(tag_of(tag).ok_or_else(|| {
                    let detail = format!("{name} must be a list of quoted tags, or *");
                    ApiError::bad_request("invalid_parameter", detail)
                })?);
            }
        }
        Ok((!all.is_empty()).then_some(Self::These(all)))
    }
}

/// The elements of a list; a comma within quotes is part of a tag.
fn elements(text: &str) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    let between = move |character: char| {
        is_quoted ^= character == '"';
        character == ',' && !is_quoted
    };
    text.split(between).map(str::trim).filter(|tag| !tag.is_empty())
}

fn tag_of(text: &str) -> Option<(bool, String)> {
    let (weak, quoted) = match text.strip_prefix("W/") {
        Some(quoted) => (true, quoted),
        None => (false, text),
    };
    let tag = quoted.strip_prefix('"')?.strip_suffix('"')?;
    let visible = tag.bytes().all(|byte| byte == 0x21 || (0x23..=0x7e).contains(&byte));
    visible.then(|| (weak, tag.to_owned()))
}

/// `If-Match`: the version that the caller's change rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfMatch {
    /// Nothing was sent.
    Absent,
    /// `*`: whichever version there is.
    Any,
    /// This one. A tag that cannot be a version is one that there never is.
    Version(u64),
}

impl IfMatch {
    fn read(headers: &HeaderMap) -> Result<Self, ApiError> {
        match Tags::read(headers, &header::IF_MATCH)? {
            None => Ok(Self::Absent),
            Some(Tags::Any) => Ok(Self::Any),
            // Weak tags never match here (RFC 9110 §13.1.1), nor do tags that are no version.
            Some(Tags::These(tags)) => match tags.as_slice() {
                [(false, tag)] => {
                    let version = tag.split_once('.').map_or(tag.as_str(), |(version, _)| version);
                    Ok(Self::Version(version.parse().unwrap_or(u64::MAX)))
                }
                [(true, _)] => Ok(Self::Version(u64::MAX)),
                _ => Err(ApiError::bad_request("invalid_parameter", "If-Match takes one tag here")),
            },
        }
    }

    /// The version to expect, if it matters.
    pub fn version(self) -> Option<u64> {
        match self {
            Self::Version(version) => Some(version),
            Self::Absent | Self::Any => None,
        }
    }

    /// Refuses a change that needs one and came without.
    pub fn required(self) -> Result<(), ApiError> {
        if self != Self::Absent {
            return Ok(());
        }
        Err(ApiError::new(
            StatusCode::PRECONDITION_REQUIRED,
            "precondition_required",
            "send If-Match with the ETag that this change rests on",
        ))
    }
}

impl<S: Sync> FromRequestParts<S> for IfMatch {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Self::read(&parts.headers)
    }
}

/// `If-None-Match`: what the caller has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IfNoneMatch(Option<Tags>);

impl IfNoneMatch {
    /// Whether the caller has what carries this tag. Weak comparison (RFC 9110 §13.1.2).
    fn has(&self, etag: &str) -> bool {
        match &self.0 {
            None => false,
            Some(Tags::Any) => true,
            Some(Tags::These(tags)) => {
                tag_of(etag).is_some_and(|(_, tag)| tags.iter().any(|(_, theirs)| *theirs == tag))
            }
        }
    }

    /// The answer with its tag, or 304 without a body when the caller has it.
    pub fn answer(&self, etag: &str, response: Response) -> Response {
        let mut response = if self.has(etag) {
            let mut short = Response::new(axum::body::Body::empty());
            *short.status_mut() = StatusCode::NOT_MODIFIED;
            *short.headers_mut() = response.headers().clone();
            short.headers_mut().remove(header::CONTENT_TYPE);
            short.headers_mut().remove(header::CONTENT_LENGTH);
            short
        } else {
            response
        };
        if let Ok(value) = HeaderValue::from_str(etag) {
            response.headers_mut().insert(header::ETAG, value);
        }
        response
    }
}

impl<S: Sync> FromRequestParts<S> for IfNoneMatch {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Tags::read(&parts.headers, &header::IF_NONE_MATCH).map(Self)
    }
}

/// The tag of an aggregate's own body.
pub fn version_tag(version: u64) -> String {
    format!("\"{version}\"")
}

/// The tag of an aggregate's body that shows something of another one too: both versions. As `If-Match`
/// it names the first, which is what changes rest on.
pub fn versions_tag(version: u64, of_another: u64) -> String {
    format!("\"{version}.{of_another}\"")
}

/// The tag of a body that several aggregates went into: a weak one of its content.
pub fn content_tag(body: &[u8]) -> String {
    format!("W/\"{}\"", derived("etag", &[body]).simple())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn if_match_names_one_version() {
        let read = |value| IfMatch::read(&headers(header::IF_MATCH, value));
        assert_eq!(read("\"7\"").unwrap(), IfMatch::Version(7));
        assert_eq!(versions_tag(7, 3), "\"7.3\"");
        assert_eq!(read("\"7.3\"").unwrap(), IfMatch::Version(7));
        assert_eq!(read("*").unwrap(), IfMatch::Any);
        assert!(IfMatch::Any.required().is_ok());
        assert_eq!(read("W/\"7\"").unwrap(), IfMatch::Version(u64::MAX));
        assert_eq!(read("\"abc\"").unwrap(), IfMatch::Version(u64::MAX));
        assert!(read("7").is_err());
        assert!(read("\"7\", \"8\"").is_err());
        assert_eq!(read("\"7,8\"").unwrap(), IfMatch::Version(u64::MAX));
        let none = IfMatch::read(&HeaderMap::new()).unwrap();
        assert_eq!(none.required().unwrap_err().status(), StatusCode::PRECONDITION_REQUIRED);
    }

    #[test]
    fn if_none_match_saves_the_body() {
        let read = |value| {
            IfNoneMatch(
                Tags::read(&headers(header::IF_NONE_MATCH, value), &header::IF_NONE_MATCH).unwrap(),
            )
        };
        assert!(read("\"1\", \"7\"").has("\"7\""));
        assert!(read("W/\"7\"").has("\"7\""));
        assert!(read("*").has("\"7\""));
        assert!(!read("\"6\"").has("\"7\""));
        let answer = read("\"7\"").answer("\"7\"", Response::new("body".into()));
        assert_eq!(answer.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(answer.headers()[header::ETAG], "\"7\"");
    }
}
