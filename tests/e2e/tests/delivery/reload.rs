//! A relay reads its configuration again while clients are connected.

use std::time::Duration;

use millrace_harness::relay::direct::Direct;
use millrace_harness::relay::instance::Instance;
use millrace_harness::servers::by_hand::HandServer;
use millrace_harness::system::process::{Finished, run, run_ok, wait_until};
use millrace_relay::ports::Ports;
use rustix::process::Signal;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

fn reload(instance: &Instance, arguments: &[&str]) -> Finished {
    let mut command = instance.command("reload", false);
    run("relay reload", command.args(arguments), PATIENCE).unwrap()
}

fn tuned(instance: &Instance, arguments: &[&str]) -> String {
    let mut command = instance.command("tune", false);
    let finished = run_ok("relay tune", command.args(arguments), PATIENCE).unwrap();
    finished.stdout.trim_end().to_owned()
}

/// The paths of one list of an answer.
fn paths(answer: &Value, list: &str) -> Vec<String> {
    let path = |one: &Value| one["path"].as_str().unwrap().to_owned();
    answer[list].as_array().unwrap().iter().map(path).collect()
}

fn sha1(relay: &Direct) -> String {
    relay.instance.stats().unwrap().0["config"]["sha1"].as_str().unwrap().to_owned()
}

#[test]
fn a_reload_changes_what_can_change_and_connections_stay() {
    let mut relay = Direct::build("reload", |_| {}).unwrap();
    relay.instance.start().unwrap();
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    let mut former = relay.connect().unwrap();
    former.send(b"before").unwrap();
    server.next("message", |record| record.value == b"before").unwrap();
    let limit = format!("service/{}/max_message_bytes", relay.instance.config.services[0].name);
    let pause = "relay/reply_timeout_ms";

    let same = reload(&relay.instance, &["--json"]);
    let same: Value = serde_json::from_str(&same.stdout).unwrap();
    assert_eq!((paths(&same, "changes").len(), &same["applied"]), (0, &Value::Bool(true)));

    relay.instance.config.services[0].max_message_bytes = 10;
    relay.instance.config.relay.reply_timeout_ms = 12_345;
    relay.instance.write_config().unwrap();
    let before = sha1(&relay);
    let looked = reload(&relay.instance, &["--check"]);
    assert!(looked.status.success(), "{looked:?}");
    assert!(looked.stdout.contains(&format!("{limit}: 255 -> 10")), "{}", looked.stdout);
    assert_eq!((tuned(&relay.instance, &["get", &limit]), sha1(&relay)), ("255".into(), before));

    let done = reload(&relay.instance, &["--json"]);
    assert!(done.status.success(), "{done:?}");
    let done: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(paths(&done, "changes"), [pause, &*limit]);
    assert_eq!(tuned(&relay.instance, &["get", pause]), "12345");
    let file = relay.instance.config_file();
    let sum = run_ok("sha1sum", std::process::Command::new("sha1sum").arg(file), PATIENCE).unwrap();
    assert!(sum.stdout.starts_with(&sha1(&relay)), "the configuration in force is another one");
    let mut next = relay.connect().unwrap();
    next.send(b"longer than ten").unwrap();
    next.wait_end().unwrap();
    former.send(b"longer than ten, from one that came before").unwrap();
    server.next("message", |record| record.value.ends_with(b"came before")).unwrap();

    // By hand; saved; and by hand again.
    tuned(&relay.instance, &["set", &limit, "20"]);
    tuned(&relay.instance, &["save"]);
    tuned(&relay.instance, &["set", &limit, "30"]);
    relay.instance.signal(Signal::HUP).unwrap();
    let is_back = || Ok(tuned(&relay.instance, &["get", &limit]) == "20");
    wait_until(PATIENCE, "what was saved to be in force", is_back).unwrap();
    former.send(b"still here").unwrap();
    server.next("message", |record| record.value == b"still here").unwrap();
    relay.instance.stop().unwrap();
}

#[test]
fn what_needs_a_restart_is_named_and_nothing_changes() {
    let mut relay = Direct::build("reload-not", |_| {}).unwrap();
    relay.instance.start().unwrap();
    let (limit, port) = {
        let service = &relay.instance.config.services[0];
        (format!("service/{}/max_message_bytes", service.name), service.port)
    };
    relay.instance.config.services[0].max_message_bytes = 10;
    relay.instance.config.services[0].port = Ports::from(port.first.wrapping_add(1).max(1));
    let mut another = relay.instance.config.services[0].clone();
    another.name = "another".to_owned();
    another.port = port;
    another.servers[0].id = "another".to_owned();
    another.servers[0].partition.0 = 1;
    relay.instance.config.services.push(another);
    relay.instance.write_config().unwrap();
    for arguments in [&["--check"][..], &[]] {
        let finished = reload(&relay.instance, arguments);
        assert_eq!(finished.status.code(), Some(1), "{finished:?}");
        let port = format!("service/{}/port: {port} -> ", relay.instance.config.services[0].name);
        for part in [&*port, "service/another: none -> new", "server/another: none -> new"] {
            assert!(finished.stdout.contains(part), "{part}: {}", finished.stdout);
        }
        assert!(finished.stderr.contains("restart the relay"), "{}", finished.stderr);
        assert_eq!(tuned(&relay.instance, &["get", &limit]), "255");
    }
    // The command finds the same mistake; a signal has only the log to tell it.
    std::fs::write(relay.instance.config_file(), "service = 7").unwrap();
    let finished = reload(&relay.instance, &[]);
    assert!(
        !finished.status.success() && finished.stderr.contains("millrace.toml"),
        "{finished:?}"
    );
    relay.instance.signal(Signal::HUP).unwrap();
    wait_until(PATIENCE, "the refusal", || {
        Ok(relay.instance.relay_stderr().contains("the configuration was not reloaded: "))
    })
    .unwrap();
    relay.instance.check_running().unwrap();
    relay.connect().unwrap();
    relay.instance.stop().unwrap();
}
