//! The path between clients and servers: who is associated, what waits, what a kill or a stop may cost.

mod absence;
mod associations;
mod backlog;
mod deadletter;
mod disconnect;
mod endings;
mod gateways;
mod graceful_stop;
mod held;
mod kills;
mod late;
mod ledger;
mod ledger_truth;
mod onward;
mod panics;
mod path;
mod rebalance;
mod registration;
mod reload;
mod shared_port;
mod simulation;
mod supervised;
mod transparent;
mod tune;
mod undisturbed;
mod vanished;
