//! Hand-off between the workers and the Kafka threads: lock-free rings of batches, the wake-up that
//! goes with them, and the credit that bounds what is under way.
//!
//! A batch is filled by one thread, handed over whole, emptied by the other and handed back, so
//! that in the steady state nothing is allocated. A thread that sleeps says so first; the other
//! wakes it once for a batch, and not at all while it is awake.

mod credit;
mod delivered;
mod downlink;
mod uplink;
mod wake;

pub use credit::{Credit, MESSAGE_OVERHEAD_BYTES, Mark};
pub use delivered::{DELIVERY_PARTS, Delivered, Parts};
pub use downlink::{
    Command, DownlinkBatch, DownlinkReceiver, DownlinkSender, Receipt, Return, downlink,
};
pub use uplink::{BatchPlace, Came, UplinkBatch, UplinkReceiver, UplinkSender, uplink};
pub use wake::Wake;
