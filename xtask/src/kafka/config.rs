//! The files that describe one node: its properties and its logging.

use std::{fmt::Write as _, path::Path};

/// Any valid cluster id will do: clients compare it only with itself.
pub(crate) const CLUSTER_ID: &str = "bWlsbHJhY2Uta2Fma2EtMQ";

/// `server.properties` of a single node that is broker and controller, on loopback, tuned for a
/// short start, few threads and little work while idle. `more` is set in place of what stands here.
pub(crate) fn properties(
    data: &Path,
    port: u16,
    controller_port: u16,
    session_timeout_ms: u32,
    more: &[(String, String)],
) -> String {
    let data = data.display().to_string();
    let (clients, controller) =
        (format!("127.0.0.1:{port}"), format!("127.0.0.1:{controller_port}"));
    let lines: &[(&str, &str)] = &[
        ("process.roles", "broker,controller"),
        ("node.id", "1"),
        ("controller.quorum.voters", &format!("1@{controller}")),
        ("controller.listener.names", "CONTROLLER"),
        ("listener.security.protocol.map", "CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT"),
        ("inter.broker.listener.name", "CLIENTS"),
        ("listeners", &format!("CLIENTS://{clients},CONTROLLER://{controller}")),
        ("advertised.listeners", &format!("CLIENTS://{clients}")),
        ("log.dirs", &data),
        // A topic nobody made is a mistake that must show.
        ("auto.create.topics.enable", "false"),
        ("num.partitions", "1"),
        ("default.replication.factor", "1"),
        ("min.insync.replicas", "1"),
        ("offsets.topic.replication.factor", "1"),
        ("offsets.topic.num.partitions", "1"),
        ("transaction.state.log.replication.factor", "1"),
        ("transaction.state.log.min.isr", "1"),
        ("transaction.state.log.num.partitions", "1"),
        ("share.coordinator.state.topic.replication.factor", "1"),
        ("share.coordinator.state.topic.min.isr", "1"),
        ("share.coordinator.state.topic.num.partitions", "1"),
        ("group.initial.rebalance.delay.ms", "0"),
        ("broker.heartbeat.interval.ms", "1000"),
        ("broker.session.timeout.ms", &session_timeout_ms.to_string()),
        // Records of a day's tests, not a history.
        ("log.retention.hours", "24"),
        ("log.segment.bytes", "268435456"),
        ("log.segment.delete.delay.ms", "1000"),
        // The cleaner's table of keys is on the heap: 128 MiB by default.
        ("log.cleaner.threads", "1"),
        ("log.cleaner.dedupe.buffer.size", "8388608"),
        ("num.network.threads", "2"),
        ("num.io.threads", "4"),
        ("background.threads", "2"),
        ("num.recovery.threads.per.data.dir", "1"),
        // The controller writes an empty record each time this runs out: 500 ms by default.
        ("metadata.max.idle.interval.ms", "5000"),
    ];
    let is_set = |name: &str| more.iter().any(|(set, _)| set == name);
    let usual = lines.iter().copied().filter(|(name, _)| !is_set(name));
    let more = more.iter().map(|(name, value)| (&**name, &**value));
    usual.chain(more).fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name}={value}");
        text
    })
}

/// Log4j's configuration: warnings and the broker's own story, in a file that is rolled.
pub(crate) fn logging(log: &Path) -> String {
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="WARN">
  <Appenders>
    <RollingFile name="file" fileName="{log}" filePattern="{log}.%i">
      <PatternLayout pattern="%d{{ISO8601}} %-5p %m (%c{{1}})%n"/>
      <SizeBasedTriggeringPolicy size="10 MB"/>
      <DefaultRolloverStrategy max="3"/>
    </RollingFile>
  </Appenders>
  <Loggers>
    <Root level="INFO"><AppenderRef ref="file"/></Root>
  </Loggers>
</Configuration>
"#,
        log = log.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_property_is_given_once() {
        let more = [("num.io.threads".to_owned(), "1".to_owned())];
        let text = properties(Path::new("/data"), 9092, 9093, 4000, &more);
        let mut names: Vec<_> = text.lines().map(|line| line.split_once('=').unwrap().0).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
        assert!(text.contains("listeners=CLIENTS://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093\n"));
        assert!(text.contains("\nnum.io.threads=1\n"), "what is set has its place");
    }
}
