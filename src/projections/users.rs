//! `users-view`: who there is and how they stand, for administrators. No names, no addresses.

use souk_actors::event::StoredEvent;
use souk_actors::retry::Failure;
use souk_actors::world::Timestamp;
use uuid::Uuid;

use super::db::{Param, Query, ReadDb, ReadError, Row};
use super::view::{View, read_data};
use crate::domain::caller::Role;
use crate::domain::user::{UserEvent, UserStatus, VerificationStatus};

/// A user, without anything personal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserRow {
    /// The user.
    pub user_id: Uuid,
    /// How the user stands.
    pub status: UserStatus,
    /// What the user is.
    pub roles: Vec<Role>,
    /// How the seller stands, once the user wants to sell.
    pub seller_status: Option<VerificationStatus>,
    /// Since when.
    pub registered_at: Timestamp,
    /// The latest change.
    pub updated_at: Timestamp,
    /// Whether the address is proved: what a suspended user comes back to.
    email_verified: bool,
}

/// Which users.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UserFilter {
    /// Who stand so.
    pub status: Option<UserStatus>,
    /// Who are this.
    pub role: Option<Role>,
    /// This one.
    pub user_id: Option<Uuid>,
    /// Who stand so as sellers (the ones waiting for an administrator are `PENDING`).
    pub seller_status: Option<VerificationStatus>,
}

/// The users.
pub struct UsersView;

#[derive(serde::Deserialize)]
struct RoleGranted {
    role: Role,
}

impl View for UsersView {
    const NAME: &'static str = super::USERS_VIEW;
    const CONTEXT: &'static str = "users";
    const TOPICS: &'static [&'static str] = &["user.*", "seller.*"];
    const TABLE: &'static str = "users_v1";
    const COLUMNS: &'static [&'static str] = &[
        "user_id",
        "status",
        "roles",
        "seller_status",
        "registered_ms",
        "updated_ms",
        "email_verified",
    ];
    const FIXED: &'static [&'static str] = &["registered_ms"];
    type Row = UserRow;

    fn fold(row: Option<UserRow>, event: &StoredEvent) -> Result<Option<UserRow>, Failure> {
        if &*event.event_type == "user.registered" {
            return Ok(Some(UserRow {
                user_id: event.aggregate_id,
                status: UserStatus::Pending,
                roles: vec![Role::Buyer],
                seller_status: None,
                registered_at: event.timestamp,
                updated_at: event.timestamp,
                email_verified: false,
            }));
        }
        let Some(mut row) = row else { return Ok(None) };
        row.updated_at = event.timestamp;
        match &*event.event_type {
            "user.email_verified" => {
                row.email_verified = true;
                row.status = UserStatus::Active;
            }
            "user.role_granted" => row.grant(read_data::<UserEvent, RoleGranted>(event)?.role),
            "user.upgraded_to_seller" => {
                row.grant(Role::Seller);
                row.seller_status = Some(VerificationStatus::Pending);
            }
            "seller.verified" => row.seller_status = Some(VerificationStatus::Verified),
            "seller.rejected" => row.seller_status = Some(VerificationStatus::Rejected),
            "user.suspended" => row.status = UserStatus::Suspended,
            "user.reinstated" if row.email_verified => row.status = UserStatus::Active,
            "user.reinstated" => row.status = UserStatus::Pending,
            "user.erased" => row.status = UserStatus::Erased,
            _ => {}
        }
        Ok(Some(row))
    }

    fn values(row: &UserRow) -> Vec<Param> {
        let roles: Vec<_> = row.roles.iter().map(|role| role.as_str()).collect();
        vec![
            row.user_id.into(),
            Param::word(&row.status),
            roles.join(",").as_str().into(),
            Param::word_or_null(row.seller_status.as_ref()),
            row.registered_at.into(),
            row.updated_at.into(),
            row.email_verified.into(),
        ]
    }

    fn read(row: &Row) -> Result<UserRow, ReadError> {
        Ok(UserRow {
            user_id: row.id(0)?,
            status: row.word(1)?,
            roles: row.words(2)?,
            seller_status: row.word_or_null(3)?,
            registered_at: row.time(4)?,
            updated_at: row.time(5)?,
            email_verified: row.flag(6)?,
        })
    }
}

impl UserRow {
    fn grant(&mut self, role: Role) {
        if !self.roles.contains(&role) {
            self.roles.push(role);
        }
    }
}

/// The users that match, the newest first.
pub async fn find(
    db: &ReadDb,
    filter: &UserFilter,
    before: Option<(i64, Uuid)>,
    limit: u32,
) -> Result<Vec<UserRow>, ReadError> {
    let role = filter.role.map(|role| format!("%{}%", role.as_str()));
    let query = Query::select(UsersView::COLUMNS, &db.table(UsersView::NAME, UsersView::TABLE))
        .when(" AND status = ", filter.status.as_ref().map(Param::word))
        .when(" AND user_id = ", filter.user_id)
        .when(" AND roles LIKE ", role.as_deref())
        .when(" AND seller_status = ", filter.seller_status.as_ref().map(Param::word))
        .before("registered_ms, user_id", before)
        .then(" ORDER BY registered_ms DESC, user_id DESC LIMIT ")
        .value(limit);
    db.fetch_as(query, UsersView::read).await
}

/// The first administrators who can act, in the order in which they registered.
pub async fn administrators(db: &ReadDb, limit: u32) -> Result<Vec<Uuid>, ReadError> {
    let query = Query::select(UsersView::COLUMNS, &db.table(UsersView::NAME, UsersView::TABLE))
        .then(" AND roles LIKE '%ADMIN%' AND status = ")
        .value(Param::word(&UserStatus::Active))
        .then(" ORDER BY registered_ms, user_id LIMIT ")
        .value(limit);
    db.fetch_as(query, |row| row.id(0)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::projections::testing::event;

    fn folded(types: &[&str]) -> UserRow {
        types
            .iter()
            .fold(None, |row, event_type| {
                let event = event(event_type, "user", 1);
                UsersView::fold(row, &event).unwrap()
            })
            .unwrap()
    }

    #[test]
    fn a_reinstated_user_stands_as_before() {
        let row = folded(&["user.registered", "user.suspended", "user.reinstated"]);
        assert_eq!(row.status, UserStatus::Pending);
        let row = folded(&[
            "user.registered",
            "user.email_verified",
            "user.upgraded_to_seller",
            "seller.verified",
            "user.suspended",
            "user.reinstated",
        ]);
        assert_eq!(row.status, UserStatus::Active);
        assert_eq!(row.roles, [Role::Buyer, Role::Seller]);
        assert_eq!(row.seller_status, Some(VerificationStatus::Verified));
    }

    #[test]
    fn a_user_who_never_came_has_no_row() {
        let event = event("user.registration_abandoned", "user", 1);
        assert_eq!(UsersView::fold(None, &event).unwrap(), None);
    }
}
