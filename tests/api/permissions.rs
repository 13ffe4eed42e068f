//! Who may do what, asked from outside: every operation of the served document, as everybody.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::json;

use crate::support::{Answer, Client, Operation, Person, Server, Start, somebody, wish};

/// Who an operation is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    /// Anybody, without a token too.
    All,
    /// Whoever has logged in.
    SignedIn,
    /// The user it is about, and administrators; others hear 403.
    Themselves,
    /// The seller of the listing, and administrators; others hear 403.
    ItsSeller,
    /// Anybody who sells.
    Sellers,
    /// The one user that it is of; for others it is not there, for administrators neither.
    ItsUser,
    /// Buyer and seller of the order, and administrators; for others it is not there.
    Parties,
    /// The seller whose payout it is, and administrators; for others it is not there.
    ItsPayee,
    /// The buyer of the order, and administrators; the seller hears 403, others 404.
    ItsBuyer,
    /// The buyer of the order alone; everybody else hears 403.
    ItsReviewer,
    /// The seller whom the review is about alone; everybody else hears 403.
    ItsReviewee,
    /// Whom the notification is for, and administrators; for others it is not there.
    ItsRecipient,
    /// The seller of the order, and administrators; the buyer hears 403, others 404.
    WhoeverSends,
    /// Administrators, and services within the topics of their tokens.
    Readers,
    /// Administrators.
    Staff,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Nobody,
    Forger,
    Expired,
    Buyer,
    Seller,
    OtherBuyer,
    OtherSeller,
    /// A service whose token may read `order.*`.
    Service,
    Admin,
}

/// Who each operation is for. One that is missing here fails the test: whoever adds an operation
/// decides who it is for.
fn meant_for(operation: &Operation) -> For {
    let Some(path) = operation.path.strip_prefix("/api/v1") else { return For::All };
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| path.starts_with(prefix));
    match (operation.method.as_str(), path) {
        ("GET", "/events" | "/events/{id}" | "/events/await" | "/events/stream") => For::Readers,
        _ if starts(&["/admin/", "/dlq", "/events", "/traces", "/webhooks"]) => For::Staff,
        ("POST", "/notifications/webhook/bounce") => For::Staff,
        _ if starts(&["/dev/"]) => For::All,
        ("GET", _) if starts(&["/analytics/"]) => For::Staff,
        ("POST", "/analytics/events") | ("GET", "/users/me/analytics") => For::SignedIn,
        ("POST", "/auth/login" | "/auth/refresh") => For::All,
        ("POST", "/auth/password/forgot" | "/auth/password/reset") => For::All,
        ("POST", "/users/register" | "/users/verify-email") => For::All,
        ("POST", "/users/verify-email/resend") => For::All,
        _ if starts(&["/users/me/sessions/{id}", "/users/me/api-keys/{id}"]) => For::ItsUser,
        _ if starts(&["/users/me"]) => For::SignedIn,
        // Whoever signs with the provider's key.
        ("POST", "/payments/webhook/momo") => For::All,
        ("GET", "/users/{id}" | "/users/{id}/seller-profile") => For::All,
        ("GET", "/listings" | "/listings/{id}" | "/search") => For::All,
        ("GET", "/categories" | "/categories/{id}") => For::All,
        ("GET", "/reviews" | "/reviews/{id}" | "/users/{id}/reviews/summary") => For::All,
        ("GET", "/users/{id}/followers/count") => For::All,
        ("POST" | "DELETE", "/users/{id}/follow") => For::SignedIn,
        ("POST", "/reviews") => For::ItsReviewer,
        ("POST" | "PUT", "/reviews/{id}/reply") => For::ItsReviewee,
        ("POST", "/auth/logout" | "/auth/logout-all") => For::SignedIn,
        ("POST", "/users/upgrade-to-seller") => For::SignedIn,
        ("POST", "/orders" | "/transactions" | "/checkouts") => For::SignedIn,
        ("GET", "/checkouts/{id}") => For::Parties,
        ("POST", "/me/payouts") => For::SignedIn,
        ("GET", "/me/payouts/{id}") => For::ItsPayee,
        ("GET", "/notifications" | "/shipments") => For::SignedIn,
        _ if starts(&["/notifications/{id}"]) => For::ItsRecipient,
        ("POST", "/promotions") => For::Sellers,
        _ if starts(&["/promotions/{id}"]) => For::ItsPayee,
        ("GET", _) if starts(&["/me/"]) => For::SignedIn,
        ("PATCH" | "DELETE", "/users/{id}") => For::Themselves,
        ("GET", "/users/{id}/export" | "/users/{id}/loyalty") => For::Themselves,
        ("POST", "/listings") => For::Sellers,
        ("PATCH", "/listings/{id}") => For::ItsSeller,
        (_, _) if starts(&["/listings/{id}/"]) => For::ItsSeller,
        ("GET", _) if starts(&["/images/"]) => For::All,
        ("GET", "/users/{id}/listing-preferences") => For::Themselves,
        ("POST", "/orders/{id}/cancel" | "/orders/{id}/returns" | "/orders/{id}/dispute") => {
            For::ItsBuyer
        }
        ("POST", _) if starts(&["/orders/{id}/returns/{return_id}/"]) => For::WhoeverSends,
        ("POST", "/shipments/{id}/dispatch") => For::WhoeverSends,
        _ if starts(&["/orders/{id}", "/transactions/{id}", "/shipments/{id}"]) => For::Parties,
        ("POST", "/categories") => For::Staff,
        _ => panic!("who is {} for? Say so here.", operation.name()),
    }
}

/// Whether somebody gets past the door, or the status and code that keep them out.
fn expected(to: For, who: Who) -> Result<(), (u16, &'static str)> {
    use Who::{Admin, Buyer, Expired, Forger, Nobody, OtherBuyer, OtherSeller, Seller, Service};
    let forbidden = Err((403, "forbidden"));
    match (to, who) {
        (For::All, _) => Ok(()),
        (_, Nobody) => Err((401, "unauthenticated")),
        (_, Forger | Expired) => Err((401, "invalid_token")),
        (For::Readers, Service | Admin) => Ok(()),
        (_, Service) => Err((403, "insufficient_scope")),
        (For::SignedIn, _) | (For::Sellers, Seller | OtherSeller) => Ok(()),
        (For::Themselves, Buyer | Admin) | (For::ItsSeller, Seller | Admin) => Ok(()),
        (For::Parties, Buyer | Seller | Admin) | (For::Staff, Admin) => Ok(()),
        (For::ItsRecipient, Buyer | Admin) | (For::ItsPayee, Seller | Admin) => Ok(()),
        (For::ItsUser, Buyer) => Ok(()),
        (For::ItsRecipient | For::ItsPayee | For::ItsUser, _) => Err((404, "not_found")),
        (For::ItsReviewer, Buyer) | (For::ItsReviewee, Seller) => Ok(()),
        (For::ItsReviewer | For::ItsReviewee, _) => forbidden,
        (For::ItsBuyer, Buyer | Admin) | (For::WhoeverSends, Seller | Admin) => Ok(()),
        (For::ItsBuyer, Seller) | (For::WhoeverSends, Buyer) => forbidden,
        (For::Parties | For::ItsBuyer | For::WhoeverSends, OtherBuyer | OtherSeller) => {
            Err((404, "not_found"))
        }
        (For::Staff | For::Readers, _) => Err((403, "insufficient_scope")),
        (For::Sellers | For::Themselves | For::ItsSeller, _) => forbidden,
    }
}

/// How anybody hears that they may not.
fn is_kept_out(answer: &Answer) -> bool {
    let code = answer["code"].as_str().unwrap_or_default();
    matches!(code, "unauthenticated" | "insufficient_scope" | "invalid_token" | "not_found")
        || (answer.status() == 403 && code == "forbidden")
}

async fn ask(client: &Client, operation: &Operation) -> Answer {
    let mut target = operation.target.clone();
    if operation.path == "/api/v1/shipments" {
        target.push_str("?order_id=00000000-0000-7000-8000-000000000000");
    }
    if operation.path.ends_with("/events/await") {
        target.push_str("?aggregateId=00000000-0000-7000-8000-000000000000&timeout=0");
    }
    if operation.path.ends_with("/analytics/metrics") {
        target.push_str("?name=gmv");
    }
    if operation.path.ends_with("/stream") {
        target.push_str("?seconds=0");
    }
    let client =
        if operation.method == Method::PATCH { client.if_match("*") } else { client.clone() };
    let body = operation.body.as_ref().map(|body| body.to_string().into_bytes());
    client.send(operation.method.clone(), &target, body).await
}

/// Asserts that an answer lets somebody past the door, or keeps them out, as it must.
fn holds(operation: &Operation, to: For, who: Who, answer: &Answer, name: &str) {
    let about = |what: &str| operation.path.contains(what);
    match expected(to, who) {
        Err((status, code)) => {
            assert_eq!((answer.status(), &answer["code"]), (status, &json!(code)), "{name}");
        }
        // A token that is none is refused even where none is needed, but where nobody looks at it.
        Ok(()) if matches!(who, Who::Forger | Who::Expired) => {
            let may_be_unseen = ["/images/", "/dev/", "/payments/webhook/"].into_iter().any(about);
            let is_refused = answer["code"] == "invalid_token";
            let must_be = operation.path.starts_with("/api/v1/") && !may_be_unseen;
            assert!(is_refused || !must_be, "{name}: {}", answer.raw());
        }
        // These are about tokens or faults that there are not.
        Ok(()) if to == For::All || about("/dlq/") => {}
        Ok(()) if about("/quarantine/") || about("/service-tokens/") => {}
        // These are about a report or an image that there is not.
        Ok(()) if about("/reports/") || about("/images/") => {}
        // One of these takes away what the others are about.
        Ok(()) if about("/event-sources/") => {}
        // One of these deletes the endpoint that the others are about.
        Ok(()) if about("/webhooks/{id}") => {}
        // The development administrator is no user, and so has no profile.
        Ok(()) if to == For::SignedIn && answer["code"] == "not_found" => {
            assert_eq!(who, Who::Admin, "{name}");
        }
        Ok(()) => assert!(!is_kept_out(answer), "{name}"),
    }
}

#[tokio::test]
async fn everybody_may_do_what_they_may_and_nothing_else() {
    let server = Server::start().await;
    let mut things = server.things().await;
    let (mut other, mut rival) = (server.buyer("Otto").await, server.seller("Rita").await);
    let expired = things.buyer.client.clone();
    server.advance_clock(20 * 60).await;
    for person in [&mut things.buyer, &mut things.seller, &mut other, &mut rival] {
        person.log_in_again().await;
    }
    let mut parts: Vec<_> = things.buyer.access_token.split('.').map(str::to_owned).collect();
    parts[1] = server.admin_token().split('.').nth(1).unwrap().to_owned();
    let wish = json!({ "name": "the ledger", "scopes": ["events:read:order.*"] });
    let path = "/api/v1/admin/service-tokens";
    let service = server.admin().post(path, &wish).await.expect(201).text("token");
    let clients = [
        (Who::Nobody, server.visitor()),
        // An administrator's claims under the signature of somebody else's.
        (Who::Forger, server.visitor().with_token(&parts.join("."))),
        (Who::Expired, expired),
        (Who::OtherBuyer, other.client),
        (Who::OtherSeller, rival.client),
        (Who::Buyer, things.buyer.client.clone()),
        (Who::Seller, things.seller.client.clone()),
        (Who::Service, server.visitor().with_token(&service)),
        (Who::Admin, server.admin()),
    ];
    let operations = server.operations(&things).await;
    // What has an effect that others would notice comes last, and with the most powerful last.
    for operation in operations.iter().filter(|of| !of.path.ends_with("/clock/advance")) {
        let to = meant_for(operation);
        assert_eq!(operation.needs_token, to != For::All, "{} says otherwise", operation.name());
        for (who, client) in &clients {
            let answer = ask(client, operation).await;
            let name = format!("{} as {who:?} (for {to:?}): {}", operation.name(), answer.raw());
            assert!(answer.status() < 500, "{name}");
            holds(operation, to, *who, &answer, &name);
        }
    }
    no_secrets_in_the_log(&server, &[&things.buyer.access_token, &things.buyer.password]);
}

/// The scope that a key needs to do this as its owner; none: no key may. Whoever adds an operation
/// says it here.
fn scope_of(operation: &Operation) -> Option<String> {
    let path = operation.path.strip_prefix("/api/v1")?;
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| path.starts_with(prefix));
    let area = match (operation.method.as_str(), path) {
        _ if starts(&["/auth/", "/dev/", "/payments/webhook/", "/admin/service-tokens"]) => None,
        _ if starts(&["/users/me/sessions", "/users/me/api-keys", "/users/me/password"]) => None,
        (_, "/users/register" | "/users/verify-email" | "/users/verify-email/resend") => None,
        (_, "/users/{id}/export") | ("DELETE", "/users/me" | "/users/{id}") => None,
        ("GET", _) if starts(&["/webhooks"]) => Some("admin"),
        _ if starts(&["/webhooks"]) => None,
        (_, "/notifications/webhook/bounce") => Some("admin"),
        _ if starts(&["/admin/", "/dlq", "/events", "/traces", "/categories"]) => Some("admin"),
        ("POST", "/analytics/events") => Some("profile"),
        _ if starts(&["/analytics/"]) => Some("admin"),
        _ if starts(&["/users/me/favourites", "/users/me/following"]) => Some("interests"),
        (_, "/users/{id}/follow" | "/users/{id}/followers/count") => Some("interests"),
        (_, "/users/me/notification-preferences") => Some("notifications"),
        (_, "/users/{id}/reviews/summary") => Some("reviews"),
        _ if starts(&["/users/"]) => Some("profile"),
        _ if starts(&["/me/orders", "/me/sales", "/orders", "/transactions"]) => Some("orders"),
        _ if starts(&["/checkouts", "/shipments"]) => Some("orders"),
        _ if starts(&["/me/promotions", "/promotions"]) => Some("promotions"),
        _ if starts(&["/me/payouts", "/me/balance"]) => Some("payouts"),
        _ if starts(&["/me/listings", "/listings", "/images/", "/search"]) => Some("listings"),
        _ if starts(&["/notifications"]) => Some("notifications"),
        _ if starts(&["/reviews"]) => Some("reviews"),
        _ => panic!("which scope does a key need for {}? Say so here.", operation.name()),
    };
    let verb = if operation.method == Method::GET { "read" } else { "write" };
    area.map(|area| format!("{area}:{verb}"))
}

/// The scopes of everybody's keys.
fn scopes() -> Vec<String> {
    let areas = [
        "profile",
        "listings",
        "orders",
        "promotions",
        "payouts",
        "reviews",
        "interests",
        "notifications",
    ];
    areas.iter().flat_map(|area| [format!("{area}:read"), format!("{area}:write")]).collect()
}

/// The keys of somebody: by scope, the one that has it alone (with `more`), and the one that has all
/// others; and one that has everything.
struct Keys {
    only: BTreeMap<String, Client>,
    without: BTreeMap<String, Client>,
    all: Client,
}

impl Keys {
    async fn of(person: &Person, scopes: &[String], more: &[&str]) -> Self {
        let (mut only, mut without) = (BTreeMap::new(), BTreeMap::new());
        for scope in scopes {
            let others = scopes.iter().filter(|other| *other != scope).map(String::as_str);
            let others = person.program(&others.collect::<Vec<_>>()).await;
            without.insert(scope.clone(), others);
            let alone = person.program(&[&[scope.as_str()][..], more].concat()).await;
            only.insert(scope.clone(), alone);
        }
        let all = person.program(&scopes.iter().map(String::as_str).collect::<Vec<_>>()).await;
        Self { only, without, all }
    }
}

/// A key without the scope hears 403 wherever its owner would not; one that has nothing else may there
/// what its owner may.
#[tokio::test]
async fn a_key_may_what_its_scopes_say_and_its_owner_may_and_nothing_else() {
    let mut server = Server::start().await;
    let boss = server.administrator("ada").await;
    let things = server.things().await;
    let operations = server.operations(&things).await;
    let common = scopes();
    let admin = [&common[..], &["admin:read".to_owned(), "admin:write".to_owned()]].concat();
    let both = ["admin:read", "admin:write"];
    let people = [
        (Who::Buyer, Keys::of(&things.buyer, &common, &[]).await),
        (Who::Seller, Keys::of(&things.seller, &common, &[]).await),
        // Without the scope for it an administrator's key is no administrator's.
        (Who::OtherBuyer, Keys::of(&boss, &common, &[]).await),
        (Who::Admin, Keys::of(&boss, &admin, &both).await),
    ];
    for operation in operations.iter().filter(|of| !of.path.ends_with("/clock/advance")) {
        let (to, scope) = (meant_for(operation), scope_of(operation));
        assert_eq!(operation.key_scope, scope, "{} says otherwise", operation.name());
        for (who, keys) in &people {
            let lacks = scope.as_ref().and_then(|scope| keys.without.get(scope));
            let answer = ask(lacks.unwrap_or(&keys.all), operation).await;
            let name = format!("{} by a key of {who:?}: {}", operation.name(), answer.raw());
            assert!(answer.status() < 500, "{name}");
            // What anybody may is asked as anybody; one who could be no administrator lacks more.
            if to != For::All {
                let refused = (403, &json!("insufficient_scope"));
                assert_eq!(
                    (answer.status(), &answer["code"]),
                    refused,
                    "without {scope:?}: {name}"
                );
            }
            let Some(has) = scope.as_ref().and_then(|scope| keys.only.get(scope)) else { continue };
            let answer = ask(has, operation).await;
            let name = format!("{} by a key of {who:?}: {}", operation.name(), answer.raw());
            assert!(answer.status() < 500, "{name}");
            holds(operation, to, *who, &answer, &format!("with {scope:?}: {name}"));
        }
    }
    server.at_rest().await;
}

fn no_secrets_in_the_log(server: &Server, secrets: &[&str]) {
    for line in server.log() {
        for secret in secrets {
            assert!(!line.contains(secret), "a secret in the log: {line}");
        }
        assert!(!line.contains(server.admin_token()), "a secret in the log: {line}");
    }
}

/// What belongs to somebody else is not there, or not for the asker, by whatever name.
#[tokio::test]
async fn what_is_somebody_elses_stays_theirs() {
    let server = Server::start().await;
    let things = server.things().await;
    let stranger = server.buyer("Otto").await;
    let client = &stranger.client;
    let (order, buyer) = (&things.order_id, &things.buyer);
    let number = server.order_now(order).await.text("order_number");
    for name in [order.as_str(), &format!("order-{order}"), &number, &number.to_lowercase()] {
        client.get(&format!("/api/v1/orders/{name}")).await.problem(404, "not_found");
        client.get(&format!("/orders/{name}/payment")).await.problem(404, "not_found");
        let cancel = format!("/api/v1/orders/{name}/cancel");
        client.post(&cancel, &json!({})).await.problem(404, "not_found");
    }
    let shipments = client.get(&format!("/api/v1/shipments?order_id={order}")).await.expect(200);
    assert!(shipments.items().is_empty());
    let notifications = format!("/api/v1/notifications?user_id={}", buyer.user_id);
    client.get(&notifications).await.problem(403, "forbidden");
    client.get("/api/v1/notifications?audience=admin").await.problem(403, "forbidden");
    // A user's page shows strangers nothing personal.
    let seen = client.get(&format!("/api/v1/users/{}", buyer.user_id)).await.expect(200);
    for text in [&buyer.email, "Bea", "Tester"] {
        assert!(!seen.raw().contains(text), "{seen:?}");
    }
    // The same idempotency key of somebody else is another one, whatever the body.
    let body = wish(&things.listing_id, 1, "sandbox");
    let mine = client.keyed("one").post("/api/v1/orders", &body).await.expect(201);
    let theirs = buyer.client.keyed("one").post("/api/v1/orders", &body).await.expect(201);
    assert_ne!(mine.text("order_id"), theirs.text("order_id"));
    // A cursor of somebody else's list leads to one's own.
    buyer.client.post("/api/v1/orders", &body).await.expect(201);
    server.caught_up("orders-view").await;
    let page = buyer.client.get("/api/v1/me/orders?limit=1").await.expect(200);
    let cursor = page.text("next_cursor");
    let page = client.get(&format!("/api/v1/me/orders?limit=1&cursor={cursor}")).await.expect(200);
    for row in page.items() {
        assert_eq!(row["buyer_id"], json!(stranger.user_id));
    }
    // Somebody else's refresh token under one's own access token is still theirs.
    let token = json!({ "refresh_token": buyer.refresh_token });
    let tokens = client.post("/api/v1/auth/refresh", &token).await.expect(200);
    assert_eq!(tokens.text("user_id"), buyer.user_id);
    no_secrets_in_the_log(
        &server,
        &[&buyer.refresh_token, &buyer.access_token, &buyer.password, &buyer.email],
    );
    server.at_rest().await;
    server.finish().await;
}

/// The routes of development ask for no token, so a page of another site must not reach them through
/// its reader's browser, by a name that was made to lead here (DNS rebinding) either.
#[tokio::test]
async fn foreign_pages_do_not_reach_the_routes_of_development() {
    let server = Server::start().await;
    let visitor = server.visitor();
    let outbox = "/api/v1/dev/outbox";
    for host in ["evil.example.com", "127.0.0.1.evil.example.com", "localhost.evil.example.com:80"]
    {
        visitor.with("host", host).get(outbox).await.problem(403, "foreign_host");
    }
    for origin in ["https://evil.example.com", "null", "http://localhost.evil.example.com"] {
        visitor.with("origin", origin).get(outbox).await.problem(403, "foreign_origin");
    }
    let crossing = visitor.with("sec-fetch-site", "cross-site");
    crossing.post("/api/v1/dev/faults", &json!({})).await.problem(403, "foreign_origin");
    for host in ["localhost:8080", "127.0.0.1", "[::1]:8080", "souk.localhost"] {
        visitor.with("host", host).get(outbox).await.expect(200);
    }
    visitor.with("origin", "http://localhost:3000").get(outbox).await.expect(200);
    // Everything else is meant to be reached by any name.
    visitor.with("host", "souk.example.com").get("/api/v1/categories").await.expect(200);
    server.finish().await;
}

#[tokio::test]
async fn the_page_of_the_document_may_do_nothing_but_show_it() {
    let server = Server::start().await;
    let page = server.visitor().get("/docs/").await.expect(200);
    let policy = page.header("content-security-policy");
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
    assert!(policy.contains("script-src 'self';"), "no inline scripts: {policy}");
    assert!(!page.raw().contains("<script>"), "the page itself keeps to its policy");
    assert_eq!(page.header("x-frame-options"), "DENY");
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    assert_eq!(page.header("referrer-policy"), "no-referrer");
    let data = server.visitor().get("/version").await.expect(200);
    let policy = data.header("content-security-policy");
    assert_eq!(policy, "default-src 'none'; frame-ancestors 'none'");
    server.finish().await;
}

/// With `REVEAL_VERIFICATION_TOKEN` an answer holds the token; the log holds none even so.
#[tokio::test]
async fn no_secret_of_a_registration_is_logged() {
    let server = Start::default()
        .with("LOG_LEVEL", "trace")
        .with("REVEAL_VERIFICATION_TOKEN", "true")
        .start()
        .await;
    let body = somebody("Ann");
    let made = server.visitor().post("/api/v1/users/register", &body).await.expect(201);
    let (token, password) = (made.text("verification_token"), body["password"].as_str().unwrap());
    let proof = json!({ "verification_token": token });
    server.visitor().post("/api/v1/users/verify-email", &proof).await.expect(200);
    let tokens = server.login("ann@example.com", password).await.expect(200);
    server.at_rest().await;
    no_secrets_in_the_log(
        &server,
        &[&token, password, &tokens.text("access_token"), &tokens.text("refresh_token")],
    );
    server.finish().await;
}
