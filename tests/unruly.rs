//! A server whose entities go wrong in every way; with `READY_MADE` beside the ready-made ones. `SHIFTY` chooses how one of
//! them stores its state, `ERRAND` the code of a workflow, and `STEPS` the file in which the steps of others write.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead::{
    Context, Failure, Layout, NodeBuilder, Rejection, entity,
    stock::{Approval, ApprovalWorkflow, Counter},
    workflow,
    workflow::{StepError, Workflow},
};
use stead_tests::{
    log::{Ember, Log},
    workflows::interpreter,
};

/// Appends, and fails in every way.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Unruly {
    entries: Vec<u32>,
}

#[entity(name = "unruly")]
impl Unruly {
    pub fn append(&mut self, entry: u32) -> Vec<u32> {
        self.entries.push(entry);
        self.entries.clone()
    }

    pub fn explode(&mut self) {
        self.entries.clear();
        panic!("on purpose");
    }

    pub fn refuse(&mut self) -> Result<(), Rejection> {
        self.entries.clear();
        Err(Rejection::new("never"))
    }

    pub async fn hang(&mut self) {
        self.entries.clear();
        std::future::pending::<()>().await;
    }

    pub fn block(&mut self) {
        loop {
            std::hint::spin_loop();
        }
    }

    pub fn send_block(&mut self, ctx: &mut Context, to: String) {
        ctx.signal(Self::of(&to).block());
    }

    pub fn entries(&self) -> Vec<u32> {
        self.entries.clone()
    }
}

/// Readings that are answered before they are flushed.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Meter {
    readings: Vec<u32>,
}

#[entity(name = "meter", durability = "buffered")]
impl Meter {
    pub fn note(&mut self, reading: u32) -> usize {
        self.readings.push(reading);
        self.readings.len()
    }
}

/// A state in its first version.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
pub struct First {
    count: u32,
}

#[entity(name = "shifty")]
impl First {
    pub fn count(&mut self) -> u64 {
        self.count += 1;
        self.count.into()
    }
}

/// The same version, whose operation has another name.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Renamed {
    count: u32,
}

#[entity(name = "shifty")]
impl Renamed {
    pub fn tally(&mut self) -> u32 {
        self.count += 1;
        self.count
    }
}

/// The same version with a wider field.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Moved {
    count: u64,
}

#[entity(name = "shifty")]
impl Moved {
    pub fn count(&mut self) -> u64 {
        self.count += 1;
        self.count
    }
}

/// The second version, which reads the first.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Second {
    count: u64,
}

impl From<First> for Second {
    fn from(first: First) -> Self {
        Self { count: first.count.into() }
    }
}

#[entity(name = "shifty", version = 2, upgrade_from(1 = First))]
impl Second {
    pub fn count(&mut self) -> u64 {
        self.count += 1;
        self.count
    }
}

/// The second version, which has forgotten the first.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Forgetful {
    count: u64,
}

#[entity(name = "shifty", version = 2)]
impl Forgetful {
    pub fn count(&mut self) -> u64 {
        self.count += 1;
        self.count
    }
}

/// An errand: something is fetched, and then brought when somebody says so.
struct Errand;
/// Its code with the same version, and something else before it.
struct Hasty;
/// A later version, with the code of the first for those that run.
struct Later;

#[workflow(name = "errand", events(go: u32))]
impl Errand {
    pub async fn run(ctx: Workflow<Self>, what: u32) -> Result<u32, Failure> {
        Ok(ctx.fetch(what).await? + ctx.go().await?)
    }
    async fn fetch(&self, what: u32) -> Result<u32, StepError> {
        Ok(what)
    }
}

#[workflow(name = "errand", events(go: u32))]
impl Hasty {
    pub async fn run(ctx: Workflow<Self>, _what: u32) -> Result<u32, Failure> {
        ctx.go().await
    }
}

#[workflow(name = "errand", version = 2, events(go: u32), also(1 = Errand))]
impl Later {
    pub async fn run(ctx: Workflow<Self>, _what: u32) -> Result<u32, Failure> {
        ctx.go().await
    }
}

/// A workflow whose code goes wrong when it is woken.
struct Trouble;

#[workflow(name = "trouble")]
impl Trouble {
    pub async fn run(ctx: Workflow<Self>, how: String) -> Result<(), Failure> {
        ctx.sleep(std::time::Duration::from_millis(10)).await?;
        match &*how {
            "panic" => panic!("on purpose"),
            "wait" => std::future::pending().await,
            "end" => std::process::abort(),
            _ => loop {
                std::hint::spin_loop();
            },
        }
    }
}

fn main() {
    stead::server::run(|node: NodeBuilder| {
        let node = match std::env::var_os("READY_MADE") {
            Some(_) => node.entity::<Counter>().entity::<Approval>().workflow(ApprovalWorkflow),
            None => node,
        };
        let node = match std::env::var_os("STEPS") {
            Some(outside) => node.workflow(interpreter(outside.as_ref()).expect("a file")),
            None => node,
        };
        let node = match std::env::var("ERRAND").unwrap_or_default().as_str() {
            "first" => node.workflow(Errand).workflow(Trouble),
            "hasty" => node.workflow(Hasty),
            "later" => node.with(Errand).workflow(Later),
            _ => node,
        };
        let node = node.entity::<Unruly>().entity::<Log>().entity::<Ember>().entity::<Meter>();
        match std::env::var("SHIFTY").unwrap_or_default().as_str() {
            "renamed" => node.entity::<Renamed>(),
            "moved" => node.entity::<Moved>(),
            "second" => node.entity::<Second>(),
            "forgetful" => node.entity::<Forgetful>(),
            _ => node.entity::<First>(),
        }
    })
}
