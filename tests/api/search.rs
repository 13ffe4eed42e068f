//! The search (S0-58, S0-61, S0-62, S1-115).

use serde_json::{Value, json};

use crate::support::{Answer, Person, Server, Start, eventually, on_postgres};

impl Server {
    /// Offers something; returns the answer.
    async fn offered(&self, seller: &Person, title: &str, description: &str, price: i64) -> Answer {
        let mut offer = self.offer(3).await;
        offer["title"] = json!(title);
        offer["description"] = json!(description);
        offer["price"]["amount"] = json!(price);
        seller.client.post("/api/v1/listings", &offer).await.expect(201)
    }

    async fn search(&self, query: &[(&str, &str)]) -> Answer {
        self.visitor().get(&path(query)).await.expect(200)
    }

    /// The titles that are found.
    async fn titles_found(&self, query: &[(&str, &str)]) -> Vec<String> {
        self.search(query).await.items().iter().map(title).collect()
    }
}

fn path(query: &[(&str, &str)]) -> String {
    let url = reqwest::Url::parse_with_params("http://souk.example/api/v1/search", query).unwrap();
    format!("{}?{}", url.path(), url.query().unwrap_or_default())
}

fn title(item: &Value) -> String {
    item["title"].as_str().unwrap().to_owned()
}

/// Five things to find. Returns where the last of them stands.
async fn market(server: &Server) -> (Person, String) {
    let sam = server.seller("Sam").await;
    let mut position = String::new();
    for (title, description, price) in [
        ("Xe đạp địa hình", "Màu xanh, còn mới.", 2_000_000),
        ("A blue bicycle", "Ridden only on Sundays.", 1_500_000),
        ("A lamp", "Stands well beside a blue bicycle <b>& co</b>.", 90_000),
        ("A tent", "For two.", 700_000),
        ("A tent for four", "Blue.", 700_000),
    ] {
        let made = server.offered(&sam, title, description, price).await;
        made.header("souk-position").clone_into(&mut position);
        // A position is one partition's: each listing may have another.
        server.search(&[("q", title), ("min_position", &position)]).await;
    }
    (sam, position)
}

#[tokio::test]
async fn what_is_offered_is_found_at_once() {
    let server = Server::start().await;
    let (sam, position) = market(&server).await;
    let found = async |q: &str| server.titles_found(&[("q", q), ("min_position", &position)]).await;
    assert_eq!(found("bicycle").await, ["A blue bicycle", "A lamp"]);
    assert_eq!(found("xe dap").await, ["Xe đạp địa hình"]);
    assert_eq!(found("XE ĐẠP ĐỊA").await, ["Xe đạp địa hình"]);
    assert_eq!(found("bicy").await.len(), 2);
    assert_eq!(found("blue tent four").await, ["A tent for four"]);
    assert_eq!(found("zeppelin").await, [""; 0]);
    // What is written is shown, and nothing of it is markup.
    let page = server.search(&[("q", "bicycle blue")]).await;
    let lamp = page.items().iter().find(|item| item["title"] == "A lamp").unwrap();
    let expected = "Stands well beside a <mark>blue</mark> <mark>bicycle</mark> \
        &lt;b&gt;&amp; co&lt;/b&gt;.";
    assert_eq!(lamp["highlights"]["description"], expected);
    assert_eq!(lamp["highlights"]["title"], "A lamp");
    let page = server.search(&[("q", "dap")]).await;
    assert_eq!(page.items()[0]["highlights"]["title"], "Xe <mark>đạp</mark> địa hình");
    // A change is followed, and what is withdrawn is gone.
    let lamp = lamp["listing_id"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/listings/{lamp}");
    let change = json!({ "title": "A lantern" });
    let changed = sam.client.if_match("*").patch(&path, &change).await.expect(200);
    let position = changed.header("souk-position");
    assert_eq!(
        server.titles_found(&[("q", "lantern"), ("min_position", position)]).await,
        ["A lantern"]
    );
    assert!(server.titles_found(&[("q", "lamp")]).await.is_empty());
    let gone = sam.client.post(&format!("{path}/archive"), &json!({})).await.expect(200);
    let position = gone.header("souk-position");
    assert!(server.titles_found(&[("q", "lantern"), ("min_position", position)]).await.is_empty());
    server.finish().await;
}

#[tokio::test]
async fn what_is_found_is_filtered_ordered_and_counted() {
    let server = Server::start().await;
    let (sam, position) = market(&server).await;
    let all = [("min_position", &*position)];
    assert_eq!(server.titles_found(&all).await.len(), 5);
    let found = async |more: &[(&str, &str)]| server.titles_found(more).await;
    let cheapest = found(&[("sort", "price_asc")]).await;
    assert_eq!((&*cheapest[0], &*cheapest[4]), ("A lamp", "Xe đạp địa hình"));
    let dearest = found(&[("sort", "price_desc")]).await;
    assert_eq!(dearest, cheapest.into_iter().rev().collect::<Vec<_>>());
    assert_eq!(found(&[("sort", "newest")]).await[0], "A tent for four");
    let range = [("min_price", "90000"), ("maxPrice", "700000"), ("sort", "price_desc")];
    assert_eq!(found(&range).await.len(), 3);
    assert!(found(&[("min_price", "1"), ("currency", "USD")]).await.is_empty());
    assert_eq!(found(&[("seller_id", &sam.user_id), ("q", "tent")]).await.len(), 2);
    assert_eq!(found(&[("in_stock", "true")]).await.len(), 5);
    assert!(found(&[("in_stock", "false")]).await.is_empty());

    let category = server.category().await;
    let page = server.search(&[("q", "tent"), ("category_id", &category)]).await;
    let facets = &page["facets"];
    assert_eq!(facets["categories"][0]["category_id"], category);
    assert_eq!(facets["categories"][0]["count"], 2);
    assert!(facets["categories"][0]["name"].is_string());
    let price = json!({
        "min_price": 100_000, "max_price": 999_999, "currency": "VND", "count": 2,
    });
    assert_eq!(facets["price_ranges"], json!([price]));
    // A category's name finds what is in it.
    let name = facets["categories"][0]["name"].as_str().unwrap();
    assert_eq!(found(&[("q", name)]).await.len(), 5);
    assert_eq!(found(&[("q", &format!("{name} lamp"))]).await, ["A lamp"]);

    // In pages it comes to the same.
    for query in [&[("q", "blue")][..], &[("sort", "price_asc")], &[("q", "blue tennt")]] {
        let whole: Vec<_> = server.search(query).await.items().iter().map(title).collect();
        let (mut seen, mut path) = (Vec::new(), format!("{}&limit=1", path(query)));
        loop {
            let page = server.visitor().get(&path).await.expect(200);
            seen.extend(page.items().iter().map(title));
            let link = page.header("link").to_owned();
            let Some((target, _)) = link.strip_prefix('<').and_then(|of| of.split_once('>')) else {
                break;
            };
            target.clone_into(&mut path);
        }
        assert_eq!(seen, whole, "{query:?}");
        assert!(!seen.is_empty(), "{query:?}");
    }
    server.finish().await;
}

#[tokio::test]
async fn a_slip_is_forgiven_and_said() {
    let server = Server::start().await;
    let (_, position) = market(&server).await;
    let page = server.search(&[("q", "blue bicylce"), ("min_position", &position)]).await;
    assert_eq!(page["did_you_mean"], "blue bicycle");
    assert_eq!(page.items().len(), 2);
    assert_eq!(page.items()[0]["highlights"]["title"], "A <mark>blue</mark> <mark>bicycle</mark>");
    let page = server.search(&[("q", "blue bicycle")]).await;
    assert_eq!(page["did_you_mean"], Value::Null);
    let page = server.search(&[("q", "zeppelin")]).await;
    assert_eq!((page.items().len(), &page["did_you_mean"]), (0, &Value::Null));
    server.finish().await;
}

#[tokio::test]
async fn whatever_is_asked_is_answered() {
    let server = Server::start().await;
    market(&server).await;
    let long = "bicycle ".repeat(62);
    for q in [
        "\"",
        "'",
        "'; DROP TABLE search_v1; --",
        "a AND OR NOT (",
        "title_words:tent",
        "*",
        "^",
        "-",
        "NEAR(a b)",
        "\\",
        ":*",
        "& | ! <->",
        "{}[]()",
        "%_%",
        "\u{301}",
        "👩‍👧",
        "?!…",
        &long,
        "𝔟𝔩𝔲𝔢",
        "\u{202e}tent",
    ] {
        server.search(&[("q", q)]).await;
    }
    let visitor = server.visitor();
    for query in [
        [("q", &*"x".repeat(501))],
        [("sort", "best")],
        [("min_price", "-1")],
        [("max_price", "much")],
        [("currency", "XXX")],
        [("in_stock", "maybe")],
        [("category_id", "7")],
        [("limit", "0")],
        [("cursor", "x")],
    ] {
        let status = visitor.get(&path(&query)).await.status();
        assert_eq!(status, 400, "{query:?}");
    }
    visitor.get("/api/v1/search?q=a%00b").await.problem(400, "bad_request");
    visitor.get(&path(&[("q", &"x".repeat(10_000))])).await.problem(414, "uri_too_long");
    visitor.get("/api/v1/search?q=%ff%fe").await;
    server.finish().await;
}

/// S0-61. What is found is read from two read models: the later of them counts.
#[tokio::test]
async fn what_is_told_to_be_found_is_found() {
    let server = Start::default().start().await;
    let sam = server.seller("Sam").await;
    for late in ["listings-view", "search-view"] {
        let fault = server.fault(late, "delay", json!({ "delay_ms": 1_000 })).await;
        let title = format!("A loom of {late}");
        let made = server.offered(&sam, &title, "It weaves.", 5_000).await;
        server.event("ListingIndexed", made.header("x-correlation-id")).await;
        let found = server.visitor().get("/api/v1/search?q=loom&sort=newest").await.expect(200);
        assert_eq!(found.items()[0]["listing_id"], made.text("listing_id").as_str(), "{found:?}");
        server.mend(fault).await;
    }
    server.finish().await;
}

/// S0-61: told once of each version, whatever is delivered or rebuilt again. S0-62.
#[tokio::test]
async fn to_be_found_is_told_once() {
    let server = Start::default().with("RETRY_DELAY_MS", 20).start().await;
    let sam = server.seller("Sam").await;
    let made = server.offered(&sam, "A loom", "It weaves.", 5_000).await;
    let (listing, correlation) = (made.text("listing_id"), made.header("x-correlation-id"));
    let event = server.event("ListingIndexed", correlation).await;
    assert_eq!(event["data"]["listing_id"], listing.as_str());
    assert_eq!(event["data"]["listing_version"], 1);
    let created = server.event("listing.created", correlation).await;
    assert_eq!(
        event["metadata"]["causation_id"].as_str().or(event["causation_id"].as_str()),
        created["event_id"].as_str()
    );
    assert_eq!(
        server.event("search.index.updated", correlation).await["event_id"],
        event["event_id"]
    );
    // The seller's version is the seller's.
    assert_eq!(server.listing_now(&listing).await.header("etag"), "\"1\"");
    server.logged(&["listing created", &listing, correlation]).await;

    let path = format!("/api/v1/listings/{listing}");
    let change = json!({ "title": "A big loom" });
    let changed = sam.client.if_match("\"1\"").patch(&path, &change).await.expect(200);
    let event = server.event("listing.indexed", changed.header("x-correlation-id")).await;
    assert_eq!(event["data"]["listing_version"], 2);

    // An index that is rebuilt tells nobody anything, and finds the same.
    let body = json!({ "reason": "to see", "rows_per_second": 100_000 });
    let admin = server.admin();
    let projection = "/api/v1/admin/projections/search-view";
    admin.post(&format!("{projection}/rebuilds"), &body).await.expect(202);
    eventually("the new index to be level", || async {
        let now = admin.get(projection).await.expect(200);
        let versions = now["versions"].as_array().unwrap();
        versions.iter().any(|of| of["serves"] == false && of["state"] == "level").then_some(())
    })
    .await;
    let diff = admin.get(&format!("{projection}/diff")).await.expect(200);
    assert_eq!((&diff["differing"], &diff["serving_rows"]), (&json!(0), &json!(1)), "{diff:?}");
    admin.if_match("*").post(&format!("{projection}/cut-over"), &json!({})).await.expect(200);
    assert_eq!(server.titles_found(&[("q", "big loom")]).await, ["A big loom"]);
    // The new version is kept level, and the old one can go and come again.
    let change = json!({ "title": "A small loom" });
    sam.client.if_match("*").patch(&path, &change).await.expect(200);
    server.at_rest().await;
    assert_eq!(server.titles_found(&[("q", "small")]).await, ["A small loom"]);
    assert!(server.titles_found(&[("q", "big")]).await.is_empty());
    admin.if_match("*").post(&format!("{projection}/discard"), &json!({})).await.expect(200);
    assert_eq!(server.titles_found(&[("q", "small")]).await, ["A small loom"]);
    assert_eq!(server.events_counted("listing.indexed").await, 3);

    // The same where every event is delivered again, with the read models gone.
    let mut server = server;
    assert!(server.terminate().await.success());
    server.forget_read_models().await;
    if !on_postgres() {
        let journal = server.open_sqlite("journal.db").await;
        let begun = sqlx::query("DELETE FROM checkpoints WHERE subscription = 'search-indexer'");
        assert!(begun.execute(&journal).await.unwrap().rows_affected() > 0);
        journal.close().await;
    }
    server.start_again().await;
    server.at_rest().await;
    assert_eq!(server.titles_found(&[("q", "small")]).await, ["A small loom"]);
    assert_eq!(server.events_counted("listing.indexed").await, 3);
    server.finish().await;
}

/// A paused index costs no event: it is told of once the index has it.
#[tokio::test]
async fn what_is_not_in_the_index_is_not_told_of() {
    let server = Server::start().await;
    let sam = server.seller("Sam").await;
    server.at_rest().await;
    server.pause("search-view").await;
    let made = server.offered(&sam, "A loom", "It weaves.", 5_000).await;
    let correlation = made.header("x-correlation-id");
    let behind = server.visitor().with("prefer", "wait=0");
    let asked = path(&[("q", "loom"), ("min_position", made.header("souk-position"))]);
    behind.get(&asked).await.problem(503, "projection_behind");
    assert_eq!(server.events_counted("listing.indexed").await, 0);
    server.resume("search-view").await;
    server.event("listing.indexed", correlation).await;
    assert!(server.letters(Some("search-indexer")).await.is_empty());
    server.finish().await;
}
