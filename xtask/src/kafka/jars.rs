//! Apache Kafka's jars, from Maven Central.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{paths, process};

/// The release that demo, tests and benchmarks use.
pub(crate) const VERSION: &str = "4.3.1";
/// Versions of the bindings for Kafka's logging: log4j 2 since Kafka 4, reload4j before.
const LOG4J_VERSION: &str = "2.25.4";
const RELOAD4J_VERSION: &str = "1.7.36";
const JAVA_VERSION: u32 = 17;

/// True if all jars of this version are in place.
pub(crate) fn present(folder: &Path, version: &str) -> bool {
    fs::read_to_string(folder.join(MARKER)).is_ok_and(|there| there.trim() == stamp(version))
}

const MARKER: &str = "COMPLETE";

fn stamp(version: &str) -> String {
    let (_, _, binding) = logging(version);
    format!("kafka {version} log4j {binding}")
}

/// The logging binding for this version of Kafka: group, artifact and version.
fn logging(version: &str) -> (&'static str, &'static str, &'static str) {
    if version.starts_with("3.") {
        ("org.slf4j", "slf4j-reload4j", RELOAD4J_VERSION)
    } else {
        ("org.apache.logging.log4j", "log4j-slf4j-impl", LOG4J_VERSION)
    }
}

/// Fetches the jars, and runs Kafka's `--version` to see that they load.
pub(crate) fn fetch(folder: &Path, version: &str) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("cannot replace {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let pom = folder.join("pom.xml");
    fs::write(&pom, pom_text(version))?;
    process::step(
        &format!("Apache Kafka {version} from Maven Central"),
        Command::new("mvn")
            .args(["-B", "-ntp", "-f"])
            .arg(&pom)
            .arg("dependency:copy-dependencies")
            .arg(format!("-DoutputDirectory={}", folder.display())),
        &paths::setup_log("kafka-jars"),
    )?;
    let told = process::capture(
        Command::new(java()?).arg("-cp").arg(class_path(folder)).args(["kafka.Kafka", "--version"]),
    )?;
    ensure!(told.contains(version), "Kafka's jars are of version {told}, not {version}");
    fs::write(folder.join(MARKER), stamp(version))?;
    Ok(())
}

/// The class path that holds every jar of the folder.
pub(crate) fn class_path(folder: &Path) -> PathBuf {
    folder.join("*")
}

/// The Java for Kafka: `$JAVA_HOME`'s, or the first on `PATH`.
pub(crate) fn java() -> Result<PathBuf> {
    let program = std::env::var_os("JAVA_HOME")
        .map(|home| PathBuf::from(home).join("bin/java"))
        .filter(|program| program.is_file())
        .or_else(|| process::find_program("java"));
    let Some(program) = program else {
        bail!("no Java: run `cargo xtask setup`");
    };
    Ok(program)
}

/// True if the Java is of the version that Kafka needs, or later.
pub(crate) fn java_is_recent() -> bool {
    // Reads the release file instead of running `java -version`, because the start of a JVM takes 0.1 s.
    java()
        .ok()
        .and_then(|program| fs::canonicalize(program).ok())
        .and_then(|program| program.parent()?.parent().map(|home| home.join("release")))
        .and_then(|release| fs::read_to_string(release).ok())
        .and_then(|release| major_version(&release))
        .is_some_and(|major| major >= JAVA_VERSION)
}

fn major_version(release: &str) -> Option<u32> {
    let line = release.lines().find_map(|line| line.strip_prefix("JAVA_VERSION="))?;
    line.trim_matches('"').split('.').next()?.parse().ok()
}

fn pom_text(version: &str) -> String {
    let (group, artifact, binding) = logging(version);
    format!(
        r#"<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>millrace</groupId>
  <artifactId>kafka-jars</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>{version}</version>
    </dependency>
    <dependency>
      <groupId>{group}</groupId>
      <artifactId>{artifact}</artifactId>
      <version>{binding}</version>
    </dependency>
  </dependencies>
</project>
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_release_has_the_binding_that_it_logs_by() {
        let (old, new) = (pom_text("3.6.2"), pom_text(VERSION));
        assert!(
            old.contains("<version>3.6.2</version>") && old.contains("slf4j-reload4j"),
            "{old}"
        );
        assert!(new.contains(VERSION) && new.contains("log4j-slf4j-impl"), "{new}");
        assert_eq!(stamp(VERSION), "kafka 4.3.1 log4j 2.25.4");
    }

    #[test]
    fn java_version_is_read_from_the_release_file() {
        assert_eq!(major_version("A=1\nJAVA_VERSION=\"17.0.15\"\n"), Some(17));
        assert_eq!(major_version("JAVA_VERSION=\"21\""), Some(21));
        assert_eq!(major_version("JAVA_VERSION=\"1.8.0_402\""), Some(1));
        assert_eq!(major_version(""), None);
    }
}
