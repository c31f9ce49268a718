//! The table of all settings: what each is called, within which bounds it may be, what it means, and whether
//! it can change while the relay runs. The check of the configuration, the tree, `relay tune` and
//! `docs/settings.md` come from it.
//!
//! A setting's path is its key in the configuration, with `/` between the parts. A service's begins with
//! `service/NAME`, a server's with `server/ID`; the table has `*` for the name.

mod bounds;
#[cfg(test)]
mod document;
mod places;
mod services;
mod table;

pub use bounds::{Bounds, Refused};
pub use places::{Place, places};

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::Value;

/// What a value of a setting is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole number.
    Number(Bounds),
    /// 1 or 0, for yes and no.
    Flag,
    /// A word of those that there are for it, or any text; or none.
    Text,
    /// A list or a table, as TOML has it in one line.
    Toml,
}

/// Whether a setting can change while the relay runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It can, and this is for what a change takes effect.
    Live(&'static str),
    /// It cannot, and this is how it is changed instead.
    Fixed(&'static str),
}

/// One setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its path, with `*` in place of a service's name or a server's id.
    pub path: &'static str,
    /// What its values are.
    pub kind: Kind,
    /// What it means.
    pub what: &'static str,
    /// Whether it can change while the relay runs.
    pub change: Change,
    /// Whether it is a key of the configuration. If not, it belongs to the process alone.
    pub is_configured: bool,
}

/// How most settings are changed that cannot change while the relay runs.
pub const RESTART: &str = "change the configuration, and restart the relay";

impl Setting {
    const fn new(path: &'static str, kind: Kind, what: &'static str) -> Self {
        Self { path, kind, what, change: Change::Fixed(RESTART), is_configured: true }
    }

    const fn number(path: &'static str, least: i64, most: i64, what: &'static str) -> Self {
        Self::new(path, Kind::Number(Bounds::new(least, most)), what)
    }

    const fn flag(path: &'static str, what: &'static str) -> Self {
        Self::new(path, Kind::Flag, what)
    }

    const fn text(path: &'static str, what: &'static str) -> Self {
        Self::new(path, Kind::Text, what)
    }

    const fn toml(path: &'static str, what: &'static str) -> Self {
        Self::new(path, Kind::Toml, what)
    }

    /// Takes one number more, which has a meaning of its own.
    const fn or(self, number: i64, meaning: &'static str) -> Self {
        let Kind::Number(bounds) = self.kind else { panic!("only numbers have bounds") };
        Self { kind: Kind::Number(bounds.or(number, meaning)), ..self }
    }

    /// Takes powers of two alone.
    const fn power_of_two(self) -> Self {
        let Kind::Number(bounds) = self.kind else { panic!("only numbers have bounds") };
        Self { kind: Kind::Number(bounds.power_of_two()), ..self }
    }

    /// It can change while the relay runs, and this is for what a change takes effect.
    const fn live(self, effect: &'static str) -> Self {
        Self { change: Change::Live(effect), ..self }
    }

    /// It cannot, and this is how it is changed instead.
    const fn by(self, how: &'static str) -> Self {
        Self { change: Change::Fixed(how), ..self }
    }

    /// It is no key of the configuration.
    const fn of_process(self) -> Self {
        Self { is_configured: false, ..self }
    }

    /// Every setting, in the order of the configuration.
    pub fn all() -> impl Iterator<Item = &'static Self> {
        table::SETTINGS.iter().chain(services::SETTINGS)
    }

    /// The setting of that path, which has `*` in place of a name.
    pub fn find(path: &str) -> Option<&'static Self> {
        static BY_PATH: LazyLock<HashMap<&'static str, &'static Setting>> =
            LazyLock::new(|| Setting::all().map(|setting| (setting.path, setting)).collect());
        BY_PATH.get(path).copied()
    }

    /// The unit of its values, which its name ends with; none if they are numbers of something, or no numbers.
    pub fn unit(&self) -> &'static str {
        let units = [
            ("_ms", "ms"),
            ("_us", "µs"),
            ("_s", "s"),
            ("_bytes", "bytes"),
            ("_per_second", "1/s"),
        ];
        let is_number = matches!(self.kind, Kind::Number(_));
        let unit = units.iter().find(|(end, _)| is_number && self.path.ends_with(end));
        unit.map_or("", |(_, unit)| unit)
    }

    /// Whether it can change while the relay runs.
    pub const fn is_live(&self) -> bool {
        matches!(self.change, Change::Live(_))
    }
}

/// Checks the bounds of every setting of a configuration. The error has the key, and what is wrong with it.
pub(super) fn check(config: &Value) -> Result<(), (String, String)> {
    for place in places(config) {
        let Kind::Number(bounds) = place.setting.kind else { continue };
        let Some(number) = place.value.as_i64() else { continue };
        bounds.check(number).map_err(|refused| {
            let (owner, key) = place.key();
            match owner {
                None => (key, refused.to_string()),
                Some(owner) => (owner, format!("{key} {refused}")),
            }
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stands_there_once_and_its_unit_is_in_its_name() {
        let paths: Vec<&str> = Setting::all().map(|setting| setting.path).collect();
        for (index, path) in paths.iter().enumerate() {
            assert!(!paths[..index].contains(path), "{path} is there twice");
        }
        let unit = |path| Setting::find(path).unwrap().unit();
        assert_eq!(unit("relay/batch_wait_us"), "µs");
        assert_eq!(unit("service/*/max_messages_per_second"), "1/s");
        assert_eq!(unit("service/*/tcp/keepalive_idle_s"), "s");
        assert_eq!(unit("relay/workers"), "");
        assert_eq!(unit("gateway/devices"), "");
    }

    #[test]
    fn every_setting_says_what_it_means() {
        for setting in Setting::all() {
            let (Change::Live(change) | Change::Fixed(change)) = setting.change;
            assert!(setting.what.ends_with('.') && !change.is_empty(), "{}", setting.path);
            assert!(!change.ends_with('.'), "{}: it stands within a sentence", setting.path);
        }
    }
}
