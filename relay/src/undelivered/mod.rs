//! What could not be delivered: replies whose clients are away or slow, messages that Kafka refused.
//!
//! | module | what |
//! |---|---|
//! | `intake` | where consumer and producer hand it in, and hear when it is kept |
//! | `keeper`, `kept` | the thread that keeps it, and for whom |
//! | `outbox` | what it writes, and writes again |
//! | `deadletter`, `abandoned` | records for people: what, whose, why; of a whole partition |
//! | `held`, `delivery`, `turns`, `presence` | replies that wait for clients who are away, and come when they are back |
//! | `backlog`, `reread`, `note`, `arrivals` | replies that stay in the log until a slow client has read on |
//! | `stats` | what is counted |

pub(crate) mod abandoned;
pub(crate) mod arrivals;
pub(crate) mod backlog;
mod clientele;
pub(crate) mod deadletter;
pub(crate) mod delivery;
pub(crate) mod held;
pub(crate) mod intake;
pub(crate) mod keeper;
mod limits;
mod lines;
pub(crate) mod note;
pub(crate) mod outbox;
pub(crate) mod presence;
pub(crate) mod reread;
pub(crate) mod stats;
pub(crate) mod turns;

pub use abandoned::{BuryError, Undertaker};
pub use arrivals::Arrivals;
pub use clientele::Clientele;
pub use deadletter::{CUT_BYTES, LetterCounts, Reason, letter};
pub use held::HeldRefusal;
pub use intake::Intake;
pub use keeper::{Keeper, KeeperParts};
pub use limits::HoldLimits;
pub use note::postponed_before;
pub use presence::Presence;
pub use stats::{HeldStats, KeeperStats};
