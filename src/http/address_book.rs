//! Address books: where people have things delivered to.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::App;
use super::answer::{Answer, Page, nothing_after, split};
use super::body::{Fields, FromFields, Nothing, Valid};
use super::call::{Call, SignedIn};
use super::conditional::IfNoneMatch;
use super::orders::{AddressBody, address_in, shown_address};
use super::params::path_id;
use super::problem::ApiError;
use super::users::missing;
use crate::domain::ids::{AddressId, UserId};
use crate::domain::order::Address;
use crate::domain::user::{
    AddressChange, SavedAddress, User, UserCommand, UserDetails, UserRejection,
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(my_addresses, add_address)).routes(routes!(
        my_address,
        change_address,
        remove_address
    ))
}

/// An address to keep.
#[derive(ToSchema)]
pub struct NewAddress {
    /// What one calls it.
    #[schema(max_length = 100, example = "Home")]
    pub label: Option<String>,
    /// Whether it is the one that is offered first. The first one is.
    pub is_default: Option<bool>,
    /// Where it is.
    #[schema(value_type = AddressBody)]
    pub address: Address,
}

impl FromFields for NewAddress {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let (label, is_default) = (fields.optional_text(&["label"]), default_wish(fields));
        let address = address_in(fields, &["address"]);
        Some(Self { label, is_default, address: address? })
    }
}

/// What changes; what is absent stays. What may be missing goes with an empty text.
#[derive(ToSchema)]
pub struct UpdateAddress {
    /// What one calls it.
    #[schema(max_length = 100)]
    pub label: Option<String>,
    /// `true`: it is offered first from now on.
    pub is_default: Option<bool>,
    /// Where it is.
    #[schema(value_type = Option<UpdateAddressFields>)]
    pub address: AddressChange,
}

/// The parts of an address that change.
#[derive(ToSchema)]
pub struct UpdateAddressFields {
    /// Who takes it, when it is not the buyer.
    pub recipient: Option<String>,
    /// House and street.
    pub line1: Option<String>,
    /// Flat, floor, building.
    pub line2: Option<String>,
    /// The ward.
    pub ward: Option<String>,
    /// The district.
    pub district: Option<String>,
    /// The city.
    pub city: Option<String>,
    /// The postal code.
    pub postal_code: Option<String>,
    /// The country, as two upper-case letters.
    pub country: Option<String>,
    /// Whom the carrier can call.
    pub phone: Option<String>,
}

impl FromFields for UpdateAddress {
    fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let (label, is_default) = (fields.optional_text(&["label"]), default_wish(fields));
        let change = fields.optional_object(&["address"], |fields| {
            Some(AddressChange {
                recipient: fields.optional_text(&["recipient"]),
                line1: fields.optional_text(&["line1", "street", "address_line1"]),
                line2: fields.optional_text(&["line2", "address_line2"]),
                ward: fields.optional_text(&["ward"]),
                district: fields.optional_text(&["district"]),
                city: fields.optional_text(&["city"]),
                postal_code: fields.optional_text(&["postal_code", "postalCode"]),
                country: fields.optional_text(&["country"]),
                phone: fields.optional_text(&["phone"]),
            })
        });
        Some(Self { label, is_default, address: change.unwrap_or_default() })
    }
}

fn default_wish(fields: &mut Fields<'_>) -> Option<bool> {
    let value = fields.value("is_default").or_else(|| fields.value("isDefault"))?;
    if value.as_bool().is_none() {
        fields.error("is_default", "wrong_type", "must be true or false");
    }
    value.as_bool()
}

/// An address that is kept.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SavedAddressBody {
    /// The address.
    pub address_id: Uuid,
    /// What its owner calls it.
    pub label: Option<String>,
    /// Whether it is the one that is offered first.
    pub is_default: bool,
    /// Where it is.
    #[schema(value_type = AddressBody)]
    pub address: serde_json::Value,
}

impl SavedAddressBody {
    fn new(details: &UserDetails, saved: &SavedAddress) -> Self {
        Self {
            address_id: saved.address_id.uuid(),
            label: saved.label.as_ref().and_then(|label| label.get().cloned()),
            is_default: details.default_address == Some(saved.address_id),
            address: shown_address(&saved.address),
        }
    }
}

/// A person's addresses, the oldest first.
pub(super) fn all(details: &UserDetails) -> Vec<SavedAddressBody> {
    details.addresses.iter().map(|saved| SavedAddressBody::new(details, saved)).collect()
}

fn one(user: &User, id: AddressId) -> Option<SavedAddressBody> {
    let details = user.details.as_ref()?;
    let saved = details.addresses.iter().find(|saved| saved.address_id == id)?;
    Some(SavedAddressBody::new(details, saved))
}

fn unknown() -> ApiError {
    let detail = UserRejection::AddressNotFound.to_string();
    ApiError::new(StatusCode::NOT_FOUND, "address_not_found", detail)
}

/// My addresses
///
/// The oldest first; at most fifty.
#[utoipa::path(get, path = "/users/me/addresses", tag = "users",
    responses((status = 200, description = "All of them", body = Page<SavedAddressBody>)))]
async fn my_addresses(
    State(app): State<App>,
    SignedIn(call): SignedIn,
) -> Result<Answer<Page<SavedAddressBody>>, ApiError> {
    let user = call.someone()?;
    let view = |user: &User| user.details.as_ref().map(all);
    let read = app.runtime().aggregate::<User>().read(user.uuid(), view).await?;
    Ok(Answer::ok(Page::whole(read.value.ok_or_else(missing)?)))
}

/// Keep an address
#[utoipa::path(post, path = "/users/me/addresses", tag = "users", request_body = NewAddress,
    responses((status = 201, description = "The address", body = SavedAddressBody)))]
async fn add_address(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    valid: Valid<NewAddress>,
) -> Result<Answer<SavedAddressBody>, ApiError> {
    let user = call.someone()?;
    let address_id = AddressId(call.new_id(&app, "addresses.add"));
    let NewAddress { label, is_default, address } = valid.body;
    let command = UserCommand::AddAddress {
        caller: call.caller(),
        address_id,
        label,
        address: Box::new(address),
        is_default: is_default.unwrap_or(false),
        now: app.now(),
    };
    let context = call.context(&app, "addresses.add", "", &valid.canonical);
    let users = app.runtime().aggregate::<User>();
    let view = move |user: &User| one(user, address_id);
    let (body, done) = split(users.send(user.uuid(), command, context, view).await?);
    let location = format!("/api/v1/users/me/addresses/{address_id}");
    Ok(Answer::created(&location, body.ok_or_else(unknown)?).after(&done))
}

/// An address
#[utoipa::path(get, path = "/users/me/addresses/{id}", tag = "users",
    params(("id" = String, Path)),
    responses((status = 200, description = "The address", body = SavedAddressBody)))]
async fn my_address(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    theirs: IfNoneMatch,
) -> Result<Response, ApiError> {
    let user = call.someone()?;
    let id: AddressId = path_id(&id)?;
    let users = app.runtime().aggregate::<User>();
    let read = users.read(user.uuid(), move |user: &User| one(user, id)).await?;
    Ok(Answer::ok(read.value.ok_or_else(unknown)?).at_version(read.version, &theirs))
}

/// Change an address
#[utoipa::path(patch, path = "/users/me/addresses/{id}", tag = "users",
    params(("id" = String, Path)), request_body = UpdateAddress,
    responses((status = 200, description = "The address as it is now", body = SavedAddressBody)))]
async fn change_address(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    valid: Valid<UpdateAddress>,
) -> Result<Answer<SavedAddressBody>, ApiError> {
    let user = call.someone()?;
    let id: AddressId = path_id(&id)?;
    let UpdateAddress { label, is_default, address } = valid.body;
    let command = UserCommand::ChangeAddress {
        caller: call.caller(),
        address_id: id,
        label,
        change: Box::new(address),
        is_default: is_default.unwrap_or(false),
        now: app.now(),
    };
    let target = id.to_string();
    let context = call.change_context(&app, "addresses.change", &target, &valid.canonical);
    let users = app.runtime().aggregate::<User>();
    let view = move |user: &User| one(user, id);
    let (body, done) = split(users.send(user.uuid(), command, context, view).await?);
    Ok(Answer::ok(body.ok_or_else(unknown)?).after(&done))
}

/// Forget an address
///
/// Orders that went there keep it. When it was offered first, the oldest one is from then on.
#[utoipa::path(delete, path = "/users/me/addresses/{id}", tag = "users",
    params(("id" = String, Path)),
    responses((status = 204, description = "It is kept no longer")))]
async fn remove_address(
    State(app): State<App>,
    SignedIn(call): SignedIn,
    Path(id): Path<String>,
    _: Valid<Nothing>,
) -> Result<Response, ApiError> {
    let user = call.someone()?;
    let address_id: AddressId = path_id(&id)?;
    let command = UserCommand::RemoveAddress { caller: call.caller(), address_id, now: app.now() };
    let users = app.runtime().aggregate::<User>();
    let done = users.send(user.uuid(), command, call.plain_context(&app), |_| ()).await?;
    Ok(nothing_after(&done))
}

/// The address of an order's buyer that the order names by its id.
pub(super) async fn saved(app: &App, call: &Call, id: AddressId) -> Result<Address, ApiError> {
    let user: UserId = call.someone()?;
    let view = move |user: &User| {
        let details = user.details.as_ref()?;
        details.addresses.iter().find(|saved| saved.address_id == id)?.address.get().cloned()
    };
    let found = app.runtime().aggregate::<User>().read(user.uuid(), view).await?.value;
    found.ok_or_else(|| {
        let detail = "there is no such address in your address book";
        ApiError::unprocessable("address_unknown", "/address_id", detail)
    })
}
