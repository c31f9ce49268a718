//! `docs/settings.md` is what the table says.

use std::fmt::Write as _;

use serde_json::Value;

use super::{Change, Kind, Setting, places};
use crate::config::Config;

const DOCUMENT: &str = include_str!("../../../../docs/settings.md");
/// Set it to have the document written.
const WRITE: &str = "MILLRACE_WRITE_DOCUMENTS";

const HEAD: &str = "\
# Settings

Every setting of an instance. This page is made from the table in `relay/src/config/settings/`; a test
compares the two.

A setting's path is its key in the configuration, with `/` between the parts: `relay/batch_wait_us` is
`batch_wait_us` in the section `[relay]`. `NAME` stands for the name of a service, `ID` for the id of a declared
server; `%`, `/` and control characters in them are written as `%25`, `%2F` and so on. Every setting is shown by
`relay tune list`, and, while a relay runs as root with FUSE at hand, is a file below
`/run/millrace/INSTANCE/tune/`. [design/tuning.md](design/tuning.md) says how the two work.

The last column says for what a change takes effect while the relay runs. Where it is empty, the setting is
read-only, and the second table says how it is changed. An operator's change lasts until the relay ends;
`relay tune save` keeps it in `INSTANCE.tune` beside the configuration.
";

/// The sample, with everything that may be left out.
fn whole() -> Config {
    let sample = include_str!("../../../../docs/millrace.toml");
    let mut config: Config = toml::from_str(sample).expect("valid");
    let service: crate::config::Service = toml::from_str(
        "name = \"whole\"\nport = 1883\nframing = { type = \"lines\" }\nmqtt = { passwords = \"users\" }\n\
         prefer = { zone = \"a\" }\n\
         [[server]]\nid = \"labelled\"\naddress = \"203.0.113.13\"\npartition = 2\nlabels = { zone = \"a\" }",
    )
    .expect("valid");
    config.services.push(service);
    config.kafka.tls =
        toml::from_str("ca = \"ca.pem\"\ncertificate = \"relay.pem\"\nkey = \"relay.key\"").ok();
    config.kafka.sasl = toml::from_str(
        "mechanism = \"SCRAM-SHA-512\"\nuser = \"relay\"\npassword_file = \"kafka-password\"",
    )
    .ok();
    config.metrics = toml::from_str("listen = \"127.0.0.1:9742\"").expect("valid");
    let gateway = &mut config.gateway;
    gateway.rules = Some("example.rules".into());
    gateway.shared_addresses = vec!["00:00:5e:00:01:33".parse().expect("valid")];
    gateway.sysctls = toml::from_str("\"net.ipv4.tcp_fin_timeout\" = 30").expect("valid");
    config
}

/// One with nothing but what there must be.
fn least() -> Config {
    toml::from_str(
        "[gateway]\ndevices = [\"eth1\"]\n[[service]]\nname = \"NAME\"\nport = 7000\nmqtt = {}\n\
         [[service.server]]\nid = \"ID\"\naddress = \"203.0.113.13\"\npartition = 0",
    )
    .expect("valid")
}

/// The words that there are for a setting, if there are such: as its type names them when it knows none.
fn words(json: &Value, pointer: &str) -> Option<String> {
    let mut json = json.clone();
    *json.pointer_mut(pointer)? = Value::from("?");
    let error = serde_json::from_value::<Config>(json).err()?.to_string();
    let (_, words) = error.rsplit_once("expected ")?;
    let words = words.strip_prefix("one of ").unwrap_or(words).replace('"', "`");
    words.starts_with('`').then_some(words)
}

fn default_of(path: &str, value: Option<&Value>) -> String {
    let is_given = ["gateway/devices", "service/*/port", "server/*/address", "server/*/partition"];
    match value {
        _ if is_given.contains(&path) => "none: it must be set".to_owned(),
        _ if path == "log/filter" => "`info`, or `RUST_LOG`".to_owned(),
        None | Some(Value::Null) => String::new(),
        Some(Value::Bool(flag)) => u8::from(*flag).to_string(),
        Some(Value::String(text)) => format!("`{text}`"),
        Some(Value::Number(number)) => number.to_string(),
        Some(other) => format!("`{other}`"),
    }
}

fn document() -> String {
    let (whole, least) = (whole().serialised().unwrap(), least().serialised().unwrap());
    let (in_whole, in_least) = (places(&whole), places(&least));
    let mut text = HEAD.to_owned();
    let (mut section, mut fixed) = ("", String::new());
    for setting in Setting::all() {
        let own = setting.path.split('/').next().unwrap_or_default();
        if own != section {
            section = own;
            write!(
                text,
                "\n## {own}\n\n| setting | values | unit | default | meaning | a change takes effect for |\n\
                 |---|---|---|---|---|---|\n"
            ).unwrap();
        }
        let place = in_whole.iter().find(|place| place.setting == setting);
        let values = match setting.kind {
            Kind::Number(bounds) => bounds.to_string(),
            Kind::Flag => "1 or 0".to_owned(),
            Kind::Text => place
                .and_then(|place| words(&whole, &place.pointer))
                .unwrap_or_else(|| "text".to_owned()),
            Kind::Toml => "TOML, in one line".to_owned(),
        };
        let default = in_least.iter().find(|place| place.setting == setting);
        let default = default_of(setting.path, default.map(|place| place.value));
        let name = if own == "server" { "ID" } else { "NAME" };
        let path = setting.path.replace('*', name);
        let effect = match setting.change {
            Change::Live(effect) => effect,
            Change::Fixed(how) => {
                writeln!(fixed, "| `{path}` | {how} |").unwrap();
                ""
            }
        };
        let (unit, what) = (setting.unit(), setting.what);
        writeln!(text, "| `{path}` | {values} | {unit} | {default} | {what} | {effect} |").unwrap();
    }
    text += "\n## Read-only settings\n\n| setting | how it is changed |\n|---|---|\n";
    text += &fixed;
    text
}

#[test]
fn the_document_is_what_the_table_says() {
    let document = document();
    if std::env::var_os(WRITE).is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/settings.md");
        std::fs::write(path, &document).expect("it can be written");
    }
    assert!(
        document == DOCUMENT,
        "docs/settings.md differs; write it with {WRITE}=1, and test again"
    );
}

/// Adds the paths of all values that are no settings, and of which none is a part of one.
fn unknown(path: &str, value: &Value, found: &mut Vec<String>) {
    if Setting::find(path).is_some() {
        return;
    }
    match value {
        Value::Object(table) => {
            for (key, value) in table {
                unknown(&format!("{path}/{key}"), value, found);
            }
        }
        _ => found.push(path.to_owned()),
    }
}

#[test]
fn every_key_of_the_configuration_is_a_setting_and_the_other_way_round() {
    let config = whole().serialised().unwrap();
    let mut found = Vec::new();
    for (section, value) in config.as_object().unwrap() {
        if section != "service" {
            unknown(section, value, &mut found);
            continue;
        }
        for service in value.as_array().unwrap() {
            for (key, value) in service.as_object().unwrap() {
                match &**key {
                    "name" => {}
                    "server" => {
                        for server in value.as_array().unwrap() {
                            let keys = server.as_object().unwrap().iter();
                            keys.filter(|(key, _)| *key != "id").for_each(|(key, value)| {
                                unknown(&format!("server/*/{key}"), value, &mut found);
                            });
                        }
                    }
                    _ => unknown(&format!("service/*/{key}"), value, &mut found),
                }
            }
        }
    }
    assert!(found.is_empty(), "no settings, but in the configuration: {found:?}");
    let places = places(&config);
    for setting in Setting::all().filter(|setting| setting.is_configured) {
        let is_there = places.iter().any(|place| place.setting == setting);
        assert!(is_there, "{} is a setting, and not in the configuration", setting.path);
    }
}

#[test]
fn what_the_bounds_allow_the_types_take() {
    let config = whole().serialised().unwrap();
    for place in places(&config) {
        let Kind::Number(bounds) = place.setting.kind else { continue };
        let (least, most) = bounds.range();
        for number in [least, most] {
            assert_eq!(bounds.check(number), Ok(()), "{}", place.setting.path);
            let mut config = config.clone();
            *config.pointer_mut(&place.pointer).unwrap() = Value::from(number);
            let read: Config = serde_json::from_value(config).expect(place.setting.path);
            let again = read.serialised().unwrap();
            assert_eq!(again.pointer(&place.pointer), Some(&Value::from(number)));
        }
    }
}

#[test]
fn each_bound_is_checked() {
    let config = whole().serialised().unwrap();
    let told = |pointer: &str, number: i64| {
        let mut config = config.clone();
        *config.pointer_mut(pointer).unwrap() = Value::from(number);
        let config: Config = serde_json::from_value(config).ok()?;
        config.check().err().map(|error| error.to_string())
    };
    for place in places(&config) {
        let Kind::Number(bounds) = place.setting.kind else { continue };
        let (least, most) = bounds.range();
        for outside in [least.checked_sub(1), most.checked_add(1)].into_iter().flatten() {
            if bounds.check(outside).is_ok() {
                continue;
            }
            // What the type does not take is told before.
            let Some(told) = told(&place.pointer, outside) else { continue };
            let key = place.setting.path.rsplit('/').next().unwrap();
            assert!(told.contains(key) && told.contains("must be "), "{outside}: {told}");
        }
    }
}
