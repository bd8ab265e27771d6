//! Results of workflows and steps that are none, and code that cannot be resumed on another thread.

use std::rc::Rc;

use stead_entities::{
    Failure, workflow,
    workflow::{StepError, Workflow},
};

struct OtherError;
#[workflow(name = "other-error")]
impl OtherError {
    pub async fn run(ctx: Workflow<Self>) -> Result<(), StepError> {
        Ok(())
    }
}

struct PlainStep;
#[workflow(name = "plain-step")]
impl PlainStep {
    pub async fn run(ctx: Workflow<Self>) -> Result<(), Failure> {
        Ok(())
    }
    async fn charge(&self) -> u32 {
        1
    }
}

struct BoundToThread;
#[workflow(name = "bound-to-thread")]
impl BoundToThread {
    pub async fn run(ctx: Workflow<Self>) -> Result<u32, Failure> {
        let kept = Rc::new(1);
        ctx.sleep(std::time::Duration::from_secs(1)).await?;
        Ok(*kept)
    }
}

struct Earlier;
#[workflow(name = "earlier", version = 1)]
impl Earlier {
    pub async fn run(ctx: Workflow<Self>) -> Result<(), Failure> {
        Ok(())
    }
}

struct WrongEarlier;
#[workflow(name = "wrong-earlier", version = 3, also(2 = Earlier))]
impl WrongEarlier {
    pub async fn run(ctx: Workflow<Self>) -> Result<(), Failure> {
        Ok(())
    }
}

fn main() {}
