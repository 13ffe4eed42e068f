//! Payments by MoMo (S0-68, S0-71, S0-72, S0-77 to S0-80, X26, S1-72, S1-106 to S1-108, S1-176,
//! S2-26 to S2-28), against a MoMo that keeps its own books.

use serde_json::{Value, json};

use crate::support::momo::{MoMo, SECRET_KEY, Standing, Trouble, signed};
use crate::support::{Order, PRICE, Sale, Server, data_of, eventually, parallel, wish};

/// A shop, and an order in it that is to be paid by MoMo.
async fn sale(momo: &MoMo) -> (Server, Sale) {
    let server = momo.shop().start().await;
    let sale = server.sale(1, 1, "momo").await;
    (server, sale)
}

/// The order's payment, by its id at MoMo too.
fn payment_of(order: &Order) -> String {
    order.answer["payment"]["payment_id"].as_str().unwrap().to_owned()
}

async fn payment_is(server: &Server, order: &Order, status: &str) -> Value {
    eventually(&format!("the payment to be {status}"), || async {
        let now = server.order_now(&order.id).await;
        (now["payment"]["status"] == status).then(|| now["payment"].clone())
    })
    .await
}

/// The order once its buyer can pay.
async fn payable(server: &Server, order: &Order) -> Value {
    eventually("the buyer to be told how to pay", || async {
        let now = server.order_now(&order.id).await;
        now["payment"]["instructions"]["url"].is_string().then(|| now.json().clone())
    })
    .await
}

async fn count(server: &Server, event_type: &str) -> usize {
    server.events_counted(event_type).await
}

#[tokio::test]
async fn an_order_is_paid_when_momo_says_so() {
    let momo = MoMo::start().await;
    let server = momo.shop().with("LOG_LEVEL", "trace").start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 1).await;
    // S0-71, S0-72: the reference at once, and how to pay once MoMo has answered.
    let order = server.place_order(&bea.client.waiting(), &listing, 1, "momo").await;
    let payment = &order.answer["payment"];
    assert_eq!(
        (&order.answer["status"], &payment["status"]),
        (&json!("CONFIRMED"), &json!("INITIATED"))
    );
    assert_eq!(payment["provider"], "momo");
    let (id, reference) = (payment_of(&order), payment["reference"].as_str().unwrap());
    assert_eq!(payment["instructions"]["url"], format!("https://pay.momo.example/v2/{id}"));
    assert!(payment["instructions"]["text"].as_str().unwrap().contains(reference));
    assert_eq!(server.stock(&listing).await, (0, 1, 0));
    let created = momo.last("create");
    assert_eq!((momo.called("create"), momo.unsigned()), (1, 0));
    assert_eq!((&created["requestId"], &created["amount"]), (&json!(id), &json!(PRICE)));
    assert!(created["orderInfo"].as_str().unwrap().contains(reference));
    // S0-77: whoever does not sign is not believed.
    assert!(momo.pay(&id));
    let paid = momo.notice(&id);
    let mut forged = signed(paid.clone());
    forged["transId"] = json!(1);
    for unsigned in [&paid, &forged] {
        let answer = server.tell(unsigned).await.problem(401, "invalid_signature");
        assert!(!answer.header("www-authenticate").is_empty());
    }
    let mut nameless = signed(paid.clone());
    nameless.as_object_mut().unwrap().remove("transId");
    assert_eq!(server.tell(&nameless).await.pointers(), ["/transId"]);
    assert_eq!(server.order_now(&order.id).await["status"], "CONFIRMED");
    let notice = signed(paid);
    for answer in parallel(100, |_| server.tell(&notice)).await {
        assert_eq!(answer.expect(204).raw(), "");
    }
    // S0-79, S0-80.
    server.order_eventually(&order.id, "SHIPPED").await;
    server.tell(&notice).await.expect(204);
    server.at_rest().await;
    let events = server.events_of(&order.correlation_id).await;
    let captured = data_of(&events, "payment.captured");
    assert_eq!(captured["transaction_id"], order.id.as_str());
    assert_eq!((&captured["payment_id"], &captured["amount"]), (&json!(id), &json!(PRICE)));
    let session = momo.session(&id).unwrap();
    assert_eq!(captured["provider_reference"], session.trans_id.to_string());
    let completed = server.event("PaymentCompleted", &order.correlation_id).await;
    assert_eq!(completed["data"], *captured);
    assert_eq!((count(&server, "payment.captured").await, session.kept()), (1, PRICE));
    assert_eq!(server.history(&order.id).await, ["PENDING", "CONFIRMED", "PAID", "SHIPPED"]);
    assert_eq!(server.escrow(&order.id).await["balance"], PRICE);
    for line in server.log() {
        assert!(!line.contains(SECRET_KEY), "the secret is in the log: {line}");
    }
    server.finish().await;
}

/// S0-78: what does not fit changes nothing, and somebody hears of it.
#[tokio::test]
async fn money_that_does_not_fit_leaves_the_order_as_it_is() {
    let momo = MoMo::start().await;
    let (server, sale) = sale(&momo).await;
    payable(&server, &sale.order).await;
    let id = payment_of(&sale.order);
    assert!(momo.pay(&id));
    let mut less = momo.notice(&id);
    less["amount"] = json!(PRICE - 1);
    let mut other = momo.notice(&id);
    other["requestId"] = json!("somebody-elses");
    other["transId"] = json!(17);
    for notice in [&less, &less, &other] {
        server.tell(&signed(notice.clone())).await.expect(204);
    }
    let mut nobodys = momo.notice(&id);
    nobodys["orderId"] = json!("019ac0de-0000-7000-8000-000000000000");
    server.tell(&signed(nobodys)).await.expect(204);
    server.at_rest().await;
    assert_eq!(server.order_now(&sale.order.id).await["status"], "CONFIRMED");
    let rejected = server.events("eventType=PaymentRejected").await;
    let reasons: Vec<_> = rejected.iter().map(|event| &event["data"]["reason"]).collect();
    assert_eq!(reasons, ["amount_mismatch", "request_mismatch"]);
    assert_eq!(rejected[0]["data"]["expected_amount"], PRICE);
    assert_eq!(rejected[0]["data"]["amount"], PRICE - 1);
    let admins = server.admin().get("/api/v1/notifications?audience=admin").await.expect(200);
    let told = admins.items().iter().filter(|of| of["template"] == "payment_rejected").count();
    assert_eq!(told, 2);
    // The right one still comes.
    server.tell(&signed(momo.notice(&id))).await.expect(204);
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    server.at_rest().await;
    server.finish().await;
}

/// S0-68, X26: whether there is enough in the wallet is MoMo's to say.
#[tokio::test]
async fn an_order_that_momo_does_not_pay_gives_the_stock_back() {
    let momo = MoMo::start().await;
    let (server, sale) = sale(&momo).await;
    payable(&server, &sale.order).await;
    let id = payment_of(&sale.order);
    assert!(momo.fail(&id, 1001));
    server.tell(&signed(momo.notice(&id))).await.expect(204);
    server.order_eventually(&sale.order.id, "PAYMENT_FAILED").await;
    server.at_rest().await;
    let failed = server.event("PaymentFailed", &sale.order.correlation_id).await;
    assert_eq!(failed["data"]["reason"], "insufficient_funds");
    server.event("OrderPaymentFailed", &sale.order.correlation_id).await;
    assert_eq!(server.stock(&sale.listing_id).await, (1, 0, 0));
    assert_eq!((momo.session(&id).unwrap().kept(), momo.called("refund")), (0, 0));
    server.finish().await;
}

/// MoMo may tell nothing, or nothing that helps: it is asked.
#[tokio::test]
async fn a_payment_is_asked_after_when_nobody_tells() {
    let momo = MoMo::start().await;
    let (server, sale) = sale(&momo).await;
    payable(&server, &sale.order).await;
    let id = payment_of(&sale.order);
    server.advance_clock(61).await;
    eventually("MoMo to be asked", || async { (momo.called("query") == 1).then_some(()) }).await;
    server.at_rest().await;
    assert_eq!(server.order_now(&sale.order.id).await["payment"]["status"], "INITIATED");
    assert!(momo.pay(&id));
    // Nothing that is known now: neither lost nor believed, but asked after.
    let trouble = [Trouble::Refused(503), Trouble::Unheard, Trouble::Code(99), Trouble::Mixed];
    momo.trouble("query", &trouble);
    for (minutes, asked) in [(4, 2), (10, 3), (15, 4)] {
        server.advance_clock(minutes * 60 + 1).await;
        let what = format!("MoMo to be asked {asked} times");
        eventually(&what, || async { (momo.called("query") == asked).then_some(()) }).await;
        server.at_rest().await;
    }
    assert_eq!(server.order_now(&sale.order.id).await["status"], "CONFIRMED");
    // A notice whose code decides nothing has it asked after at once, and once.
    let mut vague = momo.notice(&id);
    vague["resultCode"] = json!(99);
    for _ in 0..2 {
        server.tell(&signed(vague.clone())).await.expect(204);
    }
    server.at_rest().await;
    assert_eq!(momo.called("query"), 5);
    vague["resultCode"] = json!(12_345);
    server.tell(&signed(vague)).await.expect(204);
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    server.at_rest().await;
    assert_eq!((momo.called("create"), momo.session(&id).unwrap().kept()), (1, PRICE));
    server.finish().await;
}

/// S1-105: MoMo holds the money first and is told to take it, or to let it go.
#[tokio::test]
async fn money_that_is_held_is_taken_or_let_go() {
    let momo = MoMo::start().await;
    let server = momo.shop().with("MOMO_AUTO_CAPTURE", "false").start().await;
    let sale = server.sale(5, 1, "momo").await;
    payable(&server, &sale.order).await;
    assert_eq!(momo.last("create")["autoCapture"], json!(false));
    let id = payment_of(&sale.order);
    assert!(momo.hold(&id));
    for _ in 0..2 {
        server.tell(&signed(momo.notice(&id))).await.expect(204);
    }
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    server.at_rest().await;
    let confirmed = momo.last("confirm");
    assert_eq!((momo.called("confirm"), &confirmed["requestType"]), (1, &json!("capture")));
    let authorized = server.event("payment.authorized", &sale.order.correlation_id).await;
    assert_eq!(authorized["data"]["amount"], PRICE);
    assert_eq!(authorized["data"]["payment_id"], id.as_str());
    assert_eq!(momo.session(&id).unwrap().kept(), PRICE);
    assert_eq!(count(&server, "payment.captured").await, 1);
    // Nobody tells, and the answer to the capture is lost: it is asked after, and taken once.
    let order = async || {
        let order = server.place_order(&sale.buyer.client, &sale.listing_id, 1, "momo").await;
        payable(&server, &order).await;
        order
    };
    let quiet = order().await;
    assert!(momo.hold(&payment_of(&quiet)));
    momo.trouble("confirm", &[Trouble::Unsaid]);
    server.advance_clock(61).await;
    payment_is(&server, &quiet, "AUTHORIZED").await;
    server.advance_clock(61).await;
    server.order_eventually(&quiet.id, "SHIPPED").await;
    assert_eq!(momo.session(&payment_of(&quiet)).unwrap().kept(), PRICE);
    assert_eq!(momo.called("confirm"), 2);
    // Off before it was taken: let go, so that nothing has to go back.
    let regretted = order().await;
    let regretted_id = payment_of(&regretted);
    assert!(momo.hold(&regretted_id));
    let path = format!("/api/v1/orders/{}/cancel", regretted.id);
    sale.buyer.client.post(&path, &json!({})).await.expect(200);
    payment_is(&server, &regretted, "VOIDED").await;
    assert_eq!(momo.last("confirm")["requestType"], "cancel");
    // Agreed to when nobody wants it any more.
    let late = order().await;
    server.advance_clock(36 * 60).await;
    payment_is(&server, &late, "VOIDED").await;
    let late_id = payment_of(&late);
    assert!(momo.hold(&late_id));
    server.tell(&signed(momo.notice(&late_id))).await.expect(204);
    server.event("payment.closed", &late.correlation_id).await;
    for id in [regretted_id, late_id] {
        assert_eq!(momo.session(&id).unwrap().standing, Standing::Failed(1003));
    }
    server.at_rest().await;
    assert_eq!((momo.called("confirm"), momo.called("refund")), (4, 0));
    server.finish().await;
}

/// The question after a hold that nobody wants may get no answer: it is asked again.
#[tokio::test]
async fn what_is_held_for_a_closed_payment_is_let_go_in_the_end() {
    let momo = MoMo::start().await;
    let server = momo.shop().with("MOMO_AUTO_CAPTURE", "false").start().await;
    let sale = server.sale(1, 1, "momo").await;
    payable(&server, &sale.order).await;
    let id = payment_of(&sale.order);
    server.advance_clock(36 * 60).await;
    payment_is(&server, &sale.order, "VOIDED").await;
    server.at_rest().await;
    server.advance_clock(25 * 60 * 60).await;
    let closed = server.event("payment.closed", &sale.order.correlation_id).await;
    assert_eq!(closed["data"]["reason"], "not_paid_in_time");
    server.at_rest().await;
    assert!(momo.hold(&id));
    momo.trouble("confirm", &[Trouble::Unheard]);
    server.tell(&signed(momo.notice(&id))).await.expect(204);
    eventually("a try to let it go", || async { (momo.called("confirm") == 1).then_some(()) })
        .await;
    server.at_rest().await;
    let first = momo.last("confirm");
    assert_eq!(momo.session(&id).unwrap().standing, Standing::Held);
    server.advance_clock(60 * 60).await;
    eventually("it to be let go", || async {
        (momo.session(&id).unwrap().standing == Standing::Failed(1003)).then_some(())
    })
    .await;
    server.at_rest().await;
    let second = momo.last("confirm");
    assert_eq!(
        (&first["requestType"], &second["requestType"]),
        (&json!("cancel"), &json!("cancel"))
    );
    assert_eq!(first["requestId"], second["requestId"], "a repeat is the same request");
    assert_eq!((count(&server, "payment.closed").await, momo.called("confirm")), (2, 2));
    let asked = momo.calls();
    server.advance_clock(3 * 60 * 60).await;
    server.at_rest().await;
    assert_eq!(momo.calls(), asked, "nothing is open any more");
    server.finish().await;
}

/// What MoMo holds or has taken depends on what it was told when the payment began.
#[tokio::test]
async fn a_payment_is_taken_as_it_was_begun_whatever_is_set_meanwhile() {
    let momo = MoMo::start().await;
    let mut server = momo.shop().with("MOMO_AUTO_CAPTURE", "false").start().await;
    let sale = server.sale(2, 1, "momo").await;
    payable(&server, &sale.order).await;
    server.terminate().await;
    server.set("MOMO_AUTO_CAPTURE", "true");
    server.start_again().await;
    let id = payment_of(&sale.order);
    assert!(momo.hold(&id));
    server.tell(&signed(momo.notice(&id))).await.expect(204);
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    assert_eq!((momo.called("confirm"), momo.session(&id).unwrap().kept()), (1, PRICE));
    let prompt = server.place_order(&sale.buyer.client, &sale.listing_id, 1, "momo").await;
    payable(&server, &prompt).await;
    assert_eq!(momo.last("create")["autoCapture"], json!(true));
    server.terminate().await;
    server.set("MOMO_AUTO_CAPTURE", "false");
    server.start_again().await;
    // With what was taken at once there is nothing left to do.
    let id = payment_of(&prompt);
    assert!(momo.hold(&id));
    server.tell(&signed(momo.notice(&id))).await.expect(204);
    server.order_eventually(&prompt.id, "SHIPPED").await;
    server.at_rest().await;
    assert_eq!((momo.called("confirm"), count(&server, "payment.authorized").await), (1, 1));
    server.finish().await;
}

/// Whoever takes MoMo away while a payment by it is open does not hold up everybody else's.
#[tokio::test]
async fn payments_of_others_go_on_where_momo_is_not_set_up_any_more() {
    let momo = MoMo::start().await;
    let mut server = momo.shop().start().await;
    let sale = server.sale(2, 1, "momo").await;
    payable(&server, &sale.order).await;
    server.terminate().await;
    let gone = server.unset("MOMO_");
    server.start_again().await;
    server.advance_clock(61).await;
    server.logged(&["set MOMO_* again"]).await;
    let order = server.place_order(&sale.buyer.client, &sale.listing_id, 1, "sandbox").await;
    server.order_eventually(&order.id, "SHIPPED").await;
    assert_eq!(server.circuit("payment-gateway").await["state"], "closed");
    server.at_rest().await;
    assert!(server.letters(None).await.is_empty());
    assert_eq!(momo.called("query"), 0);
    // Nothing is lost: it goes on when it is set up again.
    server.terminate().await;
    for (name, value) in &gone {
        server.set(name, value);
    }
    server.start_again().await;
    let id = payment_of(&sale.order);
    assert!(momo.pay(&id));
    server.tell(&signed(momo.notice(&id))).await.expect(204);
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    server.at_rest().await;
    server.finish().await;
}

/// What is off before it was sent is not sent.
#[tokio::test]
async fn an_order_that_was_cancelled_meanwhile_is_not_charged() {
    let momo = MoMo::start().await;
    let server = momo.shop().start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 1).await;
    server.pause("payment-gateway").await;
    let order = server.place_order(&bea.client, &listing, 1, "momo").await;
    server.await_event("payment.initiated", &order.correlation_id).await;
    let path = format!("/api/v1/orders/{}/cancel", order.id);
    bea.client.post(&path, &json!({})).await.expect(200);
    eventually("it to be given up", || async {
        (count(&server, "payment.void_requested").await == 1).then_some(())
    })
    .await;
    server.resume("payment-gateway").await;
    payment_is(&server, &order, "VOIDED").await;
    server.at_rest().await;
    assert_eq!((momo.called("create"), momo.called("refund")), (0, 0));
    assert_eq!(server.stock(&listing).await, (1, 0, 0));
    server.finish().await;
}

/// A final failure after success undoes nothing, and somebody hears of it.
#[tokio::test]
async fn a_failure_that_is_told_after_the_money_came_is_somebodys_to_see() {
    let momo = MoMo::start().await;
    let (server, sale) = sale(&momo).await;
    payable(&server, &sale.order).await;
    let id = payment_of(&sale.order);
    assert!(momo.pay(&id));
    let paid = momo.notice(&id);
    server.tell(&signed(paid.clone())).await.expect(204);
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    let mut failed = paid;
    failed["resultCode"] = json!(1002);
    let mut others = failed.clone();
    others["transId"] = json!(17);
    for notice in [&others, &failed, &failed] {
        server.tell(&signed(notice.clone())).await.expect(204);
    }
    server.at_rest().await;
    let rejected = server.events("eventType=payment.rejected").await;
    let reasons: Vec<_> = rejected.iter().map(|event| &event["data"]["reason"]).collect();
    assert_eq!(reasons, ["failed_after_capture"]);
    let admins = server.admin().get("/api/v1/notifications?audience=admin").await.expect(200);
    assert!(admins.items().iter().any(|of| of["template"] == "payment_rejected"), "{admins:?}");
    assert_eq!(server.order_now(&sale.order.id).await["status"], "SHIPPED");
    assert_eq!((momo.called("refund"), momo.session(&id).unwrap().kept()), (0, PRICE));
    server.finish().await;
}

/// S1-176: one that is down is not asked for every payment, and found again by itself.
#[tokio::test]
async fn a_momo_that_is_down_is_left_alone_until_it_answers() {
    let momo = MoMo::start().await;
    let server = momo.shop().start().await;
    let sale = server.sale(10, 1, "momo").await;
    payable(&server, &sale.order).await;
    let order = async || server.place_order(&sale.buyer.client, &sale.listing_id, 1, "momo").await;
    let circuit = async || server.circuit("momo").await;
    assert_eq!(server.circuit("payment-gateway").await["kind"], "subscription");
    let well = circuit().await;
    assert_eq!((&well["kind"], &well["state"]), (&json!("provider"), &json!("closed")));
    assert_eq!((&well["failures"], &well["last_error"]), (&json!(0), &Value::Null));
    for operation in ["create", "query"] {
        momo.trouble(operation, &[Trouble::Refused(503); 1_000]);
    }
    let before = momo.calls();
    // Each is begun, and asked after at once because nobody knows what became of that.
    let orders = [order().await, order().await];
    eventually("four calls without an answer", || async {
        (circuit().await["failures"] == 4).then_some(())
    })
    .await;
    assert_eq!((circuit().await["state"].clone(), momo.calls()), (json!("closed"), before + 4));
    order().await;
    let open = eventually("the circuit to open", || async {
        let now = circuit().await;
        (now["state"] == "open").then_some(now)
    })
    .await;
    assert!(open["failures"].as_u64().unwrap() >= 5, "{open}");
    assert!(open["last_error"].as_str().unwrap().contains("503"), "{open}");
    assert!(open["next_probe_at"].is_string());
    // Nobody has to see to what is not asked meanwhile: it is asked after like any other.
    let late = order().await;
    for order in orders.iter().chain([&late]) {
        payment_is(&server, order, "UNKNOWN").await;
    }
    server.at_rest().await;
    momo.calm();
    // Any question is a probe: here what MoMo tells of the first payment decides nothing.
    let mut vague = momo.notice(&payment_of(&sale.order));
    let codes = std::cell::Cell::new(10_000);
    eventually("the circuit to close", || {
        codes.set(codes.get() + 1);
        vague["resultCode"] = json!(codes.get());
        let notice = signed(vague.clone());
        let (server, circuit) = (&server, &circuit);
        async move {
            server.tell(&notice).await.expect(204);
            (circuit().await["state"] == "closed").then_some(())
        }
    })
    .await;
    let id = payment_of(&late);
    server.advance_clock(61).await;
    eventually("the last of them to be begun", || async { momo.session(&id) }).await;
    assert!(momo.pay(&id));
    server.tell(&signed(momo.notice(&id))).await.expect(204);
    server.order_eventually(&late.id, "SHIPPED").await;
    assert_eq!(momo.session(&id).unwrap().kept(), PRICE);
    assert!(server.letters(None).await.is_empty());
    server.finish().await;
}

#[tokio::test]
async fn a_payment_whose_beginning_was_lost_is_begun_once() {
    let momo = MoMo::start().await;
    let server = momo.shop().start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 10).await;
    for trouble in [
        Trouble::Refused(503),
        Trouble::Unheard,
        Trouble::Unsaid,
        Trouble::Garbled,
        Trouble::Masked(500),
        Trouble::Late,
        Trouble::Code(43),
        Trouble::Mixed,
    ] {
        momo.trouble("create", &[trouble]);
        let order = server.place_order(&bea.client, &listing, 1, "momo").await;
        let id = payment_of(&order);
        let now = payable(&server, &order).await;
        assert_eq!(now["payment"]["status"], "UNKNOWN", "{trouble:?}");
        assert!(momo.pay(&id), "{trouble:?}");
        server.tell(&signed(momo.notice(&id))).await.expect(204);
        server.order_eventually(&order.id, "SHIPPED").await;
        assert_eq!(momo.session(&id).unwrap().kept(), PRICE, "{trouble:?}");
    }
    // Whatever is refused outright ends there.
    momo.trouble("create", &[Trouble::Code(22)]);
    let order = server.place_order(&bea.client, &listing, 1, "momo").await;
    server.order_eventually(&order.id, "PAYMENT_FAILED").await;
    server.at_rest().await;
    assert_eq!((momo.unsigned(), server.stock(&listing).await), (0, (2, 0, 8)));
    server.finish().await;
}

/// An unpaid order ends with its hold; money that comes after that goes back by itself.
#[tokio::test]
async fn late_money_goes_back_by_itself() {
    let momo = MoMo::start().await;
    let server = momo.shop().start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 3).await;
    let told = server.place_order(&bea.client, &listing, 1, "momo").await;
    let untold = server.place_order(&bea.client, &listing, 1, "momo").await;
    let never = server.place_order(&bea.client, &listing, 1, "momo").await;
    for order in [&told, &untold, &never] {
        payable(&server, order).await;
    }
    server.advance_clock(36 * 60).await;
    for order in [&told, &untold, &never] {
        server.order_eventually(&order.id, "CANCELLED").await;
        let voided = payment_is(&server, order, "VOIDED").await;
        assert_eq!(voided["provider"], "momo");
    }
    server.at_rest().await;
    assert_eq!(server.stock(&listing).await, (3, 0, 0));
    for order in [&told, &untold] {
        assert!(momo.pay(&payment_of(order)));
    }
    server.tell(&signed(momo.notice(&payment_of(&told)))).await.expect(204);
    payment_is(&server, &told, "REFUNDED").await;
    assert_eq!(server.order_now(&untold.id).await["payment"]["status"], "VOIDED");
    server.advance_clock(61 * 60).await;
    payment_is(&server, &untold, "REFUNDED").await;
    for order in [&told, &untold] {
        let session = momo.session(&payment_of(order)).unwrap();
        assert_eq!((session.kept(), session.given_back()), (0, 1));
        assert_eq!(server.order_now(&order.id).await["status"], "CANCELLED");
    }
    // The page that nobody paid is closed in the end, and not asked after any more.
    momo.expire();
    server.advance_clock(61 * 60).await;
    let closed = server.event("payment.closed", &never.correlation_id).await;
    assert_eq!(closed["data"]["reason"], "payment_expired");
    server.at_rest().await;
    let asked = momo.called("query");
    server.advance_clock(3 * 60 * 60).await;
    server.at_rest().await;
    assert_eq!((momo.called("query"), momo.called("refund")), (asked, 2));
    assert_eq!(count(&server, "payment.refunded").await, 2);
    server.finish().await;
}

/// Cancelled while MoMo has the money, or holds it, and nobody has told.
#[tokio::test]
async fn a_cancelled_order_keeps_no_money() {
    let momo = MoMo::start().await;
    let server = momo.shop().with("MOMO_AUTO_CAPTURE", "false").start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 3).await;
    let mut orders = Vec::new();
    for (paid, status) in [(true, "REFUNDED"), (false, "VOIDED")] {
        let order = server.place_order(&bea.client, &listing, 1, "momo").await;
        payable(&server, &order).await;
        let id = payment_of(&order);
        assert!(if paid { momo.pay(&id) } else { momo.hold(&id) });
        // MoMo cannot be reached just then.
        momo.trouble("query", &[Trouble::Refused(503)]);
        let path = format!("/api/v1/orders/{}/cancel", order.id);
        bea.client.post(&path, &json!({})).await.expect(200);
        server.at_rest().await;
        orders.push((order, status));
    }
    server.advance_clock(61).await;
    for (order, status) in &orders {
        payment_is(&server, order, status).await;
        let session = momo.session(&payment_of(order)).unwrap();
        assert_eq!(session.kept(), 0, "{session:?}");
    }
    server.at_rest().await;
    let held = momo.session(&payment_of(&orders[1].0)).unwrap();
    assert_eq!((held.standing, momo.called("confirm")), (Standing::Failed(1003), 1));
    assert_eq!(server.stock(&listing).await, (3, 0, 0));
    server.finish().await;
}

/// S1-72: one refund, whatever becomes of the calls.
#[tokio::test]
async fn money_goes_back_once_whatever_momo_does() {
    let momo = MoMo::start().await;
    let server = momo.shop().start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, 20).await;
    let mut orders = Vec::new();
    for trouble in [
        Trouble::Refused(503),
        Trouble::Unheard,
        Trouble::Unsaid,
        Trouble::Garbled,
        Trouble::Late,
        Trouble::Code(7000),
        Trouble::Code(1080),
        Trouble::Mixed,
    ] {
        let order = server.place_order(&bea.client, &listing, 1, "momo").await;
        payable(&server, &order).await;
        assert!(momo.pay(&payment_of(&order)));
        momo.trouble("refund", &[trouble]);
        let path = format!("/api/v1/orders/{}/cancel", order.id);
        bea.client.post(&path, &json!({})).await.expect(200);
        server.at_rest().await;
        orders.push(order);
    }
    server.advance_clock(61).await;
    server.at_rest().await;
    let failed = server.events("eventType=payment.refund_failed").await;
    assert_eq!(failed.len(), 1, "{failed:#?}");
    server.advance_clock(61 * 60).await;
    for order in &orders {
        payment_is(&server, order, "REFUNDED").await;
        let session = momo.session(&payment_of(order)).unwrap();
        assert_eq!((session.kept(), session.given_back()), (0, 1), "{session:?}");
    }
    server.at_rest().await;
    assert_eq!(count(&server, "payment.refunded").await, orders.len());
    server.finish().await;
}

/// A paid order is cancelled; its payment's id. `trouble` is what becomes of the refund.
async fn wanted_back(server: &Server, momo: &MoMo, sale: &Sale, trouble: &[Trouble]) -> String {
    payable(server, &sale.order).await;
    let id = payment_of(&sale.order);
    assert!(momo.pay(&id));
    momo.trouble("refund", trouble);
    let path = format!("/api/v1/orders/{}/cancel", sale.order.id);
    sale.buyer.client.post(&path, &json!({})).await.expect(200);
    eventually("MoMo to be asked for the money", || async {
        (momo.called("refund") == 1).then_some(())
    })
    .await;
    server.at_rest().await;
    id
}

/// The letter of a refund that is given up for this reason.
async fn letter_of(server: &Server, reason: &str) -> Value {
    let letter = eventually("a dead letter", || async {
        server.letters(Some("payment-gateway")).await.first().cloned()
    })
    .await;
    assert!(letter["error"].to_string().contains(reason), "{letter}");
    letter
}

async fn retry(server: &Server, letter: &Value) {
    let (partition, key) = (&letter["partition"], letter["key"].as_str().unwrap());
    let path = format!("/api/v1/dlq/payment-gateway/{partition}/{key}/retry");
    server.admin().post(&path, &json!({})).await.expect(200);
}

/// An error that MoMo itself does not know is final where its list has it. That of somebody else's
/// refund concerns nobody.
#[tokio::test]
async fn an_unknown_error_of_a_refund_is_final_and_somebodys_to_see() {
    let momo = MoMo::start().await;
    let (server, sale) = sale(&momo).await;
    payable(&server, &sale.order).await;
    momo.lists(&payment_of(&sale.order), "by-hand", PRICE, 99);
    let id = wanted_back(&server, &momo, &sale, &[Trouble::Code(99)]).await;
    let refund_id = momo.last("refund")["orderId"].as_str().unwrap().to_owned();
    momo.lists(&id, &refund_id, PRICE, 99);
    server.advance_clock(61).await;
    let letter = letter_of(&server, "unknown_error").await;
    assert_eq!(momo.called("refund"), 1);
    retry(&server, &letter).await;
    payment_is(&server, &sale.order, "REFUNDED").await;
    server.at_rest().await;
    assert_ne!(momo.last("refund")["orderId"], refund_id.as_str());
    assert_eq!(momo.session(&id).unwrap().given_back(), 1);
    server.finish().await;
}

/// MoMo may not be able to say what becomes of a refund; after a day somebody must look.
#[tokio::test]
async fn a_refund_that_stays_unclear_is_somebodys_to_see_after_a_day() {
    let momo = MoMo::start().await;
    let server = momo.shop().with("RETRY_DELAY_MS", 20).start().await;
    let sale = server.sale(1, 1, "momo").await;
    let id = wanted_back(&server, &momo, &sale, &[Trouble::Code(10); 20]).await;
    server.advance_clock(61).await;
    eventually("it to be asked again", || async { (momo.called("refund") == 2).then_some(()) })
        .await;
    server.at_rest().await;
    assert!(server.letters(None).await.is_empty(), "it may be a matter of hours");
    server.advance_clock(25 * 60 * 60).await;
    let letter = letter_of(&server, "refund_unclear").await;
    let failed = server.events("eventType=payment.refund_failed").await;
    assert_eq!(failed[0]["data"]["next_attempt_at"], json!(null));
    // A retry that gets no answer leaves the letter: nobody else asks any more.
    momo.calm();
    momo.trouble("query", &[Trouble::Refused(503); 4]);
    retry(&server, &letter).await;
    let letters = server.letters(Some("payment-gateway")).await;
    assert_eq!((letters.len(), &letters[0]["class"]), (1, &json!("transient")), "{letters:?}");
    momo.calm();
    retry(&server, &letter).await;
    payment_is(&server, &sale.order, "REFUNDED").await;
    server.at_rest().await;
    assert_eq!(momo.session(&id).unwrap().given_back(), 1);
    server.finish().await;
}

/// An answer that says another sum is none: the list is looked at.
#[tokio::test]
async fn a_refund_of_another_sum_is_looked_into() {
    let momo = MoMo::start().await;
    let (server, sale) = sale(&momo).await;
    let id = wanted_back(&server, &momo, &sale, &[Trouble::Miscounted]).await;
    assert_eq!(count(&server, "payment.refunded").await, 0);
    server.advance_clock(61).await;
    payment_is(&server, &sale.order, "REFUNDED").await;
    server.at_rest().await;
    assert_eq!((momo.called("refund"), momo.session(&id).unwrap().kept()), (1, 0));
    server.finish().await;
}

/// A refund that MoMo refuses is somebody's to see to, and made when they have.
#[tokio::test]
async fn a_refused_refund_waits_for_somebody() {
    let momo = MoMo::start().await;
    let (server, sale) = sale(&momo).await;
    payable(&server, &sale.order).await;
    let id = payment_of(&sale.order);
    assert!(momo.pay(&id));
    momo.trouble("refund", &[Trouble::Code(1088)]);
    let path = format!("/api/v1/orders/{}/cancel", sale.order.id);
    sale.buyer.client.post(&path, &json!({})).await.expect(200);
    let letter = eventually("a dead letter", || async {
        server.letters(Some("payment-gateway")).await.first().cloned()
    })
    .await;
    assert!(letter["error"].to_string().contains("not_refundable"), "{letter}");
    let failed = server.events("eventType=payment.refund_failed").await;
    assert_eq!(failed[0]["data"]["next_attempt_at"], json!(null));
    let told = eventually("administrators to be told", || async {
        server.caught_up("notifications-view").await;
        let path = "/api/v1/notifications?audience=admin&limit=200";
        let page = server.admin().get(path).await.expect(200);
        page.items().iter().find(|of| of["template"] == "refund_refused").cloned()
    })
    .await;
    assert_eq!(told["event_id"], failed[0]["event_id"], "{told}");
    retry(&server, &letter).await;
    payment_is(&server, &sale.order, "REFUNDED").await;
    server.at_rest().await;
    assert_eq!(momo.session(&id).unwrap().given_back(), 1);
    server.finish().await;
}

#[tokio::test]
async fn what_momo_does_not_pay_is_refused_at_the_door() {
    let momo = MoMo::start().await;
    let server = momo.shop().start().await;
    let (sam, bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    for (amount, currency) in [(999, "VND"), (50_000_001, "VND"), (5_000, "USD")] {
        let mut offer = server.offer(1).await;
        offer["price"] = json!({ "amount": amount, "currency": currency });
        let made = sam.client.post("/api/v1/listings", &offer).await.expect(201);
        let wish = wish(&made.text("listing_id"), 1, "momo");
        let answer = bea.client.post("/api/v1/orders", &wish).await;
        assert_eq!(answer["errors"][0]["code"], "amount_not_payable", "{amount} {currency}");
        assert_eq!(answer.pointers(), ["/payment_method"]);
    }
    assert_eq!(momo.called("create"), 0);
    server.finish().await;
    // Where it is not set up nobody can pay by it, and nobody tells.
    let plain = Server::start().await;
    let (sam, bea) = (plain.seller("Sam").await, plain.buyer("Bea").await);
    let listing = plain.listing(&sam, 1).await;
    let answer = bea.client.post("/api/v1/orders", &wish(&listing, 1, "momo")).await;
    assert_eq!(answer.pointers(), ["/payment_method"]);
    plain.tell(&json!({})).await.problem(404, "not_found");
    plain.finish().await;
}
