//! A web site behind the gateway: every byte by curl, and a browser that shows it.
//!
//! `MILLRACE_SCREENSHOT=FILE` keeps the picture; docs/site.png is one.

use millrace_harness::clients::web::{Site, browse, speak_http};
use millrace_harness::kafka::{self, Topics};
use millrace_harness::net::netns::Topology;
use millrace_harness::relay::instance::Instance;
use millrace_harness::system::privilege;
use millrace_relay::codec::Framing;

const PORT: u16 = 80;

#[test]
fn a_browser_shows_a_site_that_comes_from_kafka() {
    let Some(_right) = privilege::shared_if_privileged() else { return };
    let hosts = Topology::new(1, 1).unwrap();
    let topics = Topics::new(&kafka::brokers(), "web");
    let mut config = hosts.config(PORT, Framing::Lines);
    speak_http(&mut config.services[0]);
    config.kafka.brokers = kafka::brokers();
    topics.prefix().clone_into(&mut config.kafka.topic_prefix);
    let mut instance = Instance::new(config, Some(&hosts.gateway.namespace())).unwrap();
    instance.load().unwrap();
    instance.start().unwrap();
    let site = Site::new("web").unwrap();
    let _server = site.serve(&kafka::brokers(), 0, topics.prefix()).unwrap();

    let (client, address) = (&hosts.clients[0], Topology::server_address(0));
    site.check_with_curl(client.command("curl"), (address, PORT).into()).unwrap();

    let picture = std::env::var_os("MILLRACE_SCREENSHOT")
        .map_or_else(|| site.path("picture.png"), Into::into);
    let chromium = client.command("chromium");
    let url = format!("http://{address}/");
    let document = browse(chromium, &url, &site.path("profile"), &picture).unwrap();
    for cell in ["64 × 48", "the same", "1048576 bytes", "3 events", "All of it has come."] {
        assert!(document.contains(cell), "no `{cell}` in {document}");
    }
    let picture = std::fs::read(picture).unwrap();
    assert!(picture.starts_with(b"\x89PNG") && picture.len() > 5000, "{} bytes", picture.len());
    assert_eq!(hosts.servers[0].tcp_segments_received().unwrap(), 0, "all went to the relay");
    assert!(instance.verdicts().unwrap().to_string().contains("redirect"));
    instance.stop().unwrap();
}
