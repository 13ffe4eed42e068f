//! Answers: a body and what stands around it.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use souk_actors::command::Done;
use souk_actors::event::Position;
use souk_actors::personal::Personal;
use utoipa::ToSchema;

use super::conditional::{IfNoneMatch, content_tag, version_tag};
use super::{App, IDEMPOTENT_REPLAYED, POSITION, PROJECTION_POSITION};

/// A JSON answer.
#[derive(Debug, Clone)]
pub struct Answer<T> {
    status: StatusCode,
    body: T,
    headers: HeaderMap,
}

impl<T: Serialize> Answer<T> {
    /// 200 with a body.
    pub fn ok(body: T) -> Self {
        Self { status: StatusCode::OK, body, headers: HeaderMap::new() }
    }

    /// 201 with a body and where it will be found.
    pub fn created(location: &str, body: T) -> Self {
        let mut answer = Self::ok(body).with(header::LOCATION, location);
        answer.status = StatusCode::CREATED;
        answer
    }

    /// 202 with a body and where to look later.
    pub fn accepted(location: &str, body: T) -> Self {
        let mut answer = Self::created(location, body);
        answer.status = StatusCode::ACCEPTED;
        answer
    }

    /// The same with another body.
    #[must_use]
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Answer<U> {
        Answer { status: self.status, body: change(self.body), headers: self.headers }
    }

    /// The same with a header. A value that is none (it cannot be, in practice) is left out.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    /// The same with what a command left behind: the new version, the position, the replay mark.
    #[must_use]
    pub fn after<R>(self, done: &Done<R>) -> Self {
        let mut answer = self.with(header::ETAG, &version_tag(done.version));
        if let Some(at) = done.position {
            answer = answer.with(POSITION, &at.to_string());
        }
        if done.replayed { answer.with(IDEMPOTENT_REPLAYED, "true") } else { answer }
    }

    /// The same with where the events of several commands stand: the last of each partition.
    #[must_use]
    pub fn after_all(self, positions: impl IntoIterator<Item = Position>) -> Self {
        let mut last = BTreeMap::<u16, u64>::new();
        for Position { partition, position } in positions {
            let of = last.entry(partition).or_default();
            *of = position.max(*of);
        }
        let shown = |(partition, position)| Position { partition, position }.to_string();
        match last.is_empty() {
            true => self,
            false => {
                let all: Vec<_> = last.into_iter().map(shown).collect();
                self.with(POSITION, &all.join(","))
            }
        }
    }

    /// The same with an aggregate's version, or 304 when the caller has that one.
    pub fn at_version(self, version: u64, theirs: &IfNoneMatch) -> Response {
        self.tagged(&version_tag(version), theirs)
    }

    /// The same with a tag, or 304 when the caller has what carries it.
    pub fn tagged(self, tag: &str, theirs: &IfNoneMatch) -> Response {
        theirs.answer(tag, self.into_response())
    }

    /// The same with how far the projection behind it had come.
    #[must_use]
    pub fn projected(self, app: &App, projection: &str) -> Self {
        self.with(PROJECTION_POSITION, &app.projection_position(projection))
    }
}

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        let body =
            serde_json::to_vec(&self.body).expect("answers are plain data, keys are strings");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().entry(header::CONTENT_TYPE).or_insert(json);
        response
    }
}

/// 204: a command was carried out, and there is nothing to show of it.
pub fn nothing_after<R>(done: &Done<R>) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = Answer::ok(()).after(done).headers;
    response.headers_mut().extend(headers);
    // There is nothing that has a version any more.
    response.headers_mut().remove(header::ETAG);
    response
}

/// One page of a list.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Page<T> {
    /// The items.
    pub data: Vec<T>,
    /// Where the next page begins; none: this is the last.
    pub next_cursor: Option<String>,
    /// Whether there is a next page.
    pub has_more: bool,
}

impl<T: Serialize> Page<T> {
    /// A page that is the whole list.
    pub fn whole(data: Vec<T>) -> Self {
        Self { data, next_cursor: None, has_more: false }
    }
}

/// A body that several aggregates went into, or 304 when the caller has that one.
pub fn composed<T: Serialize>(body: &T, theirs: &IfNoneMatch) -> Response {
    let tag = content_tag(&serde_json::to_vec(body).unwrap_or_default());
    theirs.answer(&tag, Answer::ok(body).into_response())
}

/// What is shown of a personal value to somebody who may see it, or not.
pub fn shown(personal: &Personal<String>, may_see: bool) -> String {
    match (may_see, personal.get()) {
        (_, None) => "[erased]".to_owned(),
        (false, Some(_)) => "[redacted]".to_owned(),
        (true, Some(value)) => value.clone(),
    }
}

/// What a command's view made of the state, apart from what the command left behind.
pub fn split<T>(done: Done<T>) -> (T, Done<()>) {
    let Done { value, version, events, position, replayed } = done;
    (value, Done { value: (), version, events, position, replayed })
}
