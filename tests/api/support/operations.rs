//! Every operation of the served OpenAPI document, with a request that is valid for it.

use reqwest::Method;
use serde_json::{Map, Value, json};

use super::{PRICE, Person, Sale, Server, address, business, eventually, wish};

/// One operation of the document.
#[derive(Debug, Clone)]
pub struct Operation {
    pub method: Method,
    /// The path as the document has it, with names in braces.
    pub path: String,
    /// The names of its query parameters.
    pub query: Vec<String>,
    /// Whether the document says that it needs a token.
    pub needs_token: bool,
    /// The scope with which a key does it as its owner.
    pub key_scope: Option<String>,
    /// A body that is right for it, where it takes one.
    pub body: Option<Value>,
    /// The path filled in.
    pub target: String,
}

impl Operation {
    /// As people name it: `GET /livez`.
    pub fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// What requests can be about.
pub struct Things {
    pub seller: Person,
    pub buyer: Person,
    pub listing_id: String,
    pub order_id: String,
    pub shipment_id: String,
    pub category_id: String,
    pub event_id: String,
    pub correlation_id: String,
    pub webhook_id: String,
    pub notification_id: String,
    pub replay_id: String,
    /// Another login of the buyer.
    pub session_id: String,
    /// Somebody whom nobody misses.
    pub other_id: String,
    /// An order that was delivered and not reviewed.
    pub delivered_id: String,
    pub review_id: String,
    /// An order of which something is to come back.
    pub completed_id: String,
    pub return_id: String,
    pub payout_id: String,
    pub checkout_id: String,
    pub promotion_id: String,
    /// A key of the buyer's own.
    pub api_key_id: String,
}

impl Server {
    /// One of everything: a sale that was shipped.
    pub async fn things(&self) -> Things {
        let Sale { seller, buyer, listing_id, order } = self.sale(1_000_000, 1, "sandbox").await;
        self.order_eventually(&order.id, "SHIPPED").await;
        let (order_id, correlation_id) = (order.id, order.correlation_id);
        let path = format!("/api/v1/shipments?order_id={order_id}");
        let shipments = self.admin().get(&path).await.expect(200);
        let shipment_id = shipments.items()[0]["shipment_id"].as_str().unwrap().to_owned();
        let events = self.events("eventType=order.placed").await;
        let event_id = events[0]["event_id"].as_str().unwrap().to_owned();
        let category_id = self.category().await;
        let schema = json!({ "schema": { "type": "object" } }).to_string().into_bytes();
        let path = "/api/v1/admin/event-types/partner.thing.made";
        self.admin().send(Method::PUT, path, Some(schema)).await.expect(201);
        let webhook = new_webhook();
        let webhook = self.admin().post("/api/v1/webhooks", &webhook).await.expect(201);
        let webhook_id = webhook.text("id");
        let notification_id = eventually("a notification of the buyer", || async {
            let told = self.notifications(&buyer.user_id).await;
            let paid = told.iter().find(|of| of["template"] == "payment_received")?;
            Some(paid["notification_id"].as_str().unwrap().to_owned())
        })
        .await;
        let replay = self.admin().post("/api/v1/admin/replays", &new_replay()).await.expect(202);
        let replay_id = replay.text("replay_id");
        let session = self.login(&buyer.email, &buyer.password).await.expect(200);
        let session_id = session.text("session_id");
        let other_id = self.register("Otis").await.expect(201).text("user_id");
        let delivered_id = self.delivered(&buyer.client, &listing_id).await;
        let reviewed = self.delivered(&buyer.client, &listing_id).await;
        let review = json!({ "transaction_id": reviewed, "rating": 4, "comment": "Good." });
        let review = buyer.client.post("/api/v1/reviews", &review).await.expect(201);
        let review_id = review.text("review_id");
        self.at_rest().await;
        let (completed_id, return_id, payout_id) =
            self.completed(&seller, &buyer, &listing_id).await;
        let code = json!({ "code": "SPRING-10", "percentage": 10 });
        let promotion = seller.client.post("/api/v1/promotions", &code).await.expect(201);
        let promotion_id = promotion.text("promotion_id");
        let basket = wish(&listing_id, 1, "sandbox");
        let checkout = buyer.client.keyed("basket").post("/api/v1/checkouts", &basket).await;
        let checkout_id = checkout.expect(201).text("checkout_id");
        let key = json!({ "name": "a program", "scopes": ["orders:read"] });
        let key = buyer.client.post("/api/v1/users/me/api-keys", &key).await.expect(201);
        let api_key_id = key.text("token_id");
        self.at_rest().await;
        Things {
            seller,
            buyer,
            listing_id,
            order_id,
            shipment_id,
            category_id,
            event_id,
            correlation_id,
            webhook_id,
            notification_id,
            replay_id,
            session_id,
            other_id,
            delivered_id,
            review_id,
            completed_id,
            return_id,
            payout_id,
            checkout_id,
            promotion_id,
            api_key_id,
        }
    }

    /// A sale that is over: an order that was delivered, a return of it that waits for its answer,
    /// and the seller's payout.
    async fn completed(
        &self,
        seller: &Person,
        buyer: &Person,
        listing_id: &str,
    ) -> (String, String, String) {
        let order = self.place_order(&buyer.client, listing_id, 2, "sandbox").await;
        self.arrives(&order.id, &seller.client, &buyer.client).await;
        let path = format!("/api/v1/orders/{}/returns", order.id);
        let back = json!({
            "items": [{ "listing_id": listing_id, "quantity": 1 }], "reason": "damaged",
        });
        let asked = buyer.client.post(&path, &back).await.expect(201);
        self.caught_up("ledger").await;
        let payout = seller.client.post("/api/v1/me/payouts", &new_payout()).await.expect(201);
        (order.id, asked.text("return_id"), payout.text("payout_id"))
    }

    /// Every operation, about these things; last those after which their callers' tokens are over.
    pub async fn operations(&self, things: &Things) -> Vec<Operation> {
        let document = self.visitor().get("/openapi.json").await.expect(200);
        let paths = document["paths"].as_object().unwrap();
        let mut all = Vec::new();
        for (path, item) in paths {
            for (method, described) in item.as_object().unwrap() {
                let method: Method = method.to_uppercase().parse().unwrap();
                all.push(operation(document.json(), method, path, described, things));
            }
        }
        all.sort_by_key(|operation| operation.path.starts_with("/api/v1/auth/logout"));
        all
    }
}

fn operation(
    document: &Value,
    method: Method,
    path: &str,
    described: &Value,
    things: &Things,
) -> Operation {
    let parameters = described["parameters"].as_array().map_or(&[][..], Vec::as_slice);
    let query = parameters.iter().filter(|of| of["in"] == "query");
    let query = query.map(|of| of["name"].as_str().unwrap().to_owned()).collect();
    let body = described.pointer("/requestBody/content/application~1json/schema");
    let body = body.map(|schema| {
        known_body(&method, path, things).unwrap_or_else(|| made_body(document, schema))
    });
    let needs_token = described["security"].as_array().is_some_and(|of| !of.is_empty());
    let target = filled_in(path, things);
    let key_scope = described["x-key-scope"].as_str().map(str::to_owned);
    Operation { method, path: path.to_owned(), query, needs_token, key_scope, body, target }
}

fn filled_in(path: &str, things: &Things) -> String {
    let id = match path {
        _ if path.contains("/returns/") => &things.completed_id,
        _ if path.contains("/payouts/") => &things.payout_id,
        _ if path.contains("/promotions/") => &things.promotion_id,
        _ if path.contains("/checkouts/") => &things.checkout_id,
        _ if path.contains("/orders/") || path.contains("/transactions/") => &things.order_id,
        _ if path.contains("/sagas/") => &things.order_id,
        _ if path.contains("/shipments/") => &things.shipment_id,
        _ if path.contains("/categories/") => &things.category_id,
        _ if path.contains("/events/") => &things.event_id,
        _ if path.contains("/sellers/") || path.ends_with("/follow") => &things.seller.user_id,
        _ if path.contains("/sessions/") => &things.session_id,
        _ if path.contains("/api-keys/") => &things.api_key_id,
        _ if path.contains("/admin/users/") => &things.other_id,
        _ if path.contains("/users/") => &things.buyer.user_id,
        _ if path.contains("/webhooks/") => &things.webhook_id,
        _ if path.contains("/notifications/") => &things.notification_id,
        _ if path.contains("/replays/") => &things.replay_id,
        _ if path.contains("/reviews/{id}") => &things.review_id,
        _ if path.contains("/faults/") => "1",
        _ => &things.listing_id,
    };
    if path.ends_with("/admin/event-types/{event_type}") {
        return path.replace("{event_type}", "partner.thing.made");
    }
    if path.ends_with("/admin/event-sources/{source}") {
        return path.replace("{source}", "%2Ftests");
    }
    [
        ("{id}", id),
        ("{listing_id}", &things.listing_id),
        ("{key}", &things.order_id),
        ("{return_id}", &things.return_id),
        ("{correlation_id}", &things.correlation_id),
        ("{partition}", "0"),
        // One whose pauses hold nobody up.
        ("{name}", "notification-email"),
        ("{subscription}", "notification-email"),
        ("{projection}", "shipments-view"),
        ("{aggregate_type}", "listing"),
        ("{event_type}", "order.placed"),
        ("{delivery_id}", &things.event_id),
        ("{major}", "1"),
        ("{code}", "not_found"),
    ]
    .iter()
    .fold(path.to_owned(), |path, (name, value)| path.replace(name, value))
}

/// An endpoint that is told of nothing.
fn new_webhook() -> Value {
    json!({
        "url": "https://hooks.invalid/souk",
        "events": ["nobody.declared_this"],
        "format": "standard",
        "description": "To be told of nothing",
    })
}

/// The smallest payout there is.
fn new_payout() -> Value {
    json!({
        "amount": 1,
        "destination": { "bank": "Vietcombank", "holder": "Sam Tester", "number": "0011 0012" },
    })
}

/// A replay of nothing: nobody is called so.
fn new_replay() -> Value {
    json!({
        "subscription": "notification-email",
        "from": "1970-01-01T00:00:00Z",
        "filter": "metadata.actor_id = \"nobody\"",
        "reason": "To see that it can be asked for",
    })
}

/// Bodies that do what they are for, rather than merely fit the schema.
fn known_body(method: &Method, path: &str, things: &Things) -> Option<Value> {
    Some(match (method.as_str(), path) {
        ("POST", "/api/v1/orders" | "/api/v1/checkouts") => wish(&things.listing_id, 1, "sandbox"),
        ("POST", "/api/v1/transactions") => json!({
            "listing_id": things.listing_id,
            "quantity": 1,
            "delivery_address": address(),
            "payment_method": "sandbox",
        }),
        ("POST", "/api/v1/users/me/addresses") => json!({ "label": "Home", "address": address() }),
        ("PATCH", "/api/v1/users/me/addresses/{id}") => json!({ "label": "Work" }),
        ("POST", "/api/v1/reviews") => json!({
            "transaction_id": things.delivered_id, "rating": 5, "comment": "As new.",
        }),
        ("POST", "/api/v1/listings") => json!({
            "title": "A blue bicycle",
            "description": "Ridden only on Sundays.",
            "price": { "amount": PRICE, "currency": "VND" },
            "category_id": things.category_id,
            "sku": "BLUE-1",
            "quantity": 3,
            "images": ["https://images.example.com/1.jpg"],
        }),
        ("PATCH", "/api/v1/listings/{id}") => json!({
            "title": "A green bicycle",
            "description": "Ridden on Mondays too.",
            "price": { "amount": PRICE + 1, "currency": "VND" },
        }),
        ("PUT", "/api/v1/listings/{id}/images") => json!({ "images": [] }),
        ("POST", "/api/v1/promotions") => json!({ "code": "AUTUMN-5", "percentage": 5 }),
        ("POST", "/api/v1/analytics/events") => json!({ "action": "page_viewed" }),
        ("POST", "/api/v1/webhooks") => new_webhook(),
        ("POST", "/api/v1/me/payouts") => new_payout(),
        ("POST", "/api/v1/orders/{id}/returns") => json!({ "reason": "damaged" }),
        ("POST", "/api/v1/orders/{id}/dispute") => json!({ "reason": "damaged" }),
        ("POST", "/api/v1/webhooks/{id}/redeliver") => json!({
            "from_position": "0:1", "to_position": "0:9", "dry_run": true,
        }),
        ("POST", "/api/v1/admin/replays") => new_replay(),
        ("POST", "/api/v1/users/upgrade-to-seller") => business(),
        ("POST", "/api/v1/events") => new_event(),
        ("POST", "/api/v1/events/batch") => json!({ "events": [new_event()] }),
        ("POST", "/api/v1/dev/faults") => json!({
            "target": "nobody", "mode": "fail", "kind": "transient", "times": 1, "delay_ms": 1,
        }),
        _ => return None,
    })
}

fn new_event() -> Value {
    json!({
        "event_type": "partner.thing.made",
        "source": "/tests",
        "id": "1",
        "key": "a",
        "time": "2026-11-20T10:30:00.000Z",
        "correlation_id": "made",
        "causation_id": "made",
        "data": { "size": 1 },
    })
}

/// A body made from its schema, for operations that this module does not know.
fn made_body(document: &Value, schema: &Value) -> Value {
    if let Some(target) = schema["$ref"].as_str() {
        let pointer = target.trim_start_matches('#');
        return made_body(document, document.pointer(pointer).unwrap());
    }
    if let Some(example) = schema.get("example") {
        return example.clone();
    }
    let variants = schema.get("oneOf").or_else(|| schema.get("anyOf")).and_then(Value::as_array);
    if let Some(variants) = variants {
        let some = variants.iter().find(|variant| variant["type"] != "null");
        return some.map_or(Value::Null, |variant| made_body(document, variant));
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().find(|kind| **kind != "null").cloned(),
        kind => Some(kind.clone()),
    };
    match kind.as_ref().and_then(Value::as_str) {
        Some("object") => {
            let members = schema["properties"].as_object();
            let made = members.into_iter().flatten();
            let made = made.map(|(name, of)| (name.clone(), made_body(document, of)));
            Value::Object(made.collect::<Map<_, _>>())
        }
        Some("array") => json!([made_body(document, &schema["items"])]),
        Some("integer" | "number") => schema.get("minimum").cloned().unwrap_or(json!(1)),
        Some("boolean") => json!(true),
        Some("string") => match schema["format"].as_str() {
            Some("uuid") => json!("0192f0c1-2345-7000-8000-0123456789ab"),
            Some("email") => json!("ann@example.com"),
            Some("date-time") => json!("2026-11-20T10:30:00.000Z"),
            _ => json!("a long enough text"),
        },
        _ => json!({}),
    }
}
