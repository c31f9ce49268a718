//! `cargo xtask test-brokers`: runs the end-to-end tests that need most of a broker's features, with one release of
//! Kafka after the other, and with three nodes.

use std::{fs, process::ExitCode, thread};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use super::{SESSION_TIMEOUT_MS, jars, node, node::Node, node::Options as NodeOptions};
use crate::{
    build, paths, process,
    run::{environment, require_root},
    setup,
};

pub(crate) const HELP: &str = "\
Starts each cluster on 127.0.0.1, runs the tests against it, and stops it. Its data and logs stay below
target/kafka/matrix until the next run. docs/brokers.md has the results.

Changes on the host: installs what is missing (see `setup --check`), and the jars of older releases of
Kafka below target/kafka (60 MB each); otherwise as `test`. It takes a quarter of an hour.

Examples:
  cargo xtask test-brokers
  cargo xtask test-brokers 3.9.1 three-nodes
  cargo xtask test-brokers 4.0.1 --test ledger";

/// Where the tests are: a binary each, and in them a file per name.
const BINARIES: [&str; 3] = ["brokers", "delivery", "in_process"];

/// The tests to run unless some are named.
const TESTS: [&str; 7] =
    ["associations", "deadletter", "drain", "held", "ledger", "offsets", "registration"];

/// The tests to run after them on a cluster of several nodes. They damage their own nodes, and are otherwise
/// ignored.
const TESTS_WITH_OWN_NODES: [&str; 2] = ["rolling", "unclean"];

/// A cluster to test with.
struct Kind {
    name: &'static str,
    version: &'static str,
    nodes: u16,
}

const KINDS: [Kind; 5] = [
    Kind { name: "3.6.2", version: "3.6.2", nodes: 1 },
    Kind { name: "3.9.1", version: "3.9.1", nodes: 1 },
    Kind { name: "4.0.1", version: "4.0.1", nodes: 1 },
    Kind { name: "4.3.1", version: jars::VERSION, nodes: 1 },
    Kind { name: "three-nodes", version: jars::VERSION, nodes: 3 },
];

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Any of 3.6.2, 3.9.1, 4.0.1, 4.3.1, three-nodes [default: all]
    #[arg(value_name = "CLUSTER")]
    clusters: Vec<String>,
    /// A file of the folders below tests/e2e/tests, as `ledger`; may be given several times
    #[arg(long = "test", value_name = "NAME")]
    tests: Vec<String>,
}

/// Runs all tests. Fails if one of them has failed.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let known = |name: &&String| KINDS.iter().any(|kind| kind.name == **name);
    if let Some(name) = options.clusters.iter().find(|name| !known(name)) {
        let names: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
        bail!("there is no cluster `{name}`; known clusters: {}", names.join(", "));
    }
    let known_tests = all_tests();
    // One that is unknown would filter out everything, and pass.
    if let Some(name) = options.tests.iter().find(|name| !known_tests.contains(name)) {
        bail!("there is no test `{name}`; known tests: {}", known_tests.join(", "));
    }
    require_root()?;
    setup::ensure(&setup::USUAL)?;
    build::all()?;
    let is_wanted = |kind: &&Kind| {
        options.clusters.is_empty() || options.clusters.iter().any(|name| name == kind.name)
    };
    let mut results = Vec::new();
    for kind in KINDS.iter().filter(is_wanted) {
        let jars = paths::kafka_jars(kind.version);
        if !jars::present(&jars, kind.version) {
            jars::fetch(&jars, kind.version)?;
        }
        process::say(format!("Kafka {}:", kind.name));
        let cluster = kind.start()?;
        let brokers = cluster.brokers();
        let (own, shared) = options.tests(kind);
        let passed = test(&brokers, &shared, &[]);
        cluster.stop()?;
        let passed = passed? & test(&brokers, &own, &["--ignored"])?;
        results.push((kind.name, passed));
    }
    for (name, passed) in &results {
        println!("Kafka {name}: {}", if *passed { "passed" } else { "FAILED" });
    }
    let all = results.iter().all(|(_, passed)| *passed);
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Options {
    /// The tests that start their own nodes, and those that share the cluster.
    fn tests(&self, kind: &Kind) -> (Vec<&str>, Vec<&str>) {
        let mut tests: Vec<_> = self.tests.iter().map(String::as_str).collect();
        if tests.is_empty() {
            tests.extend(TESTS);
            tests.extend(TESTS_WITH_OWN_NODES.iter().filter(|_| kind.nodes > 1));
        }
        tests.into_iter().partition(|test| TESTS_WITH_OWN_NODES.contains(test))
    }
}

/// The names of all tests that there are.
fn all_tests() -> Vec<String> {
    let folders = BINARIES.map(|binary| paths::root().join("tests/e2e/tests").join(binary));
    let files = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    let mut names: Vec<_> = files
        .filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".rs")?.to_owned()))
        .filter(|name| name != "main")
        .collect();
    names.sort_unstable();
    names
}

/// True if all of these tests pass.
fn test(brokers: &str, tests: &[&str], arguments: &[&str]) -> Result<bool> {
    if tests.is_empty() {
        return Ok(true);
    }
    let mut command = build::cargo();
    command.args(["test", "--release", "--no-fail-fast", "-p", "millrace-e2e"]);
    for binary in BINARIES {
        command.args(["--test", binary]);
    }
    command.arg("--").args(arguments).args(tests.iter().map(|test| format!("{test}::")));
    environment(&mut command, brokers)?;
    command.env("MILLRACE_REQUIRE_PRIVILEGE", "1");
    Ok(process::status(&mut command)?.success())
}

/// The nodes that run.
struct Cluster(Vec<(Node, u16)>);

impl Kind {
    /// Starts all nodes at the same time, because none serves before most of them run.
    fn start(&self) -> Result<Cluster> {
        let folder = paths::target().join("kafka").join("matrix").join(self.name);
        if folder.exists() {
            for node in 1..=self.nodes {
                self.node(&folder, node)?.stop()?;
            }
            fs::remove_dir_all(&folder)
                .with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        let ports = node::free_port_pairs(usize::from(self.nodes))?;
        let voters: Vec<_> =
            (1..).zip(&ports).map(|(id, port)| format!("{id}@127.0.0.1:{}", port + 1)).collect();
        let mut starting = Vec::new();
        for (id, port) in (1..).zip(&ports) {
            let node = self.node(&folder, id)?;
            let options = NodeOptions {
                port: Some(*port),
                session_timeout_ms: SESSION_TIMEOUT_MS,
                properties: self.properties(id, &voters.join(",")),
            };
            let port = *port;
            starting.push(thread::spawn(move || node.start(&options).map(|_| (node, port))));
        }
        let started: Vec<_> = starting.into_iter().map(thread::JoinHandle::join).collect();
        let mut cluster = Cluster(Vec::new());
        let mut failure = None;
        for node in started {
            match node {
                Ok(Ok(node)) => cluster.0.push(node),
                Ok(Err(error)) => failure = Some(error),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        match failure {
            None => Ok(cluster),
            Some(error) => {
                cluster.stop()?;
                Err(error)
            }
        }
    }

    fn node(&self, folder: &std::path::Path, id: u16) -> Result<Node> {
        Ok(Node::at(&folder.join(format!("node-{id}")))?.of_version(self.version))
    }

    fn properties(&self, id: u16, voters: &str) -> Vec<(String, String)> {
        let mut properties = vec![
            ("node.id".to_owned(), id.to_string()),
            ("controller.quorum.voters".to_owned(), voters.to_owned()),
        ];
        let least = self.nodes / 2 + 1;
        for (name, value) in [
            ("default.replication.factor", self.nodes),
            ("min.insync.replicas", least),
            ("offsets.topic.replication.factor", self.nodes),
            ("transaction.state.log.replication.factor", self.nodes),
            ("transaction.state.log.min.isr", least),
        ] {
            properties.push((name.to_owned(), value.to_string()));
        }
        properties
    }
}

impl Cluster {
    fn brokers(&self) -> String {
        let addresses: Vec<_> =
            self.0.iter().map(|(_, port)| format!("127.0.0.1:{port}")).collect();
        addresses.join(",")
    }

    fn stop(self) -> Result<()> {
        // A controller waits for the others before it ends, so all are stopped together.
        let stopping: Vec<_> =
            self.0.into_iter().map(|(node, _)| thread::spawn(move || node.stop())).collect();
        for node in stopping {
            match node.join() {
                Ok(stopped) => ensure!(stopped?, "a node of the cluster had already ended"),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_with_own_nodes_run_with_several_nodes_or_by_name() {
        let kind = |nodes| KINDS.iter().find(|kind| kind.nodes == nodes).unwrap();
        let options = |tests: &[&str]| Options {
            clusters: Vec::new(),
            tests: tests.iter().map(|test| (*test).to_owned()).collect(),
        };
        assert_eq!(options(&[]).tests(kind(1)), (vec![], TESTS.to_vec()));
        assert_eq!(options(&[]).tests(kind(3)), (TESTS_WITH_OWN_NODES.to_vec(), TESTS.to_vec()));
        let named = options(&["unclean", "ledger"]);
        assert_eq!(named.tests(kind(1)), (vec!["unclean"], vec!["ledger"]));
    }

    #[test]
    fn a_cluster_of_three_keeps_what_two_have() {
        let kind = KINDS.iter().find(|kind| kind.nodes == 3).unwrap();
        let properties = kind.properties(2, "1@a,2@b,3@c");
        let value = |name: &str| {
            let found = properties.iter().find(|(found, _)| found == name);
            found.map(|(_, value)| value.as_str())
        };
        assert_eq!(value("node.id"), Some("2"));
        assert_eq!(value("min.insync.replicas"), Some("2"));
        assert_eq!(value("default.replication.factor"), Some("3"));
    }
}
