//! A chat room: its messages are a log, its members a map, each entry a row of its own.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead::{Context, Layout, Log, Map, Rejection, Timestamp, entity};

/// The most messages that a room keeps, and for how long.
const MESSAGES_MAX: u64 = 100_000;
const KEPT: Duration = Duration::from_secs(30 * 24 * 3_600);
/// The most bytes of a message.
const TEXT_BYTES_MAX: usize = 2_000;
/// How many messages a page has.
const PAGE: u64 = 50;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Message {
    pub from: String,
    pub text: String,
}

/// Somebody who has said something in the room.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Member {
    pub messages: u64,
    pub last_at: Option<Timestamp>,
}

/// A message with its place in the room.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Said {
    pub index: u64,
    pub at: Timestamp,
    pub from: String,
    pub text: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Room {
    pub messages: Log<Message>,
    pub members: Map<String, Member>,
}

#[entity(name = "room")]
impl Room {
    /// Says something to the room; returns the place of the message.
    pub fn say(&mut self, ctx: &Context, from: String, text: String) -> Result<u64, Rejection> {
        let (from, text) = (from.trim().to_owned(), text.trim().to_owned());
        if from.is_empty() || from.len() > 64 || text.is_empty() || text.len() > TEXT_BYTES_MAX {
            return Err(Rejection::new("a name has 1 to 64 bytes, and a message 1 to 2,000"));
        }
        let mut member = self.members.get(&from).cloned().unwrap_or_default();
        (member.messages, member.last_at) = (member.messages + 1, Some(ctx.now()));
        self.members.insert(from.clone(), member);
        let index = self.messages.push(ctx.now(), Message { from, text });
        self.messages.trim_to(MESSAGES_MAX);
        let oldest = ctx.now().as_micros() - KEPT.as_micros() as i64;
        self.messages.trim_before(Timestamp::from_micros(oldest));
        Ok(index)
    }

    /// A page of the messages before an index, the oldest first: older ones are read from disk.
    pub fn before(&self, index: u64) -> Vec<Said> {
        let page = self.messages.range(index.saturating_sub(PAGE)..index);
        let said = page.map(|(index, entry)| {
            let Message { from, text } = entry.value.clone();
            Said { index, at: entry.at, from, text }
        });
        said.collect()
    }

    /// The member of a name.
    pub fn member(&self, name: String) -> Option<Member> {
        self.members.get(&name).cloned()
    }
}

#[cfg(test)]
mod tests {
    use stead::testing::NodeTest;

    use super::*;

    #[test]
    fn nothing_that_was_said_is_lost_wherever_the_process_ends() {
        NodeTest::new().entity::<Room>().crash_everywhere(async |node| {
            let room = node.entity::<Room>("lobby");
            for (index, from) in ["ann", "bob", "ann"].into_iter().enumerate() {
                let said = room.say(from.into(), format!("message {index}"));
                said.idempotency_key(format!("{index}")).await.unwrap();
            }
            assert!(room.say("bob".into(), " ".into()).await.is_err());
            let page: Vec<_> = room.before(3).await.unwrap();
            let texts: Vec<_> = page.iter().map(|said| &*said.text).collect();
            assert_eq!(texts, ["message 0", "message 1", "message 2"]);
            assert_eq!(room.member("ann".into()).await.unwrap().unwrap().messages, 2);
        });
    }

    #[test]
    fn what_is_old_is_forgotten() {
        NodeTest::new().entity::<Room>().run(async |node| {
            let room = node.entity::<Room>("lobby");
            for index in 0..120 {
                room.say("ann".into(), format!("{index}")).await.unwrap();
            }
            node.advance(KEPT + Duration::from_secs(1)).await;
            assert_eq!(room.say("bob".into(), "anybody?".into()).await.unwrap(), 120);
            let state = node.state::<Room>("lobby").await.unwrap();
            assert_eq!((state.messages.indexes(), state.members.len()), (120..121, 2));
        });
    }
}
