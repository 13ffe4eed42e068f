use proptest::prelude::*;
use souk_actors::testing::Scenario;

use super::*;
use crate::domain::testing::{
    BUYER, SELLER, admin, assert_folds, at, buyer, listing, order, run, seller, stranger, user,
};

const DAY: u64 = 24 * 60 * 60;

fn create_with(change: impl FnOnce(&mut NewReview)) -> ReviewCommand {
    let mut new = NewReview {
        caller: buyer(),
        review_id: ReviewId::of(order(1)),
        order: ReviewedOrder {
            order_id: order(1),
            buyer_id: user(BUYER),
            seller_id: user(SELLER),
            listing_ids: vec![listing(1), listing(2)],
            status: OrderStatus::Delivered,
            arrived_at: Some(at(0)),
        },
        rating: 4,
        comment: " Rides well.\nA scratch. ".into(),
        now: at(10),
    };
    change(&mut new);
    ReviewCommand::Create(Box::new(new))
}

fn create() -> ReviewCommand {
    create_with(|_| {})
}

fn reply(caller: Caller, text: &str) -> ReviewCommand {
    ReviewCommand::Reply { caller, text: text.into(), now: at(20) }
}

fn edit(text: &str, seconds: u64) -> ReviewCommand {
    ReviewCommand::EditReply { caller: seller(), text: text.into(), now: at(seconds) }
}

fn hide(caller: Caller) -> ReviewCommand {
    ReviewCommand::Hide { caller, reason: "an insult".into(), now: at(30) }
}

fn restore() -> ReviewCommand {
    ReviewCommand::Restore { caller: admin(), now: at(40) }
}

fn after(commands: &[ReviewCommand]) -> Scenario<Review> {
    Scenario::given(run::<Review>(commands).1)
}

#[test]
fn a_buyer_reviews_an_order_once() {
    let decided = Scenario::<Review>::new().when(create());
    let events = decided.outcome.as_ref().unwrap();
    let [ReviewEvent::Created(event)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((event.transaction_id, event.order_id), (order(1), order(1)));
    assert_eq!((event.reviewer_id, event.reviewee_id), (user(BUYER), user(SELLER)));
    assert_eq!((event.rating, event.listing_ids.len()), (4, 2));
    assert_eq!(event.comment.get().unwrap(), "Rides well.\nA scratch.");
    assert_eq!(event.comment.subject(), user(BUYER).uuid());
    decided
        .then_types(&["review.created"])
        .when(create_with(|new| new.rating = 1))
        .then_rejected("already_reviewed");
}

#[test]
fn who_may_not_review_hears_why() {
    let refused = |code: &str, change: fn(&mut NewReview)| {
        Scenario::<Review>::new().when(create_with(change)).then_rejected(code);
    };
    refused("forbidden", |new| new.caller = seller());
    refused("forbidden", |new| new.caller = stranger());
    refused("forbidden", |new| new.caller = admin());
    refused("order_not_completed", |new| new.order.status = OrderStatus::Shipped);
    refused("order_not_completed", |new| new.order.status = OrderStatus::Cancelled);
    refused("order_not_completed", |new| new.order.arrived_at = None);
    refused("review_window_closed", |new| new.now = at(30 * DAY + 1));
    for bad in [0, 6, 255] {
        let rating = create_with(|new| new.rating = bad);
        Scenario::<Review>::new().when(rating).then_rejected("invalid");
    }
    refused("invalid", |new| new.comment = " ".into());
    refused("invalid", |new| new.comment = "x".repeat(COMMENT_MAX + 1));
    // Whose it is not need not know whether there is one.
    after(&[create()]).when(create_with(|new| new.caller = stranger())).then_rejected("forbidden");
}

#[test]
fn the_last_moment_still_counts() {
    for status in [OrderStatus::Delivered, OrderStatus::Completed] {
        let late = create_with(|new| {
            new.order.status = status;
            new.now = at(30 * DAY);
        });
        Scenario::<Review>::new().when(late).then_types(&["review.created"]);
    }
}

#[test]
fn the_seller_replies_once_and_may_change_it_for_a_day() {
    Scenario::<Review>::new().when(reply(seller(), "Thanks")).then_rejected("not_found");
    after(&[create()]).when(reply(buyer(), "Me again")).then_rejected("forbidden");
    after(&[create()]).when(reply(admin(), "Well")).then_rejected("forbidden");
    after(&[create()]).when(reply(seller(), "")).then_rejected("invalid");
    after(&[create()])
        .when(edit("Thanks", 20))
        .then_rejected("not_replied")
        .when(reply(seller(), "Thanks"))
        .then_types(&["review.replied"])
        .when(reply(seller(), "Thanks"))
        .then_rejected("already_replied")
        .when(edit("Thanks", 30))
        .then([])
        .when(edit("Many thanks", 20 + DAY))
        .and_state(|review| {
            let reply = review.details.as_ref().unwrap().reply.as_ref().unwrap();
            assert_eq!(reply.text.get().unwrap(), "Many thanks");
            assert_eq!(reply.text.subject(), user(SELLER).uuid());
            assert_eq!((reply.replied_at, reply.edited_at), (at(20), Some(at(20 + DAY))));
        })
        .then_types(&["review.reply_edited"])
        .when(edit("Never mind", 21 + DAY))
        .then_rejected("reply_window_closed");
}

#[test]
fn administrators_hide_and_show() {
    let seen =
        |review: &Review, caller: &Caller| review.details.as_ref().unwrap().may_be_seen_by(caller);
    after(&[create()]).when(hide(seller())).then_rejected("forbidden");
    after(&[create()])
        .when(restore())
        .then([])
        .when(hide(admin()))
        .and_state(|review| {
            assert!(!seen(review, &stranger()) && !seen(review, &Caller::Anonymous));
            assert!(seen(review, &buyer()) && seen(review, &seller()) && seen(review, &admin()));
        })
        .then_types(&["review.hidden"])
        .when(hide(admin()))
        .then([])
        .when(reply(seller(), "Unfair"))
        .then_rejected("review_hidden")
        .when(restore())
        .and_state(|review| assert!(seen(review, &Caller::Anonymous)))
        .then_types(&["review.restored"]);
}

fn any_command() -> impl Strategy<Value = ReviewCommand> {
    prop_oneof![
        (0u8..7).prop_map(|rating| create_with(|new| new.rating = rating)),
        "[a-c]{0,2}".prop_map(|text| reply(seller(), &text)),
        ("[a-c]{1,2}", 0..2 * DAY).prop_map(|(text, seconds)| edit(&text, seconds)),
        Just(hide(admin())),
        Just(restore()),
    ]
}

proptest! {
    #[test]
    fn histories_fold_in_parts(commands in prop::collection::vec(any_command(), 0..20)) {
        let (state, history) = run::<Review>(&commands);
        assert_folds(&state, &history);
        let created = history.iter().filter(|event| matches!(event, ReviewEvent::Created(_)));
        prop_assert!(created.count() <= 1);
    }
}
