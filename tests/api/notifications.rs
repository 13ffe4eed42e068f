//! Who is told what, by which way, and who may read it (S0-6, S0-75, S0-82, S3-41, S3-42).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::{Command, Sale, Server, Start};

/// How often somebody was told what, by which way.
async fn told(server: &Server, user_id: &str) -> BTreeMap<String, usize> {
    server.caught_up("notifications-view").await;
    let mut told = BTreeMap::new();
    for one in server.notifications(user_id).await {
        assert_eq!(one["status"], "sent", "{one}");
        let way = one["channel"].as_str().unwrap();
        *told.entry(format!("{way} {}", one["template"].as_str().unwrap())).or_default() += 1;
    }
    told
}

fn once(names: &[&str]) -> BTreeMap<String, usize> {
    names.iter().map(|name| ((*name).to_owned(), 1)).collect()
}

/// The only mail to an address with this template.
async fn mail(server: &Server, to: &str, template: &str) -> Value {
    let mut mails = server.mails(to).await;
    mails.retain(|mail| mail["template"] == template);
    assert_eq!(mails.len(), 1, "{template}: {mails:?}");
    mails.remove(0)
}

#[tokio::test]
async fn everybody_hears_of_a_purchase_once() {
    let mut server = Server::start().await;
    let Sale { seller, buyer, order, .. } = server.sale(3, 2, "sandbox").await;
    server.order_eventually(&order.id, "SHIPPED").await;
    server.at_rest().await;
    let shipments = buyer.client.get(&format!("/api/v1/shipments?orderId={}", order.id)).await;
    let shipment = shipments.expect(200).items()[0]["shipment_id"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/shipments/{shipment}/dispatch");
    seller.client.post(&path, &json!({})).await.expect(200);
    let path = format!("/api/v1/shipments/{shipment}/deliver");
    buyer.client.post(&path, &json!({})).await.expect(200);
    server.order_eventually(&order.id, "COMPLETED").await;
    server.at_rest().await;
    let of_buyer = once(&[
        "email welcome_verification",
        "email email_verified",
        "email order_placed",
        "in_app payment_received",
        "email receipt",
        "in_app order_shipped",
        "email order_confirmation",
        "in_app order_delivered",
    ]);
    let of_seller = once(&[
        "email welcome_verification",
        "email email_verified",
        "email seller_welcome",
        "in_app seller_onboarding",
        "in_app seller_verified",
        "email seller_verified",
        "in_app new_order",
        "in_app order_paid",
        "email sale_receipt",
        "in_app order_delivered",
        "in_app order_completed",
    ]);
    assert_eq!(told(&server, &buyer.user_id).await, of_buyer);
    assert_eq!(told(&server, &seller.user_id).await, of_seller);
    let now = server.order_now(&order.id).await;
    let reference = now["payment"]["reference"].as_str().unwrap();
    let number = now["order_number"].as_str().unwrap();
    for (to, template) in [(&buyer.email, "receipt"), (&seller.email, "sale_receipt")] {
        let mail = mail(&server, to, template).await;
        for form in ["text", "html"] {
            let words = mail[form].as_str().unwrap();
            assert!(words.contains(reference) && words.contains(number), "{words}");
            assert!(words.contains(&format!("2 x {}", now["items"][0]["sku"].as_str().unwrap())));
        }
    }
    // S0-103: nobody is told again by a server that comes back.
    server.kill_9_and_start_again().await;
    server.at_rest().await;
    assert_eq!(told(&server, &buyer.user_id).await, of_buyer);
    assert_eq!(told(&server, &seller.user_id).await, of_seller);
    server.finish().await;
}

#[tokio::test]
async fn a_purchase_that_comes_to_nothing_is_told_by_mail_too() {
    let server = Server::start().await;
    let Sale { buyer, order, .. } = server.sale(3, 1, "test_decline").await;
    server.order_eventually(&order.id, "PAYMENT_FAILED").await;
    server.at_rest().await;
    let told = told(&server, &buyer.user_id).await;
    for name in ["email order_placed", "in_app order_payment_failed", "email order_payment_failed"]
    {
        assert_eq!(told.get(name), Some(&1), "{name}: {told:?}");
    }
    assert_eq!(told.keys().filter(|name| name.ends_with("receipt")).count(), 0);
    let mail = mail(&server, &buyer.email, "order_payment_failed").await;
    assert!(mail["text"].as_str().unwrap().contains("insufficient_funds"), "{mail}");
    server.finish().await;
}

#[tokio::test]
async fn what_is_told_is_read_by_whom_it_is_for() {
    let server = Server::start().await;
    let (sam, bea) = (server.buyer("Sam").await, server.buyer("Bea").await);
    server.become_seller(&sam).await.expect(200);
    server.at_rest().await;
    let all = sam.client.get("/api/v1/notifications?unread=true").await.expect(200);
    let find = |template: &str| {
        let found = all.items().iter().find(|one| one["template"] == template).unwrap();
        format!("/api/v1/notifications/{}", found["notification_id"].as_str().unwrap())
    };
    let path = find("seller_onboarding");
    let shown = sam.client.get(&path).await.expect(200);
    assert!(shown["title"].as_str().unwrap().contains("Looms and more"), "{shown:?}");
    assert!(!shown["text"].as_str().unwrap().is_empty() && shown["read_at"].is_null());
    let unchanged = sam.client.with("if-none-match", shown.header("etag")).get(&path).await;
    unchanged.expect(304);
    // Whoever could read the mail here would prove an address without having it.
    let mail = sam.client.get(&find("welcome_verification")).await.expect(200);
    assert_eq!((&mail["title"], &mail["text"]), (&Value::Null, &Value::Null));
    bea.client.get(&path).await.problem(404, "not_found");
    let read = format!("{path}/read");
    bea.client.post(&read, &json!({})).await.problem(404, "not_found");
    let first = sam.client.post(&read, &json!({})).await.expect(200);
    assert!(first["read_at"].is_string() && first["title"].is_string());
    let again = sam.client.post(&read, &json!({})).await.expect(200);
    assert_eq!(again["read_at"], first["read_at"]);
    let position = first.header("souk-position");
    let asked = format!("/api/v1/notifications?unread=true&min_position={position}");
    let left = sam.client.get(&asked).await.expect(200);
    assert_eq!(left.items().len() + 1, all.items().len());

    // What administrators share is theirs alone, and read once one of them has read it.
    let shared = "/api/v1/notifications?audience=admin&unread=true";
    let shared = server.admin().get(shared).await.expect(200);
    let pending = shared.items().iter().find(|one| one["template"] == "seller_pending").unwrap();
    let path = format!("/api/v1/notifications/{}", pending["notification_id"].as_str().unwrap());
    sam.client.get(&path).await.problem(404, "not_found");
    let shown = server.admin().get(&path).await.expect(200);
    assert!(shown["text"].as_str().unwrap().contains(&sam.user_id), "{shown:?}");
    let read = server.admin().post(&format!("{path}/read"), &json!({})).await.expect(200);
    assert!(read["read_at"].is_string());
    server.finish().await;
}

#[tokio::test]
async fn operators_bring_their_own_words() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write(
        "welcome_verification.txt",
        "Subject: Xin chao, {{first_name}}\n\n{{verification_token}}\n",
    );
    let start = || Start::default().with("TEMPLATES_DIR", folder.path().display());
    let server = start().start().await;
    let ann = server.newcomer("Ann").await;
    server.verify(&ann.email).await.expect(200);
    let mail = mail(&server, &ann.email, "welcome_verification").await;
    assert_eq!(mail["subject"], "Xin chao, Ann");
    server.finish().await;

    write("welcome_verification.html", "<p>\n{{ first_name </p>");
    let data = tempfile::tempdir().unwrap();
    let wrong = Command::new(&["serve"])
        .with("DATA_DIR", data.path().display())
        .with("TEMPLATES_DIR", folder.path().display())
        .run();
    assert_eq!(wrong.code, 78, "{}", wrong.errors);
    let told = ["TEMPLATES_DIR: ", "welcome_verification.html", "line 2"];
    assert!(told.iter().all(|words| wrong.errors.contains(words)), "{}", wrong.errors);
}
