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
