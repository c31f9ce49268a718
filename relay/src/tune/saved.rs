//! The file of saved values: lines `PATH = VALUE`, as sysctl.conf(5) has them.

use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use super::{Source, Values};

/// A file of saved values. By default nothing is saved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    file: PathBuf,
    /// What they are, with the number of the line of each.
    lines: Vec<(usize, String)>,
}

/// A line that was not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}:{number}: {problem}; the line is left out", .file.display())]
pub struct WrongLine {
    file: PathBuf,
    number: usize,
    problem: String,
}

impl Saved {
    /// Where the values of an instance are saved: beside its configuration.
    pub fn place(config: &Path, instance: &str) -> PathBuf {
        config.parent().unwrap_or(Path::new("")).join(format!("{instance}.tune"))
    }

    /// Reads a file. Nothing is saved if there is none.
    pub fn read(file: &Path) -> io::Result<Self> {
        let text = match std::fs::read_to_string(file) {
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            text => text?,
        };
        let is_setting = |line: &str| !line.is_empty() && !line.starts_with(['#', ';']);
        let lines = (1..).zip(text.lines().map(|line| line.trim().to_owned()));
        let lines = lines.filter(|(_, line)| is_setting(line)).collect();
        Ok(Self { file: file.to_owned(), lines })
    }

    /// Applies all lines, in whatever order they go together; gives those that are wrong.
    pub fn apply(&self, to: &dyn Source) -> Vec<WrongLine> {
        let (mut left, mut wrong) = (Vec::new(), Vec::new());
        for (number, line) in &self.lines {
            match line.split_once('=') {
                Some((path, value)) => left.push((*number, path.trim(), value.trim())),
                None => wrong.push(self.wrong(*number, "it is not `PATH = VALUE`".to_owned())),
            }
        }
        // One may be right only after another: `reply_pause_bytes` is below `reply_limit_bytes`.
        loop {
            let before = left.len();
            let mut problems = Vec::new();
            left.retain(|(number, path, value)| match to.set(path, value) {
                Ok(_) => false,
                Err(refusal) => {
                    problems.push(self.wrong(*number, refusal.to_string()));
                    true
                }
            });
            if left.is_empty() || left.len() == before {
                wrong.extend(problems);
                wrong.sort_by_key(|line| line.number);
                return wrong;
            }
        }
    }

    fn wrong(&self, number: usize, problem: String) -> WrongLine {
        WrongLine { file: self.file.clone(), number, problem }
    }

    /// Writes what of the values differs from the configuration's, in place of what the file has. Gives the
    /// paths.
    pub fn write<'a>(
        file: &Path,
        values: impl IntoIterator<Item = (&'a str, &'a str)>,
        configured: &Values,
    ) -> io::Result<Vec<&'a str>> {
        let differs = |(path, text): &(&str, &str)| {
            let own = configured.entry(path);
            own.is_ok_and(|own| own.fixed.is_none() && own.text != *text)
        };
        let differing: Vec<_> = values.into_iter().filter(differs).collect();
        let draft = file.with_added_extension("draft");
        let mut to = File::create(&draft)?;
        writeln!(to, "# Written by `relay tune save`; applied when the relay starts.")?;
        for (path, text) in &differing {
            writeln!(to, "{path} = {text}")?;
        }
        to.sync_all()?;
        std::fs::rename(&draft, file)?;
        Ok(differing.into_iter().map(|(path, _)| path).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Draft;
    use super::*;
    use crate::config::Config;

    fn configured() -> Values {
        let config: Config =
            toml::from_str(include_str!("../../../docs/millrace.toml")).expect("valid");
        Values::new(&config, "info", &[]).expect("it can be shown")
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("millrace-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        folder
    }

    #[test]
    fn it_is_beside_the_configuration() {
        let place = |config: &str| Saved::place(Path::new(config), "edge");
        assert_eq!(place("/etc/millrace/millrace.toml"), Path::new("/etc/millrace/edge.tune"));
        assert_eq!(place("millrace.toml"), Path::new("edge.tune"));
    }

    #[test]
    fn what_differs_is_written_and_is_in_force_after_a_start() {
        let folder = folder("saved");
        let file = folder.join("edge.tune");
        let running = Draft::new(configured());
        // Below what the configuration has as the lower one of the two.
        for (path, value) in [
            ("relay/reply_pause_bytes", "1000"),
            ("relay/reply_limit_bytes", "2000"),
            ("service/chat/accept", "0"),
            ("service/chat/websocket/origins", "[\"https://a?b = c\"]"),
            ("log/filter", "warn,millrace_relay=debug"),
        ] {
            running.set(path, value).expect(path);
        }
        let now = running.values();
        let values = || now.entries().iter().map(|one| (one.path.as_str(), one.text.as_str()));
        let written = Saved::write(&file, values(), &configured()).expect("it can be written");
        assert_eq!(written.len(), 5, "{written:?}");
        let next = Draft::new(configured());
        assert_eq!(Saved::read(&file).expect("it is there").apply(&next), []);
        assert_eq!(next.values().entries(), now.entries());
        // What differs no more is taken out.
        running.set("service/chat/accept", "1").expect("it can be changed");
        let now = running.values();
        let values = now.entries().iter().map(|one| (one.path.as_str(), one.text.as_str()));
        assert_eq!(Saved::write(&file, values, &configured()).expect("it is written").len(), 4);
        assert!(!std::fs::read_to_string(&file).unwrap().contains("accept"));
        std::fs::remove_dir_all(folder).expect("it was there");
    }

    #[test]
    fn a_wrong_line_is_told_and_the_others_are_applied() {
        let folder = folder("wrong");
        let file = folder.join("edge.tune");
        let text = "# a remark\n\nrelay/batch_wait_us = 7\nrelay/batch_wait_us\nrelay/workers = 3\n\
                    relay/half_close_ms=9\nrelay/halve_close_ms = 9\nrelay/stop_timeout_ms = soon\n";
        std::fs::write(&file, text).expect("it can be written");
        let to = Draft::new(configured());
        let saved = Saved::read(&file).expect("it is there");
        let told: Vec<String> = saved.apply(&to).iter().map(ToString::to_string).collect();
        let place = file.display();
        assert_eq!(told.len(), 4, "{told:?}");
        for (told, (line, why)) in told.iter().zip([
            (4, "it is not `PATH = VALUE`"),
            (5, "does not change while the relay runs"),
            (7, "did you mean `relay/half_close_ms`"),
            (8, "`soon` is no whole number"),
        ]) {
            assert!(told.starts_with(&format!("{place}:{line}: ")) && told.contains(why), "{told}");
        }
        let shown = |path: &str| to.values().entry(path).unwrap().text.clone();
        assert_eq!(["relay/batch_wait_us", "relay/half_close_ms"].map(shown), ["7", "9"]);
        assert_eq!(Saved::read(&folder.join("none.tune")).expect("none is none").apply(&to), []);
        std::fs::remove_dir_all(folder).expect("it was there");
    }
}
