//! Commands without HTTP: this process runs the whole service, and gives its runtime the commands
//! that a request would lead to. What is between such a command and the disk is the same, with every
//! subscription and projection beside it; what is measured is all but the edge.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use souk_actors::command::{CommandContext, CommandError};
use souk_actors::runtime::{Handle, Runtime};

use super::load::{Asked, Judged, Line, Load, Outcome, Shape, run_on};
use super::scripts::Changes;
use super::server::variables;
use crate::config::{Config, Source};
use crate::domain::caller::{Caller, Role};
use crate::domain::ids::UserId;
use crate::domain::listing::{Listing, ListingCommand};
use crate::serve::Running;

/// What HTTP answers to a command that was done, and to one that there is no room for.
const DONE: u16 = 200;
const NO_ROOM: u16 = 503;

/// Starts the service on this folder and, if there is one, this journal.
pub(super) async fn start(folder: &Path, database_url: Option<&str>) -> anyhow::Result<Running> {
    let variables = variables(folder, database_url);
    let read = |name: &str| {
        variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())
    };
    Running::start(Config::load(&Source::new(&read))?).await
}

/// Makes new titles, so many at the same time.
pub(super) async fn retitle(
    runtime: &Runtime,
    load: Load,
    changes: &Arc<Changes>,
    seller: UserId,
) -> anyhow::Result<Outcome> {
    let shape = Shape::of(&**changes);
    let seller = Caller::user(seller, [Role::Seller]);
    let line = || Retitling {
        runtime: runtime.clone(),
        listings: runtime.aggregate::<Listing>(),
        seller: seller.clone(),
        changes: changes.clone(),
    };
    let lines = (0..load.connections).map(|_| line()).collect();
    run_on(load, lines, shape).await
}

struct Retitling {
    runtime: Runtime,
    listings: Handle<Listing>,
    seller: Caller,
    changes: Arc<Changes>,
}

impl Line for Retitling {
    fn prepare(&mut self, number: u64) -> Asked {
        self.changes.next(number)
    }

    async fn answer(&mut self, asked: Asked) -> anyhow::Result<(u16, Judged)> {
        let world = &**self.runtime.world();
        let listing = self.changes.listing(&asked).context("a listing is asked")?;
        let command = ListingCommand::Update {
            caller: self.seller.clone(),
            title: Some(format!("A bicycle of {}", asked.note)),
            description: None,
            price: None,
            now: world.now(),
        };
        // As long as what a request is called, and each its own.
        let request = format!("req_{}", world.new_id().simple());
        let context = CommandContext {
            actor_id: self.seller.user_id().context("a seller is a user")?.to_string().into(),
            ..CommandContext::outside(world, &request, &request)
        };
        match self.listings.send(listing, command, context, |_| ()).await {
            Ok(done) => Ok((DONE, self.changes.done(&asked, done.version))),
            Err(CommandError::Unavailable(_)) => Ok((NO_ROOM, Judged::BAD)),
            Err(error) => Err(error).context("a new title was not taken"),
        }
    }
}
