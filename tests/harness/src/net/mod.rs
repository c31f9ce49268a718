//! Hosts, and what goes between them.

pub mod frames;
pub mod netns;
pub mod ordinary;
pub mod pktgen;
pub mod raw_socket;
pub mod tcp;
pub mod tproxy;

use std::net::{Ipv4Addr, TcpListener};

use anyhow::Result;

/// A port that nobody listens at now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?.local_addr()?.port())
}
