//! The brokers of a cluster are killed one after the other, while clients send as fast as they can.

use millrace_harness::clients::wire::frames;
use millrace_harness::kafka::three_brokers::ThreeBrokers;
use millrace_harness::relay::cluster::{Cluster, ClusterPlan};
use millrace_harness::relay::judged_run::{RunPlan, run};
use millrace_harness::system::privilege;
use millrace_relay::config::UplinkEngine;
use rustix::process::Signal;

/// Of one run; there are as many runs as the kills last.
const MESSAGES: u64 = 100_000;
/// Each broker twice.
const KILLS: usize = 6;

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
        std::thread::scope(|scope| {
            let killer = scope.spawn(|| {
                for kill in 0..KILLS {
                    let node = brokers.node(kill % 3 + 1).unwrap();
                    node.signal(Signal::KILL).unwrap();
                    node.restart().unwrap();
                }
            });
            let (wire, window) = (frames(), u32::MAX);
            let plan = RunPlan { clients: 24, messages: MESSAGES, size: 200, window, wire };
            let mut runs = 0;
            while runs == 0 || !killer.is_finished() {
                let outcome = run(&mut cluster, &plan, &mut |_, _| Ok(())).unwrap();
                assert!(outcome.is_flawless(), "{engine:?}: {outcome:#?}");
                assert_eq!(outcome.disconnected, 0, "{engine:?}: {outcome:#?}");
                let counts = (outcome.sent, outcome.delivered, outcome.replied);
                assert_eq!(counts, (MESSAGES, MESSAGES, MESSAGES), "{engine:?}");
                runs += 1;
            }
            println!("{engine:?}: {runs} runs of {MESSAGES} messages");
            killer.join().expect("each broker came back");
        });
    }
}
