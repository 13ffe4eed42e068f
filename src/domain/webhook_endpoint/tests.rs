use souk_actors::testing::Scenario;
use uuid::Uuid;

use super::*;
use crate::domain::testing::{admin, assert_folds, at, run, seller};

const URL: &str = "https://hooks.example.com/souk";

fn create_as(caller: Caller, url: &str, events: &[&str]) -> WebhookEndpointCommand {
    WebhookEndpointCommand::Create {
        caller,
        endpoint_id: WebhookEndpointId(Uuid::from_u128(1)),
        wish: EndpointWish {
            url: url.to_owned(),
            events: events.iter().map(|text| (*text).to_owned()).collect(),
            filter: None,
            format: PayloadFormat::Standard,
            description: None,
        },
        allows_http: false,
        starts_behind: vec![7, 0],
        now: at(0),
    }
}

fn create() -> WebhookEndpointCommand {
    create_as(admin(), URL, &["order.*"])
}

fn update(change: EndpointChange) -> WebhookEndpointCommand {
    WebhookEndpointCommand::Update { caller: admin(), change, allows_http: false, now: at(1) }
}

fn switch(on: bool) -> WebhookEndpointCommand {
    update(EndpointChange { enabled: Some(on), ..EndpointChange::default() })
}

fn failure(seconds: u64) -> WebhookEndpointCommand {
    WebhookEndpointCommand::RecordFailure { now: at(seconds) }
}

#[test]
fn a_filter_is_read_before_it_is_kept_and_an_empty_one_takes_it_away() {
    let filter = |text: &str| {
        update(EndpointChange { filter: Some(text.to_owned()), ..EndpointChange::default() })
    };
    let bad = WebhookEndpoint::default();
    let WebhookEndpointCommand::Create { mut wish, .. } = create() else { panic!("it creates") };
    wish.filter = Some("data.total >=".to_owned());
    let WebhookEndpointCommand::Create { caller, endpoint_id, starts_behind, now, .. } = create()
    else {
        panic!("it creates")
    };
    let command = WebhookEndpointCommand::Create {
        caller,
        endpoint_id,
        wish,
        allows_http: false,
        starts_behind,
        now,
    };
    let Err(WebhookEndpointRejection::Invalid { errors }) = bad.decide(&command) else {
        panic!("it is no filter")
    };
    assert_eq!((&*errors[0].pointer, &*errors[0].code), ("/filter", "invalid_filter"));
    let kept = " data.total >= 7 ";
    let (state, history) = run::<WebhookEndpoint>(&[create(), filter(kept), filter(kept)]);
    assert_eq!(history.len(), 2, "the same again changes nothing");
    assert_folds(&state, &history);
    assert_eq!(state.details.unwrap().filter.as_deref(), Some("data.total >= 7"));
    let (state, _) = run::<WebhookEndpoint>(&[create(), filter(kept), filter("")]);
    assert_eq!(state.details.unwrap().filter, None);
}

#[test]
fn administrators_keep_endpoints() {
    Scenario::<WebhookEndpoint>::new()
        .when(create_as(seller(), URL, &["order.*"]))
        .then_rejected("forbidden");
    Scenario::<WebhookEndpoint>::new().when(switch(true)).then_rejected("not_found");
    Scenario::<WebhookEndpoint>::new()
        .when(create())
        .then_types(&["webhook.endpoint_created"])
        .when(create())
        .then_rejected("webhook_exists")
        .when(update(EndpointChange::default()))
        .then([])
        .when(switch(false))
        .then_types(&["webhook.endpoint_disabled"])
        .when(WebhookEndpointCommand::Ping { caller: admin(), now: at(2) })
        .then_rejected("webhook_disabled")
        .when(switch(true))
        .then_types(&["webhook.endpoint_enabled"])
        .when(WebhookEndpointCommand::RotateSecret { caller: admin(), now: at(3) })
        .and_state(|endpoint| assert_eq!(endpoint.details.as_ref().unwrap().secret_number, 2))
        .then_types(&["webhook.secret_rotated"])
        .when(WebhookEndpointCommand::Delete { caller: admin(), now: at(4) })
        .then_types(&["webhook.endpoint_deleted"])
        .when(create())
        .then_rejected("webhook_exists");
}

#[test]
fn addresses_and_topics_are_checked() {
    let bad = [
        "",
        "http://example.com/",
        "ftp://example.com/",
        "https://",
        "https:///x",
        "https://:1/",
        "https://a:b@example.com/",
        "https://example.com/#x",
        "https://example.com/a b",
        "https://example.com\\@127.0.0.1/",
    ];
    for url in bad {
        let command = create_as(admin(), url, &["#"]);
        Scenario::<WebhookEndpoint>::new().when(command).then_rejected("invalid");
    }
    for events in [&[][..], &["or der"], &["~("], &["order..x"], &["~\u{0}"], &["#"; 51]] {
        let command = create_as(admin(), URL, events);
        Scenario::<WebhookEndpoint>::new().when(command).then_rejected("invalid");
    }
    let command = create_as(admin(), URL, &["#", "OrderPlaced", "~^order"]);
    Scenario::<WebhookEndpoint>::new().when(command).then_types(&["webhook.endpoint_created"]);
}

#[test]
fn what_takes_nothing_for_five_days_is_disabled_and_has_five_more_when_it_is_enabled() {
    let days = FAILING_MAX.as_secs();
    Scenario::<WebhookEndpoint>::new()
        .when(create())
        .then_types(&["webhook.endpoint_created"])
        .when(failure(10))
        .then_types(&["webhook.endpoint_failed"])
        .when(failure(10 + days - 1))
        .then([])
        .when(WebhookEndpointCommand::RecordSuccess { now: at(10 + days - 1) })
        .then_types(&["webhook.endpoint_recovered"])
        .when(failure(20 + days))
        .then_types(&["webhook.endpoint_failed"])
        .when(failure(20 + days + days))
        .and_state(|endpoint| {
            let details = endpoint.details.as_ref().unwrap();
            assert_eq!(details.disabled.as_deref(), Some(FAILING));
        })
        .then_types(&["webhook.endpoint_disabled"])
        .when(switch(true))
        .then_types(&["webhook.endpoint_enabled"])
        .when(failure(30 + days + days))
        .then_types(&["webhook.endpoint_failed"])
        .when(WebhookEndpointCommand::RecordGone { now: at(40 + days + days) })
        .then_types(&["webhook.endpoint_disabled"]);
}

#[test]
fn only_what_happens_later_is_for_an_endpoint() {
    let (state, _) = run::<WebhookEndpoint>(&[create()]);
    let details = state.details.unwrap();
    assert!(!details.starts_before(0, 7) && details.starts_before(0, 8));
    assert!(details.starts_before(1, 1) && details.starts_before(2, 1));
}

#[test]
fn histories_fold_in_parts() {
    let commands = [create(), switch(false), switch(true), failure(5), switch(false)];
    let (state, history) = run::<WebhookEndpoint>(&commands);
    assert_eq!(history.len(), 5);
    assert_folds(&state, &history);
}
