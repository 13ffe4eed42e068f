//! Users: registration, the proof of their e-mail address, and their rise to sellers.
//!
//! The uniqueness of addresses is not decided here but by [`crate::domain::email_claim`]: the
//! claim comes first, then the user. A claim whose user never came asks with
//! [`UserCommand::AbandonRegistration`], after which that user can never come.
//!
//! A login belongs to an epoch of its user. A new password, or the wish to be logged out everywhere,
//! begins the next one: logins of earlier epochs are over, but for one that may be kept.

pub mod rating;

use std::collections::BTreeSet;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use souk_actors::aggregate::{Aggregate, Command};
use souk_actors::personal::Personal;
use souk_actors::world::Timestamp;

use super::caller::{Caller, Role};
use super::ids::{AddressId, EmailClaimId, SessionId, UserId};
use super::order::Address;
use super::preferences::{Muted, NotificationKind, ReportMails, WantedReports};
use super::rejection::{invalid_from_fields, rejections};
use super::text::{self, FieldError, Fields};
use rating::{LearntReview, Rating, SellerRatingUpdated};

/// The most addresses in one address book.
pub const ADDRESSES_MAX: usize = 50;
/// How long a mail with a token keeps another one of its kind from going out.
pub const MAIL_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// How a user stands.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum UserStatus {
    /// Registered; the address is not proved yet.
    Pending,
    /// The address is proved.
    Active,
    /// Locked out by an administrator.
    Suspended,
    /// Forgotten: the personal data cannot be read any more.
    Erased,
}

/// How a seller stands.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum VerificationStatus {
    /// An administrator has yet to look.
    Pending,
    /// May list things.
    Verified,
    /// May not, and may apply again.
    Rejected,
}

/// What to do with a user.
#[derive(Debug, Clone, PartialEq)]
pub enum UserCommand {
    /// Make a user who has yet to prove the address.
    Register(Box<Registration>),
    /// Make an administrator who needs no proof. Only the marketplace itself may: it is how the
    /// first administrator comes to be.
    RegisterAdmin {
        /// Who asks.
        caller: Caller,
        /// The user to make.
        registration: Box<Registration>,
    },
    /// The user never registered and never shall: frees the claim on an address.
    AbandonRegistration {
        /// The user that the claim was made for.
        user_id: UserId,
        /// When.
        now: Timestamp,
    },
    /// Prove the address with the token that was mailed to it.
    VerifyEmail {
        /// The hash of the token, in hexadecimal.
        token_hash: String,
        /// When.
        now: Timestamp,
    },
    /// Become a seller, subject to verification.
    UpgradeToSeller {
        /// Who asks.
        caller: Caller,
        /// The business's name; public.
        business_name: String,
        /// Where it is.
        business_address: String,
        /// How to reach it.
        business_phone: String,
        /// When.
        now: Timestamp,
    },
    /// Let a seller list things.
    VerifySeller {
        /// Who asks.
        caller: Caller,
        /// When.
        now: Timestamp,
    },
    /// Turn a would-be seller down.
    RejectSeller {
        /// Who asks.
        caller: Caller,
        /// Why.
        reason: String,
        /// When.
        now: Timestamp,
    },
    /// Change names, number and consent; what is `None` stays.
    UpdateProfile {
        /// Who asks.
        caller: Caller,
        /// The new first name.
        first_name: Option<String>,
        /// The new last name.
        last_name: Option<String>,
        /// The new number for text messages; an empty one: there is none any more.
        phone: Option<String>,
        /// Whether text messages are wanted.
        sms_opt_in: Option<bool>,
        /// When.
        now: Timestamp,
    },
    /// Lock the user out.
    Suspend {
        /// Who asks.
        caller: Caller,
        /// Why.
        reason: String,
        /// When.
        now: Timestamp,
    },
    /// Let the user in again.
    Reinstate {
        /// Who asks.
        caller: Caller,
        /// When.
        now: Timestamp,
    },
    /// Choose what not to be told, by which way; everything else is.
    SetPreferences {
        /// Who asks.
        caller: Caller,
        /// What not.
        muted: BTreeSet<Muted>,
        /// Which reports by mail, for administrators.
        reports: ReportMails,
        /// When.
        now: Timestamp,
    },
    /// A review of the seller counts, or does not count any more. Only the marketplace says so.
    LearnReview {
        /// Who asks.
        caller: Caller,
        /// Which, and what became of it.
        news: LearntReview,
        /// When.
        now: Timestamp,
    },
    /// A mail came back for good: nothing more is sent to the address. Only the marketplace says so.
    RecordBounce {
        /// Who asks.
        caller: Caller,
        /// Why, as a stable code.
        reason: String,
        /// When.
        now: Timestamp,
    },
    /// The address can be written to again.
    ClearBounce {
        /// Who asks.
        caller: Caller,
        /// When.
        now: Timestamp,
    },
    /// Record that the user is to be forgotten. Whoever handles the event destroys the key.
    Erase {
        /// Who asks.
        caller: Caller,
        /// Why, when it is not the user who asks.
        reason: Option<String>,
        /// When.
        now: Timestamp,
    },
    /// Mail a new verification token. The earlier one is good no longer.
    RequestVerification {
        /// The new token.
        token: OneTimeToken,
        /// When.
        now: Timestamp,
    },
    /// Mail a token with which the password can be replaced.
    RequestPasswordReset {
        /// The token.
        token: OneTimeToken,
        /// When.
        now: Timestamp,
    },
    /// Replace the password with the token that was mailed. The new credential goes along with the
    /// command.
    ResetPassword {
        /// The hash of the token, in hexadecimal.
        token_hash: String,
        /// When.
        now: Timestamp,
    },
    /// Replace the password; the caller has proved to know the old one. The new credential goes
    /// along with the command.
    ChangePassword {
        /// Who asks.
        caller: Caller,
        /// The login that goes on.
        kept: Option<SessionId>,
        /// When.
        now: Timestamp,
    },
    /// Keep an address in the address book.
    AddAddress {
        /// Who asks.
        caller: Caller,
        /// The new entry.
        address_id: AddressId,
        /// What the user calls it.
        label: Option<String>,
        /// Where it is.
        address: Box<Address>,
        /// Whether it is the one to offer first; the first one is.
        is_default: bool,
        /// When.
        now: Timestamp,
    },
    /// Change an entry; what is `None` stays, what may be missing goes when it is empty.
    ChangeAddress {
        /// Who asks.
        caller: Caller,
        /// The entry.
        address_id: AddressId,
        /// What the user calls it.
        label: Option<String>,
        /// What changes of the address.
        change: Box<AddressChange>,
        /// Whether it is the one to offer first from now on.
        is_default: bool,
        /// When.
        now: Timestamp,
    },
    /// Keep an address no longer.
    RemoveAddress {
        /// Who asks.
        caller: Caller,
        /// The entry.
        address_id: AddressId,
        /// When.
        now: Timestamp,
    },
    /// End every login.
    EndSessions {
        /// Who asks.
        caller: Caller,
        /// When.
        now: Timestamp,
    },
}

/// What changes of an address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressChange {
    /// Who takes it.
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
    /// The country.
    pub country: Option<String>,
    /// Whom the carrier can call.
    pub phone: Option<String>,
}

impl AddressChange {
    /// The address with what changes.
    fn of(&self, before: &Address) -> Address {
        let with = |new: &Option<String>, old: &String| new.as_ref().unwrap_or(old).clone();
        let maybe =
            |new: &Option<String>, old: &Option<String>| new.clone().or_else(|| old.clone());
        Address {
            recipient: maybe(&self.recipient, &before.recipient),
            line1: with(&self.line1, &before.line1),
            line2: maybe(&self.line2, &before.line2),
            ward: maybe(&self.ward, &before.ward),
            district: with(&self.district, &before.district),
            city: with(&self.city, &before.city),
            postal_code: maybe(&self.postal_code, &before.postal_code),
            country: with(&self.country, &before.country),
            phone: maybe(&self.phone, &before.phone),
        }
    }
}

/// A token that is mailed and works once: what of it may be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OneTimeToken {
    /// Its hash, in hexadecimal.
    pub hash: String,
    /// What it is made from together with a secret.
    pub nonce: String,
    /// When it stops being accepted.
    pub expires_at: Timestamp,
}

/// What a registration brings along.
#[derive(Debug, Clone, PartialEq)]
pub struct Registration {
    /// The new user.
    pub user_id: UserId,
    /// The address, already claimed for this user.
    pub email: String,
    /// The first name.
    pub first_name: String,
    /// The last name.
    pub last_name: String,
    /// The claim on the address.
    pub email_claim_id: EmailClaimId,
    /// The hash of the verification token, in hexadecimal.
    pub verification_token_hash: String,
    /// What the token is made from together with a secret, in hexadecimal.
    pub verification_token_nonce: String,
    /// When the token stops being accepted.
    pub verification_expires_at: Timestamp,
    /// When.
    pub now: Timestamp,
}

impl Command for UserCommand {
    fn name(&self) -> &'static str {
        match self {
            Self::Register(_) => "RegisterUser",
            Self::RegisterAdmin { .. } => "RegisterAdmin",
            Self::AbandonRegistration { .. } => "AbandonRegistration",
            Self::VerifyEmail { .. } => "VerifyEmail",
            Self::UpgradeToSeller { .. } => "UpgradeToSeller",
            Self::VerifySeller { .. } => "VerifySeller",
            Self::RejectSeller { .. } => "RejectSeller",
            Self::UpdateProfile { .. } => "UpdateProfile",
            Self::Suspend { .. } => "SuspendUser",
            Self::Reinstate { .. } => "ReinstateUser",
            Self::SetPreferences { .. } => "SetNotificationPreferences",
            Self::LearnReview { .. } => "LearnReview",
            Self::RecordBounce { .. } => "RecordBounce",
            Self::ClearBounce { .. } => "ClearBounce",
            Self::Erase { .. } => "EraseUser",
            Self::RequestVerification { .. } => "RequestVerification",
            Self::RequestPasswordReset { .. } => "RequestPasswordReset",
            Self::ResetPassword { .. } => "ResetPassword",
            Self::ChangePassword { .. } => "ChangePassword",
            Self::EndSessions { .. } => "EndSessions",
            Self::AddAddress { .. } => "AddAddress",
            Self::ChangeAddress { .. } => "ChangeAddress",
            Self::RemoveAddress { .. } => "RemoveAddress",
        }
    }
}

souk_actors::events! {
    /// What happens to users.
    pub enum UserEvent in "users" as "user-service" {
        /// A user came to be.
        Registered(UserRegistered) = "user.registered", "UserRegistered", 1.0,
            ["UserCreated", "user.created", "customer.registered"];
        /// A claim's user shall never come.
        RegistrationAbandoned(RegistrationAbandoned) = "user.registration_abandoned",
            "UserRegistrationAbandoned", 1.0, [];
        /// The address is the user's own.
        EmailVerified(UserEmailVerified) = "user.email_verified", "UserEmailVerified", 1.0,
            ["customer.verified"];
        /// The user may do more.
        RoleGranted(UserRoleGranted) = "user.role_granted", "UserRoleGranted", 1.0, [];
        /// The names changed.
        ProfileUpdated(UserProfileUpdated) = "user.profile_updated", "UserProfileUpdated", 1.0,
            ["customer.profile.updated"];
        /// The number for text messages changed, or whether they are wanted.
        ContactUpdated(UserContactUpdated) = "user.contact_updated", "UserContactUpdated", 1.0, [];
        /// The user wants to sell.
        UpgradedToSeller(UserUpgradedToSeller) = "user.upgraded_to_seller",
            "UserUpgradedToSeller", 1.0, [];
        /// The seller may list things.
        SellerVerified(SellerVerified) = "seller.verified", "SellerVerified", 1.0, [];
        /// The seller was turned down.
        SellerRejected(SellerRejected) = "seller.rejected", "SellerRejected", 1.0, [];
        /// The user was locked out.
        Suspended(UserSuspended) = "user.suspended", "UserSuspended", 1.0, [];
        /// The user was let in again.
        Reinstated(UserReinstated) = "user.reinstated", "UserReinstated", 1.0, [];
        /// The user chose what not to be told.
        PreferencesUpdated(UserPreferencesUpdated) = "user.preferences_updated",
            "UserPreferencesUpdated", 1.0, [];
        /// The seller's rating changed.
        RatingUpdated(SellerRatingUpdated) = "seller.rating_updated", "SellerRatingUpdated", 1.0,
            [];
        /// Mails to the address come back for good.
        EmailUnreachable(UserEmailUnreachable) = "user.email_unreachable", "UserEmailUnreachable",
            1.0, [];
        /// The address can be written to again.
        EmailReachable(UserEmailReachable) = "user.email_reachable", "UserEmailReachable", 1.0, [];
        /// The user is to be forgotten.
        Erased(UserErased) = "user.erased", "UserErased", 1.1, [];
        /// A new verification token is to be mailed.
        VerificationRequested(TokenRequested) = "user.verification_requested",
            "UserVerificationRequested", 1.0, [];
        /// A token for a new password is to be mailed.
        PasswordResetRequested(TokenRequested) = "user.password_reset_requested",
            "UserPasswordResetRequested", 1.0, [];
        /// The password was replaced by whoever had the mailed token.
        PasswordReset(SessionsEnded) = "user.password_reset", "UserPasswordReset", 1.0, [];
        /// The user has another password.
        PasswordChanged(SessionsEnded) = "user.password_changed", "UserPasswordChanged", 1.0, [];
        /// The user is logged out everywhere.
        SessionsEnded(SessionsEnded) = "user.sessions_ended", "UserSessionsEnded", 1.0, [];
        /// There is another address in the address book.
        AddressAdded(AddressKept) = "user.address_added", "UserAddressAdded", 1.0, [];
        /// An address in the address book is another one now.
        AddressChanged(AddressKept) = "user.address_changed", "UserAddressChanged", 1.0, [];
        /// An address is in the address book no longer.
        AddressRemoved(AddressRemoved) = "user.address_removed", "UserAddressRemoved", 1.0, [];
    }
}

/// A user came to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UserRegistered {
    /// The user.
    pub user_id: UserId,
    /// The address, normalised.
    pub email: Personal<String>,
    /// The first name.
    pub first_name: Personal<String>,
    /// The last name.
    pub last_name: Personal<String>,
    /// The claim on the address.
    pub email_claim_id: EmailClaimId,
    /// The hash of the verification token, in hexadecimal.
    pub verification_token_hash: String,
    /// What the token is made from together with a secret, in hexadecimal.
    pub verification_token_nonce: String,
    /// When the token stops being accepted.
    pub verification_expires_at: Timestamp,
    /// When.
    pub registered_at: Timestamp,
}

/// A claim's user shall never come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RegistrationAbandoned {
    /// The user that the claim was made for.
    pub user_id: UserId,
    /// When.
    pub abandoned_at: Timestamp,
}

/// The address is the user's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UserEmailVerified {
    /// The user.
    pub user_id: UserId,
    /// The address.
    pub email: Personal<String>,
    /// When.
    pub verified_at: Timestamp,
}

/// The user may do more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UserRoleGranted {
    /// The user.
    pub user_id: UserId,
    /// What the user is now, too.
    pub role: Role,
    /// When.
    pub granted_at: Timestamp,
}

/// The names changed; both stand as they are now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UserProfileUpdated {
    /// The user.
    pub user_id: UserId,
    /// The first name.
    pub first_name: Personal<String>,
    /// The last name.
    pub last_name: Personal<String>,
    /// When.
    pub updated_at: Timestamp,
}

/// The number for text messages changed, or whether they are wanted; both stand as they are now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UserContactUpdated {
    /// The user.
    pub user_id: UserId,
    /// The number, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phone: Option<Personal<String>>,
    /// Whether text messages are wanted.
    pub sms_opt_in: bool,
    /// When.
    pub updated_at: Timestamp,
}

/// The user chose what not to be told; this is all of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UserPreferencesUpdated {
    /// The user.
    pub user_id: UserId,
    /// What not, by which way.
    pub muted: Vec<Muted>,
    /// Which reports by mail.
    #[serde(default, skip_serializing_if = "ReportMails::is_off")]
    pub reports: ReportMails,
    /// When.
    pub updated_at: Timestamp,
}

/// The user wants to sell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UserUpgradedToSeller {
    /// The user.
    pub user_id: UserId,
    /// The business's name; public.
    pub business_name: String,
    /// Where it is.
    pub business_address: Personal<String>,
    /// How to reach it.
    pub business_phone: Personal<String>,
    /// Always pending.
    pub verification_status: VerificationStatus,
    /// When.
    pub upgraded_at: Timestamp,
}

/// The seller may list things.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SellerVerified {
    /// The seller.
    pub user_id: UserId,
    /// When.
    pub verified_at: Timestamp,
}

/// The seller was turned down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SellerRejected {
    /// The would-be seller.
    pub user_id: UserId,
    /// Why.
    pub reason: String,
    /// When.
    pub rejected_at: Timestamp,
}

/// The user was locked out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UserSuspended {
    /// The user.
    pub user_id: UserId,
    /// Why.
    pub reason: String,
    /// When.
    pub suspended_at: Timestamp,
}

/// The user was let in again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UserReinstated {
    /// The user.
    pub user_id: UserId,
    /// When.
    pub reinstated_at: Timestamp,
}

/// Mails to the address come back for good.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UserEmailUnreachable {
    /// The user.
    pub user_id: UserId,
    /// Why, as a stable code.
    pub reason: String,
    /// When.
    pub since: Timestamp,
}

/// The address can be written to again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UserEmailReachable {
    /// The user.
    pub user_id: UserId,
    /// When.
    pub since: Timestamp,
}

/// The user is to be forgotten.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UserErased {
    /// The user.
    pub user_id: UserId,
    /// The claim on the address, which can be released.
    pub email_claim_id: EmailClaimId,
    /// Why, when it was not the user who asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When.
    pub erased_at: Timestamp,
}

/// A token is to be mailed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TokenRequested {
    /// The user.
    pub user_id: UserId,
    /// The hash of the token, in hexadecimal.
    pub token_hash: String,
    /// What the token is made from together with a secret.
    pub token_nonce: String,
    /// When the token stops being accepted.
    pub expires_at: Timestamp,
    /// When.
    pub requested_at: Timestamp,
}

/// The logins of earlier epochs are over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SessionsEnded {
    /// The user.
    pub user_id: UserId,
    /// The epoch that begins.
    pub epoch: u32,
    /// The login that goes on all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_session_id: Option<SessionId>,
    /// When.
    pub ended_at: Timestamp,
}

/// An entry of the address book, as it is from now on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AddressKept {
    /// The user.
    pub user_id: UserId,
    /// The entry.
    pub address_id: AddressId,
    /// What the user calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<Personal<String>>,
    /// Where it is.
    pub address: Personal<Address>,
    /// Whether it is the one to offer first from now on.
    pub is_default: bool,
    /// When.
    pub kept_at: Timestamp,
}

/// An entry of the address book is gone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AddressRemoved {
    /// The user.
    pub user_id: UserId,
    /// The entry.
    pub address_id: AddressId,
    /// When.
    pub removed_at: Timestamp,
}

rejections! {
    /// Why a user refuses a command.
    pub enum UserRejection {
        /// There is one already.
        AlreadyRegistered = "already_registered", "this user is already registered";
        /// The claim's time ran out first.
        RegistrationAbandoned = "registration_abandoned",
            "this registration took too long and was given up; register again";
        /// Never registered.
        NotFound = "not_found", "there is no such user";
        /// Not theirs to ask.
        Forbidden = "forbidden", "the caller may not do this to this user";
        /// Locked out.
        Suspended = "suspended", "this user is suspended";
        /// Forgotten.
        Erased = "erased", "this user has been erased";
        /// Not the token that was mailed.
        TokenUnknown = "token_unknown", "this token is not known";
        /// Too late.
        TokenExpired = "token_expired", "this token has expired";
        /// Proved before.
        AlreadyVerified = "already_verified", "this e-mail address is already verified";
        /// Not proved yet.
        EmailNotVerified = "email_not_verified", "the e-mail address must be verified first";
        /// A second application.
        AlreadySeller = "already_seller", "this user is already a seller";
        /// No application.
        NotASeller = "not_a_seller", "this user is not a seller";
        /// Decided before.
        SellerAlreadyVerified = "seller_already_verified", "this seller is already verified";
        /// Not in the address book.
        AddressNotFound = "address_not_found", "there is no such address in your address book";
        /// No room.
        TooManyAddresses = "too_many_addresses",
            "an address book has room for fifty addresses; remove one first";
        /// Fields are wrong.
        Invalid {
            /// Which, and how.
            errors: Vec<FieldError>,
        } = "invalid", "some fields are not valid";
    }
}
invalid_from_fields!(UserRejection);

/// A user, or the absence of one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct User {
    /// Everything about the user, once registered.
    pub details: Option<UserDetails>,
    /// Whether nobody may register under this id any more.
    pub abandoned: bool,
}

/// What is known of a registered user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UserDetails {
    /// The user.
    pub user_id: UserId,
    /// How the user stands.
    pub status: UserStatus,
    /// What the user is.
    pub roles: BTreeSet<Role>,
    /// The address, normalised.
    pub email: Personal<String>,
    /// The first name.
    pub first_name: Personal<String>,
    /// The last name.
    pub last_name: Personal<String>,
    /// The number for text messages.
    #[serde(default)]
    pub phone: Option<Personal<String>>,
    /// Since when text messages are wanted; none: they are not.
    #[serde(default)]
    pub sms_since: Option<Timestamp>,
    /// The claim on the address.
    pub email_claim_id: EmailClaimId,
    /// Since when mails to the address come back; none: they do not.
    #[serde(default)]
    pub email_unreachable_since: Option<Timestamp>,
    /// When the address was proved.
    pub email_verified_at: Option<Timestamp>,
    /// The hash of the verification token, in hexadecimal. Kept, so that a second use is told apart
    /// from a wrong token.
    pub verification_token_hash: String,
    /// When the token stops being accepted.
    pub verification_expires_at: Timestamp,
    /// When it was mailed.
    #[serde(default)]
    pub verification_requested_at: Option<Timestamp>,
    /// The token for a new password, while there is one.
    #[serde(default)]
    pub password_reset: Option<PendingToken>,
    /// The epoch of logins.
    #[serde(default)]
    pub epoch: u32,
    /// A login of an earlier epoch that goes on.
    #[serde(default)]
    pub kept_session: Option<SessionId>,
    /// The address book, the oldest entry first.
    #[serde(default)]
    pub addresses: Vec<SavedAddress>,
    /// The one to offer first.
    #[serde(default)]
    pub default_address: Option<AddressId>,
    /// The business, once the user wants to sell.
    pub seller: Option<SellerProfile>,
    /// What the user does not want to be told, by which way.
    #[serde(default)]
    pub muted: BTreeSet<Muted>,
    /// Which reports the user gets by mail; none: no report.
    #[serde(default)]
    pub reports: Option<WantedReports>,
    /// What buyers think of the seller.
    #[serde(default)]
    pub rating: Rating,
    /// When.
    pub registered_at: Timestamp,
}

/// An entry of an address book.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedAddress {
    /// The entry.
    pub address_id: AddressId,
    /// What the user calls it.
    pub label: Option<Personal<String>>,
    /// Where it is.
    pub address: Personal<Address>,
}

/// A token that was mailed and not used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingToken {
    /// Its hash, in hexadecimal.
    pub hash: String,
    /// When it stops being accepted.
    pub expires_at: Timestamp,
    /// When it was asked for.
    pub requested_at: Timestamp,
}

/// A seller's business.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SellerProfile {
    /// Its name; public.
    pub business_name: String,
    /// Where it is.
    pub business_address: Personal<String>,
    /// How to reach it.
    pub business_phone: Personal<String>,
    /// How the seller stands.
    pub verification_status: VerificationStatus,
    /// When the user applied.
    pub since: Timestamp,
}

impl UserDetails {
    /// Whether the address is proved.
    pub fn email_verified(&self) -> bool {
        self.email_verified_at.is_some()
    }

    /// Which reports the user gets by mail.
    pub fn report_mails(&self) -> ReportMails {
        self.reports.map(|wanted| wanted.mails).unwrap_or_default()
    }

    /// Whether a login of this epoch is not over for the user's part.
    pub fn goes_on(&self, session: SessionId, epoch: u32) -> bool {
        self.epoch == epoch || self.kept_session == Some(session)
    }

    fn saved(&self, address_id: AddressId) -> Result<&SavedAddress, UserRejection> {
        let mut all = self.addresses.iter();
        all.find(|saved| saved.address_id == address_id).ok_or(UserRejection::AddressNotFound)
    }

    fn decide_address(&self, command: &UserCommand) -> Decision {
        match command {
            UserCommand::AddAddress { address_id, label, address, is_default, now, .. } => {
                if self.addresses.len() >= ADDRESSES_MAX {
                    return Err(UserRejection::TooManyAddresses);
                }
                let is_default = *is_default || self.addresses.is_empty();
                let label = label.as_deref();
                let kept = self.kept(*address_id, (label, address), is_default, *now)?;
                Ok(vec![UserEvent::AddressAdded(kept)])
            }
            UserCommand::ChangeAddress { address_id, label, change, is_default, now, .. } => {
                let saved = self.saved(*address_id)?;
                // What is erased cannot be changed, and its owner cannot ask any more.
                let before = saved.address.get().ok_or(UserRejection::Erased)?;
                let address = change.of(before);
                let old = saved.label.as_ref().and_then(Personal::get).map(String::as_str);
                let label = label.as_deref().or(old);
                let was_default = self.default_address == Some(*address_id);
                let is_default = *is_default || was_default;
                let kept = self.kept(*address_id, (label, &address), is_default, *now)?;
                let is_same = kept.label == saved.label && kept.address == saved.address;
                if is_same && is_default == was_default {
                    return Ok(Vec::new());
                }
                Ok(vec![UserEvent::AddressChanged(kept)])
            }
            UserCommand::RemoveAddress { address_id, now, .. } => {
                self.saved(*address_id)?;
                let (user_id, address_id) = (self.user_id, *address_id);
                let event = AddressRemoved { user_id, address_id, removed_at: *now };
                Ok(vec![UserEvent::AddressRemoved(event)])
            }
            _ => Ok(Vec::new()),
        }
    }

    fn kept(
        &self,
        address_id: AddressId,
        (label, address): (Option<&str>, &Address),
        is_default: bool,
        now: Timestamp,
    ) -> Result<AddressKept, UserRejection> {
        let mut fields = Fields::default();
        let label = fields.optional_line("/label", label, text::NAME_MAX);
        let address = address.checked(&mut fields, "/address");
        fields.finish()?;
        let subject = self.user_id.uuid();
        Ok(AddressKept {
            user_id: self.user_id,
            address_id,
            label: label.map(|label| Personal::new(subject, label)),
            address: Personal::new(subject, address),
            is_default,
            kept_at: now,
        })
    }

    fn keep(&mut self, event: &AddressKept) {
        let AddressKept { address_id, label, address, .. } = event.clone();
        let saved = SavedAddress { address_id, label, address };
        match self.addresses.iter_mut().find(|known| known.address_id == address_id) {
            Some(known) => *known = saved,
            None => self.addresses.push(saved),
        }
        if event.is_default {
            self.default_address = Some(address_id);
        }
    }

    fn keep_no_longer(&mut self, address_id: AddressId) {
        self.addresses.retain(|saved| saved.address_id != address_id);
        if self.default_address == Some(address_id) {
            self.default_address = self.addresses.first().map(|saved| saved.address_id);
        }
    }

    /// The end of the logins so far.
    fn next_epoch(&self, kept: Option<SessionId>, now: Timestamp) -> SessionsEnded {
        SessionsEnded {
            user_id: self.user_id,
            epoch: self.epoch.saturating_add(1),
            kept_session_id: kept,
            ended_at: now,
        }
    }

    /// Whether text messages are wanted.
    pub fn sms_opt_in(&self) -> bool {
        self.sms_since.is_some()
    }

    /// The number, if text messages have been wanted there since before `at`: who agrees later is not
    /// told of what was before.
    pub fn sms_number(&self, at: Timestamp) -> Option<&String> {
        self.sms_since.filter(|since| *since <= at)?;
        self.phone.as_ref()?.get()
    }

    /// The change of number and consent, if there is one. Without a number there is no consent.
    fn contact(
        &self,
        fields: &mut Fields,
        phone: Option<&str>,
        sms_opt_in: Option<bool>,
        now: Timestamp,
    ) -> Option<UserContactUpdated> {
        let new = match phone {
            None => self.phone.clone(),
            Some(text) if text.trim().is_empty() => None,
            Some(text) => Some(Personal::new(self.user_id.uuid(), fields.mobile("/phone", text))),
        };
        let detail = "text messages need a phone number";
        let asks_in_vain = sms_opt_in == Some(true) && new.is_none();
        fields.require(!asks_in_vain, "/sms_opt_in", "phone_required", detail);
        let opt_in = sms_opt_in.unwrap_or_else(|| self.sms_opt_in()) && new.is_some();
        let is_changed = new != self.phone || opt_in != self.sms_opt_in();
        is_changed.then_some(UserContactUpdated {
            user_id: self.user_id,
            phone: new,
            sms_opt_in: opt_in,
            updated_at: now,
        })
    }

    /// Refuses those who cannot act.
    fn must_be_in(&self) -> Result<(), UserRejection> {
        match self.status {
            UserStatus::Suspended => Err(UserRejection::Suspended),
            UserStatus::Erased => Err(UserRejection::Erased),
            UserStatus::Pending | UserStatus::Active => Ok(()),
        }
    }
}

type Decision = Result<Vec<UserEvent>, UserRejection>;

impl Aggregate for User {
    const TYPE: &'static str = "user";
    type Command = UserCommand;
    type Event = UserEvent;
    type Rejection = UserRejection;

    fn decide(&self, command: &UserCommand) -> Decision {
        use UserCommand as C;
        match command {
            C::Register(registration) => Ok(vec![self.register(registration)?]),
            C::RegisterAdmin { caller, registration } => self.register_admin(caller, registration),
            C::AbandonRegistration { user_id, now } => self.abandon(*user_id, *now),
            C::VerifyEmail { token_hash, now } => self.verify_email(token_hash, *now),
            C::UpgradeToSeller { .. } => self.upgrade_to_seller(command),
            C::VerifySeller { caller, now } => self.verify_seller(caller, *now),
            C::RejectSeller { caller, reason, now } => self.reject_seller(caller, reason, *now),
            C::UpdateProfile { .. } => self.update_profile(command),
            C::Suspend { caller, reason, now } => self.suspend(caller, reason, *now),
            C::Reinstate { caller, now } => self.reinstate(caller, *now),
            C::SetPreferences { caller, muted, reports, now } => {
                self.set_preferences(caller, muted, *reports, *now)
            }
            C::LearnReview { caller, news, now } => self.learn_review(caller, *news, *now),
            C::RecordBounce { caller, reason, now } => self.record_bounce(caller, reason, *now),
            C::ClearBounce { caller, now } => self.clear_bounce(caller, *now),
            C::Erase { caller, reason, now } => self.erase(caller, reason.as_deref(), *now),
            C::RequestVerification { token, now } => self.request_verification(token, *now),
            C::RequestPasswordReset { token, now } => self.request_password_reset(token, *now),
            C::ResetPassword { token_hash, now } => self.reset_password(token_hash, *now),
            C::ChangePassword { caller, kept, now } => self.change_password(caller, *kept, *now),
            C::EndSessions { caller, now } => self.end_sessions(caller, *now),
            C::AddAddress { caller, .. }
            | C::ChangeAddress { caller, .. }
            | C::RemoveAddress { caller, .. } => self.address_book(caller)?.decide_address(command),
        }
    }

    fn apply(&mut self, event: &UserEvent) {
        match event {
            UserEvent::Registered(event) => self.details = Some(UserDetails::new(event)),
            UserEvent::RegistrationAbandoned(_) => self.abandoned = true,
            later => {
                if let Some(details) = &mut self.details {
                    details.apply(later);
                }
            }
        }
    }
}

impl User {
    fn details(&self) -> Result<&UserDetails, UserRejection> {
        self.details.as_ref().ok_or(UserRejection::NotFound)
    }

    fn register(&self, new: &Registration) -> Result<UserEvent, UserRejection> {
        if self.details.is_some() {
            return Err(UserRejection::AlreadyRegistered);
        }
        if self.abandoned {
            return Err(UserRejection::RegistrationAbandoned);
        }
        let mut fields = Fields::default();
        let email = fields.email("/email", &new.email);
        let first_name = fields.line("/first_name", &new.first_name, text::NAME_MAX);
        let last_name = fields.line("/last_name", &new.last_name, text::NAME_MAX);
        fields.finish()?;
        let personal = |value| Personal::new(new.user_id.uuid(), value);
        Ok(UserEvent::Registered(UserRegistered {
            user_id: new.user_id,
            email: personal(email),
            first_name: personal(first_name),
            last_name: personal(last_name),
            email_claim_id: new.email_claim_id,
            verification_token_hash: new.verification_token_hash.clone(),
            verification_token_nonce: new.verification_token_nonce.clone(),
            verification_expires_at: new.verification_expires_at,
            registered_at: new.now,
        }))
    }

    fn register_admin(&self, caller: &Caller, new: &Registration) -> Decision {
        if !caller.is_system() {
            return Err(UserRejection::Forbidden);
        }
        let registered = self.register(new)?;
        let email = Personal::new(new.user_id.uuid(), text::normal_email(&new.email));
        let (user_id, now) = (new.user_id, new.now);
        Ok(vec![
            registered,
            UserEvent::EmailVerified(UserEmailVerified { user_id, email, verified_at: now }),
            UserEvent::RoleGranted(UserRoleGranted { user_id, role: Role::Admin, granted_at: now }),
        ])
    }

    fn abandon(&self, user_id: UserId, now: Timestamp) -> Decision {
        if self.details.is_some() {
            return Err(UserRejection::AlreadyRegistered);
        }
        if self.abandoned {
            return Ok(Vec::new());
        }
        let event = RegistrationAbandoned { user_id, abandoned_at: now };
        Ok(vec![UserEvent::RegistrationAbandoned(event)])
    }

    fn verify_email(&self, token_hash: &str, now: Timestamp) -> Decision {
        let details = self.details()?;
        if details.verification_token_hash != token_hash {
            return Err(UserRejection::TokenUnknown);
        }
        details.must_be_in()?;
        if details.email_verified() {
            return Err(UserRejection::AlreadyVerified);
        }
        if now >= details.verification_expires_at {
            return Err(UserRejection::TokenExpired);
        }
        Ok(vec![UserEvent::EmailVerified(UserEmailVerified {
            user_id: details.user_id,
            email: details.email.clone(),
            verified_at: now,
        })])
    }

    fn upgrade_to_seller(&self, command: &UserCommand) -> Decision {
        let UserCommand::UpgradeToSeller {
            caller,
            business_name,
            business_address,
            business_phone,
            now,
        } = command
        else {
            return Ok(Vec::new());
        };
        let details = self.details()?;
        if !caller.may_act_for(details.user_id) {
            return Err(UserRejection::Forbidden);
        }
        details.must_be_in()?;
        if !details.email_verified() {
            return Err(UserRejection::EmailNotVerified);
        }
        let standing = details.seller.as_ref().map(|seller| seller.verification_status);
        if matches!(standing, Some(VerificationStatus::Pending | VerificationStatus::Verified)) {
            return Err(UserRejection::AlreadySeller);
        }
        let mut fields = Fields::default();
        let name = fields.line("/business_name", business_name, text::NAME_MAX);
        let address = fields.line("/business_address", business_address, text::ADDRESS_MAX);
        let phone = fields.phone("/business_phone", business_phone);
        fields.finish()?;
        let personal = |value| Personal::new(details.user_id.uuid(), value);
        Ok(vec![UserEvent::UpgradedToSeller(UserUpgradedToSeller {
            user_id: details.user_id,
            business_name: name,
            business_address: personal(address),
            business_phone: personal(phone),
            verification_status: VerificationStatus::Pending,
            upgraded_at: *now,
        })])
    }

    /// The user and the seller's standing, for an administrator who decides about it.
    fn application(
        &self,
        caller: &Caller,
    ) -> Result<(&UserDetails, VerificationStatus), UserRejection> {
        if !caller.is_staff() {
            return Err(UserRejection::Forbidden);
        }
        let details = self.details()?;
        details.must_be_in()?;
        let seller = details.seller.as_ref().ok_or(UserRejection::NotASeller)?;
        Ok((details, seller.verification_status))
    }

    fn verify_seller(&self, caller: &Caller, now: Timestamp) -> Decision {
        let (details, standing) = self.application(caller)?;
        if standing == VerificationStatus::Verified {
            return Err(UserRejection::SellerAlreadyVerified);
        }
        let event = SellerVerified { user_id: details.user_id, verified_at: now };
        Ok(vec![UserEvent::SellerVerified(event)])
    }

    fn reject_seller(&self, caller: &Caller, reason: &str, now: Timestamp) -> Decision {
        let (details, standing) = self.application(caller)?;
        match standing {
            VerificationStatus::Verified => return Err(UserRejection::SellerAlreadyVerified),
            VerificationStatus::Rejected => return Ok(Vec::new()),
            VerificationStatus::Pending => {}
        }
        let reason = reason_of(reason)?;
        let event = SellerRejected { user_id: details.user_id, reason, rejected_at: now };
        Ok(vec![UserEvent::SellerRejected(event)])
    }

    fn update_profile(&self, command: &UserCommand) -> Decision {
        let UserCommand::UpdateProfile { caller, first_name, last_name, phone, sms_opt_in, now } =
            command
        else {
            return Ok(Vec::new());
        };
        let details = self.details()?;
        if !caller.may_act_for(details.user_id) {
            return Err(UserRejection::Forbidden);
        }
        details.must_be_in()?;
        let mut fields = Fields::default();
        let mut changed = |pointer, new: Option<&str>, old: &Personal<String>| match new {
            Some(new) => {
                Personal::new(details.user_id.uuid(), fields.line(pointer, new, text::NAME_MAX))
            }
            None => old.clone(),
        };
        let first_name = changed("/first_name", first_name.as_deref(), &details.first_name);
        let last_name = changed("/last_name", last_name.as_deref(), &details.last_name);
        let contact = details.contact(&mut fields, phone.as_deref(), *sms_opt_in, *now);
        fields.finish()?;
        let mut events = Vec::new();
        if first_name != details.first_name || last_name != details.last_name {
            events.push(UserEvent::ProfileUpdated(UserProfileUpdated {
                user_id: details.user_id,
                first_name,
                last_name,
                updated_at: *now,
            }));
        }
        events.extend(contact.map(UserEvent::ContactUpdated));
        Ok(events)
    }

    fn suspend(&self, caller: &Caller, reason: &str, now: Timestamp) -> Decision {
        let details = self.for_staff(caller)?;
        match details.status {
            UserStatus::Suspended => Ok(Vec::new()),
            UserStatus::Erased => Err(UserRejection::Erased),
            UserStatus::Pending | UserStatus::Active => {
                let reason = reason_of(reason)?;
                let event = UserSuspended { user_id: details.user_id, reason, suspended_at: now };
                Ok(vec![UserEvent::Suspended(event)])
            }
        }
    }

    fn reinstate(&self, caller: &Caller, now: Timestamp) -> Decision {
        let details = self.for_staff(caller)?;
        match details.status {
            UserStatus::Suspended => {
                let event = UserReinstated { user_id: details.user_id, reinstated_at: now };
                Ok(vec![UserEvent::Reinstated(event)])
            }
            UserStatus::Erased => Err(UserRejection::Erased),
            UserStatus::Pending | UserStatus::Active => Ok(Vec::new()),
        }
    }

    fn set_preferences(
        &self,
        caller: &Caller,
        muted: &BTreeSet<Muted>,
        reports: ReportMails,
        now: Timestamp,
    ) -> Decision {
        let details = self.details()?;
        if !caller.may_act_for(details.user_id) {
            return Err(UserRejection::Forbidden);
        }
        details.must_be_in()?;
        let mut fields = Fields::default();
        for Muted { channel, kind } in muted {
            let pointer = format!("/{}/account", channel.as_str());
            let detail = "what is about the account and its security is always told";
            fields.require(*kind != NotificationKind::Account, &pointer, "always_on", detail);
        }
        let may = reports.is_off() || details.roles.contains(&Role::Admin);
        fields.require(may, "/reports", "not_yours", "is for administrators");
        fields.finish()?;
        if *muted == details.muted && reports == details.report_mails() {
            return Ok(Vec::new());
        }
        Ok(vec![UserEvent::PreferencesUpdated(UserPreferencesUpdated {
            user_id: details.user_id,
            muted: muted.iter().copied().collect(),
            reports,
            updated_at: now,
        })])
    }

    /// Whoever has left keeps the rating: reviews of them can still be hidden.
    fn learn_review(&self, caller: &Caller, news: LearntReview, now: Timestamp) -> Decision {
        if !caller.is_system() {
            return Err(UserRejection::Forbidden);
        }
        let details = self.details()?;
        let event = details.rating.learn(details.user_id, news, now);
        Ok(event.map(UserEvent::RatingUpdated).into_iter().collect())
    }

    fn record_bounce(&self, caller: &Caller, reason: &str, now: Timestamp) -> Decision {
        if !caller.is_system() {
            return Err(UserRejection::Forbidden);
        }
        let details = self.details()?;
        if details.email_unreachable_since.is_some() {
            return Ok(Vec::new());
        }
        let (user_id, reason) = (details.user_id, reason.to_owned());
        let event = UserEmailUnreachable { user_id, reason, since: now };
        Ok(vec![UserEvent::EmailUnreachable(event)])
    }

    fn clear_bounce(&self, caller: &Caller, now: Timestamp) -> Decision {
        let details = self.for_staff(caller)?;
        if details.email_unreachable_since.is_none() {
            return Ok(Vec::new());
        }
        let event = UserEmailReachable { user_id: details.user_id, since: now };
        Ok(vec![UserEvent::EmailReachable(event)])
    }

    fn erase(&self, caller: &Caller, reason: Option<&str>, now: Timestamp) -> Decision {
        let details = self.details()?;
        if !caller.may_act_for(details.user_id) {
            return Err(UserRejection::Forbidden);
        }
        if details.status == UserStatus::Erased {
            return Ok(Vec::new());
        }
        Ok(vec![UserEvent::Erased(UserErased {
            user_id: details.user_id,
            email_claim_id: details.email_claim_id,
            reason: reason.map(reason_of).transpose()?,
            erased_at: now,
        })])
    }

    fn request_verification(&self, token: &OneTimeToken, now: Timestamp) -> Decision {
        let details = self.details()?;
        details.must_be_in()?;
        if details.email_verified() {
            return Err(UserRejection::AlreadyVerified);
        }
        let before = details.verification_requested_at.unwrap_or(details.registered_at);
        if now < before.plus(MAIL_AGAIN_AFTER) {
            return Ok(Vec::new());
        }
        Ok(vec![UserEvent::VerificationRequested(details.requested(token, now))])
    }

    fn request_password_reset(&self, token: &OneTimeToken, now: Timestamp) -> Decision {
        let details = self.details()?;
        details.must_be_in()?;
        let before = details.password_reset.as_ref().map(|token| token.requested_at);
        if before.is_some_and(|before| now < before.plus(MAIL_AGAIN_AFTER)) {
            return Ok(Vec::new());
        }
        Ok(vec![UserEvent::PasswordResetRequested(details.requested(token, now))])
    }

    fn reset_password(&self, token_hash: &str, now: Timestamp) -> Decision {
        let details = self.details()?;
        let pending = details.password_reset.as_ref().filter(|token| token.hash == token_hash);
        let pending = pending.ok_or(UserRejection::TokenUnknown)?;
        details.must_be_in()?;
        if now >= pending.expires_at {
            return Err(UserRejection::TokenExpired);
        }
        Ok(vec![UserEvent::PasswordReset(details.next_epoch(None, now))])
    }

    fn change_password(
        &self,
        caller: &Caller,
        kept: Option<SessionId>,
        now: Timestamp,
    ) -> Decision {
        let details = self.details()?;
        if !caller.is(details.user_id) {
            return Err(UserRejection::Forbidden);
        }
        details.must_be_in()?;
        Ok(vec![UserEvent::PasswordChanged(details.next_epoch(kept, now))])
    }

    fn end_sessions(&self, caller: &Caller, now: Timestamp) -> Decision {
        let details = self.details()?;
        if !caller.may_act_for(details.user_id) {
            return Err(UserRejection::Forbidden);
        }
        details.must_be_in()?;
        Ok(vec![UserEvent::SessionsEnded(details.next_epoch(None, now))])
    }

    /// The user whose address book it is: nobody else touches it.
    fn address_book(&self, caller: &Caller) -> Result<&UserDetails, UserRejection> {
        let details = self.details()?;
        if !caller.is(details.user_id) {
            return Err(UserRejection::Forbidden);
        }
        details.must_be_in()?;
        Ok(details)
    }

    fn for_staff(&self, caller: &Caller) -> Result<&UserDetails, UserRejection> {
        if caller.is_staff() { self.details() } else { Err(UserRejection::Forbidden) }
    }
}

impl UserDetails {
    fn new(event: &UserRegistered) -> Self {
        Self {
            user_id: event.user_id,
            status: UserStatus::Pending,
            roles: BTreeSet::from([Role::Buyer]),
            email: event.email.clone(),
            first_name: event.first_name.clone(),
            last_name: event.last_name.clone(),
            phone: None,
            sms_since: None,
            email_claim_id: event.email_claim_id,
            email_unreachable_since: None,
            email_verified_at: None,
            verification_token_hash: event.verification_token_hash.clone(),
            verification_expires_at: event.verification_expires_at,
            verification_requested_at: None,
            password_reset: None,
            epoch: 0,
            kept_session: None,
            addresses: Vec::new(),
            default_address: None,
            seller: None,
            muted: BTreeSet::new(),
            reports: None,
            rating: Rating::default(),
            registered_at: event.registered_at,
        }
    }

    fn apply(&mut self, event: &UserEvent) {
        match event {
            UserEvent::Registered(_) | UserEvent::RegistrationAbandoned(_) => {}
            UserEvent::EmailVerified(event) => {
                self.email_verified_at = Some(event.verified_at);
                self.status = UserStatus::Active;
            }
            UserEvent::RoleGranted(event) => drop(self.roles.insert(event.role)),
            UserEvent::ProfileUpdated(event) => {
                self.first_name = event.first_name.clone();
                self.last_name = event.last_name.clone();
            }
            UserEvent::ContactUpdated(event) => {
                self.phone.clone_from(&event.phone);
                let since = self.sms_since.unwrap_or(event.updated_at);
                self.sms_since = event.sms_opt_in.then_some(since);
            }
            UserEvent::UpgradedToSeller(event) => {
                self.roles.insert(Role::Seller);
                self.seller = Some(SellerProfile {
                    business_name: event.business_name.clone(),
                    business_address: event.business_address.clone(),
                    business_phone: event.business_phone.clone(),
                    verification_status: event.verification_status,
                    since: event.upgraded_at,
                });
            }
            UserEvent::SellerVerified(_) => self.set_standing(VerificationStatus::Verified),
            UserEvent::SellerRejected(_) => self.set_standing(VerificationStatus::Rejected),
            UserEvent::Suspended(_) => {
                self.status = UserStatus::Suspended;
                self.over(self.epoch.saturating_add(1), None);
            }
            UserEvent::Reinstated(_) => {
                self.status =
                    if self.email_verified() { UserStatus::Active } else { UserStatus::Pending };
            }
            UserEvent::PreferencesUpdated(event) => {
                self.muted = event.muted.iter().copied().collect();
                if event.reports != self.report_mails() {
                    let (mails, since) = (event.reports, event.updated_at);
                    self.reports = (!mails.is_off()).then_some(WantedReports { mails, since });
                }
            }
            UserEvent::RatingUpdated(event) => self.rating.apply(event),
            UserEvent::EmailUnreachable(event) => self.email_unreachable_since = Some(event.since),
            UserEvent::EmailReachable(_) => self.email_unreachable_since = None,
            UserEvent::Erased(_) => self.forget(),
            UserEvent::VerificationRequested(event) => {
                self.verification_token_hash = event.token_hash.clone();
                self.verification_expires_at = event.expires_at;
                self.verification_requested_at = Some(event.requested_at);
            }
            UserEvent::PasswordResetRequested(event) => {
                self.password_reset = Some(PendingToken {
                    hash: event.token_hash.clone(),
                    expires_at: event.expires_at,
                    requested_at: event.requested_at,
                });
            }
            UserEvent::PasswordReset(event)
            | UserEvent::PasswordChanged(event)
            | UserEvent::SessionsEnded(event) => self.over(event.epoch, event.kept_session_id),
            UserEvent::AddressAdded(event) | UserEvent::AddressChanged(event) => self.keep(event),
            UserEvent::AddressRemoved(event) => self.keep_no_longer(event.address_id),
        }
    }

    /// The logins so far are over. Whoever has another password now, or may not come in, has no use
    /// for a token, and a mail that is under way gives none.
    fn over(&mut self, epoch: u32, kept: Option<SessionId>) {
        self.epoch = epoch;
        self.kept_session = kept;
        self.password_reset = None;
    }

    fn requested(&self, token: &OneTimeToken, now: Timestamp) -> TokenRequested {
        TokenRequested {
            user_id: self.user_id,
            token_hash: token.hash.clone(),
            token_nonce: token.nonce.clone(),
            expires_at: token.expires_at,
            requested_at: now,
        }
    }

    fn set_standing(&mut self, standing: VerificationStatus) {
        if let Some(seller) = &mut self.seller {
            seller.verification_status = standing;
        }
    }

    /// What a reader of the events would find once the key is gone.
    fn forget(&mut self) {
        let subject = self.user_id.uuid();
        self.status = UserStatus::Erased;
        self.over(self.epoch.saturating_add(1), None);
        self.email = Personal::Erased { subject };
        self.first_name = Personal::Erased { subject };
        self.last_name = Personal::Erased { subject };
        for saved in &mut self.addresses {
            saved.address = Personal::Erased { subject };
            if let Some(label) = &mut saved.label {
                *label = Personal::Erased { subject };
            }
        }
        self.phone = self.phone.as_ref().map(|_| Personal::Erased { subject });
        self.sms_since = None;
        if let Some(seller) = &mut self.seller {
            seller.business_address = Personal::Erased { subject };
            seller.business_phone = Personal::Erased { subject };
        }
    }
}

fn reason_of(reason: &str) -> Result<String, Vec<FieldError>> {
    let mut fields = Fields::default();
    let reason = fields.line("/reason", reason, text::REASON_MAX);
    fields.finish().map(|()| reason)
}

#[cfg(test)]
mod tests;
