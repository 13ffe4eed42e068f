//! Who asks. It travels in the command, so that the aggregate itself decides who may do what.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ids::UserId;

/// What a user may be.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Role {
    /// Buys. Every registered user may.
    Buyer,
    /// Sells, once verified.
    Seller,
    /// Runs the marketplace.
    Admin,
}

impl Role {
    /// The name as the API writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Buyer => "BUYER",
            Self::Seller => "SELLER",
            Self::Admin => "ADMIN",
        }
    }
}

/// Who asks for something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// The marketplace itself: a saga, a subscriber, a timer, the operator at the console.
    System,
    /// Somebody who has proved who they are.
    User {
        /// Who.
        user_id: UserId,
        /// What they are.
        roles: BTreeSet<Role>,
    },
    /// Somebody who has not.
    Anonymous,
}

impl Caller {
    /// A user with these roles.
    pub fn user(user_id: UserId, roles: impl IntoIterator<Item = Role>) -> Self {
        Self::User { user_id, roles: roles.into_iter().collect() }
    }

    /// The user, if it is one.
    pub fn user_id(&self) -> Option<UserId> {
        match self {
            Self::User { user_id, .. } => Some(*user_id),
            Self::System | Self::Anonymous => None,
        }
    }

    /// Whether it is the marketplace itself.
    pub fn is_system(&self) -> bool {
        *self == Self::System
    }

    /// Whether it is a user with this role.
    pub fn has(&self, role: Role) -> bool {
        matches!(self, Self::User { roles, .. } if roles.contains(&role))
    }

    /// Whether it is `user`.
    pub fn is(&self, user: UserId) -> bool {
        self.user_id() == Some(user)
    }

    /// Whether it runs the marketplace: an administrator or the marketplace itself.
    pub fn is_staff(&self) -> bool {
        self.is_system() || self.has(Role::Admin)
    }

    /// Whether it may do what `owner` may do: the owner, an administrator or the marketplace.
    pub fn may_act_for(&self, owner: UserId) -> bool {
        self.is(owner) || self.is_staff()
    }

    /// How an event's metadata names it.
    pub fn actor_id(&self) -> String {
        match self {
            Self::System => "system".to_owned(),
            Self::User { user_id, .. } => user_id.to_string(),
            Self::Anonymous => "anonymous".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn owners_admins_and_the_system_act_for_an_owner() {
        let (owner, other) = (UserId(Uuid::from_u128(1)), UserId(Uuid::from_u128(2)));
        for caller in
            [Caller::System, Caller::user(owner, [Role::Buyer]), Caller::user(other, [Role::Admin])]
        {
            assert!(caller.may_act_for(owner), "{caller:?}");
        }
        for caller in [Caller::Anonymous, Caller::user(other, [Role::Buyer, Role::Seller])] {
            assert!(!caller.may_act_for(owner), "{caller:?}");
        }
    }
}
