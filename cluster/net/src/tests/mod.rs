//! Two endpoints on loopback, and what may and may not pass between them.

#![allow(clippy::print_stdout, reason = "seeds and figures of the tests")]

mod bulk;
mod calls;
mod hostile;
mod renewal;
mod sessions;
mod support;
mod trust;
