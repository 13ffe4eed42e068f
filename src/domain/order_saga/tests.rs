use proptest::prelude::*;
use souk_actors::aggregate::Aggregate;
use souk_actors::event::EventPayload;
use souk_actors::testing::{folded, stored_event};

use super::*;
use crate::domain::payment::Outcome;
use crate::domain::testing::{
    BUYER, address, at, buyer, dong, listing, order, placed, snapshot, user,
};

const SANDBOX: &str = PaymentMethod::SANDBOX;

fn start() -> Fact {
    Fact::Placed(Box::new(placed(SagaDefinition::ReserveFirst, SANDBOX, 2)))
}

fn saga(facts: &[Fact]) -> OrderSaga {
    let mut all = vec![start()];
    all.extend_from_slice(facts);
    folded(all)
}

fn step(name: &str) -> &'static Step<OrderSaga> {
    RESERVE_FIRST.iter().find(|step| step.name == name).unwrap()
}

fn progress(name: &str, facts: &[Fact]) -> Progress {
    (step(name).progress)(&saga(facts))
}

fn names(commands: &[MarketCommand]) -> Vec<&'static str> {
    commands.iter().map(MarketCommand::name).collect()
}

fn failed(reason: &str) -> Progress {
    Progress::Failed(reason.to_owned())
}

#[test]
fn both_definitions_go_through_the_same_steps() {
    let names = |steps: &'static [Step<OrderSaga>]| -> Vec<_> {
        steps.iter().map(|step| (step.name, step.done_as)).collect()
    };
    let expected = [
        ("reserve", "INVENTORY_RESERVED"),
        ("confirm", "ORDER_CONFIRMED"),
        ("capture", "PAYMENT_COMPLETED"),
        ("pay", "ORDER_PAID"),
        ("ship", "FULFILLMENT_CREATED"),
        ("mark_shipped", "ORDER_SHIPPED"),
        ("confirmation", "COMPLETED"),
    ];
    assert_eq!(names(saga(&[]).steps()), expected);
    let other = Fact::Placed(Box::new(placed(SagaDefinition::PaymentFirst, SANDBOX, 1)));
    let steps = names(folded::<OrderSaga>([other]).steps());
    assert_eq!(steps[0].0, "capture");
    let mut sorted = (steps, expected.to_vec());
    sorted.0.sort_unstable();
    sorted.1.sort_unstable();
    assert_eq!(sorted.0, sorted.1);
    assert!(RESERVE_FIRST.iter().all(|step| step.optional == (step.name == "confirmation")));
}

#[test]
fn each_step_asks_for_what_it_needs() {
    let acts: Vec<_> =
        RESERVE_FIRST.iter().map(|step| names(&(step.act)(&saga(&[]), at(0)))).collect();
    assert_eq!(acts[0], ["ReserveInventory", "ReserveInventory", "OpenEscrow"]);
    assert_eq!(acts[1], ["ConfirmOrder"]);
    assert_eq!(acts[2], ["InitiatePayment"]);
    assert_eq!(acts[3], ["FundEscrow", "AllocateInventory", "AllocateInventory", "MarkOrderPaid"]);
    assert_eq!(acts[4], ["CreateShipment"]);
    assert_eq!(acts[5], ["MarkOrderShipped"]);
    assert_eq!(acts[6], ["RequestNotification"]);
}

#[test]
fn each_step_knows_its_way_back() {
    let undos: Vec<_> =
        RESERVE_FIRST.iter().map(|step| names(&(step.undo)(&saga(&[]), at(0)))).collect();
    assert_eq!(undos[0], ["ReleaseInventory", "ReleaseInventory", "RefundEscrow"]);
    assert_eq!(undos[1], [""; 0]);
    assert_eq!(undos[2], ["CancelPayment"]);
    assert_eq!(undos[3], ["RefundEscrow"]);
    assert_eq!(undos[4], ["CancelShipment"]);
    assert_eq!((undos[5].len(), undos[6].len()), (0, 0));
}

#[test]
fn commands_go_to_the_aggregates_of_the_order() {
    let targets = |name: &str| -> Vec<_> {
        let commands = (step(name).act)(&saga(&[]), at(0));
        commands.iter().map(|it| (it.aggregate_type(), it.target())).collect()
    };
    let order_id = order(1);
    assert_eq!(
        targets("reserve"),
        [
            ("listing", listing(0).uuid()),
            ("listing", listing(1).uuid()),
            ("escrow", EscrowId::of(order_id).uuid()),
        ]
    );
    assert_eq!(targets("confirm"), [("order", order_id.uuid())]);
    assert_eq!(targets("capture"), [("payment", PaymentId::of(order_id).uuid())]);
    assert_eq!(targets("ship"), [("shipment", ShipmentId::of(order_id).uuid())]);
    let told = NotificationId::of(Uuid::from_u128(77), CONFIRMATION_TEMPLATE, user(BUYER));
    assert_eq!(targets("confirmation"), [("notification", told.uuid())]);
}

#[test]
fn stock_is_held_at_the_price_the_buyer_saw_for_35_minutes() {
    let commands = (step("reserve").act)(&saga(&[]), at(0));
    let MarketCommand::Listing(_, ListingCommand::Reserve { unit_price, expires_at, quantity, .. }) =
        &commands[0]
    else {
        panic!("{commands:?}")
    };
    assert_eq!((*unit_price, *expires_at, *quantity), (dong(500), at(35 * 60), 2));
}

#[test]
fn reserving_is_done_when_every_listing_and_the_escrow_have_answered() {
    let all = [Fact::Reserved(listing(0)), Fact::Reserved(listing(1)), Fact::EscrowOpened];
    assert_eq!(progress("reserve", &all), Progress::Done);
    for missing in 0..all.len() {
        let mut some = all.to_vec();
        some.remove(missing);
        assert_eq!(progress("reserve", &some), Progress::Pending, "without {:?}", all[missing]);
    }
    let no = Fact::NotReserved(listing(1), ReservationFailure::InsufficientStock);
    assert_eq!(progress("reserve", &[all[0].clone(), no]), failed("insufficient_stock"));
    assert_eq!((step("reserve").progress)(&OrderSaga::default()), Progress::Pending);
}

#[test]
fn reserving_is_undone_when_nothing_is_held_anywhere() {
    let undone = |facts: &[Fact]| (step("reserve").undone)(&saga(facts));
    let ways = [
        Fact::Released(listing(1)),
        Fact::Expired(listing(1)),
        Fact::Barred(listing(1)),
        Fact::NotReserved(listing(1), ReservationFailure::NotActive),
    ];
    for second in ways {
        let facts = [Fact::Released(listing(0)), second, Fact::EscrowClosed];
        assert!(undone(&facts), "{facts:?}");
        assert!(!undone(&facts[..2]) && !undone(&facts[1..]), "{facts:?}");
    }
}

#[test]
fn the_other_steps_show_how_far_they_are() {
    let pending = ["confirm", "capture", "pay", "ship", "mark_shipped", "confirmation"];
    for name in pending {
        assert_eq!(progress(name, &[]), Progress::Pending, "{name}");
    }
    assert_eq!(progress("confirm", &[Fact::Confirmed]), Progress::Done);
    assert_eq!(progress("capture", &[Fact::Captured]), Progress::Done);
    assert_eq!(progress("capture", &[Fact::NotCaptured("no_funds".into())]), failed("no_funds"));
    assert_eq!(progress("capture", &[Fact::Voided]), failed("payment_voided"));
    let late = [Fact::NotCaptured("no_funds".into()), Fact::Captured];
    assert_eq!(progress("capture", &late), failed("no_funds"));
    assert_eq!(progress("ship", &[Fact::ShipmentCreated]), Progress::Done);
    let both = [Fact::ShipmentCreated, Fact::ShipmentCancelled];
    assert_eq!(progress("ship", &both), failed("shipment_cancelled"));
    assert_eq!(progress("mark_shipped", &[Fact::Shipped]), Progress::Done);
    assert_eq!(progress("confirmation", &[Fact::Told]), Progress::Done);
    assert_eq!(progress("confirmation", &[Fact::NotTold("bounced".into())]), failed("bounced"));
    let paid =
        [Fact::EscrowFunded, Fact::Allocated(listing(0)), Fact::Allocated(listing(1)), Fact::Paid];
    assert_eq!(progress("pay", &paid), Progress::Done);
    for missing in 0..paid.len() {
        let mut some = paid.to_vec();
        some.remove(missing);
        assert_eq!(progress("pay", &some), Progress::Pending, "without {:?}", paid[missing]);
    }
}

#[test]
fn the_way_back_waits_for_the_money() {
    let undone = |facts: &[Fact]| (step("capture").undone)(&saga(facts));
    assert!(!undone(&[]) && !undone(&[Fact::Captured]));
    assert!(undone(&[Fact::Voided]) && undone(&[Fact::NotCaptured("no".into())]));
    assert!(!undone(&[Fact::NotCaptured("no".into()), Fact::Captured]));
    assert!(!undone(&[Fact::Voided, Fact::Captured]));
    assert!(undone(&[Fact::Captured, Fact::Refunded]));
    assert!(!(step("pay").undone)(&saga(&[Fact::EscrowFunded])));
    assert!((step("pay").undone)(&saga(&[Fact::EscrowFunded, Fact::EscrowClosed])));
    assert!(!(step("ship").undone)(&saga(&[Fact::ShipmentCreated])));
    assert!((step("ship").undone)(&saga(&[Fact::ShipmentCancelled])));
    assert!((step("confirm").undone)(&saga(&[Fact::Confirmed])));
}

#[test]
fn steps_have_half_a_minute_and_buyers_longer_than_their_hold() {
    for step in RESERVE_FIRST {
        assert_eq!((step.time_limit)(&saga(&[])), Duration::from_secs(30), "{}", step.name);
        // What is shipped is not called off because the news of it is late.
        assert_eq!(step.retries_max > 0, step.name == "mark_shipped", "{}", step.name);
    }
    for method in [PaymentMethod::TEST_PENDING, PaymentMethod::MOMO] {
        let start = Fact::Placed(Box::new(placed(SagaDefinition::ReserveFirst, method, 1)));
        let limit = (step("capture").time_limit)(&folded([start]));
        assert_eq!(limit, Duration::from_secs(45 * 60));
        assert!(limit > HOLD_FOR);
    }
}

#[test]
fn an_end_of_the_hold_or_a_cancellation_turns_the_saga_back() {
    assert_eq!(saga(&[Fact::Released(listing(0))]).aborted(), None);
    assert_eq!(saga(&[Fact::Cancelled]).aborted().as_deref(), Some(ORDER_CANCELLED));
    let expired = saga(&[Fact::Expired(listing(0)), Fact::Cancelled]);
    assert_eq!(expired.aborted().as_deref(), Some(RESERVATION_EXPIRED));
    assert!((step("reserve").undone)(&saga(&[
        Fact::Expired(listing(0)),
        Fact::Expired(listing(1)),
        Fact::EscrowClosed,
    ])));
}

#[test]
fn the_order_hears_what_went_wrong_before_or_after_the_way_back() {
    let announced = |step, reason| names(&saga(&[]).announce(step, reason, at(0)));
    let concluded = |step, reason| names(&saga(&[]).conclude(step, reason, at(0)));
    let nothing: [&str; 0] = [];
    for reason in ["insufficient_stock", "timeout"] {
        assert_eq!(announced("reserve", reason), ["RejectOrder"]);
        assert_eq!(concluded("reserve", reason), nothing);
    }
    for reason in ["no_funds", "timeout"] {
        assert_eq!(announced("capture", reason), ["MarkOrderPaymentFailed"]);
        assert_eq!(concluded("capture", reason), nothing);
    }
    for step in ["reserve", "capture", "pay", "ship"] {
        assert_eq!(announced(step, RESERVATION_EXPIRED), ["CancelOrder"]);
        assert_eq!(concluded(step, RESERVATION_EXPIRED), nothing);
        assert_eq!(announced(step, ORDER_CANCELLED), nothing);
        assert_eq!(concluded(step, ORDER_CANCELLED), nothing);
    }
    for step in ["confirm", "pay", "ship", "mark_shipped"] {
        assert_eq!(announced(step, "timeout"), nothing);
        assert_eq!(concluded(step, "timeout"), ["FailOrder"]);
    }
}

fn event_fact(event_type: &str, aggregate_type: &str, data: Value) -> Option<(Uuid, Fact)> {
    let event = stored_event(event_type, aggregate_type, Uuid::from_u128(9), &data);
    OrderSaga::fact(&event).unwrap()
}

#[test]
fn only_the_owner_of_an_event_type_is_believed() {
    let data = serde_json::json!({ "order_id": order(1) });
    let captured = event_fact("payment.captured", "payment", data.clone());
    assert_eq!(captured, Some((order(1).uuid(), Fact::Captured)));
    assert_eq!(event_fact("payment.captured", "external", data.clone()), None);
    assert_eq!(event_fact("order.delivered", "order", data.clone()), None);
    assert_eq!(event_fact("notification.email.sent", "notification", data), None);
}

/// S0-111: what cannot be read is no fact, and not nothing either.
#[test]
fn what_cannot_be_read_is_an_error_where_it_says_something() {
    let told = |event_type: &str, major: u16, data: Value| {
        let mut event = stored_event(event_type, "order", Uuid::from_u128(9), &data);
        event.major = major;
        OrderSaga::fact(&event).map_err(|error| error.to_string())
    };
    let whole = || serde_json::json!({ "order_id": order(1) });
    assert_eq!(told("order.cancelled", 1, whole()), Ok(Some((order(1).uuid(), Fact::Cancelled))));
    let newer = told("order.cancelled", 99, whole()).unwrap_err();
    assert_eq!(newer, "unsupported event version: 99 of order.cancelled");
    let nameless = told("order.cancelled", 1, serde_json::json!({})).unwrap_err();
    assert_eq!(nameless, "the data of order.cancelled has no order_id that can be read");
    assert_eq!(told("order.delivered", 99, whole()), Ok(None), "it says nothing to the saga");
}

#[test]
fn a_shipment_that_a_dispute_called_off_is_not_the_sagas() {
    let cancelled = |reason: &str| {
        let data = serde_json::json!({ "order_id": order(1), "reason": reason });
        event_fact("shipment.cancelled", "shipment", data).map(|(_, fact)| fact)
    };
    assert_eq!(cancelled(ORDER_CANCELLED), Some(Fact::ShipmentCancelled));
    assert_eq!(cancelled(DISPUTE_RESOLVED), None);
}

/// Plays the runtime: sends the commands of each step to real aggregates, settles the payment as
/// `settle` says, and feeds every event back as it would be stored.
struct Market {
    saga: OrderSaga,
    order: Order,
    listings: BTreeMap<ListingId, Listing>,
    payment: Payment,
    escrow: Escrow,
    shipment: Shipment,
    notification: Notification,
    promotion: Promotion,
    seen: Vec<String>,
    facts: Vec<Fact>,
    now: Timestamp,
}

/// An event's type, and what the saga understands of it.
type Seen = (String, Option<(Uuid, Fact)>);

fn put<A: Aggregate>(
    aggregate: &mut A,
    id: Uuid,
    command: &A::Command,
) -> Result<Vec<Seen>, A::Rejection> {
    let events = aggregate.decide(command)?;
    Ok(events
        .iter()
        .map(|event| {
            aggregate.apply(event);
            let event_type = event.descriptor().event_type;
            let data: Value = serde_json::from_str(&event.encode()).unwrap();
            let stored = stored_event(event_type, A::TYPE, id, &data);
            (event_type.to_owned(), OrderSaga::fact(&stored).unwrap())
        })
        .collect())
}

impl Market {
    /// Two listings with `stock` units each, and an order for two of each.
    fn open(stock: u32, definition: SagaDefinition) -> Self {
        use crate::domain::caller::Role;
        use crate::domain::listing::{CategoryStanding, ListingStatus, NewListing};
        use crate::domain::order::{Placement, Wanted};
        use crate::domain::testing::SELLER;
        use crate::domain::user::VerificationStatus;

        let mut market = Self {
            saga: OrderSaga::default(),
            order: Order::default(),
            listings: BTreeMap::new(),
            payment: Payment::default(),
            escrow: Escrow::default(),
            shipment: Shipment::default(),
            notification: Notification::default(),
            promotion: Promotion::default(),
            seen: Vec::new(),
            facts: Vec::new(),
            now: at(0),
        };
        market.promote(user(SELLER));
        let mut items = Vec::new();
        for number in 0..2 {
            let listing_id = listing(number);
            let new = NewListing {
                caller: Caller::user(user(SELLER), [Role::Seller]),
                listing_id,
                seller_id: user(SELLER),
                seller_standing: Some(VerificationStatus::Verified),
                title: "A book".into(),
                description: "Read once.".into(),
                price: dong(500),
                category_id: crate::domain::ids::CategoryId::of_slug("books"),
                category_standing: CategoryStanding::Active,
                sku: None,
                quantity: stock,
                images: Vec::new(),
                images_max: 0,
                draft: false,
                now: at(0),
            };
            market.listings.insert(listing_id, Listing::default());
            market
                .send(MarketCommand::Listing(listing_id, ListingCommand::Create(Box::new(new))))
                .unwrap();
            items.push(Wanted {
                listing_id,
                seller_id: user(SELLER),
                status: ListingStatus::Active,
                sku: "SKU".into(),
                unit_price: dong(500),
                quantity: 2,
            });
        }
        let placement = Placement {
            caller: buyer(),
            order_id: order(1),
            items,
            delivery_address: address(),
            payment_method: PaymentMethod::new(SANDBOX),
            saga_definition: definition,
            checkout_id: None,
            promotion: Some(taken_off()),
            as_transaction: false,
            now: at(0),
        };
        market
            .send(MarketCommand::Order(order(1), OrderCommand::Place(Box::new(placement))))
            .unwrap();
        market
    }

    /// A code that takes 100 off one order.
    fn promote(&mut self, seller_id: UserId) {
        use crate::domain::caller::Role;
        use crate::domain::promotion::{Discount, NewPromotion};
        use crate::domain::user::VerificationStatus;

        let promotion_id = PromotionId::of_code("BOOKS");
        let create = PromotionCommand::Create(Box::new(NewPromotion {
            caller: Caller::user(seller_id, [Role::Seller]),
            promotion_id,
            code: "BOOKS".into(),
            seller_id,
            seller_standing: Some(VerificationStatus::Verified),
            discount: Discount::Amount { money: dong(100) },
            minimum: None,
            valid_from: None,
            valid_until: None,
            uses_max: 1,
            uses_per_buyer_max: 1,
            now: at(0),
        }));
        self.send(MarketCommand::Promotion(promotion_id, create)).unwrap();
    }

    fn send(&mut self, command: MarketCommand) -> Result<usize, String> {
        let target = command.target();
        let events = match &command {
            MarketCommand::Order(_, it) => put(&mut self.order, target, it).map_err(name),
            MarketCommand::Listing(id, it) => {
                put(self.listings.get_mut(id).unwrap(), target, it).map_err(name)
            }
            MarketCommand::Payment(_, it) => put(&mut self.payment, target, it).map_err(name),
            MarketCommand::Escrow(_, it) => put(&mut self.escrow, target, it).map_err(name),
            MarketCommand::Shipment(_, it) => put(&mut self.shipment, target, it).map_err(name),
            MarketCommand::Promotion(_, it) => put(&mut self.promotion, target, it).map_err(name),
            MarketCommand::Notification(_, it) => {
                put(&mut self.notification, target, it).map_err(name)
            }
        }?;
        let count = events.len();
        for (event_type, fact) in events {
            self.seen.push(event_type);
            if let Some((key, fact)) = fact {
                assert_eq!(key, order(1).uuid());
                self.saga.observe(&fact);
                self.facts.push(fact);
            }
        }
        Ok(count)
    }

    /// Takes the steps one by one; stops before `stop`. Says which failed and why.
    fn forward(&mut self, stop: &str, outcome: &Outcome) -> Option<(usize, String)> {
        for (index, step) in self.saga.steps().iter().enumerate() {
            if step.name == stop {
                return None;
            }
            for command in (step.act)(&self.saga, self.now) {
                if let Err(reason) = self.send(command) {
                    return Some((index, reason));
                }
            }
            let (id, now) = (PaymentId::of(order(1)), self.now);
            if step.name == "capture" {
                let settle = PaymentCommand::Settle { outcome: outcome.clone(), now };
                self.send(MarketCommand::Payment(id, settle)).unwrap();
            }
            if step.name == "confirmation" {
                let sent = NotificationCommand::RecordSent {
                    provider_message_id: "m".into(),
                    adapter: "log".into(),
                    to_hash: "aa".into(),
                    now,
                };
                let told =
                    NotificationId::of(Uuid::from_u128(1), CONFIRMATION_TEMPLATE, user(BUYER));
                self.send(MarketCommand::Notification(told, sent)).unwrap();
            }
            match (step.progress)(&self.saga) {
                Progress::Done => {}
                Progress::Failed(reason) => return Some((index, reason)),
                Progress::Pending => panic!("{} is stuck", step.name),
            }
        }
        None
    }

    /// The way back from the step with this index.
    fn back(&mut self, from: usize, reason: &str) {
        let steps = self.saga.steps();
        let step = steps[from].name;
        for command in self.saga.announce(step, reason, self.now) {
            self.send(command).unwrap();
        }
        for step in steps[..=from].iter().rev() {
            let mut events = 0;
            for command in (step.undo)(&self.saga, self.now) {
                events += self.send(command).unwrap();
            }
            let now = self.now;
            if self.seen.last().is_some_and(|last| last == "payment.refund_requested") {
                let id = PaymentId::of(order(1));
                let refunded = PaymentCommand::RecordRefunded {
                    refund_id: RefundId::of(id),
                    provider_reference: "r".into(),
                    now,
                };
                self.send(MarketCommand::Payment(id, refunded)).unwrap();
            }
            if self.seen.last().is_some_and(|last| last == "payment.void_requested") {
                let id = PaymentId::of(order(1));
                self.send(MarketCommand::Payment(
                    id,
                    PaymentCommand::RecordVoided { still_open: false, now },
                ))
                .unwrap();
            }
            assert!(events == 0 || (step.undone)(&self.saga), "{} is not undone", step.name);
        }
        for command in self.saga.conclude(step, reason, self.now) {
            self.send(command).unwrap();
        }
    }

    fn status(&self) -> String {
        format!("{:?}", self.order.details.as_ref().unwrap().status)
    }

    /// Nothing is held, sold or kept.
    #[track_caller]
    fn assert_as_before(&self, stock: u32) {
        for listing in self.listings.values() {
            let found = listing.details.as_ref().unwrap().stock;
            assert_eq!((found.available, found.reserved, found.sold), (stock, 0, 0));
        }
        assert_eq!(self.promotion.details.as_ref().unwrap().uses, 0);
        let balance = self.escrow.details.as_ref().map_or(0, |details| details.balance);
        assert_eq!(balance, 0);
        let count = |name: &str| self.seen.iter().filter(|seen| *seen == name).count();
        assert_eq!(count("payment.captured"), count("payment.refunded"));
        assert!(self.shipment.details.as_ref().is_none_or(|details| {
            details.status == crate::domain::shipment::ShipmentStatus::Cancelled
        }));
    }
}

/// What the code of [`Market::promote`] takes off.
fn taken_off() -> OrderPromotion {
    let promotion_id = PromotionId::of_code("BOOKS");
    OrderPromotion { promotion_id, code: "BOOKS".into(), discount: 100, borne_by_market: false }
}

fn name<R: souk_actors::aggregate::Rejection>(rejection: R) -> String {
    rejection.code().to_owned()
}

fn captured() -> Outcome {
    Outcome::Captured { provider_reference: "c".into(), money: dong(1_900) }
}

#[test]
fn a_purchase_goes_through_in_both_definitions() {
    for definition in [SagaDefinition::ReserveFirst, SagaDefinition::PaymentFirst] {
        let mut market = Market::open(2, definition);
        assert_eq!(market.forward("", &captured()), None);
        assert_eq!(market.status(), "Shipped");
        assert_eq!(market.escrow.details.as_ref().unwrap().balance, 1_900);
        assert_eq!(market.promotion.details.as_ref().unwrap().uses, 1);
        let sold = market.seen.iter().filter(|seen| *seen == "listing.sold").count();
        assert_eq!(sold, 2);
    }
}

#[test]
fn no_stock_rejects_the_order() {
    for definition in [SagaDefinition::ReserveFirst, SagaDefinition::PaymentFirst] {
        let mut market = Market::open(1, definition);
        let (step, reason) = market.forward("", &captured()).unwrap();
        assert_eq!(reason, "insufficient_stock");
        market.back(step, &reason);
        assert_eq!(market.status(), "Rejected");
        market.assert_as_before(1);
    }
}

#[test]
fn a_code_that_is_used_up_rejects_the_order() {
    for definition in [SagaDefinition::ReserveFirst, SagaDefinition::PaymentFirst] {
        let mut market = Market::open(2, definition);
        let redeem = PromotionCommand::Redeem {
            promotion_id: PromotionId::of_code("BOOKS"),
            order_id: order(2),
            buyer_id: user(BUYER),
            seller_id: user(crate::domain::testing::SELLER),
            subtotal: dong(2_000),
            discount: 100,
            now: at(0),
        };
        put(&mut market.promotion, Uuid::nil(), &redeem).unwrap();
        let (step, reason) = market.forward("", &captured()).unwrap();
        assert_eq!(reason, "promotion_used_up");
        market.back(step, &reason);
        assert_eq!(market.status(), "Rejected");
        let release = PromotionCommand::Release {
            promotion_id: PromotionId::of_code("BOOKS"),
            order_id: order(2),
            reason: "order_cancelled".into(),
            now: at(0),
        };
        put(&mut market.promotion, Uuid::nil(), &release).unwrap();
        market.assert_as_before(2);
    }
}

#[test]
fn a_declined_payment_is_told_before_the_stock_is_released() {
    let mut market = Market::open(2, SagaDefinition::ReserveFirst);
    let declined = Outcome::Declined { reason: "no_funds".into(), provider_reference: None };
    let (step, reason) = market.forward("", &declined).unwrap();
    assert_eq!(reason, "no_funds");
    market.back(step, &reason);
    assert_eq!(market.status(), "PaymentFailed");
    market.assert_as_before(2);
    let place = |name: &str| market.seen.iter().position(|seen| seen == name).unwrap();
    assert!(place("order.payment_failed") < place("inventory.released"));
}

/// Wherever it turns back, and whether the step before it was taken, half taken or not at all,
/// everything is as it was.
#[test]
fn every_step_can_fail_and_all_is_undone() {
    for definition in [SagaDefinition::ReserveFirst, SagaDefinition::PaymentFirst] {
        for failing in 0..6 {
            for sent in 0..6 {
                let mut market = Market::open(2, definition);
                let step = &market.saga.steps()[failing];
                assert_eq!(market.forward(step.name, &captured()), None);
                for command in (step.act)(&market.saga, market.now).into_iter().take(sent) {
                    market.send(command).unwrap();
                }
                if market.order.details.as_ref().unwrap().shipment_id.is_some() {
                    continue; // The step was done after all.
                }
                market.back(failing, "timeout");
                market.assert_as_before(2);
                assert!(market.order.details.as_ref().unwrap().status.is_off());
                // What comes too late changes nothing any more.
                for command in (step.act)(&market.saga, market.now) {
                    let _ = market.send(command);
                }
                market.assert_as_before(2);
            }
        }
    }
}

#[test]
fn a_cancelled_order_is_undone_wherever_it_stands() {
    for stop in ["reserve", "confirm", "capture", "pay", "ship", "mark_shipped"] {
        let mut market = Market::open(2, SagaDefinition::ReserveFirst);
        market.forward(stop, &captured());
        let cancel = OrderCommand::Cancel { caller: buyer(), reason: None, now: at(1) };
        market.send(MarketCommand::Order(order(1), cancel)).unwrap();
        let reason = market.saga.aborted().unwrap();
        let index = market.saga.steps().iter().position(|step| step.name == stop).unwrap();
        market.back(index, &reason);
        assert_eq!(market.status(), "Cancelled");
        market.assert_as_before(2);
    }
}

#[test]
fn an_expired_hold_cancels_the_order() {
    let mut market = Market::open(2, SagaDefinition::ReserveFirst);
    market.forward("capture", &captured());
    let expire = ListingCommand::ExpireReservation { order_id: order(1), now: at(2_100) };
    market.send(MarketCommand::Listing(listing(0), expire)).unwrap();
    let reason = market.saga.aborted().unwrap();
    market.back(2, &reason);
    assert_eq!(market.status(), "Cancelled");
    market.assert_as_before(2);
}

fn any_fact() -> impl Strategy<Value = Fact> {
    let number = || (0u128..2).prop_map(listing);
    let reason = || "[ab]".prop_map(String::from);
    prop_oneof![
        Just(start()),
        prop::sample::select(vec![
            Fact::Confirmed,
            Fact::Paid,
            Fact::Shipped,
            Fact::Cancelled,
            Fact::Redeemed,
            Fact::NotRedeemed(RedemptionFailure::PromotionUsedUp),
            Fact::NotRedeemed(RedemptionFailure::PromotionEnded),
            Fact::RedemptionBarred,
            Fact::RedemptionReleased,
            Fact::EscrowOpened,
            Fact::EscrowFunded,
            Fact::EscrowClosed,
            Fact::Captured,
            Fact::Voided,
            Fact::Refunded,
            Fact::ShipmentCreated,
            Fact::ShipmentCancelled,
            Fact::Told,
        ]),
        number().prop_map(Fact::Reserved),
        number().prop_map(Fact::Barred),
        number().prop_map(Fact::Allocated),
        number().prop_map(Fact::Released),
        number().prop_map(Fact::Expired),
        number().prop_map(|id| Fact::NotReserved(id, ReservationFailure::NotActive)),
        number().prop_map(|id| Fact::NotReserved(id, ReservationFailure::PriceChanged)),
        reason().prop_map(Fact::NotCaptured),
        reason().prop_map(Fact::NotTold),
    ]
}

proptest! {
    #[test]
    fn facts_in_any_order_give_the_same_state(
        (facts, shuffled) in prop::collection::vec(any_fact(), 0..30)
            .prop_flat_map(|facts| (Just(facts.clone()), Just(facts).prop_shuffle())),
        cut in 0usize..30,
    ) {
        let state: OrderSaga = folded(facts.clone());
        // Repeated facts, another order, and a restart in the middle.
        let mut other = OrderSaga::default();
        for (index, fact) in shuffled.iter().chain(&facts).enumerate() {
            if index == cut {
                other = snapshot(&other);
            }
            other.observe(&snapshot(fact));
        }
        prop_assert_eq!(snapshot(&other), state);
    }
}
