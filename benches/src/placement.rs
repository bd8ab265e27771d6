//! The ring: how long does a change of the members keep a node?

use std::time::Instant;

use stead::placement::ring::{Member, Ring};

use crate::table::{Figure, Table, median};

const NODES: usize = 1_000;
const PARTITIONS: u16 = 4_096;
const MILLIS_MAX: f64 = 20.0;

pub fn measure(table: &mut Table, rounds: usize) {
    let member = |n| Member { name: format!("node-{n}").into(), weight: 1 };
    let members: Vec<_> = (0..NODES).map(member).collect();
    let time = |seed| {
        let started = Instant::now();
        let ring = Ring::new((seed, 0), PARTITIONS, &members);
        assert_eq!(ring.members().len(), NODES);
        started.elapsed().as_secs_f64() * 1e3
    };
    let mut times: Vec<_> = (0..10 * rounds as u64).map(time).collect();
    let millis = median(&mut times);
    table.add(Figure {
        name: "placement, 1,000 nodes, 4,096 partitions, p50",
        figure: format!("{millis:.1} ms"),
        ceiling: "none".into(),
        ratio: "-".into(),
        demanded: "at most 20 ms",
        is_met: millis <= MILLIS_MAX,
    });
}
