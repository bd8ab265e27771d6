//! Entities: signals, states, deletions and lists.

use axum::{body::Body, http::StatusCode, response::IntoResponse as _};
use serde_json::{Value, json};
use stead_entities::{Caller as _, EntityId, Error, ErrorKind};

use super::{
    Answer, Call, Refusal,
    body::meanings,
    lists::{PAGE, Work, listed},
};
use crate::{
    Deletion,
    http::routes::{caller_of, json_response},
};

/// The operation that deletes an entity of a type that has none of this name.
const DELETE: &str = "delete";

impl Call {
    fn entity(&self, name: &str, key: &str, missing: StatusCode) -> Result<EntityId, Refusal> {
        let entity_type = self.entity_type(name).ok_or_else(|| {
            Refusal::new(
                missing,
                format!("The entity '{name}' doesn't exist, or is not an entity."),
            )
        })?;
        Ok(EntityId::new(entity_type, key)?)
    }

    /// Sends an operation. It is one-way: what the entity does not take is dropped, and the log says so.
    pub(super) async fn signal_entity(&self, name: &str, key: &str, body: Body) -> Answer {
        let missing = || Refusal::new(StatusCode::BAD_REQUEST, "op names the operation");
        let operation = self.text("op").ok_or_else(missing)?.to_owned();
        let id = self.entity(name, key, StatusCode::BAD_REQUEST)?;
        self.send(id, operation, meanings(self, body).await?).await
    }

    /// Sends `delete`, which deletes an entity of a type that has no such operation.
    pub(super) async fn delete_entity(&self, name: &str, key: &str) -> Answer {
        let id = self.entity(name, key, StatusCode::BAD_REQUEST)?;
        self.send(id, DELETE.to_owned(), vec![Vec::new()]).await
    }

    async fn send(&self, id: EntityId, operation: String, inputs: Vec<Vec<u8>>) -> Answer {
        let mut sent = Ok(());
        for input in inputs {
            let request = self.request(id.clone(), operation.clone(), input);
            sent = self.node.signal(request).await.map(drop);
            if !sent.as_ref().is_err_and(|error| error.kind() == ErrorKind::Invalid) {
                break;
            }
        }
        let is_unknown = |error: &Error| error.kind() == ErrorKind::NotFound;
        if operation == DELETE && sent.as_ref().is_err_and(is_unknown) {
            let caller = caller_of(&self.extensions);
            sent = self.node.delete_with(Deletion { caller, ..Deletion::new(id.clone()) }).await;
        }
        match sent {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Invalid) => {
                tracing::warn!(entity = %id, operation, %error, "a signal is dropped");
            }
            sent => sent?,
        }
        Ok(StatusCode::ACCEPTED.into_response())
    }

    pub(super) async fn read_entity(&self, name: &str, key: &str) -> Answer {
        let id = self.entity(name, key, StatusCode::NOT_FOUND)?;
        let missing = || Refusal::new(StatusCode::NOT_FOUND, format!("{id} does not exist"));
        let view = self.node.committed_state_of(&id).await?.ok_or_else(missing)?;
        Ok(json_response(StatusCode::OK, view.state))
    }

    /// A page of the entities of one type, or of all, with their states where they are asked for.
    pub(super) async fn list_entities(&self, name: Option<&str>) -> Answer {
        let types = match name {
            None => self.types(false),
            Some(name) => self.entity_type(name).into_iter().collect(),
        };
        let (mut place, top) = (self.place()?, self.top()?);
        let (from, to) =
            (self.moment("lastOperationTimeFrom")?, self.moment("lastOperationTimeTo")?);
        let shows_state = self.is_set("fetchState", false);
        let (mut rows, mut work) = (Vec::new(), Work::default());
        while place.of < types.len() && rows.len() < top && work.may_begin() {
            let (of, after) = (types[place.of], place.after.take());
            let page = self.node.list_of(of, "", after.as_deref(), PAGE).await?;
            let mut listed = page.rows.into_iter().peekable();
            while rows.len() < top
                && !work.is_full()
                && let Some(row) = listed.next()
            {
                place.after = Some(row.key.clone());
                let at = row.committed_at;
                if from.is_some_and(|from| at < from) || to.is_some_and(|to| at > to) {
                    continue;
                }
                let mut shown = json!({
                    "entityId": { "name": row.entity_type, "key": row.key },
                    "lastOperationTime": at,
                });
                if shows_state {
                    let id = EntityId::new(&row.entity_type, &row.key)?;
                    let view = self.node.committed_state_of(&id).await?;
                    view.iter().for_each(|view| work.note(&view.state));
                    let state = view.and_then(|view| serde_json::from_slice(&view.state).ok());
                    shown["state"] = state.unwrap_or(Value::Null);
                }
                rows.push(shown);
            }
            if listed.peek().is_none() {
                place.pass(page.next);
            }
        }
        Ok(listed(rows.into(), (place.of < types.len()).then_some(&place)))
    }
}
