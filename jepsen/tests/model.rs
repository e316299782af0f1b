//! The exhaustive model within small bounds, and with rules broken.

use smalti_jepsen::model::{Bounds, Broken, Outcome, Search, explore};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(300);

fn bounds(data: u8, parity: u8, ops: &[&str]) -> Bounds {
    let ops = ops.iter().map(|text| text.parse().expect("a plan")).collect();
    Bounds { ops, ..Bounds::new(data, parity) }
}

fn must_hold(bounds: &Bounds) -> Outcome {
    let outcome = explore(bounds, Search::Depth, 2, LIMIT);
    let failures: String =
        outcome.failures.iter().map(|(property, why)| format!("{property}\n{why}\n")).collect();
    assert!(
        outcome.complete && outcome.failures.is_empty(),
        "cargo run --release -p smalti-jepsen --bin model -- {bounds}\n{failures}"
    );
    outcome
}

/// The way to where the property does not hold.
fn must_fail(bounds: &Bounds, property: &str) -> String {
    let outcome = explore(bounds, Search::Breadth, 2, LIMIT);
    outcome.failures.get(property).cloned().unwrap_or_else(|| {
        panic!("cargo run --release -p smalti-jepsen --bin model -- {bounds}: nothing was found")
    })
}

#[test]
fn without_faults_every_order_of_steps_is_fine() {
    must_hold(&bounds(1, 1, &["w0", "w0", "r0"]));
    must_hold(&Bounds { fresh: true, ..bounds(2, 1, &["w0", "w01"]) });
}

#[test]
fn a_session_may_break_at_any_step() {
    must_hold(&Bounds { drops: 1, ..bounds(1, 1, &["w0", "r0"]) });
}

#[test]
fn a_process_may_die_at_any_step() {
    must_hold(&Bounds { crashes: 1, ..bounds(1, 1, &["w0"]) });
}

#[test]
fn another_coordinator_may_be_elected_at_any_step() {
    must_hold(&Bounds { elections: 1, ..bounds(1, 1, &["w0"]) });
}

#[test]
fn the_same_bounds_have_the_same_states() {
    let bounds = Bounds { drops: 1, ..bounds(1, 1, &["w0"]) };
    let (first, second) = (must_hold(&bounds), explore(&bounds, Search::Breadth, 1, LIMIT));
    assert_eq!((first.unique, first.states), (second.unique, second.states));
}

#[test]
fn an_answer_before_the_sync_is_found() {
    let broken = Some(Broken::AnswerBeforeSync);
    let bounds = Bounds { broken, ..bounds(1, 1, &["w0"]) };
    let way = must_fail(&bounds, "nothing acknowledged is lost");
    assert!(way.contains("takes a frame") && way.contains("was acknowledged"), "{way}");
}

#[test]
fn a_promise_that_is_not_kept_is_found() {
    let broken = Some(Broken::PromiseNotKept);
    let bounds = Bounds { broken, elections: 1, ..bounds(1, 1, &["w0"]) };
    let way = must_fail(&bounds, "invariants");
    assert!(way.contains("is elected") && way.contains("I4"), "{way}");
}
