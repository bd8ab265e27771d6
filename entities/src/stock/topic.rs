//! A topic: what is published reaches every entity that has subscribed, once.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
};

use schemars::JsonSchema;
use serde_json::Value;

use crate::{
    Context, Deserialize, EntityId, Json, Layout, Operation, Reference, Rejection, Serialize,
    entity,
};

/// The most subscribers of one topic.
const SUBSCRIBERS_MAX: usize = 10_000;
/// The most messages that are on their way at one time.
const UNDER_WAY_MAX: usize = 16;
/// The most bytes of a message, as JSON.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// The most subscribers, and bytes, that one turn sends to.
const SENT_MAX: usize = 500;
const SENT_BYTES_MAX: usize = 2 << 20;

/// A list of entities that hear what is published.
///
/// An entity subscribes by [`Context::subscribe`], and each message is one durable signal to it: exactly once, and in
/// the order in which they were published. Who has subscribed before a message was published hears it, unless it has
/// unsubscribed before its turn comes. A topic has at most 10,000 subscribers; it tells 500 of them in one turn, and
/// goes on in the next.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Topic {
    /// How many messages were published.
    published: u64,
    /// The subscribers by `type/key operation`.
    subscribers: BTreeMap<String, Subscriber>,
    under_way: VecDeque<UnderWay>,
}

/// An operation of an entity that takes messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Subscriber {
    /// The entity, as `type/key`.
    pub entity: String,
    /// The operation, which takes a [`Published`].
    pub operation: String,
    /// How many messages had been published when it subscribed.
    #[serde(default)]
    since: u64,
}

impl Subscriber {
    /// The operation of an entity.
    pub(crate) fn new(entity: &EntityId, operation: &str) -> Self {
        Self { entity: entity.to_string(), operation: operation.to_owned(), since: 0 }
    }

    fn name(&self) -> String {
        format!("{} {}", self.entity, self.operation)
    }
}

/// A message that some subscribers have, and others not yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Layout)]
struct UnderWay {
    number: u64,
    message: Json<Value>,
    /// The last one that was told.
    told: Option<String>,
}

/// A message as it reaches a subscriber, whose operation takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Published<T> {
    /// The key of the topic.
    pub topic: String,
    /// Which message of the topic it is, from 1.
    pub number: u64,
    /// The message.
    pub message: T,
}

/// Tells its subscribers, which are entities, what is published.
#[entity(name = "topic")]
impl Topic {
    /// Publishes a message, any JSON, and returns its number.
    pub fn publish(&mut self, ctx: &mut Context, message: Value) -> Result<u64, Rejection> {
        if message.to_string().len() > MESSAGE_BYTES_MAX {
            let rule = format!("a message has at most {MESSAGE_BYTES_MAX} bytes");
            return Err(Rejection::new(rule).with_code("too-large"));
        }
        if self.under_way.len() >= UNDER_WAY_MAX {
            let rule = format!("{UNDER_WAY_MAX} messages are on their way: try again later");
            return Err(Rejection::new(rule).with_code("busy"));
        }
        self.published += 1;
        let message = UnderWay { number: self.published, message: Json(message), told: None };
        self.under_way.push_back(message);
        // Those before it come first. It goes on here too, should nobody else do.
        self.tell(ctx);
        Ok(self.published)
    }

    /// Adds a subscriber; one that is there stays.
    pub(crate) fn subscribe(&mut self, subscriber: Subscriber) -> Result<(), Rejection> {
        let name = subscriber.name();
        if self.subscribers.len() >= SUBSCRIBERS_MAX && !self.subscribers.contains_key(&name) {
            let rule = format!("a topic has at most {SUBSCRIBERS_MAX} subscribers");
            return Err(Rejection::new(rule).with_code("full"));
        }
        let subscriber = Subscriber { since: self.published, ..subscriber };
        self.subscribers.entry(name).or_insert(subscriber);
        Ok(())
    }

    /// Removes a subscriber.
    pub(crate) fn unsubscribe(&mut self, subscriber: Subscriber) {
        self.subscribers.remove(&subscriber.name());
    }

    /// Goes on with what is on its way.
    pub(crate) fn go_on(&mut self, ctx: &mut Context) {
        self.tell(ctx);
    }

    /// The subscribers, by their names.
    pub fn subscribers(&self) -> Vec<Subscriber> {
        self.subscribers.values().cloned().collect()
    }

    /// How many messages were published.
    pub fn published(&self) -> u64 {
        self.published
    }

    /// Tells the next subscribers of the first message, and of those behind it.
    fn tell(&mut self, ctx: &mut Context) {
        let (mut count, mut bytes) = (0, 0);
        while let Some(first) = self.under_way.front_mut() {
            let published = Published {
                topic: ctx.key().to_owned(),
                number: first.number,
                message: first.message.0.clone(),
            };
            let size = published.message.to_string().len();
            let from = first.told.clone().map_or(Bound::Unbounded, Bound::Excluded);
            for (name, subscriber) in self.subscribers.range((from, Bound::Unbounded)) {
                if subscriber.since >= first.number {
                    continue;
                }
                if count >= SENT_MAX || bytes + size > SENT_BYTES_MAX {
                    return ctx.signal(Self::of(ctx.key()).go_on());
                }
                (count, bytes) = (count + 1, bytes + size);
                first.told = Some(name.clone());
                if let Ok(entity) = EntityId::parse(&subscriber.entity) {
                    let reference = Reference::new(entity.entity_type(), entity.key());
                    let heard: Operation<()> =
                        reference.operation(subscriber.operation.clone(), Some(&published));
                    ctx.signal(heard);
                }
            }
            self.under_way.pop_front();
        }
    }
}

#[cfg(test)]
#[allow(unreachable_pub, reason = "operations of an entity are `pub`")]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::testing::{Driver, Drivers};

    #[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
    struct Reader {
        heard: Vec<(u64, String)>,
    }

    #[entity(name = "reader")]
    impl Reader {
        pub fn join(&mut self, ctx: &mut Context, topic: String) {
            ctx.subscribe(&topic, "hear");
        }

        pub fn part(&mut self, ctx: &mut Context, topic: String) {
            ctx.unsubscribe(&topic, "hear");
        }

        pub(crate) fn hear(&mut self, news: Published<String>) {
            self.heard.push((news.number, news.message));
        }
    }

    #[test]
    fn each_subscriber_hears_each_message_once_and_in_order() {
        let mut world = Drivers::new().entity::<Topic>().entity::<Reader>();
        // More than one turn can tell.
        for number in 0..1_200 {
            world.apply(Reader::of(format!("r{number:04}")).join("news".into())).expect("joined");
        }
        world.apply(Reader::of("r0007").join("news".into())).expect("joined again");
        let publish = |text: &str| Topic::of("news").publish(json!(text));
        assert_eq!(world.apply(publish("one")).expect("published"), 1);
        assert_eq!(world.apply(publish("two")).expect("published"), 2);
        world.apply(Reader::of("late").join("news".into())).expect("joined");
        world.apply(Reader::of("r0009").part("news".into())).expect("parted");
        assert_eq!(world.apply(publish("three")).expect("published"), 3);
        world.advance(Duration::from_secs(1)).expect("settled");
        let expected = |count: usize| {
            let all = [(1, "one".to_owned()), (2, "two".into()), (3, "three".into())];
            all[..count].to_vec()
        };
        assert_eq!(world.state::<Reader>("r0000").heard, expected(3));
        assert_eq!(world.state::<Reader>("r0007").heard, expected(3));
        assert_eq!(world.state::<Reader>("r1199").heard, expected(3));
        assert_eq!(world.state::<Reader>("r0009").heard, expected(2), "it has parted");
        assert_eq!(world.state::<Reader>("late").heard, expected(3)[2..], "it came later");
    }

    #[test]
    fn what_is_too_much_is_refused() {
        let mut topic = Driver::<Topic>::new("news");
        let long = "x".repeat(MESSAGE_BYTES_MAX);
        let error = topic.apply(Topic::of("news").publish(json!(long))).expect_err("too long");
        assert_eq!(error.rejection().and_then(Rejection::code), Some("too-large"));
        // More than twice as many as one turn tells: messages come faster than they go out.
        for number in 0..2 * SENT_MAX + 100 {
            let id = EntityId::new("reader", &number.to_string()).expect("valid");
            topic.apply(Topic::of("news").subscribe(Subscriber::new(&id, "hear"))).expect("joined");
        }
        let (mut published, mut refused) = (0, None);
        while refused.is_none() && published < 100 {
            match topic.apply(Topic::of("news").publish(json!(1))) {
                Ok(_) => published += 1,
                Err(error) => refused = Some(error),
            }
        }
        let refused = refused.expect("it is busy at last");
        assert_eq!(refused.rejection().and_then(Rejection::code), Some("busy"));
        assert_eq!(topic.query(Topic::of("news").published()).expect("a query"), published);
    }
}
