//! Clusters in one process, on one thread, in time that a test moves: everything that goes wrong is
//! decided by a seed, and happens again with it.

mod run;
mod workflows;

use run::{Run, Settings};
use stead_tests::random::seeds;

#[test]
fn a_cluster_without_faults_applies_everything_once_and_in_order() {
    for seed in seeds(0..3) {
        Run::new(seed, Settings { faults: 0, ..Settings::default() }).finish();
    }
}

#[test]
fn nothing_is_lost_doubled_or_reordered_whatever_goes_wrong() {
    for seed in seeds(100..300) {
        Run::new(seed, Settings::default()).finish();
    }
}

#[test]
fn workflows_come_to_what_they_must_whatever_goes_wrong() {
    let settings = Settings { clients: 1, workflows: 4, ..Settings::default() };
    for seed in seeds(400..460) {
        Run::new(seed, settings).finish();
    }
}

#[test]
fn no_caller_notices_that_nodes_leave() {
    let settings = Settings {
        clients: 12,
        requests: 300,
        entities: 4,
        faults: 6,
        only_leaves: true,
        pause: 30,
        ..Settings::default()
    };
    for seed in seeds(200..230) {
        Run::new(seed, settings).finish();
    }
}

#[test]
fn a_seed_decides_everything() {
    for seed in seeds(7..9) {
        let settings = Settings { faults: 12, ..Settings::default() };
        let traces = [0, 1].map(|_| Run::new(seed, settings).finish());
        assert!(traces[0].len() > 100, "something happened");
        for (number, (one, other)) in traces[0].iter().zip(&traces[1]).enumerate() {
            assert_eq!(one, other, "line {number} of seed {seed}");
        }
    }
}
