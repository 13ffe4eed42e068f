use proptest::prelude::*;
use souk_actors::testing::Scenario;
use uuid::Uuid;

use super::*;
use crate::domain::testing::{
    BUYER, admin, assert_folds, at, buyer, run, seller, snapshot, stranger, user,
};

fn registration() -> Box<Registration> {
    Box::new(Registration {
        user_id: user(BUYER),
        email: " Ann@Example.com".into(),
        first_name: "Ann".into(),
        last_name: "Lee".into(),
        email_claim_id: EmailClaimId(Uuid::from_u128(5)),
        verification_token_hash: "aa".into(),
        verification_token_nonce: "bb".into(),
        verification_expires_at: at(100),
        now: at(0),
    })
}

fn register() -> UserCommand {
    UserCommand::Register(registration())
}

fn abandon() -> UserCommand {
    UserCommand::AbandonRegistration { user_id: user(BUYER), now: at(1) }
}

fn verify(hash: &str, seconds: u64) -> UserCommand {
    UserCommand::VerifyEmail { token_hash: hash.into(), now: at(seconds) }
}

fn upgrade(caller: Caller) -> UserCommand {
    UserCommand::UpgradeToSeller {
        caller,
        business_name: "Ann's Books".into(),
        business_address: "1 Book Street".into(),
        business_phone: "+84 24 3825 1234".into(),
        now: at(3),
    }
}

fn verify_seller(caller: Caller) -> UserCommand {
    UserCommand::VerifySeller { caller, now: at(4) }
}

fn reject_seller() -> UserCommand {
    UserCommand::RejectSeller { caller: admin(), reason: "no papers".into(), now: at(4) }
}

fn suspend() -> UserCommand {
    UserCommand::Suspend { caller: admin(), reason: "fraud".into(), now: at(5) }
}

fn rename(caller: Caller, first_name: Option<&str>) -> UserCommand {
    let first_name = first_name.map(str::to_owned);
    UserCommand::UpdateProfile {
        caller,
        first_name,
        last_name: None,
        phone: None,
        sms_opt_in: None,
        now: at(5),
    }
}

fn contact(phone: Option<&str>, sms_opt_in: Option<bool>, seconds: u64) -> UserCommand {
    UserCommand::UpdateProfile {
        caller: buyer(),
        first_name: None,
        last_name: None,
        phone: phone.map(str::to_owned),
        sms_opt_in,
        now: at(seconds),
    }
}

#[test]
fn text_messages_need_a_number_and_consent() {
    let number =
        |user: &User, seconds| user.details.as_ref().unwrap().sms_number(at(seconds)).cloned();
    after(&[register()])
        .when(contact(None, Some(true), 5))
        .then_rejected("invalid")
        .when(contact(Some("12"), None, 5))
        .then_rejected("invalid")
        .when(contact(Some(""), Some(false), 5))
        .then([])
        .when(contact(Some("+84 90 123 45 67"), None, 5))
        .and_state(|user| assert_eq!(number(user, 9), None))
        .then_types(&["user.contact_updated"])
        .when(contact(Some("+84901234567"), Some(false), 5))
        .then([])
        .when(contact(None, Some(true), 6))
        .and_state(|user| {
            assert_eq!(number(user, 5), None, "what was before is not told");
            assert_eq!(number(user, 6).unwrap(), "+84901234567");
        })
        .then_types(&["user.contact_updated"])
        .when(contact(Some("+84 90 765 43 21"), None, 7))
        .and_state(|user| assert_eq!(number(user, 6).unwrap(), "+84907654321"))
        .then_types(&["user.contact_updated"])
        .when(contact(Some(""), None, 8))
        .and_state(|user| {
            assert_eq!(number(user, 9), None);
            assert!(!user.details.as_ref().unwrap().sms_opt_in());
        })
        .then_types(&["user.contact_updated"]);
    let forgotten = [
        register(),
        contact(Some("+84901234567"), Some(true), 5),
        UserCommand::Erase { caller: buyer(), reason: None, now: at(9) },
    ];
    let (user, _) = run::<User>(&forgotten);
    assert!(!serde_json::to_string(&user).unwrap().contains("4567"));
    assert_eq!(number(&user, 9), None);
}

#[test]
fn names_and_number_change_together_or_not_at_all() {
    let both = |phone: &str| UserCommand::UpdateProfile {
        caller: buyer(),
        first_name: Some("Anna".into()),
        last_name: None,
        phone: Some(phone.into()),
        sms_opt_in: Some(true),
        now: at(5),
    };
    after(&[register()])
        .when(both("0901"))
        .then_rejected("invalid")
        .when(both("+84901234567"))
        .then_types(&["user.profile_updated", "user.contact_updated"]);
}

fn after(commands: &[UserCommand]) -> Scenario<User> {
    Scenario::given(run::<User>(commands).1)
}

fn status(user: &User) -> UserStatus {
    user.details.as_ref().unwrap().status
}

#[test]
fn registering_makes_a_pending_buyer_with_a_clean_address() {
    Scenario::<User>::new()
        .when(register())
        .and_state(|user| {
            let details = user.details.as_ref().unwrap();
            assert_eq!(details.status, UserStatus::Pending);
            assert_eq!(details.roles, BTreeSet::from([Role::Buyer]));
            assert_eq!(details.email.get().unwrap(), "ann@example.com");
            assert!(!details.email_verified());
        })
        .then_types(&["user.registered"])
        .when(register())
        .then_rejected("already_registered");
}

#[test]
fn a_registration_names_every_bad_field() {
    let mut bad = registration();
    bad.email = "ann".into();
    bad.first_name = " ".into();
    bad.last_name = "L\u{0}ee".into();
    let rejection = User::default().decide(&UserCommand::Register(bad)).unwrap_err();
    let UserRejection::Invalid { errors } = rejection else { panic!("{rejection:?}") };
    let pointers: Vec<_> = errors.iter().map(|error| error.pointer.as_str()).collect();
    assert_eq!(pointers, ["/email", "/first_name", "/last_name"]);
}

#[test]
fn an_abandoned_registration_stays_abandoned() {
    Scenario::<User>::new()
        .when(abandon())
        .then_types(&["user.registration_abandoned"])
        .when(abandon())
        .then([])
        .when(register())
        .then_rejected("registration_abandoned");
    after(&[register()]).when(abandon()).then_rejected("already_registered");
}

#[test]
fn only_the_system_makes_administrators() {
    let command = |caller| UserCommand::RegisterAdmin { caller, registration: registration() };
    Scenario::<User>::new().when(command(admin())).then_rejected("forbidden");
    Scenario::<User>::new()
        .when(command(Caller::System))
        .and_state(|user| {
            let details = user.details.as_ref().unwrap();
            assert!(details.roles.contains(&Role::Admin) && details.email_verified());
            assert_eq!(details.status, UserStatus::Active);
        })
        .then_types(&["user.registered", "user.email_verified", "user.role_granted"]);
}

#[test]
fn the_mailed_token_verifies_once_and_in_time() {
    Scenario::<User>::new().when(verify("aa", 1)).then_rejected("not_found");
    after(&[register()]).when(verify("ab", 1)).then_rejected("token_unknown");
    after(&[register()]).when(verify("aa", 100)).then_rejected("token_expired");
    after(&[register()])
        .when(verify("aa", 99))
        .and_state(|user| assert_eq!(status(user), UserStatus::Active))
        .then_types(&["user.email_verified"])
        .when(verify("aa", 99))
        .then_rejected("already_verified");
    after(&[register(), suspend()]).when(verify("aa", 1)).then_rejected("suspended");
}

#[test]
fn a_verified_user_becomes_a_seller_once() {
    let verified = [register(), verify("aa", 1)];
    Scenario::<User>::new().when(upgrade(buyer())).then_rejected("not_found");
    after(&[register()]).when(upgrade(buyer())).then_rejected("email_not_verified");
    after(&verified).when(upgrade(stranger())).then_rejected("forbidden");
    after(&verified)
        .when(upgrade(buyer()))
        .and_state(|user| {
            let details = user.details.as_ref().unwrap();
            assert!(details.roles.contains(&Role::Seller));
            let seller = details.seller.as_ref().unwrap();
            assert_eq!(seller.verification_status, VerificationStatus::Pending);
        })
        .then_types(&["user.upgraded_to_seller"])
        .when(upgrade(buyer()))
        .then_rejected("already_seller");
    let [register, verify] = verified;
    after(&[register, verify, suspend()]).when(upgrade(buyer())).then_rejected("suspended");
}

#[test]
fn a_bad_business_is_refused_by_field() {
    let command = UserCommand::UpgradeToSeller {
        caller: buyer(),
        business_name: String::new(),
        business_address: String::new(),
        business_phone: "12".into(),
        now: at(3),
    };
    after(&[register(), verify("aa", 1)]).when(command).then_rejected("invalid");
}

#[test]
fn administrators_decide_about_sellers() {
    let applied = || after(&[register(), verify("aa", 1), upgrade(buyer())]);
    after(&[register()]).when(verify_seller(admin())).then_rejected("not_a_seller");
    applied().when(verify_seller(buyer())).then_rejected("forbidden");
    applied()
        .when(verify_seller(admin()))
        .then_types(&["seller.verified"])
        .when(verify_seller(admin()))
        .then_rejected("seller_already_verified")
        .when(reject_seller())
        .then_rejected("seller_already_verified");
    applied()
        .when(reject_seller())
        .then_types(&["seller.rejected"])
        .when(reject_seller())
        .then([])
        .when(upgrade(buyer()))
        .then_types(&["user.upgraded_to_seller"])
        .when(verify_seller(admin()))
        .then_types(&["seller.verified"]);
}

#[test]
fn users_change_their_own_names() {
    after(&[register()])
        .when(rename(stranger(), Some("Eve")))
        .then_rejected("forbidden")
        .when(rename(buyer(), Some(" ")))
        .then_rejected("invalid")
        .when(rename(buyer(), Some("Ann")))
        .then([])
        .when(rename(buyer(), None))
        .then([])
        .when(rename(buyer(), Some("Anna")))
        .and_state(|user| {
            let details = user.details.as_ref().unwrap();
            assert_eq!(details.first_name.get().unwrap(), "Anna");
            assert_eq!(details.last_name.get().unwrap(), "Lee");
        })
        .then_types(&["user.profile_updated"]);
    Scenario::<User>::new().when(rename(buyer(), None)).then_rejected("not_found");
}

#[test]
fn suspending_and_reinstating_restore_the_status() {
    let reinstate = || UserCommand::Reinstate { caller: admin(), now: at(6) };
    for (commands, before) in [
        (vec![register()], UserStatus::Pending),
        (vec![register(), verify("aa", 1)], UserStatus::Active),
    ] {
        after(&commands)
            .when(reinstate())
            .then([])
            .when(suspend())
            .and_state(|user| assert_eq!(status(user), UserStatus::Suspended))
            .then_types(&["user.suspended"])
            .when(suspend())
            .then([])
            .when(rename(buyer(), Some("Eve")))
            .then_rejected("suspended")
            .when(reinstate())
            .and_state(|user| assert_eq!(status(user), before))
            .then_types(&["user.reinstated"]);
    }
    let by_seller = UserCommand::Suspend { caller: seller(), reason: "x".into(), now: at(5) };
    after(&[register()]).when(by_seller).then_rejected("forbidden");
}

#[test]
fn an_erased_user_is_forgotten() {
    let erase = |caller| UserCommand::Erase { caller, reason: None, now: at(9) };
    after(&[register(), verify("aa", 1), upgrade(buyer()), add_address(1, "1 Loom Lane", true)])
        .when(erase(stranger()))
        .then_rejected("forbidden")
        .when(erase(buyer()))
        .and_state(|user| {
            let text = serde_json::to_string(user).unwrap();
            for secret in ["ann@example.com", "Lee", "Book Street", "3825", "Loom", "Home"] {
                assert!(!text.contains(secret), "{secret}");
            }
        })
        .then_types(&["user.erased"])
        .when(erase(buyer()))
        .then([])
        .when(rename(buyer(), Some("Eve")))
        .then_rejected("erased")
        .when(suspend())
        .then_rejected("erased")
        .when(UserCommand::Reinstate { caller: admin(), now: at(10) })
        .then_rejected("erased");
}

fn request_verification(seconds: u64) -> UserCommand {
    let token = OneTimeToken { hash: "dd".into(), nonce: "n".into(), expires_at: at(500) };
    UserCommand::RequestVerification { token, now: at(seconds) }
}

fn request_reset(seconds: u64) -> UserCommand {
    let token = OneTimeToken { hash: "cc".into(), nonce: "n".into(), expires_at: at(3_600) };
    UserCommand::RequestPasswordReset { token, now: at(seconds) }
}

fn reset(hash: &str, seconds: u64) -> UserCommand {
    UserCommand::ResetPassword { token_hash: hash.into(), now: at(seconds) }
}

fn change_password(caller: Caller) -> UserCommand {
    UserCommand::ChangePassword { caller, kept: Some(SessionId(Uuid::from_u128(8))), now: at(9) }
}

fn add_address(n: u128, line1: &str, is_default: bool) -> UserCommand {
    let address = Address {
        recipient: Some("Aunt".into()),
        line1: line1.into(),
        line2: None,
        ward: None,
        district: "1".into(),
        city: "Hue".into(),
        postal_code: None,
        country: "VN".into(),
        phone: Some("+84901234567".into()),
    };
    UserCommand::AddAddress {
        caller: buyer(),
        address_id: AddressId(Uuid::from_u128(n)),
        label: Some("Home".into()),
        address: Box::new(address),
        is_default,
        now: at(4),
    }
}

fn change_address(caller: Caller, n: u128, change: AddressChange, first: bool) -> UserCommand {
    UserCommand::ChangeAddress {
        caller,
        address_id: AddressId(Uuid::from_u128(n)),
        label: None,
        change: Box::new(change),
        is_default: first,
        now: at(5),
    }
}

fn remove_address(n: u128) -> UserCommand {
    let address_id = AddressId(Uuid::from_u128(n));
    UserCommand::RemoveAddress { caller: buyer(), address_id, now: at(6) }
}

fn default_address(user: &User) -> Option<u128> {
    user.details.as_ref().unwrap().default_address.map(|id| id.uuid().as_u128())
}

#[test]
fn an_address_book_has_one_address_to_offer_first() {
    let kept = || after(&[register(), add_address(1, "1 Loom Lane", false)]);
    kept()
        .when(add_address(2, "2 Loom Lane", false))
        .and_state(|user| assert_eq!(default_address(user), Some(1)))
        .then_types(&["user.address_added"])
        .when(change_address(buyer(), 2, AddressChange::default(), true))
        .and_state(|user| assert_eq!(default_address(user), Some(2)))
        .then_types(&["user.address_changed"])
        .when(change_address(buyer(), 2, AddressChange::default(), false))
        .then([])
        .when(remove_address(2))
        .and_state(|user| assert_eq!(default_address(user), Some(1)))
        .then_types(&["user.address_removed"])
        .when(remove_address(2))
        .then_rejected("address_not_found");
    kept()
        .when(change_address(admin(), 1, AddressChange::default(), true))
        .then_rejected("forbidden");
    kept().when(add_address(3, " ", true)).then_rejected("invalid");
    after(&[register()]).when(remove_address(1)).then_rejected("address_not_found");
}

#[test]
fn what_is_absent_of_a_change_stays_and_what_is_empty_goes() {
    let line1 = Some("9 Loom Lane".to_owned());
    let change = AddressChange { line1, phone: Some(String::new()), ..AddressChange::default() };
    after(&[register(), add_address(1, "1 Loom Lane", false)])
        .when(change_address(buyer(), 1, change, false))
        .and_state(|user| {
            let saved = &user.details.as_ref().unwrap().addresses[0];
            let address = saved.address.get().unwrap();
            assert_eq!((address.line1.as_str(), address.city.as_str()), ("9 Loom Lane", "Hue"));
            assert_eq!(
                (address.phone.as_ref(), address.recipient.as_deref()),
                (None, Some("Aunt"))
            );
            assert_eq!(saved.label.as_ref().unwrap().get().unwrap(), "Home");
        })
        .then_types(&["user.address_changed"]);
}

#[test]
fn an_address_book_is_bounded() {
    let mut commands = vec![register()];
    commands.extend((0..ADDRESSES_MAX as u128).map(|n| add_address(n, "1 Loom Lane", false)));
    after(&commands)
        .when(add_address(99, "1 Loom Lane", false))
        .then_rejected("too_many_addresses");
}

fn epoch(user: &User) -> u32 {
    user.details.as_ref().unwrap().epoch
}

#[test]
fn a_new_verification_token_takes_the_place_of_the_first() {
    after(&[register()])
        .when(request_verification(59))
        .then([])
        .when(request_verification(60))
        .then_types(&["user.verification_requested"])
        .when(request_verification(119))
        .then([])
        .when(verify("aa", 61))
        .then_rejected("token_unknown")
        .when(verify("dd", 499))
        .then_types(&["user.email_verified"])
        .when(request_verification(600))
        .then_rejected("already_verified");
    Scenario::<User>::new().when(request_verification(1)).then_rejected("not_found");
}

#[test]
fn a_password_is_reset_once_in_time_with_the_token_and_ends_all_logins() {
    after(&[register()]).when(reset("cc", 1)).then_rejected("token_unknown");
    after(&[register(), request_reset(1)]).when(reset("aa", 2)).then_rejected("token_unknown");
    after(&[register(), request_reset(1)]).when(reset("cc", 3_600)).then_rejected("token_expired");
    after(&[register(), suspend()]).when(request_reset(9)).then_rejected("suspended");
    after(&[register(), request_reset(1)])
        .when(request_reset(60))
        .then([])
        .when(reset("cc", 3_599))
        .and_state(|user| assert_eq!(epoch(user), 1))
        .then_types(&["user.password_reset"])
        .when(reset("cc", 3_599))
        .then_rejected("token_unknown")
        .when(request_reset(3_600))
        .then_types(&["user.password_reset_requested"]);
}

#[test]
fn a_new_password_ends_the_other_logins_and_voids_the_token_under_way() {
    let (kept, other) = (SessionId(Uuid::from_u128(8)), SessionId(Uuid::from_u128(9)));
    after(&[register(), request_reset(1)])
        .when(change_password(admin()))
        .then_rejected("forbidden")
        .when(change_password(buyer()))
        .and_state(move |user| {
            let details = user.details.as_ref().unwrap();
            assert!(details.goes_on(kept, 0) && details.goes_on(other, 1));
            assert!(!details.goes_on(other, 0));
        })
        .then_types(&["user.password_changed"])
        .when(reset("cc", 10))
        .then_rejected("token_unknown")
        .when(UserCommand::EndSessions { caller: stranger(), now: at(11) })
        .then_rejected("forbidden")
        .when(UserCommand::EndSessions { caller: buyer(), now: at(11) })
        .and_state(move |user| {
            let details = user.details.as_ref().unwrap();
            assert!(!details.goes_on(kept, 0) && details.goes_on(kept, 2));
        })
        .then_types(&["user.sessions_ended"]);
}

#[test]
fn history_can_be_read_after_the_key_is_gone() {
    let (_, mut history) = run::<User>(&[register(), verify("aa", 1)]);
    for event in &mut history {
        let subject = user(BUYER).uuid();
        match event {
            UserEvent::Registered(event) => event.email = Personal::Erased { subject },
            UserEvent::EmailVerified(event) => event.email = Personal::Erased { subject },
            _ => {}
        }
    }
    let mut state = User::default();
    history.iter().for_each(|event| state.apply(event));
    assert_eq!(snapshot(&state).details.unwrap().email.get(), None);
}

#[test]
fn the_documents_command_names_are_kept() {
    assert_eq!(register().name(), "RegisterUser");
    assert_eq!(verify("aa", 1).name(), "VerifyEmail");
    assert_eq!(upgrade(buyer()).name(), "UpgradeToSeller");
}

fn learn(caller: Caller, position: u64, rating: u8) -> UserCommand {
    let news = LearntReview {
        review_id: crate::domain::ids::ReviewId(Uuid::from_u128(position.into())),
        change: rating::RatingChange::Added,
        rating,
        at: souk_actors::event::Position { partition: 0, position },
    };
    UserCommand::LearnReview { caller, news, now: at(7) }
}

#[test]
fn a_sellers_rating_counts_each_review_once() {
    let stars = |user: &User| user.details.as_ref().unwrap().rating.stars;
    Scenario::<User>::new().when(learn(Caller::System, 1, 5)).then_rejected("not_found");
    let seller = [register(), verify("aa", 1), upgrade(buyer()), verify_seller(admin())];
    after(&seller)
        .when(learn(buyer(), 1, 5))
        .then_rejected("forbidden")
        .when(learn(admin(), 1, 5))
        .then_rejected("forbidden")
        .when(learn(Caller::System, 4, 5))
        .and_state(|user| assert_eq!((stars(user).five, stars(user).count()), (1, 1)))
        .then_types(&["seller.rating_updated"])
        .when(learn(Caller::System, 4, 5))
        .then([])
        .when(learn(Caller::System, 3, 1))
        .then([])
        .when(UserCommand::Erase { caller: admin(), reason: Some("asked".into()), now: at(8) })
        .then_types(&["user.erased"])
        .when(learn(Caller::System, 5, 4))
        .and_state(|user| assert_eq!(stars(user).average().unwrap().to_string(), "4.5"))
        .then_types(&["seller.rating_updated"]);
}

fn mute(kinds: &[NotificationKind]) -> UserCommand {
    let channel = crate::domain::notification::Channel::Email;
    let muted = kinds.iter().map(|kind| Muted { channel, kind: *kind }).collect();
    let reports = ReportMails::Off;
    UserCommand::SetPreferences { caller: buyer(), muted, reports, now: at(6) }
}

#[test]
fn administrators_choose_their_reports() {
    let wish = |reports, seconds| {
        let muted = BTreeSet::new();
        UserCommand::SetPreferences { caller: buyer(), muted, reports, now: at(seconds) }
    };
    let since = |user: &User| user.details.as_ref().unwrap().reports.map(|of| of.since);
    after(&[register()])
        .when(wish(ReportMails::Off, 1))
        .then([])
        .when(wish(ReportMails::Daily, 1))
        .then_rejected("invalid");
    let admin = UserCommand::RegisterAdmin { caller: Caller::System, registration: registration() };
    after(&[admin])
        .when(wish(ReportMails::Daily, 2))
        .then_types(&["user.preferences_updated"])
        .when(wish(ReportMails::Daily, 3))
        .and_state(|user| assert_eq!(since(user), Some(at(2))))
        .then([])
        .when(wish(ReportMails::Hourly, 4))
        .and_state(|user| assert_eq!(since(user), Some(at(4))))
        .then_types(&["user.preferences_updated"])
        .when(wish(ReportMails::Off, 5))
        .and_state(|user| assert_eq!(since(user), None))
        .then_types(&["user.preferences_updated"]);
}

#[test]
fn people_choose_what_not_to_be_told_but_for_their_account() {
    use NotificationKind as K;
    let count = |user: &User| user.details.as_ref().unwrap().muted.len();
    after(&[register()])
        .when(mute(&[]))
        .then([])
        .when(mute(&[K::Orders, K::Account]))
        .then_rejected("invalid")
        .when(mute(&[K::Orders, K::News]))
        .and_state(|user| assert_eq!(count(user), 2))
        .then_types(&["user.preferences_updated"])
        .when(mute(&[K::News, K::Orders]))
        .then([])
        .when(mute(&[]))
        .and_state(|user| assert_eq!(count(user), 0))
        .then_types(&["user.preferences_updated"]);
}

fn bounce(caller: Caller) -> UserCommand {
    UserCommand::RecordBounce { caller, reason: "bounced".into(), now: at(7) }
}

#[test]
fn an_address_that_does_not_exist_is_known_until_an_administrator_says_otherwise() {
    let clear = |caller| UserCommand::ClearBounce { caller, now: at(8) };
    let since = |user: &User| user.details.as_ref().unwrap().email_unreachable_since;
    after(&[register()])
        .when(bounce(buyer()))
        .then_rejected("forbidden")
        .when(clear(admin()))
        .then([])
        .when(bounce(Caller::System))
        .and_state(|user| assert_eq!(since(user), Some(at(7))))
        .then_types(&["user.email_unreachable"])
        .when(bounce(Caller::System))
        .then([])
        .when(clear(buyer()))
        .then_rejected("forbidden")
        .when(clear(admin()))
        .and_state(|user| assert_eq!(since(user), None))
        .then_types(&["user.email_reachable"]);
}

fn any_command() -> impl Strategy<Value = UserCommand> {
    prop_oneof![
        Just(register()),
        Just(abandon()),
        (0u64..120).prop_map(|seconds| verify("aa", seconds)),
        Just(upgrade(buyer())),
        Just(verify_seller(admin())),
        Just(reject_seller()),
        Just(suspend()),
        Just(UserCommand::Reinstate { caller: admin(), now: at(6) }),
        "[a-z]{1,3}".prop_map(|name| rename(buyer(), Some(&name))),
        Just(UserCommand::Erase { caller: buyer(), reason: None, now: at(9) }),
        (0u64..200).prop_map(request_verification),
        (0u64..200).prop_map(request_reset),
        (0u64..9_000).prop_map(|seconds| reset("cc", seconds)),
        Just(change_password(buyer())),
        (0u128..4, any::<bool>()).prop_map(|(n, first)| add_address(n, "1 Loom Lane", first)),
        (0u128..4, any::<bool>())
            .prop_map(|(n, first)| { change_address(buyer(), n, AddressChange::default(), first) }),
        (0u128..4).prop_map(remove_address),
        Just(UserCommand::EndSessions { caller: buyer(), now: at(9) }),
        Just(bounce(Caller::System)),
        Just(mute(&[NotificationKind::News])),
        Just(mute(&[])),
        Just(UserCommand::ClearBounce { caller: admin(), now: at(8) }),
        prop_oneof![Just(None), Just(Some("")), Just(Some("+84901234567"))]
            .prop_map(|phone| contact(phone, None, 5)),
        prop::option::of(any::<bool>()).prop_map(|wanted| contact(None, wanted, 6)),
        (0u64..9, 1u8..6).prop_map(|(position, rating)| learn(Caller::System, position, rating)),
    ]
}

proptest! {
    #[test]
    fn histories_fold_in_parts(commands in prop::collection::vec(any_command(), 0..20)) {
        let (state, history) = run::<User>(&commands);
        assert_folds(&state, &history);
        prop_assert!(!(state.abandoned && state.details.is_some()));
    }
}
