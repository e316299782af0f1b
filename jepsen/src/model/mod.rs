//! The exhaustive model: everything that can happen in a very small world, with the code that
//! serves volumes in it.
//!
//! One row, two writes and a read, a few faults; every order of every step is tried, with
//! `stateright` keeping count of the states. Nothing of the protocol is told a second time here:
//! coordinators and store sides are the pure cores of `rowcommit`, configuration is `apply` of the
//! map, disks are the in-memory store. The model is what stands around them: sessions, processes,
//! time, and clients (`step`, `perform`).
//!
//! What a step of time is: see `perform::PASS`; what makes two states one: see `state`.

mod bounds;
mod check;
mod clients;
mod found;
mod perform;
mod run;
mod state;
mod step;

pub use bounds::{Bounds, Broken, Plan};
pub use run::{Outcome, Search, explore};

use smalti_rowcommit::coordinator::Phase;
use smalti_rowcommit::msg::{Answer, Ask, Frame, Reply};
use state::{Bad, State};
use stateright::Property;
use std::sync::Arc;
use step::Step;

/// One bounded world.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    bounds: Bounds,
}

impl stateright::Model for Model {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![self.beginning().expect("without faults every volume can be taken over")]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        self.list(state, steps);
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        let done = self.perform(&mut state, &step).and_then(|()| {
            state.skip_maps();
            state.purge();
            if self.is_quiet(&state) { self.check_rest(&state) } else { Ok(()) }
        });
        if let Err(bad) = done {
            state.bad = Some(Arc::new(bad));
        }
        state.seal();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always("linearizable", |_, state: &State| {
                !matches!(state.bad.as_deref(), Some(Bad::History(_)))
            }),
            Property::always("nothing acknowledged is lost", |_, state: &State| {
                !matches!(state.bad.as_deref(), Some(Bad::Lost(_)))
            }),
            Property::always("invariants", |_, state: &State| {
                !matches!(state.bad.as_deref(), Some(Bad::Invariant(_)))
            }),
            Property::sometimes("every write is acknowledged", |model: &Self, state| {
                model.bounds.writes().all(|op| Self::acknowledged(state, op))
            }),
        ];
        if (1..self.bounds.ops.len()).contains(&self.bounds.writes().count()) {
            all.push(Property::sometimes("a read sees what was written", |_, state: &State| {
                state.clients.saw_something()
            }));
        }
        if self.bounds.elections > 0 {
            all.extend([
                Property::sometimes("a takeover rolls forward", |_, state| {
                    asks(state, Phase::TakingOver, |ask| matches!(ask, Ask::Install { .. }))
                }),
                Property::sometimes("a promise waits for a lease", |_, state: &State| {
                    let late =
                        |(_, answer): &(u64, Answer)| matches!(answer, Answer::PromiseLater(_));
                    let all = state.sessions.iter().flatten();
                    all.flat_map(|s| &s.replies).any(|reply: &Reply| reply.answers.iter().any(late))
                }),
            ]);
        }
        // What one slot has of a smaller write can be constructed with the slots it left alone.
        let whole = |op: usize| self.bounds.ops[op].slots.len() == usize::from(self.bounds.data);
        let back = self.bounds.data > 1 && self.bounds.writes().any(whole);
        if self.bounds.elections > 0 && back {
            all.push(Property::sometimes("a takeover rolls back", |_, state| {
                asks(state, Phase::TakingOver, |ask| matches!(ask, Ask::Abort { .. }))
            }));
        }
        if self.bounds.catchup {
            all.push(Property::sometimes("a slot grows in", |_, state: &State| {
                let insync = |map: &smalti_map::ClusterMap| state::volume(map).groups[0].insync;
                state.maps.windows(2).any(|two| insync(&two[1]).len() > insync(&two[0]).len())
            }));
        }
        all
    }

    fn format_action(&self, step: &Step) -> String {
        step.to_string()
    }
}

#[cfg(test)]
mod tests;

/// Whether a coordinator in this phase has such a request under way.
fn asks(state: &State, phase: Phase, wanted: fn(&Ask) -> bool) -> bool {
    let mut sides = state.coordinators.iter().zip(&state.sessions);
    sides.any(|(side, sessions)| {
        let frames = || sessions.iter().flat_map(|session| &session.frames);
        side.as_ref().is_some_and(|side| side.core.phase() == phase)
            && frames().any(|frame: &Frame| frame.requests.iter().any(|r| wanted(&r.ask)))
    })
}
