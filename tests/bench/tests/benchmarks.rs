//! The benchmarks of the gateway run, and report what they are for. Their figures are not judged.

use std::collections::HashSet;
use std::process::Command;
use std::time::Duration;

use millrace_harness::kafka;
use millrace_harness::net::pktgen;
use millrace_harness::system::privilege;
use millrace_harness::system::process::{run, run_ok};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_mins(2);

/// Runs one with very little to do; it must draw its picture, too.
fn quick(program: &str, arguments: &[&str]) -> Value {
    let plot = std::env::temp_dir().join(format!("millrace-bench-{}.svg", std::process::id()));
    let mut command = Command::new(program);
    command.args(["--quick", "--json"]).args(arguments);
    let finished = run_ok(program, command.arg("--plot").arg(&plot), PATIENCE).unwrap();
    let picture = std::fs::read_to_string(&plot).unwrap();
    std::fs::remove_file(&plot).unwrap();
    assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"), "{picture}");
    serde_json::from_str(finished.stdout.lines().last().unwrap()).unwrap()
}

fn rows<'a>(report: &'a Value, table: &str) -> &'a [Value] {
    report[table].as_array().unwrap()
}

#[test]
fn the_gateway_is_measured_by_every_road() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let report = quick(env!("CARGO_BIN_EXE_bench-gateway"), &["--brokers", &kafka::brokers()]);
    let count = |comparison: &str| {
        rows(&report, "rows").iter().filter(|row| row["comparison"] == comparison).count()
    };
    // Roads times kinds of work.
    assert_eq!((count("path"), count("relay")), (7 * 5, 3 * 4));
    for row in rows(&report, "rows") {
        assert!(row["per_second"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["rate_ratio"].as_f64().unwrap() > 0.0, "{row}");
    }
}

#[test]
fn the_routers_and_the_server_see_nothing_of_a_diverted_connection() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let report = quick(env!("CARGO_BIN_EXE_bench-path"), &["--brokers", &kafka::brokers()]);
    assert_eq!((rows(&report, "messages").len(), rows(&report, "idle").len()), (2 * 5, 2 * 3));
    let connected = rows(&report, "idle").iter().filter(|row| row["connections"] != 0);
    for row in rows(&report, "messages").iter().chain(connected) {
        let is_conventional = row["road"] == "conventional";
        for host in ["core router", "distributed router", "server"] {
            let packets = row["packets"][host].as_f64().unwrap();
            assert_eq!(packets > 0.0, is_conventional, "{host}: {row}");
        }
        assert!(row["packets"]["gateway"].as_f64().unwrap() > 0.0, "{row}");
    }
    let sockets = |road: &str, name: &str| {
        let of = |row: &&Value| row["road"] == road && row["connections"] != 0;
        rows(&report, "idle").iter().find(of).unwrap()[name].as_u64().unwrap()
    };
    assert!(sockets("conventional", "server_sockets") >= 20, "{report}");
    assert!(sockets("Millrace", "server_sockets") < 20, "{report}");
    assert!(sockets("Millrace", "relay_sockets") >= 20, "{report}");
}

#[test]
fn every_way_through_the_programs_has_its_cost() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let report = quick(env!("CARGO_BIN_EXE_bench-classify"), &[]);
    // The benchmark itself refuses a packet that takes another way than its row's.
    let verdicts: HashSet<_> =
        rows(&report, "rows").iter().map(|row| row["verdict"].as_str().unwrap()).collect();
    assert!(verdicts.len() > 20, "{verdicts:?}");
    for row in rows(&report, "rows") {
        assert!(row["trivial_ns"].as_f64().unwrap() > 0.0, "{row}");
    }
    for ratio in ["ratio_no_rule", "ratio_diverted", "ratio_diverted_cold"] {
        assert!(report[ratio].as_f64().unwrap() > 0.0, "{ratio}: {report}");
    }
}

#[test]
fn packets_of_every_scenario_go_where_they_should() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let size = ["--engine", "live-frames", "--size", "64"];
    let report = quick(env!("CARGO_BIN_EXE_pktgen"), &size);
    assert_eq!((&report["engine"], rows(&report, "rows").len()), (&"live-frames".into(), 9));
    for row in rows(&report, "rows") {
        assert!(row["mpps"].as_f64().unwrap() > 0.0, "{row}");
        // Diverted or forwarded, it comes to the end of the road: most of it, if the machine is busy.
        let arrived = row["arrived"].as_f64().unwrap();
        assert_eq!(row["scenario"] == "drop", arrived < 0.01, "{row}");
    }
}

/// With the module there it runs, and without it it says what to do.
#[test]
fn the_kernels_generator_runs_or_is_refused() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let asked = ["flows-1000", "--engine", "kernel", "--size", "64"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_pktgen"));
    let finished = run("pktgen", command.args(["--quick", "--json"]).args(asked), PATIENCE);
    let finished = finished.unwrap();
    if pktgen::require().is_ok() {
        let report: Value = serde_json::from_str(finished.stdout.lines().last().unwrap()).unwrap();
        assert_eq!((&report["engine"], rows(&report, "rows").len()), (&"kernel".into(), 1));
    } else {
        assert!(!finished.status.success());
        assert!(finished.stderr.contains("modprobe pktgen"), "{}", finished.stderr);
        assert!(finished.stderr.contains("--engine live-frames"), "{}", finished.stderr);
    }
}
