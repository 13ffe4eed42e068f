//! The sagas that the marketplace runs, by type.

use serde_json::Value;
use souk_actors::command::{CommandContext, Done};
use souk_actors::saga::{Saga, SagaCommand, SagaInstance, Step};
use uuid::Uuid;

use super::App;
use super::problem::ApiError;
use super::sagas::{DefinitionBody, StepBody, StepRetryBody};
use crate::domain::ids::{OrderId, UserId};
use crate::domain::money::{Currency, Money};
use crate::domain::order::{PaymentMethod, SagaDefinition};
use crate::domain::order_saga::{OrderSaga, Placed};

/// The saga that there is.
pub(super) const NAME: &str = OrderSaga::NAME;

/// A saga's version and what it looks like; version 0 when there is none. An order's id finds its
/// saga too.
pub(super) async fn read(app: &App, id: Uuid) -> Result<(u64, Value), ApiError> {
    let sagas = app.runtime().saga::<OrderSaga>();
    for id in [id, SagaInstance::<OrderSaga>::id_of(id)] {
        let done = sagas.read(id, move |saga| shown(id, saga)).await?;
        if done.version > 0 {
            return Ok((done.version, done.value));
        }
    }
    Ok((0, Value::Null))
}

/// The instance that an id names: its own, or its order's.
pub(super) async fn named(app: &App, id: Uuid) -> Result<Uuid, ApiError> {
    let sagas = app.runtime().saga::<OrderSaga>();
    for id in [id, SagaInstance::<OrderSaga>::id_of(id)] {
        if sagas.read(id, |_| ()).await?.version > 0 {
            return Ok(id);
        }
    }
    Err(ApiError::not_found("there is no such saga"))
}

/// Tells an instance what somebody wants of it; what it looks like then.
pub(super) async fn tell(
    app: &App,
    id: Uuid,
    command: SagaCommand,
    context: CommandContext,
) -> Result<Done<Value>, ApiError> {
    let sagas = app.runtime().saga::<OrderSaga>();
    Ok(sagas.send(id, command, context, move |saga| shown(id, saga)).await?)
}

fn shown(id: Uuid, saga: &SagaInstance<OrderSaga>) -> Value {
    let mut body = serde_json::to_value(saga).unwrap_or_default();
    let definition = saga.state.placed.as_ref().map(|placed| placed.definition.as_str());
    if let Some(members) = body.as_object_mut() {
        for bookkeeping in ["undo_answered", "undo_found_nothing", "seen"] {
            members.remove(bookkeeping);
        }
        members.insert("saga_id".to_owned(), Value::from(id.to_string()));
        members.insert("saga".to_owned(), Value::from(OrderSaga::NAME));
        members.insert("definition".to_owned(), Value::from(definition));
        members.insert("order_id".to_owned(), Value::from(saga.key.map(|key| key.to_string())));
        members.insert("state_name".to_owned(), Value::from(saga.state_name()));
        let current = saga.current().map(|step| step.name);
        members.insert("step_name".to_owned(), Value::from(current));
    }
    body
}

/// What the sagas are made of.
pub(super) fn definitions() -> Vec<DefinitionBody> {
    let all = [SagaDefinition::ReserveFirst, SagaDefinition::PaymentFirst];
    all.into_iter().map(definition).collect()
}

fn definition(variant: SagaDefinition) -> DefinitionBody {
    // An order's saga chooses its steps by what was ordered; this one orders nothing.
    let placed = Placed {
        event_id: Uuid::nil(),
        order_id: OrderId::default(),
        order_number: String::new(),
        buyer_id: UserId::default(),
        seller_id: UserId::default(),
        items: Vec::new(),
        total: Money::zero(Currency::Vnd),
        promotion: None,
        payment_method: PaymentMethod::new(PaymentMethod::SANDBOX),
        payment_reference: String::new(),
        definition: variant,
    };
    let saga = OrderSaga { placed: Some(placed), ..OrderSaga::default() };
    DefinitionBody {
        name: OrderSaga::NAME.to_owned(),
        variant: variant.as_str().to_owned(),
        topics: OrderSaga::TOPICS.iter().map(|topic| (*topic).to_owned()).collect(),
        steps: saga.steps().iter().map(|of| step(of, &saga)).collect(),
        states: states(&saga),
    }
}

/// As [`SagaInstance::state_name`] has them.
fn states(saga: &OrderSaga) -> Vec<String> {
    let before = ["COLLECTING", "STARTED"].into_iter();
    let done = saga.steps().iter().map(|step| step.done_as);
    let all = before.chain(done.filter(|state| *state != "COMPLETED"));
    all.chain(["COMPLETED", "COMPENSATING", "COMPENSATED"]).map(str::to_owned).collect()
}

fn step(step: &Step<OrderSaga>, saga: &OrderSaga) -> StepBody {
    StepBody {
        name: step.name.to_owned(),
        done_as: step.done_as.to_owned(),
        time_limit_seconds: (step.time_limit)(saga).as_secs(),
        retry: StepRetryBody { max_retries: step.retries_max },
        optional: step.optional,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_definitions_have_the_same_steps_in_another_order() {
        let names = |definition: &DefinitionBody| {
            definition.steps.iter().map(|step| step.name.clone()).collect::<Vec<_>>()
        };
        let all = definitions();
        let (mut first, mut second) = (names(&all[0]), names(&all[1]));
        assert_ne!(first, second);
        first.sort_unstable();
        second.sort_unstable();
        assert_eq!(first, second);
    }
}
