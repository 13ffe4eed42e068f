//! The hourly reports (S1-120).

use serde_json::json;
use souk_actors::world::Timestamp;

use crate::support::{Person, Server, Start, eventually};

const HOUR: u64 = 60 * 60;

async fn reports(server: &Server) -> Vec<serde_json::Value> {
    let page = server.admin().get("/api/v1/analytics/reports").await.expect(200);
    page.items().to_vec()
}

/// Moves the clock to half past some hour, so that no hour ends by itself while a test runs.
async fn to_half_past(server: &Server) {
    let now = Timestamp::parse(&server.advance_clock(0).await).unwrap();
    let into_the_hour = u64::try_from(now.millis() / 1_000).unwrap() % HOUR;
    server.advance_clock((HOUR + HOUR / 2 - into_the_hour) % HOUR).await;
}

/// Moves the clock by hours; answers all reports once there is that of the last hour that is over,
/// and nothing more to do. The newest is the first.
async fn after_hours(server: &Server, hours: u64) -> Vec<serde_json::Value> {
    let now = server.advance_clock(hours * HOUR).await;
    let over = format!("{}:00:00.000Z", &now[..13]);
    eventually(&format!("the report up to {over}"), || async {
        reports(server).await.first().filter(|newest| newest["to"] == *over).cloned()
    })
    .await;
    server.at_rest().await;
    reports(server).await
}

#[tokio::test]
async fn every_hour_has_one_report_across_restarts_too() {
    let mut server = Start::default().with("HOURLY_REPORTS", "true").start().await;
    to_half_past(&server).await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 5).await;
    let order = server.place_order(&bea.client, &listing, 2, "sandbox").await;
    server.order_eventually(&order.id, "SHIPPED").await;
    server.at_rest().await;
    let known = after_hours(&server, 1).await;
    let first = known[0].clone();
    let figure = |name: &str| first["figures"][name][0]["value"].clone();
    assert_eq!((figure("orders_paid"), figure("gmv")), (json!(1), json!(300_000)), "{first}");
    assert_eq!(first["figures"]["gmv"][0]["currency"], "VND");
    let path = format!("/api/v1/analytics/reports/{}", first["report_id"].as_str().unwrap());
    assert_eq!(server.admin().get(&path).await.expect(200).json(), &first);
    let events = server.events("eventType=analytics.report.generated").await;
    let event = events.iter().find(|event| event["data"]["report_id"] == first["report_id"]);
    let event = event.unwrap_or_else(|| panic!("no event of {first} in {events:?}"));
    assert_eq!(event["data"]["figures"]["gmv"], first["figures"]["gmv"]);

    // What was missed is made up for, each hour once.
    let found = after_hours(&server, 3).await;
    assert_eq!(found.len(), known.len() + 3, "{found:?}");
    for pair in found.windows(2) {
        assert_eq!(pair[0]["from"], pair[1]["to"], "{found:?}");
    }
    assert_eq!(found[0]["figures"]["orders_paid"][0]["value"], 0, "{}", found[0]);
    server.kill_9_and_start_again().await;
    server.at_rest().await;
    let again = reports(&server).await;
    assert!(again.len() >= found.len(), "{again:?}");
    let hours: std::collections::BTreeSet<_> =
        again.iter().map(|of| of["from"].as_str().unwrap().to_owned()).collect();
    assert_eq!(hours.len(), again.len(), "no hour has two");
    assert!(found.iter().all(|of| again.contains(of)), "each says what it said: {again:?}");
    sam.client.get("/api/v1/analytics/reports").await.problem(403, "insufficient_scope");
    server.finish().await;
}

const PREFERENCES: &str = "/api/v1/users/me/notification-preferences";

async fn choose(person: &Person, reports: &str) -> crate::support::Answer {
    let body = json!({ "reports": reports }).to_string().into_bytes();
    person.client.send(reqwest::Method::PUT, PREFERENCES, Some(body)).await
}

/// The reports that somebody was mailed.
async fn mailed(server: &Server, person: &Person, template: &str) -> Vec<serde_json::Value> {
    server.at_rest().await;
    let mut mails = server.mails(&person.email).await;
    mails.retain(|mail| mail["template"] == template);
    mails
}

/// S4-39.
#[tokio::test]
async fn administrators_get_reports_by_mail_if_they_want_and_each_once() {
    let mut server = Start::default().with("HOURLY_REPORTS", "true").start().await;
    let mut hal = server.administrator("hal").await;
    let mut dan = server.administrator("dan").await;
    let bea = server.buyer("Bea").await;
    hal.log_in_again().await;
    dan.log_in_again().await;
    assert_eq!(choose(&bea, "hourly").await.pointers(), ["/reports"]);
    assert_eq!(choose(&hal, "weekly").await.pointers(), ["/reports"]);
    let before = hal.client.get(PREFERENCES).await.expect(200);
    assert_eq!(before["reports"], "off", "nobody gets any unasked");
    assert!(bea.client.get(PREFERENCES).await.expect(200)["reports"].is_null());
    to_half_past(&server).await;
    let known = after_hours(&server, 1).await;
    hal.log_in_again().await;
    dan.log_in_again().await;
    assert_eq!(choose(&hal, "hourly").await.expect(200)["reports"], "hourly");
    choose(&dan, "daily").await.expect(200);
    assert!(mailed(&server, &hal, "report_hourly").await.is_empty(), "not those of before");
    // A day and an hour: some midnight is among them.
    assert_eq!(after_hours(&server, 24).await.len(), known.len() + 24);
    let hourly = mailed(&server, &hal, "report_hourly").await;
    assert_eq!(hourly.len(), 24);
    assert!(
        hourly.iter().any(|mail| {
            let text = mail["text"].as_str().unwrap();
            text.contains("users registered") && text.contains("Hello Marketplace")
        }),
        "{hourly:?}"
    );
    let daily = mailed(&server, &dan, "report_daily").await;
    assert_eq!(daily.len(), 1, "{daily:?}");
    let text = daily[0]["text"].as_str().unwrap();
    assert!(text.contains("T00:00:00.000Z to "), "{text}");
    assert!(mailed(&server, &hal, "report_daily").await.is_empty());
    assert!(mailed(&server, &dan, "report_hourly").await.is_empty());
    // Over a crash, and told again, it is the same mails.
    server.kill_9_and_start_again().await;
    let replay = json!({
        "subscription": "report-mails", "from": "1970-01-01T00:00:00Z", "reason": "to see",
    });
    server.admin().post("/api/v1/admin/replays", &replay).await.expect(202);
    server.at_rest().await;
    assert_eq!(mailed(&server, &hal, "report_hourly").await.len(), 24);
    assert_eq!(mailed(&server, &dan, "report_daily").await.len(), 1);
    server.finish().await;
}
