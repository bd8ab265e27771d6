//! Asks as an author uses them: an order asks for stock and for credit, makes up for what it got where
//! the rest was refused, and every answer comes once, whatever happens in between.

use stead::{Answer, Cause, Client, DeadLetterFilter, Failure};
use tokio::sync::Notify;

use super::*;

/// What can be reserved.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Shelf {
    pieces: u32,
    reserved: u32,
}

#[entity(name = "shelf")]
impl Shelf {
    pub fn fill(&mut self, pieces: u32) {
        self.pieces += pieces;
    }

    pub(crate) fn reserve(&mut self, count: u32) -> Result<u32, Rejection> {
        self.pieces = self.pieces.checked_sub(count).ok_or_else(|| Rejection::new("none left"))?;
        self.reserved += count;
        Ok(self.pieces)
    }

    pub(crate) fn put_back(&mut self, count: u32) {
        self.pieces += count;
        self.reserved -= count;
    }

    #[allow(clippy::panic)]
    pub(crate) async fn weigh(&mut self, r#type: String) -> f64 {
        assert!(r#type != "anvil", "on purpose");
        if r#type == "slow" {
            SCALES.notified().await;
        }
        0.5
    }

    pub fn reserved(&self) -> u32 {
        self.reserved
    }
}

/// What something slow waits for.
static SCALES: Notify = Notify::const_new();

/// An order of several shelves: all of it, or nothing.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Basket {
    story: Vec<String>,
}

#[entity(name = "basket")]
impl Basket {
    pub fn place(&mut self, ctx: &mut Context, shelves: Vec<String>) {
        let questions = shelves.iter().map(|shelf| Shelf::of(shelf).reserve(1));
        let then = Self::of(ctx.key()).on_reserved(shelves.clone());
        ctx.ask_all(questions, then.within(Duration::from_secs(60)));
    }

    pub(crate) fn on_reserved(
        &mut self,
        ctx: &mut Context,
        answers: Vec<Answer<u32>>,
        shelves: Vec<String>,
    ) {
        if answers.iter().all(Result::is_ok) {
            return self.story.push("reserved".into());
        }
        for (answer, shelf) in answers.iter().zip(&shelves) {
            match answer {
                Ok(_) => ctx.signal(Shelf::of(shelf).put_back(1)),
                Err(Failure::Rejected(no)) => self.story.push(format!("{shelf}: {no}")),
                Err(failure) => self.story.push(format!("{shelf}: {failure}")),
            }
        }
    }

    pub fn weigh(&mut self, ctx: &mut Context, what: String) {
        ctx.ask(Shelf::of(&what).weigh(what), Self::of(ctx.key()).on_weight());
    }

    pub(crate) fn on_weight(&mut self, ctx: &mut Context, answer: Answer<f64>) {
        let asked_by = ctx.caller().unwrap_or("nobody").to_owned();
        self.story.push(match answer {
            Ok(weight) => format!("{weight} kg, for {asked_by}"),
            Err(failure) => format!("{failure}, for {asked_by}"),
        });
    }

    pub fn forget(&mut self, ctx: &mut Context) {
        ctx.delete();
    }

    pub fn story(&self) -> Vec<String> {
        self.story.clone()
    }
}

async fn start(world: &World) -> Node {
    let store = world.disk.open().expect("readable");
    let builder = Node::builder().store(store).config(world.config.clone());
    let builder = builder.clock(world.clock.clone()).entity::<Shelf>().entity::<Basket>();
    builder.start().await.expect("starts")
}

async fn expect_story(node: &Node, key: &str, expected: &[&str]) {
    let told = async || node.entity::<Basket>(key).story().await.expect("a query") == expected;
    until_true(&format!("{key} tells {expected:?}"), told).await;
}

async fn letters(node: &Node) -> Vec<Cause> {
    let letters = node.dead_letters(&DeadLetterFilter::default(), None, 10).await;
    letters.expect("readable").rows.iter().map(|letter| letter.cause).collect()
}

#[tokio::test]
async fn an_order_asks_many_and_makes_up_for_what_it_got_in_vain() {
    let world = World::new();
    let node = start(&world).await;
    node.entity::<Shelf>("bolts").fill(1).await.expect("applied");
    node.entity::<Shelf>("nuts").fill(5).await.expect("applied");
    let both = || vec!["bolts".to_owned(), "nuts".to_owned()];
    node.entity::<Basket>("1").place(both()).await.expect("applied");
    expect_story(&node, "1", &["reserved"]).await;
    node.entity::<Basket>("2").place(both()).await.expect("applied");
    expect_story(&node, "2", &["bolts: none left"]).await;
    let put_back = async || node.entity::<Shelf>("nuts").reserved().await.expect("a query") == 1;
    until_true("the second one's nuts are back", put_back).await;
    assert!(letters(&node).await.is_empty(), "a no that came back is no dead letter");
    assert!(world.disk.rows(Table::Reminders).is_empty(), "no timeout is left");
    node.abort().await;
}

#[tokio::test]
async fn results_failures_and_callers_come_back_over_http_and_a_crash() {
    let world = World::new();
    let node = start(&world).await;
    let (url, served) = serve(node.router()).await;
    let client = Client::new(&url).expect("a URL");
    client.entity::<Basket>("1").weigh("feather".into()).await.expect("applied");
    expect_story(&node, "1", &["0.5 kg, for nobody"]).await;
    let weigh = node.entity::<Basket>("2").weigh("anvil".into()).caller("alice");
    weigh.await.expect("applied");
    until_true("the question was tried", async || !world.disk.rows(Table::Inbox).is_empty()).await;
    served.abort();
    node.abort().await;

    world.disk.crash();
    let node = start(&world).await;
    for _ in 0..20 {
        world.advance(60);
        tokio::task::yield_now().await;
    }
    let answered = async || {
        world.advance(60);
        let story = node.entity::<Basket>("2").story().await.expect("a query");
        story.len() == 1 && story[0].starts_with("failed: ") && story[0].ends_with("for alice")
    };
    until_true("the failure has come back", answered).await;
    assert_eq!(letters(&node).await, [Cause::Failure], "and is a dead letter too");
    node.abort().await;
}

#[tokio::test]
async fn an_answer_to_a_deleted_entity_is_a_dead_letter_and_nothing_of_its_next_generation() {
    let world = World::new();
    let node = start(&world).await;
    node.entity::<Basket>("1").weigh("slow".into()).await.expect("applied");
    node.entity::<Basket>("1").forget().await.expect("applied");
    SCALES.notify_one();
    let orphan = async || letters(&node).await == [Cause::Orphan];
    until_true("the answer has arrived", orphan).await;
    expect_story(&node, "1", &[]).await;
    node.abort().await;
}
