//! The metrics of a running relay: what they say, what a scrape costs, and what Prometheus makes of them.

mod exposition;
mod faults;
mod prometheus;
mod scrape;
mod size;
