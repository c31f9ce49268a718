//! The chat: a server of thirty lines, and the WebSocket clients that people have, through the
//! gateway to the server's own address.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use millrace_harness::kafka::{self, Topics};
use millrace_harness::net::netns::Topology;
use millrace_harness::relay::instance::Instance;
use millrace_harness::system::paths::peer;
use millrace_harness::system::privilege;
use millrace_harness::system::process::Process;
use millrace_relay::codec::{Framing, ProtocolKind};

const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_mins(1);

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_browser_and_two_libraries_hear_each_other() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let profile = std::env::temp_dir().join(format!("millrace-chat-{}", std::process::id()));
    let profile = Folder(profile);
    let hosts = Topology::new(1, 1).unwrap();
    let topics = Topics::new(&kafka::brokers(), "chat");
    let mut config = hosts.config(PORT, Framing::Lines);
    config.kafka.brokers = kafka::brokers();
    topics.prefix().clone_into(&mut config.kafka.topic_prefix);
    let service = &mut config.services[0];
    (service.protocol, service.framing) = (ProtocolKind::WebSocket, None);
    service.max_message_bytes = 65_536;
    let mut instance = Instance::new(config, Some(&hosts.gateway.namespace())).unwrap();
    instance.load().unwrap();
    instance.start().unwrap();
    let mut server = Command::new("/usr/bin/python3");
    server.arg(peer("chat.py")).args([&kafka::brokers(), "0", topics.prefix()]);
    let _server = Process::spawn("chat.py", &mut server).unwrap();

    let at = format!("{}:{PORT}", Topology::server_address(0));
    let client = &hosts.clients[0];
    let member = |program: &str, script: &str, name: &str| {
        let mut command = client.command(program);
        command.arg(peer(script)).arg(format!("ws://{at}/{name}"));
        Process::spawn(name, &mut command).unwrap()
    };
    let python = member("/usr/bin/python3", "chat_client.py", "python");
    python.wait_line("python: hello", PATIENCE).unwrap();
    let node = member("node", "chat_client.cjs", "node");
    node.wait_line("python: python hears node", PATIENCE).unwrap();

    let page = peer("chat.html");
    let mut chromium = client.command("chromium");
    chromium
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        .args(["--no-first-run", "--disable-background-networking", "--disable-component-update"])
        .args(["--no-proxy-server", "--disable-sync", "--remote-debugging-port=0"])
        .arg(format!("--user-data-dir={}", profile.0.display()))
        .arg(format!(
            "file://{}?at={at}&name=browser&say=hello&say=heard,%20all%20of%20you&say=go",
            page.display()
        ));
    let _browser = Process::spawn("chromium", &mut chromium).unwrap();
    python.wait_line("node: node hears browser", PATIENCE).unwrap();
    // Said when the browser had been answered.
    node.wait_line("browser: heard, all of you", PATIENCE).unwrap();
    // And its third line is said when the other one has answered too.
    python.wait_line("closed 4001", PATIENCE).unwrap();
    node.wait_line("python has gone", PATIENCE).unwrap();

    instance.stop().unwrap();
    node.wait_line("closed 1001", PATIENCE).unwrap();
}
