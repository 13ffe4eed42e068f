//! What sellers have earned, how they get it, and whether the books are right.

use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, Page, split};
use super::body::{Fields, FromFields, Unread, Valid};
use super::call::{Call, SignedIn, Staff};
use super::money::MoneyBody;
use super::pages::{self, PAGE};
use super::params::{Params, path_id};
use super::problem::ApiError;
use crate::domain::escrow::{MARKET, account_of};
use crate::domain::ids::{PayoutId, SellerAccountId, UserId};
use crate::domain::money::Currency;
use crate::domain::seller_account::{
    Destination, Ending, PayoutRequest, SellerAccount, SellerAccountCommand,
};
use crate::projections::{LEDGER, PayoutRow};

/// How payouts may stand.
pub(super) const STATUSES: [&str; 3] = ["REQUESTED", "COMPLETED", "FAILED"];

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(my_balance))
        .routes(routes!(request_payout, my_payouts))
        .routes(routes!(my_payout))
        .routes(routes!(all_payouts))
        .routes(routes!(get_payout))
        .routes(routes!(complete_payout))
        .routes(routes!(fail_payout))
        .routes(routes!(check_ledger))
}

/// What a seller has of one currency, in minor units.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct BalanceBody {
    /// The currency.
    #[schema(example = "VND")]
    pub currency: String,
    /// What can be paid out. Below 0: more went back to buyers than is left; the next sales fill it.
    pub available: i64,
    /// What is on its way out.
    pub on_its_way: i64,
    /// Everything that was earned, less what went back to buyers.
    pub earned: i64,
}

/// What an account knows by itself: what was taken out or is on its way, by currency.
type Taken = (Vec<(String, i64)>, Vec<(String, i64)>);

fn taken(account: &SellerAccount) -> Taken {
    let taken = account.taken.iter().map(|(currency, amount)| (currency.clone(), *amount));
    let open = account.open.values();
    let open = open.map(|open| (open.money.currency.code().to_owned(), open.money.amount));
    (taken.collect(), open.collect())
}

fn of_currency(amounts: &[(String, i64)], currency: &str) -> i64 {
    amounts.iter().filter(|(of, _)| of == currency).map(|(_, amount)| amount).sum()
}

/// What keeps a seller from being forgotten: money that is still theirs, or on its way to them.
pub(super) async fn owed(app: &App, seller: UserId) -> Result<Option<String>, ApiError> {
    app.projected_all(LEDGER).await?;
    let balances = app.reads().balances(&account_of(seller)).await?;
    let accounts = app.runtime().aggregate::<SellerAccount>();
    let (taken, open) = accounts.read(SellerAccountId::of(seller).uuid(), taken).await?.value;
    if !open.is_empty() {
        return Ok(Some("a payout is on its way: wait until it is completed or failed".to_owned()));
    }
    let left = |balance: &crate::projections::Balance| {
        balance.earned.saturating_sub(of_currency(&taken, &balance.currency))
    };
    let due = balances.iter().find(|balance| left(balance) > 0);
    Ok(due.map(|due| format!("{} {} are to be paid out first", left(due), due.currency)))
}

/// What I have earned
///
/// Money is a seller's once the escrow of an order has let it go.
#[utoipa::path(get, path = "/me/balance", tag = "ledger",
    params(("min_position" = Option<String>, Query)),
    responses((status = 200, description = "By currency", body = Page<BalanceBody>)))]
async fn my_balance(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    params: Params,
) -> Result<Answer<Page<BalanceBody>>, ApiError> {
    let seller = call.someone()?;
    app.includes(LEDGER, &params).await?;
    let balances = app.reads().balances(&account_of(seller)).await?;
    let accounts = app.runtime().aggregate::<SellerAccount>();
    let (taken, open) = accounts.read(SellerAccountId::of(seller).uuid(), taken).await?.value;
    let body = |balance: crate::projections::Balance| BalanceBody {
        available: balance.earned.saturating_sub(of_currency(&taken, &balance.currency)),
        on_its_way: of_currency(&open, &balance.currency),
        earned: balance.earned,
        currency: balance.currency,
    };
    let page = Page::whole(balances.into_iter().map(body).collect());
    Ok(Answer::ok(page).projected(&app, LEDGER))
}

/// What is to be paid out.
#[derive(ToSchema)]
pub struct NewPayout {
    /// How much, in minor units; everything that is available when absent.
    #[schema(minimum = 1)]
    pub amount: Option<i64>,
    /// Of what; `VND` when absent.
    #[schema(value_type = Option<String>, example = "VND")]
    pub currency: Currency,
    /// Where to.
    pub destination: DestinationBody,
}

/// An account at a bank.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DestinationBody {
    /// The bank.
    #[schema(min_length = 1, max_length = 100, example = "Vietcombank")]
    pub bank: String,
    /// Whose account it is.
    #[schema(min_length = 1, max_length = 100)]
    pub holder: String,
    /// Its number; spaces do not matter.
    #[schema(min_length = 4, max_length = 64, example = "0011 0012 3456")]
    pub number: String,
}

impl FromFields for NewPayout {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let amount = fields.optional_integer(&["amount"]);
        let currency = match fields.value("currency") {
            Some(_) => fields.optional_parsed(&["currency"]),
            None => Some(Currency::Vnd),
        };
        let destination = fields.object(&["destination"], |fields| {
            let (bank, holder) = (fields.text(&["bank"]), fields.text(&["holder"]));
            let number = fields.text(&["number", "account_number", "accountNumber"]);
            Some(DestinationBody { bank: bank?, holder: holder?, number: number? })
        });
        Some(Self { amount, currency: currency?, destination: destination? })
    }
}

/// A payout.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PayoutBody {
    /// The payout.
    pub payout_id: Uuid,
    /// Whose money.
    pub seller_id: Uuid,
    /// How much.
    pub amount: MoneyBody,
    /// `REQUESTED`, `COMPLETED` or `FAILED`.
    #[schema(example = "REQUESTED")]
    pub status: String,
    /// Where to, for whoever sends it and while it is on its way; `[erased]` after an erasure.
    #[schema(value_type = Option<Object>)]
    pub destination: Option<serde_json::Value>,
    /// The bank's name for the transfer, once it was sent.
    pub reference: Option<String>,
    /// Why it could not be sent.
    pub reason: Option<String>,
    /// When it was asked for.
    #[schema(format = DateTime)]
    pub requested_at: String,
    /// The latest change.
    #[schema(format = DateTime)]
    pub updated_at: String,
}

impl From<PayoutRow> for PayoutBody {
    fn from(row: PayoutRow) -> Self {
        Self {
            payout_id: row.payout_id,
            seller_id: row.seller_id,
            amount: MoneyBody { amount: row.amount, currency: row.currency },
            status: row.status,
            destination: None,
            reference: row.reference,
            reason: row.reason,
            requested_at: row.requested_at.to_string(),
            updated_at: row.updated_at.to_string(),
        }
    }
}

/// The payout while it is on its way, as its account knows it.
fn on_its_way(
    payout_id: PayoutId,
) -> impl Fn(&SellerAccount) -> Option<PayoutBody> + Send + 'static {
    move |account| {
        let open = account.open.get(&payout_id)?;
        let shown = || match open.destination.get() {
            Some(destination) => serde_json::to_value(destination).unwrap_or_default(),
            None => serde_json::Value::from("[erased]"),
        };
        Some(PayoutBody {
            payout_id: payout_id.uuid(),
            seller_id: open.seller_id.uuid(),
            amount: open.money.into(),
            status: "REQUESTED".to_owned(),
            destination: Some(shown()),
            reference: None,
            reason: None,
            requested_at: open.requested_at.to_string(),
            updated_at: open.requested_at.to_string(),
        })
    }
}

fn missing() -> ApiError {
    ApiError::not_found("there is no such payout")
}

/// Every payout of a seller, the newest first.
pub(super) async fn all_payouts_of(app: &App, seller: UserId) -> Result<Vec<PayoutBody>, ApiError> {
    let page = |before| app.reads().payouts(Some(seller.uuid()), None, before, PAGE);
    let mut all = Vec::new();
    for row in pages::all(page, |row| (row.requested_at.millis(), row.payout_id)).await? {
        all.push(whole(app, PayoutId(row.payout_id), row).await?);
    }
    Ok(all)
}

/// Have money paid out
///
/// An administrator sends it and says so. What is asked for is not available a second time.
#[utoipa::path(post, path = "/me/payouts", tag = "ledger", request_body = NewPayout,
    responses((status = 201, description = "The payout", body = PayoutBody)))]
async fn request_payout(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    valid: Valid<NewPayout>,
) -> Result<Response, ApiError> {
    let seller = call.someone()?;
    let Valid { body, canonical } = valid;
    let payout_id = PayoutId(call.new_id(&app, "payouts.request"));
    // What was taken back must not be paid out: everything that has happened counts.
    app.projected_all(LEDGER).await?;
    let earned = app.reads().balances(&account_of(seller)).await?;
    let earned = earned.iter().find(|it| it.currency == body.currency.code());
    let DestinationBody { bank, holder, number } = body.destination;
    let command = SellerAccountCommand::Request(Box::new(PayoutRequest {
        caller: call.caller(),
        payout_id,
        seller_id: seller,
        amount: body.amount,
        currency: body.currency,
        earned: earned.map_or(0, |it| it.earned),
        destination: Destination { bank, holder, number },
        now: app.now(),
    }));
    let context = call.context(&app, "payouts.request", "", &canonical);
    let accounts = app.runtime().aggregate::<SellerAccount>();
    let account = SellerAccountId::of(seller).uuid();
    let sent = accounts.send(account, command, context, on_its_way(payout_id)).await?;
    let (body, done) = split(sent);
    let body = match body {
        Some(body) => body,
        // A repeat of what has ended since.
        None => stored(&app, payout_id).await?.into(),
    };
    let location = format!("/api/v1/me/payouts/{payout_id}");
    Ok(Answer::created(&location, body).after(&done).into_response())
}

async fn list(
    app: &App,
    params: &Params,
    seller: Option<UserId>,
) -> Result<Answer<Page<PayoutBody>>, ApiError> {
    let status = params.one_of("status", &STATUSES)?;
    app.includes(LEDGER, params).await?;
    let (limit, before) = (params.limit()?, params.cursor::<(i64, Uuid)>(app.cursors())?);
    let seller = seller.map(UserId::uuid);
    let rows = app.reads().payouts(seller, status, before, limit + 1).await?;
    let cursor = |row: &PayoutRow| (row.requested_at.millis(), row.payout_id);
    Ok(params.rows(app, rows, limit, cursor).projected(app, LEDGER))
}

/// My payouts
#[utoipa::path(get, path = "/me/payouts", tag = "ledger",
    params(("status" = Option<String>, Query, description = "`REQUESTED`, `COMPLETED` or `FAILED`"),
        ("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query),
        ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "A page, the newest first", body = Page<PayoutBody>)))]
async fn my_payouts(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    params: Params,
) -> Result<Answer<Page<PayoutBody>>, ApiError> {
    list(&app, &params, Some(call.someone()?)).await
}

/// A payout of mine
#[utoipa::path(get, path = "/me/payouts/{id}", tag = "ledger", params(("id" = String, Path)),
    responses((status = 200, description = "The payout", body = PayoutBody)))]
async fn my_payout(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
) -> Result<Answer<PayoutBody>, ApiError> {
    let seller = call.someone()?;
    let payout_id = path_id(&id)?;
    let body = whole(&app, payout_id, stored(&app, payout_id).await?).await?;
    if body.seller_id != seller.uuid() && !call.is_staff() {
        return Err(missing());
    }
    Ok(Answer::ok(body).projected(&app, LEDGER))
}

/// The payouts of all sellers
#[utoipa::path(get, path = "/admin/payouts", tag = "admin",
    params(("status" = Option<String>, Query, description = "`REQUESTED`, `COMPLETED` or `FAILED`"),
        ("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query),
        ("min_position" = Option<String>, Query)),
    responses((status = 200, description = "A page, the newest first", body = Page<PayoutBody>)))]
async fn all_payouts(
    State(app): State<App>,
    Staff(_): Staff,
    params: Params,
) -> Result<Answer<Page<PayoutBody>>, ApiError> {
    list(&app, &params, None).await
}

/// A payout, also one that was asked for a moment ago.
async fn stored(app: &App, payout_id: PayoutId) -> Result<PayoutRow, ApiError> {
    let mut found = app.reads().payout(payout_id.uuid()).await?;
    if found.is_none() {
        app.projected_all(LEDGER).await?;
        found = app.reads().payout(payout_id.uuid()).await?;
    }
    found.ok_or_else(missing)
}

/// The payout, with where it is to be sent to while it is on its way.
async fn whole(app: &App, payout_id: PayoutId, row: PayoutRow) -> Result<PayoutBody, ApiError> {
    let account = SellerAccountId::of(UserId(row.seller_id)).uuid();
    let accounts = app.runtime().aggregate::<SellerAccount>();
    let open = accounts.read(account, on_its_way(payout_id)).await?.value;
    Ok(open.unwrap_or_else(|| row.into()))
}

/// A payout, with where it is to be sent to
#[utoipa::path(get, path = "/admin/payouts/{id}", tag = "admin", params(("id" = String, Path)),
    responses((status = 200, description = "The payout", body = PayoutBody)))]
async fn get_payout(
    State(app): State<App>,
    Staff(_): Staff,
    Path(id): Path<String>,
) -> Result<Answer<PayoutBody>, ApiError> {
    let payout_id = path_id(&id)?;
    let body = whole(&app, payout_id, stored(&app, payout_id).await?).await?;
    Ok(Answer::ok(body).projected(&app, LEDGER))
}

/// That it was sent.
#[derive(ToSchema)]
pub struct Transfer {
    /// The bank's name for the transfer.
    #[schema(min_length = 1, max_length = 100)]
    pub reference: String,
}

impl FromFields for Transfer {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        Some(Self { reference: fields.text(&["reference"])? })
    }
}

/// Why it could not be sent.
#[derive(ToSchema)]
pub struct TransferFailure {
    /// Why.
    #[schema(min_length = 1, max_length = 500)]
    pub reason: String,
}

impl FromFields for TransferFailure {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        Some(Self { reason: fields.text(&["reason"])? })
    }
}

async fn end(
    app: &App,
    call: &Call,
    payout_id: PayoutId,
    command: SellerAccountCommand,
    (operation, canonical): (&str, &[u8]),
) -> Result<Answer<PayoutBody>, ApiError> {
    let row = stored(app, payout_id).await?;
    let account = SellerAccountId::of(UserId(row.seller_id)).uuid();
    let context = call.change_context(app, operation, &payout_id.to_string(), canonical);
    let accounts = app.runtime().aggregate::<SellerAccount>();
    let ending = move |account: &SellerAccount| account.ending(payout_id).cloned();
    let (ending, done) = split(accounts.send(account, command, context, ending).await?);
    let mut body = PayoutBody::from(row);
    // What was said first counts, and is what a repeat hears.
    match ending {
        Some(Ending::Sent { reference, at }) => {
            "COMPLETED".clone_into(&mut body.status);
            (body.reference, body.updated_at) = (Some(reference), at.to_string());
        }
        Some(Ending::Failed { reason, at }) => {
            "FAILED".clone_into(&mut body.status);
            (body.reason, body.updated_at) = (Some(reason), at.to_string());
        }
        None => {}
    }
    Ok(Answer::ok(body).after(&done))
}

/// Say that a payout was sent
#[utoipa::path(post, path = "/admin/payouts/{id}/complete", tag = "admin",
    params(("id" = String, Path)), request_body = Transfer,
    responses((status = 200, description = "The payout as it is now", body = PayoutBody)))]
async fn complete_payout(
    State(app): State<App>,
    Staff(call): Staff,
    Path(id): Path<String>,
    unread: Unread,
) -> Result<Answer<PayoutBody>, ApiError> {
    let payout_id = path_id(&id)?;
    let Valid { body, canonical } = unread.read::<Transfer>(&app).await?;
    let (caller, now) = (call.caller(), app.now());
    let reference = body.reference;
    let command = SellerAccountCommand::Complete { caller, payout_id, reference, now };
    end(&app, &call, payout_id, command, ("payouts.complete", &canonical)).await
}

/// Say that a payout could not be sent
///
/// The money is the seller's again.
#[utoipa::path(post, path = "/admin/payouts/{id}/fail", tag = "admin",
    params(("id" = String, Path)), request_body = TransferFailure,
    responses((status = 200, description = "The payout as it is now", body = PayoutBody)))]
async fn fail_payout(
    State(app): State<App>,
    Staff(call): Staff,
    Path(id): Path<String>,
    unread: Unread,
) -> Result<Answer<PayoutBody>, ApiError> {
    let payout_id = path_id(&id)?;
    let Valid { body, canonical } = unread.read::<TransferFailure>(&app).await?;
    let (caller, now) = (call.caller(), app.now());
    let reason = body.reason;
    let command = SellerAccountCommand::Fail { caller, payout_id, reason, now };
    end(&app, &call, payout_id, command, ("payouts.fail", &canonical)).await
}

/// Whether the books are right.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct LedgerCheckBody {
    /// Whether everything below is 0.
    pub balanced: bool,
    /// The sum of all accounts of all currencies, in minor units: 0.
    pub difference: i64,
    /// How many events took money from nowhere, or to nowhere: 0.
    pub unbalanced_events: u64,
    /// How many escrows or payouts gave more than they had: 0.
    pub overdrawn_accounts: u64,
    /// How many entries were looked at.
    pub entries: u64,
    /// The sum of all accounts by currency.
    pub currencies: Vec<MoneyBody>,
    /// What is on the market's own account, by currency: below 0 by what its promotions have taken off.
    pub market: Vec<MoneyBody>,
}

/// Whether the books are right
///
/// Adds up every entry of every account.
#[utoipa::path(get, path = "/admin/ledger/check", tag = "admin",
    params(("min_position" = Option<String>, Query)),
    responses((status = 200, description = "What was found", body = LedgerCheckBody)))]
async fn check_ledger(
    State(app): State<App>,
    Staff(_): Staff,
    params: Params,
) -> Result<Answer<LedgerCheckBody>, ApiError> {
    app.includes(LEDGER, &params).await?;
    let found = app.reads().ledger_check().await?;
    let market = app.reads().balances(MARKET).await?.into_iter();
    let difference = found.sums.iter().map(|(_, sum)| sum.abs()).sum();
    let body = LedgerCheckBody {
        balanced: (difference, found.unbalanced, found.overdrawn) == (0, 0, 0),
        difference,
        unbalanced_events: found.unbalanced,
        overdrawn_accounts: found.overdrawn,
        entries: found.entries,
        currencies: found
            .sums
            .into_iter()
            .map(|(currency, amount)| MoneyBody { amount, currency })
            .collect(),
        market: market.map(|of| MoneyBody { amount: of.balance, currency: of.currency }).collect(),
    };
    Ok(Answer::ok(body).projected(&app, LEDGER))
}
