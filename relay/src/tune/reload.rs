//! What a configuration that is read again comes to: which values change while the relay runs, and what does not.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::codec::Passwords;
use crate::config::settings::{Change, RESTART};
use crate::config::{Config, ConfigError, Service};

use super::Values;

/// A value that the configuration has and the relay has not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The setting; `service/NAME` or `server/ID` for one that has come or gone.
    pub path: String,
    /// What it is.
    pub from: String,
    /// What it would be.
    pub to: String,
    /// How it is changed, if not by a reload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_by: Option<String>,
}

/// What a reload comes to. It is carried out whole or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reload {
    /// The configuration that was read.
    pub file: PathBuf,
    /// What changes at once.
    pub changes: Vec<Difference>,
    /// What needs a restart. If there is anything of that, nothing changes.
    pub restart: Vec<Difference>,
    /// What other commands change, whatever becomes of the reload.
    pub others: Vec<Difference>,
    /// Whether it was carried out.
    pub applied: bool,
}

impl Reload {
    /// That of a process which has read one configuration when it started, has others in force since its
    /// settings were changed, and is to have the next.
    pub fn plan(started: &Values, in_force: &Values, next: &Values) -> Self {
        let mut plan = Self { file: next.config().source.file.clone(), ..Self::default() };
        for entry in next.entries() {
            let path = entry.path.as_str();
            let (Ok(now), Ok(was)) = (in_force.entry(path), started.entry(path)) else { continue };
            let difference = |from: &str, how: Option<&str>| Difference {
                path: path.to_owned(),
                from: from.to_owned(),
                to: entry.text.clone(),
                changed_by: how.map(str::to_owned),
            };
            let Some(how) = now.fixed else {
                if now.text != entry.text || in_force.value(path) != next.value(path) {
                    plan.changes.push(difference(&now.text, None));
                }
                continue;
            };
            // What the host or a command line has made of it is not compared.
            if started.value(path) == next.value(path) {
                continue;
            }
            let is_gateways = match entry.setting.change {
                Change::Fixed(how) => how != RESTART,
                Change::Live(_) => path.starts_with("gateway/"),
            };
            let to = if is_gateways { &mut plan.others } else { &mut plan.restart };
            to.push(difference(&was.text, Some(how)));
        }
        plan.find_users(&in_force.config().services, &next.config().services);
        plan.find_owners(started, next);
        plan
    }

    /// Users are in files of their own. A service that had none, or has none any more, differs in its settings
    /// too.
    fn find_users(&mut self, in_force: &[Service], next: &[Service]) {
        fn users(service: &Service) -> Option<&Passwords> {
            service.mqtt.as_ref()?.users.as_ref()
        }
        for (now, next) in in_force.iter().zip(next) {
            if let (Some(had), Some(has)) = (users(now), users(next))
                && had != has
            {
                self.changes.push(Difference {
                    path: format!("service/{}/mqtt/passwords", next.name),
                    from: format!("users: {}", had.len()),
                    to: format!("others: {}", has.len()),
                    changed_by: None,
                });
            }
        }
    }

    /// Services and servers that have come, gone or changed places, and whatever is no setting.
    fn find_owners(&mut self, started: &Values, next: &Values) {
        if started.bare() == next.bare() {
            return;
        }
        let [was, is] = [started, next].map(|values| owners(values.config()));
        let gone = was.difference(&is).map(|path| (path, "there", "gone"));
        let new = is.difference(&was).map(|path| (path, "none", "new"));
        let named: Vec<_> = gone.chain(new).collect();
        for (path, from, to) in &named {
            self.needs_restart(path, from, to);
        }
        if named.is_empty() {
            self.needs_restart("service", "services or servers in another order", "as in the file");
        }
    }

    fn needs_restart(&mut self, path: &str, from: &str, to: &str) {
        self.restart.push(Difference {
            path: path.to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
            changed_by: Some(RESTART.to_owned()),
        });
    }

    /// Says in the log what was changed.
    pub fn tell(&self) {
        for Difference { path, from, to, .. } in &self.changes {
            tracing::info!(path, from, to, "a setting was changed");
        }
        let file = self.file.display();
        tracing::info!(%file, changes = self.changes.len(), "the configuration was reloaded");
    }

    /// The configuration that it puts into force.
    pub fn config(&self, in_force: &Values, next: &Values) -> Result<Config, ConfigError> {
        let paths: Vec<&str> = self.changes.iter().map(|one| one.path.as_str()).collect();
        in_force.taking(&paths, next)
    }
}

/// The paths of all services and servers.
fn owners(config: &Config) -> BTreeSet<String> {
    let services = config.services.iter();
    let servers = services.clone().flat_map(|service| &service.servers);
    let servers = servers.map(|server| format!("server/{}", server.id));
    services.map(|service| format!("service/{}", service.name)).chain(servers).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = include_str!("../../../docs/millrace.toml");

    fn values(replaced: &[(&str, &str)]) -> Values {
        let mut text = SAMPLE.to_owned();
        for (piece, other) in replaced {
            assert!(text.contains(piece), "{piece}");
            text = text.replacen(piece, other, 1);
        }
        let config: Config = toml::from_str(&text).expect("valid");
        config.check().expect("valid");
        Values::new(&config, "info", &[]).expect("it can be shown")
    }

    fn paths(differences: &[Difference]) -> Vec<&str> {
        differences.iter().map(|one| one.path.as_str()).collect()
    }

    const LIMIT: (&str, &str) = ("max_message_bytes = 65536", "max_message_bytes = 4096");
    const PORT: (&str, &str) = ("port = 7000", "port = 7777");
    const MODE: (&str, &str) = ("mode = \"new\"", "mode = \"all\"");

    #[test]
    fn what_differs_is_changed_or_named() {
        let started = values(&[]);
        let plan = Reload::plan(&started, &started, &started);
        assert_eq!(plan, Reload::default(), "the same configuration");
        let next = values(&[LIMIT, PORT]);
        let plan = Reload::plan(&started, &started, &next);
        assert_eq!(paths(&plan.changes), ["service/chat/max_message_bytes"]);
        assert_eq!(paths(&plan.restart), ["service/chat/port"]);
        assert_eq!((&*plan.restart[0].from, &*plan.restart[0].to), ("7000", "7777"));
        assert!(plan.others.is_empty(), "{plan:?}");
    }

    #[test]
    fn what_was_set_by_hand_is_again_as_the_configuration_has_it() {
        let (started, by_hand) = (values(&[]), values(&[LIMIT]));
        let plan = Reload::plan(&started, &by_hand, &started);
        assert_eq!(paths(&plan.changes), ["service/chat/max_message_bytes"]);
        let config = plan.config(&by_hand, &started).expect("valid");
        assert_eq!(config.services[0].max_message_bytes, 65_536);
    }

    #[test]
    fn what_the_host_has_made_of_a_value_is_no_difference() {
        let started = values(&[]);
        let mut config = started.config().clone();
        config.relay.max_connections = 17;
        let fitted = Values::new(&config, "info", &[]).expect("it can be shown");
        let plan = Reload::plan(&started, &fitted, &values(&[LIMIT]));
        assert_eq!((plan.restart.len(), plan.changes.len()), (0, 1));
        let config = plan.config(&fitted, &values(&[LIMIT])).expect("valid");
        assert_eq!(config.relay.max_connections, 17);
    }

    #[test]
    fn services_and_servers_that_come_go_or_change_places_need_a_restart() {
        let started = values(&[]);
        let restart = |next: &Values| {
            let plan = Reload::plan(&started, &started, next);
            paths(&plan.restart).into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(
            restart(&values(&[("id = \"chat-2\"", "id = \"chat-3\"")])),
            ["server/chat-2", "server/chat-3"]
        );
        assert_eq!(
            restart(&values(&[("name = \"chat\"", "name = \"talk\"")])),
            ["service/chat", "service/talk"]
        );
        let mut config = started.config().clone();
        config.services[0].servers.reverse();
        let turned = Values::new(&config, "info", &[]).expect("it can be shown");
        assert_eq!(restart(&turned), ["service"]);
    }

    #[test]
    fn what_the_gateway_reads_is_named_with_its_command() {
        let started = values(&[]);
        let plan = Reload::plan(&started, &started, &values(&[MODE]));
        assert_eq!((paths(&plan.others), plan.restart.len()), (vec!["gateway/mode"], 0));
        let how = plan.others[0].changed_by.as_deref().unwrap_or_default();
        assert!(how.contains("relay rules apply"), "{how}");
    }

    #[test]
    fn nothing_of_a_configuration_is_left_out() {
        // Whatever is neither a setting nor a name would be here.
        let bare = values(&[]).bare();
        let mut expected = serde_json::json!({ "service": [] });
        for service in &values(&[]).config().services {
            let servers: Vec<_> = service
                .servers
                .iter()
                .map(|server| serde_json::json!({ "id": server.id }))
                .collect();
            let list = expected["service"].as_array_mut().expect("a list");
            list.push(serde_json::json!({ "name": service.name, "server": servers }));
        }
        assert_eq!(bare, expected);
    }
}
