//! The gateway: its programs, what loads them, and what they do to the packets of a host.

mod cli;
mod corpus;
mod fail_open;
mod firewall;
mod firewall_guide;
mod flood;
mod frames;
mod fuzz_packet;
mod hostile;
mod hosts;
mod lifecycle;
mod losses;
mod namespace;
mod path_mtu;
mod places;
mod reattach;
mod refusals;
mod replace;
mod reverse_path;
mod rules;
mod topology;
mod trace;
mod unanswered;
mod verdicts;
mod zones;
