//! `announcements`: tells those who take an interest in something what is new about it.
//!
//! | event | to | template |
//! | --- | --- | --- |
//! | `listing.created`, unless a draft, and `listing.published` | the seller's followers | `new_listing` |
//! | `catalog.price.changed`, to a lower one | those whose favourite it is | `price_drop` |
//! | `announcement.started`, `.advanced` | the next of them | |
//!
//! Each delivery tells [`TOLD_AT_ONCE`] at most, whose messages the journal takes together, and then
//! records how far it has come: the event that says so leads to the next. So nobody waits behind ten
//! thousand followers, and after a crash it goes on with the part that was under way. Who is told
//! twice finds the message there already: its id follows from the first event and the person.

use std::sync::Arc;

use async_trait::async_trait;
use souk_actors::command::{CommandContext, CommandError};
use souk_actors::event::StoredEvent;
use souk_actors::personal::Personal;
use souk_actors::retry::Failure;
use souk_actors::runtime::Runtime;
use souk_actors::subscriber::Handler;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::caught_up::FirstHeads;
use super::notifications::is_muted;
use super::{command_failed, decode_failed};
use crate::domain::announcement::{
    Announcement, AnnouncementCommand, AnnouncementDetails, NewAnnouncement,
};
use crate::domain::ids::{AnnouncementId, NotificationId, UserId};
use crate::domain::interest::InterestKind;
use crate::domain::listing::{Listing, ListingDetails, ListingEvent, ListingStatus};
use crate::domain::money::Money;
use crate::domain::notification::{
    Audience, Channel, NewNotification, Notification, NotificationCommand, NotificationRejection,
    Params,
};
use crate::projections::{INTERESTS_VIEW, InterestRow, ReadModels};

/// The subscription's name. Stored; never rename.
pub const NAME: &str = "announcements";
/// What it listens to.
pub const TOPICS: &[&str] = &[
    "listing.created",
    "listing.published",
    "catalog.price.changed",
    "announcement.started",
    "announcement.advanced",
];
/// How many are told in one part. Several parts are under way at once, and the budget of commands
/// from inside is for purchases too.
pub const TOLD_AT_ONCE: u32 = 64;

/// The handler.
pub struct Announcements {
    reads: ReadModels,
    first_heads: FirstHeads,
}

/// What people hear of a change to a listing.
struct News {
    template: &'static str,
    params: Params,
}

/// What people have to take an interest in to hear of a change; none: it is no news.
fn interest(change: &ListingEvent) -> Option<InterestKind> {
    match change {
        // A draft is news once it is published.
        ListingEvent::Created(created) if created.draft => None,
        ListingEvent::Created(_) | ListingEvent::Published(_) => Some(InterestKind::Seller),
        ListingEvent::PriceChanged(change) if change.new_price < change.old_price => {
            Some(InterestKind::Listing)
        }
        _ => None,
    }
}

fn news(change: &ListingEvent, listing: &ListingDetails) -> Option<News> {
    // It may be gone by now.
    if listing.status != ListingStatus::Active {
        return None;
    }
    let about = |price: Money| {
        Params::from([
            ("listing_id".to_owned(), listing.listing_id.to_string()),
            ("title".to_owned(), listing.title.clone()),
            ("price".to_owned(), price.to_string()),
        ])
    };
    match change {
        ListingEvent::Created(_) | ListingEvent::Published(_) => {
            Some(News { template: "new_listing", params: about(listing.price) })
        }
        ListingEvent::PriceChanged(change) => {
            let mut params = about(Money::new(change.new_price, change.currency));
            let before = Money::new(change.old_price, change.currency);
            params.insert("old_price".to_owned(), before.to_string());
            Some(News { template: "price_drop", params })
        }
        _ => None,
    }
}

impl Announcements {
    /// Finds those who take an interest in these read models.
    pub fn new(reads: ReadModels) -> Self {
        Self { reads, first_heads: FirstHeads::default() }
    }

    /// Those behind an interest, once the view has everybody who was there when the event was first looked at.
    async fn next(
        &self,
        (runtime, event): (&Runtime, &StoredEvent),
        of: (InterestKind, Uuid),
        after: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<InterestRow>, Failure> {
        self.first_heads.caught_up(runtime, event, &[INTERESTS_VIEW]).await?;
        Ok(self.reads.interests_in(of, after, limit).await?)
    }

    async fn has_anybody(
        &self,
        (runtime, event): (&Runtime, &StoredEvent),
        of: (InterestKind, Uuid),
    ) -> Result<bool, Failure> {
        Ok(!self.next((runtime, event), of, None, 1).await?.is_empty())
    }

    async fn begin(&self, runtime: &Runtime, event: &StoredEvent) -> Result<(), Failure> {
        let change = runtime.journal().decode(event).await.map_err(decode_failed)?;
        let Some(kind) = interest(&change) else { return Ok(()) };
        let (listing_id, cause) = (event.aggregate_id, (runtime, event));
        let (target_id, listing) = match kind {
            // In which nobody takes an interest is not asked: it may have a thousand changes waiting.
            InterestKind::Listing => {
                let is_news = self.has_anybody(cause, (kind, listing_id)).await?;
                (listing_id, if is_news { details(runtime, listing_id).await? } else { None })
            }
            InterestKind::Seller => {
                let Some(listing) = details(runtime, listing_id).await? else { return Ok(()) };
                let seller = listing.seller_id.uuid();
                let is_news = self.has_anybody(cause, (kind, seller)).await?;
                (seller, is_news.then_some(listing))
            }
        };
        let Some(listing) = listing else { return Ok(()) };
        let Some(news) = news(&change, &listing) else { return Ok(()) };
        let announcement_id = AnnouncementId::of(event.event_id);
        let start = AnnouncementCommand::Start(Box::new(NewAnnouncement {
            announcement_id,
            kind,
            target_id,
            template: news.template.to_owned(),
            params: news.params,
            cause_event_id: event.event_id,
            now: runtime.world().now(),
        }));
        send(runtime, event, announcement_id.uuid(), "start-announcement", start).await
    }

    /// Tells the next ones, and records it.
    async fn go_on(
        &self,
        runtime: &Runtime,
        event: &StoredEvent,
        announcement: &AnnouncementDetails,
    ) -> Result<(), Failure> {
        let after = announcement.last;
        let of = (announcement.kind, announcement.target_id);
        let rows = self.next((runtime, event), of, after, TOLD_AT_ONCE).await?;
        let is_full = rows.len() == usize::try_from(TOLD_AT_ONCE).unwrap_or(usize::MAX);
        let last = rows.last().filter(|_| is_full).map(|row| row.interest_id);
        let told = rows.len() as u64;
        tell(runtime, event, announcement, rows).await?;
        let now = runtime.world().now();
        let record = AnnouncementCommand::RecordTold { after, told, last, now };
        send(runtime, event, event.aggregate_id, "record-told", record).await
    }
}

/// What a listing is like now.
async fn details(runtime: &Runtime, listing_id: Uuid) -> Result<Option<ListingDetails>, Failure> {
    let listings = runtime.aggregate::<Listing>();
    let read = listings.read_inside(listing_id, |listing| listing.details.clone()).await;
    Ok(read.map_err(|error| command_failed(&error))?.value)
}

async fn send(
    runtime: &Runtime,
    event: &StoredEvent,
    id: Uuid,
    purpose: &str,
    command: AnnouncementCommand,
) -> Result<(), Failure> {
    let context = CommandContext::because_of(event, purpose, id);
    let sent = runtime.aggregate::<Announcement>().send(id, command, context, |_| ()).await;
    sent.map(drop).map_err(|error| command_failed(&error))
}

fn message(
    announcement: &AnnouncementDetails,
    recipient: UserId,
    now: souk_actors::world::Timestamp,
) -> NewNotification {
    let cause_event_id = announcement.cause_event_id;
    NewNotification {
        notification_id: NotificationId::of(cause_event_id, &announcement.template, recipient),
        recipient,
        audience: Audience::User,
        channel: Channel::InApp,
        template: announcement.template.clone(),
        to: None,
        params: Personal::new(recipient.uuid(), announcement.params.clone()),
        order_id: None,
        cause_event_id,
        muted: false,
        now,
    }
}

/// All at once, so that the journal takes them together.
async fn tell(
    runtime: &Runtime,
    event: &StoredEvent,
    announcement: &AnnouncementDetails,
    rows: Vec<InterestRow>,
) -> Result<(), Failure> {
    let mut telling = JoinSet::new();
    for row in rows {
        let recipient = UserId(row.user_id);
        let template = &announcement.template;
        if is_muted(runtime, recipient, Channel::InApp, template).await? {
            continue;
        }
        let new = message(announcement, recipient, runtime.world().now());
        let id = new.notification_id.uuid();
        let context = CommandContext::because_of(event, "announce", id);
        let notifications = runtime.aggregate::<Notification>();
        telling.spawn(async move {
            let command = NotificationCommand::Request(Box::new(new));
            notifications.send(id, command, context, |_| ()).await.map(drop)
        });
    }
    let mut failed: Option<CommandError<NotificationRejection>> = None;
    while let Some(told) = telling.join_next().await {
        match told {
            Ok(Ok(())) => {}
            Ok(Err(error)) => failed = Some(error),
            Err(error) => return Err(Failure::transient(error.to_string())),
        }
    }
    failed.map_or(Ok(()), |error| Err(command_failed(&error)))
}

#[async_trait]
impl Handler for Announcements {
    async fn handle(&self, runtime: &Runtime, event: &Arc<StoredEvent>) -> Result<(), Failure> {
        if &*event.aggregate_type == "listing" {
            return self.begin(runtime, event).await;
        }
        let announcements = runtime.aggregate::<Announcement>();
        let read = announcements.read_inside(event.aggregate_id, |of| of.details.clone()).await;
        let details = read.map_err(|error| command_failed(&error))?.value;
        match details.filter(|announcement| !announcement.is_completed) {
            Some(announcement) => self.go_on(runtime, event, &announcement).await,
            None => Ok(()),
        }
    }
}
