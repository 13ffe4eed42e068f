use souk_actors::world::Timestamp;

use super::*;
use crate::domain::category::{CategoryCreated, CategoryEvent};
use crate::domain::ids::{CategoryId, ListingId, UserId};
use crate::domain::listing::{ListingArchived, ListingCreated, ListingUpdated};
use crate::domain::money::Currency;
use crate::projections::categories::CategoriesView;
use crate::projections::testing::{self, TestDb, numbered, stored};
use crate::projections::view::{Projected, ViewTable};

const AT: Timestamp = Timestamp::from_millis(0);

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn offered(number: u128, title: &str, description: &str, price: i64) -> StoredEvent {
    let slug = if number.is_multiple_of(2) { "sports" } else { "home" };
    let event = ListingEvent::Created(ListingCreated {
        listing_id: ListingId(id(number)),
        seller_id: UserId(id(100 + number)),
        title: title.to_owned(),
        description: description.to_owned(),
        category_id: CategoryId::of_slug(slug),
        price,
        currency: Currency::Vnd,
        sku: format!("SKU-{number}"),
        quantity: 3,
        images: Vec::new(),
        draft: false,
        created_at: Timestamp::from_millis(i64::try_from(number).unwrap()),
    });
    StoredEvent { aggregate_version: 1, ..stored(&event, "listing", id(number)) }
}

fn renamed(number: u128, version: u64, title: &str) -> StoredEvent {
    let event = ListingEvent::Updated(ListingUpdated {
        listing_id: ListingId(id(number)),
        seller_id: UserId(id(100 + number)),
        title: title.to_owned(),
        description: "Changed.".to_owned(),
        price: 5,
        currency: Currency::Vnd,
        updated_at: AT,
    });
    StoredEvent { aggregate_version: version, ..stored(&event, "listing", id(number)) }
}

fn archived(number: u128) -> StoredEvent {
    let event = ListingEvent::Archived(ListingArchived {
        listing_id: ListingId(id(number)),
        seller_id: UserId(id(100 + number)),
        archived_at: AT,
    });
    StoredEvent { aggregate_version: 2, ..stored(&event, "listing", id(number)) }
}

/// A market with two categories and these events.
async fn market(events: Vec<StoredEvent>) -> TestDb {
    let test = testing::open().await;
    let categories = [("sports", "Sports & Outdoors"), ("home", "Nhà cửa")].map(|(slug, name)| {
        let category_id = CategoryId::of_slug(slug);
        let event = CategoryEvent::Created(CategoryCreated {
            category_id,
            name: name.to_owned(),
            slug: slug.to_owned(),
            created_at: AT,
        });
        stored(&event, "category", category_id.uuid())
    });
    let view = Projected::<ViewTable<CategoriesView>>::new(test.db.clone());
    view.advance(0, &numbered(categories), 2).await.unwrap();
    add(&test, events).await;
    test
}

async fn add(test: &TestDb, events: Vec<StoredEvent>) {
    let events = numbered(events);
    let to = events.last().unwrap().position;
    let listings = Projected::<ViewTable<ListingsView>>::new(test.db.clone());
    listings.advance(0, &events, to).await.unwrap();
    let search = Projected::<ViewTable<SearchView>>::new(test.db.clone());
    search.advance(0, &events, to).await.unwrap();
}

async fn found(test: &TestDb, text: &str) -> Vec<u128> {
    let Some(terms) = Terms::read(&test.db, text).await.unwrap() else { return Vec::new() };
    let (filter, order) = (SearchFilter::default(), SearchOrder::Relevance);
    let hits = find(&test.db, Some(&terms), &filter, order, None, 50).await.unwrap();
    hits.into_iter().map(|hit| hit.listing.listing_id.as_u128()).collect()
}

fn bicycles() -> Vec<StoredEvent> {
    vec![
        offered(1, "Xe đạp địa hình", "Màu xanh, còn mới.", 900),
        offered(2, "A blue bicycle", "Ridden only on Sundays.", 1_500),
        offered(3, "A lamp", "Looks well on a blue bicycle, and on a desk.", 40),
        offered(4, "Tent", "For two, 1e5abc and 12ab34 are printed on it.", 20_000),
    ]
}

#[tokio::test]
async fn words_are_found_wherever_they_stand() {
    let test = market(bicycles()).await;
    for (text, expected) in [
        ("xe dap", &[1][..]),
        ("XE ĐẠP", &[1]),
        ("xanh", &[1]),
        // In the title counts for more than in the description.
        ("bicycle", &[2, 3]),
        ("BLUE bicycle desk", &[3]),
        // The last word may go on.
        ("blue bicy", &[2, 3]),
        ("bicy blue", &[]),
        ("sku-2", &[2]),
        // By the name of the category, alone and with words of the text.
        ("sports", &[4, 2]),
        ("outdoors tent", &[4]),
        ("nha cua", &[3, 1]),
        ("sports lamp", &[]),
        ("1e5abc", &[4]),
        ("12ab34", &[4]),
        ("nothing of the kind", &[]),
        ("?!", &[]),
        ("", &[]),
    ] {
        let mut found = found(&test, text).await;
        if text != "bicycle" {
            found.sort_unstable();
            found.reverse();
        }
        let mut expected = expected.to_vec();
        if text != "bicycle" {
            expected.sort_unstable();
            expected.reverse();
        }
        assert_eq!(found, expected, "{text}");
    }
}

#[tokio::test]
async fn nothing_that_is_typed_breaks_the_query() {
    let test = market(bicycles()).await;
    let long = "long ".repeat(2_000);
    for text in [
        "\"",
        "'",
        "''; DROP TABLE search_v1; --",
        "a AND OR NOT (b",
        "title:bicycle",
        "*",
        "-",
        "NEAR(",
        "a\0b",
        "\\",
        ":*",
        "&|!<->",
        "{}[]()",
        "%_%",
        "𝔟𝔩𝔲𝔢",
        "👩‍👧",
        "\u{301}\u{301}",
        &long,
        "AND",
        "or not",
        "zq",
    ] {
        let found = found(&test, text).await;
        assert!(found.len() <= 4, "{text}");
    }
    assert_eq!(found(&test, "𝔟𝔩𝔲𝔢 \"bicycle\" AND").await, [3], "operators are words");
    assert_eq!(found(&test, "\"blue\" 'bicycle'").await, [2, 3]);
}

#[tokio::test]
async fn changes_are_followed_and_what_is_gone_is_not_found() {
    let test = market(bicycles()).await;
    let mut events = bicycles();
    events.extend([renamed(2, 2, "A green unicycle"), archived(3)]);
    add(&test, events).await;
    assert_eq!(found(&test, "unicycle").await, [2]);
    assert_eq!(found(&test, "bicycle").await, [0_u128; 0]);
    assert_eq!(found(&test, "sports green").await, [2]);
    let expected = Indexed { version: 2, is_draft: false };
    let found = indexed(&test.db, &[id(1), id(9), id(2)]).await.unwrap();
    assert_eq!(found.get(&id(2)), Some(&expected));
    assert!(!found.contains_key(&id(9)));
    assert!(indexed(&test.db, &[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn orders_filters_and_pages() {
    let test = market(bicycles()).await;
    let ids = async |terms: Option<&str>, filter: SearchFilter, order| {
        let terms = match terms {
            Some(text) => Terms::read(&test.db, text).await.unwrap(),
            None => None,
        };
        let (mut all, mut behind) = (Vec::new(), None);
        loop {
            let page = find(&test.db, terms.as_ref(), &filter, order, behind, 1).await.unwrap();
            let Some(hit) = page.first() else { return all };
            behind = Some((hit.key, hit.listing.listing_id));
            all.push(hit.listing.listing_id.as_u128());
        }
    };
    let all = SearchFilter::default;
    assert_eq!(ids(None, all(), SearchOrder::Relevance).await, [4, 3, 2, 1]);
    assert_eq!(ids(None, all(), SearchOrder::Newest).await, [4, 3, 2, 1]);
    assert_eq!(ids(None, all(), SearchOrder::PriceAscending).await, [3, 1, 2, 4]);
    assert_eq!(ids(None, all(), SearchOrder::PriceDescending).await, [4, 2, 1, 3]);
    assert_eq!(ids(Some("blue"), all(), SearchOrder::Relevance).await, [2, 3]);
    assert_eq!(ids(Some("blue"), all(), SearchOrder::PriceAscending).await, [3, 2]);
    let cheap = SearchFilter {
        currency: Some("VND".to_owned()),
        price_min: Some(41),
        price_max: Some(1_500),
        ..all()
    };
    assert_eq!(ids(None, cheap, SearchOrder::PriceAscending).await, [1, 2]);
    let seller = SearchFilter { seller_id: Some(id(103)), ..all() };
    assert_eq!(ids(None, seller, SearchOrder::Newest).await, [3]);
    let sports = SearchFilter { category_id: Some(CategoryId::of_slug("sports").uuid()), ..all() };
    assert_eq!(ids(Some("blue"), sports.clone(), SearchOrder::Newest).await, [2]);
    let gone = SearchFilter { in_stock: Some(false), ..all() };
    assert!(ids(None, gone, SearchOrder::Newest).await.is_empty());

    let facets = facets(&test.db, None, &sports).await.unwrap();
    let mut counts: Vec<_> = facets.categories.iter().map(|(_, count)| *count).collect();
    counts.sort_unstable();
    assert_eq!(counts, [2, 2], "the other category is counted too");
    let prices: Vec<_> = facets.prices.iter().map(|(_, digits, count)| (*digits, *count)).collect();
    assert_eq!(prices, [(4, 1), (5, 1)]);
}

#[tokio::test]
async fn a_slip_is_corrected_where_nothing_is_found() {
    let test = market(bicycles()).await;
    let corrected = async |text: &str| {
        let terms = Terms::read(&test.db, text).await.unwrap().unwrap();
        corrected(&test.db, &terms).await.unwrap().map(|terms| terms.text())
    };
    assert_eq!(corrected("blue bicylce").await.as_deref(), Some("blue bicycle"));
    assert_eq!(corrected("bluw tennt").await.as_deref(), Some("blue tent"));
    assert_eq!(corrected("sprots").await.as_deref(), Some("sports"), "also a category");
    assert_eq!(corrected("blue bicycle").await, None, "nothing is wrong");
    assert_eq!(corrected("blue zeppelin").await, None, "nothing is near");
    assert_eq!(corrected("xw").await, None, "too short");
}

#[test]
fn the_most_frequent_of_the_nearest_is_meant() {
    let wanted = |word: &str| Wanted { word: word.to_owned(), is_prefix: false, or: Vec::new() };
    let known =
        [("lamp", 1), ("ramp", 7), ("camp", 3)].map(|(word, texts)| (word.to_owned(), texts));
    assert_eq!(nearest_of(&wanted("xamp"), &known), Nearest::Other("ramp".to_owned()));
    assert_eq!(nearest_of(&wanted("lamp"), &known), Nearest::Known);
    assert_eq!(nearest_of(&wanted("amp"), &known), Nearest::Nothing);
}

#[test]
fn a_category_has_one_word_of_letters() {
    let word = category_word(CategoryId::of_slug("books").uuid());
    assert!(
        is_category_word(&word) && word.bytes().all(|byte| byte.is_ascii_lowercase()),
        "{word}"
    );
    assert_eq!(folded_words(&word), word);
    assert_ne!(word, category_word(CategoryId::of_slug("toys").uuid()));
}
