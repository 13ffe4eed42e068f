//! What readers can rely on (S0-122, S2-49, S0-104, X9).

use std::collections::BTreeMap;

use serde_json::json;

use crate::documents::mixed_run;
use crate::support::{Server, Start, parallel};

/// S0-122.
#[tokio::test]
async fn a_thousand_writes_are_read_at_once() {
    let server = Start::default().partitions(3).start().await;
    let sam = server.seller("Sam").await;
    let mut listings = Vec::new();
    for _ in 0..10 {
        listings.push(server.listing(&sam, 1).await);
    }
    let (sam, server) = (&sam, &server);
    // Ten writers, each its own listing: what one has written it reads, and nothing older.
    parallel(10, |writer| {
        let path = format!("/api/v1/listings/{}", listings[writer]);
        async move {
            let mut state = u64::try_from(writer).unwrap() + 1;
            for round in 1..=100 {
                // xorshift: no two writers write the same.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let change = json!({ "title": format!("{round}: {state}") });
                let wrote = sam.client.if_match("*").patch(&path, &change).await.expect(200);
                let read = server.visitor().get(&path).await.expect(200);
                assert_eq!(read.json(), wrote.json());
                assert_eq!(read["title"], change["title"]);
                assert_eq!(read["version"], round + 1);
            }
        }
    })
    .await;
    // And the list, once it is asked to include the last of them.
    server.at_rest().await;
    let page = sam.client.get("/api/v1/me/listings").await.expect(200);
    assert!(page.items().iter().all(|of| of["version"] == 101), "{page:?}");
}

/// S2-49: what lists say is what the resources say.
#[tokio::test]
async fn lists_agree_with_what_they_list() {
    let mut server = Server::start().await;
    mixed_run(&server).await;
    compare_lists(&server).await;
    // Read models can be thrown away.
    assert!(server.terminate().await.success());
    server.forget_read_models().await;
    server.start_again().await;
    server.at_rest().await;
    compare_lists(&server).await;
    server.finish().await;
}

async fn compare_lists(server: &Server) {
    let listings = server.visitor().get("/api/v1/listings?status=ALL").await.expect(200);
    assert_eq!(listings.items().len(), 1);
    for row in listings.items() {
        let now = server.listing_now(row["listing_id"].as_str().unwrap()).await;
        for name in [
            "title",
            "price",
            "status",
            "available_quantity",
            "reserved_quantity",
            "sold_quantity",
            "version",
            "created_at",
            "seller_id",
            "category_id",
        ] {
            assert_eq!(row[name], now[name], "{name}");
        }
    }
    let bea = server.login("bea@example.com", "Bea has a long password").await.expect(200);
    let bea = server.visitor().with_token(&bea.text("access_token"));
    let orders = bea.get("/api/v1/me/orders").await.expect(200);
    assert_eq!(orders.items().len(), 4);
    for row in orders.items() {
        let now = server.order_now(row["order_id"].as_str().unwrap()).await;
        for name in ["order_number", "status", "buyer_id", "seller_id", "version", "placed_at"] {
            assert_eq!(row[name], now[name], "{name}");
        }
        assert_eq!(row["total"]["amount"], now["amount"]);
    }
    let sagas = server.admin().get("/api/v1/admin/sagas").await.expect(200);
    assert_eq!(sagas.items().len(), 4);
}

/// Many people at once, in several partitions: each thing's history is in order and whole.
#[tokio::test]
async fn order_holds_for_everything_that_happens_at_once() {
    let server = Start::default().partitions(3).start().await;
    let sam = server.seller("Sam").await;
    let buyers = [server.buyer("Ann").await, server.buyer("Bea").await, server.buyer("Cat").await];
    let mut listings = Vec::new();
    for _ in 0..3 {
        listings.push(server.listing(&sam, 20).await);
    }
    let orders = parallel(45, |index| {
        let (client, listing) = (&buyers[index % 3].client, &listings[index / 3 % 3]);
        let method = if index % 5 == 0 { "test_decline" } else { "sandbox" };
        server.place_order(client, listing, 1, method)
    })
    .await;
    for (index, order) in orders.iter().enumerate() {
        let status = if index % 5 == 0 { "PAYMENT_FAILED" } else { "SHIPPED" };
        server.order_eventually(&order.id, status).await;
    }
    server.at_rest().await;
    let mut last: BTreeMap<(String, String), (u64, u64)> = BTreeMap::new();
    for event in server.events("").await {
        let of = (event["aggregate_type"].to_string(), event["aggregate_id"].to_string());
        let (version, position) = last.entry(of).or_default();
        let (next, at) =
            (event["aggregate_version"].as_u64().unwrap(), event["position"].as_u64().unwrap());
        assert_eq!(next, *version + 1, "{event}");
        assert!(at > *position, "{event}");
        (*version, *position) = (next, at);
    }
    let mut sold = 0;
    for listing in &listings {
        let (available, reserved, gone) = server.stock(listing).await;
        assert_eq!((available + gone, reserved), (20, 0));
        sold += gone;
    }
    assert_eq!(sold, 36);
    server.finish().await;
}
