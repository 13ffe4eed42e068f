//! Invoices: a page to print, made from the order whenever somebody wants it.

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::call::SignedIn;
use super::orders::named;
use super::problem::{ApiError, uuid_of_failure};
use crate::domain::ids::UserId;
use crate::domain::listing::Listing;
use crate::domain::money::Money;
use crate::domain::order::{Address, Order, OrderDetails, OrderStatus};
use crate::domain::user::User;

/// The page loads nothing, runs nothing and is framed by nobody.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(get_invoice))
}

type Texts = BTreeMap<&'static str, String>;

const ERASED: &str = "[erased]";

/// The name and, for a seller, the address of a business.
async fn party(app: &App, user: UserId, as_seller: bool) -> Result<String, ApiError> {
    let look = move |user: &User| {
        let details = user.details.as_ref()?;
        let name = |part: &souk_actors::personal::Personal<String>| part.get().cloned();
        if as_seller && let Some(seller) = &details.seller {
            let address = name(&seller.business_address).unwrap_or_else(|| ERASED.to_owned());
            return Some(format!("{}\n{address}", seller.business_name));
        }
        Some(format!("{} {}", name(&details.first_name)?, name(&details.last_name)?))
    };
    let read = app.runtime().aggregate::<User>().read(user.uuid(), look).await?;
    Ok(read.value.unwrap_or_else(|| ERASED.to_owned()))
}

fn postal(address: Option<&Address>) -> String {
    let Some(address) = address else { return ERASED.to_owned() };
    let mut lines: Vec<&str> = address.recipient.iter().map(String::as_str).collect();
    lines.push(&address.line1);
    lines.extend(address.line2.as_deref());
    lines.extend(address.ward.as_deref());
    lines.extend([address.district.as_str(), address.city.as_str()]);
    lines.extend(address.postal_code.as_deref());
    lines.push(&address.country);
    lines.join("\n")
}

/// Since when it is paid, if it ever was.
fn paid_at(order: &OrderDetails) -> Option<String> {
    let paid = order.history.iter().find(|change| change.status == OrderStatus::Paid)?;
    Some(paid.at.to_string())
}

async fn texts(app: &App, order: &OrderDetails, date: String) -> Result<Texts, ApiError> {
    let money = |amount| Money::new(amount, order.total.currency).to_string();
    let kept = order.kept();
    let refunded = order.total.amount.saturating_sub(kept);
    let discount = order.discount();
    let buyer = party(app, order.buyer_id, false).await?;
    Ok(Texts::from([
        ("number", order.order_number.clone()),
        ("date", date),
        ("seller", party(app, order.seller_id, true).await?),
        ("buyer", format!("{buyer}\n{}", postal(order.delivery_address.get()))),
        ("subtotal", money(order.total.amount.saturating_add(discount))),
        ("discount", if discount > 0 { money(discount) } else { String::new() }),
        ("code", order.promotion.as_ref().map(|of| of.code.clone()).unwrap_or_default()),
        ("total", money(order.total.amount)),
        ("refunded", if refunded > 0 { money(refunded) } else { String::new() }),
        ("remaining", money(kept)),
        ("method", order.payment_method.to_string()),
        ("reference", order.payment_reference.clone()),
    ]))
}

async fn lines(app: &App, order: &OrderDetails) -> Result<Vec<Texts>, ApiError> {
    let money = |amount| Money::new(amount, order.total.currency).to_string();
    let mut lines = Vec::with_capacity(order.items.len());
    for item in &order.items {
        let title = |listing: &Listing| listing.details.as_ref().map(|it| it.title.clone());
        let listings = app.runtime().aggregate::<Listing>();
        let title = listings.read(item.listing_id.uuid(), title).await?.value;
        lines.push(Texts::from([
            ("title", title.unwrap_or_default()),
            ("sku", item.sku.clone()),
            ("quantity", item.quantity.to_string()),
            ("price", money(item.unit_price)),
            ("sum", money(item.unit_price.saturating_mul(i64::from(item.quantity)))),
        ]));
    }
    Ok(lines)
}

/// The invoice of an order
///
/// A page to print, for the buyer and the seller, once the order has been paid.
#[utoipa::path(get, path = "/orders/{id}/invoice", tag = "orders", params(("id" = String, Path)),
    responses((status = 200, description = "The page", body = String, content_type = "text/html")))]
async fn get_invoice(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let order_id = named(&app, &call, &id).await?.order_id;
    let orders = app.runtime().aggregate::<Order>();
    let order = orders.read(order_id, |order| order.details.clone()).await?.value;
    let order = order.ok_or_else(|| ApiError::not_found("there is no such order"))?;
    let unpaid = || ApiError::conflict("order_not_paid", "there is no invoice before the payment");
    let date = paid_at(&order).ok_or_else(unpaid)?;
    let (texts, lines) = (texts(&app, &order, date).await?, lines(&app, &order).await?);
    let page = app.composer().templates().page("invoice.html", texts, ("lines", lines));
    let page = page.map_err(|error| {
        let id = uuid_of_failure();
        tracing::error!(error = %error, error_id = %id, "the invoice cannot be written");
        ApiError::internal(id)
    })?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff")),
    ];
    Ok((headers, page).into_response())
}
