//! `[kafka.tls]` and `[kafka.sasl]`: how the cluster is trusted, and how it is told who we are.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use millrace_wire::sasl::Mechanism;
use serde::{Deserialize, Serialize};

/// What of librdkafka's properties the sections say, so that it is said in one place.
const OWN_PROPERTIES: [&str; 8] = [
    "security.protocol",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.username",
    "sasl.password",
];

/// Connections to brokers are encrypted, with TLS 1.2 or 1.3. The files are PEM, and read at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsSection {
    /// Certificate authorities of the brokers; without it, those of the system. A broker's certificate must
    /// name its host, as `kafka.brokers` or the cluster has it, as a subject alternative name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// The relay's own certificate and those between it and its authority, for brokers that ask for one
    /// (`ssl.client.auth`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// Its private key, not encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

/// Brokers are told who we are (`sasl.enabled.mechanisms`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SaslSection {
    /// PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
    #[serde(with = "by_name")]
    pub mechanism: Mechanism,
    /// The user.
    pub user: String,
    /// A file with the password and nothing else; a newline at its end does not count.
    pub password_file: PathBuf,
}

impl TlsSection {
    /// Its files, which stand beside the configuration unless they say where.
    fn files(&mut self) -> impl Iterator<Item = (&'static str, &mut PathBuf)> {
        let all =
            [("ca", &mut self.ca), ("certificate", &mut self.certificate), ("key", &mut self.key)];
        all.into_iter().filter_map(|(name, file)| Some((name, file.as_mut()?)))
    }

    fn check(&self) -> Result<(), String> {
        match (&self.certificate, &self.key) {
            (Some(_), None) => {
                Err("certificate needs its private key: add key = \"FILE\"".to_owned())
            }
            (None, Some(_)) => {
                Err("key needs its certificate: add certificate = \"FILE\"".to_owned())
            }
            _ => Ok(()),
        }
    }
}

impl SaslSection {
    /// The password, or why there is none.
    pub fn password(&self) -> Result<String, String> {
        let file = &self.password_file;
        let text = fs::read_to_string(file).map_err(|error| {
            format!("cannot read the password from {}: {error}", file.display())
        })?;
        let password = text.strip_suffix('\n').unwrap_or(&text);
        let password = password.strip_suffix('\r').unwrap_or(password);
        if password.is_empty() {
            return Err(format!("{} is empty; it must hold the password", file.display()));
        }
        Ok(password.to_owned())
    }

    fn check(&self) -> Result<(), String> {
        if self.user.is_empty() || self.user.contains('\0') {
            return Err("user must name the user that the brokers know".to_owned());
        }
        Ok(())
    }
}

/// Finds the files, which stand beside the configuration in `base` unless they say where, and fails if one
/// cannot be read.
pub(super) fn load(
    tls: Option<&mut TlsSection>,
    sasl: Option<&mut SaslSection>,
    base: &Path,
) -> Result<(), (String, String)> {
    for (name, file) in tls.into_iter().flat_map(TlsSection::files) {
        *file = base.join(&*file);
        let problem = |error| format!("cannot read {}: {error}", file.display());
        fs::File::open(&*file).map_err(|error| (format!("kafka.tls.{name}"), problem(error)))?;
    }
    if let Some(sasl) = sasl {
        sasl.password_file = base.join(&sasl.password_file);
        sasl.password().map_err(|problem| ("kafka.sasl.password_file".to_owned(), problem))?;
    }
    Ok(())
}

/// Refuses what makes no sense, and what is said twice.
pub(super) fn check(
    tls: Option<&TlsSection>,
    sasl: Option<&SaslSection>,
    properties: &HashMap<String, String>,
) -> Result<(), (&'static str, String)> {
    tls.map_or(Ok(()), TlsSection::check).map_err(|problem| ("kafka.tls", problem))?;
    sasl.map_or(Ok(()), SaslSection::check).map_err(|problem| ("kafka.sasl", problem))?;
    if tls.is_none() && sasl.is_none() {
        return Ok(());
    }
    match OWN_PROPERTIES.into_iter().find(|name| properties.contains_key(*name)) {
        None => Ok(()),
        Some(name) => {
            let problem = format!(
                "`{name}` is what kafka.tls and kafka.sasl say; remove it here, or remove those sections"
            );
            Err(("kafka.properties", problem))
        }
    }
}

/// The same for librdkafka.
pub(crate) fn properties(
    tls: Option<&TlsSection>,
    sasl: Option<&SaslSection>,
) -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    let protocol = match (tls, sasl) {
        (None, None) => return all,
        (Some(_), None) => "ssl",
        (None, Some(_)) => "sasl_plaintext",
        (Some(_), Some(_)) => "sasl_ssl",
    };
    all.push(("security.protocol", protocol.to_owned()));
    if let Some(TlsSection { ca, certificate, key }) = tls {
        let files = [
            ("ssl.ca.location", ca),
            ("ssl.certificate.location", certificate),
            ("ssl.key.location", key),
        ];
        let path = |file: &PathBuf| file.to_string_lossy().into_owned();
        all.extend(files.into_iter().filter_map(|(name, file)| Some((name, path(file.as_ref()?)))));
    }
    if let Some(sasl) = sasl {
        all.push(("sasl.mechanisms", sasl.mechanism.name().to_owned()));
        all.push(("sasl.username", sasl.user.clone()));
        match sasl.password() {
            Ok(password) => all.push(("sasl.password", password)),
            // It could be read at the start; librdkafka says that it has none.
            Err(problem) => tracing::error!("kafka.sasl.password_file: {problem}"),
        }
    }
    all
}

/// Mechanisms by their registered names.
mod by_name {
    use millrace_wire::sasl::Mechanism;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    // The signature is serde's.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    pub(super) fn serialize<S: Serializer>(
        of: &Mechanism,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(of.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Mechanism, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KafkaSection;

    fn section(text: &str) -> Result<KafkaSection, String> {
        let section: KafkaSection = toml::from_str(text).map_err(|error| error.to_string())?;
        section.check().map_err(|error| error.to_string())?;
        Ok(section)
    }

    fn sasl(password_file: &str) -> String {
        format!(
            "sasl = {{ mechanism = 'SCRAM-SHA-512', user = 'relay', password_file = '{password_file}' }}"
        )
    }

    #[test]
    fn what_is_said_once_holds_for_both_engines() {
        for engine in ["librdkafka", "millrace"] {
            let text = format!("engine = '{engine}'\ntls = {{ ca = 'ca.pem' }}\n{}", sasl("p"));
            let section = section(&text).expect("both know it");
            assert_eq!(section.sasl.map(|sasl| sasl.mechanism), Some(Mechanism::ScramSha512));
        }
    }

    #[test]
    fn librdkafka_is_told_in_its_own_words() {
        let directory = std::env::temp_dir().join(format!("millrace-sasl-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        fs::write(directory.join("password"), "se cret\r\n").expect("a file");
        fs::write(directory.join("ca.pem"), "").expect("a file");
        let text = format!("tls = {{ ca = 'ca.pem' }}\n{}", sasl("password"));
        let mut section = section(&text).expect("it is right");
        load(section.tls.as_mut(), section.sasl.as_mut(), &directory).expect("the files are there");
        let told = properties(section.tls.as_ref(), section.sasl.as_ref());
        let ca = directory.join("ca.pem").to_string_lossy().into_owned();
        for expected in [
            ("security.protocol", "sasl_ssl"),
            ("ssl.ca.location", &ca),
            ("sasl.mechanisms", "SCRAM-SHA-512"),
            ("sasl.username", "relay"),
            ("sasl.password", "se cret"),
        ] {
            assert!(told.contains(&(expected.0, expected.1.to_owned())), "{expected:?}: {told:?}");
        }
        fs::remove_dir_all(&directory).expect("it is ours");
    }

    #[test]
    fn mistakes_are_told_with_what_to_write() {
        for (text, why) in [
            ("tls = { certificate = 'c.pem' }", "add key = \"FILE\""),
            ("tls = { key = 'k.pem' }", "add certificate = \"FILE\""),
            ("tls = { cafile = 'k.pem' }", "unknown field `cafile`"),
            (
                "sasl = { mechanism = 'GSSAPI', user = 'u', password_file = 'p' }",
                "PLAIN, SCRAM-SHA-256",
            ),
            (
                "sasl = { mechanism = 'PLAIN', user = '', password_file = 'p' }",
                "must name the user",
            ),
            ("sasl = { mechanism = 'PLAIN', user = 'u' }", "missing field `password_file`"),
            ("tls = {}\nproperties = { 'security.protocol' = 'ssl' }", "remove it here"),
            ("engine = 'millrace'\nproperties = { 'ssl.ca.location' = 'x' }", "[kafka.tls]"),
        ] {
            let told = section(text).expect_err(text);
            assert!(told.contains(why), "{text}: {told}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let base = Path::new("/nonexistent");
        let mut tls = TlsSection { ca: Some("ca.pem".into()), ..TlsSection::default() };
        let (key, problem) = load(Some(&mut tls), None, base).expect_err("there is none");
        assert_eq!(key, "kafka.tls.ca");
        assert!(problem.contains("/nonexistent/ca.pem"), "{problem}");
    }
}
