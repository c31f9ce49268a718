//! An operator changes settings while clients are connected: as files, and by `relay tune`.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use millrace_harness::clients::tcp::Client;
use millrace_harness::relay::direct::Direct;
use millrace_harness::relay::instance::Instance;
use millrace_harness::servers::by_hand::HandServer;
use millrace_harness::system::privilege::privileged;
use millrace_harness::system::process::{Finished, Process, run, run_ok, wait_until};
use millrace_relay::config::{Config, UplinkEngine};
use millrace_relay::tune;
use rustix::process::Signal;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);
/// Nobody may be stuck for longer while the relay stands still.
const MOST_STUCK: Duration = Duration::from_secs(1);

/// A relay that runs, and its tree of settings.
fn start(name: &str, adjust: impl FnOnce(&mut Config)) -> (Direct, PathBuf) {
    let mut relay = Direct::build(name, adjust).unwrap();
    relay.instance.start().unwrap();
    let tree = tune::place(&relay.instance.config);
    (relay, tree)
}

/// A shell's command in a folder.
fn shell(folder: &Path, script: &str) -> Finished {
    let mut command = Command::new("bash");
    run(script, command.args(["-c", script]).current_dir(folder), PATIENCE).unwrap()
}

/// What a shell's command writes, which must succeed.
fn told(folder: &Path, script: &str) -> String {
    let finished = shell(folder, script);
    assert!(finished.status.success(), "{script}: {}", finished.stderr);
    finished.stdout
}

fn tune(instance: &Instance, arguments: &[&str]) -> Finished {
    let mut command = instance.command("tune", true);
    run("relay tune", command.args(arguments), PATIENCE).unwrap()
}

fn tuned(instance: &Instance, arguments: &[&str]) -> String {
    let finished = tune(instance, arguments);
    assert!(finished.status.success(), "{arguments:?}: {}", finished.stderr);
    finished.stdout.trim_end().to_owned()
}

fn closed(relay: &Direct, reason: &str, times: u64) {
    let count = || relay.instance.stats()?.count_by("connections_closed", reason);
    wait_until(PATIENCE, reason, || Ok(count().unwrap_or_default() == times)).unwrap();
}

/// The folder of the only service.
fn service(relay: &Direct, tree: &Path) -> PathBuf {
    tree.join("service").join(&relay.instance.config.services[0].name)
}

#[test]
fn the_tree_has_every_setting_with_the_value_in_force() {
    if !privileged("the_tree_has_every_setting_with_the_value_in_force") {
        return;
    }
    let (mut relay, tree) = start("tune-tree", |_| {});
    let files = told(&tree, "find . -type f ! -name last_error -printf '%P %m\\n' | sort");
    let listed: Value = serde_json::from_str(&tuned(&relay.instance, &["list", "--json"])).unwrap();
    let mut expected = BTreeMap::new();
    for setting in listed.as_array().unwrap() {
        let mode = if setting["live"] == true { "644" } else { "444" };
        expected
            .insert(setting["path"].as_str().unwrap(), (mode, setting["value"].as_str().unwrap()));
    }
    assert!(expected.len() > 80, "{}", expected.len());
    let mut found = BTreeMap::new();
    for file in files.lines() {
        let (path, mode) = file.rsplit_once(' ').unwrap();
        found.insert(path, mode);
    }
    let modes: BTreeMap<_, _> = expected.iter().map(|(path, (mode, _))| (*path, *mode)).collect();
    assert_eq!(found, modes);
    // As one reads them: each in its own process, and all that tools find out about a file.
    let all = told(
        &tree,
        "for f in $(find . -type f ! -name last_error | sort); do echo \"${f#./} = $(cat $f)\"; done",
    );
    for line in all.lines() {
        let (path, value) = line.split_once(" = ").unwrap();
        assert_eq!(value, expected[path].1, "{path}");
    }
    assert_eq!(all.lines().count(), expected.len());
    let archive =
        told(&tree, "tar cf - . | tar tf - | grep -c batch_wait_us; wc -c < relay/batch_wait_us");
    assert_eq!(archive, "1\n4", "the length is that of `100` and a line feed");
    relay.instance.stop().unwrap();
    assert!(!tree.exists(), "it goes with the relay");
}

#[test]
fn a_write_takes_effect() {
    if !privileged("a_write_takes_effect") {
        return;
    }
    let (mut relay, tree) = start("tune-write", |config| {
        config.kafka.engine = UplinkEngine::Millrace;
    });
    let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
    let service = service(&relay, &tree);
    let send = |client: &mut Client, text: &[u8]| {
        client.send(text).unwrap();
        server.next("its message", |record| record.value == text).unwrap()
    };
    let mut former = relay.connect().unwrap();
    send(&mut former, b"before");

    // A flag: no new clients, and the others stay.
    told(&service, "echo 0 > accept");
    relay.connect().unwrap().wait_end().unwrap();
    closed(&relay, "not_accepted", 1);
    send(&mut former, b"goes on");
    told(&service, "printf ' yes\\t\\n' > accept");
    send(&mut relay.connect().unwrap(), b"comes in");

    // A limit of connections that come after it.
    told(&service, "echo 4 > max_message_bytes");
    let mut next = relay.connect().unwrap();
    next.send(b"12345").unwrap();
    next.wait_end().unwrap();
    closed(&relay, "oversized_message", 1);
    send(&mut former, b"12345");
    told(&service, "echo 255 >> max_message_bytes");

    told(&service, "echo 1 > max_connections_per_address");
    let mut first = relay.connect().unwrap();
    send(&mut first, b"first");
    relay.connect().unwrap().wait_end().unwrap();
    closed(&relay, "too_many_connections", 1);
    told(&service, "echo 0 > max_connections_per_address");
    send(&mut relay.connect().unwrap(), b"second");

    // A rate of all connections.
    told(&service, "echo 200 > max_messages_per_second");
    for number in 0..600 {
        former.send(format!("rate {number:<240}").as_bytes()).unwrap();
    }
    let next = || server.next("message", |record| record.value.starts_with(b"rate ")).unwrap();
    let times: Vec<_> = (0..600).map(|_| next().unix_ms).collect();
    // A second's worth at once, the rest at the rate. What is received in one piece is one batch.
    let took = times[599] - times[0];
    assert!(
        took >= 1000,
        "{took} ms for three seconds' messages, of which one second's come at once"
    );
    assert!(relay.instance.stats().unwrap().count("throttles").unwrap() > 0);
    told(&service, "echo 0 > max_messages_per_second");

    // A time of all connections, which have been silent for less until now.
    told(&service, "echo 200 > idle_timeout_ms");
    former.wait_end().unwrap();
    first.wait_end().unwrap();
    told(&service, "echo 0 > idle_timeout_ms");

    // What another thread goes by: a batch waits for more.
    told(&tree, "echo 700000 > kafka/linger_us");
    let mut client = relay.connect().unwrap();
    let begun = Instant::now();
    send(&mut client, b"waits");
    assert!(begun.elapsed() >= Duration::from_millis(600), "{:?}", begun.elapsed());
    told(&tree, "echo 0 > kafka/linger_us");

    // What the process goes by.
    told(&tree, "echo error > log/filter; echo 33 > relay/batch_wait_us");
    told(&tree, "echo info > log/filter; echo 44 > relay/batch_wait_us");
    let told_of = |to: &str| {
        relay
            .instance
            .relay_stderr()
            .lines()
            .any(|line| line.contains("relay/batch_wait_us") && line.contains(to))
    };
    wait_until(PATIENCE, "the log", || Ok(told_of("to=\"44\""))).unwrap();
    assert!(!told_of("to=\"33\""), "{}", relay.instance.relay_stderr());
    assert_eq!(told(&tree, "cat relay/batch_wait_us"), "44");

    // A list, which is one value too; and an editor's way to write.
    told(&service, "echo '[\"a\", \"b\"]' > websocket/subprotocols");
    assert_eq!(told(&service, "cat websocket/subprotocols"), "[\"a\", \"b\"]");
    told(&service, "echo 77 | dd of=../../relay/half_close_ms conv=fsync status=none");
    told(
        &service,
        "echo 5000 > /tmp/millrace-tune-$$; cp /tmp/millrace-tune-$$ ../../relay/stop_timeout_ms; \
                    rm /tmp/millrace-tune-$$",
    );
    assert_eq!(told(&tree, "cat relay/half_close_ms relay/stop_timeout_ms"), "77\n5000");
    relay.instance.stop().unwrap();
}

#[test]
fn a_wrong_write_fails_and_changes_nothing() {
    if !privileged("a_wrong_write_fails_and_changes_nothing") {
        return;
    }
    let (mut relay, tree) = start("tune-wrong", |_| {});
    let before = told(&tree, "find . -type f ! -name last_error | sort | xargs cat");
    let long = format!("service/{}/max_message_bytes", relay.instance.config.services[0].name);
    let long = long.as_str();
    for (file, value, message, reason) in [
        (
            "relay/batch_wait_us",
            "100001",
            "Numerical result out of range",
            "must be from 0 to 100000",
        ),
        ("relay/batch_wait_us", "-1", "Numerical result out of range", "must be from 0 to 100000"),
        ("relay/batch_wait_us", "fast", "Invalid argument", "`fast` is no whole number"),
        ("relay/reply_pause_bytes", "1048576", "Invalid argument", "must be below"),
        ("relay/workers", "2", "Operation not permitted", "restart the relay"),
        ("kafka/linger_us", "2", "Operation not permitted", "librdkafka reads it when"),
        ("gateway/heartbeat_timeout_ms", "500", "Operation not permitted", "without a gateway"),
        (
            "hold/max_age_ms",
            "999999999999",
            "Numerical result out of range",
            "with which the relay has started",
        ),
        (long, "2000000", "Numerical result out of range", "take no longer records"),
        ("log/filter", "millrace_relay=loud", "Invalid argument", "valid examples"),
        ("relay/last_error", "x", "Operation not permitted", ""),
        ("relay/weather", "1", "Operation not permitted", ""),
    ] {
        let finished = shell(&tree, &format!("echo '{value}' > {file}"));
        assert_eq!(finished.status.code(), Some(1), "{file}: {}", finished.stderr);
        assert!(finished.stderr.contains(message), "{file}: {}", finished.stderr);
        if !reason.is_empty() {
            let (folder, _) = file.rsplit_once('/').unwrap();
            let last = told(&tree, &format!("cat {folder}/last_error"));
            assert!(last.contains(file) && last.contains(reason), "{last}");
            assert!(relay.instance.relay_stderr().contains(reason), "the log has it too");
        }
    }
    for script in [
        "rm relay/batch_wait_us",
        "mkdir x",
        "mv relay/id relay/batch_wait_us",
        "ln -s a b",
        "chmod 600 relay/id",
    ] {
        let finished = shell(&tree, script);
        assert!(!finished.status.success(), "{script}");
        assert!(finished.stderr.contains("Operation not permitted"), "{}", finished.stderr);
    }
    let mut nobody = Command::new("cat");
    let finished = run("cat", nobody.arg(tree.join("relay/id")).uid(65_534).gid(65_534), PATIENCE);
    assert!(finished.unwrap().stderr.contains("Permission denied"), "root alone gets in");
    assert_eq!(told(&tree, "find . -type f ! -name last_error | sort | xargs cat"), before);
    relay.instance.stop().unwrap();
}

#[test]
fn a_killed_relay_leaves_a_tree_that_the_next_one_replaces() {
    if !privileged("a_killed_relay_leaves_a_tree_that_the_next_one_replaces") {
        return;
    }
    let (mut relay, tree) = start("tune-kill", |_| {});
    // Somebody is in it, and has a file open.
    let mut command = Command::new("bash");
    command.args(["-c", "exec 3< id; echo in; sleep 300"]).current_dir(tree.join("relay"));
    let inside = Process::spawn("bash", &mut command).unwrap();
    inside.wait_line("in", PATIENCE).unwrap();
    for _ in 0..2 {
        relay.instance.kill().unwrap();
        let finished = shell(Path::new("/"), &format!("ls {}", tree.display()));
        assert!(!finished.status.success(), "nobody answers: {}", finished.stdout);
        relay.instance.start().unwrap();
        assert_eq!(told(&tree, "cat relay/batch_wait_us"), "100");
    }
    relay.instance.stop().unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(tree.to_str().unwrap()), "nothing is left: {mounts}");
}

#[test]
fn who_looks_while_the_relay_stands_still_can_be_ended() {
    if !privileged("who_looks_while_the_relay_stands_still_can_be_ended") {
        return;
    }
    let (mut relay, tree) = start("tune-still", |_| {});
    relay.instance.signal(Signal::STOP).unwrap();
    let file = tree.join("relay/batch_wait_us");
    for (program, arguments, signal) in [
        ("cat", vec![file.as_path()], Signal::TERM),
        ("cp", vec![Path::new("/proc/self/oom_score_adj"), &file], Signal::INT),
        ("ls", vec![tree.as_path()], Signal::KILL),
    ] {
        // Tests that a shell runs in the background inherit that SIGINT is ignored (POSIX.1, section 2.11 of
        // the shell's language), and so would this.
        let mut command = Command::new("env");
        command.args(["--default-signal=INT", program]).args(arguments);
        let looks = Process::spawn(program, &mut command).unwrap();
        // In `request_wait_answer` of `fs/fuse/dev.c`.
        let wait = PathBuf::from(format!("/proc/{}/wchan", looks.id()));
        let waits = || Ok(std::fs::read_to_string(&wait)?.contains("request_wait_answer"));
        wait_until(PATIENCE, &format!("{program} to wait"), waits).unwrap();
        let begun = Instant::now();
        looks.signal(signal).unwrap();
        let finished = looks.wait(PATIENCE).unwrap();
        assert!(begun.elapsed() < MOST_STUCK, "{program}: {:?}", begun.elapsed());
        assert!(!finished.status.success(), "{program}: nobody has answered");
    }
    relay.instance.signal(Signal::CONT).unwrap();
    assert_eq!(told(&tree, "cat relay/batch_wait_us"), "100", "nobody's write came through");
    relay.instance.stop().unwrap();
}

#[test]
fn relay_tune_does_the_same_without_the_tree() {
    let (mut relay, _) = start("tune-command", |_| {});
    let instance = &relay.instance;
    assert_eq!(tuned(instance, &["get", "relay/batch_wait_us"]), "100");
    assert_eq!(tuned(instance, &["set", "relay/batch_wait_us", "7"]), "7");
    assert_eq!(
        tuned(instance, &["set", "hold/max_per_client", "12", "--json"]),
        r#"{"path":"hold/max_per_client","value":"12"}"#
    );
    assert_eq!(tuned(instance, &["set", "log/filter", "warn"]), "warn");
    let list = tuned(instance, &["list", "relay"]);
    assert!(list.contains("relay/batch_wait_us = 7\n"), "{list}");
    assert!(list.contains("relay/id = 0    # read-only\n"), "{list}");
    assert!(tuned(instance, &[]).lines().count() > 80);
    for (arguments, why) in [
        (&["get", "relay/batch_wait_ms"][..], "did you mean `relay/batch_wait_us`?"),
        (&["get", "relay"], "is a folder of settings; `relay tune list relay` shows them"),
        (&["set", "relay/batch_wait_us", "-1"], "must be from 0 to 100000"),
        (&["set", "relay/workers", "2"], "change the configuration, and restart the relay"),
        (&["set", "batch_wait_us", "2"], "did you mean `relay/batch_wait_us`?"),
        (&["list", "weather"], "`relay tune list` shows them all"),
    ] {
        let finished = tune(instance, arguments);
        assert_eq!(finished.status.code(), Some(1), "{arguments:?}");
        assert!(finished.stderr.contains(why), "{arguments:?}: {}", finished.stderr);
    }

    // What is saved is in force after the next start, but for what is wrong.
    let file =
        instance.config_file().with_file_name(format!("{}.tune", instance.config.gateway.instance));
    let saved = tuned(instance, &["save"]);
    assert!(
        saved.ends_with("saved hold/max_per_client, log/filter, relay/batch_wait_us"),
        "{saved}"
    );
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{text}relay/workers = 2\nrelay/half_close_ms = 9\n")).unwrap();
    relay.instance.stop().unwrap();
    let checked = run("relay check", &mut relay.instance.command("check", true), PATIENCE).unwrap();
    assert_eq!(checked.status.code(), Some(1), "{}", checked.stdout);
    assert!(checked.stderr.contains("1 wrong line(s)"), "{}", checked.stderr);
    relay.instance.start().unwrap();
    let instance = &relay.instance;
    let wrong = format!("{}:5: `relay/workers` does not change", file.display());
    wait_until(PATIENCE, "a warning", || Ok(instance.relay_stderr().contains(&wrong))).unwrap();
    let values =
        ["relay/batch_wait_us", "hold/max_per_client", "log/filter", "relay/half_close_ms"]
            .map(|path| tuned(instance, &["get", path]));
    assert_eq!(values, ["7", "12", "warn", "9"]);
    tuned(instance, &["set", "relay/half_close_ms", "2000"]);
    let saved: Value = serde_json::from_str(&tuned(instance, &["save", "--json"])).unwrap();
    assert_eq!(saved["saved"].as_array().unwrap().len(), 3);
    relay.instance.stop().unwrap();
    let finished = tune(&relay.instance, &["list"]);
    assert!(finished.stderr.contains("no relay of instance"), "{}", finished.stderr);
    run_ok("rm", Command::new("rm").arg(&file), PATIENCE).unwrap();
}
