//! The hourly reports (S1-120).

use serde_json::json;

use crate::support::{Server, Start, eventually};

const HOUR: u64 = 60 * 60;

async fn reports(server: &Server) -> Vec<serde_json::Value> {
    let page = server.admin().get("/api/v1/analytics/reports").await.expect(200);
    page.items().to_vec()
}

/// Waits until there are so many reports, and nothing more to do.
async fn so_many(server: &Server, count: usize) -> Vec<serde_json::Value> {
    let found = eventually(&format!("{count} reports"), || async {
        Some(reports(server).await).filter(|found| found.len() >= count)
    })
    .await;
    server.at_rest().await;
    assert_eq!(reports(server).await.len(), count);
    found
}

#[tokio::test]
async fn every_hour_has_one_report_across_restarts_too() {
    let mut server = Start::default().with("HOURLY_REPORTS", "true").start().await;
    assert!(reports(&server).await.is_empty());
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 5).await;
    let order = server.place_order(&bea.client, &listing, 2, "sandbox").await;
    server.order_eventually(&order.id, "SHIPPED").await;
    server.at_rest().await;
    server.advance_clock(HOUR).await;
    let first = so_many(&server, 1).await.remove(0);
    let figure = |name: &str| first["figures"][name][0]["value"].clone();
    assert_eq!((figure("orders_paid"), figure("gmv")), (json!(1), json!(300_000)), "{first}");
    assert_eq!(first["figures"]["gmv"][0]["currency"], "VND");
    let path = format!("/api/v1/analytics/reports/{}", first["report_id"].as_str().unwrap());
    assert_eq!(server.admin().get(&path).await.expect(200).json(), &first);
    let event = &server.events("eventType=analytics.report.generated").await[0];
    assert_eq!(event["data"]["report_id"], first["report_id"]);
    assert_eq!(event["data"]["figures"]["gmv"], first["figures"]["gmv"]);

    // What was missed is made up for, each hour once.
    server.advance_clock(3 * HOUR).await;
    let four = so_many(&server, 4).await;
    for pair in four.windows(2) {
        assert_eq!(pair[0]["from"], pair[1]["to"], "{four:?}");
    }
    assert_eq!(four[0]["figures"]["orders_paid"][0]["value"], 0, "{}", four[0]);
    server.kill_9_and_start_again().await;
    server.at_rest().await;
    let again = reports(&server).await;
    assert!(again.len() >= 4, "{again:?}");
    let hours: std::collections::BTreeSet<_> =
        again.iter().map(|of| of["from"].as_str().unwrap().to_owned()).collect();
    assert_eq!(hours.len(), again.len(), "no hour has two");
    sam.client.get("/api/v1/analytics/reports").await.problem(403, "insufficient_scope");
    server.finish().await;
}
