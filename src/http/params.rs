//! Query parameters: `eventType` and `event_type` are the same, and what is wrong is named.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use axum::extract::{FromRequestParts, OriginalUri, Query};
use axum::http::Uri;
use axum::http::request::Parts;
use serde::Serialize;
use serde::de::value::StrDeserializer;
use serde::de::{DeserializeOwned, IntoDeserializer as _};
use souk_actors::event::Position;
use souk_actors::world::Timestamp;

use super::App;
use super::answer::{Answer, Page};
use super::cursor::Cursors;
use super::prefer::{self, Prefer};
use super::problem::ApiError;

/// The most items of one page.
const LIMIT_MAX: u32 = 200;
/// The items of a page when nobody says otherwise.
const LIMIT_DEFAULT: u32 = 50;

/// The query of a request.
#[derive(Debug, Clone, Default)]
pub struct Params {
    values: BTreeMap<String, String>,
    path: String,
    prefer: Prefer,
}

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        // A nested router sees its own part of the path only.
        let original = parts.extensions.get::<OriginalUri>();
        let params = Self::read(original.map_or(&parts.uri, |OriginalUri(uri)| uri))?;
        Ok(Self { prefer: Prefer::read(&parts.headers), ..params })
    }
}

impl Params {
    fn read(uri: &Uri) -> Result<Self, ApiError> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|_| ApiError::bad_request("invalid_parameter", "the query cannot be read"))?;
        let values = pairs.into_iter().map(|(name, value)| (snake(&name), value)).collect();
        Ok(Self { values, path: uri.path().to_owned(), prefer: Prefer::default() })
    }

    /// A parameter's text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether a parameter is there, with or without a value of its own.
    pub fn flag(&self, name: &str) -> bool {
        self.values.get(name).is_some_and(|value| value != "false")
    }

    /// A parameter that is written as text.
    pub fn parsed<T: FromStr>(&self, name: &str) -> Result<Option<T>, ApiError>
    where
        T::Err: Display,
    {
        self.text(name)
            .map(|text| text.parse().map_err(|error| wrong(name, &format!("{error}"))))
            .transpose()
    }

    /// `true` or `false`; with neither of them it is wrong, also where there is nothing behind the name.
    pub fn truth(&self, name: &str) -> Result<Option<bool>, ApiError> {
        let read = |text: &String| text.parse().map_err(|_| wrong(name, "must be true or false"));
        self.values.get(name).map(read).transpose()
    }

    /// One of an enumeration's words, in whatever case.
    pub fn word<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ApiError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let read = from_word(&text.to_ascii_uppercase());
        read.map(Some).map_err(|no| wrong(name, &no.problem))
    }

    /// The same as read models have it.
    pub fn word_as_text<T: DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Option<String>, ApiError> {
        self.word::<T>(name)?;
        Ok(self.text(name).map(str::to_ascii_uppercase))
    }

    /// One of these words, in whatever case.
    pub fn one_of<'a>(&self, name: &str, words: &[&'a str]) -> Result<Option<&'a str>, ApiError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let known = words.iter().find(|word| word.eq_ignore_ascii_case(text));
        let known = known.ok_or_else(|| wrong(name, &must_be_one_of(words)))?;
        Ok(Some(*known))
    }

    /// A time.
    pub fn time(&self, name: &str) -> Result<Option<Timestamp>, ApiError> {
        self.text(name)
            .map(|text| Timestamp::parse(text).ok_or_else(|| wrong(name, "not an RFC 3339 time")))
            .transpose()
    }

    /// `min_position`: what the answer must include, as `Souk-Position` says it, with commas between;
    /// the last position of each partition that is named.
    pub fn min_position(&self) -> Result<BTreeMap<u16, u64>, ApiError> {
        let mut least = BTreeMap::<u16, u64>::new();
        for part in self.text("min_position").into_iter().flat_map(|text| text.split(',')) {
            let read = part.trim().parse::<Position>();
            let at = read.map_err(|error| wrong("min_position", error))?;
            let of = least.entry(at.partition).or_default();
            *of = at.position.max(*of);
        }
        Ok(least)
    }

    /// `Prefer: wait`: how long the caller would wait for `min_position`.
    pub fn wait(&self) -> Option<Duration> {
        self.prefer.wait
    }

    /// `limit`: how many items to give.
    pub fn limit(&self) -> Result<u32, ApiError> {
        let limit = self.parsed::<u32>("limit")?.unwrap_or(LIMIT_DEFAULT);
        if (1..=LIMIT_MAX).contains(&limit) {
            return Ok(limit);
        }
        Err(wrong("limit", &format!("must be from 1 to {LIMIT_MAX}")))
    }

    /// `cursor`: where to go on in the list of this path and filter.
    pub fn cursor<T: DeserializeOwned>(&self, cursors: &Cursors) -> Result<Option<T>, ApiError> {
        self.text("cursor").map(|cursor| cursors.open(&self.list(), cursor)).transpose()
    }

    /// The answer with a page of `limit` rows out of up to one more, as they are shown, and the way
    /// to the next. A cursor may need more of a row than what is shown.
    pub fn rows<R, T: From<R> + Serialize, C: Serialize>(
        &self,
        app: &App,
        rows: Vec<R>,
        limit: u32,
        cursor_behind: impl FnOnce(&R) -> C,
    ) -> Answer<Page<T>> {
        self.page(app.cursors(), rows, limit, cursor_behind)
    }

    /// Leaves `limit` rows of up to one more, and gives the cursor to those behind them, if there
    /// are any: for pages whose items are looked up row by row.
    pub fn cut<R, C: Serialize>(
        &self,
        app: &App,
        rows: &mut Vec<R>,
        limit: u32,
        cursor_behind: impl FnOnce(&R) -> C,
    ) -> Option<String> {
        self.cut_at(app.cursors(), rows, limit, cursor_behind)
    }

    fn cut_at<R, C: Serialize>(
        &self,
        cursors: &Cursors,
        rows: &mut Vec<R>,
        limit: u32,
        cursor_behind: impl FnOnce(&R) -> C,
    ) -> Option<String> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let has_more = rows.len() > limit;
        rows.truncate(limit);
        let at = rows.last().filter(|_| has_more).map(cursor_behind);
        at.map(|at| cursors.seal(&self.list(), &at))
    }

    fn page<R, T: From<R> + Serialize, C: Serialize>(
        &self,
        cursors: &Cursors,
        mut rows: Vec<R>,
        limit: u32,
        cursor_behind: impl FnOnce(&R) -> C,
    ) -> Answer<Page<T>> {
        let next_cursor = self.cut_at(cursors, &mut rows, limit, cursor_behind);
        let data = rows.into_iter().map(T::from).collect();
        self.with_next(Page { data, has_more: next_cursor.is_some(), next_cursor })
    }

    /// The answer with a page and its `Link` to the next.
    pub fn with_next<T: Serialize>(&self, page: Page<T>) -> Answer<Page<T>> {
        let link = page.next_cursor.as_ref().map(|cursor| {
            let mut query: Vec<_> =
                self.others().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
            query.extend(self.text("limit").map(|limit| format!("limit={limit}")));
            query.push(format!("cursor={cursor}"));
            format!("<{}?{}>; rel=\"next\"", self.path, query.join("&"))
        });
        let mut answer = Answer::ok(page);
        if let Some(wait) = self.wait().filter(|_| self.text("min_position").is_some()) {
            let honoured = Prefer { wait: Some(wait), respond_async: false };
            answer = answer.with(prefer::APPLIED, &honoured.applied().unwrap_or_default());
        }
        match link {
            Some(link) => answer.with(axum::http::header::LINK, &link),
            None => answer,
        }
    }

    /// Names the list: a cursor is good for the same path and filter only.
    pub fn list(&self) -> String {
        let filter: Vec<_> = self.others().map(|(name, value)| format!("{name}={value}")).collect();
        format!("{}?{}", self.path, filter.join("&"))
    }

    /// The filter: everything that does not say which part of the list is meant.
    fn others(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .filter(|(_, value)| !value.is_empty())
            .filter(|(name, _)| !matches!(*name, "cursor" | "limit" | "min_position" | "after"))
    }
}

fn from_word<T: DeserializeOwned>(word: &str) -> Result<T, NoWord> {
    let word: StrDeserializer<'_, NoWord> = word.into_deserializer();
    T::deserialize(word)
}

/// The words that [`Params::word`] knows.
pub fn words_of<T: DeserializeOwned>() -> &'static [&'static str] {
    from_word::<T>("").map_or_else(|no| no.words, |_| &[])
}

/// Why a text is none of an enumeration's words, and which there are.
#[derive(Debug)]
struct NoWord {
    problem: String,
    words: &'static [&'static str],
}

impl Display for NoWord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.problem)
    }
}

impl std::error::Error for NoWord {}

impl serde::de::Error for NoWord {
    fn custom<T: Display>(problem: T) -> Self {
        Self { problem: problem.to_string(), words: &[] }
    }

    fn unknown_variant(_: &str, words: &'static [&'static str]) -> Self {
        Self { problem: must_be_one_of(words), words }
    }
}

fn must_be_one_of(words: &[&str]) -> String {
    format!("must be one of {}", words.join(", "))
}

/// 400: a parameter is wrong.
pub fn wrong(name: &str, problem: &str) -> ApiError {
    ApiError::bad_request("invalid_parameter", format!("{name}: {problem}"))
}

/// The id in a path, or 404: what cannot be an id is not there.
pub fn path_id<T: FromStr>(text: &str) -> Result<T, ApiError> {
    text.parse().map_err(|_| ApiError::not_found("there is nothing with this id"))
}

fn snake(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for character in name.chars() {
        if character.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(character.to_ascii_lowercase());
    }
    snake
}

fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte);
    let write = |byte: u8| {
        if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    text.bytes().map(write).collect()
}

#[cfg(test)]
mod tests {
    use axum::http::header;
    use axum::response::IntoResponse as _;

    use super::*;
    use crate::domain::caller::Role;
    use crate::domain::order::OrderStatus;

    fn params(uri: &str) -> Params {
        Params::read(&uri.parse().unwrap()).unwrap()
    }

    #[test]
    fn both_spellings_are_one_parameter() {
        for uri in ["/x?eventType=OrderPlaced", "/x?event_type=OrderPlaced"] {
            assert_eq!(params(uri).text("event_type"), Some("OrderPlaced"));
        }
        assert_eq!(
            params("/x?from=2026-01-01T00:00:00%2B02:00")
                .time("from")
                .unwrap()
                .unwrap()
                .to_string(),
            "2025-12-31T22:00:00.000Z"
        );
    }

    #[test]
    fn a_flag_needs_no_value() {
        assert!(params("/x?verbose").flag("verbose"));
        assert!(!params("/x?verbose=false").flag("verbose"));
        assert!(!params("/x").flag("verbose"));
        assert_eq!(params("/x?status=").text("status"), None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for uri in ["/x?limit=0", "/x?limit=201", "/x?limit=ten"] {
            let error = params(uri).limit().unwrap_err();
            assert_eq!(error.code(), "invalid_parameter", "{uri}");
        }
        for uri in ["/x?min_position=7", "/x?min_position=0:1,", "/x?min_position=0:1;1:2"] {
            let error = params(uri).min_position().unwrap_err();
            assert_eq!(error.code(), "invalid_parameter", "{uri}");
        }
        for uri in ["/x?all=", "/x?all", "/x?all=1"] {
            assert_eq!(params(uri).truth("all").unwrap_err().code(), "invalid_parameter", "{uri}");
        }
        assert_eq!(params("/x?all=true").truth("all").unwrap(), Some(true));
        assert_eq!(params("/x").limit().unwrap(), 50);
    }

    #[test]
    fn words_are_known_ones_in_whatever_case() {
        let read = |uri: &str| params(uri).word::<OrderStatus>("status");
        assert_eq!(read("/x").unwrap(), None);
        assert_eq!(read("/x?status=payment_failed").unwrap(), Some(OrderStatus::PaymentFailed));
        let known = params("/x?status=Paid").word_as_text::<OrderStatus>("status");
        assert_eq!(known.unwrap().as_deref(), Some("PAID"));
        assert_eq!(words_of::<Role>(), ["BUYER", "SELLER", "ADMIN"]);
        assert_eq!(params("/x?of=ONE").one_of("of", &["one", "two"]).unwrap(), Some("one"));
        let unknown = read("/x?status=gone").unwrap_err();
        let other = params("/x?of=three").one_of("of", &["one", "two"]).unwrap_err();
        for (error, words) in [(unknown, "of PENDING, CONFIRMED, "), (other, "of one, two")] {
            assert_eq!(error.code(), "invalid_parameter");
            assert!(format!("{error:?}").contains(words), "{error:?}");
        }
    }

    #[test]
    fn positions_of_several_partitions_can_be_asked_for() {
        let least = |uri: &str| params(uri).min_position().unwrap();
        assert!(least("/x").is_empty() && least("/x?min_position=").is_empty());
        assert_eq!(least("/x?min_position=0:812"), BTreeMap::from([(0, 812)]));
        let several = BTreeMap::from([(0, 7), (2, 9)]);
        assert_eq!(least("/x?min_position=0:7,2:9"), several);
        assert_eq!(least("/x?minPosition=2:9%2C%200:3%2C0:7"), several);
    }

    #[test]
    fn a_page_leads_to_the_next_one_of_the_same_list() {
        let cursors = Cursors::new([1; 32]);
        let first = params("/x?status=A%20B&limit=2");
        let response =
            first.page::<u32, u32, _>(&cursors, vec![1, 2, 3], 2, |item| *item).into_response();
        let link = response.headers()[header::LINK].to_str().unwrap().to_owned();
        let uri = link.trim_start_matches('<').split('>').next().unwrap();
        assert!(uri.starts_with("/x?status=A%20B&limit=2&cursor="), "{uri}");
        assert_eq!(params(uri).cursor::<u32>(&cursors).unwrap(), Some(2));
        let other = uri.replace("A%20B", "C");
        assert_eq!(params(&other).cursor::<u32>(&cursors).unwrap_err().code(), "invalid_cursor");
        let last = first.page::<u32, u32, _>(&cursors, vec![3], 2, |item| *item).into_response();
        assert!(last.headers().get(header::LINK).is_none());
    }
}
