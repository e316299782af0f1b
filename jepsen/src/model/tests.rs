//! What the checker relies on.

use super::{Bounds, Model, Plan};
use stateright::Model as _;
use std::collections::BTreeSet;

/// States that are looked at.
const STATES: usize = 5000;

/// States share what a step leaves alone, and a step that wrote to it would change the state
/// before, and all that come of that one by other steps.
#[test]
fn a_step_leaves_the_state_before_as_it_was() {
    let ops = vec![Plan { write: true, slots: vec![0] }];
    let model = Model { bounds: Bounds { ops, crashes: 1, catchup: true, ..Bounds::new(1, 1) } };
    let mut work = model.init_states();
    let mut seen = BTreeSet::new();
    while let Some(state) = work.pop().filter(|_| seen.len() < STATES) {
        if !seen.insert(state.digest) {
            continue;
        }
        let mut steps = Vec::new();
        model.actions(&state, &mut steps);
        for step in steps {
            let what = step.to_string();
            work.extend(model.next_state(&state, step));
            let mut again = state.clone();
            again.seal();
            assert_eq!(again.digest, state.digest, "{what}");
        }
    }
}
