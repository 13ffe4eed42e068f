//! `souk admin create`: how the first administrator comes to be. The server must not be running on
//! the same data folder.

use std::io::{BufRead as _, IsTerminal as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use souk_actors::command::CommandContext;

use crate::app::App as Market;
use crate::config::Config;
use crate::domain::caller::Caller;
use crate::domain::email_claim::{CLAIM_FOR, EmailClaim, EmailClaimCommand};
use crate::domain::ids::{EmailClaimId, UserId};
use crate::domain::text::{is_email, normal_email};
use crate::domain::user::{Registration, User, UserCommand};
use crate::identity::password::{self, Passwords};
use crate::identity::verification;
use crate::serve::settings;

/// What went wrong when nothing could be read.
const UNREADABLE: &str = "cannot read the password";
/// How long the actors may take to stop.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);

pub(super) async fn create(
    config: &Config,
    email: &str,
    first_name: &str,
    last_name: &str,
) -> anyhow::Result<ExitCode> {
    let email = normal_email(email);
    if !is_email(&email) {
        bail!("--email must be an e-mail address");
    }
    let password = read_password()?;
    let market = Market::start(settings(config)).await?;
    let made = register(config, &market, &email, &password, (first_name, last_name)).await;
    market.drain(DRAIN_WITHIN).await;
    println!("administrator {} can log in now", made?);
    Ok(ExitCode::SUCCESS)
}

/// At a terminal it is asked for without an echo, twice; anything else gives it as its first line.
fn read_password() -> anyhow::Result<String> {
    let input = std::io::stdin();
    let password = if input.is_terminal() {
        let password = rpassword::prompt_password("Password: ").context(UNREADABLE)?;
        checked(&password)?;
        if rpassword::prompt_password("Once more: ").context(UNREADABLE)? != password {
            bail!("the two are not the same");
        }
        password
    } else {
        let mut line = String::new();
        input.lock().read_line(&mut line).context(UNREADABLE)?;
        line.trim_end_matches(['\r', '\n']).to_owned()
    };
    checked(&password)?;
    Ok(password)
}

fn checked(password: &str) -> anyhow::Result<()> {
    let range = password::LENGTH_MIN..=password::LENGTH_MAX;
    if !range.contains(&password.chars().count()) {
        bail!("the password must have {} to {} characters", range.start(), range.end());
    }
    Ok(())
}

async fn register(
    config: &Config,
    market: &Market,
    email: &str,
    password: &str,
    (first_name, last_name): (&str, &str),
) -> anyhow::Result<UserId> {
    let world = market.runtime.world();
    let (now, user_id) = (world.now(), UserId(world.new_id()));
    let claim = EmailClaimId::of_address(config.keys.lookup.bytes(), email);
    let context = || CommandContext::inside(&**world, "admin create", "admin create");
    let take = EmailClaimCommand::Claim { user_id, now, expires_at: now.plus(CLAIM_FOR) };
    let claims = market.runtime.aggregate::<EmailClaim>();
    claims.send(claim.uuid(), take, context(), |_| ()).await.context("cannot claim the address")?;

    let phc = Passwords::new(world.clone()).hash(password.to_owned()).await?;
    let nonce = verification::new_nonce(&**world);
    let token = verification::verification_token(&config.keys.token, user_id.uuid(), &nonce);
    let registration = Box::new(Registration {
        user_id,
        email: email.to_owned(),
        first_name: first_name.to_owned(),
        last_name: last_name.to_owned(),
        email_claim_id: claim,
        verification_token_hash: verification::token_hash(&token),
        verification_token_nonce: nonce,
        verification_expires_at: now,
        now,
    });
    let register = UserCommand::RegisterAdmin { caller: Caller::System, registration };
    let attach = vec![password::row(user_id.uuid(), phc)];
    let users = market.runtime.aggregate::<User>();
    let attached = CommandContext { attach, ..context() };
    users.send(user_id.uuid(), register, attached, |_| ()).await.context("cannot register")?;
    let confirm = EmailClaimCommand::Confirm { user_id, now };
    // The subscriber that follows registrations does this too; whoever comes first.
    claims
        .send(claim.uuid(), confirm, context(), |_| ())
        .await
        .context("cannot confirm the address")?;
    Ok(user_id)
}
