//! The Autobahn test suite's client against a relay's WebSocket, by way of Kafka and an echoing server.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use millrace_harness::relay::direct::Direct;
use millrace_harness::system::paths;
use millrace_harness::system::process::{Process, run_ok};
use millrace_relay::codec::ProtocolKind;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_mins(20);
/// Messages of up to 16 MiB, which no topic takes by default, and a measurement of speed.
const EXCLUDED: [&str; 1] = ["9.*"];

/// `MILLRACE_WSTEST` names the suite's program, `wstest` (autobahntestsuite 0.8.2, Python 2.7);
/// `MILLRACE_WSTEST_CASES` the cases, with commas between, if not all.
#[test]
#[ignore = "needs the Autobahn test suite: MILLRACE_WSTEST=/path/to/wstest, and a quarter of an hour"]
fn the_suite_finds_nothing_wrong() {
    let wstest = std::env::var_os("MILLRACE_WSTEST").expect("MILLRACE_WSTEST names wstest");
    let cases = std::env::var("MILLRACE_WSTEST_CASES").unwrap_or_else(|_| "*".to_owned());
    let mut relay = Direct::build("autobahn", |config| {
        let service = &mut config.services[0];
        (service.protocol, service.framing) = (ProtocolKind::WebSocket, None);
        service.max_message_bytes = 1 << 18;
    })
    .unwrap();
    relay.instance.start().unwrap();
    let mut server = Command::new(paths::example_server().unwrap());
    server.args([relay.brokers.as_str(), "0", relay.topics.prefix()]);
    let _server = Process::spawn("server", &mut server).unwrap();

    let folder = std::env::temp_dir().join(format!("millrace-autobahn-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let agent = "millrace";
    let spec = json!({
        "outdir": folder.join("reports"),
        "servers": [{ "agent": agent, "url": format!("ws://{}", relay.target()) }],
        "cases": cases.split(',').collect::<Vec<_>>(),
        "exclude-cases": EXCLUDED,
        "exclude-agent-cases": {},
    });
    let spec_file = folder.join("spec.json");
    std::fs::write(&spec_file, spec.to_string()).unwrap();
    let mut suite = Command::new(wstest);
    suite.args(["-m", "fuzzingclient", "-s"]).arg(&spec_file);
    run_ok("wstest", &mut suite, PATIENCE).unwrap();

    let report = std::fs::read_to_string(folder.join("reports/index.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let (mut verdicts, mut wrong) = (BTreeMap::<&str, u32>::new(), Vec::new());
    for (case, result) in report[agent].as_object().expect("the agent's cases") {
        let verdict = |of: &str| result[of].as_str().expect("a verdict");
        let (behaviour, close) = (verdict("behavior"), verdict("behaviorClose"));
        *verdicts.entry(behaviour).or_default() += 1;
        // Offers with a smaller window of the relay's, and none beside them: not accepted.
        let declined = behaviour == "UNIMPLEMENTED" && case.starts_with("13.");
        let fine = |verdict| ["OK", "NON-STRICT", "INFORMATIONAL"].contains(&verdict);
        if !(fine(behaviour) || declined) || !fine(close) {
            wrong.push(format!("{case}: {behaviour}, close {close}"));
        }
    }
    println!("{verdicts:?}");
    assert!(!verdicts.is_empty() && wrong.is_empty(), "{wrong:#?}");
}
