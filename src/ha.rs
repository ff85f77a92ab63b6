//! The decision core: `decide(&Observation, &Memory) -> Decision`. Pure: no I/O, no clock, no randomness, no async, no logs.
//!
//! It looks at the whole picture each time (level-triggered) and names ONE step. The agent carries the step out, observes again and
//! asks again, until the step is [`Step::Rest`]; that is one *turn*. Every decision names its reason ([`Why`]); `why` renders it once
//! for log, API and history. The same code runs in production and in the simulator.

pub mod decision;
pub mod observation;

pub use decision::{Decision, Step, Why};
pub use observation::{Memory, Observation};
