//! Whether an answer to a packet would go back the way that the packet came.

use std::fmt;

use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// How far the programs check where packets come from, as `rp_filter` does for what the host's stack sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReversePath {
    /// As far as the host checks it: by `net.ipv4.conf.*.rp_filter`, and IPv6 alike.
    #[default]
    Auto,
    /// They do not.
    Off,
    /// There must be a route to the source.
    Loose,
    /// It must lead out of the device by which the packet came in.
    Strict,
}

impl<'de> Deserialize<'de> for ReversePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;

        impl Visitor<'_> for Words {
            type Value = ReversePath;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"auto\", \"off\", \"loose\" or \"strict\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ReversePath, E> {
                Ok(match text {
                    "auto" => ReversePath::Auto,
                    "off" => ReversePath::Off,
                    "loose" => ReversePath::Loose,
                    "strict" => ReversePath::Strict,
                    _ => return Err(E::invalid_value(Unexpected::Str(text), &self)),
                })
            }
        }

        deserializer.deserialize_any(Words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize, Serialize)]
    struct Section {
        #[serde(default)]
        reverse_path: ReversePath,
    }

    #[test]
    fn the_four_words_and_back() {
        use ReversePath::{Auto, Loose, Off, Strict};
        for (word, reverse_path) in
            [("auto", Auto), ("off", Off), ("loose", Loose), ("strict", Strict)]
        {
            let text = format!("reverse_path = \"{word}\"\n");
            let section: Section = toml::from_str(&text).unwrap();
            assert_eq!(section, Section { reverse_path });
            assert_eq!(toml::to_string(&section).unwrap(), text);
        }
        let nothing: Section = toml::from_str("").unwrap();
        assert_eq!(nothing.reverse_path, Auto);
    }

    #[test]
    fn whoever_mistypes_is_told_what_to_type() {
        for wrong in ["\"Strict\"", "\"on\"", "\"\"", "true", "1", "[\"loose\"]"] {
            let text = format!("reverse_path = {wrong}");
            let told = toml::from_str::<Section>(&text).unwrap_err().to_string();
            let words = "expected \"auto\", \"off\", \"loose\" or \"strict\"";
            assert!(told.contains(words) && told.contains(&text), "{told}");
        }
    }
}
