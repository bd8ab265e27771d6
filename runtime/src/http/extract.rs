//! Extractors for handlers of an application.

use std::fmt;

use axum::{
    extract::{FromRef, FromRequestParts, RawPathParams},
    http::request::Parts,
};
use stead_entities::{EntityId, Error, ErrorKind, TypedReference};

use crate::Node;

/// A typed reference to the entity that a path names: by its parameter `key`, or its only one.
///
/// ```
/// # use axum::{Json, Router, extract::FromRef, routing::get};
/// # use stead::{CallError, EntityPath, Node, stock::Counter};
/// #[derive(Clone)]
/// struct App { node: Node }
/// impl FromRef<App> for Node {
///     fn from_ref(app: &App) -> Self { app.node.clone() }
/// }
///
/// async fn visit(EntityPath(page): EntityPath<Counter>) -> Result<Json<i64>, CallError> {
///     Ok(Json(page.add(1).await?))
/// }
///
/// let routes: Router<App> = Router::new().route("/visits/{key}", get(visit));
/// ```
///
/// A key that breaks a rule is answered 400, as a problem document.
pub struct EntityPath<E: TypedReference>(
    /// The reference, bound to the node in the application's state.
    pub E::Reference<Node>,
);

impl<E: TypedReference, S: Send + Sync> FromRequestParts<S> for EntityPath<E>
where
    Node: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let invalid = |why: String| Error::new(ErrorKind::Invalid, why);
        let parameters = RawPathParams::from_request_parts(parts, state).await;
        let parameters = parameters.map_err(|error| invalid(error.body_text()))?;
        let (mut all, mut named) = (parameters.iter(), parameters.iter());
        let named = named.find(|(name, _)| *name == "key");
        let only = all.next().filter(|_| all.next().is_none());
        let Some((_, key)) = named.or(only) else {
            return Err(Error::new(ErrorKind::Internal, "the route has no parameter `key`"));
        };
        EntityId::new(E::NAME, key)?;
        Ok(Self(Node::from_ref(state).entity::<E>(key)))
    }
}

impl<E: TypedReference> fmt::Debug for EntityPath<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EntityPath").field(&E::NAME).finish()
    }
}
