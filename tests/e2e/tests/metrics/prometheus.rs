//! Dashboard and alert rules, asked of a Prometheus that scrapes a relay behind a gateway, under load.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use millrace_harness::clients::tcp::Client;
use millrace_harness::clients::wire::frames;
use millrace_harness::kafka::{self, Topics};
use millrace_harness::net::free_port;
use millrace_harness::net::netns::Topology;
use millrace_harness::relay::instance::Instance;
use millrace_harness::servers::by_hand::HandServer;
use millrace_harness::system::paths;
use millrace_harness::system::privilege::{privileged, shared};
use millrace_harness::system::process::{Process, wait_until};
use millrace_relay::config::Listen;
use serde_json::Value;

use crate::exposition::get;

const PATIENCE: Duration = Duration::from_mins(2);
const PORT: u16 = 7000;
const RULES: &str = "dist/prometheus/millrace.rules.yml";
const DASHBOARD: &str = "dist/grafana/millrace.json";

/// A Prometheus with these rules, which scrapes one relay every second. Ends with its value.
struct Prometheus {
    _process: Process,
    address: SocketAddr,
    directory: PathBuf,
}

impl Prometheus {
    fn start(relay: SocketAddr) -> Result<Self> {
        let name = format!("millrace-prometheus-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory)?;
        let config = directory.join("prometheus.yml");
        let rules = paths::workspace().join(RULES);
        std::fs::write(
            &config,
            format!(
                "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
                 rule_files: [\"{}\"]\n\
                 scrape_configs:\n  - job_name: millrace\n    static_configs:\n      \
                 - targets: [\"{relay}\"]\n",
                rules.display()
            ),
        )?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn");
        let process = Process::spawn("prometheus", &mut command)
            .context("`cargo xtask setup` installs what is missing")?;
        let prometheus = Self { _process: process, address, directory };
        wait_until(PATIENCE, "Prometheus to be ready", || {
            let answer = get(address, "/-/ready", "*/*");
            Ok(answer.is_ok_and(|(head, _)| head.contains(" 200 ")))
        })?;
        Ok(prometheus)
    }

    fn ask(&self, path: &str) -> Result<Value> {
        let (_, body) = get(self.address, path, "*/*")?;
        let answer: Value = serde_json::from_str(&body).with_context(|| body.clone())?;
        ensure!(answer["status"] == "success", "{path}: {answer}");
        Ok(answer["data"].clone())
    }

    /// The series that a query has now.
    fn query(&self, query: &str) -> Result<Vec<Value>> {
        use std::fmt::Write as _;
        let mut path = "/api/v1/query?query=".to_owned();
        for byte in query.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => path.push(char::from(byte)),
                _ => write!(path, "%{byte:02X}")?,
            }
        }
        let data = self.ask(&path)?;
        Ok(data["result"].as_array().context("no result")?.clone())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// All queries of a dashboard, for one that is shown at once and shows every relay.
fn dashboard() -> Result<Vec<String>> {
    fn collect(value: &Value, queries: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                for (name, field) in fields {
                    match field.as_str() {
                        Some(query) if name == "expr" => queries.push(query.to_owned()),
                        _ => collect(field, queries),
                    }
                }
            }
            Value::Array(values) => values.iter().for_each(|one| collect(one, queries)),
            _ => {}
        }
    }
    let text = std::fs::read_to_string(paths::workspace().join(DASHBOARD))?;
    let mut queries = Vec::new();
    collect(&serde_json::from_str(&text)?, &mut queries);
    ensure!(queries.len() > 30, "only {} queries", queries.len());
    let at_once =
        |query: &String| query.replace("$instance", ".*").replace("$__rate_interval", "10s");
    Ok(queries.iter().map(at_once).collect())
}

/// The metrics that a query names.
fn metrics(query: &str) -> BTreeSet<String> {
    let is_other = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    let words = query.split(is_other).filter(|word| word.starts_with("millrace_"));
    words.map(str::to_owned).collect()
}

/// Clients that send and are answered, one message after the other.
fn exchange(client: &mut Client, server: &HandServer, messages: usize) -> Result<()> {
    for _ in 0..messages {
        client.send(b"a message")?;
        let record = server.next("the message", |record| record.kind() == "message")?;
        server.reply_soon(&record, b"a reply", &[])?;
        ensure!(client.receive()? == b"a reply");
    }
    Ok(())
}

fn promtool(arguments: &[&str], input: Option<&Path>) -> Result<()> {
    let mut command = Command::new("promtool");
    command.args(arguments);
    if let Some(input) = input {
        command.stdin(Stdio::from(std::fs::File::open(input)?));
    }
    let output = command.output().context("`cargo xtask setup` installs promtool")?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "promtool {arguments:?}: {}", String::from_utf8_lossy(&said));
    Ok(())
}

#[test]
fn each_panel_and_each_alert_has_data() -> Result<()> {
    if !privileged("each_panel_and_each_alert_has_data") {
        return Ok(());
    }
    let _shared = shared();
    let topology = Topology::new(1, 1)?;
    let topics = Topics::new(&kafka::brokers(), "prometheus");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let mut config = topology.config(PORT, frames().0);
    config.relay.workers = 2;
    config.kafka = kafka::section(&kafka::brokers(), topics.prefix());
    config.metrics.listen = Some(Listen(address));
    let mut instance = Instance::new(config, Some(&topology.gateway.namespace()))?;
    instance.load()?;
    instance.start()?;
    let target = SocketAddr::from((Topology::server_address(0), PORT));
    let server = HandServer::on(&kafka::brokers(), topics.prefix(), &[0])?;
    let mut client = Client::connect(&topology.clients[0].namespace(), target, frames())?;
    exchange(&mut client, &server, 1)?;

    let prometheus = Prometheus::start(address)?;
    let mut wanted: BTreeSet<String> = dashboard()?.into_iter().collect();
    let groups = prometheus.ask("/api/v1/rules")?;
    let rules = groups["groups"][0]["rules"].as_array().context("no rules")?.clone();
    ensure!(rules.len() > 15, "only {} rules", rules.len());
    for rule in &rules {
        let query = rule["query"].as_str().context("no query")?;
        let of_rule = metrics(query);
        ensure!(!of_rule.is_empty() || query.starts_with("up{"), "{query}");
        wanted.extend(of_rule.iter().map(|name| format!("count({name})")));
    }
    wanted.insert("up{job=\"millrace\"} == 1".to_owned());
    let deadline = Instant::now() + PATIENCE;
    while !wanted.is_empty() {
        exchange(&mut client, &server, 20)?;
        for query in wanted.clone() {
            if !prometheus.query(&query)?.is_empty() {
                wanted.remove(&query);
            }
        }
        if Instant::now() > deadline {
            bail!("these have no data: {wanted:#?}");
        }
    }
    // None of the rules fails, and none finds fault with a relay that does well.
    let groups = prometheus.ask("/api/v1/rules")?;
    for rule in groups["groups"][0]["rules"].as_array().context("no rules")? {
        ensure!(rule["health"] == "ok", "{rule}");
        ensure!(rule["state"] != "firing", "{rule}");
    }
    let scraped = prometheus.directory.join("scraped");
    std::fs::write(&scraped, get(address, "/metrics", "text/plain")?.1)?;
    promtool(&["check", "metrics"], Some(&scraped))?;
    let rules = paths::workspace().join(RULES);
    promtool(&["check", "rules", rules.to_str().context("a name")?], None)?;

    // A killed relay is noticed: nobody answers the scrapes.
    instance.kill()?;
    wait_until(PATIENCE, "the alert", || {
        let down = prometheus.query("ALERTS{alertname=\"MillraceDown\"}")?;
        Ok(!down.is_empty())
    })?;
    instance.unload()
}
