//! Where in a configuration a setting stands.

use serde_json::{Map, Value};

use super::Setting;

/// A setting of one configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Place<'a> {
    /// What it is.
    pub setting: &'static Setting,
    /// Whose it is: the name of a service, the id of a server.
    pub owner: Option<&'a str>,
    /// Where its value is (RFC 6901).
    pub pointer: String,
    /// Its value.
    pub value: &'a Value,
}

/// What of a name cannot stand in a path: what divides paths, and names that every folder has.
fn escaped(name: &str) -> String {
    if name.bytes().all(|byte| byte == b'.') {
        return name.replace('.', "%2E");
    }
    let of = |letter: char| match letter {
        '%' | '/' => format!("%{:02X}", u32::from(letter)),
        _ if letter.is_control() => format!("%{:02X}", u32::from(letter)),
        _ => letter.to_string(),
    };
    name.chars().map(of).collect()
}

impl Setting {
    /// Its path, as one of a service or a server if it is that.
    pub fn path_of(&self, owner: Option<&str>) -> String {
        match owner {
            Some(owner) => self.path.replacen('*', &escaped(owner), 1),
            None => self.path.to_owned(),
        }
    }
}

impl Place<'_> {
    /// Its path.
    pub fn path(&self) -> String {
        self.setting.path_of(self.owner)
    }

    /// Whose it is, if it is a service's or a server's, and its key there, as messages about a configuration
    /// name them.
    pub(super) fn key(&self) -> (Option<String>, String) {
        match (self.owner, self.setting.path.split_once("/*/")) {
            (Some(owner), Some((kind, key))) => {
                (Some(format!("{kind} `{owner}`")), key.replace('/', "."))
            }
            _ => (None, self.setting.path.replace('/', ".")),
        }
    }
}

/// Every setting that a serialised configuration has, in its order.
pub fn places(config: &Value) -> Vec<Place<'_>> {
    let mut found = Vec::new();
    let Some(sections) = config.as_object() else { return found };
    for (name, section) in sections.iter().filter(|(name, _)| *name != "service") {
        add(&mut found, (name, None), format!("/{name}"), section);
    }
    for (owner, service, pointer) in owned(config.get("service"), "name", "/service") {
        let keys = without(service, &["name", "server"]);
        for (key, value) in keys {
            let path = format!("service/*/{key}");
            add(&mut found, (&path, Some(owner)), format!("{pointer}/{key}"), value);
        }
    }
    for (_, service, pointer) in owned(config.get("service"), "name", "/service") {
        let servers = format!("{pointer}/server");
        for (owner, server, pointer) in owned(service.get("server"), "id", &servers) {
            for (key, value) in without(server, &["id"]) {
                let path = format!("server/*/{key}");
                add(&mut found, (&path, Some(owner)), format!("{pointer}/{key}"), value);
            }
        }
    }
    found
}

/// The elements of a list of tables, each with its name and where it is.
fn owned<'a>(
    list: Option<&'a Value>,
    key: &str,
    pointer: &str,
) -> Vec<(&'a str, &'a Map<String, Value>, String)> {
    let list = list.and_then(Value::as_array).into_iter().flatten().enumerate();
    let each = list.filter_map(|(index, one)| {
        let name = one.get(key)?.as_str()?;
        Some((name, one.as_object()?, format!("{pointer}/{index}")))
    });
    each.collect()
}

fn without<'a>(
    table: &'a Map<String, Value>,
    others: &'a [&str],
) -> impl Iterator<Item = (&'a String, &'a Value)> {
    table.iter().filter(|(key, _)| !others.contains(&key.as_str()))
}

/// Adds the setting of that path, or those below it. What is no setting is left out; a test sees to it that
/// there is none of that.
fn add<'a>(
    found: &mut Vec<Place<'a>>,
    (path, owner): (&str, Option<&'a str>),
    pointer: String,
    value: &'a Value,
) {
    if let Some(setting) = Setting::find(path) {
        found.push(Place { setting, owner, pointer, value });
    } else if let Value::Object(table) = value {
        for (key, value) in table {
            add(found, (&format!("{path}/{key}"), owner), format!("{pointer}/{key}"), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_service_and_a_server_are_found_by_name() {
        let config = json!({
            "relay": { "batch_wait_us": 7 },
            "service": [{
                "name": "a/b", "max_message_bytes": 9, "tcp": { "keepalive_probes": 3 },
                "server": [{ "id": "..", "capacity": 2 }],
            }],
        });
        let places = places(&config);
        let told: Vec<_> = places
            .iter()
            .map(|place| (place.path(), &*place.pointer, place.value.clone()))
            .collect();
        let expected = [
            ("relay/batch_wait_us", "/relay/batch_wait_us", 7),
            ("service/a%2Fb/max_message_bytes", "/service/0/max_message_bytes", 9),
            ("service/a%2Fb/tcp/keepalive_probes", "/service/0/tcp/keepalive_probes", 3),
            ("server/%2E%2E/capacity", "/service/0/server/0/capacity", 2),
        ];
        let expected: Vec<_> =
            expected.map(|(path, pointer, value)| (path.to_owned(), pointer, json!(value))).into();
        assert_eq!(told, expected);
        for place in &places {
            assert_eq!(config.pointer(&place.pointer), Some(place.value));
        }
        let keys: Vec<_> = places.iter().map(Place::key).collect();
        assert_eq!(keys[0], (None, "relay.batch_wait_us".to_owned()));
        assert_eq!(keys[2], (Some("service `a/b`".to_owned()), "tcp.keepalive_probes".to_owned()));
    }
}
