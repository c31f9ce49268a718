//! `[gateway.sysctls]`: kernel settings of the relay namespace.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Longest value: `net.ipv4.ip_local_reserved_ports` may be a list.
const MAX_VALUE_BYTES: usize = 1024;

/// Settings that are not the operator's, by their name or what it begins with, and why.
const RESERVED: &[(&str, &str)] = &[
    (
        "net.ipv4.conf.",
        "`load` sets its devices up: they forward nothing, and accept every source and destination",
    ),
    (
        "net.ipv6.conf.",
        "`load` sets its devices up: they forward nothing, and send nothing but connections",
    ),
    ("net.ipv4.ip_forward", "in the relay namespace, a packet is for the relay or for nobody"),
    (
        "net.ipv4.tcp_syncookies",
        "the XDP programs count on 1: a flood of SYNs is answered with cookies, which they check",
    ),
    (
        "net.ipv4.tcp_keepalive_",
        "the relay sets keep-alives on each connection; write `tcp = { keepalive_idle_s = … }` in the \
         [[service]]",
    ),
    ("net.ipv6.ip_nonlocal_bind", "sockets have the addresses of servers that live elsewhere"),
];

/// Settings of the relay namespace, as sysctl(8) names them, and their values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Sysctls(BTreeMap<String, Value>);

/// A value, as it is written into the kernel's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
struct Value(String);

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrNumber;

        impl<'de> Visitor<'de> for TextOrNumber {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or a string")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
                Ok(Value(text.to_owned()))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Value, E> {
                Ok(Value(number.to_string()))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Value, E> {
                Ok(Value(number.to_string()))
            }

            // What TOML makes of a name with dots and without quotes.
            fn visit_map<A: de::MapAccess<'de>>(self, _: A) -> Result<Value, A::Error> {
                let told = "a number or a string: a name has dots, so it stands in quotes, as in \
                            \"net.ipv4.tcp_fin_timeout\" = 30";
                Err(de::Error::invalid_type(Unexpected::Map, &told))
            }
        }

        deserializer.deserialize_any(TextOrNumber)
    }
}

impl Sysctls {
    /// With these settings.
    pub fn new<const N: usize>(settings: [(&str, &str); N]) -> Self {
        let value = |(name, value): (&str, &str)| (name.to_owned(), Value(value.to_owned()));
        Self(settings.into_iter().map(value).collect())
    }

    /// Each name with its value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.0.as_str()))
    }

    /// The value of a setting, if it is one of these.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.0.as_str())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Refuses names that are none, or not the operator's, and values that are none. Only the kernel
    /// knows the rest.
    pub(super) fn check(&self) -> Result<(), String> {
        self.iter().try_for_each(|(name, value)| {
            check_name(name)?;
            check_value(name, value)
        })
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let is_legal = |part: &str| {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        !part.is_empty() && part.bytes().all(legal)
    };
    if !name.starts_with("net.") || !name.split('.').all(is_legal) {
        return Err(format!(
            "`{name}` is no name of a setting of a network namespace; such names begin with `net.` and have \
             dots between their parts, as in net.ipv4.tcp_rmem"
        ));
    }
    let is_that = |pattern: &str| {
        if pattern.ends_with(['.', '_']) { name.starts_with(pattern) } else { name == pattern }
    };
    match RESERVED.iter().find(|(pattern, _)| is_that(pattern)) {
        Some((_, why)) => Err(format!("`{name}` cannot be set: {why}")),
        None => Ok(()),
    }
}

fn check_value(name: &str, value: &str) -> Result<(), String> {
    let is_line = |value: &str| value.bytes().all(|byte| matches!(byte, b' ' | b'\t' | 33..=126));
    if value.trim().is_empty() || value.len() > MAX_VALUE_BYTES || !is_line(value) {
        return Err(format!(
            "`{name}` needs a value of 1 to {MAX_VALUE_BYTES} printable ASCII characters in one line"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &str) -> Result<Sysctls, String> {
        let sysctls: Sysctls = toml::from_str(lines).map_err(|error| error.to_string())?;
        sysctls.check().map(|()| sysctls)
    }

    #[test]
    fn a_value_is_a_number_or_a_string_and_comes_back() {
        let sysctls = read(
            "\"net.ipv4.tcp_rmem\" = \"4096 16384 6291456\"\n\"net.ipv4.tcp_fin_timeout\" = 30\n\
             \"net.ipv4.tcp_early_retrans\" = -1",
        )
        .unwrap();
        assert_eq!(sysctls.get("net.ipv4.tcp_fin_timeout"), Some("30"));
        assert_eq!(sysctls.get("net.ipv4.tcp_early_retrans"), Some("-1"));
        assert_eq!(read(&toml::to_string(&sysctls).unwrap()), Ok(sysctls));
    }

    #[test]
    fn what_is_no_name_of_a_namespace_is_refused() {
        for name in [
            "kernel.panic",
            "vm.swappiness",
            "net",
            "net.",
            "net..ipv4",
            "net.ipv4.tcp_rmem.",
            "net/ipv4/tcp_rmem",
            "net.../../kernel/panic",
            "net.ipv4.tcp rmem",
        ] {
            let told = read(&format!("\"{name}\" = 1")).expect_err(name);
            assert!(told.contains(&format!("`{name}` is no name")), "{told}");
            assert!(told.contains("net.ipv4.tcp_rmem"), "{told}");
        }
        let told = read("net.ipv4.tcp_fin_timeout = 30").expect_err("no quotes");
        assert!(told.contains("\"net.ipv4.tcp_fin_timeout\" = 30"), "{told}");
    }

    #[test]
    fn what_millrace_needs_is_refused_with_the_reason() {
        for (name, why) in [
            ("net.ipv4.ip_forward", "for nobody"),
            ("net.ipv4.conf.all.rp_filter", "every source"),
            ("net.ipv4.conf.relay0.accept_local", "every source"),
            ("net.ipv6.conf.all.forwarding", "forward nothing"),
            ("net.ipv4.tcp_syncookies", "cookies"),
            ("net.ipv4.tcp_keepalive_time", "keepalive_idle_s"),
            ("net.ipv6.ip_nonlocal_bind", "live elsewhere"),
        ] {
            let told = read(&format!("\"{name}\" = 1")).expect_err(name);
            assert!(
                told.contains(&format!("`{name}` cannot be set: ")) && told.contains(why),
                "{told}"
            );
        }
        read("\"net.ipv4.ip_forward_use_pmtu\" = 1").expect("another one");
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for value in
            ["\"\"", "\" \"", "\"1\\n2\"", "\"\\u0000\"", "\"ü\"", &format!("\"{:1025}\"", 1)]
        {
            let told = read(&format!("\"net.ipv4.tcp_rmem\" = {value}")).expect_err(value);
            assert!(told.contains("`net.ipv4.tcp_rmem` needs a value of 1 to 1024"), "{told}");
        }
        for value in ["true", "1.5", "[1, 2]"] {
            let told = read(&format!("\"net.ipv4.tcp_rmem\" = {value}")).expect_err(value);
            assert!(told.contains("expected a number or a string"), "{told}");
        }
    }
}
