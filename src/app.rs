//! The wiring: opens what is stored, registers everything with the runtime, starts it.
//!
//! ```text
//!   config ──▶ journal ─────┐
//!              keyring ─────┼──▶ runtime ◀── aggregates, the saga, subscriptions
//!              read models ─┘      │
//!                                  └──▶ App: what the HTTP layer and the CLI work with
//! ```

pub mod contexts;
mod database;
#[cfg(test)]
mod decoders;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use souk_actors::circuit::Circuit;
use souk_actors::command::{CommandContext, CommandError, Unavailable};
use souk_actors::journal::Store;
use souk_actors::journal::codec::Keyring;
use souk_actors::retry::RetryPolicy;
use souk_actors::runtime::{Builder, Options, Runtime};
use souk_actors::subscriber::Subscription;
use souk_actors::world::World;

use crate::config::{Messaging, Storage};
use crate::domain::activity::Activity;
use crate::domain::alert::Alert;
use crate::domain::announcement::Announcement;
use crate::domain::caller::Caller;
use crate::domain::category::{Category, CategoryCommand, CategoryRejection};
use crate::domain::email_claim::EmailClaim;
use crate::domain::engagement::Engagement;
use crate::domain::escrow::Escrow;
use crate::domain::event_source::EventSources;
use crate::domain::event_type::EventType;
use crate::domain::ids::{CategoryId, ReportingId};
use crate::domain::interest::Interest;
use crate::domain::listing::Listing;
use crate::domain::loyalty::{LoyaltyAccount, Rates};
use crate::domain::notification::{Channel, Notification};
use crate::domain::order::Order;
use crate::domain::order_saga::OrderSaga;
use crate::domain::payment::Payment;
use crate::domain::projection_care::ProjectionCare;
use crate::domain::promotion::Promotion;
use crate::domain::publication::Publication;
use crate::domain::reporting::{Reporting, ReportingCommand};
use crate::domain::review::Review;
use crate::domain::search_entry::SearchEntry;
use crate::domain::seller_account::SellerAccount;
use crate::domain::service::Service;
use crate::domain::service_token::ServiceToken;
use crate::domain::session::Session;
use crate::domain::shipment::Shipment;
use crate::domain::user::User;
use crate::domain::webhook_delivery::WebhookDelivery;
use crate::domain::webhook_endpoint::WebhookEndpoint;
use crate::gateways::PaymentGateways;
use crate::gateways::guarded::Guarded;
use crate::gateways::momo::{self, MoMo};
use crate::gateways::payment::PaymentGateway;
use crate::gateways::sandbox::Sandbox;
use crate::gateways::webhook::{Reach, WebhookSender};
use crate::identity::access::Access;
use crate::images::Images;
use crate::projections::ReadModels;
use crate::projections::rebuild::Rebuilder;
use crate::subscribers::announcements::Announcements;
use crate::subscribers::bounces::MailBounces;
use crate::subscribers::email_claims::EmailClaims;
use crate::subscribers::engagement::Engagements;
use crate::subscribers::erasures::Erasures;
use crate::subscribers::flow_times::FlowTimes;
use crate::subscribers::loyalty::Loyalty;
use crate::subscribers::mail_sender::{AddressHash, MailSender};
use crate::subscribers::messages::{Composer, TokenOf, of_channel};
use crate::subscribers::notifications::Notifications;
use crate::subscribers::notifications::escalations::{self, Escalations};
use crate::subscribers::notifications::letters::{self, DeadLetterNotices};
use crate::subscribers::notifications::reports::{self as report_mails, ReportMailer};
use crate::subscribers::order_progress::OrderProgress;
use crate::subscribers::outbox::Outbox;
use crate::subscribers::payment_gateway::PaymentGatewayHandler;
use crate::subscribers::reports::Reports;
use crate::subscribers::saga_router::MarketRouter;
use crate::subscribers::search_indexer::SearchIndexer;
use crate::subscribers::seller_ratings::SellerRatings;
use crate::subscribers::session_endings::SessionEndings;
use crate::subscribers::sms_sender::SmsHandler;
use crate::subscribers::webhooks::{Fanout, Sender, Webhooks};
use crate::subscribers::{
    announcements, bounces, email_claims, engagement, erasures, flow_times, loyalty, mail_sender,
    notifications, order_progress, payment_gateway, priority_of, reports, search_indexer,
    seller_ratings, sequence_gaps, session_endings, sms_sender, webhooks,
};
use crate::telemetry::flows::Flows;

pub use database::{
    copy_journal, erase_read_models, open_journal, open_journal_read_only, open_read_models,
};

use database::open_read_models_for;

/// Lanes of the subscriptions on the way of every purchase. Each lane waits for the journal (and a
/// payment's, at worst, for the provider's time limit), so there are many more than processors.
/// Stored with the checkpoints.
const LANES_BUSY: u16 = 32;
/// Lanes of the others. Stored with the checkpoints.
const LANES: u16 = 8;

/// How long a handler has beyond what it waits for outside.
const SPARE: Duration = Duration::from_secs(20);

/// The categories of a new marketplace in development: slug and name.
const CATEGORIES: [(&str, &str); 6] = [
    ("electronics", "Electronics"),
    ("fashion", "Fashion"),
    ("home", "Home"),
    ("books", "Books"),
    ("toys", "Toys"),
    ("sports", "Sports"),
];

/// What the application is started with.
pub struct Settings {
    /// Where data is kept.
    pub storage: Storage,
    /// How many partitions a new journal gets; none means the store's default.
    pub partitions: Option<u16>,
    /// Whether default categories are made.
    pub development: bool,
    /// Wraps the keys of persons.
    pub master_key: [u8; 32],
    /// Hashes what is looked up but must not be guessed.
    pub lookup_key: [u8; 32],
    /// Makes a user's verification token from its nonce.
    pub token_of: TokenOf,
    /// How people are reached, in which words.
    pub messaging: Messaging,
    /// Time, randomness and ids.
    pub world: Arc<dyn World>,
    /// How handlers are retried. Sagas and projections keep the runtime's own policy.
    pub retry: RetryPolicy,
    /// Where webhooks may go.
    pub webhook_reach: Reach,
    /// Who we are at MoMo; none: it takes no payments.
    pub momo: Option<momo::Settings>,
    /// For how much money there is a point.
    pub loyalty: Rates,
    /// Whether hourly reports are begun, where they have not been yet.
    pub hourly_reports: bool,
    /// What stands before an event's type in CloudEvents.
    pub event_type_prefix: String,
    /// The runtime's limits.
    pub options: Options,
}

/// The running application.
#[derive(Clone)]
pub struct App {
    /// The actors.
    pub runtime: Runtime,
    /// The read models.
    pub read_models: ReadModels,
    /// Rebuilds of the read models.
    pub rebuilds: Rebuilder,
    /// What messages say.
    pub composer: Composer,
    /// What went out, for development.
    pub outbox: Outbox,
    /// The built-in payment provider.
    pub sandbox: Arc<Sandbox>,
    /// The circuits of the providers outside.
    pub circuits: Vec<Arc<Circuit>>,
    /// Where events are sent to.
    pub webhooks: Webhooks,
    /// The images of listings.
    pub images: Images,
    /// How people and their logins stand.
    pub access: Access,
    /// The flows that are under way.
    pub flows: Flows,
}

impl App {
    /// Starts on what is stored.
    pub async fn start(settings: Settings) -> anyhow::Result<Self> {
        let store = open_journal(&settings.storage, settings.partitions).await?;
        Self::start_on(settings, store).await
    }

    /// Starts on this journal.
    pub async fn start_on(settings: Settings, store: Arc<dyn Store>) -> anyhow::Result<Self> {
        let read_models = open_read_models_for(&settings.storage, &*store).await?;
        let images = Images::open(&settings.storage.images)?;
        let sandbox = Arc::new(Sandbox::default());
        let momo_holds_first = settings.momo.as_ref().map(|momo| !momo.auto_capture);
        let router = MarketRouter { momo_holds_first };
        let momo = settings.momo.map(|momo| MoMo::new(momo, settings.world.clone())).transpose();
        let momo = momo.context("cannot make calls to MoMo")?.map(Guarded::new);
        let circuits = momo.iter().map(Guarded::circuit).collect();
        let gateways = PaymentGateways {
            sandbox: sandbox.clone(),
            momo: momo.map(|momo| Arc::new(momo) as Arc<dyn PaymentGateway>),
        };
        let keys = Arc::new(Keyring::new(&settings.master_key, settings.world.clone()));
        let builder = Runtime::builder(store, settings.world, keys, settings.options);
        let mut builder = with_aggregates(builder, router);
        let address_hash = address_hash(settings.lookup_key);
        let Messaging { mailer, sms, templates, .. } = settings.messaging;
        let composer = Composer::new(templates, settings.token_of);
        let senders = (
            MailSender::new(mailer, composer.clone(), address_hash),
            SmsHandler::new(sms, composer.clone(), number_hash(settings.lookup_key)),
        );
        let webhooks = Webhooks::new(
            WebhookSender::new(settings.webhook_reach),
            &settings.master_key,
            read_models.clone(),
            settings.event_type_prefix,
        );
        let flows = Flows::default();
        let access = Access::default();
        let effects = handlers(gateways, senders, &read_models)
            .into_iter()
            .chain(keepers(settings.loyalty, &read_models))
            .chain(leavings(&access, &read_models))
            .chain(webhook_handlers(&webhooks))
            .chain([timing(&flows)])
            .map(|subscription| subscription.retrying(settings.retry.clone()));
        for subscription in effects.chain(read_models.subscriptions()) {
            let priority = priority_of(subscription.name);
            builder = builder.subscribe(subscription.at_priority(priority));
        }
        let runtime = builder.start().await.context("cannot start the actors")?;
        let loaded = webhooks.directory().load(&runtime).await;
        loaded.context("cannot read the webhook endpoints")?;
        if settings.development {
            seed_categories(&runtime).await?;
        }
        start_reporting(&runtime, settings.hourly_reports).await;
        let rebuilds = Rebuilder::start(read_models.clone(), runtime.clone()).await;
        let rebuilds = rebuilds.context("cannot go on with what was being rebuilt")?;
        let outbox = Outbox::new(runtime.clone(), read_models.clone(), composer.clone());
        Ok(Self {
            runtime,
            read_models,
            rebuilds,
            composer,
            outbox,
            sandbox,
            circuits,
            webhooks,
            images,
            access,
            flows,
        })
    }

    /// Takes no more commands, lets what is under way finish, and closes. Returns whether all of
    /// it finished in time.
    pub async fn drain(&self, timeout: Duration) -> bool {
        self.rebuilds.stop();
        let finished = self.runtime.drain(timeout).await;
        self.read_models.close().await;
        finished
    }
}

/// Everything there is that decides.
fn with_aggregates(builder: Builder, router: MarketRouter) -> Builder {
    builder
        .aggregate::<User>()
        .aggregate::<EmailClaim>()
        .aggregate::<Session>()
        .aggregate::<Category>()
        .aggregate::<Listing>()
        .aggregate::<SearchEntry>()
        .aggregate::<Activity>()
        .aggregate::<Alert>()
        .aggregate::<Service>()
        .aggregate::<Order>()
        .aggregate::<Payment>()
        .aggregate::<Escrow>()
        .aggregate::<SellerAccount>()
        .aggregate::<Shipment>()
        .aggregate::<Promotion>()
        .aggregate::<LoyaltyAccount>()
        .aggregate::<Engagement>()
        .aggregate::<Reporting>()
        .aggregate::<Review>()
        .aggregate::<Interest>()
        .aggregate::<Announcement>()
        .aggregate::<Notification>()
        .aggregate::<ServiceToken>()
        .aggregate::<EventType>()
        .aggregate::<EventSources>()
        .aggregate::<Publication>()
        .aggregate::<WebhookEndpoint>()
        .aggregate::<WebhookDelivery>()
        .aggregate::<ProjectionCare>()
        .saga::<OrderSaga>(Arc::new(router))
}

fn handlers(
    gateways: PaymentGateways,
    senders: (MailSender, SmsHandler),
    reads: &ReadModels,
) -> Vec<Subscription> {
    let calls = [Some(&gateways.sandbox), gateways.momo.as_ref()];
    let slowest = calls.into_iter().flatten().map(|gateway| gateway.answer_within()).max();
    vec![
        Subscription::handler(
            email_claims::NAME,
            "users",
            email_claims::TOPICS,
            Arc::new(EmailClaims),
        )
        .in_lanes(LANES),
        Subscription::handler(
            payment_gateway::NAME,
            "payments",
            payment_gateway::TOPICS,
            Arc::new(PaymentGatewayHandler::new(gateways)),
        )
        // A question, then the charge again, and what they lead to.
        .within(slowest.unwrap_or_default().saturating_mul(2).saturating_add(SPARE))
        .in_lanes(LANES_BUSY),
        Subscription::handler(
            order_progress::NAME,
            "orders",
            order_progress::TOPICS,
            Arc::new(OrderProgress),
        )
        .in_lanes(LANES),
        Subscription::handler(
            seller_ratings::NAME,
            "reviews",
            seller_ratings::TOPICS,
            Arc::new(SellerRatings),
        )
        .keyed_by(seller_ratings::key)
        .in_lanes(LANES),
        Subscription::handler(engagement::NAME, "users", engagement::TOPICS, Arc::new(Engagements))
            .in_lanes(LANES),
    ]
    .into_iter()
    .chain(tellers(senders, reads))
    .chain(sequence_gaps::subscriptions().map(|of| of.in_lanes(LANES)))
    .collect()
}

/// What tells people.
fn tellers((mails, texts): (MailSender, SmsHandler), reads: &ReadModels) -> [Subscription; 8] {
    [
        Subscription::handler(
            notifications::NAME,
            "notifications",
            notifications::TOPICS,
            Arc::new(Notifications),
        )
        .in_lanes(LANES_BUSY),
        Subscription::handler(
            announcements::NAME,
            "notifications",
            announcements::TOPICS,
            Arc::new(Announcements::new(reads.clone())),
        )
        .in_lanes(LANES),
        Subscription::handler(
            escalations::NAME,
            "notifications",
            escalations::TOPICS,
            Arc::new(Escalations::new(reads.clone())),
        )
        .in_lanes(LANES),
        Subscription::handler(
            bounces::NAME,
            "notifications",
            bounces::TOPICS,
            Arc::new(MailBounces),
        )
        .in_lanes(LANES),
        Subscription::handler(
            letters::NAME,
            "notifications",
            letters::TOPICS,
            Arc::new(DeadLetterNotices),
        )
        .in_lanes(LANES),
        Subscription::handler(
            report_mails::NAME,
            "notifications",
            report_mails::TOPICS,
            Arc::new(ReportMailer::new(reads.clone())),
        )
        .in_lanes(LANES),
        Subscription::handler(
            mail_sender::NAME,
            "notifications",
            mail_sender::TOPICS,
            Arc::new(mails),
        )
        .keyed_by(of_channel(Channel::Email))
        .in_lanes(LANES_BUSY),
        Subscription::handler(
            sms_sender::NAME,
            "notifications",
            sms_sender::TOPICS,
            Arc::new(texts),
        )
        .keyed_by(of_channel(Channel::Sms))
        .in_lanes(LANES_BUSY),
    ]
}

/// Those who keep points, reports and what is told of the search.
fn keepers(rates: Rates, read_models: &ReadModels) -> [Subscription; 3] {
    let points = Arc::new(Loyalty(rates));
    let makes = Arc::new(Reports::new(read_models.clone()));
    [
        Subscription::handler(loyalty::NAME, "loyalty", loyalty::TOPICS, points).in_lanes(LANES),
        Subscription::handler(reports::NAME, "analytics", reports::TOPICS, makes).in_lanes(LANES),
        search_indexer::subscription(SearchIndexer::new(read_models.clone())).in_lanes(LANES),
    ]
}

/// What follows when somebody leaves, or may not come in any more.
fn leavings(access: &Access, read_models: &ReadModels) -> [Subscription; 2] {
    let endings = Arc::new(SessionEndings::new(access.clone(), read_models.clone()));
    let erased = Arc::new(Erasures::new(read_models.clone()));
    [
        Subscription::handler(session_endings::NAME, "users", session_endings::TOPICS, endings)
            .in_lanes(LANES),
        Subscription::handler(erasures::NAME, "users", erasures::TOPICS, erased).in_lanes(LANES),
    ]
}

/// What measures how long flows took.
fn timing(flows: &Flows) -> Subscription {
    let times = Arc::new(FlowTimes(flows.clone()));
    Subscription::handler(flow_times::NAME, "system", flow_times::TOPICS, times).in_lanes(LANES)
}

fn webhook_handlers(webhooks: &Webhooks) -> [Subscription; 2] {
    let fanout = Arc::new(Fanout(webhooks.clone()));
    let sender = Arc::new(Sender(webhooks.clone()));
    [
        Subscription::handler(webhooks::FANOUT, "webhooks", webhooks::FANOUT_TOPICS, fanout)
            .keyed_by(webhooks.key())
            .in_lanes(LANES_BUSY),
        Subscription::handler(webhooks::SENDER, "webhooks", webhooks::SENDER_TOPICS, sender)
            .in_lanes(LANES),
    ]
}

/// A keyed hash of an address: tells equal ones apart from different ones, and nothing more.
fn address_hash(lookup_key: [u8; 32]) -> AddressHash {
    Arc::new(move |address| {
        let address = crate::domain::text::normal_email(address);
        let hash =
            souk_actors::id::keyed_hash(&lookup_key, "mail recipient", &[address.as_bytes()]);
        crate::domain::text::hex(&hash)
    })
}

/// The same of a telephone number in its one spelling.
fn number_hash(lookup_key: [u8; 32]) -> AddressHash {
    Arc::new(move |number| {
        let hash = souk_actors::id::keyed_hash(&lookup_key, "sms recipient", &[number.as_bytes()]);
        crate::domain::text::hex(&hash)
    })
}

/// There is a report for every hour from the first start on. Nobody is kept waiting for that: where it
/// cannot be begun now, it is at the next start.
async fn start_reporting(runtime: &Runtime, wanted: bool) {
    if !wanted {
        return;
    }
    let context = CommandContext::inside(&**runtime.world(), "startup", "startup");
    let start = ReportingCommand::Start { now: runtime.world().now() };
    let reporting = runtime.aggregate::<Reporting>();
    let started = reporting.send(ReportingId::only().uuid(), start, context, |_| ()).await;
    if let Err(error) = started {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(error, "the hourly reports could not be begun");
    }
}

/// How long a start waits for a journal that takes nothing yet, and between two tries.
const FIRST_WRITE_WITHIN: Duration = Duration::from_secs(30);
const FIRST_WRITE_AGAIN: Duration = Duration::from_millis(200);

/// Makes the default categories that are not there yet. They are the first that a start writes, and
/// a database that has just come back, or still works for who was here before, may need a moment.
async fn seed_categories(runtime: &Runtime) -> anyhow::Result<()> {
    let until = tokio::time::Instant::now() + FIRST_WRITE_WITHIN;
    loop {
        let Err(error) = make_categories(runtime).await else { return Ok(()) };
        let passes = matches!(
            error,
            CommandError::Unavailable(Unavailable::Journal | Unavailable::Restarting)
                | CommandError::OutcomeUnknown
        );
        if !passes || tokio::time::Instant::now() >= until {
            return Err(error).context("cannot make the default categories");
        }
        tracing::info!(why = %error, "the first write of this start is tried again");
        tokio::time::sleep(FIRST_WRITE_AGAIN).await;
    }
}

async fn make_categories(runtime: &Runtime) -> Result<(), CommandError<CategoryRejection>> {
    let categories = runtime.aggregate::<Category>();
    for (slug, name) in CATEGORIES {
        let category_id = CategoryId::of_slug(slug);
        let command = CategoryCommand::Create {
            caller: Caller::System,
            category_id,
            name: name.to_owned(),
            slug: slug.to_owned(),
            now: runtime.world().now(),
        };
        let context = CommandContext::inside(&**runtime.world(), "startup", "startup");
        match categories.send(category_id.uuid(), command, context, |_| ()).await {
            Ok(_)
            | Err(CommandError::Rejected { rejection: CategoryRejection::AlreadyExists, .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
