//! A node as what references are bound to: what they ask for goes through its router.

use stead_entities::{
    Accepted, BoxFuture, Caller, EntityId, Error, ErrorKind, ReminderId, Request, operation::Reply,
};

use super::{Node, local::Use, router::Command};
use crate::partition::reply::Response;

impl Caller for Node {
    fn call(&self, request: Request) -> BoxFuture<'static, Result<Reply, Error>> {
        let used = self.0.router.use_operation(request, Use::Call);
        Box::pin(async move { reply(used.await?) })
    }

    fn signal(&self, request: Request) -> BoxFuture<'static, Result<Accepted, Error>> {
        let used = self.0.router.use_operation(request, Use::Signal);
        Box::pin(async move {
            Ok(match used.await? {
                Response::Scheduled(number) => Accepted::new(Some(ReminderId::Delayed(number))),
                _ => Accepted::default(),
            })
        })
    }

    fn query(&self, request: Request) -> BoxFuture<'static, Result<Reply, Error>> {
        let used = self.0.router.use_operation(request, Use::Query);
        Box::pin(async move { reply(used.await?) })
    }

    fn cancel_reminder(
        &self,
        id: EntityId,
        reminder: ReminderId,
    ) -> BoxFuture<'static, Result<(), Error>> {
        let router = self.0.router.clone();
        Box::pin(async move { router.perform(Command::Cancel(id, reminder)).await.map(drop) })
    }
}

fn reply(response: Response) -> Result<Reply, Error> {
    match response {
        Response::Replied(json) => Ok(Ok(json)),
        Response::Rejected(rejection) => Ok(Err(rejection)),
        Response::Done | Response::Scheduled(_) | Response::State(_) => {
            Err(Error::new(ErrorKind::Conflict, "this idempotency key was used for a signal"))
        }
    }
}
