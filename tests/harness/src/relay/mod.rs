//! Relays that run: one, several, with and without a gateway, and with everything around them.

pub mod cluster;
pub mod dead_letters;
pub mod direct;
pub mod echo_service;
pub mod fleet;
pub mod instance;
pub mod judged_run;
