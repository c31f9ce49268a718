//! The values in force, as people see them, and what a change makes of them.

use std::borrow::Cow;
use std::collections::HashSet;

use serde_json::Value;

use crate::codec::MqttSection;
use crate::config::settings::{Change, Kind, Setting, places};
use crate::config::{Config, ConfigError};
use crate::logging;

use super::refusal::Refusal;

/// Longest value.
const MAX_VALUE_BYTES: usize = 2048;

/// One setting with its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its path.
    pub path: String,
    /// What it is.
    pub setting: &'static Setting,
    /// Its value, in one line.
    pub text: String,
    /// How it is changed, if not here.
    pub fixed: Option<&'static str>,
    /// Where its value is in the serialised configuration; none if it is not there: it is left out, or belongs
    /// to the process.
    pointer: Option<String>,
}

/// All of them.
#[derive(Clone, Debug)]
pub struct Values {
    config: Config,
    json: Value,
    log_filter: String,
    fixed: Vec<(&'static str, &'static str)>,
    entries: Vec<Entry>,
}

/// What a change comes to.
#[derive(Debug)]
pub enum Changed {
    /// Another configuration.
    Config(Box<Config>),
    /// What is logged.
    LogFilter(String),
}

/// What is in force where the configuration leaves something open.
fn in_force(config: &Config) -> Config {
    let mut config = config.clone();
    config.kafka.linger_us = Some(config.kafka.linger_us());
    for service in &mut config.services {
        service.mqtt.get_or_insert_with(MqttSection::default);
    }
    config
}

/// Names of librdkafka's properties have these in them if their values are nobody's business.
const SECRETS: [&str; 6] = ["password", "secret", "pem", "oauthbearer.config", "token", "jaas"];

/// A value as it may be shown: lists of settings end up in tickets and logs.
fn without_secrets<'a>(setting: &Setting, value: &'a Value) -> Cow<'a, Value> {
    let Some(properties) = value.as_object().filter(|_| setting.path == "kafka/properties") else {
        return Cow::Borrowed(value);
    };
    let hide = |(name, value): (&String, &Value)| {
        let is_secret = SECRETS.iter().any(|part| name.contains(part));
        (name.clone(), if is_secret { Value::from("(not shown)") } else { value.clone() })
    };
    Cow::Owned(properties.iter().map(hide).collect())
}

/// A value in one line.
fn in_words(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(flag) => u8::from(*flag).to_string(),
        Value::String(text) if !text.contains(char::is_control) => text.clone(),
        _ => toml::Value::try_from(value)
            .map_or_else(|_| value.to_string(), |value| value.to_string()),
    }
}

impl Values {
    /// Those of a configuration. Settings of the paths in `fixed` cannot change in this process, whatever the
    /// table says; with each is how they are changed instead.
    pub fn new(
        config: &Config,
        log_filter: &str,
        fixed: &[(&'static str, &'static str)],
    ) -> Result<Self, ConfigError> {
        let config = in_force(config);
        let json = config.serialised()?;
        let mut entries: Vec<Entry> = places(&json)
            .into_iter()
            .map(|place| Entry {
                path: place.path(),
                setting: place.setting,
                text: in_words(&without_secrets(place.setting, place.value)),
                fixed: is_fixed(place.setting, fixed),
                pointer: Some(place.pointer),
            })
            .collect();
        let known: HashSet<String> = entries.iter().map(|entry| entry.path.clone()).collect();
        for setting in Setting::all() {
            let text = if setting.is_configured { "" } else { log_filter };
            let paths = owners(&config, setting).into_iter().map(|owner| setting.path_of(owner));
            for path in paths.filter(|path| !known.contains(path)) {
                let (text, fixed) = (text.to_owned(), is_fixed(setting, fixed));
                entries.push(Entry { path, setting, text, fixed, pointer: None });
            }
        }
        entries.sort_by(|one, other| one.path.cmp(&other.path));
        let (log_filter, fixed) = (log_filter.to_owned(), fixed.to_vec());
        Ok(Self { config, json, log_filter, fixed, entries })
    }

    /// The configuration in force.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Every setting, by path.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The setting of that path.
    pub fn entry(&self, path: &str) -> Result<&Entry, Refusal> {
        let found = self.entries.binary_search_by(|entry| entry.path.as_str().cmp(path));
        found.map(|index| &self.entries[index]).map_err(|_| {
            Refusal::unknown(path, self.entries.iter().map(|entry| entry.path.as_str()))
        })
    }

    /// What these come to when one of them is changed.
    pub fn with(&self, path: &str, text: &str) -> Result<Changed, Refusal> {
        let entry = self.entry(path)?;
        if let Some(how) = entry.fixed {
            return Err(Refusal::Fixed { path: path.to_owned(), how: how.to_owned() });
        }
        let value = parse(entry, text)?;
        let invalid = |problem: String| Refusal::Invalid { path: path.to_owned(), problem };
        let Some(pointer) = &entry.pointer else {
            let filter = in_words(&value);
            logging::check_filter(&filter).map_err(invalid)?;
            return Ok(Changed::LogFilter(filter));
        };
        let mut json = self.json.clone();
        *json.pointer_mut(pointer).expect("it was found there") = value;
        let config = read(json, &self.config).map_err(invalid)?;
        config.check().map_err(|error| invalid(error.to_string()))?;
        Ok(Changed::Config(Box::new(config)))
    }

    /// What is left of it without the values of all settings: names, and whatever is no setting.
    pub(super) fn bare(&self) -> Value {
        let mut json = self.json.clone();
        for place in places(&self.json) {
            let Some((table, key)) = place.pointer.rsplit_once('/') else { continue };
            if let Some(table) = json.pointer_mut(table).and_then(Value::as_object_mut) {
                table.remove(key);
            }
        }
        prune(&mut json);
        json
    }

    /// The value of a setting as the configuration has it; none if it is left out or unknown.
    pub(super) fn value(&self, path: &str) -> Option<&Value> {
        self.json.pointer(self.entry(path).ok()?.pointer.as_deref()?)
    }

    /// What is logged.
    pub fn log_filter(&self) -> &str {
        &self.log_filter
    }

    /// The configuration in force with other values at these paths, those of `next`; and with its users.
    pub(super) fn taking(&self, paths: &[&str], next: &Self) -> Result<Config, ConfigError> {
        let mut json = self.json.clone();
        for path in paths {
            let place = self.entry(path).ok().and_then(|entry| entry.pointer.as_deref());
            let place = place.and_then(|pointer| json.pointer_mut(pointer));
            if let (Some(place), Some(value)) = (place, next.value(path)) {
                *place = value.clone();
            }
        }
        let config = read(json, &next.config)
            .map_err(|problem| ConfigError::Invalid { key: "configuration".to_owned(), problem })?;
        config.check()?;
        Ok(config)
    }

    /// Those of another configuration in this process.
    pub fn of_process(&self, config: &Config, log_filter: &str) -> Result<Self, ConfigError> {
        Self::new(config, log_filter, &self.fixed)
    }

    /// The same with other values in force.
    pub fn changed(&self, changed: &Changed) -> Result<Self, ConfigError> {
        match changed {
            Changed::Config(config) => Self::new(config, &self.log_filter, &self.fixed),
            Changed::LogFilter(filter) => Self::new(&self.config, filter, &self.fixed),
        }
    }
}

/// A configuration that was serialised, with what is not part of it then: that of `other`.
fn read(json: Value, other: &Config) -> Result<Config, String> {
    let mut config: Config = serde_json::from_value(json).map_err(|error| error.to_string())?;
    config.source.clone_from(&other.source);
    for (service, other) in config.services.iter_mut().zip(&other.services) {
        if let (Some(mqtt), Some(other)) = (&mut service.mqtt, &other.mqtt) {
            mqtt.users.clone_from(&other.users);
        }
    }
    Ok(config)
}

/// Takes away what is null, and tables without anything in them.
fn prune(value: &mut Value) {
    match value {
        Value::Object(table) => {
            table.values_mut().for_each(prune);
            table.retain(|_, value| match value {
                Value::Null => false,
                Value::Object(table) => !table.is_empty(),
                _ => true,
            });
        }
        Value::Array(list) => list.iter_mut().for_each(prune),
        _ => {}
    }
}

/// Whose settings there are of one kind.
fn owners<'a>(config: &'a Config, setting: &Setting) -> Vec<Option<&'a str>> {
    let services = config.services.iter();
    if setting.path.starts_with("service/") {
        services.map(|service| Some(service.name.as_str())).collect()
    } else if setting.path.starts_with("server/") {
        services
            .flat_map(|service| &service.servers)
            .map(|server| Some(server.id.as_str()))
            .collect()
    } else {
        vec![None]
    }
}

fn is_fixed(
    setting: &'static Setting,
    fixed: &[(&'static str, &'static str)],
) -> Option<&'static str> {
    let here = fixed.iter().find(|(path, _)| *path == setting.path).map(|(_, how)| *how);
    here.or(match setting.change {
        Change::Fixed(how) => Some(how),
        Change::Live(_) => None,
    })
}

/// Reads a value as the kernel's own files do: space around it does not count.
fn parse(entry: &Entry, text: &str) -> Result<Value, Refusal> {
    let path = &entry.path;
    let invalid = |problem: String| Refusal::Invalid { path: path.clone(), problem };
    let text = text.trim();
    if text.len() > MAX_VALUE_BYTES {
        return Err(invalid(format!("the value is longer than {MAX_VALUE_BYTES} bytes")));
    }
    if text.contains(char::is_control) {
        return Err(invalid("the value must be one line".to_owned()));
    }
    match entry.setting.kind {
        Kind::Number(bounds) => {
            let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
            if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
                return Err(invalid(format!("`{text}` is no whole number; it must be {bounds}")));
            }
            let refused =
                || Refusal::OutOfRange { path: path.clone(), problem: format!("must be {bounds}") };
            let number: i64 = text.parse().map_err(|_| refused())?;
            bounds.check(number).map_err(|_| refused())?;
            Ok(Value::from(number))
        }
        Kind::Flag => match text.to_ascii_lowercase().as_str() {
            "1" | "y" | "yes" | "on" | "true" => Ok(Value::Bool(true)),
            "0" | "n" | "no" | "off" | "false" => Ok(Value::Bool(false)),
            _ => Err(invalid(format!("`{text}` must be 1 for yes, or 0 for no"))),
        },
        Kind::Text => Ok(Value::from(text)),
        Kind::Toml => {
            let read = |error: toml::de::Error| invalid(format!("`{text}`: {}", error.message()));
            let mut table: toml::Table =
                toml::from_str(&format!("value = {text}")).map_err(read)?;
            let value = table.remove("value").unwrap_or(toml::Value::Boolean(false));
            serde_json::to_value(value).map_err(|error| invalid(error.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Values {
        let text = include_str!("../../../docs/millrace.toml");
        let config: Config = toml::from_str(text).expect("valid");
        let fixed = [("kafka/linger_us", "set it and start again")];
        Values::new(&config, "info", &fixed).expect("it can be shown")
    }

    fn set(values: &Values, path: &str, text: &str) -> Result<Values, Refusal> {
        let changed = values.with(path, text)?;
        Ok(values.changed(&changed).expect("it can be shown"))
    }

    fn get(values: &Values, path: &str) -> String {
        values.entry(path).expect("it is there").text.clone()
    }

    #[test]
    fn each_kind_of_value_is_shown_and_changed() {
        let former = values();
        for (path, shown, text, then) in [
            ("relay/batch_wait_us", "100", " 250\n", "250"),
            ("service/chat/accept", "1", "off", "0"),
            ("service/chat/idle_timeout_ms", "0", "+60000", "60000"),
            ("service/chat/websocket/reply_opcode", "same", "binary\n", "binary"),
            ("service/chat/websocket/subprotocols", "[]", "[\"a\", \"b\"]", "[\"a\", \"b\"]"),
            ("service/chat/mqtt/send_maximum", "20", "7", "7"),
            ("log/filter", "info", "debug", "debug"),
        ] {
            assert_eq!(get(&former, path), shown, "{path}");
            let now = set(&former, path, text).expect(path);
            assert_eq!(get(&now, path), then, "{path}");
            for (one, other) in former.entries().iter().zip(now.entries()) {
                assert!(one == other || one.path == path, "{} has changed too", one.path);
            }
        }
        assert_eq!(get(&former, "gateway/devices"), "[\"eth1\"]");
        assert_eq!(get(&former, "server/chat-2/partition"), "1");
        assert_eq!(get(&former, "gateway/mode"), "new");
        assert_eq!(get(&former, "gateway/rules"), "", "it is left out");
        assert_eq!(get(&former, "server/chat-1/labels"), "", "it is left out");
        assert_eq!(get(&former, "kafka/linger_us"), "500", "what is in force");
    }

    #[test]
    fn secrets_are_not_shown() {
        let mut config = values().config().clone();
        for (name, value) in [("sasl.password", "hunter2"), ("client.id", "edge")] {
            config.kafka.properties.insert(name.to_owned(), value.to_owned());
        }
        let values = Values::new(&config, "info", &[]).expect("it can be shown");
        let shown = get(&values, "kafka/properties");
        assert!(shown.contains("\"edge\"") && shown.contains("sasl.password"), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
        let now = set(&values, "relay/batch_wait_us", "7").expect("it can be changed");
        assert_eq!(
            now.config().kafka.properties,
            config.kafka.properties,
            "they stay what they are"
        );
    }

    #[test]
    fn what_is_wrong_is_refused_with_what_would_be_right() {
        let values = values();
        let refused = |path: &str, text: &str| set(&values, path, text).expect_err(path);
        let invalid = |path: &str, text: &str, why: &str| {
            let refusal = refused(path, text);
            assert!(matches!(refusal, Refusal::Invalid { .. }), "{refusal:?}");
            assert!(refusal.to_string().contains(why), "{refusal}");
        };
        for (text, why) in [
            ("", "`` is no whole number; it must be from 0 to 100000"),
            ("fast", "`fast` is no whole number"),
            ("0x10", "is no whole number"),
            ("1 2", "is no whole number"),
            ("1\n2", "must be one line"),
            ("-", "is no whole number"),
        ] {
            invalid("relay/batch_wait_us", text, why);
        }
        invalid("service/chat/accept", "2", "must be 1 for yes, or 0 for no");
        invalid("service/chat/websocket/reply_opcode", "loud", "unknown variant `loud`");
        invalid("service/chat/websocket/origins", "[", "`[`: ");
        invalid("service/chat/websocket/origins", "[\"here\"]", "is not SCHEME://HOST");
        invalid("relay/reply_pause_bytes", "1048576", "must be below relay.reply_limit_bytes");
        invalid("log/filter", &"x".repeat(3000), "longer than");
        invalid("log/filter", "millrace_relay=loud", "valid examples");
        for (path, text) in
            [("relay/batch_wait_us", "100001"), ("relay/batch_wait_us", "99999999999999999999")]
        {
            let refusal = refused(path, text);
            assert!(matches!(refusal, Refusal::OutOfRange { .. }), "{refusal:?}");
            assert!(refusal.to_string().ends_with("must be from 0 to 100000"), "{refusal}");
        }
        let fixed = refused("relay/workers", "3");
        assert!(matches!(fixed, Refusal::Fixed { .. }), "{fixed:?}");
        assert!(fixed.to_string().ends_with("restart the relay"), "{fixed}");
        let here = refused("kafka/linger_us", "3").to_string();
        assert!(here.ends_with("set it and start again"), "{here}");
        let unknown = refused("relay/batch_wait_ms", "3").to_string();
        assert!(unknown.contains("did you mean `relay/batch_wait_us`"), "{unknown}");
    }
}
