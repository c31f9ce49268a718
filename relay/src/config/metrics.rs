//! The section `[metrics]`: where a running relay serves its counters over HTTP.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Metrics for Prometheus and whoever else reads its formats.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsSection {
    /// Where they are served, `ADDRESS:PORT`: at `http://ADDRESS:PORT/metrics`, in the network namespace in
    /// which the relay was started, to everybody who can connect. By default nowhere.
    /// `relay run --metrics` takes precedence.
    pub listen: Option<Listen>,
}

/// An address to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Listen(pub SocketAddr);

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| {
            format!(
                "`{text}` is not ADDRESS:PORT; for this host alone `127.0.0.1:9742`, for everybody \
                 `0.0.0.0:9742` or `[::]:9742` (a name is not looked up)"
            )
        })
    }
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> Self {
        listen.to_string()
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_and_nonsense_is_told_what_would_be_right() {
        for text in ["127.0.0.1:9742", "[::1]:80", "[::]:0"] {
            let section: MetricsSection =
                toml::from_str(&format!("listen = \"{text}\"")).expect("an address");
            assert_eq!(section.listen.expect("given").to_string(), text);
            let written = toml::to_string(&section).expect("encodes");
            assert_eq!(toml::from_str::<MetricsSection>(&written), Ok(section));
        }
        for text in ["9742", "localhost:9742", "127.0.0.1", "::1:70000", ""] {
            let error = toml::from_str::<MetricsSection>(&format!("listen = \"{text}\""));
            let error = error.expect_err(text).to_string();
            assert!(error.contains(&format!("`{text}` is not ADDRESS:PORT")), "{error}");
        }
    }
}
