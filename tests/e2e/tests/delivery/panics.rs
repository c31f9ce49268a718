//! A panic of a thread of a running relay is an orderly end of the relay.

use std::time::{Duration, Instant};

use millrace_harness::relay::direct::Direct;
use millrace_harness::servers::by_hand::HandServer;
use millrace_harness::system::panics::Panics;
use millrace_harness::system::process::wait_until;

const STOP_MS: u32 = 6000;
const PATIENCE: Duration = Duration::from_mins(1);

#[test]
fn a_thread_that_panics_ends_the_relay_in_its_time_and_is_its_last_word() {
    // Those that do not call librdkafka.
    for thread in ["worker-0", "mover"] {
        let name = format!("millrace-panics-{thread}-{}", std::process::id());
        let panics = Panics::none(&std::env::temp_dir().join(name)).unwrap();
        let mut relay =
            Direct::build(thread, |config| config.relay.stop_timeout_ms = STOP_MS).unwrap();
        relay.instance.set_environment(panics.environment());
        relay.instance.start().unwrap();
        let server = HandServer::on(&relay.brokers, relay.topics.prefix(), &[0]).unwrap();
        let mut client = relay.connect().unwrap();
        client.send(b"before").unwrap();
        server.next("a message", |record| record.value == b"before").unwrap();

        panics.strike(thread).unwrap();
        let (begun, mut ended) = (Instant::now(), None);
        wait_until(PATIENCE, &format!("the relay to end by `{thread}`"), || {
            ended = relay.instance.take_ended()?;
            Ok(ended.is_some())
        })
        .unwrap();
        let (took, ended) = (begun.elapsed(), ended.expect("just seen"));
        let most = Duration::from_millis(STOP_MS.into()) + Duration::from_secs(3);
        assert!(took < most, "{took:?}: {ended:?}");
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        let last = ended.stderr.lines().next_back().unwrap_or_default();
        assert!(last.contains(&format!("`{thread}` has panicked at ")), "{ended:?}");
        assert!(last.contains("InvalidInput"), "it was another one: {ended:?}");
        // What it has read is known, and nothing keeps the next one from its place.
        assert!(ended.stderr.contains(" received=1 acknowledged=1 "), "{ended:?}");
        relay.instance.set_environment(Vec::new());
        relay.instance.start().unwrap();
        relay.connect().unwrap().send(b"after").unwrap();
        server.next("a message", |record| record.value == b"after").unwrap();
        relay.instance.stop().unwrap();
    }
}
