//! Kafka as it is found: other settings, other clocks, other rights, out of order. Most start their own.

mod broker_outage;
mod clocks;
mod offsets;
mod rights;
mod rolling;
mod secured;
mod topics;
mod unclean;
mod unreadable;
