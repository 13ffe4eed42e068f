//! Many payments by a MoMo of which about every other call goes wrong, by buyers who pay, refuse,
//! change their minds, or do nothing, and notices that come twice, late, changed or not at all. After it
//! all the books of both must agree: nobody is charged or given back twice, no paid order is
//! unrecorded, and nobody's money is kept for nothing.
//!
//! `SOUK_MOMO_PAYMENTS` says how many (200), `SOUK_MOMO_SEED` with which luck.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;

use crate::support::momo::{MoMo, Standing, signed};
use crate::support::{Order, PRICE, Person, Server, eventually, parallel};

/// How many are under way at once.
const AT_ONCE: usize = 25;

/// What a buyer does, and what MoMo tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    /// Pays, and MoMo tells so often.
    PayTold(usize),
    /// Pays, and nobody tells.
    PayUntold,
    /// Pays, and what is told is forged or changed before the truth comes.
    PayMistold,
    /// Says no.
    Refuse,
    /// Does nothing.
    Nothing,
    /// Pays when the order is off.
    PayLate,
    /// Cancels, and pays all the same.
    CancelAndPay,
    /// Pays, and cancels before anybody tells.
    PayAndCancel,
}

fn drawn(random: &mut StdRng) -> Plan {
    match random.random_range(0..12) {
        0..=3 => Plan::PayTold(random.random_range(1..4)),
        4 => Plan::PayUntold,
        5 => Plan::PayMistold,
        6 => Plan::Refuse,
        7 => Plan::Nothing,
        8 | 9 => Plan::PayLate,
        10 => Plan::CancelAndPay,
        _ => Plan::PayAndCancel,
    }
}

struct Purchase {
    order: Order,
    payment_id: String,
    plan: Plan,
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// How large a part of it all is done at once, and `what` of each.
async fn each<'a, F>(all: &'a [Purchase], what: impl Fn(&'a Purchase) -> F)
where
    F: Future<Output = ()>,
{
    for some in all.chunks(AT_ONCE) {
        parallel(some.len(), |index| what(&some[index])).await;
    }
}

async fn cancel(bea: &Person, order: &Order) {
    let path = format!("/api/v1/orders/{}/cancel", order.id);
    let answer = bea.client.post(&path, &json!({})).await;
    assert!([200, 409].contains(&answer.status()), "{answer:?}");
}

/// What happens while the order holds its stock.
async fn early(server: &Server, momo: &MoMo, bea: &Person, purchase: &Purchase) {
    let id = &purchase.payment_id;
    match purchase.plan {
        Plan::Nothing | Plan::PayLate => {}
        Plan::CancelAndPay => {
            cancel(bea, &purchase.order).await;
            momo.pay(id);
        }
        Plan::Refuse if momo.fail(id, 1006) => {
            server.tell(&signed(momo.notice(id))).await.expect(204);
        }
        Plan::Refuse => {}
        plan if momo.pay(id) => match plan {
            Plan::PayTold(times) => {
                let notice = signed(momo.notice(id));
                for answer in parallel(times, |_| server.tell(&notice)).await {
                    answer.expect(204);
                }
            }
            Plan::PayMistold => {
                let mut forged = signed(momo.notice(id));
                forged["amount"] = json!(PRICE + 1);
                server.tell(&forged).await.expect(401);
                let mut less = momo.notice(id);
                less["amount"] = json!(PRICE - 1);
                server.tell(&signed(less)).await.expect(204);
                let mut failed = momo.notice(id);
                failed["resultCode"] = json!(99);
                server.tell(&signed(failed)).await.expect(204);
            }
            Plan::PayAndCancel => cancel(bea, &purchase.order).await,
            _ => {}
        },
        // MoMo has not heard of it yet: there is nothing to pay.
        _ => {}
    }
}

#[tokio::test]
async fn the_books_agree_after_a_storm() {
    let payments = usize::try_from(number("SOUK_MOMO_PAYMENTS", 200)).unwrap();
    let seed = number("SOUK_MOMO_SEED", 2026);
    println!("{payments} payments with the seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let momo = MoMo::start().await;
    let mut server = momo.shop().start().await;
    let (sam, mut bea) = (server.seller("Sam").await, server.buyer("Bea").await);
    let listing = server.listing(&sam, u32::try_from(payments).unwrap()).await;
    momo.storm(seed);
    let mut all: Vec<Purchase> = Vec::new();
    // The server is killed once while orders are placed and paid.
    let killed_after = payments / 2;
    while all.len() < payments {
        let some = AT_ONCE.min(payments - all.len());
        if all.len().is_multiple_of(20 * AT_ONCE) {
            bea.log_in_again().await;
        }
        let client = &bea.client;
        let placed = parallel(some, |_| server.place_order(client, &listing, 1, "momo")).await;
        let before = all.len();
        all.extend(placed.into_iter().map(|order| {
            let payment_id = order.answer["payment"]["payment_id"].as_str().unwrap().to_owned();
            Purchase { order, payment_id, plan: drawn(&mut random) }
        }));
        if before < killed_after && all.len() >= killed_after {
            server.kill_9_and_start_again().await;
        }
        each(&all[before..], |purchase| early(&server, &momo, &bea, purchase)).await;
    }
    // Those whose order MoMo had not heard of when they wanted to pay try once more.
    server.at_rest().await;
    for minutes in [1, 4, 10] {
        server.advance_clock(minutes * 60 + 1).await;
        server.at_rest().await;
        if minutes == 1 {
            bea.log_in_again().await;
            each(&all, |purchase| early(&server, &momo, &bea, purchase)).await;
            // The clock must not move under a saga's feet: its steps have thirty seconds.
            server.at_rest().await;
        }
    }
    // Past the end of what is held.
    for minutes in [15, 7] {
        server.advance_clock(minutes * 60).await;
        server.at_rest().await;
    }
    for purchase in all.iter().filter(|purchase| purchase.plan == Plan::PayLate) {
        if momo.pay(&purchase.payment_id) && random.random_bool(0.5) {
            server.tell(&signed(momo.notice(&purchase.payment_id))).await.expect(204);
        }
    }
    server.at_rest().await;
    server.advance_clock(61 * 60).await;
    server.at_rest().await;
    momo.calm();
    momo.expire();
    // The clock that this test moves is not the one by which MoMo is tried again.
    eventually("MoMo to be asked again", || async {
        server.advance_clock(61 * 60).await;
        server.at_rest().await;
        (server.circuit("momo").await["state"] == "closed").then_some(())
    })
    .await;
    for _ in 0..4 {
        server.advance_clock(61 * 60).await;
        server.at_rest().await;
    }
    agree(&server, &momo, &listing, &all).await;
    server.finish().await;
}

/// Holds the server's books against MoMo's.
async fn agree(server: &Server, momo: &MoMo, listing: &str, all: &[Purchase]) {
    assert_eq!(momo.unsigned(), 0);
    let mut events = BTreeMap::new();
    for event_type in ["payment.captured", "payment.refunded"] {
        for event in server.events(&format!("eventType={event_type}")).await {
            let id = event["data"]["payment_id"].as_str().unwrap().to_owned();
            *events.entry((event_type, id)).or_insert(0) += 1;
        }
    }
    let (mut sold, mut refunds, mut statuses) = (0, 0, BTreeMap::new());
    for Purchase { order, payment_id, plan } in all {
        let now = server.order_now(&order.id).await;
        let (status, payment) = (now.text("status"), now["payment"]["status"].clone());
        let session = momo.session(payment_id);
        let what = format!("{plan:?}: {status}, payment {payment}, at MoMo {session:?}");
        let is_paid = session.as_ref().is_some_and(|of| of.standing == Standing::Paid);
        let kept = session.as_ref().map_or(0, |of| of.kept());
        let back = session.as_ref().map_or(0, |of| of.given_back());
        let counted = |event_type| events.get(&(event_type, payment_id.clone())).copied();
        let captured = counted("payment.captured").unwrap_or(0);
        let refunded = counted("payment.refunded").unwrap_or(0);
        assert!(back <= 1, "given back {back} times: {what}");
        assert_eq!(captured, usize::from(is_paid), "{what}");
        assert_eq!(refunded, back, "{what}");
        if status == "SHIPPED" {
            assert_eq!((kept, payment), (PRICE, json!("CAPTURED")), "{what}");
            sold += 1;
        } else {
            // FAILED is a purchase whose step was overtaken by the clock that this test moves.
            let off = ["CANCELLED", "PAYMENT_FAILED", "FAILED"];
            assert!(off.contains(&status.as_str()), "{what}");
            assert_eq!(kept, 0, "{what}");
            let over = if is_paid { &["REFUNDED"][..] } else { &["VOIDED", "FAILED"] };
            assert!(over.contains(&payment.as_str().unwrap_or("VOIDED")), "{what}");
        }
        refunds += back;
        *statuses.entry(status).or_insert(0) += 1;
    }
    let number = i64::try_from(all.len()).unwrap();
    assert_eq!(server.stock(listing).await, (number - sold, 0, sold));
    println!("{statuses:?}, {refunds} refunds, {} calls", momo.calls());
    assert!(sold > 0 && refunds > 0, "too few payments to say anything");
}
