//! From this relay's partition of the downlink to the workers' rings.
//!
//! | module | what |
//! |---|---|
//! | `consumer` | the thread: replies to the worker of their connection; commits what is settled |
//! | `place` | where a run begins to read, and goes on if the log is not what it was |

mod consumer;
pub(crate) mod place;

pub use consumer::{Consumer, ConsumerError, ConsumerStats};
pub use place::Break;
