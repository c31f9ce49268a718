//! The brokers of a cluster are killed one after the other, while clients send as fast as they can.

use anyhow::Result;
use millrace_harness::clients::wire::frames;
use millrace_harness::kafka::three_brokers::ThreeBrokers;
use millrace_harness::relay::cluster::{Cluster, ClusterPlan};
use millrace_harness::relay::judged_run::{RunPlan, Snapshot, run};
use millrace_harness::system::privilege;
use millrace_relay::config::UplinkEngine;
use rustix::process::Signal;

const MESSAGES: u64 = 200_000;
/// So many messages are delivered between two kills.
const BETWEEN: u64 = 20_000;
/// Each broker twice.
const KILLS: u64 = 6;

/// Each time about a third of the partitions change their leader, and back.
#[test]
#[ignore = "three brokers, and minutes: `cargo xtask test-brokers three-nodes` runs it"]
fn brokers_that_are_killed_in_turns_lose_nothing_with_either_engine() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let brokers = ThreeBrokers::start("rolling").unwrap();
    for engine in [UplinkEngine::Librdkafka, UplinkEngine::Millrace] {
        let plan =
            ClusterPlan { brokers: brokers.addresses(), ..ClusterPlan::small("rolling", 12) };
        let mut cluster = Cluster::build_with(plan, |config| {
            config.kafka.engine = engine;
            config.kafka.partition_in_flight_bytes = 256 << 10;
        })
        .unwrap();
        cluster.start().unwrap();
        let mut kills = 0;
        let mut observe = |_: &mut Cluster, snapshot: &Snapshot| -> Result<()> {
            if kills < KILLS && snapshot.delivered >= (kills + 1) * BETWEEN {
                let node = brokers.node(usize::try_from(kills % 3)? + 1)?;
                node.signal(Signal::KILL)?;
                node.restart()?;
                kills += 1;
            }
            Ok(())
        };
        let plan = RunPlan {
            clients: 24,
            messages: MESSAGES,
            size: 200,
            window: u32::MAX,
            wire: frames(),
        };
        let outcome = run(&mut cluster, &plan, &mut observe).unwrap();
        assert_eq!(kills, KILLS, "the run was over before");
        assert!(outcome.is_flawless(), "{engine:?}: {outcome:#?}");
        assert_eq!(outcome.disconnected, 0, "{engine:?}: {outcome:#?}");
        let counts = (outcome.sent, outcome.delivered, outcome.replied);
        assert_eq!(counts, (MESSAGES, MESSAGES, MESSAGES), "{engine:?}");
    }
}
