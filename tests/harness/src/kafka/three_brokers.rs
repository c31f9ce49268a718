//! Three brokers that only one test uses, which are one cluster.

use std::path::PathBuf;
use std::thread;

use anyhow::{Context as _, Result};

use crate::kafka::OwnBroker;
use crate::net::free_port;

/// Brokers that are controllers too. Two of them are a majority.
#[derive(Debug)]
pub struct ThreeBrokers {
    nodes: Vec<OwnBroker>,
}

impl ThreeBrokers {
    /// Starts them at the same time: none serves before two have met.
    pub fn start(name: &str) -> Result<Self> {
        let mut places = Vec::new();
        for id in 1..=3 {
            places.push((id, free_port()?, free_port()?));
        }
        let voters: Vec<_> = places
            .iter()
            .map(|(id, _, controller)| format!("{id}@127.0.0.1:{controller}"))
            .collect();
        let voters = voters.join(",");
        let starting: Vec<_> = places
            .into_iter()
            .map(|place| {
                let properties = properties(place, &voters);
                let directory = directory(name, place.0);
                thread::spawn(move || {
                    let properties: Vec<&str> = properties.iter().map(String::as_str).collect();
                    OwnBroker::start_at(&directory, place.1, &properties)
                })
            })
            .collect();
        let nodes = starting
            .into_iter()
            .map(|node| node.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        Ok(Self { nodes: nodes.collect::<Result<_>>()? })
    }

    /// All addresses, for clients.
    pub fn addresses(&self) -> String {
        self.nodes.iter().map(OwnBroker::address).collect::<Vec<_>>().join(",")
    }

    /// One of them, by its number: 1, 2 or 3.
    pub fn node(&self, id: usize) -> Result<&OwnBroker> {
        self.nodes.get(id.wrapping_sub(1)).with_context(|| format!("there is no node {id}"))
    }
}

fn directory(name: &str, id: u16) -> PathBuf {
    std::env::temp_dir().join(format!("millrace-{name}-{id}-{}", std::process::id()))
}

fn properties((id, port, controller): (u16, u16, u16), voters: &str) -> Vec<String> {
    let clients = format!("CLIENTS://127.0.0.1:{port}");
    vec![
        format!("node.id={id}"),
        format!("listeners={clients},CONTROLLER://127.0.0.1:{controller}"),
        format!("controller.quorum.voters={voters}"),
        "default.replication.factor=3".to_owned(),
        "min.insync.replicas=2".to_owned(),
        "offsets.topic.replication.factor=3".to_owned(),
    ]
}
