//! Entities whose answers leave before they are flushed: a power cut takes the end of what they did, never a part
//! of a turn, and never anything that a durable entity knows of.

use stead::{
    policy::Durability,
    testing::{CommitFaults, NodeTest, TestNode},
};

use super::*;

/// The readings of a device, of which the last moments may be lost.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Sensor {
    readings: Vec<u32>,
}

#[entity(name = "sensor", durability = "buffered")]
impl Sensor {
    pub fn note(&mut self, reading: u32) -> usize {
        self.readings.push(reading);
        self.readings.len()
    }

    /// Notes a reading here and at another one.
    pub fn note_both(&mut self, ctx: &mut Context, other: String, reading: u32) {
        self.readings.push(reading);
        ctx.signal(Self::of(other).note(reading));
    }

    /// Notes a reading, and tells somebody who must not lose it.
    pub fn report(&mut self, ctx: &mut Context, reading: u32) {
        self.readings.push(reading);
        ctx.signal(Ledger::of("all").add(reading));
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
struct Ledger {
    sum: u32,
}

#[entity(name = "ledger")]
impl Ledger {
    pub fn add(&mut self, amount: u32) -> u32 {
        self.sum += amount;
        self.sum
    }
}

fn sensors() -> NodeTest {
    NodeTest::new().entity::<Sensor>().entity::<Ledger>()
}

async fn readings(node: &TestNode, key: &str) -> Vec<u32> {
    node.state::<Sensor>(key).await.expect("read").readings
}

async fn cut(node: &TestNode) {
    node.cut_power().await;
    node.restart().await;
}

#[test]
fn a_power_cut_takes_what_was_not_flushed_and_nothing_else_does() {
    sensors().run(async |node| {
        let (sensor, ledger) = (node.entity::<Sensor>("a"), node.entity::<Ledger>("all"));
        assert_eq!(sensor.note(1).await.expect("noted"), 1);
        cut(&node).await;
        assert!(readings(&node, "a").await.is_empty(), "it was answered before it was flushed");
        // The end of the process is no power cut.
        sensor.note(2).await.expect("noted");
        node.restart().await;
        assert_eq!(readings(&node, "a").await, [2]);
        // It is flushed after a while.
        sensor.note(3).await.expect("noted");
        node.advance(Duration::from_millis(150)).await;
        cut(&node).await;
        assert_eq!(readings(&node, "a").await, [2, 3]);
        // And with whatever else is.
        sensor.note(4).signal().await.expect("accepted");
        assert_eq!(readings(&node, "a").await, [2, 3, 4]);
        ledger.add(1).await.expect("added");
        cut(&node).await;
        assert_eq!(readings(&node, "a").await, [2, 3, 4]);
        // What is for a durable entity is flushed with the turn that sends it.
        sensor.report(5).await.expect("reported");
        cut(&node).await;
        node.assert_settles().await;
        assert_eq!(readings(&node, "a").await, [2, 3, 4, 5]);
        assert_eq!(node.state::<Ledger>("all").await.expect("read").sum, 6);
        // A durable entity is flushed as ever.
        assert_eq!(ledger.add(1).await.expect("added"), 7);
        cut(&node).await;
        assert_eq!(node.state::<Ledger>("all").await.expect("read").sum, 7);
        let types = node.node().await.descriptions();
        let classes: Vec<_> = types.iter().map(|known| known.durability).collect();
        assert_eq!(classes, [Durability::Durable, Durability::Buffered]);
    });
}

#[test]
fn a_power_cut_takes_the_end_of_what_was_done_and_no_part_of_a_turn() {
    for seed in 0..200_u32 {
        sensors().seed(seed.into()).run(async |node| {
            for number in 0..20 {
                let (here, there) = if number % 2 == 0 { ("a", "b") } else { ("b", "a") };
                let sensor = node.entity::<Sensor>(here);
                sensor.note_both(there.into(), number).await.expect("noted");
                // Sometimes long enough for a flush.
                let pause = (seed * 7 + number * 13) % 60;
                node.advance(Duration::from_millis(pause.into())).await;
                if number == 10 + seed % 10 {
                    break;
                }
            }
            cut(&node).await;
            node.assert_settles().await;
            // What was kept of a turn was kept of all before it, at both.
            let (a, b) = (readings(&node, "a").await, readings(&node, "b").await);
            let kept: Vec<u32> = (0..a.len() as u32).collect();
            let sorted = |mut all: Vec<u32>| {
                all.sort_unstable();
                all
            };
            assert_eq!((sorted(a), sorted(b)), (kept.clone(), kept), "seed {seed}");
        });
    }
}

#[test]
fn durable_and_buffered_entities_survive_faults_side_by_side() {
    let test = async |node: TestNode| {
        for number in 1..=10 {
            node.entity::<Sensor>("a").report(number).await.expect("reported");
            node.entity::<Sensor>("b").note(number).await.expect("noted");
        }
        node.assert_settles().await;
        assert_eq!(node.state::<Ledger>("all").await.expect("read").sum, 55);
        assert_eq!(readings(&node, "b").await, (1..=10).collect::<Vec<_>>());
    };
    sensors().crash_everywhere(test);
    sensors().faults(CommitFaults::usual()).run_seeds(0..10, test);
}
