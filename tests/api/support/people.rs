//! People: from an address to a way in.

use serde_json::{Value, json};

use super::{Answer, Client, Server, eventually};

/// Somebody who is logged in.
#[derive(Clone)]
pub struct Person {
    pub user_id: String,
    pub email: String,
    pub password: String,
    /// As this person.
    pub client: Client,
    pub access_token: String,
    pub refresh_token: String,
}

impl Person {
    /// A program of this person, with a key of these scopes.
    pub async fn program(&self, scopes: &[&str]) -> Client {
        let wish = json!({ "name": "a program", "scopes": scopes });
        let made = self.client.post("/api/v1/users/me/api-keys", &wish).await.expect(201);
        self.client.with_token(&made.text("token"))
    }

    /// Logs in again: after the clock has moved the old token is over.
    pub async fn log_in_again(&mut self) {
        let tokens = login(&self.client, &self.email, &self.password).await.expect(200);
        self.access_token = tokens.text("access_token");
        self.refresh_token = tokens.text("refresh_token");
        self.client = self.client.with_token(&self.access_token);
    }
}

async fn login(client: &Client, email: &str, password: &str) -> Answer {
    let body = json!({ "email": email, "password": password });
    client.without("authorization").post("/api/v1/auth/login", &body).await
}

/// A body that registers somebody.
pub fn somebody(name: &str) -> Value {
    json!({
        "email": format!("{}@example.com", name.to_lowercase()),
        "password": format!("{name} has a long password"),
        "first_name": name,
        "last_name": "Tester",
    })
}

impl Server {
    /// Registers `name`, whose address is `<name>@example.com`.
    pub async fn register(&self, name: &str) -> Answer {
        self.visitor().post("/api/v1/users/register", &somebody(name)).await
    }

    /// The mails to an address, the newest first.
    pub async fn mails(&self, email: &str) -> Vec<Value> {
        let outbox = self.visitor().get("/api/v1/dev/outbox?channel=email&limit=200").await;
        let outbox = outbox.expect(200);
        outbox.items().iter().filter(|mail| mail["to"] == email).cloned().collect()
    }

    /// The text messages to a number, the newest first.
    pub async fn texts(&self, number: &str) -> Vec<Value> {
        let outbox = self.visitor().get("/api/v1/dev/outbox?channel=sms&limit=200").await;
        let outbox = outbox.expect(200);
        outbox.items().iter().filter(|text| text["to"] == number).cloned().collect()
    }

    /// The token in the mail to an address, once it is there: its longest word.
    pub async fn mailed_token(&self, email: &str) -> String {
        eventually(&format!("a token mailed to {email}"), || async {
            self.mails(email).await.iter().find_map(|mail| {
                let part =
                    |letter: char| !(letter.is_ascii_alphanumeric() || "-_".contains(letter));
                mail["text"].as_str()?.split(part).find(|word| word.len() == 64).map(str::to_owned)
            })
        })
        .await
    }

    /// Proves an address with the token that was mailed.
    pub async fn verify(&self, email: &str) -> Answer {
        let token = self.mailed_token(email).await;
        let body = json!({ "verification_token": token });
        self.visitor().post("/api/v1/users/verify-email", &body).await
    }

    /// Logs in.
    pub async fn login(&self, email: &str, password: &str) -> Answer {
        login(&self.visitor(), email, password).await
    }

    /// Somebody new who has logged in but has not proved the address.
    pub async fn newcomer(&self, name: &str) -> Person {
        let user_id = self.register(name).await.expect(201).text("user_id");
        self.comes(user_id, &somebody(name)).await
    }

    /// Somebody who registered with this body logs in.
    pub async fn comes(&self, user_id: String, body: &Value) -> Person {
        let (email, password) = (body["email"].as_str(), body["password"].as_str());
        let (email, password) = (email.unwrap().to_owned(), password.unwrap().to_owned());
        let tokens = self.login(&email, &password).await.expect(200);
        let access_token = tokens.text("access_token");
        let client = self.visitor().with_token(&access_token);
        let refresh_token = tokens.text("refresh_token");
        Person { user_id, email, password, client, access_token, refresh_token }
    }

    /// Somebody who can buy.
    pub async fn buyer(&self, name: &str) -> Person {
        let person = self.newcomer(name).await;
        self.verify(&person.email).await.expect(200);
        person
    }

    /// Somebody who can buy and sell.
    pub async fn seller(&self, name: &str) -> Person {
        let person = self.buyer(name).await;
        self.become_seller(&person).await.expect(200);
        self.admin_verifies(&person).await.expect(200);
        person
    }

    /// An administrator of one's own, made at the console while the server does not run.
    pub async fn administrator(&mut self, name: &str) -> Person {
        let (email, password) =
            (format!("{name}@example.com"), format!("{name} has a long password"));
        assert!(self.terminate().await.success());
        let create = ["admin", "create", "--email", &email];
        let made = self.command(&create).reading(&format!("{password}\n")).run();
        assert_eq!(made.code, 0, "{}", made.errors);
        self.start_again().await;
        let tokens = self.login(&email, &password).await.expect(200);
        let access_token = tokens.text("access_token");
        let client = self.visitor().with_token(&access_token);
        let user_id = tokens.text("user_id");
        let refresh_token = tokens.text("refresh_token");
        Person { user_id, email, password, client, access_token, refresh_token }
    }

    /// Applies to be a seller.
    pub async fn become_seller(&self, person: &Person) -> Answer {
        person.client.post("/api/v1/users/upgrade-to-seller", &business()).await
    }

    /// An administrator lets a seller in.
    pub async fn admin_verifies(&self, person: &Person) -> Answer {
        let path = format!("/api/v1/admin/sellers/{}/verify", person.user_id);
        self.admin().post(&path, &json!({})).await
    }

    /// The notifications of a user.
    pub async fn notifications(&self, user_id: &str) -> Vec<Value> {
        let path = format!("/api/v1/notifications?user_id={user_id}&limit=200");
        self.admin().get(&path).await.expect(200).items().to_vec()
    }
}

/// A body that makes somebody a seller.
pub fn business() -> Value {
    json!({
        "business_name": "Looms and more",
        "business_address": "7 Weavers Lane, Springfield",
        "business_phone": "+84 24 3926 0000",
    })
}
