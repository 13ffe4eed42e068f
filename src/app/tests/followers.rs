//! A seller with many followers, without HTTP.

use super::*;
use crate::domain::announcement::Announcement;
use crate::domain::ids::{AnnouncementId, InterestId};
use crate::domain::interest::{Interest, InterestCommand, InterestOf};
use crate::domain::notification::Notification;

const FOLLOWERS: u128 = 2_000;

fn follower(number: u128) -> UserId {
    UserId(Uuid::from_u128(0x9000 + number))
}

async fn follow(market: &Market, seller: UserId, number: u128) {
    let (user_id, of) = (follower(number), InterestOf::Seller(seller));
    let id = InterestId::of(user_id, of).uuid();
    let (caller, now) = (Caller::user(user_id, [Role::Buyer]), market.app.runtime.world().now());
    let take = InterestCommand::Take { caller, user_id, of, now };
    let interests = market.app.runtime.aggregate::<Interest>();
    interests.send(id, take, market.context(), |_| ()).await.unwrap();
}

/// The listing's first event.
async fn created(market: &Market, listing: ListingId) -> Uuid {
    let events = market.app.runtime.journal().read_aggregate(listing.uuid(), 0, 1).await.unwrap();
    events[0].event_id
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_followers_are_told_once_each_also_over_a_restart() {
    let market = Market::open().await;
    let seller = market.register("seller@example.com").await;
    at_once((0..FOLLOWERS).map(|number| follow(&market, seller, number))).await;
    let listing = market.list_something(seller, 1).await;
    let cause = created(&market, listing).await;
    let announcement = AnnouncementId::of(cause).uuid();
    let progress = async |market: &Market| {
        let announcements = market.app.runtime.aggregate::<Announcement>();
        announcements.read(announcement, |of| of.details.clone()).await.unwrap().value
    };
    // Some are told, then it stops in the middle of it.
    while progress(&market).await.is_none_or(|of| of.last.is_none()) {
        tokio::task::yield_now().await;
    }
    let market = market.restart().await;
    market.settle().await;
    let done = progress(&market).await.unwrap();
    assert!(done.is_completed);
    assert_eq!(u128::from(done.told), FOLLOWERS);
    for number in 0..FOLLOWERS {
        let id = crate::domain::ids::NotificationId::of(cause, "new_listing", follower(number));
        let notifications = market.app.runtime.aggregate::<Notification>();
        let read = notifications.read(id.uuid(), |of| of.details.clone()).await.unwrap();
        // Requested, and sent by being stored: nothing besides.
        assert_eq!((read.version, read.value.unwrap().recipient), (2, follower(number)));
    }
    let filter = EventFilter {
        event_types: vec!["notification.user.sent".to_owned()],
        ..EventFilter::default()
    };
    let sent = market.app.read_models.events(&filter, &Default::default(), 9_999).await.unwrap();
    assert_eq!(sent.len() as u128, FOLLOWERS);
}
