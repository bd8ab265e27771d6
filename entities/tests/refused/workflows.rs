//! Mistakes in workflows: each message names the fix.

use stead_entities::{
    Failure, workflow,
    workflow::{Step, StepError, Workflow},
};

struct NoRun;
#[workflow(name = "no-run")]
impl NoRun {
    async fn charge(&self) -> Result<(), StepError> {
        Ok(())
    }
}

struct NotAsync;
#[workflow(name = "not-async")]
impl NotAsync {
    pub fn run(ctx: Workflow<Self>) -> Result<(), Failure> {
        Ok(())
    }
}

struct Unnamed;
#[workflow(version = 2)]
impl Unnamed {
    pub async fn run(ctx: Workflow<Self>) -> Result<(), Failure> {
        Ok(())
    }
}

struct WithSelf;
#[workflow(name = "with-self")]
impl WithSelf {
    pub async fn run(&self, ctx: Workflow<Self>) -> Result<(), Failure> {
        Ok(())
    }
}

struct PublicStep;
#[workflow(name = "public-step")]
impl PublicStep {
    pub async fn run(ctx: Workflow<Self>) -> Result<(), Failure> {
        Ok(())
    }
    pub async fn charge(&self) -> Result<(), StepError> {
        Ok(())
    }
}

struct ChangingStep;
#[workflow(name = "changing-step")]
impl ChangingStep {
    pub async fn run(ctx: Workflow<Self>) -> Result<(), Failure> {
        Ok(())
    }
    async fn charge(&mut self) -> Result<(), StepError> {
        Ok(())
    }
}

struct BorrowingStep;
#[workflow(name = "borrowing-step")]
impl BorrowingStep {
    pub async fn run(ctx: Workflow<Self>) -> Result<(), Failure> {
        Ok(())
    }
    async fn charge(&self, step: &Step, card: &str) -> Result<(), StepError> {
        Ok(())
    }
}

struct EndlessStep;
#[workflow(name = "endless-step")]
impl EndlessStep {
    pub async fn run(ctx: Workflow<Self>) -> Result<(), Failure> {
        Ok(())
    }
    async fn charge(&self) {}
}

struct GenericRun;
#[workflow(name = "generic-run")]
impl GenericRun {
    pub async fn run<T>(ctx: Workflow<Self>, input: T) -> Result<(), Failure> {
        Ok(())
    }
}

struct TakenEvent;
#[workflow(name = "taken-event", events(cancel: u32))]
impl TakenEvent {
    pub async fn run(ctx: Workflow<Self>) -> Result<(), Failure> {
        Ok(())
    }
}

struct SharedName;
#[workflow(name = "shared-name", events(charge: u32))]
impl SharedName {
    pub async fn run(ctx: Workflow<Self>) -> Result<(), Failure> {
        Ok(())
    }
    async fn charge(&self) -> Result<(), StepError> {
        Ok(())
    }
}

struct LimitedHelper;
#[workflow(name = "limited-helper")]
impl LimitedHelper {
    pub async fn run(ctx: Workflow<Self>) -> Result<(), Failure> {
        Ok(())
    }
    #[step(at_most = 3)]
    fn charge(&self) {}
}

struct SameVersion;
#[workflow(name = "same-version", version = 2, also(2 = NoRun))]
impl SameVersion {
    pub async fn run(ctx: Workflow<Self>) -> Result<(), Failure> {
        Ok(())
    }
}

fn main() {}
