//! Dead letters that people see, trust and repair (S0-100, S1-27, S1-47, S1-93, X8).

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{Person, Server, Start, eventually, somebody};

fn impatient() -> Start {
    Start::default().with("RETRY_DELAY_MS", 20)
}

/// So many people whose registration `notifications` cannot handle.
async fn unheard(server: &Server, names: &[&str]) -> (u64, Vec<Person>) {
    let fault = server.fault("notifications", "fail", json!({ "kind": "permanent" })).await;
    let mut people = Vec::new();
    for name in names {
        people.push(server.newcomer(name).await);
    }
    eventually("the letters", || async {
        (server.letters(Some("notifications")).await.len() >= names.len()).then_some(())
    })
    .await;
    (fault, people)
}

/// Somebody with two letters: of becoming a seller, and of being verified, which waits.
async fn two_letters(server: &Server) -> (u64, Person, Vec<Value>) {
    let sam = server.buyer("Sam").await;
    server.at_rest().await;
    let fault = server.fault("notifications", "fail", json!({ "kind": "permanent" })).await;
    server.become_seller(&sam).await.expect(200);
    server.at_rest().await;
    server.admin_verifies(&sam).await.expect(200);
    server.at_rest().await;
    let letters = server.letters(Some("notifications")).await;
    assert_eq!(letters.len(), 2);
    (fault, sam, letters)
}

/// What somebody was told of that, the newest first.
async fn told(server: &Server, sam: &Person) -> Vec<String> {
    let told = server.notifications(&sam.user_id).await;
    let told = told.iter().filter(|of| of["channel"] == "in_app");
    let templates = told.map(|of| of["template"].as_str().unwrap().to_owned());
    let of_that = ["seller_onboarding", "seller_verified"];
    templates.filter(|template| of_that.contains(&template.as_str())).collect()
}

fn path_of(letter: &Value) -> String {
    let (partition, key) = (&letter["partition"], letter["key"].as_str().unwrap());
    format!("/api/v1/dlq/{}/{partition}/{key}", letter["subscription"].as_str().unwrap())
}

#[tokio::test]
async fn a_letter_is_worked_only_as_it_was_looked_at() {
    let server = impatient().start().await;
    let (fault, sam, letters) = two_letters(&server).await;
    server.mend(fault).await;
    let (admin, letter) = (server.admin(), &letters[0]);
    let path = path_of(letter);
    let queue = admin.get(&path).await.expect(200);
    assert_eq!(queue["head"]["class"], "permanent");
    assert_eq!(queue["head"]["event_id"], queue["event"]["event_id"]);
    assert_eq!(queue["event"]["event_type"], "user.upgraded_to_seller");
    assert_eq!(queue["waiting"], 1);
    let etag = queue.header("etag").to_owned();
    let why = json!({ "reason": "the mail is of no use any more" });
    for verb in ["skip", "discard"] {
        let path = format!("{path}/{verb}");
        admin.post(&path, &why).await.problem(428, "precondition_required");
        admin.if_match("\"1\"").post(&path, &why).await.problem(412, "version_mismatch");
    }
    let retry = format!("{path}/retry");
    admin.if_match("\"1\"").post(&retry, &why).await.problem(412, "version_mismatch");
    let waits = json!({ "position": 1_000_000 });
    admin.post(&retry, &waits).await.problem(404, "not_found");

    let skipped = admin.if_match(&etag).post(&format!("{path}/skip"), &why).await.expect(200);
    assert_eq!((&skipped["skipped"], &skipped["handled"]), (&json!(1), &json!(1)));
    // Whoever looked at the same letter finds it gone from the front.
    let late = admin.if_match(&etag).post(&format!("{path}/skip"), &why).await;
    late.problem(404, "not_found");
    let queue = admin.get(&path).await.expect(200);
    assert_eq!((&queue["head"], &queue["waiting"]), (&Value::Null, &json!(0)));
    assert_eq!(queue["skipped"][0]["position"], letter["position"]);
    let listed = admin.get("/api/v1/dlq?state=skipped&class=permanent").await.expect(200);
    assert_eq!(listed.items().len(), 1);
    let none = admin.get("/api/v1/dlq?state=waiting").await.expect(200);
    assert!(none.items().is_empty());
    admin.get("/api/v1/dlq?state=gone").await.problem(422, "invalid");

    let alone = json!({ "position": letter["position"], "reason": "now it is" });
    let retried = admin.post(&retry, &alone).await.expect(200);
    assert_eq!(retried["handled"], 1);
    admin.get(&path).await.problem(404, "not_found");
    server.at_rest().await;
    assert_eq!(told(&server, &sam).await, ["seller_onboarding", "seller_verified"]);
    // Who did what, to which letter, and why.
    let skips = server.events("eventType=subscription.skip_requested").await;
    assert_eq!(skips[0]["data"]["reason"], why["reason"]);
    assert_eq!(skips[0]["data"]["position"], letter["position"]);
    assert!(!skips[0]["metadata"]["actor_id"].as_str().unwrap().is_empty());
    let history = queue["history"].as_str().unwrap();
    eventually("the history", || async {
        let events = server.admin().get(history).await.expect(200);
        // The late skip found no letter and is not recorded.
        (events.items().len() == 2).then_some(())
    })
    .await;
    server.finish().await;
}

/// From what a client knows of its request to what went wrong with it.
#[tokio::test]
async fn failures_are_found_in_the_log_by_correlation_id() {
    let server = Server::start().await;
    let fault = json!({ "kind": "permanent", "times": 1 });
    server.fault("notification-email", "fail", fault).await;
    let client = server.visitor().named("where-is-my-mail");
    client.post("/api/v1/users/register", &somebody("Ann")).await.expect(201);
    let event_id = eventually("a letter", || async {
        let letters = server.letters(Some("notification-email")).await;
        letters.first().map(|letter| letter["event_id"].as_str().unwrap().to_owned())
    })
    .await;
    for message in ["a delivery failed", "a dead letter"] {
        let fields = [
            ("message", message),
            ("subscription", "notification-email"),
            ("correlation_id", "where-is-my-mail"),
            ("event_id", &event_id),
        ];
        let words = fields.map(|(name, value)| format!("\"{name}\":\"{value}\""));
        server.logged(&words.each_ref().map(String::as_str)).await;
    }
}

#[tokio::test]
async fn letters_are_grouped_and_worked_in_bulk() {
    let server = impatient().start().await;
    let (fault, people) = unheard(&server, &["Ann", "Bob", "Cid"]).await;
    let admin = server.admin();
    let groups = admin.get("/api/v1/dlq/groups?subscription=notifications").await.expect(200);
    let group = groups.items()[0].clone();
    assert_eq!((groups.items().len(), &group["count"]), (1, &json!(3)));
    assert_eq!(group["example"]["fingerprint"], group["fingerprint"]);
    let fingerprint = group["fingerprint"].as_str().unwrap();
    let first = format!("/api/v1/dlq?fingerprint={fingerprint}&limit=2");
    let page = admin.get(&first).await.expect(200);
    assert_eq!(page.items().len(), 2);
    let cursor = page["next_cursor"].as_str().unwrap();
    let rest = admin.get(&format!("{first}&cursor={cursor}")).await.expect(200);
    assert_eq!((rest.items().len(), &rest["has_more"]), (1, &json!(false)));

    let bulk =
        async |verb: &str, body: Value| admin.post(&format!("/api/v1/dlq/{verb}"), &body).await;
    bulk("retry", json!({})).await.problem(422, "invalid");
    bulk("retry", json!({ "limit": 1001 })).await.problem(422, "invalid");
    let waiting = json!({ "limit": 1, "state": "waiting" });
    bulk("retry", waiting).await.problem(422, "invalid");
    // Nothing is done unless it is asked for.
    let would = bulk("discard", json!({ "limit": 2, "fingerprint": fingerprint })).await;
    let would = would.expect(200);
    assert_eq!(
        (&would["dry_run"], &would["matched"], &would["left"]),
        (&json!(true), &json!(3), &json!(3))
    );
    assert_eq!(would["letters"].as_array().unwrap().len(), 2);
    assert_eq!(would["letters"][0]["outcome"], "would_be_done");

    let meant = json!({ "limit": 100, "fingerprint": fingerprint, "dry_run": false });
    let failed = bulk("retry", meant.clone()).await.expect(200);
    assert_eq!(
        (&failed["letters"][0]["outcome"], &failed["left"]),
        (&json!("failed_again"), &json!(3))
    );
    server.mend(fault).await;
    let one = json!({ "limit": 1, "key": people[0].user_id, "dry_run": false });
    let skipped = bulk("skip", one).await.expect(200);
    assert_eq!((&skipped["letters"][0]["outcome"], &skipped["left"]), (&json!("done"), &json!(0)));
    let done = bulk("retry", meant.clone()).await.expect(200);
    assert_eq!((&done["matched"], &done["left"]), (&json!(2), &json!(0)));
    let again = bulk("retry", meant).await.expect(200);
    assert_eq!((&again["matched"], &again["letters"]), (&json!(0), &json!([])));
    let aside = json!({ "limit": 9, "state": "skipped", "dry_run": false, "reason": "of no use" });
    assert_eq!(bulk("discard", aside).await.expect(200)["left"], 0);
    server.at_rest().await;
    for (person, mails) in people.iter().zip([0, 1, 1]) {
        assert_eq!(server.mails(&person.email).await.len(), mails, "{}", person.email);
    }
    server.finish().await;
}

/// Killed while a letter waits, and again while letters are worked: what is behind stays behind,
/// and everything comes in order.
#[tokio::test]
async fn letters_keep_the_order_across_kill_9() {
    let mut server = impatient().start().await;
    let (_, sam, _) = two_letters(&server).await;
    server.kill_9_and_start_again().await;
    server.at_rest().await;
    let letters = server.letters(Some("notifications")).await;
    let states: Vec<_> = letters.iter().map(|letter| letter["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["dead", "waiting"]);
    assert_eq!(told(&server, &sam).await, Vec::<String>::new());

    // Worked, and killed before the answer.
    server.fault("notifications", "delay", json!({ "delay_ms": 500, "times": 1 })).await;
    let (admin, path) = (server.admin(), format!("{}/retry", path_of(&letters[0])));
    let asked = tokio::spawn(async move {
        admin.try_send(reqwest::Method::POST, &path, Some(b"{}".to_vec())).await.map(drop)
    });
    eventually("the request to be recorded", || async {
        let asked = server.events("eventType=subscription.retry_requested").await;
        (!asked.is_empty()).then_some(())
    })
    .await;
    server.kill_9_and_start_again().await;
    let _ = asked.await;
    server.at_rest().await;
    let path = path_of(&letters[0]);
    if !server.letters(Some("notifications")).await.is_empty() {
        server.admin().post(&format!("{path}/retry"), &json!({})).await.expect(200);
    }
    server.at_rest().await;
    // The newest first; each once.
    assert_eq!(told(&server, &sam).await, ["seller_verified", "seller_onboarding"]);
    server.finish().await;
}

#[tokio::test]
async fn a_full_queue_is_seen_and_goes_on_by_itself() {
    let server = impatient().with("DLQ_LETTERS_MAX", 2).with("PARTITIONS", 1).start().await;
    let fault = server.fault("notifications", "fail", json!({ "kind": "permanent" })).await;
    let mut people = Vec::new();
    for name in ["Ann", "Bob", "Cid", "Dan"] {
        people.push(server.newcomer(name).await);
    }
    eventually("the subscription to stop", || async {
        (server.subscription("notifications").await["state"] == "dlq_full").then_some(())
    })
    .await;
    assert_eq!(server.letters(Some("notifications")).await.len(), 2);
    let label = "subscription=\"notifications\"";
    assert_eq!(server.metric("souk_dlq_full", label).await, 1.0);
    assert_eq!(server.metric("souk_dlq_blocked_keys", label).await, 2.0);
    server.caught_up("events-index").await;
    server.mend(fault).await;
    let body = json!({ "limit": 10, "dry_run": false });
    server.admin().post("/api/v1/dlq/retry", &body).await.expect(200);
    server.at_rest().await;
    assert_eq!(server.subscription("notifications").await["state"], "running");
    for person in &people {
        assert_eq!(server.mails(&person.email).await.len(), 1, "{}", person.email);
    }
    for event_type in ["subscription.dlq_filled", "subscription.dlq_relieved"] {
        eventually(event_type, || async {
            let events = server.events(&format!("eventType={event_type}")).await;
            (events.len() == 1).then_some(())
        })
        .await;
    }
    server.finish().await;
}

#[tokio::test]
async fn letters_are_worked_from_the_command_line() {
    let server = impatient().start().await;
    let (fault, people) = unheard(&server, &["Ann", "Bob"]).await;
    server.mend(fault).await;
    let dlq = |arguments: &[&str]| {
        let command = server.command(&[&["dlq"], arguments].concat());
        command.with("SOUK_URL", server.url()).with("SOUK_TOKEN", server.admin_token()).run()
    };
    let list = dlq(&["list", "--subscription", "notifications"]);
    assert!(list.output.contains(&people[0].user_id), "{}", list.output);
    assert!(dlq(&["groups"]).output.contains("permanent"));
    let letter = server.letters(None).await.remove(0);
    let (key, partition) = (letter["key"].as_str().unwrap(), letter["partition"].to_string());
    let of_key = ["notifications", &partition, key];
    let show = dlq(&[&["show"], &of_key[..]].concat());
    assert!(show.output.contains("user.registered"), "{}", show.output);
    let skip = dlq(&[&["skip"], &of_key[..], &["--reason", "later"]].concat());
    assert!(skip.output.contains("1 skipped; 0 left"), "{}", skip.output);
    let position = letter["position"].to_string();
    let retry = dlq(&[&["retry"], &of_key[..], &["--position", &position]].concat());
    assert!(retry.output.contains("1 handled"), "{}", retry.output);
    let would = dlq(&["retry", "--all", "--subscription", "notifications"]);
    assert!(would.output.contains("Nothing was done"), "{}", would.output);
    let done = dlq(&["retry", "--all", "--yes"]);
    assert!(done.output.contains("1 letters matched; 0 left"), "{}", done.output);
    assert!(dlq(&["list"]).output.contains("no such letters"));
    server.at_rest().await;
    server.finish().await;
}

/// The notices of dead letters that administrators have.
async fn notices(server: &Server) -> Vec<Value> {
    server.caught_up("notifications-view").await;
    let path = "/api/v1/notifications?audience=admin&limit=200";
    let all = server.admin().get(path).await.expect(200).items().to_vec();
    all.into_iter().filter(|of| of["template"] == "dead_letter").collect()
}

/// Which subscriptions had a letter in which five minutes.
fn occasions(told: &[Value]) -> BTreeSet<(String, String)> {
    let occasion = |event: &Value| {
        let data = &event["data"];
        let at = data["dead_lettered_at"].as_str().unwrap();
        let window = format!("{}{}", &at[..14], at[14..16].parse::<u32>().unwrap() / 5);
        (data["subscription"].as_str().unwrap().to_owned(), window)
    };
    told.iter().map(occasion).collect()
}

/// S0-101, S1-48, S4-51, X29.
#[tokio::test]
async fn administrators_hear_of_letters_but_not_of_each() {
    let server = impatient().start().await;
    unheard(&server, &["Ann", "Bob", "Cid"]).await;
    server.at_rest().await;
    let letters = server.letters(Some("notifications")).await;
    let told = server.events("eventType=EventDeadLettered").await;
    let ids = |all: &[Value], path: &str| -> BTreeSet<String> {
        all.iter().map(|of| of.pointer(path).unwrap().as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(told.len(), 3, "{told:#?}");
    assert_eq!(ids(&told, "/data/event_id"), ids(&letters, "/event_id"));
    assert_eq!(ids(&told, "/data/class"), BTreeSet::from(["permanent".to_owned()]));
    let notices = notices(&server).await;
    assert_eq!(notices.len(), occasions(&told).len(), "{notices:#?}");
    assert_eq!((&notices[0]["status"], &notices[0]["user_id"]), (&json!("sent"), &Value::Null));
    // The event that became a letter first is where it all began: it led to the notice.
    let cause = notices.last().unwrap()["event_id"].as_str().unwrap();
    assert_eq!(told[0]["event_id"], cause);
}

#[tokio::test]
async fn a_notice_that_becomes_a_letter_makes_no_notice() {
    let server = impatient().start().await;
    let fault = json!({ "kind": "permanent", "key": "notification.requested" });
    server.fault("notifications-view", "fail", fault).await;
    server.newcomer("Ann").await;
    server.at_rest().await;
    let requested = server.events("eventType=notification.requested").await;
    let (notices, others): (Vec<_>, Vec<_>) =
        requested.iter().partition(|of| of["data"]["template"] == "dead_letter");
    assert_eq!(notices.len(), 1, "{requested:#?}");
    assert!(!others.is_empty());
    // Of each message, of the notice of that, and of nothing else.
    let told = server.events("eventType=system.event_dead_lettered").await;
    let letters: BTreeSet<_> =
        told.iter().map(|event| event["data"]["aggregate_id"].to_string()).collect();
    let ids = requested.iter().map(|event| event["aggregate_id"].to_string()).collect();
    assert_eq!((told.len(), letters), (requested.len(), ids), "{told:#?}");
    assert!(told.iter().all(|event| event["data"]["subscription"] == "notifications-view"));
}
