use proptest::prelude::*;
use souk_actors::testing::Scenario;
use uuid::Uuid;

use super::*;
use crate::domain::testing::{
    BUYER, SELLER, admin, assert_folds, at, buyer, dong, listing, order, run, seller, stranger,
    user,
};

const PRICE: i64 = 500;

fn new() -> Box<NewListing> {
    Box::new(NewListing {
        caller: seller(),
        listing_id: listing(0),
        seller_id: user(SELLER),
        seller_standing: Some(VerificationStatus::Verified),
        title: " A book ".into(),
        description: "Read\nonce.".into(),
        price: dong(PRICE),
        category_id: CategoryId(Uuid::from_u128(6)),
        category_standing: CategoryStanding::Active,
        sku: None,
        quantity: 3,
        images: Vec::new(),
        images_max: 2,
        draft: false,
        now: at(0),
    })
}

fn create_with(change: impl FnOnce(&mut NewListing)) -> ListingCommand {
    let mut new = new();
    change(&mut new);
    ListingCommand::Create(new)
}

fn reserve(number: u128, quantity: u32) -> ListingCommand {
    ListingCommand::Reserve {
        listing_id: listing(0),
        order_id: order(number),
        customer_id: user(BUYER),
        quantity,
        unit_price: dong(PRICE),
        now: at(1),
        expires_at: at(1).plus(HOLD_FOR),
    }
}

fn allocate(number: u128) -> ListingCommand {
    ListingCommand::Allocate { order_id: order(number), now: at(2) }
}

fn release(number: u128) -> ListingCommand {
    let reason = "order_cancelled".to_owned();
    ListingCommand::Release { listing_id: listing(0), order_id: order(number), reason, now: at(3) }
}

fn expire(number: u128) -> ListingCommand {
    ListingCommand::ExpireReservation { order_id: order(number), now: at(4) }
}

fn archive() -> ListingCommand {
    ListingCommand::Archive { caller: seller(), now: at(5) }
}

fn reactivate() -> ListingCommand {
    let category_standing = CategoryStanding::Active;
    ListingCommand::Reactivate { caller: seller(), category_standing, now: at(6) }
}

fn publish(caller: Caller, category_standing: CategoryStanding) -> ListingCommand {
    ListingCommand::Publish { caller, category_standing, now: at(6) }
}

fn restock(caller: Caller, quantity: u32) -> ListingCommand {
    ListingCommand::Restock { caller, quantity, now: at(6) }
}

fn pick(number: u128) -> ListingCommand {
    ListingCommand::Pick { order_id: order(number), now: at(6) }
}

fn update(caller: Caller, title: Option<&str>, price: Option<Money>) -> ListingCommand {
    let (title, price) = (title.map(str::to_owned), price.map(SaidPrice::from));
    ListingCommand::Update { caller, title, description: None, price, now: at(5) }
}

/// A listing of three units after these commands.
fn after(commands: &[ListingCommand]) -> Scenario<Listing> {
    let mut all = vec![create_with(|_| {})];
    all.extend_from_slice(commands);
    Scenario::given(run::<Listing>(&all).1)
}

fn stock(listing: &Listing) -> (u32, u32, u32) {
    let Stock { available, reserved, sold } = listing.details.as_ref().unwrap().stock;
    (available, reserved, sold)
}

fn status(listing: &Listing) -> ListingStatus {
    listing.details.as_ref().unwrap().status
}

#[track_caller]
fn refused(scenario: Scenario<Listing>, command: ListingCommand, expected: ReservationFailure) {
    let decided = scenario.when(command);
    let events = decided.outcome.as_ref().unwrap();
    let [ListingEvent::ReservationFailed(event)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(event.reason, expected);
    assert!(decided.timers.is_empty());
}

#[test]
fn a_verified_seller_lists_in_an_active_category() {
    Scenario::<Listing>::new()
        .when(create_with(|_| {}))
        .and_state(|listing| {
            let details = listing.details.as_ref().unwrap();
            assert_eq!((details.title.as_str(), details.sku.len()), ("A book", 16));
            assert_eq!(stock(listing), (3, 0, 0));
            assert_eq!(status(listing), ListingStatus::Active);
        })
        .then_types(&["listing.created"])
        .when(create_with(|_| {}))
        .then_rejected("listing_exists");
}

#[test]
fn what_is_wrong_with_a_new_listing_is_named() {
    let refused = |code: &str, change: fn(&mut NewListing)| {
        Scenario::<Listing>::new().when(create_with(change)).then_rejected(code);
    };
    refused("forbidden", |new| new.caller = stranger());
    refused("forbidden", |new| new.seller_standing = None);
    refused("seller_not_verified", |new| {
        new.seller_standing = Some(VerificationStatus::Pending);
    });
    refused("seller_not_verified", |new| {
        new.seller_standing = Some(VerificationStatus::Rejected);
    });
    refused("category_inactive", |new| new.category_standing = CategoryStanding::Inactive);
    refused("category_unknown", |new| new.category_standing = CategoryStanding::Unknown);
    refused("invalid", |new| new.title = " ".into());
    refused("invalid", |new| new.description = String::new());
    refused("invalid", |new| new.price = dong(0));
    refused("invalid", |new| new.price = dong(-1));
    refused("invalid", |new| new.quantity = 0);
    refused("invalid", |new| new.quantity = QUANTITY_MAX + 1);
}

#[test]
fn a_seller_changes_the_offer() {
    after(&[])
        .when(update(stranger(), Some("Mine"), None))
        .then_rejected("forbidden")
        .when(update(seller(), Some("A book"), Some(dong(PRICE))))
        .then([])
        .when(update(seller(), None, Some(dong(0))))
        .then_rejected("invalid")
        .when(update(seller(), None, Some(Money::new(PRICE, Currency::Usd))))
        .then_rejected("invalid")
        .when(update(seller(), Some("Book"), None))
        .then_types(&["listing.updated"])
        .when(update(admin(), None, Some(dong(600))))
        .and_state(|listing| {
            let details = listing.details.as_ref().unwrap();
            assert_eq!((details.price, details.title.as_str()), (dong(600), "Book"));
        })
        .then_types(&["listing.updated", "catalog.price.changed"]);
    Scenario::<Listing>::new().when(update(seller(), None, None)).then_rejected("not_found");
}

#[test]
fn a_price_without_a_currency_is_in_the_listings_own() {
    let dollars = |amount| Money::new(amount, Currency::Usd);
    let bare = ListingCommand::Update {
        caller: seller(),
        title: None,
        description: None,
        price: Some(SaidPrice { amount: 1_999, currency: None }),
        now: at(5),
    };
    Scenario::<Listing>::new()
        .when(create_with(|new| new.price = dollars(PRICE)))
        .then_types(&["listing.created"])
        .when(bare)
        .and_state(|listing| {
            assert_eq!(listing.details.as_ref().unwrap().price, dollars(1_999));
        })
        .then_types(&["listing.updated", "catalog.price.changed"])
        .when(update(seller(), None, Some(dong(1_999))))
        .then_rejected("invalid");
}

#[test]
fn a_withdrawn_listing_keeps_its_word_and_sells_no_more() {
    let by_buyer = ListingCommand::Archive { caller: buyer(), now: at(5) };
    after(&[]).when(by_buyer).then_rejected("forbidden");
    after(&[reserve(1, 3)])
        .when(archive())
        .then_types(&["listing.archived"])
        .when(archive())
        .then([])
        .when(update(seller(), Some("Book"), None))
        .then_rejected("listing_archived")
        .when(allocate(1))
        .then_types(&["inventory.allocated"])
        .when(release(1))
        .and_state(|listing| assert_eq!(status(listing), ListingStatus::Archived))
        .then_types(&["inventory.released"]);
    refused(after(&[archive()]), reserve(1, 1), ReservationFailure::NotActive);
}

#[test]
fn a_draft_sells_nothing_until_it_is_published() {
    let draft = || create_with(|new| new.draft = true);
    let drafted = |commands: &[ListingCommand]| {
        let mut all = vec![draft()];
        all.extend_from_slice(commands);
        Scenario::<Listing>::given(run::<Listing>(&all).1)
    };
    refused(drafted(&[]), reserve(1, 1), ReservationFailure::NotActive);
    drafted(&[])
        .when(update(seller(), Some("Book"), None))
        .and_state(|listing| assert_eq!(status(listing), ListingStatus::Draft))
        .then_types(&["listing.updated"])
        .when(publish(stranger(), CategoryStanding::Active))
        .then_rejected("forbidden")
        .when(publish(seller(), CategoryStanding::Inactive))
        .then_rejected("category_inactive")
        .when(publish(seller(), CategoryStanding::Active))
        .and_state(|listing| assert_eq!(status(listing), ListingStatus::Active))
        .then_types(&["listing.published"])
        .when(publish(seller(), CategoryStanding::Active))
        .then([])
        .when(reserve(1, 1))
        .then_types(&["inventory.reserved"]);
    // A draft that was withdrawn is a draft again.
    drafted(&[archive()])
        .when(publish(seller(), CategoryStanding::Active))
        .then_rejected("listing_archived")
        .when(reactivate())
        .and_state(|listing| assert_eq!(status(listing), ListingStatus::Draft))
        .then_types(&["listing.reactivated"]);
    after(&[]).when(publish(seller(), CategoryStanding::Active)).then([]);
}

#[test]
fn what_was_withdrawn_is_offered_again_as_its_stock_allows() {
    let back = |commands: &[ListingCommand]| {
        let decided = after(commands).when(archive()).then_types(&["listing.archived"]);
        let decided = decided.when(reactivate());
        decided.outcome.as_ref().unwrap();
        status(&decided.state)
    };
    assert_eq!(back(&[]), ListingStatus::Active);
    assert_eq!(back(&[reserve(1, 2)]), ListingStatus::Active);
    assert_eq!(back(&[reserve(1, 3)]), ListingStatus::Reserved);
    assert_eq!(back(&[reserve(1, 3), allocate(1)]), ListingStatus::Sold);
    after(&[]).when(reactivate()).then([]);
    let inactive = ListingCommand::Reactivate {
        caller: seller(),
        category_standing: CategoryStanding::Inactive,
        now: at(6),
    };
    after(&[archive()]).when(inactive).then_rejected("category_inactive");
}

#[test]
fn more_units_bring_a_listing_back() {
    after(&[])
        .when(restock(stranger(), 1))
        .then_rejected("forbidden")
        .when(restock(seller(), 0))
        .then_rejected("invalid")
        .when(restock(seller(), QUANTITY_MAX - 2))
        .then_rejected("invalid")
        .when(restock(seller(), 5))
        .and_state(|listing| assert_eq!(stock(listing), (8, 0, 0)))
        .then_types(&["inventory.restocked"]);
    for before in [&[reserve(1, 3)][..], &[reserve(1, 3), allocate(1)]] {
        after(before)
            .when(restock(seller(), 2))
            .and_state(|listing| {
                assert_eq!(status(listing), ListingStatus::Active);
                assert_eq!(stock(listing).0, 2);
            })
            .then_types(&["inventory.restocked", "listing.relisted"]);
    }
    after(&[archive()]).when(restock(seller(), 1)).then_rejected("listing_archived");
}

#[test]
fn the_images_of_a_new_listing_are_on_the_web() {
    let with = |images: &[&str]| {
        create_with(|new| new.images = images.iter().map(|image| (*image).to_owned()).collect())
    };
    let good = "https://images.example.com/1.jpg";
    Scenario::<Listing>::new()
        .when(with(&[" https://images.example.com/1.jpg ", "http://localhost:8080/2.png?w=1"]))
        .and_state(|listing| {
            let images = &listing.details.as_ref().unwrap().images;
            assert_eq!(images, &[good, "http://localhost:8080/2.png?w=1"]);
        })
        .then_types(&["listing.created"]);
    let wrong = |images: &[&str]| match Listing::default().decide(&with(images)) {
        Err(ListingRejection::Invalid { errors }) => errors[0].clone(),
        other => panic!("{images:?}: {other:?}"),
    };
    let long = format!("https://images.example.com/{}", "x".repeat(2_048));
    let bad = [
        "",
        " ",
        "1.jpg",
        "javascript:alert(1)",
        "javascript://example.com/%0aalert(1)",
        "data:image/png;base64,AAAA",
        "//images.example.com/1.jpg",
        "/api/v1/images/1/1.jpg",
        "ftp://images.example.com/1.jpg",
        "https:///1.jpg",
        "https://ann:secret@images.example.com/1.jpg",
        "https://images.example.com/1 2.jpg",
        "https://images.example.com/\u{7}.jpg",
        "https://images.example.com/1.jpg#x",
        &long,
    ];
    for image in bad {
        assert_eq!(wrong(&[good, image]).pointer, "/images/1", "{image}");
    }
    let many = wrong(&[good; 3]);
    assert_eq!((many.pointer.as_str(), many.code.as_str()), ("/images", "too_many"));
}

#[test]
fn images_are_added_ordered_and_taken_away() {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let add = |images: &[&str]| ListingCommand::AddImages {
        caller: seller(),
        images: names(images),
        images_max: 3,
        now: at(6),
    };
    let arrange = |images: &[&str]| ListingCommand::OrderImages {
        caller: seller(),
        images: names(images),
        now: at(6),
    };
    let remove = |caller: Caller, image: &str| ListingCommand::RemoveImage {
        caller,
        image: image.to_owned(),
        now: at(6),
    };
    let images = |listing: &Listing| listing.details.as_ref().unwrap().images.clone();
    after(&[])
        .when(add(&["a", "b", "a"]))
        .and_state(|listing| assert_eq!(images(listing), ["a", "b"]))
        .then_types(&["listing.image_added", "listing.image_added"])
        .when(add(&["b"]))
        .then([])
        .when(add(&["c", "d"]))
        .then_rejected("invalid")
        .when(add(&["c", "b"]))
        .then_types(&["listing.image_added"])
        .when(arrange(&["c", "a", "a"]))
        .then_rejected("invalid")
        .when(arrange(&["c", "a"]))
        .then_rejected("invalid")
        .when(arrange(&["a", "b", "c"]))
        .then([])
        .when(arrange(&["c", "a", "b"]))
        .and_state(|listing| assert_eq!(images(listing), ["c", "a", "b"]))
        .then_types(&["listing.images_reordered"])
        .when(remove(stranger(), "a"))
        .then_rejected("forbidden")
        .when(remove(seller(), "a"))
        .and_state(|listing| assert_eq!(images(listing), ["c", "b"]))
        .then_types(&["listing.image_removed"])
        .when(remove(seller(), "a"))
        .then([]);
    after(&[archive()]).when(add(&["a"])).then_rejected("listing_archived");
}

#[test]
fn what_is_sold_is_picked_once() {
    after(&[reserve(1, 2)])
        .when(pick(1))
        .then([])
        .when(allocate(1))
        .then_types(&["inventory.allocated"])
        .when(pick(1))
        .then_types(&["inventory.picked"])
        .when(pick(1))
        .then([])
        .when(pick(2))
        .then([]);
    after(&[reserve(1, 2), allocate(1), release(1)]).when(pick(1)).then([]);
}

#[test]
fn the_last_unit_goes_from_active_to_reserved_to_sold_and_back() {
    let decided = after(&[reserve(1, 2)]).when(reserve(2, 1));
    let name = format!("reservation:{}", order(2));
    let expires_at = at(1).plus(HOLD_FOR);
    assert_eq!(decided.timers, [TimerChange::Set { name: name.clone(), at: expires_at }]);
    let decided = decided
        .and_state(|listing| {
            assert_eq!(stock(listing), (0, 3, 0));
            assert_eq!(status(listing), ListingStatus::Reserved);
            assert_eq!(
                listing.on_timer(&name, at(9)),
                Some(ListingCommand::ExpireReservation { order_id: order(2), now: at(9) })
            );
        })
        .then_types(&["inventory.reserved", "listing.reserved"])
        .when(allocate(2));
    assert_eq!(decided.timers, [TimerChange::Clear { name: name.clone() }]);
    assert_eq!(decided.state.on_timer(&name, at(9)), None);
    decided
        .then_types(&["inventory.allocated"])
        .when(allocate(1))
        .and_state(|listing| {
            assert_eq!(stock(listing), (0, 0, 3));
            assert_eq!(status(listing), ListingStatus::Sold);
        })
        .then_types(&["inventory.allocated", "listing.sold"])
        .when(release(1))
        .and_state(|listing| {
            assert_eq!(stock(listing), (2, 0, 1));
            assert_eq!(status(listing), ListingStatus::Active);
        })
        .then_types(&["inventory.released", "listing.relisted"])
        .when(release(1))
        .then([]);
}

#[test]
fn a_reservation_says_all_that_the_documents_want() {
    let decided = after(&[]).when(reserve(1, 2));
    let events = decided.outcome.unwrap();
    let data: serde_json::Value =
        serde_json::from_str(&souk_actors::event::EventPayload::encode(&events[0])).unwrap();
    assert_eq!(data["product_id"], data["listing_id"]);
    assert_eq!(data["transaction_id"], data["order_id"]);
    assert_eq!(data["warehouse_id"], "WH-DEFAULT");
    assert_eq!(data["quantity_reserved"], 2);
    assert_eq!(data["reservations"][0]["reservation_id"], data["reservation_id"]);
    assert_eq!(data["expires_at"], "2026-11-20T11:05:01.000Z");
    assert_eq!(data["customer_id"], user(BUYER).to_string());
}

#[test]
fn what_cannot_be_reserved_is_an_event_with_a_reason() {
    use ReservationFailure as F;
    refused(Scenario::new(), reserve(1, 1), F::NotFound);
    refused(after(&[]), reserve(1, 4), F::InsufficientStock);
    refused(after(&[]), reserve(1, 0), F::InsufficientStock);
    refused(after(&[reserve(1, 3)]), reserve(2, 1), F::InsufficientStock);
    let price = update(seller(), None, Some(dong(PRICE + 1)));
    refused(after(&[price]), reserve(1, 1), F::PriceChanged);
    let ListingCommand::Reserve {
        listing_id, order_id, quantity, unit_price, now, expires_at, ..
    } = reserve(1, 1)
    else {
        unreachable!()
    };
    let customer_id = user(SELLER);
    let own = ListingCommand::Reserve {
        listing_id,
        order_id,
        customer_id,
        quantity,
        unit_price,
        now,
        expires_at,
    };
    refused(after(&[]), own, F::SelfPurchase);
    assert_eq!(F::InsufficientStock.as_str(), "insufficient_stock");
}

#[test]
fn stored_reasons_are_their_names() {
    use ReservationFailure as F;
    for reason in [
        F::NotFound,
        F::NotActive,
        F::SelfPurchase,
        F::PriceChanged,
        F::InsufficientStock,
        F::OrderGivenUp,
    ] {
        assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
    }
}

#[test]
fn twice_is_once() {
    after(&[reserve(1, 1)])
        .when(reserve(1, 1))
        .then([])
        .when(allocate(1))
        .then_types(&["inventory.allocated"])
        .when(allocate(1))
        .then([])
        .when(reserve(1, 1))
        .then([])
        .when(expire(1))
        .then([])
        .when(release(1))
        .then_types(&["inventory.released"])
        .when(release(1))
        .then([])
        .when(allocate(1))
        .then_rejected("reservation_gone")
        .when(expire(1))
        .then([]);
    after(&[]).when(allocate(1)).then_rejected("reservation_gone");
    Scenario::<Listing>::new().when(allocate(1)).then_rejected("not_found");
}

#[test]
fn an_unpaid_hold_ends() {
    let decided = after(&[reserve(1, 3)]).when(expire(1));
    let events = decided.outcome.as_ref().unwrap();
    let ListingEvent::Released(event) = &events[0] else { panic!("{events:?}") };
    assert_eq!((event.reason.as_str(), event.quantity), ("expired", 3));
    decided
        .and_state(|listing| assert_eq!(stock(listing), (3, 0, 0)))
        .then_types(&["inventory.released", "listing.relisted"]);
}

#[test]
fn an_undo_that_comes_first_bars_the_order() {
    let barred = after(&[])
        .when(release(1))
        .then_types(&["inventory.reservation_barred"])
        .when(release(1))
        .then([]);
    refused(barred, reserve(1, 1), ReservationFailure::OrderGivenUp);
    refused(after(&[reserve(1, 1), release(1)]), reserve(1, 1), ReservationFailure::OrderGivenUp);
    after(&[reserve(1, 9)]).when(release(1)).then([]);
}

#[test]
fn holds_at_rest_are_forgotten_and_those_that_wait_are_not() {
    let many = u128::try_from(HOLDS_AT_REST_MAX).unwrap();
    let plenty = create_with(|new| new.quantity = QUANTITY_MAX);
    let mut commands = vec![plenty, reserve(0, 1)];
    for number in 1..=many + 10 {
        commands.extend([reserve(number, 1), allocate(number)]);
    }
    for number in 10_000..10_010 + many {
        commands.push(release(number));
    }
    let (mut state, history) = run::<Listing>(&commands);
    assert_eq!(state.holds.iter().count(), 2 * HOLDS_AT_REST_MAX + 1);
    assert_eq!(state.holds.get(order(0)).unwrap().state, HoldState::Held);
    assert!(state.holds.get(order(10)).is_none());
    assert_eq!(state.holds.get(order(11)).unwrap().state, HoldState::Allocated);
    let mut folded = Listing::default();
    history.iter().for_each(|event| folded.apply(event));
    assert_eq!(folded, state);
    // Moving on from one queue to the other forgets nothing that is still in the limit.
    for event in state.decide(&release(11)).unwrap() {
        state.apply(&event);
    }
    assert_eq!(state.holds.get(order(11)).unwrap().state, HoldState::Released);
}

fn any_command() -> impl Strategy<Value = ListingCommand> {
    let number = || 1u128..6;
    prop_oneof![
        4 => (number(), 0u32..4).prop_map(|(number, quantity)| reserve(number, quantity)),
        3 => number().prop_map(allocate),
        3 => number().prop_map(release),
        2 => number().prop_map(expire),
        1 => Just(create_with(|_| {})),
        1 => number().prop_map(pick),
        1 => (0u32..3).prop_map(|quantity| restock(seller(), quantity)),
        1 => Just(archive()),
        2 => Just(reactivate()),
        1 => (499i64..502).prop_map(|price| update(seller(), None, Some(dong(price)))),
    ]
}

proptest! {
    /// Whatever comes: no unit is made or lost, the counts are those of the holds, and the status
    /// says what is left.
    #[test]
    fn stock_is_neither_made_nor_lost(commands in prop::collection::vec(any_command(), 0..60)) {
        let mut state = Listing::default();
        let mut all = vec![create_with(|_| {})];
        all.extend(commands);
        let (mut history, mut all_units) = (Vec::new(), 3);
        for command in &all {
            let events = state.decide(command).unwrap_or_default();
            for event in events {
                if let ListingEvent::Restocked(event) = &event {
                    all_units += event.quantity;
                }
                state.apply(&event);
                history.push(event);
            }
            let Stock { available, reserved, sold } = state.details.as_ref().unwrap().stock;
            prop_assert_eq!(available + reserved + sold, all_units);
            let of = |wanted: HoldState| -> u32 {
                let holds = state.holds.iter().filter(|(_, hold)| hold.state == wanted);
                holds.map(|(_, hold)| hold.quantity).sum()
            };
            prop_assert_eq!(of(HoldState::Held), reserved);
            prop_assert_eq!(of(HoldState::Allocated), sold);
            let withdrawn = status(&state) == ListingStatus::Archived;
            let expected = match (available, reserved) {
                _ if withdrawn => ListingStatus::Archived,
                (0, 0) => ListingStatus::Sold,
                (0, _) => ListingStatus::Reserved,
                _ => ListingStatus::Active,
            };
            prop_assert_eq!(status(&state), expected);
        }
        assert_folds(&state, &history);
    }
}
