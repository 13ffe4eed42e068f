use souk_actors::testing::Scenario;

use super::*;
use crate::domain::testing::{BUYER, admin, assert_folds, at, buyer, order, run, stranger, user};

fn request_by(channel: Channel, audience: Audience) -> NotificationCommand {
    let cause_event_id = Uuid::from_u128(77);
    let subject = user(BUYER).uuid();
    NotificationCommand::Request(Box::new(NewNotification {
        notification_id: NotificationId::of(cause_event_id, "welcome", user(BUYER)),
        recipient: user(BUYER),
        audience,
        channel,
        template: "welcome".into(),
        to: Some(Personal::new(subject, "ann@example.com".into())),
        params: Personal::new(subject, Params::from([("name".into(), "Ann".into())])),
        order_id: Some(order(1)),
        cause_event_id,
        muted: false,
        now: at(0),
    }))
}

fn request() -> NotificationCommand {
    request_by(Channel::Email, Audience::User)
}

fn attempt() -> NotificationCommand {
    NotificationCommand::Attempt { now: at(1) }
}

fn sent() -> NotificationCommand {
    NotificationCommand::RecordSent {
        provider_message_id: "m-1".into(),
        adapter: "log".into(),
        to_hash: "aa".into(),
        now: at(2),
    }
}

fn failed() -> NotificationCommand {
    NotificationCommand::RecordFailed { reason: "mailbox_unknown".into(), now: at(2) }
}

fn read(caller: Caller) -> NotificationCommand {
    NotificationCommand::MarkRead { caller, now: at(3) }
}

fn after(commands: &[NotificationCommand]) -> Scenario<Notification> {
    Scenario::given(run::<Notification>(commands).1)
}

fn status(notification: &Notification) -> NotificationStatus {
    notification.details.as_ref().unwrap().status
}

#[test]
fn a_mail_is_attempted_and_sent() {
    let decided = Scenario::<Notification>::new()
        .when(request())
        .then_types(&["notification.requested"])
        .when(request())
        .then([])
        .when(attempt())
        .and_state(|it| assert_eq!(status(it), NotificationStatus::Attempted))
        .then_types(&["notification.email.attempted"])
        .when(sent());
    let events = decided.outcome.as_ref().unwrap();
    let [NotificationEvent::EmailSent(event)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((event.to_hash.as_str(), event.template.as_str()), ("aa", "welcome"));
    assert_eq!(event.order_id, Some(order(1)));
    decided
        .and_state(|it| assert_eq!(status(it), NotificationStatus::Sent))
        .then_types(&["notification.email.sent"])
        .when(sent())
        .then([])
        .when(attempt())
        .then_rejected("already_sent")
        .when(failed())
        .then_rejected("already_sent");
}

#[test]
fn what_is_muted_is_recorded_and_goes_nowhere() {
    for channel in [Channel::Email, Channel::Sms, Channel::InApp] {
        let NotificationCommand::Request(mut new) = request_by(channel, Audience::User) else {
            panic!("a request")
        };
        new.muted = true;
        Scenario::<Notification>::new()
            .when(NotificationCommand::Request(new))
            .and_state(|it| assert_eq!(status(it), NotificationStatus::Muted))
            .then_types(&["notification.requested", "notification.muted"])
            .when(attempt())
            .then_rejected("already_sent")
            .when(request_by(channel, Audience::User))
            .then([]);
    }
}

#[test]
fn a_text_message_is_told_of_by_its_own_name() {
    let by_sms = || after(&[request_by(Channel::Sms, Audience::User)]);
    let unknown = || NotificationCommand::RecordUnknown { reason: "lost".into(), now: at(2) };
    by_sms().when(attempt()).then_types(&["notification.sms.attempted"]);
    let tried = || after(&[request_by(Channel::Sms, Audience::User), attempt()]);
    tried()
        .when(unknown())
        .and_state(|it| assert_eq!(status(it), NotificationStatus::Unknown))
        .then_types(&["notification.sms.outcome_unknown"]);
    let deferred = NotificationCommand::RecordDeferred { reason: "busy".into(), now: at(2) };
    tried().when(deferred).then_types(&["notification.sms.deferred"]);
    tried().when(failed()).then_types(&["notification.sms.failed"]);
    tried()
        .when(sent())
        .and_state(|it| assert_eq!(status(it), NotificationStatus::Sent))
        .then_types(&["notification.sms.sent"]);
}

#[test]
fn a_mail_that_comes_back_is_told_of_once() {
    let bounced = |for_good| NotificationCommand::RecordBounced {
        for_good,
        reason: "bounced".into(),
        now: at(3),
    };
    after(&[request()]).when(bounced(true)).then([]);
    after(&[request_by(Channel::InApp, Audience::User)]).when(bounced(true)).then([]);
    after(&[request(), attempt(), sent()])
        .when(bounced(false))
        .and_state(|it| assert_eq!(status(it), NotificationStatus::Bounced))
        .then_types(&["notification.email.bounced"])
        .when(bounced(false))
        .then([])
        .when(bounced(true))
        .then_types(&["notification.email.bounced"])
        .when(bounced(true))
        .then([])
        .when(attempt())
        .then_rejected("already_sent")
        .when(sent())
        .then([]);
}

#[test]
fn a_notice_that_nobody_acknowledges_is_escalated_once() {
    let acknowledge = |caller| NotificationCommand::Acknowledge { caller, now: at(3) };
    let escalate = |notification: &Notification| notification.on_timer(ESCALATE, at(900));
    let notice = request_by(Channel::InApp, Audience::Admin);
    let (state, history) = run::<Notification>(std::slice::from_ref(&notice));
    let timers: Vec<_> = history.iter().flat_map(|event| state.timers(event)).collect();
    let due = at(0).plus(ACKNOWLEDGED_WITHIN);
    assert_eq!(timers, [TimerChange::Set { name: ESCALATE.into(), at: due }]);
    after(std::slice::from_ref(&notice))
        .when(acknowledge(buyer()))
        .then_rejected("forbidden")
        .when(acknowledge(admin()))
        .and_state(|it| assert_eq!(escalate(it), None))
        .then_types(&["notification.read", "notification.acknowledged"])
        .when(acknowledge(admin()))
        .then([])
        .when(NotificationCommand::Escalate { now: at(900) })
        .then([]);
    after(&[notice.clone(), read(admin())])
        .when(escalate(&state).unwrap())
        .and_state(|it| assert_eq!(escalate(it), None))
        .then_types(&["notification.admin.escalated"])
        .when(NotificationCommand::Escalate { now: at(900) })
        .then([])
        .when(acknowledge(admin()))
        .then_types(&["notification.acknowledged"]);
    // What is for one person is nobody else's business.
    let (own, history) = run::<Notification>(&[request_by(Channel::InApp, Audience::User)]);
    assert!(history.iter().all(|event| own.timers(event).is_empty()));
    assert_eq!(escalate(&own), None);
}

#[test]
fn an_unknown_outcome_is_tried_again_and_counted() {
    after(&[request(), attempt()])
        .when(attempt())
        .and_state(|it| assert_eq!(it.details.as_ref().unwrap().attempts, 2))
        .then_types(&["notification.email.attempted"]);
}

#[test]
fn a_failed_mail_can_be_tried_again() {
    after(&[request(), attempt()])
        .when(failed())
        .and_state(|it| assert_eq!(status(it), NotificationStatus::Failed))
        .then_types(&["notification.email.failed"])
        .when(failed())
        .then([])
        .when(attempt())
        .then_types(&["notification.email.attempted"])
        .when(sent())
        .then_types(&["notification.email.sent"]);
}

#[test]
fn a_message_inside_is_sent_by_being_stored() {
    Scenario::<Notification>::new()
        .when(request_by(Channel::InApp, Audience::User))
        .and_state(|it| assert_eq!(status(it), NotificationStatus::Sent))
        .then_types(&["notification.requested", "notification.user.sent"])
        .when(attempt())
        .then_rejected("already_sent");
    Scenario::<Notification>::new()
        .when(request_by(Channel::InApp, Audience::Admin))
        .then_types(&["notification.requested", "notification.admin.sent"]);
}

#[test]
fn recipients_read_their_own() {
    after(&[request()])
        .when(read(stranger()))
        .then_rejected("forbidden")
        .when(read(buyer()))
        .and_state(|it| assert_eq!(it.details.as_ref().unwrap().read_at, Some(at(3))))
        .then_types(&["notification.read"])
        .when(read(buyer()))
        .then([]);
    let for_admins = || after(&[request_by(Channel::InApp, Audience::Admin)]);
    for_admins().when(read(buyer())).then_rejected("forbidden");
    for_admins().when(read(admin())).then_types(&["notification.read"]);
}

#[test]
fn nothing_happens_to_a_message_that_never_was() {
    for command in [attempt(), sent(), failed(), read(buyer())] {
        Scenario::<Notification>::new().when(command).then_rejected("not_found");
    }
}

#[test]
fn histories_fold_in_parts() {
    let commands = [request(), attempt(), failed(), attempt(), sent(), read(buyer())];
    let (state, history) = run::<Notification>(&commands);
    assert_eq!(history.len(), 6);
    assert_folds(&state, &history);
}

fn deferred() -> NotificationCommand {
    NotificationCommand::RecordDeferred { reason: "not_reached".into(), now: at(2) }
}

fn unknown() -> NotificationCommand {
    NotificationCommand::RecordUnknown { reason: "timeout".into(), now: at(2) }
}

#[test]
fn what_surely_did_not_go_out_waits_and_the_rest_is_not_guessed() {
    after(&[request(), attempt()])
        .when(deferred())
        .and_state(|it| assert_eq!(status(it), NotificationStatus::Requested))
        .then_types(&["notification.email.deferred"])
        .when(unknown())
        .then([])
        .when(attempt())
        .then_types(&["notification.email.attempted"])
        .when(unknown())
        .and_state(|it| {
            assert_eq!(status(it), NotificationStatus::Unknown);
            assert_eq!(it.details.as_ref().map(|of| (of.attempts, of.unknown)), Some((2, 1)));
        })
        .then_types(&["notification.email.outcome_unknown"])
        .when(sent())
        .then_types(&["notification.email.sent"])
        .when(unknown())
        .then([]);
}
