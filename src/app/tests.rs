//! The wiring at work: a whole marketplace in a folder of its own, without HTTP.

mod followers;
mod ratings;

use std::path::Path;
use std::task::Poll;
use std::time::Duration;

use souk_actors::command::CommandContext;
use souk_actors::faults::{Fault, Mode};
use souk_actors::journal::sqlite::{Durability, SqliteStore};
use souk_actors::retry::FailureKind;
use souk_actors::subscriber::Redrive;
use souk_actors::world::SystemWorld;
use uuid::Uuid;

use super::*;
use crate::config::{Database, JOURNAL_FILE, Storage};
use crate::domain::caller::Role;
use crate::domain::email_claim::EmailClaimCommand;
use crate::domain::ids::{EmailClaimId, ListingId, OrderId, PaymentId, UserId};
use crate::domain::listing::{CategoryStanding, ListingCommand, ListingStatus, NewListing};
use crate::domain::money::{Currency, Money};
use crate::domain::order::{
    Address, OrderCommand, OrderStatus, PaymentMethod, Placement, SagaDefinition, Wanted,
};
use crate::domain::user::{Registration, UserCommand, VerificationStatus};
use crate::images::Location;
use crate::projections::{
    BUFFERS_VIEW, EVENT_TYPES_VIEW, EventFilter, INTERESTS_VIEW, ListingFilter, OrderFilter,
    PROJECTIONS, PROMOTIONS_VIEW, REVIEWS_VIEW, SERVICE_TOKENS_VIEW, SESSIONS_VIEW, SagaFilter,
    UserFilter, WEBHOOK_DELIVERIES_VIEW,
};

const PATIENCE: Duration = Duration::from_secs(20);

struct Market {
    app: App,
    dir: tempfile::TempDir,
    /// Kept over a restart: the journal's lock ends with the process.
    store: Arc<SqliteStore>,
}

fn settings(dir: &Path) -> Settings {
    Settings {
        storage: Storage {
            data_dir: dir.to_owned(),
            images: Location::Folder(dir.join("images")),
            database: Database::Sqlite(dir.join(JOURNAL_FILE)),
            database_wait: Duration::ZERO,
            lease_ttl: Duration::ZERO,
            disk_free_min: 0,
            durability: Durability::Full,
        },
        partitions: None,
        development: true,
        master_key: [7; 32],
        lookup_key: [8; 32],
        token_of: Arc::new(|user, nonce| format!("token-{user}-{nonce}")),
        messaging: Messaging::default(),
        world: Arc::new(SystemWorld::new()),
        retry: RetryPolicy::default(),
        webhook_reach: Reach::default(),
        momo: None,
        loyalty: Default::default(),
        hourly_reports: true,
        event_type_prefix: "souk".to_owned(),
        options: Options::default(),
    }
}

impl Market {
    async fn open() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(&dir.path().join(JOURNAL_FILE), 1).await.unwrap());
        let app = App::start_on(settings(dir.path()), store.clone()).await.unwrap();
        Self { app, dir, store }
    }

    async fn restart(self) -> Self {
        assert!(self.app.drain(PATIENCE).await);
        let Self { dir, store, .. } = self;
        let app = App::start_on(settings(dir.path()), store.clone()).await.unwrap();
        Self { app, dir, store }
    }

    fn context(&self) -> CommandContext {
        CommandContext::outside(&**self.app.runtime.world(), "req_1", "req_1")
    }

    /// Waits until nothing is under way any more.
    async fn settle(&self) {
        assert!(
            self.app.runtime.subscriptions().quiesce(PATIENCE).await,
            "it does not come to rest"
        );
        let letters = self.app.runtime.dead_letters().list(None, 10).await.unwrap();
        assert!(letters.is_empty(), "{letters:?}");
    }

    async fn register(&self, email: &str) -> UserId {
        let world = self.app.runtime.world();
        let (user_id, now) = (UserId(world.new_id()), world.now());
        let email_claim_id = EmailClaimId(souk_actors::id::derived("claim", &[email.as_bytes()]));
        let expires_at = now.plus(Duration::from_secs(60));
        let claim = EmailClaimCommand::Claim { user_id, now, expires_at };
        let claims = self.app.runtime.aggregate::<EmailClaim>();
        claims.send(email_claim_id.uuid(), claim, self.context(), |_| ()).await.unwrap();
        let registration = Registration {
            user_id,
            email: email.to_owned(),
            first_name: "Ada".to_owned(),
            last_name: "Lovelace".to_owned(),
            email_claim_id,
            verification_token_hash: "hash".to_owned(),
            verification_token_nonce: "nonce".to_owned(),
            verification_expires_at: expires_at,
            now,
        };
        self.user(user_id, UserCommand::Register(Box::new(registration))).await;
        user_id
    }

    async fn user(&self, id: UserId, command: UserCommand) {
        let users = self.app.runtime.aggregate::<User>();
        users.send(id.uuid(), command, self.context(), |_| ()).await.unwrap();
    }

    async fn list_something(&self, seller_id: UserId, quantity: u32) -> ListingId {
        let listing_id = ListingId(self.app.runtime.world().new_id());
        let new = NewListing {
            caller: Caller::user(seller_id, [Role::Seller]),
            listing_id,
            seller_id,
            seller_standing: Some(VerificationStatus::Verified),
            title: "Loom".to_owned(),
            description: "It weaves.".to_owned(),
            price: Money::new(150_000, Currency::Vnd),
            category_id: CategoryId::of_slug("home"),
            category_standing: CategoryStanding::Active,
            sku: None,
            quantity,
            images: Vec::new(),
            images_max: 0,
            draft: false,
            now: self.app.runtime.world().now(),
        };
        let listings = self.app.runtime.aggregate::<Listing>();
        let command = ListingCommand::Create(Box::new(new));
        listings.send(listing_id.uuid(), command, self.context(), |_| ()).await.unwrap();
        listing_id
    }

    async fn buy(&self, buyer: UserId, seller: UserId, listing: ListingId, by: &str) -> OrderId {
        let listings = self.app.runtime.aggregate::<Listing>();
        let read = listings.read(listing.uuid(), |listing| listing.details.clone()).await.unwrap();
        let details = read.value.unwrap();
        let order_id = OrderId(self.app.runtime.world().new_id());
        let address = Address {
            recipient: None,
            line1: "1 Secret Street".to_owned(),
            line2: None,
            ward: None,
            district: "1".to_owned(),
            city: "Hue".to_owned(),
            postal_code: None,
            country: "VN".to_owned(),
            phone: None,
        };
        let placement = Placement {
            caller: Caller::user(buyer, [Role::Buyer]),
            order_id,
            items: vec![Wanted {
                listing_id: listing,
                seller_id: seller,
                status: ListingStatus::Active,
                sku: details.sku,
                unit_price: details.price,
                quantity: 1,
            }],
            delivery_address: address,
            payment_method: PaymentMethod::new(by),
            saga_definition: SagaDefinition::ReserveFirst,
            checkout_id: None,
            promotion: None,
            as_transaction: false,
            now: self.app.runtime.world().now(),
        };
        let orders = self.app.runtime.aggregate::<Order>();
        let command = OrderCommand::Place(Box::new(placement));
        orders.send(order_id.uuid(), command, self.context(), |_| ()).await.unwrap();
        order_id
    }

    async fn status(&self, order: OrderId) -> OrderStatus {
        let orders = self.app.runtime.aggregate::<Order>();
        let read =
            orders.read(order.uuid(), |order| order.details.as_ref().map(|o| o.status)).await;
        read.unwrap().value.unwrap()
    }

    async fn told(&self, user: UserId) -> Vec<String> {
        let rows =
            self.app.read_models.notifications(Some(user.uuid()), false, false, None, 50).await;
        let mut templates: Vec<_> = rows.unwrap().into_iter().map(|row| row.template).collect();
        templates.sort_unstable();
        templates
    }
}

/// Does all of it at once.
async fn at_once(work: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut work: Vec<_> = work.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        work.retain_mut(|one| one.as_mut().poll(context).is_pending());
        if work.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_user_gets_one_mail_and_keeps_the_address_also_after_a_restart() {
    let market = Market::open().await;
    let user = market.register("ada@example.com").await;
    market.settle().await;
    let market = market.restart().await;
    market.settle().await;

    let sent = market.app.outbox.list("email", 50).await.unwrap();
    assert_eq!(sent.len(), 1, "{sent:?}");
    assert_eq!((sent[0].to.as_str(), sent[0].subject.as_str()), ("ada@example.com", "Welcome!"));
    assert!(sent[0].text.contains(&format!("token-{user}-nonce")), "{}", sent[0].text);
    let claims = market.app.runtime.aggregate::<EmailClaim>();
    let claim = souk_actors::id::derived("claim", &[b"ada@example.com"]);
    let holder = claims.read(claim, |claim| claim.holder.clone()).await.unwrap().value.unwrap();
    assert!(holder.confirmed && holder.user_id == user);
    assert_eq!(market.app.read_models.categories().await.unwrap().len(), CATEGORIES.len());
    let users = market.app.read_models.users(&UserFilter::default(), None, 9).await.unwrap();
    assert_eq!(users.len(), 1);
    assert_nothing_personal(market.dir.path());
}

/// No file holds anything readable about a person.
fn assert_nothing_personal(dir: &Path) {
    for file in std::fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        if path.is_dir() {
            assert_nothing_personal(&path);
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        for secret in ["ada@example.com", "Lovelace", "Secret Street", "token-"] {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{secret} is in {}", path.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purchase_goes_through_and_everybody_hears_of_it() {
    let market = Market::open().await;
    let seller = market.register("seller@example.com").await;
    let buyer = market.register("ada@example.com").await;
    let listing = market.list_something(seller, 2).await;
    let order = market.buy(buyer, seller, listing, "sandbox").await;
    market.settle().await;

    assert_eq!(market.status(order).await, OrderStatus::Shipped);
    let heard = market.told(seller).await;
    assert_eq!(heard, ["new_order", "order_paid", "sale_receipt", "welcome_verification"]);
    let heard = market.told(buyer).await;
    let of_order = ["order_confirmation", "order_placed", "order_shipped", "payment_received"];
    assert_eq!(heard[..4], of_order);
    assert_eq!(heard[4..], ["receipt", "welcome_verification"]);
    assert_eq!(market.app.sandbox.calls().len(), 1);

    let models = &market.app.read_models;
    let orders = models.orders(&OrderFilter::default(), None, 9).await.unwrap();
    assert_eq!((orders.len(), orders[0].status.as_str()), (1, "SHIPPED"));
    let number = &orders[0].order_number;
    assert_eq!(models.order_by_number(number).await.unwrap(), Some(order.uuid()));
    let listings = models.listings(&ListingFilter::default(), None, 9).await.unwrap();
    assert_eq!((listings[0].available, listings[0].reserved, listings[0].sold), (1, 0, 1));
    assert_eq!(models.active_listings(seller.uuid()).await.unwrap(), 1);
    assert_eq!(models.shipments(order.uuid()).await.unwrap().len(), 1);
    let saga = SagaFilter { key: Some(order.uuid()), ..Default::default() };
    let sagas = models.sagas(&saga, None, 9).await.unwrap();
    assert_eq!((sagas.len(), sagas[0].status.as_str()), (1, "COMPLETED"));

    let head = market.app.runtime.journal().heads()[0].position;
    let all = models.events(&EventFilter::default(), &Default::default(), 1_000).await.unwrap();
    assert_eq!(all.len() as u64, head);
    for projection in PROJECTIONS {
        let subscriptions = market.app.runtime.subscriptions();
        assert_eq!(subscriptions.position(projection, 0), Some(head), "{projection}");
        // Nobody outside has told anything, or is to be told, and nobody has written a
        // review, offered a promotion, follows anybody or has logged in.
        let concerned = ![
            SERVICE_TOKENS_VIEW,
            EVENT_TYPES_VIEW,
            BUFFERS_VIEW,
            PROMOTIONS_VIEW,
            REVIEWS_VIEW,
            INTERESTS_VIEW,
            SESSIONS_VIEW,
            WEBHOOK_DELIVERIES_VIEW,
        ]
        .contains(&projection);
        assert_eq!(models.position(projection, 0).await.unwrap() > 0, concerned, "{projection}");
    }
    assert_nothing_personal(market.dir.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declined_payment_gives_the_stock_back() {
    let market = Market::open().await;
    let seller = market.register("seller@example.com").await;
    let buyer = market.register("ada@example.com").await;
    let listing = market.list_something(seller, 1).await;
    let order = market.buy(buyer, seller, listing, "test_decline").await;
    market.settle().await;

    assert_eq!(market.status(order).await, OrderStatus::PaymentFailed);
    let models = &market.app.read_models;
    let listings = models.listings(&ListingFilter::default(), None, 9).await.unwrap();
    assert_eq!((listings[0].available, listings[0].reserved), (1, 0));
    assert_eq!(listings[0].status, "ACTIVE");
    let saga = SagaFilter { state: Some("COMPENSATED".to_owned()), ..Default::default() };
    assert_eq!(models.sagas(&saga, None, 9).await.unwrap().len(), 1);
    assert!(market.told(buyer).await.contains(&"order_payment_failed".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_that_waits_for_the_buyer_is_voided_with_the_order() {
    let market = Market::open().await;
    let seller = market.register("seller@example.com").await;
    let buyer = market.register("ada@example.com").await;
    let listing = market.list_something(seller, 1).await;
    let order = market.buy(buyer, seller, listing, "test_pending").await;
    market.settle().await;
    assert_eq!(market.status(order).await, OrderStatus::Confirmed);
    let payment = PaymentId::of(order).uuid();
    let payments = market.app.runtime.aggregate::<Payment>();
    let read = payments.read(payment, |payment| payment.details.clone()).await.unwrap();
    assert!(read.value.unwrap().instructions.is_some());

    let orders = market.app.runtime.aggregate::<Order>();
    let cancel = OrderCommand::Cancel {
        caller: Caller::user(buyer, [Role::Buyer]),
        reason: None,
        now: market.app.runtime.world().now(),
    };
    orders.send(order.uuid(), cancel, market.context(), |_| ()).await.unwrap();
    market.settle().await;
    assert_eq!(market.status(order).await, OrderStatus::Cancelled);
    let status = payments.read(payment, |payment| payment.details.clone().unwrap().status).await;
    assert_eq!(status.unwrap().value, crate::domain::payment::PaymentStatus::Voided);
    assert_ne!(payment, Uuid::nil());
}

/// A letter points at its event: who is erased before it is retried is told nothing by it.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_is_retried_after_an_erasure_tells_nobody() {
    let market = Market::open().await;
    let runtime = &market.app.runtime;
    let permanent = Fault {
        target: notifications::NAME.to_owned(),
        mode: Mode::Fail,
        kind: FailureKind::Permanent,
        times: Some(2),
        key: None,
        delay_ms: 0,
    };
    runtime.faults().add(permanent);
    let ada = market.register("ada@example.com").await;
    let bob = market.register("bob@example.com").await;
    assert!(runtime.subscriptions().quiesce(PATIENCE).await);
    let letters = runtime.dead_letters();
    assert_eq!(letters.list(Some(notifications::NAME), 10).await.unwrap().len(), 2);
    let erase =
        UserCommand::Erase { caller: Caller::System, reason: None, now: runtime.world().now() };
    market.user(ada, erase).await;
    runtime.control().forget(ada.uuid()).await.unwrap();
    for user in [ada, bob] {
        let (name, key, context) = (notifications::NAME, user.uuid(), market.context());
        let done = letters.redrive(name, 0, key, Redrive::Retry, context, None).await;
        assert_eq!(done.unwrap().unwrap().left, 0);
    }
    market.settle().await;
    let sent = market.app.outbox.list("email", 50).await.unwrap();
    let to: Vec<_> = sent.iter().map(|mail| mail.to.as_str()).collect();
    assert_eq!(to, ["bob@example.com"], "the other letter is worked as ever");
    assert_nothing_personal(market.dir.path());
}

#[test]
fn an_addresss_hash_is_keyed_and_knows_no_case() {
    let hash = address_hash([1; 32]);
    assert_eq!(hash("Ada@Example.com"), hash("ada@example.com"));
    assert_ne!(hash("ada@example.com"), address_hash([2; 32])("ada@example.com"));
    assert_eq!(hash("ada@example.com").len(), 64);
}

/// Somebody's write has shown that the journal takes nothing: a start does not end over that.
#[tokio::test]
async fn a_start_waits_for_a_journal_that_takes_nothing_yet() {
    let market = Market::open().await;
    let runtime = market.app.runtime.clone();
    let fault = runtime.faults().add(Fault {
        target: "journal".to_owned(),
        mode: Mode::Fail,
        kind: FailureKind::Transient,
        times: None,
        key: None,
        delay_ms: 0,
    });
    let category_id = CategoryId::of_slug("maps");
    let maps = CategoryCommand::Create {
        caller: Caller::System,
        category_id,
        name: "Maps".to_owned(),
        slug: "maps".to_owned(),
        now: runtime.world().now(),
    };
    let (categories, context) = (runtime.aggregate::<Category>(), market.context());
    let writing = tokio::spawn(async move {
        categories.send(category_id.uuid(), maps, context, |_| ()).await.is_ok()
    });
    while make_categories(&runtime).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut seeding = tokio_test::task::spawn(seed_categories(&runtime));
    tokio_test::assert_pending!(seeding.poll());
    assert!(runtime.faults().remove(fault));
    seeding.await.unwrap();
    // Either way: it was told that it failed, or it is stored by now.
    writing.await.unwrap();
}

#[test]
fn default_categories_have_ids_of_their_own() {
    let ids: std::collections::BTreeSet<_> =
        CATEGORIES.iter().map(|(slug, _)| CategoryId::of_slug(slug)).collect();
    assert_eq!(ids.len(), CATEGORIES.len());
}
