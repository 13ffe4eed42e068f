//! `search-view`: what listings are found by. It holds their words only: how a listing stands, what it
//! costs and whether any is left is asked of `listings-view` at the same time, so that selling
//! something costs the index nothing.
//!
//! The words are folded here ([`crate::domain::words`]), the same for every store. The name of a
//! category is not among them, since the listing's events do not have it: each text has one word that
//! stands for its category, and a query's word that a category is called by may be that word too.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Deserialize;
use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use uuid::Uuid;

use super::categories;
use super::db::{Param, Query, ReadDb, ReadError, Row, Wanted};
use super::listings::{ListingRow, ListingsView};
use super::view::{View, read_data};
use crate::domain::listing::ListingEvent;
use crate::domain::words::{folded_words, words};

/// Whatever changes what a listing is found by.
pub const TOPICS: &[&str] = &["listing.created", "listing.updated", "listing.published"];

/// Words of a query that are looked for.
pub const WORDS_MAX: usize = 16;

/// With more words than this, nobody guesses what was meant.
const CORRECTED_WORDS_MAX: usize = 6;
/// Words that are compared with one that nobody knows.
const CANDIDATES_MAX: u32 = 5_000;
/// A shorter word is not guessed at.
const CORRECTED_LENGTH_MIN: usize = 4;
/// From this length on, two letters may be wrong.
const TWO_WRONG_FROM: usize = 7;
/// Categories, and sizes of prices, that are counted.
const FACETS_MAX: u32 = 50;

/// Before the letters of a category's id.
const CATEGORY_MARK: &str = "zq";
/// How long such a word is.
const CATEGORY_WORD: usize = CATEGORY_MARK.len() + 32;

/// What the index has of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchRow {
    listing_id: Uuid,
    description: String,
    title_words: Words,
    name_words: String,
    body_words: String,
    is_draft: bool,
    version: i64,
}

/// Words as they are compared: of a title that the next event of the same page replaces they are never made.
#[derive(Debug, Clone)]
enum Words {
    /// These.
    Folded(String),
    /// Those of this text.
    Of(String),
}

impl Words {
    fn folded(&self) -> Cow<'_, str> {
        match self {
            Self::Folded(words) => Cow::Borrowed(words),
            Self::Of(text) => Cow::Owned(folded_words(text)),
        }
    }
}

impl PartialEq for Words {
    fn eq(&self, other: &Self) -> bool {
        self.folded() == other.folded()
    }
}

impl Eq for Words {}

/// The index.
pub struct SearchView;

#[derive(Deserialize)]
struct Created {
    title: String,
    description: String,
    category_id: Uuid,
    sku: String,
    #[serde(default)]
    draft: bool,
}

#[derive(Deserialize)]
struct Updated {
    title: String,
    description: String,
}

impl View for SearchView {
    const NAME: &'static str = super::SEARCH_VIEW;
    const CONTEXT: &'static str = "listings";
    const TOPICS: &'static [&'static str] = TOPICS;
    const TABLE: &'static str = "search_v1";
    const COLUMNS: &'static [&'static str] = &[
        "listing_id",
        "description",
        "title_words",
        "name_words",
        "body_words",
        "is_draft",
        "version",
    ];
    const FIXED: &'static [&'static str] = &["name_words"];
    type Row = SearchRow;

    fn fold(row: Option<SearchRow>, event: &StoredEvent) -> Result<Option<SearchRow>, Failure> {
        let version = i64::try_from(event.aggregate_version).unwrap_or(i64::MAX);
        if row.as_ref().is_some_and(|row| version <= row.version) {
            return Ok(row);
        }
        if &*event.event_type == "listing.created" {
            let created: Created = read_data::<ListingEvent, _>(event)?;
            let category = category_word(created.category_id);
            return Ok(Some(SearchRow {
                listing_id: event.aggregate_id,
                title_words: Words::Of(created.title),
                name_words: format!("{} {category}", folded_words(&created.sku)),
                body_words: folded_words(&created.description),
                description: created.description,
                is_draft: created.draft,
                version,
            }));
        }
        let Some(mut row) = row else { return Ok(None) };
        match &*event.event_type {
            "listing.updated" => {
                let Updated { title, description } = read_data::<ListingEvent, _>(event)?;
                row.title_words = Words::Of(title);
                if description != row.description {
                    row.body_words = folded_words(&description);
                    row.description = description;
                }
            }
            "listing.published" => row.is_draft = false,
            _ => {}
        }
        row.version = version;
        Ok(Some(row))
    }

    fn values(row: &SearchRow) -> Vec<Param> {
        vec![
            row.listing_id.into(),
            (&row.description).into(),
            (&*row.title_words.folded()).into(),
            (&row.name_words).into(),
            (&row.body_words).into(),
            row.is_draft.into(),
            row.version.into(),
        ]
    }

    fn read(row: &Row) -> Result<SearchRow, ReadError> {
        Ok(SearchRow {
            listing_id: row.id(0)?,
            description: row.text(1)?,
            title_words: Words::Folded(row.text(2)?),
            name_words: row.text(3)?,
            body_words: row.text(4)?,
            is_draft: row.flag(5)?,
            version: row.int(6)?,
        })
    }
}

/// The word that stands for a category: letters only, so that every parser takes it for one word.
fn category_word(category: Uuid) -> String {
    let letters = category.as_bytes().iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let letters = letters.map(|half| char::from(b'a' + half));
    CATEGORY_MARK.chars().chain(letters).collect()
}

fn is_category_word(word: &str) -> bool {
    word.len() == CATEGORY_WORD && word.starts_with(CATEGORY_MARK)
}

/// What is looked for: every word, the last one also as the beginning of a longer one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms(Vec<Wanted>);

impl Terms {
    /// The terms of a query; none: there is no word in it.
    pub(super) async fn read(db: &ReadDb, text: &str) -> Result<Option<Self>, ReadError> {
        let mut all: Vec<String> = Vec::new();
        for word in words(text).take(WORDS_MAX) {
            if !all.contains(&word.folded) {
                all.push(word.folded);
            }
        }
        let last = all.len().saturating_sub(1);
        let wanted = all.into_iter().enumerate();
        let mut wanted: Vec<_> = wanted
            .map(|(at, word)| Wanted { word, is_prefix: at == last, or: Vec::new() })
            .collect();
        if wanted.is_empty() {
            return Ok(None);
        }
        for category in categories::all(db).await? {
            let names: Vec<_> = words(&category.name).collect();
            for of in &mut wanted {
                if names.iter().any(|name| stands_for(of, &name.folded)) {
                    of.or.push(category_word(category.category_id));
                }
            }
        }
        Ok(Some(Self(wanted)))
    }

    /// Whether a folded word of a text is one of those that are looked for.
    pub fn is_found(&self, folded: &str) -> bool {
        self.0.iter().any(|wanted| stands_for(wanted, folded))
    }

    /// The words, as they are compared.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for wanted in &self.0 {
            let _ = write!(text, "{}{}", if text.is_empty() { "" } else { " " }, wanted.word);
        }
        text
    }
}

fn stands_for(wanted: &Wanted, folded: &str) -> bool {
    if wanted.is_prefix { folded.starts_with(&wanted.word) } else { folded == wanted.word }
}

/// Which listings, whatever they are found by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SearchFilter {
    /// Of this seller.
    pub seller_id: Option<Uuid>,
    /// In this category.
    pub category_id: Option<Uuid>,
    /// With a price in this currency.
    pub currency: Option<String>,
    /// Of at least this.
    pub price_min: Option<i64>,
    /// And at most this.
    pub price_max: Option<i64>,
    /// Of which some are left, or none.
    pub in_stock: Option<bool>,
}

/// What comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SearchOrder {
    /// What fits best.
    Relevance,
    /// What is newest.
    Newest,
    /// What costs least.
    PriceAscending,
    /// What costs most.
    PriceDescending,
}

impl SearchOrder {
    fn key(self, is_ranked: bool) -> &'static str {
        match self {
            Self::Relevance if is_ranked => "hit.score",
            Self::Relevance | Self::Newest => "l.created_ms",
            Self::PriceAscending | Self::PriceDescending => "l.price_amount",
        }
    }
}

/// A listing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// The listing.
    pub listing: ListingRow,
    /// What it is, at length.
    pub description: String,
    /// Where it stands in its order.
    pub key: i64,
}

/// How what was found is spread.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facets {
    /// Over categories, the most frequent first; the filter's category is left out of account.
    pub categories: Vec<(Uuid, u64)>,
    /// Over prices: currency, number of digits, how many. The filter's range is left out of account.
    pub prices: Vec<(String, u32, u64)>,
}

fn table(db: &ReadDb) -> String {
    db.table(SearchView::NAME, SearchView::TABLE)
}

/// ` FROM …`: everything on offer that has the terms.
fn offered(query: Query, db: &ReadDb, terms: Option<&Terms>) -> Query {
    let listings = db.table(ListingsView::NAME, ListingsView::TABLE);
    let query = query.then(" FROM ").table(&listings).then(" AS l JOIN ").table(&table(db));
    let query = query.then(" AS s ON s.listing_id = l.listing_id");
    let query = match terms {
        Some(_) => query.then(" JOIN hit ON hit.id = l.listing_id"),
        None => query,
    };
    query.then(" WHERE l.status NOT IN ('DRAFT', 'ARCHIVED')")
}

fn filtered(query: Query, filter: &SearchFilter) -> Query {
    let query = query
        .when(" AND l.seller_id = ", filter.seller_id)
        .when(" AND l.category_id = ", filter.category_id)
        .when(" AND l.currency = ", filter.currency.as_ref())
        .when(" AND l.price_amount >= ", filter.price_min)
        .when(" AND l.price_amount <= ", filter.price_max);
    match filter.in_stock {
        Some(true) => query.then(" AND l.available > 0"),
        Some(false) => query.then(" AND l.available = 0"),
        None => query,
    }
}

fn begin(db: &ReadDb, terms: Option<&Terms>) -> Query {
    match terms {
        Some(terms) => db.matching(&table(db), "listing_id", &terms.0),
        None => Query::new(""),
    }
}

/// The listings that are found, behind a key and id of the order.
pub async fn find(
    db: &ReadDb,
    terms: Option<&Terms>,
    filter: &SearchFilter,
    order: SearchOrder,
    behind: Option<(i64, Uuid)>,
    limit: u32,
) -> Result<Vec<Hit>, ReadError> {
    let key = order.key(terms.is_some());
    let (way, beyond) = match order {
        SearchOrder::PriceAscending => (" ASC", ") > ("),
        _ => (" DESC", ") < ("),
    };
    let mut query = begin(db, terms).then(" SELECT l.listing_id");
    for column in &ListingsView::COLUMNS[1..] {
        query = query.then(", l.").then(column);
    }
    let query = query.then(", s.description, ").then(key).then(" AS place");
    let mut query = filtered(offered(query, db, terms), filter);
    if let Some((place, id)) = behind {
        query = query.then(" AND (").then(key).then(", l.listing_id").then(beyond);
        query = query.value(place).then(", ").value(id).then(")");
    }
    let query = query.then(" ORDER BY ").then(key).then(way).then(", l.listing_id").then(way);
    let columns = ListingsView::COLUMNS.len();
    db.fetch_as(query.then(" LIMIT ").value(limit), |row| {
        let (description, key) = (row.text(columns)?, row.int(columns + 1)?);
        Ok(Hit { listing: ListingsView::read(row)?, description, key })
    })
    .await
}

/// How what is found is spread.
pub async fn facets(
    db: &ReadDb,
    terms: Option<&Terms>,
    filter: &SearchFilter,
) -> Result<Facets, ReadError> {
    let query = begin(db, terms).then(" SELECT l.category_id, COUNT(*) AS listings");
    let anywhere = SearchFilter { category_id: None, ..filter.clone() };
    let query = filtered(offered(query, db, terms), &anywhere)
        .then(" GROUP BY l.category_id ORDER BY listings DESC, l.category_id LIMIT ")
        .value(FACETS_MAX);
    let categories = db.fetch_as(query, |row| Ok((row.id(0)?, row.count(1)?))).await?;
    let query = begin(db, terms).then(
        " SELECT l.currency, CAST(LENGTH(CAST(l.price_amount AS TEXT)) AS BIGINT) AS digits, \
         COUNT(*) AS listings",
    );
    let any_price = SearchFilter { price_min: None, price_max: None, ..filter.clone() };
    let query = filtered(offered(query, db, terms), &any_price)
        .then(" GROUP BY l.currency, digits ORDER BY l.currency, digits LIMIT ")
        .value(FACETS_MAX);
    let prices = db
        .fetch_as(query, |row| {
            let digits = u32::try_from(row.int(1)?).map_err(|_| ReadError::Unreadable(1))?;
            Ok((row.text(0)?, digits, row.count(2)?))
        })
        .await?;
    Ok(Facets { categories, prices })
}

/// What the index has of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Indexed {
    /// At which version.
    pub version: u64,
    /// Whether nobody is to find it yet.
    pub is_draft: bool,
}

/// What the index has of these listings; those that it has nothing of are left out.
pub async fn indexed(db: &ReadDb, listings: &[Uuid]) -> Result<BTreeMap<Uuid, Indexed>, ReadError> {
    let Some((last, others)) = listings.split_last() else { return Ok(BTreeMap::new()) };
    let mut query = Query::select(&["listing_id", "version", "is_draft"], &table(db))
        .then(" AND listing_id IN (");
    for listing in others {
        query = query.value(*listing).then(", ");
    }
    query = query.value(*last);
    // Few different statements, so that each stays prepared.
    for _ in listings.len()..listings.len().next_power_of_two() {
        query = query.then(", ").value(*last);
    }
    let read =
        |row: &Row| Ok((row.id(0)?, Indexed { version: row.count(1)?, is_draft: row.flag(2)? }));
    Ok(db.fetch_as(query.then(")"), read).await?.into_iter().collect())
}

/// The terms with known words in place of unknown ones; none: all are known, or nothing is near.
pub async fn corrected(db: &ReadDb, terms: &Terms) -> Result<Option<Terms>, ReadError> {
    if terms.0.len() > CORRECTED_WORDS_MAX {
        return Ok(None);
    }
    let (mut all, mut changed) = (Vec::new(), false);
    for wanted in &terms.0 {
        match nearest(db, wanted).await? {
            Nearest::Known => all.push(wanted.word.clone()),
            Nearest::Other(word) => {
                all.push(word);
                changed = true;
            }
            Nearest::Nothing => return Ok(None),
        }
    }
    if changed { Terms::read(db, &all.join(" ")).await } else { Ok(None) }
}

#[derive(Debug, PartialEq, Eq)]
enum Nearest {
    Known,
    Other(String),
    Nothing,
}

async fn nearest(db: &ReadDb, wanted: &Wanted) -> Result<Nearest, ReadError> {
    let Some(first) = wanted.word.chars().next() else { return Ok(Nearest::Known) };
    let mut known = db.words(&table(db), first, CANDIDATES_MAX).await?;
    known.retain(|(word, _)| !is_category_word(word));
    for category in categories::all(db).await? {
        known.extend(words(&category.name).map(|word| (word.folded, 0)));
    }
    Ok(nearest_of(wanted, &known))
}

/// The word that differs least, and of several the most frequent.
fn nearest_of(wanted: &Wanted, known: &[(String, u64)]) -> Nearest {
    if known.iter().any(|(word, _)| stands_for(wanted, word)) {
        return Nearest::Known;
    }
    let length = wanted.word.chars().count();
    let wrong_max = match length {
        ..CORRECTED_LENGTH_MIN => return Nearest::Nothing,
        CORRECTED_LENGTH_MIN..TWO_WRONG_FROM => 1,
        _ => 2,
    };
    let near = known.iter().filter_map(|(word, texts)| {
        if word.chars().count().abs_diff(length) > wrong_max {
            return None;
        }
        let wrong = strsim::osa_distance(&wanted.word, word);
        (wrong <= wrong_max).then_some((wrong, Reverse(*texts), word))
    });
    near.min().map_or(Nearest::Nothing, |(_, _, word)| Nearest::Other(word.clone()))
}

#[cfg(test)]
mod tests;
