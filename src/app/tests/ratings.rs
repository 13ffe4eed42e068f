//! A seller's rating under many reviews at once, without HTTP.

use super::*;
use crate::domain::ids::ReviewId;
use crate::domain::review::{NewReview, Review, ReviewCommand, ReviewedOrder};
use crate::subscribers::seller_ratings;

/// S0-93 asks for so many.
const REVIEWS: u128 = 1_000;

fn stars(number: u128) -> u8 {
    [5, 4, 4, 3, 5, 1, 2][usize::try_from(number % 7).unwrap()]
}

async fn write(market: &Market, seller_id: UserId, number: u128) {
    let runtime = &market.app.runtime;
    let (order_id, now) = (OrderId(Uuid::from_u128(number)), runtime.world().now());
    let buyer_id = UserId(Uuid::from_u128(0x9000 + number));
    let review_id = ReviewId::of(order_id);
    let new = NewReview {
        caller: Caller::user(buyer_id, [Role::Buyer]),
        review_id,
        order: ReviewedOrder {
            order_id,
            buyer_id,
            seller_id,
            listing_ids: Vec::new(),
            status: OrderStatus::Delivered,
            arrived_at: Some(now),
        },
        rating: stars(number),
        comment: "Lovelace lives in Secret Street.".to_owned(),
        now,
    };
    let create = ReviewCommand::Create(Box::new(new));
    let reviews = runtime.aggregate::<Review>();
    reviews.send(review_id.uuid(), create, market.context(), |_| ()).await.unwrap();
}

/// The orders behind these reviews do not exist, so that `order-progress` has nobody to tell: what is
/// looked at here is the rating.
async fn counted(market: &Market) {
    let subscriptions = market.app.runtime.subscriptions();
    for head in market.app.runtime.journal().heads() {
        assert!(subscriptions.wait_for(seller_ratings::NAME, head, PATIENCE).await, "{head}");
    }
}

async fn rating(market: &Market, seller: UserId) -> (u64, String) {
    let users = market.app.runtime.aggregate::<User>();
    let read = users.read(seller.uuid(), |user| user.details.clone().unwrap().rating.stars).await;
    let stars = read.unwrap().value;
    (stars.count(), stars.average().unwrap().to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_average_is_exact_after_a_thousand_reviews_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(&dir.path().join(JOURNAL_FILE), 3).await.unwrap());
    let app = App::start_on(settings(dir.path()), store.clone()).await.unwrap();
    let market = Market { app, dir, store };
    let seller = market.register("seller@example.com").await;
    at_once((0..REVIEWS).map(|number| write(&market, seller, number))).await;
    counted(&market).await;
    // 142 times 24 stars, and 22.
    let expected = (1_000, "3.43".to_owned());
    assert_eq!(rating(&market, seller).await, expected);
    // All of it once more, from the beginning, as a replay has it: nothing counts twice.
    let before = market.app.runtime.journal().heads();
    assert!(market.app.drain(PATIENCE).await);
    let Market { dir, store, .. } = market;
    let app = App::start_on(settings(dir.path()), store.clone()).await.unwrap();
    let market = Market { app, dir, store };
    let handler = SellerRatings;
    for head in &before {
        for position in 1..=head.position {
            let at = souk_actors::event::Position { partition: head.partition, position };
            let event = market.app.runtime.journal().event_at(at).await.unwrap().unwrap();
            if &*event.event_type == "review.created" {
                souk_actors::subscriber::Handler::handle(&handler, &market.app.runtime, &event)
                    .await
                    .unwrap();
            }
        }
    }
    assert_eq!(rating(&market, seller).await, expected);
    assert_nothing_personal(market.dir.path());
}
