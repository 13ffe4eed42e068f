//! The search: what is for sale, by what it says of itself.

use std::ops::Range;
use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, Page};
use super::call::Call;
use super::listings::{LISTINGS, ListingSummary};
use super::money::CURRENCY_DEFAULT;
use super::params::{Params, wrong};
use super::problem::ApiError;
use crate::domain::ids::{CategoryId, UserId};
use crate::domain::money::{AMOUNT_MAX, Currency};
use crate::domain::words::{Word, words};
use crate::projections::{Hit, SEARCH_VIEW, SearchFilter, SearchOrder, Terms};

/// The most characters of a query.
const QUERY_MAX: usize = 500;
/// Characters of a description that are shown, and how many of them before the first word found.
const SNIPPET: usize = 240;
const SNIPPET_BEFORE: usize = 60;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(search))
}

/// A listing that was found.
#[derive(Debug, Serialize, ToSchema)]
pub struct SearchResult {
    /// The listing.
    #[serde(flatten)]
    pub listing: ListingSummary,
    /// Why it was found.
    pub highlights: Highlights,
}

/// Texts of a listing as HTML: everything is escaped, and the words found stand in `<mark>`.
#[derive(Debug, Serialize, ToSchema)]
pub struct Highlights {
    /// The title.
    #[schema(example = "A blue <mark>bicycle</mark>")]
    pub title: String,
    /// The part of the description where the first of them stands; else its beginning.
    pub description: String,
}

/// One page of what was found.
#[derive(Debug, Serialize, ToSchema)]
pub struct SearchPage {
    /// The listings.
    pub data: Vec<SearchResult>,
    /// Where the next page begins; none: this is the last.
    pub next_cursor: Option<String>,
    /// Whether there is a next page.
    pub has_more: bool,
    /// How everything that was found is spread; with the first page only.
    pub facets: Option<SearchFacets>,
    /// What was found instead, where nothing has the words of the query and others come near.
    #[schema(example = "blue bicycle")]
    pub did_you_mean: Option<String>,
}

/// How what was found is spread.
#[derive(Debug, Serialize, ToSchema)]
pub struct SearchFacets {
    /// Over categories, whichever the query asks for; the most frequent first.
    pub categories: Vec<CategoryFacet>,
    /// Over prices, whichever the query asks for.
    pub price_ranges: Vec<PriceFacet>,
}

/// How many are in a category.
#[derive(Debug, Serialize, ToSchema)]
pub struct CategoryFacet {
    /// The category.
    pub category_id: Uuid,
    /// Its name.
    pub name: Option<String>,
    /// How many.
    pub count: u64,
}

/// How many cost so much.
#[derive(Debug, Serialize, ToSchema)]
pub struct PriceFacet {
    /// At least this, in minor units.
    pub min_price: i64,
    /// At most this, in minor units.
    pub max_price: i64,
    /// Of this currency.
    pub currency: String,
    /// How many.
    pub count: u64,
}

/// What was found, with what it was found by.
struct Found {
    hit: Hit,
    terms: Option<Arc<Terms>>,
}

impl From<Found> for SearchResult {
    fn from(Found { hit, terms }: Found) -> Self {
        let marked = |text: &str| match &terms {
            Some(terms) => marked(text, 0..text.len(), terms),
            None => escaped(text),
        };
        let description = match &terms {
            Some(terms) => snippet(&hit.description, terms),
            None => beginning(&hit.description),
        };
        let highlights = Highlights { title: marked(&hit.listing.title), description };
        Self { listing: hit.listing.into(), highlights }
    }
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

/// A part of a text, escaped, with marks around what is looked for.
fn marked(text: &str, part: Range<usize>, terms: &Terms) -> String {
    let part = &text[part];
    let (mut html, mut last) = (String::with_capacity(part.len()), 0);
    for Word { at, .. } in words(part).filter(|word| terms.is_found(&word.folded)) {
        html.push_str(&escaped(&part[last..at.start]));
        html.push_str("<mark>");
        html.push_str(&escaped(&part[at.clone()]));
        html.push_str("</mark>");
        last = at.end;
    }
    html.push_str(&escaped(&part[last..]));
    html
}

/// The place of so many characters behind a place.
fn behind(text: &str, from: usize, characters: usize) -> usize {
    text[from..].char_indices().nth(characters).map_or(text.len(), |(at, _)| from + at)
}

/// The place of so many characters before a place.
fn before(text: &str, to: usize, characters: usize) -> usize {
    text[..to].char_indices().rev().take(characters).last().map_or(to, |(at, _)| at)
}

fn snippet(text: &str, terms: &Terms) -> String {
    let mut found = words(text).filter(|word| terms.is_found(&word.folded));
    let Some(first) = found.next() else { return beginning(text) };
    let mut from = before(text, first.at.start, SNIPPET_BEFORE);
    if from > 0 {
        // A word that is cut off says nothing.
        from = words(&text[from..]).map(|word| from + word.at.start).nth(1).unwrap_or(from);
        from = from.min(first.at.start);
    }
    let to = behind(text, from, SNIPPET);
    let (start, end) = (if from > 0 { "…" } else { "" }, if to < text.len() { "…" } else { "" });
    format!("{start}{}{end}", marked(text, from..to, terms))
}

fn beginning(text: &str) -> String {
    let to = behind(text, 0, SNIPPET);
    format!("{}{}", escaped(&text[..to]), if to < text.len() { "…" } else { "" })
}

/// What is asked for, apart from the words.
fn filter(params: &Params, order: SearchOrder) -> Result<SearchFilter, ApiError> {
    let price = |name: &str| match params.parsed::<i64>(name)? {
        Some(amount) if !(0..=AMOUNT_MAX).contains(&amount) => {
            Err(wrong(name, "must be a whole number of minor units"))
        }
        amount => Ok(amount),
    };
    let (price_min, price_max) = (price("min_price")?, price("max_price")?);
    let compares = price_min.is_some()
        || price_max.is_some()
        || matches!(order, SearchOrder::PriceAscending | SearchOrder::PriceDescending);
    // Prices of two currencies cannot be compared.
    let currency = params.parsed::<Currency>("currency")?;
    let currency = currency.or(compares.then_some(CURRENCY_DEFAULT));
    Ok(SearchFilter {
        seller_id: params.parsed::<UserId>("seller_id")?.map(UserId::uuid),
        category_id: params.parsed::<CategoryId>("category_id")?.map(CategoryId::uuid),
        currency: currency.map(|currency| currency.code().to_owned()),
        price_min,
        price_max,
        in_stock: params.truth("in_stock")?,
    })
}

fn order(params: &Params) -> Result<SearchOrder, ApiError> {
    Ok(match params.text("sort").unwrap_or("relevance") {
        "relevance" => SearchOrder::Relevance,
        "newest" => SearchOrder::Newest,
        "price_asc" => SearchOrder::PriceAscending,
        "price_desc" => SearchOrder::PriceDescending,
        _ => return Err(wrong("sort", "must be relevance, newest, price_asc or price_desc")),
    })
}

/// Find listings
///
/// Everything on offer whose title, description, category or stock-keeping unit has all the words of
/// `q`; the last of them may be the beginning of a word. Case and accents make no difference: `xe dap`
/// finds `Xe đạp`. Without `q` everything on offer is found. Where nothing has the words, and others
/// come near, what those find is given and `did_you_mean` says so.
///
/// `min_price`, `max_price` and the orders by price compare prices of one `currency`: `VND` when none
/// is named.
#[utoipa::path(get, path = "/search", tag = "listings",
    params(("q" = Option<String>, Query), ("category_id" = Option<String>, Query),
        ("seller_id" = Option<String>, Query), ("min_price" = Option<i64>, Query),
        ("max_price" = Option<i64>, Query), ("currency" = Option<String>, Query),
        ("in_stock" = Option<bool>, Query,
            description = "`true`: some are left; `false`: none is; both when absent"),
        ("sort" = Option<String>, Query), ("limit" = Option<u32>, Query),
        ("cursor" = Option<String>, Query), ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "A page of what was found", body = SearchPage)))]
async fn search(
    State(app): State<App>,
    _: Call,
    params: Params,
) -> Result<Answer<SearchPage>, ApiError> {
    let text = params.text("q");
    if text.is_some_and(|text| text.chars().count() > QUERY_MAX) {
        return Err(wrong("q", &format!("must be at most {QUERY_MAX} characters")));
    }
    let order = order(&params)?;
    let filter = filter(&params, order)?;
    let (limit, behind) = (params.limit()?, params.cursor::<Behind>(app.cursors())?);
    app.includes(SEARCH_VIEW, &params).await?;
    app.includes(LISTINGS, &params).await?;
    // What is found by other words goes on to be found by them.
    let meant = behind.as_ref().and_then(|behind| behind.meant.clone());
    let asked = meant.as_deref().or(text);
    let mut query = Asked::read(&app, asked, filter, order).await?;
    let place = behind.map(|behind| behind.place);
    let is_first = place.is_none();
    let mut hits = query.find(&app, place, limit).await?;
    let mut did_you_mean = meant;
    if let (true, true, Some(terms)) = (is_first, hits.is_empty(), &query.terms)
        && let Some(corrected) = app.reads().corrected(terms).await?
    {
        did_you_mean = Some(corrected.text());
        query.terms = Some(Arc::new(corrected));
        hits = query.find(&app, None, limit).await?;
    }
    if is_first {
        let found = if hits.is_empty() { "nothing" } else { "something" };
        metrics::counter!("souk_search_queries_total", "found" => found).increment(1);
    }
    let facets = if is_first { Some(query.facets(&app).await?) } else { None };
    let cursor = |found: &Found| Behind {
        place: (found.hit.key, found.hit.listing.listing_id),
        meant: did_you_mean.clone(),
    };
    let page = params.rows::<_, SearchResult, _>(&app, query.found(hits), limit, cursor);
    let answer = page.projected(&app, SEARCH_VIEW);
    Ok(answer.map(|Page { data, next_cursor, has_more }| SearchPage {
        data,
        next_cursor,
        has_more,
        facets,
        did_you_mean,
    }))
}

/// Where a page begins.
#[derive(Serialize, serde::Deserialize)]
struct Behind {
    place: (i64, Uuid),
    /// The words that everything was found by instead of the query's.
    meant: Option<String>,
}

/// What is looked for.
struct Asked {
    /// None of them where there is no query.
    terms: Option<Arc<Terms>>,
    /// Whether there is a query without a word in it, which nothing has.
    is_void: bool,
    filter: SearchFilter,
    order: SearchOrder,
}

impl Asked {
    async fn read(
        app: &App,
        text: Option<&str>,
        filter: SearchFilter,
        order: SearchOrder,
    ) -> Result<Self, ApiError> {
        let terms = match text {
            Some(text) => app.reads().search_terms(text).await?,
            None => None,
        };
        let is_void = text.is_some() && terms.is_none();
        Ok(Self { terms: terms.map(Arc::new), is_void, filter, order })
    }

    async fn find(
        &self,
        app: &App,
        behind: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<Hit>, ApiError> {
        if self.is_void {
            return Ok(Vec::new());
        }
        let (terms, filter) = (self.terms.as_deref(), &self.filter);
        Ok(app.reads().search(terms, filter, self.order, behind, limit + 1).await?)
    }

    fn found(&self, hits: Vec<Hit>) -> Vec<Found> {
        hits.into_iter().map(|hit| Found { hit, terms: self.terms.clone() }).collect()
    }

    async fn facets(&self, app: &App) -> Result<SearchFacets, ApiError> {
        if self.is_void {
            return Ok(SearchFacets { categories: Vec::new(), price_ranges: Vec::new() });
        }
        let facets = app.reads().search_facets(self.terms.as_deref(), &self.filter).await?;
        let known = app.reads().categories().await?;
        let category = |(category_id, count)| CategoryFacet {
            category_id,
            name: known.iter().find(|of| of.category_id == category_id).map(|of| of.name.clone()),
            count,
        };
        let price = |(currency, digits, count): (String, u32, u64)| PriceFacet {
            min_price: 10_i64.saturating_pow(digits.saturating_sub(1)),
            max_price: 10_i64.saturating_pow(digits) - 1,
            currency,
            count,
        };
        Ok(SearchFacets {
            categories: facets.categories.into_iter().map(category).collect(),
            price_ranges: facets.prices.into_iter().map(price).collect(),
        })
    }
}
