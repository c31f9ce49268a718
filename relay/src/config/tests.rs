use super::*;

/// The sample, with something else in place of a piece of it.
fn sample(piece: &str, other: &str) -> Result<(), ConfigError> {
    let text = include_str!("../../../docs/millrace.toml");
    assert!(text.contains(piece), "the sample has no `{piece}`");
    toml::from_str::<Config>(&text.replace(piece, other)).expect("valid TOML").check()
}

#[test]
fn a_device_is_named_once() {
    sample("[\"eth1\"]", "[\"eth1\", \"eth2\"]").expect("two devices");
    let twice =
        sample("[\"eth1\"]", "[\"eth1\", \"eth2\", \"eth1\"]").expect_err("one of them twice");
    assert_eq!(twice.to_string(), "gateway.devices: `eth1` is named twice");
}

#[test]
fn a_stop_has_some_time() {
    sample("workers = 0", "stop_timeout_ms = 1000").expect("a second");
    sample("workers = 0", "stop_timeout_ms = 999").expect_err("less");
}

#[test]
fn packets_are_not_collected_for_long() {
    let mode = "mode = \"new\"";
    sample(mode, "coalesce_us = 1000").expect("a millisecond");
    let told = sample(mode, "coalesce_us = 1001").expect_err("more").to_string();
    assert!(
        told.starts_with("gateway.coalesce_us: must be from 1 to 1000, or 0 for no wait"),
        "{told}"
    );
}

#[test]
fn no_property_is_silently_without_effect() {
    let linger = "linger_us = 500 ";
    let set = |engine: &str, property: &str| {
        sample(linger, &format!("engine = \"{engine}\"\nproperties = {{ {property} }}"))
    };
    let tls = "\"security.protocol\" = \"ssl\"";
    set("librdkafka", tls).expect("its own");
    let told = set("millrace", tls).expect_err("no TLS").to_string();
    assert!(told.starts_with("kafka.properties: `security.protocol` is librdkafka's"), "{told}");
    for property in [
        "\"security.protocol\" = \"PLAINTEXT\"",
        "\"client.id\" = \"edge\"",
        "\"batch.size\" = \"65536\"",
        "\"fetch.wait.max.ms\" = \"50\"",
    ] {
        set("millrace", property).expect(property);
    }
    for property in ["\"compression.type\" = \"lz4\"", "\"acks\" = \"1\""] {
        set("millrace", property).expect_err(property);
    }
}

#[test]
fn a_batch_waits_as_long_as_its_engine_needs() {
    let waits = |text: &str| {
        let kafka: KafkaSection = toml::from_str(text).expect("valid");
        kafka.linger_us()
    };
    assert_eq!([waits(""), waits("engine = \"millrace\"")], [500, 0]);
    assert_eq!(waits("engine = \"millrace\"\nlinger_us = 7"), 7);
}

#[test]
fn settings_of_the_relay_namespace_are_checked() {
    let told = sample("mode = \"new\"", "sysctls = { \"net.ipv4.ip_forward\" = 1 }");
    let told = told.expect_err("reserved").to_string();
    assert!(told.starts_with("gateway.sysctls: `net.ipv4.ip_forward` cannot be set: "), "{told}");
}

#[test]
fn options_of_sockets_are_checked() {
    let keep = "association_keep_ms = 0";
    sample(keep, "tcp = { keepalive_idle_s = 0 }").expect("off");
    let told = sample(keep, "tcp = { keepalive_probes = 0 }").expect_err("none").to_string();
    assert_eq!(told, "service `chat`: tcp.keepalive_probes must be from 1 to 127");
}

#[test]
fn mistakes_are_told_with_what_would_be_right() {
    let told = |piece: &str, other: &str| sample(piece, other).expect_err(other).to_string();
    let prefix = "topic_prefix = \"millrace.\"";
    sample(prefix, "topic_prefix = \"Edge_1-eu.\"").expect("a prefix");
    for wrong in ["a b.", "a/", "\u{fc}.", &"x".repeat(201)] {
        let told = told(prefix, &format!("topic_prefix = \"{wrong}\""));
        assert!(told.starts_with("kafka.topic_prefix: ") && told.contains("a-z"), "{told}");
    }
    assert!(told("port = 7000", "port = 0").ends_with("port must be from 1 to 65535"));
    let twice = told("[[service.server]]\nid = \"chat-2\"", "[[service.server]]\nid = \"chat-1\"");
    assert!(twice.contains("`chat-1`: needs an id that no other server has"), "{twice}");
    let other = "[[service]]\nname = \"other\"\ndestinations = [\"203.0.113.0/24\"]\nport = 7000\n\
                 framing = { type = \"lines\" }\n\n# HTTP clients";
    let taken = told("# HTTP clients", other);
    assert!(
        taken.contains("`other`: port 7000 of 203.0.113.0/24 is also service `chat`'s"),
        "{taken}"
    );
    let text = include_str!("../../../docs/millrace.toml");
    let framing = text.replace("{ type = \"length\", bytes = 4, order = \"big\" }", "\"lines\"");
    let told = toml::from_str::<Config>(&framing).expect_err("no table").to_string();
    assert!(told.contains("{ type = \"lines\" }"), "{told}");
}
