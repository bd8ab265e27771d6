//! Failures as an author returns them: what is tried again and when, what is given up at once, what a
//! "no" carries and keeps, who hears of a dead letter, and how a state is readied.

use std::sync::atomic::AtomicU32;

use stead::{Answer, Cause, DeadLetter, DeadLetterFilter, Failure, operation::Reply};

use super::*;

/// How often the bank was asked.
static ASKED: AtomicU32 = AtomicU32::new(0);

/// How often `fetch_by_call` ran.
static TRIED: AtomicU32 = AtomicU32::new(0);

/// What a shop needs to know where there is too little on an account.
#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Missing {
    cents: u64,
}

/// An account that may go wrong in every way.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Account {
    cents: u64,
    notes: Vec<String>,
    /// What is not stored.
    #[serde(skip)]
    is_ready: bool,
}

#[entity(name = "account", on_dead_letter = on_lost, on_activate = ready)]
impl Account {
    pub fn deposit(&mut self, cents: u64) {
        self.cents += cents;
    }

    /// Pays, and tells another account of a "no".
    #[operation(rejection = Missing)]
    pub fn withdraw(&mut self, ctx: &mut Context, cents: u64) -> Result<u64, Rejection> {
        self.cents = self.cents.saturating_sub(cents);
        ctx.signal(Self::of("watch").note(format!("{} paid {cents}", ctx.key())));
        if self.cents == 0 {
            let no = Rejection::new("too little").with_code("too_little");
            return Err(no.with_details(&Missing { cents }).with_effects());
        }
        Ok(self.cents)
    }

    /// Says "no" with other details than it declares.
    #[operation(rejection = Missing)]
    pub fn lie(&mut self) -> Result<(), Rejection> {
        Err(Rejection::new("no").with_details(&"not an object"))
    }

    /// Asks the bank, which answers at the third time.
    pub async fn fetch(&mut self, cents: u64) -> Result<(), Failure> {
        self.cents += cents;
        match ASKED.fetch_add(1, Ordering::SeqCst) {
            0 => Err(Failure::retry("the bank is busy").after(Duration::from_secs(3_600))),
            1 => Err(Failure::retry("the bank is away")),
            _ => Ok(()),
        }
    }

    pub fn fetch_by_call(&mut self) -> Result<(), Failure> {
        TRIED.fetch_add(1, Ordering::SeqCst);
        self.cents += 1;
        Err(Failure::retry("the bank is busy").after(Duration::from_secs(30)))
    }

    pub async fn fetch_slowly(&mut self) -> Result<(), Failure> {
        self.cents += 1;
        Err(Failure::retry("the bank is busy"))
    }

    pub fn close(&mut self) -> Result<(), Failure> {
        self.cents = 0;
        Err(Failure::fatal("accounts of this kind stay"))
    }

    pub fn ask_to_close(&mut self, ctx: &mut Context, other: String) {
        ctx.ask(Self::of(other).close(), Self::of(ctx.key()).on_closed());
    }

    pub(crate) fn on_closed(&mut self, answer: Answer<()>) -> Result<(), Failure> {
        self.notes.push(format!("{answer:?}"));
        Ok(())
    }

    pub fn delete_and_refuse(&mut self, ctx: &mut Context) -> Result<(), Rejection> {
        ctx.delete();
        Err(Rejection::new("both").with_effects())
    }

    pub fn odd_code(&mut self) -> Result<(), Rejection> {
        Err(Rejection::new("no").with_code("What?"))
    }

    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    pub(crate) fn on_lost(&mut self, letter: DeadLetter) {
        let DeadLetter { operation, input, cause, reason, attempts, .. } = letter;
        self.notes.push(format!("{operation}({input}): {cause:?}, {reason}, {attempts}"));
    }

    fn ready(&mut self, ctx: &Context) {
        self.is_ready = true;
        assert!(ctx.key() != "broken", "on purpose");
    }

    pub fn balance(&self) -> u64 {
        self.cents
    }

    pub fn is_ready(&self) -> bool {
        self.is_ready
    }

    pub fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    pub fn impossible(&self) -> Result<u64, Failure> {
        Err(Failure::fatal("nobody knows"))
    }
}

async fn start(world: &World) -> Node {
    let store = world.disk.open().expect("readable");
    let builder = Node::builder().store(store).config(world.config.clone());
    builder.clock(world.clock.clone()).entity::<Account>().start().await.expect("starts")
}

async fn expect_notes(node: &Node, key: &str, expected: &[&str]) {
    let told = async || node.entity::<Account>(key).notes().await.expect("a query") == expected;
    until_true(&format!("{key} has notes {expected:?}"), told).await;
}

fn error(result: Result<impl std::fmt::Debug, CallError>) -> stead::Error {
    match result {
        Err(CallError::Failed(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_retry_waits_for_its_time_and_leaves_nothing_of_its_turn() {
    let world = World::new();
    let node = start(&world).await;
    node.entity::<Account>("a").fetch(5).signal().await.expect("accepted");
    let asked = async |times| {
        let asked = async || ASKED.load(Ordering::SeqCst) == times;
        until_true(&format!("the bank was asked {times} times"), asked).await;
    };
    asked(1).await;
    let attempts = async || !world.disk.rows(Table::Inbox).is_empty();
    until_true("the attempt is stored", attempts).await;
    world.advance(3_599);
    for _ in 0..20 {
        assert_eq!(node.entity::<Account>("a").balance().await.expect("a query"), 0);
    }
    assert_eq!(ASKED.load(Ordering::SeqCst), 1, "it is not time yet");
    node.abort().await;
    world.disk.crash();

    let node = start(&world).await;
    world.advance(1);
    asked(2).await;
    world.advance(1);
    asked(3).await;
    let paid = async || node.entity::<Account>("a").balance().await.expect("a query") == 5;
    until_true("it is applied once", paid).await;
    node.abort().await;
}

#[tokio::test]
async fn callers_hear_of_a_retry_that_nothing_was_applied_and_when_to_come_back() {
    let world = World::new();
    let node = start(&world).await;
    let account = node.entity::<Account>("a");
    let busy = error(account.fetch_by_call().await);
    assert_eq!(busy.kind(), ErrorKind::Later, "{busy}");
    assert_eq!(busy.retry_after(), Some(Duration::from_secs(30).into()));
    // One that awaits has a row of its own, and is settled all the same.
    let busy = error(account.fetch_slowly().idempotency_key("k").await);
    assert_eq!(busy.kind(), ErrorKind::Later, "{busy}");
    let given_up = error(account.close().await);
    assert_eq!(given_up.kind(), ErrorKind::Internal);
    assert!(given_up.message().contains("accounts of this kind stay"), "{given_up}");
    assert_eq!(error(account.impossible().await).kind(), ErrorKind::Internal);
    assert_eq!(account.balance().await.expect("a query"), 0);
    assert!(world.disk.rows(Table::Inbox).is_empty());
    // Over a URL too: a call that ran is not sent again, since it may have done something outside.
    let (url, served) = serve(node.router()).await;
    let client = stead::Client::new(&url).expect("a URL");
    let tried = TRIED.load(Ordering::SeqCst);
    let busy = error(client.entity::<Account>("a").fetch_by_call().await);
    assert_eq!(
        (busy.kind(), busy.retry_after()),
        (ErrorKind::Later, Some(Duration::from_secs(30).into()))
    );
    assert_eq!(TRIED.load(Ordering::SeqCst), tried + 1);
    served.abort();
    node.abort().await;
}

#[tokio::test]
async fn what_fails_for_good_is_a_dead_letter_at_once_and_its_asker_and_its_entity_hear_so() {
    let world = World::new();
    let node = start(&world).await;
    node.entity::<Account>("b").deposit(7).await.expect("applied");
    node.entity::<Account>("a").ask_to_close("b".into()).await.expect("applied");
    let heard = "Err(Failed(\"accounts of this kind stay\"))";
    expect_notes(&node, "a", &[heard]).await;
    let letter = "close(): Failure, accounts of this kind stay, 1";
    expect_notes(&node, "b", &[letter]).await;
    assert_eq!(node.entity::<Account>("b").balance().await.expect("a query"), 7);
    let letters = node.dead_letters(&DeadLetterFilter::default(), None, 10).await;
    let letters = letters.expect("readable").rows;
    assert_eq!((letters.len(), letters[0].cause, letters[0].attempts), (1, Cause::Failure, 1));
    node.abort().await;
}

#[tokio::test]
async fn a_rejection_carries_its_code_and_details_also_out_of_the_store() {
    let world = World::new();
    let node = start(&world).await;
    let (url, served) = serve(node.router()).await;
    let client = stead::Client::new(&url).expect("a URL");
    let check = |told: Result<u64, CallError>| match told {
        Err(CallError::Rejected(no)) => {
            assert_eq!((no.reason(), no.code()), ("too little", Some("too_little")));
            assert_eq!(no.details::<Missing>(), Some(Missing { cents: 5 }));
        }
        other => panic!("{other:?}"),
    };
    check(client.entity::<Account>("a").withdraw(5).idempotency_key("k").await);
    served.abort();
    node.abort().await;
    world.disk.crash();
    let node = start(&world).await;
    check(node.entity::<Account>("a").withdraw(5).idempotency_key("k").await);
    expect_notes(&node, "watch", &["a paid 5"]).await;
    let odd = error(node.entity::<Account>("a").odd_code().await);
    assert!(odd.message().contains("a-z"), "{odd}");
    node.abort().await;
}

#[tokio::test]
async fn a_rejection_may_keep_its_effects_and_never_its_state() {
    let world = World::new();
    let node = start(&world).await;
    let account = node.entity::<Account>("a");
    account.deposit(3).await.expect("applied");
    let no: Result<Reply, _> = account.withdraw(5).await.map(|_| Ok(Vec::new()));
    assert!(no.expect_err("too little").rejection().is_some());
    expect_notes(&node, "watch", &["a paid 5"]).await;
    assert_eq!(account.balance().await.expect("a query"), 3);
    let id = EntityId::new("account", "a").expect("valid");
    let revision = async || node.state_of(&id).await.expect("a state").expect("committed").revision;
    assert_eq!(revision().await, 2, "its effects are a turn");
    // A signal's is a dead letter, and is heard of, beside the effects.
    account.withdraw(9).signal().await.expect("accepted");
    expect_notes(&node, "watch", &["a paid 5", "a paid 9"]).await;
    expect_notes(&node, "a", &["withdraw(9): Rejection, too little, 0"]).await;
    let both = error(account.delete_and_refuse().await);
    assert!(both.message().contains("does not delete"), "{both}");
    assert_eq!(account.balance().await.expect("a query"), 3);
    node.abort().await;
}

#[tokio::test]
async fn a_state_is_readied_whenever_it_comes_into_memory() {
    let world = World::new();
    let node = start(&world).await;
    let account = node.entity::<Account>("a");
    assert!(account.is_ready().await.expect("a query"), "the first one");
    account.deposit(1).await.expect("applied");
    node.delete(&EntityId::new("account", "a").expect("valid")).await.expect("deleted");
    assert!(account.is_ready().await.expect("a query"), "that of the next generation");
    account.deposit(1).await.expect("applied");
    node.abort().await;
    let node = start(&world).await;
    assert!(node.entity::<Account>("a").is_ready().await.expect("a query"), "a stored one");
    let broken = error(node.entity::<Account>("broken").deposit(1).await);
    assert_eq!(broken.kind(), ErrorKind::Internal);
    assert!(broken.message().contains("on purpose"), "{broken}");
    node.abort().await;
}

#[tokio::test]
async fn details_of_rejections_are_shown_by_their_schema_and_held_to_it() {
    let world = World::new();
    let store = world.disk.open().expect("readable");
    let node = Node::builder().store(store).entity::<Account>().start().await.expect("starts");
    let shown = serde_json::to_value(node.descriptions()).expect("JSON");
    let operations = shown[0]["operations"].as_array().expect("a list");
    let rejection = |name: &str| {
        let found = operations.iter().find(|it| it["name"] == name);
        found.expect("listed")["rejection"].clone()
    };
    assert_eq!(rejection("withdraw")["$ref"], "#/$defs/Missing");
    assert!(rejection("deposit").is_null());
    let no = node.entity::<Account>("a").withdraw(5).await.expect_err("too little");
    let details = no.rejection().and_then(|no| no.details::<Missing>());
    assert_eq!(details.expect("declared").cents, 5);
    let failed = node.entity::<Account>("a").lie().await.expect_err("it fails");
    assert_eq!(kind(&failed), Some(ErrorKind::Internal));
    assert!(failed.to_string().contains("the details of its rejection are no"), "{failed}");
    let driven = stead::testing::Driver::<Account>::new("a").apply(Account::of("a").lie());
    assert!(driven.expect_err("it fails").rejection().is_none());
    node.abort().await;
}
