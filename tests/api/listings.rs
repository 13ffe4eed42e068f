//! What is for sale (S0-48 to S0-57).

use serde_json::json;

use crate::support::Server;

#[tokio::test]
async fn a_listing_is_there_at_once() {
    let server = Server::start().await;
    let sam = server.seller("Sam").await;
    let offer = server.offer(3).await;
    let made = sam.client.post("/api/v1/listings", &offer).await.expect(201);
    let listing_id = made.text("listing_id");
    assert_eq!(made.header("location"), format!("/api/v1/listings/{listing_id}"));
    let listing = server.listing_now(&listing_id).await;
    assert_eq!(listing.json(), made.json());
    assert_eq!((listing.header("etag"), &listing["status"]), ("\"1\"", &json!("ACTIVE")));
    assert_eq!(server.stock(&listing_id).await, (3, 0, 0));
    // S0-56.
    let event = server.event("ListingCreated", made.header("x-correlation-id")).await;
    let data = &event["data"];
    assert_eq!(data["listing_id"], listing_id.as_str());
    assert_eq!(data["seller_id"], sam.user_id.as_str());
    for name in ["title", "category_id"] {
        assert_eq!(data[name], offer[name]);
    }
    assert_eq!((&data["price"], &data["currency"]), (&json!(150_000), &json!("VND")));
    let correlation = made.header("x-correlation-id");
    assert_eq!(server.event("catalog.product.created", correlation).await, event);
    // A list that is asked to include the command does.
    let path = format!("/api/v1/listings?min_position={}", made.header("souk-position"));
    let page = server.visitor().get(&path).await.expect(200);
    assert_eq!(page.items()[0]["listing_id"], listing_id.as_str());
    server.finish().await;
}

#[tokio::test]
async fn every_missing_or_wrong_field_is_named() {
    let server = Server::start().await;
    let sam = server.seller("Sam").await;
    let offer = server.offer(1).await;
    let pointers = async |body| sam.client.post("/api/v1/listings", &body).await.pointers();
    for field in ["title", "description", "price", "category_id"] {
        let mut body = offer.clone();
        body.as_object_mut().unwrap().remove(field);
        assert_eq!(pointers(body).await, [format!("/{field}")]);
    }
    // S0-51.
    for amount in [json!(0), json!(-1), json!(1.5), json!("100"), json!(1e3)] {
        let mut body = offer.clone();
        body["price"]["amount"] = amount.clone();
        let pointers = pointers(body).await;
        assert!(pointers.len() == 1 && pointers[0].starts_with("/price"), "{amount}: {pointers:?}");
    }
    let mut body = offer.clone();
    body["price"]["currency"] = json!("XXX");
    assert_eq!(pointers(body).await, ["/price/currency"]);
    let mut body = offer.clone();
    body["images"] = json!(vec!["https://example.com/x.png"; 11]);
    assert_eq!(pointers(body).await, ["/images"]);
    for image in
        ["", "javascript:alert(1)", "data:image/png;base64,AAAA", "https://a:b@c.example/1"]
    {
        let mut body = offer.clone();
        body["images"] = json!(["https://images.example.com/1.jpg", image]);
        let pointers = pointers(body).await;
        assert!(pointers.iter().all(|pointer| pointer == "/images/1"), "{image}: {pointers:?}");
        assert!(!pointers.is_empty(), "{image}");
    }
    let mut body = offer;
    body["quantity"] = json!(0);
    assert_eq!(pointers(body).await, ["/quantity"]);
    server.finish().await;
}

#[tokio::test]
async fn only_verified_sellers_sell() {
    let server = Server::start().await;
    let ann = server.buyer("Ann").await;
    let offer = server.offer(1).await;
    let create = async || ann.client.post("/api/v1/listings", &offer).await;
    server.visitor().post("/api/v1/listings", &offer).await.problem(401, "unauthenticated");
    assert_eq!(create().await.status(), 403);
    server.become_seller(&ann).await.expect(200);
    create().await.problem(409, "seller_not_verified");
    server.admin_verifies(&ann).await.expect(200);
    create().await.expect(201);
    server.finish().await;
}

#[tokio::test]
async fn a_category_must_be_known_and_active() {
    let server = Server::start().await;
    let sam = server.seller("Sam").await;
    let mut offer = server.offer(1).await;
    let category = server.category().await;
    let admin = server.admin();
    let path = format!("/api/v1/admin/categories/{category}/deactivate");
    sam.client.post(&path, &json!({})).await.problem(403, "insufficient_scope");
    admin.post(&path, &json!({})).await.expect(200);
    sam.client.post("/api/v1/listings", &offer).await.problem(409, "category_inactive");
    let path = format!("/api/v1/admin/categories/{category}/activate");
    admin.post(&path, &json!({})).await.expect(200);
    sam.client.post("/api/v1/listings", &offer).await.expect(201);
    offer["category_id"] = json!("01a1f9d4-c097-7fe7-abc7-70fad08fc399");
    sam.client.post("/api/v1/listings", &offer).await.problem(422, "category_unknown");
    server.finish().await;
}

#[tokio::test]
async fn a_change_rests_on_a_version() {
    let server = Server::start().await;
    let (sam, tom) = (server.seller("Sam").await, server.seller("Tom").await);
    let id = server.listing(&sam, 1).await;
    let path = format!("/api/v1/listings/{id}");
    let cheaper = json!({ "price": { "amount": 100_000, "currency": "VND" } });
    sam.client.patch(&path, &cheaper).await.problem(428, "precondition_required");
    let stale = sam.client.if_match("\"7\"").patch(&path, &cheaper).await;
    assert_eq!(stale.problem(412, "version_mismatch")["current_version"], 1);
    tom.client.if_match("\"1\"").patch(&path, &cheaper).await.problem(403, "forbidden");
    let changed = sam.client.if_match("\"1\"").patch(&path, &cheaper).await.expect(200);
    assert_eq!(changed["price"]["amount"], 100_000);
    let correlation = changed.header("x-correlation-id");
    server.event("catalog.price.changed", correlation).await;
    server.event("catalog.product.updated", correlation).await;
    server.finish().await;
}

/// A price without a currency is in the listing's own.
#[tokio::test]
async fn a_bare_price_changes_no_currency() {
    let server = Server::start().await;
    let sam = server.seller("Sam").await;
    let mut offer = server.offer(1).await;
    offer["price"] = json!({ "amount": 2_500, "currency": "USD" });
    let made = sam.client.post("/api/v1/listings", &offer).await.expect(201);
    let path = format!("/api/v1/listings/{}", made.text("listing_id"));
    let seller = sam.client.if_match("*");
    for (price, amount) in [(json!(1_999), 1_999), (json!({ "amount": 1_899 }), 1_899)] {
        let changed = seller.patch(&path, &json!({ "price": price })).await.expect(200);
        assert_eq!(changed["price"], json!({ "amount": amount, "currency": "USD" }));
    }
    let other = json!({ "price": 1_999, "currency": "VND" });
    assert_eq!(seller.patch(&path, &other).await.pointers(), ["/currency"]);
    server.finish().await;
}

#[tokio::test]
async fn lists_come_in_pages() {
    let server = Server::start().await;
    let sam = server.seller("Sam").await;
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(server.listing(&sam, 1).await);
    }
    made.reverse();
    server.at_rest().await;
    let mut seen = Vec::new();
    let mut path = "/api/v1/me/listings?limit=2".to_owned();
    loop {
        let page = sam.client.get(&path).await.expect(200);
        assert!(page.items().len() <= 2);
        seen.extend(page.items().iter().map(|of| of["listing_id"].as_str().unwrap().to_owned()));
        let link = page.header("link").to_owned();
        match page["next_cursor"].as_str() {
            Some(_) => {
                let target = link.strip_prefix('<').unwrap().split_once('>').unwrap().0;
                assert!(link.ends_with("rel=\"next\""));
                path = target.to_owned();
            }
            None => {
                assert_eq!((page["has_more"].as_bool(), link.as_str()), (Some(false), ""));
                break;
            }
        }
    }
    assert_eq!(seen, made);
    for limit in ["0", "201", "x", "-1"] {
        let answer = sam.client.get(&format!("/api/v1/me/listings?limit={limit}")).await;
        answer.problem(400, "invalid_parameter");
    }
    server.finish().await;
}

/// A draft is its seller's until it is published.
#[tokio::test]
async fn a_draft_is_seen_by_its_seller_alone() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let mut offer = server.offer(2).await;
    offer["draft"] = json!("yes");
    assert_eq!(sam.client.post("/api/v1/listings", &offer).await.pointers(), ["/draft"]);
    offer["draft"] = json!(true);
    offer["sku"] = json!("DRAFT-1");
    let made = sam.client.post("/api/v1/listings", &offer).await.expect(201);
    assert_eq!(made["status"], "DRAFT");
    let id = made.text("listing_id");
    let (path, position) = (format!("/api/v1/listings/{id}"), made.header("souk-position"));
    for client in [&server.visitor(), &bea.client] {
        client.get(&path).await.problem(404, "not_found");
        for list in ["listings?status=ALL", "listings?status=DRAFT", "search?q=bicycle"] {
            let list = format!("/api/v1/{list}&min_position={position}");
            assert!(client.get(&list).await.expect(200).items().is_empty(), "{list}");
        }
    }
    let all = format!("/api/v1/listings?status=ALL&seller_id={}", sam.user_id);
    assert!(bea.client.get(&all).await.expect(200).items().is_empty());
    assert_eq!(sam.client.get(&all).await.expect(200).items().len(), 1);
    assert_eq!(sam.client.get("/api/v1/me/listings").await.expect(200).items().len(), 1);
    assert_eq!(server.admin().get(&path).await.expect(200)["status"], "DRAFT");
    let order = crate::support::wish(&id, 1, "sandbox");
    bea.client.post("/api/v1/orders", &order).await.problem(409, "listing_unavailable");
    let publish = format!("{path}/publish");
    bea.client.post(&publish, &json!({})).await.problem(403, "forbidden");
    server.at_rest().await;
    assert_eq!(server.events_counted("listing.indexed").await, 0);

    let shown = sam.client.post(&publish, &json!({})).await.expect(200);
    assert_eq!((&shown["status"], shown.header("etag")), (&json!("ACTIVE"), "\"2\""));
    server.event("listing.published", shown.header("x-correlation-id")).await;
    server.event("listing.indexed", shown.header("x-correlation-id")).await;
    assert_eq!(server.visitor().get(&path).await.expect(200).json(), shown.json());
    assert_eq!(sam.client.post(&publish, &json!({})).await.expect(200).header("etag"), "\"2\"");
    let found = format!("/api/v1/search?q=bicycle&min_position={}", shown.header("souk-position"));
    assert_eq!(server.visitor().get(&found).await.expect(200).items().len(), 1);
    bea.client.post("/api/v1/orders", &order).await.expect(201);
    server.finish().await;
}

#[tokio::test]
async fn what_was_withdrawn_comes_back() {
    let server = Server::start().await;
    let (sam, tom) = (server.seller("Sam").await, server.seller("Tom").await);
    let id = server.listing(&sam, 1).await;
    let path = format!("/api/v1/listings/{id}");
    let (archive, reactivate) = (format!("{path}/archive"), format!("{path}/reactivate"));
    sam.client.post(&archive, &json!({})).await.expect(200);
    tom.client.post(&reactivate, &json!({})).await.problem(403, "forbidden");
    let publish = format!("{path}/publish");
    sam.client.post(&publish, &json!({})).await.problem(409, "listing_archived");
    let back = sam.client.post(&reactivate, &json!({})).await.expect(200);
    assert_eq!(back["status"], "ACTIVE");
    server.event("listing.reactivated", back.header("x-correlation-id")).await;
    server.at_rest().await;
    assert_eq!(server.visitor().get("/api/v1/listings").await.expect(200).items().len(), 1);
    server.finish().await;
}

/// S1-104, S0-83.
#[tokio::test]
async fn more_units_bring_back_what_was_sold_out() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let id = server.listing(&sam, 1).await;
    let order = server.place_order(&bea.client, &id, 1, "sandbox").await;
    server.order_eventually(&order.id, "SHIPPED").await;
    assert_eq!(server.listing_now(&id).await["status"], "SOLD");
    let path = format!("/api/v1/listings/{id}/restock");
    let restock =
        async |quantity: i64| sam.client.post(&path, &json!({ "quantity": quantity })).await;
    assert_eq!(restock(0).await.pointers(), ["/quantity"]);
    assert_eq!(restock(1_000_001).await.pointers(), ["/quantity"]);
    bea.client.post(&path, &json!({})).await.problem(403, "forbidden");
    let more = sam.client.keyed("more").post(&path, &json!({ "quantity": 4 })).await.expect(200);
    assert_eq!((&more["status"], &more["available_quantity"]), (&json!("ACTIVE"), &json!(4)));
    let again = sam.client.keyed("more").post(&path, &json!({ "quantity": 4 })).await.expect(200);
    assert_eq!(again.json(), more.json());
    assert_eq!(server.stock(&id).await, (4, 0, 1));
    let correlation = more.header("x-correlation-id");
    let event = server.event("inventory.restocked", correlation).await;
    assert_eq!((&event["data"]["quantity"], &event["data"]["available"]), (&json!(4), &json!(4)));
    server.event("listing.relisted", correlation).await;
    server.at_rest().await;
    let listings = server.visitor().get("/api/v1/listings").await.expect(200);
    assert_eq!(listings.items()[0]["available_quantity"], 4);
    server.finish().await;
}

/// S1-103.
#[tokio::test]
async fn what_is_sent_off_was_picked() {
    let server = Server::start().await;
    let sale = server.sale(3, 2, "sandbox").await;
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    let shipments = format!("/api/v1/shipments?order_id={}", sale.order.id);
    let shipments = sale.seller.client.get(&shipments).await.expect(200);
    let shipment = shipments.items()[0]["shipment_id"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/shipments/{shipment}/dispatch");
    let sent = sale.seller.client.post(&path, &json!({})).await.expect(200);
    let event = server.event("inventory.picked", sent.header("x-correlation-id")).await;
    assert_eq!(event["data"]["order_id"], sale.order.id.as_str());
    assert_eq!(event["data"]["listing_id"], sale.listing_id.as_str());
    assert_eq!(event["data"]["quantity"], 2);
    sale.seller.client.post(&path, &json!({})).await.expect(200);
    server.at_rest().await;
    assert_eq!(server.events_counted("inventory.picked").await, 1);
    assert_eq!(server.stock(&sale.listing_id).await, (1, 0, 2));
    server.finish().await;
}

/// S0-45, S0-59.
#[tokio::test]
async fn a_seller_knows_what_listings_begin_with_and_how_many_there_are() {
    let server = Server::start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let path = format!("/api/v1/users/{}/listing-preferences", sam.user_id);
    let preferences = sam.client.get(&path).await.expect(200);
    assert_eq!(preferences["may_list"], true);
    assert_eq!(preferences["default_currency"], "VND");
    bea.client.get(&path).await.problem(403, "forbidden");
    let mut last = String::new();
    for _ in 0..5 {
        last = server.listing(&sam, 1).await;
    }
    sam.client.post(&format!("/api/v1/listings/{last}/archive"), &json!({})).await.expect(200);
    server.at_rest().await;
    let profile = format!("/api/v1/users/{}/seller-profile", sam.user_id);
    assert_eq!(server.visitor().get(&profile).await.expect(200)["listing_count"], 4);
    server.finish().await;
}

/// A name in links is made of the name in any language that has letters for it.
#[tokio::test]
async fn a_category_has_a_slug_of_its_name() {
    let server = Server::start().await;
    let open = async |body| server.admin().post("/api/v1/categories", &body).await;
    let made = open(json!({ "name": "Đồ cũ" })).await.expect(201);
    assert_eq!((&made["name"], &made["slug"]), (&json!("Đồ cũ"), &json!("do-cu")));
    for name in ["Книги", "!?", ""] {
        assert_eq!(open(json!({ "name": name })).await.pointers(), ["/name"], "{name}");
    }
    let given = open(json!({ "name": "Книги", "slug": "knigi" })).await.expect(201);
    assert_eq!(given["slug"], "knigi");
    let wrong = open(json!({ "name": "Книги", "slug": "Книги" })).await;
    assert_eq!(wrong.pointers(), ["/slug"]);
    server.finish().await;
}
