//! What cannot work is refused with words that say what to do, and leaves nothing behind.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use millrace_harness::relay::cluster::{Cluster, ClusterPlan, FRAMES_PORT};
use millrace_harness::system::process::{Finished, copy_program, run, run_ok};
use millrace_harness::system::{paths, privilege};
use millrace_relay::config::Config;
use millrace_relay::gateway::in_namespace;

const PATIENCE: Duration = Duration::from_mins(1);

/// Failed, saying each of `words`, without a Rust panic.
fn assert_refused(finished: &Finished, words: &[&str]) {
    let said = format!("{}\n{}", finished.stdout, finished.stderr);
    assert!(!finished.status.success(), "it was not refused: {said}");
    assert_eq!(finished.status.code().map(|code| code < 100), Some(true), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    for word in words {
        assert!(said.to_lowercase().contains(&word.to_lowercase()), "no `{word}` in: {said}");
    }
}

/// Neither namespace nor veth, pins or files of the instance are there.
fn assert_nothing_left(cluster: &Cluster) {
    let config = &cluster.instance.config;
    for path in [config.namespace(), config.pin_directory(), config.run_directory()] {
        assert!(!path.exists(), "{} is left behind", path.display());
    }
    let links = run_ok(
        "ip link",
        Command::new("nsenter")
            .arg(format!("--net={}", cluster.hosts.gateway.namespace().display()))
            .args(["ip", "-details", "link", "show"]),
        PATIENCE,
    )
    .unwrap()
    .stdout;
    assert!(!links.contains(&format!("{}-gw", config.gateway.instance)), "{links}");
    assert!(!links.contains("prog/xdp"), "{links}");
}

fn build_with(name: &str, adjust: impl FnOnce(&mut Config)) -> Cluster {
    Cluster::build_with(ClusterPlan::small(name, 1), adjust).unwrap()
}

fn relay(arguments: &[&str]) -> Finished {
    run("relay", Command::new(paths::relay().unwrap()).args(arguments), PATIENCE).unwrap()
}

#[test]
fn flags_and_configurations_that_make_no_sense() {
    assert_refused(&relay(&["run", "--confg", "x"]), &["--confg", "--help"]);
    assert_refused(&relay(&["run", "--config", "/nonesuch.toml"]), &["/nonesuch.toml", "--config"]);
    let path = std::env::temp_dir().join(format!("millrace-bad-{}.toml", std::process::id()));
    let file = path.to_str().unwrap();
    for (text, words) in [
        ("[gateway]\ndevices = [\"eth1\"]\ncolour = 3\n", ["colour", "line"]),
        ("[gateway]\ndevices = [\"eth1\"]\nservice = []\n", ["service", file]),
        (
            "service = []\n[gateway]\ndevices = [\"eth1\"]\n[kafka]\nreplication = 0\n",
            ["kafka.replication", "-1"],
        ),
        ("no toml", ["line 1", file]),
    ] {
        std::fs::write(&path, text).unwrap();
        assert_refused(&relay(&["check", "--config", file]), &words);
        assert_refused(&relay(&["run", "--config", file]), &words);
    }
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn an_answer_that_nobody_reads_to_its_end_is_no_mistake() {
    let example = paths::workspace().join("docs/millrace.toml");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ended = Command::new(paths::relay().unwrap())
        .args(["check", "--config"])
        .arg(example)
        .stdout(writer)
        .output()
        .unwrap();
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
}

#[test]
fn no_root() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let cluster = build_with("noroot", |_| {});
    // The program and its configuration must be readable for those who are nobody.
    let program = std::env::temp_dir().join(format!("millrace-relay-{}", std::process::id()));
    copy_program(&paths::relay().unwrap(), &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    for verb in ["load", "unload", "run", "status"] {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", cluster.hosts.gateway.namespace().display()))
            .args(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&program)
            .args([verb, "--config"])
            .arg(cluster.instance.config_file());
        let finished = run("relay as nobody", &mut command, PATIENCE).unwrap();
        assert_refused(&finished, &["root"]);
    }
    std::fs::remove_file(program).unwrap();
    assert_nothing_left(&cluster);
}

#[test]
fn a_missing_device() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let cluster = build_with("nodevice", |config| {
        config.gateway.devices = vec!["nonesuch0".to_owned()];
    });
    assert_refused(&cluster.instance.try_load().unwrap(), &["nonesuch0"]);
    assert_nothing_left(&cluster);
}

#[test]
fn no_broker() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut cluster = build_with("nobroker", |config| {
        "127.0.0.1:1".clone_into(&mut config.kafka.brokers);
    });
    cluster.instance.load().unwrap();
    assert_refused(&cluster.instance.try_start().unwrap(), &["127.0.0.1:1", "broker"]);
    assert!(!cluster.instance.config.control_socket().exists());
    cluster.instance.unload().unwrap();
    assert_nothing_left(&cluster);
}

#[test]
fn more_replicas_than_brokers() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut cluster = build_with("replicas", |config| config.kafka.replication = 1000);
    cluster.instance.load().unwrap();
    assert_refused(
        &cluster.instance.try_start().unwrap(),
        &["kafka.replication", "1000", "brokers"],
    );
    cluster.instance.unload().unwrap();
    assert_nothing_left(&cluster);
}

#[test]
fn a_port_in_use() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut cluster = build_with("portinuse", |_| {});
    cluster.instance.load().unwrap();
    let taken = in_namespace(&cluster.instance.config.namespace(), || {
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, FRAMES_PORT))
    })
    .unwrap()
    .unwrap();
    let port = FRAMES_PORT.to_string();
    assert_refused(&cluster.instance.try_start().unwrap(), &[&port, "in use"]);
    drop(taken);
    cluster.instance.start().unwrap();
    cluster.instance.stop().unwrap();
    cluster.instance.unload().unwrap();
    assert_nothing_left(&cluster);
}

#[test]
fn run_without_load() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let cluster = build_with("noload", |_| {});
    assert_refused(&cluster.instance.try_start().unwrap(), &["load"]);
    assert_nothing_left(&cluster);
}

#[test]
fn a_second_load_a_second_relay_and_a_second_unload() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let mut cluster = build_with("second", |_| {});
    cluster.start().unwrap();
    let name = cluster.instance.config.gateway.instance.clone();
    assert_refused(&cluster.instance.try_load().unwrap(), &[&name, "unload"]);
    assert_refused(&cluster.instance.try_start().unwrap(), &["running"]);
    // Neither has harmed the first.
    cluster.instance.check_running().unwrap();
    assert!(cluster.instance.verdicts().unwrap().is_object());
    assert!(Path::new(&cluster.instance.config.control_socket()).exists());
    cluster.instance.stop().unwrap();
    cluster.instance.unload().unwrap();
    assert_nothing_left(&cluster);
    // Undoing what is not there is no harm, and says so.
    let again = run("unload", &mut cluster.instance.command("unload", true), PATIENCE).unwrap();
    assert!(format!("{}{}", again.stdout, again.stderr).contains(&name), "{again:?}");
    assert_nothing_left(&cluster);
}
