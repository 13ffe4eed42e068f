//! Mail by providers outside (S0-7, S0-21, S3-51, S3-60, S3-61): what they are sent, and what becomes
//! of a mail that they refuse, put off or do not answer.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{AppendHeaders, IntoResponse as _, Response};
use serde_json::{Value, json};
use souk_actors::world::Timestamp;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Person, Server, Start, eventually};

/// No answer at all.
const SILENCE: u16 = 0;

/// A SendGrid in this process: it answers as it is told, and 202 when it is told nothing.
#[derive(Clone, Default)]
struct Provider {
    answers: Arc<Mutex<VecDeque<u16>>>,
    /// What it says beside a refusal.
    says: Arc<Mutex<Option<(&'static str, &'static str)>>>,
    mails: Arc<Mutex<Vec<Value>>>,
}

async fn take(
    State(provider): State<Provider>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    assert_eq!(uri.path(), "/v3/mail/send");
    assert_eq!(headers["authorization"], "Bearer SG.test");
    provider.mails.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
    let answer = provider.answers.lock().unwrap().pop_front().unwrap_or(202);
    match answer {
        SILENCE => std::future::pending().await,
        202 => (StatusCode::ACCEPTED, [("x-message-id", "sg-1")]).into_response(),
        status => {
            let said: Vec<_> = provider.says.lock().unwrap().into_iter().collect();
            (StatusCode::from_u16(status).unwrap(), AppendHeaders(said)).into_response()
        }
    }
}

impl Provider {
    async fn start(&self) -> Start {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(take).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Start::default()
            .with("RETRY_DELAY_MS", 20)
            .with("EMAIL_ADAPTER", "sendgrid")
            .with("SENDGRID_API_KEY", "SG.test")
            .with("SENDGRID_FROM", "Souk <no-reply@souk.example>")
            .with("SENDGRID_URL", url)
    }

    fn answer(&self, statuses: &[u16]) {
        *self.answers.lock().unwrap() = statuses.iter().copied().collect();
    }

    /// The subjects of all that it was sent.
    fn subjects(&self) -> Vec<String> {
        let mails = self.mails.lock().unwrap();
        mails.iter().map(|mail| mail["subject"].as_str().unwrap().to_owned()).collect()
    }
}

/// The notification of a template.
async fn notification(server: &Server, person: &Person, template: &str) -> Value {
    server.at_rest().await;
    let mut told = server.notifications(&person.user_id).await;
    told.retain(|one| one["template"] == template);
    assert_eq!(told.len(), 1, "{told:?}");
    told.remove(0)
}

/// What happened to it, without how it began.
async fn history(server: &Server, notification: &Value) -> Vec<String> {
    let id = notification["notification_id"].as_str().unwrap();
    let events = server.events(&format!("aggregateId={id}")).await;
    let types = events.iter().map(|event| event["event_type"].as_str().unwrap());
    types.filter_map(|of| of.strip_prefix("notification.email.")).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_provider_is_sent_each_mail_once_and_its_name_for_it_is_kept() {
    let provider = Provider::default();
    let server = provider.start().await.start().await;
    let ann = server.newcomer("Ann").await;
    let told = notification(&server, &ann, "welcome_verification").await;
    assert_eq!((&told["status"], &told["provider_message_id"]), (&json!("sent"), &json!("sg-1")));
    assert!(told["sent_at"].is_string());
    server.verify(&ann.email).await.expect(200);
    server.at_rest().await;
    assert_eq!(provider.subjects(), ["Welcome!", "Your e-mail address is verified"]);
    let mail = provider.mails.lock().unwrap()[0].clone();
    let envelope = &mail["personalizations"][0];
    assert_eq!(envelope["to"], json!([{ "email": ann.email }]));
    assert_eq!(envelope["custom_args"]["notification_id"], told["notification_id"]);
    assert_eq!(mail["from"], json!({ "email": "no-reply@souk.example", "name": "Souk" }));
    let forms: Vec<_> = mail["content"].as_array().unwrap().iter().map(|of| &of["type"]).collect();
    assert_eq!(forms, ["text/plain", "text/html"]);
    server.logged(&["EmailSent", "welcome_verification"]).await;
    server.finish().await;
}

#[tokio::test]
async fn what_is_refused_is_a_letter_and_what_is_put_off_goes_out_later() {
    let provider = Provider::default();
    let server = provider.start().await.start().await;
    provider.answer(&[429]);
    let ann = server.newcomer("Ann").await;
    let told = notification(&server, &ann, "welcome_verification").await;
    assert_eq!(told["status"], "sent");
    assert_eq!(history(&server, &told).await, ["attempted", "deferred", "attempted", "sent"]);
    provider.answer(&[400]);
    let bob = server.newcomer("Bob").await;
    let told = notification(&server, &bob, "welcome_verification").await;
    assert_eq!(told["status"], "failed");
    assert_eq!(history(&server, &told).await, ["attempted", "failed"]);
    let letter = server.letters(Some("notification-email")).await.swap_remove(0);
    assert_eq!((&letter["class"], &letter["attempts"]), (&json!("permanent"), &json!(1)));
    assert!(!letter.to_string().contains(&bob.email), "{letter}");
    retry(&server, &letter).await;
    let told = notification(&server, &bob, "welcome_verification").await;
    assert_eq!(told["status"], "sent");
    server.finish().await;
}

/// A provider that takes no more says until when, and is left alone as long, but no longer than an hour.
#[tokio::test]
async fn no_mail_is_tried_again_before_its_provider_wants_it() {
    let provider = Provider::default();
    let mut server = provider.start().await.start().await;
    let minutes = |from: &Value, to: &Value| {
        let at = |time: &Value| Timestamp::parse(time.as_str().unwrap()).unwrap();
        at(to).since(at(from)).as_secs() / 60
    };
    for (name, field, least) in [
        ("Ann", ("retry-after", "1800"), 29),
        ("Bob", ("retry-after", "Fri, 31 Dec 2100 00:00:00 GMT"), 59),
        ("Cid", ("x-ratelimit-reset", "4102444800"), 59),
    ] {
        *provider.says.lock().unwrap() = Some(field);
        provider.answer(&[429]);
        let person = server.newcomer(name).await;
        let waits = eventually("the refusal to be shown", || async {
            let status = server.subscription("notification-email").await;
            let partitions = status["partitions"].as_array().unwrap();
            let mut retrying = partitions.iter().flat_map(|of| of["retrying"].as_array().unwrap());
            retrying.next().cloned()
        })
        .await;
        let waits = minutes(&waits["first_failed_at"], &waits["next_attempt_at"]);
        assert!((least..=60).contains(&waits), "{waits} minutes for {field:?}");
        // Whoever is started anew has not been told.
        server.kill_9_and_start_again().await;
        let told = notification(&server, &person, "welcome_verification").await;
        assert_eq!(told["status"], "sent");
        let seen = ["attempted", "deferred", "attempted", "sent"];
        assert_eq!(history(&server, &told).await, seen);
    }
    server.finish().await;
}

async fn retry(server: &Server, letter: &Value) {
    let (partition, key) = (&letter["partition"], letter["key"].as_str().unwrap());
    let path = format!("/api/v1/dlq/notification-email/{partition}/{key}/retry");
    server.admin().post(&path, &json!({})).await.expect(200);
}

#[tokio::test]
async fn a_mail_whose_outcome_is_unknown_is_repeated_once_and_then_asked_about() {
    let provider = Provider::default();
    let server = provider.start().await.start().await;
    let ann = server.newcomer("Ann").await;
    server.at_rest().await;
    provider.answer(&[500, 502]);
    server.verify(&ann.email).await.expect(200);
    let told = notification(&server, &ann, "email_verified").await;
    assert_eq!(told["status"], "unknown");
    let lost = ["attempted", "outcome_unknown", "attempted", "outcome_unknown"];
    assert_eq!(history(&server, &told).await, lost);
    assert_eq!(provider.subjects().len(), 3);
    // Whoever decides to send it all the same does so.
    let letter = server.letters(Some("notification-email")).await.swap_remove(0);
    retry(&server, &letter).await;
    assert_eq!(notification(&server, &ann, "email_verified").await["status"], "sent");
    assert_eq!(provider.subjects().len(), 4);
    server.finish().await;
}

#[tokio::test]
async fn a_crash_during_the_call_leaves_the_outcome_open() {
    let provider = Provider::default();
    let mut server = provider.start().await.start().await;
    provider.answer(&[SILENCE]);
    let ann = server.newcomer("Ann").await;
    eventually("the call", || async { (provider.subjects().len() == 1).then_some(()) }).await;
    server.kill_9_and_start_again().await;
    let told = notification(&server, &ann, "welcome_verification").await;
    assert_eq!(told["status"], "sent");
    let seen = ["attempted", "outcome_unknown", "attempted", "sent"];
    assert_eq!(history(&server, &told).await, seen);
    assert_eq!(provider.subjects(), ["Welcome!", "Welcome!"]);
    server.kill_9_and_start_again().await;
    server.at_rest().await;
    assert_eq!(provider.subjects().len(), 2, "what was sent is not sent again");
    server.finish().await;
}

/// A mail server in this process: what it was given, and which recipient it does not know.
#[derive(Clone, Default)]
struct MailServer {
    mails: Arc<Mutex<Vec<String>>>,
    unknown: Arc<Mutex<String>>,
}

impl MailServer {
    async fn start(&self) -> Start {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("smtp://{}", listener.local_addr().unwrap());
        let server = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(server.clone().serve(stream));
            }
        });
        Start::default()
            .with("RETRY_DELAY_MS", 20)
            .with("EMAIL_ADAPTER", "smtp")
            .with("SMTP_URL", url)
            .with("SMTP_FROM", "Souk <no-reply@souk.example>")
    }

    async fn serve(self, mut stream: TcpStream) {
        let (read, mut write) = stream.split();
        let mut lines = BufReader::new(read).lines();
        write.write_all(b"220 mail.example\r\n").await.unwrap();
        while let Ok(Some(line)) = lines.next_line().await {
            let verb = line.get(..4).unwrap_or_default().to_uppercase();
            let unknown = self.unknown.lock().unwrap().clone();
            let answer: &[u8] = match verb.as_str() {
                "RCPT" if !unknown.is_empty() && line.contains(&unknown) => b"550 nobody here\r\n",
                "DATA" => {
                    write.write_all(b"354 go on\r\n").await.unwrap();
                    let mut mail = String::new();
                    while let Ok(Some(line)) = lines.next_line().await {
                        if line == "." {
                            break;
                        }
                        mail.push_str(&line);
                        mail.push('\n');
                    }
                    self.mails.lock().unwrap().push(mail);
                    b"250 taken\r\n"
                }
                "QUIT" => b"221 bye\r\n",
                _ => b"250 ok\r\n",
            };
            if write.write_all(answer).await.is_err() {
                return;
            }
        }
    }
}

#[tokio::test]
async fn a_mail_server_is_given_each_mail_once() {
    let mail_server = MailServer::default();
    let server = mail_server.start().await.start().await;
    let ann = server.newcomer("Ann").await;
    let told = notification(&server, &ann, "welcome_verification").await;
    let id = told["notification_id"].as_str().unwrap();
    let message_id = format!("<{id}@souk.example>");
    assert_eq!(
        (&told["status"], &told["provider_message_id"]),
        (&json!("sent"), &json!(message_id))
    );
    let mails = mail_server.mails.lock().unwrap().clone();
    assert_eq!(mails.len(), 1);
    let lines = [format!("To: {}", ann.email), format!("Message-ID: {message_id}")];
    assert!(lines.iter().all(|line| mails[0].contains(line)), "{}", mails[0]);
    assert!(
        mails[0].contains("Subject: Welcome!") && mails[0].contains("text/html"),
        "{}",
        mails[0]
    );

    *mail_server.unknown.lock().unwrap() = "bob@".to_owned();
    let bob = server.newcomer("Bob").await;
    let told = notification(&server, &bob, "welcome_verification").await;
    assert_eq!(told["status"], "failed");
    let letter = server.letters(Some("notification-email")).await.swap_remove(0);
    assert!(letter["error"].as_str().unwrap().contains("smtp_550"), "{letter}");
    mail_server.unknown.lock().unwrap().clear();
    retry(&server, &letter).await;
    assert_eq!(notification(&server, &bob, "welcome_verification").await["status"], "sent");
    assert_eq!(mail_server.mails.lock().unwrap().len(), 2);
    server.finish().await;
}
