//! Apache Kafka's jars, from Maven Central.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{paths, process};

/// The release that is fetched.
pub(crate) const VERSION: &str = "4.3.1";
/// The binding that carries Kafka's log lines to the log4j which it brings along.
const LOG4J_VERSION: &str = "2.25.4";
const JAVA_VERSION: u32 = 17;

/// Whether all jars of this version lie in place.
pub(crate) fn present(folder: &Path) -> bool {
    fs::read_to_string(folder.join(MARKER)).is_ok_and(|version| version.trim() == stamp())
}

const MARKER: &str = "COMPLETE";

fn stamp() -> String {
    format!("kafka {VERSION} log4j {LOG4J_VERSION}")
}

/// Fetches the jars and asks Kafka for its version, which shows that they load.
pub(crate) fn fetch(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("cannot replace {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let pom = folder.join("pom.xml");
    fs::write(&pom, pom_text())?;
    process::step(
        &format!("Apache Kafka {VERSION} from Maven Central"),
        Command::new("mvn")
            .args(["-B", "-ntp", "-f"])
            .arg(&pom)
            .arg("dependency:copy-dependencies")
            .arg(format!("-DoutputDirectory={}", folder.display())),
        &paths::setup_log("kafka-jars"),
    )?;
    let version = process::capture(
        Command::new(java()?).arg("-cp").arg(class_path(folder)).args(["kafka.Kafka", "--version"]),
    )?;
    ensure!(version.contains(VERSION), "Kafka's jars say they are {version}, not {VERSION}");
    fs::write(folder.join(MARKER), stamp())?;
    Ok(())
}

/// The class path that holds every jar of the folder.
pub(crate) fn class_path(folder: &Path) -> PathBuf {
    folder.join("*")
}

/// A Java that Kafka runs on: `$JAVA_HOME`'s, or the first on `PATH`.
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

/// Whether there is a Java of the version that Kafka needs, or a later one.
pub(crate) fn java_is_recent() -> bool {
    // The release file is read rather than `java -version` run: starting a JVM takes 0.1 s.
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

fn pom_text() -> String {
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
      <version>{VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId>
      <artifactId>log4j-slf4j-impl</artifactId>
      <version>{LOG4J_VERSION}</version>
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
    fn java_version_is_read_from_the_release_file() {
        assert_eq!(major_version("A=1\nJAVA_VERSION=\"17.0.15\"\n"), Some(17));
        assert_eq!(major_version("JAVA_VERSION=\"21\""), Some(21));
        assert_eq!(major_version("JAVA_VERSION=\"1.8.0_402\""), Some(1));
        assert_eq!(major_version(""), None);
    }
}
