use super::*;

fn config() -> Config {
    let text = include_str!("../../../../../docs/millrace.toml");
    toml::from_str(text).expect("the sample")
}

fn wanted(role: Role) -> Wanted {
    Wanted::all(&config()).into_iter().find(|wanted| wanted.role == role).expect("all roles")
}

/// As a relay makes it on a broker that nobody has configured.
fn made(wanted: &Wanted) -> Found {
    let mut settings: BTreeMap<String, String> = [
        ("min.insync.replicas", "1"),
        ("retention.ms", "604800000"),
        ("retention.bytes", "-1"),
        ("max.message.bytes", "1048588"),
        ("unclean.leader.election.enable", "false"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    settings.extend(wanted.properties().into_iter().map(|(name, value)| (name.to_owned(), value)));
    let partitions = usize::try_from(wanted.partitions).expect("positive");
    Found { replicas: vec![1; partitions], settings: Some(settings) }
}

fn differing(wanted: &Wanted, found: &Found) -> Vec<String> {
    compare(wanted, found).into_iter().map(|difference| difference.setting).collect()
}

fn with(wanted: &Wanted, setting: &str, value: &str) -> Vec<String> {
    let mut found = made(wanted);
    found.settings.as_mut().expect("told").insert(setting.to_owned(), value.to_owned());
    differing(wanted, &found)
}

#[test]
fn topics_that_a_relay_makes_have_nothing_wrong() {
    for wanted in Wanted::all(&config()) {
        assert_eq!(compare(&wanted, &made(&wanted)), [], "{wanted:?}");
    }
}

#[test]
fn what_a_broker_makes_by_itself_is_told() {
    let by_itself = |wanted: &Wanted| {
        let mut found = made(wanted);
        found.replicas = vec![1];
        let settings = found.settings.as_mut().expect("told");
        settings.insert("cleanup.policy".to_owned(), "delete".to_owned());
        settings.insert("message.timestamp.type".to_owned(), "CreateTime".to_owned());
        differing(wanted, &found)
    };
    let associations = by_itself(&wanted(Role::Associations));
    assert_eq!(associations, ["partitions", "cleanup.policy", "message.timestamp.type"]);
    assert_eq!(by_itself(&wanted(Role::Registry)), ["cleanup.policy", "message.timestamp.type"]);
    assert_eq!(by_itself(&wanted(Role::DeadLetter)), ["message.timestamp.type"]);
}

#[test]
fn every_property_that_matters_is_compared() {
    let uplink = wanted(Role::Uplink);
    for (setting, value) in [
        ("cleanup.policy", "compact"),
        ("message.timestamp.type", "CreateTime"),
        ("min.insync.replicas", "2"),
        ("retention.ms", "60000"),
        ("retention.bytes", "1000000"),
        ("max.message.bytes", "100000"),
        ("unclean.leader.election.enable", "true"),
    ] {
        assert_eq!(with(&uplink, setting, value), [setting], "{value}");
    }
    assert!(with(&uplink, "retention.ms", "-1").is_empty(), "kept for ever");
    let registry = wanted(Role::Registry);
    assert_eq!(with(&registry, "cleanup.policy", "compact,delete"), ["cleanup.policy"]);
    assert!(with(&registry, "retention.ms", "60000").is_empty(), "compaction has none");
    let mut two = made(&registry);
    two.replicas = vec![1, 1];
    assert_eq!(differing(&registry, &two), ["partitions"]);
}

#[test]
fn replicas_are_compared_if_the_configuration_says_how_many() {
    let mut config = config();
    let found = Found { replicas: vec![3, 3, 2, 3], ..made(&wanted(Role::Held)) };
    let of = |config: &Config| {
        let all = Wanted::all(config);
        let held = all.into_iter().find(|wanted| wanted.role == Role::Held).expect("there");
        differing(&held, &found)
    };
    assert!(of(&config).is_empty());
    config.kafka.replication = 3;
    assert_eq!(of(&config), ["replicas"]);
    let several = Found { replicas: vec![3; 4], ..made(&wanted(Role::Held)) };
    assert_eq!(differing(&wanted(Role::Held), &several), ["min.insync.replicas"]);
}

#[test]
fn held_replies_are_kept_for_as_long_as_they_may_wait() {
    let mut config = config();
    for (max_age_ms, retention_ms) in [(1000, "604800000"), (864_000_000, "1728000000")] {
        config.hold.max_age_ms = max_age_ms;
        let all = Wanted::all(&config);
        let held = all.into_iter().find(|wanted| wanted.role == Role::Held).expect("there");
        let properties = held.properties();
        assert!(properties.contains(&("retention.ms", retention_ms.to_owned())), "{properties:?}");
    }
}

#[test]
fn a_topic_must_take_the_longest_message() {
    let mut config = config();
    config.services[0].max_message_bytes = 16 << 20;
    for wanted in Wanted::all(&config).iter().filter(|wanted| !wanted.role.is_compacted()) {
        assert!(compare(wanted, &made(wanted)).is_empty(), "what is made takes it: {wanted:?}");
        let default = with(wanted, "max.message.bytes", "1048588");
        let told: &[&str] =
            if wanted.role == Role::DeadLetter { &[] } else { &["max.message.bytes"] };
        assert_eq!(default, told, "{wanted:?}");
    }
}

#[test]
fn what_may_not_be_looked_at_is_told() {
    let uplink = wanted(Role::Uplink);
    let found = Found { settings: None, ..made(&uplink) };
    let differences = compare(&uplink, &found);
    assert_eq!(differences.len(), 1);
    assert!(differences[0].to_string().contains("DESCRIBE_CONFIGS"), "{}", differences[0]);
}
