//! Dependencies: what the program gives reaches the types that name it, and nobody else.

use std::sync::atomic::AtomicU64;

use stead::{StartError, testing::Drivers};

use super::*;

/// An outside service.
#[derive(Default)]
struct Bank {
    cents: AtomicU64,
}

impl Bank {
    fn pay(&self, cents: u64) -> u64 {
        self.cents.fetch_add(cents, Ordering::SeqCst) + cents
    }
}

/// What reads share.
struct Rate(u64);

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Payer {
    paid: u64,
}

#[entity(name = "payer", needs(Arc<Bank>, Rate))]
impl Payer {
    pub async fn pay(&mut self, ctx: &mut Context, cents: u64) -> u64 {
        let bank = ctx.get::<Arc<Bank>>();
        tokio::task::yield_now().await;
        self.paid = bank.pay(cents * ctx.get::<Rate>().0);
        self.paid
    }

    pub fn at_rate(&self, ctx: &Context) -> u64 {
        self.paid / ctx.get::<Rate>().0
    }

    pub fn pay_at_once(&mut self, ctx: &mut Context) {
        self.paid = ctx.get::<Rate>().0;
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Stranger;

#[entity(name = "stranger")]
impl Stranger {
    pub fn peep(&self, ctx: &Context) -> u64 {
        ctx.get::<Rate>().0
    }
}

fn failure(told: Result<impl std::fmt::Debug, CallError>) -> String {
    match told {
        Err(CallError::Failed(error)) => error.message().to_owned(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_a_type_names_is_given_to_what_awaits_and_to_queries() {
    let world = World::new();
    let bank = Arc::new(Bank::default());
    let builder = Node::builder().store(world.disk.open().expect("readable"));
    let builder = builder.entity::<Payer>().entity::<Stranger>().with(Rate(2));
    let node = builder.with(bank.clone()).start().await.expect("starts");
    let payer = node.entity::<Payer>("a");
    assert_eq!(payer.pay(5).await.expect("applied"), 10);
    assert_eq!(payer.at_rate().await.expect("a query"), 5);
    assert_eq!(bank.cents.load(Ordering::SeqCst), 10);
    let pure = failure(payer.pay_at_once().await);
    assert!(pure.contains("make it `async`"), "{pure}");
    let unnamed = failure(node.entity::<Stranger>("a").peep().await);
    assert!(unnamed.contains("#[entity(needs("), "{unnamed}");
    assert_eq!(payer.at_rate().await.expect("a query"), 5, "nothing of it stayed");
    node.abort().await;
}

#[tokio::test]
async fn what_is_missing_is_named_at_the_start() {
    let world = World::new();
    let builder = Node::builder().store(world.disk.open().expect("readable"));
    let refused = builder.entity::<Payer>().start().await.expect_err("nothing is given");
    let StartError::Invalid(problems) = refused else { panic!("{refused}") };
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems.iter().any(|it| it.contains("payer: no ") && it.contains("Rate is given")));
}

#[tokio::test]
async fn drivers_are_given_the_same() {
    let bank = Arc::new(Bank::default());
    let mut all = Drivers::new().entity::<Payer>().with(bank.clone()).with(Rate(3));
    assert_eq!(all.apply_async(Payer::of("a").pay(5)).await.expect("applied"), 15);
    assert_eq!(all.query(Payer::of("a").at_rate()).expect("a query"), 5);
    let mut all = all.with(Rate(5));
    assert_eq!(all.apply_async(Payer::of("a").pay(1)).await.expect("applied"), 20);
}
