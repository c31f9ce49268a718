//! Why a setting is not changed.

/// Why a setting is not changed, or not shown. What to do is in the message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such setting.
    #[error("`{path}` is no setting{}", nearest_ones(.nearest))]
    Unknown {
        /// What was asked for.
        path: String,
        /// What was perhaps meant.
        nearest: Vec<String>,
    },
    /// It is not a value of that kind, or does not go with other settings. (EINVAL)
    #[error("`{path}`: {problem}")]
    Invalid {
        /// The setting.
        path: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// It lies outside its bounds. (ERANGE)
    #[error("`{path}` {problem}")]
    OutOfRange {
        /// The setting.
        path: String,
        /// What it must be.
        problem: String,
    },
    /// It does not change while the relay runs. (EPERM)
    #[error("`{path}` does not change while the relay runs: {how}")]
    Fixed {
        /// The setting.
        path: String,
        /// How it is changed instead.
        how: String,
    },
    /// Somebody who has to take part does not. (EBUSY)
    #[error("`{path}` is not changed: {why}")]
    Busy {
        /// The setting.
        path: String,
        /// Who does not, and what to do.
        why: String,
    },
}

impl Refusal {
    /// That of a path that is no setting, when these are all.
    pub fn unknown<'a>(path: &str, known: impl Iterator<Item = &'a str> + Clone) -> Self {
        Self::Unknown { path: path.to_owned(), nearest: nearest(path, known) }
    }
}

fn nearest_ones(nearest: &[String]) -> String {
    match nearest {
        [] => "; `relay tune list` shows them all".to_owned(),
        _ => format!("; did you mean `{}`?", nearest.join("` or `")),
    }
}

/// How many letters have to be inserted, deleted or replaced to get from one to the other (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (above, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = above + 1;
        for (index, against) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *against);
            diagonal = row[index + 1];
            row[index + 1] = replaced.min(diagonal + 1).min(row[index] + 1);
        }
    }
    row[other.len()]
}

/// Most paths that are proposed.
const PROPOSED: usize = 3;
/// Longer ones are nobody's slip.
const LONGEST: usize = 512;

/// The paths that were perhaps meant: those that end so, else those that are written nearly so.
fn nearest<'a>(path: &str, known: impl Iterator<Item = &'a str> + Clone) -> Vec<String> {
    if path.is_empty() || path.len() > LONGEST {
        return Vec::new();
    }
    let written = path.replace('.', "/");
    let end = format!("/{written}");
    let same_end = known.clone().filter(|one| *one == written || one.ends_with(&end));
    let mut found: Vec<String> = same_end.take(PROPOSED).map(str::to_owned).collect();
    if found.is_empty() {
        let most = (written.len() / 4).max(3);
        let mut near: Vec<_> = known
            .map(|one| (distance(&written, one), one))
            .filter(|(letters, _)| *letters <= most)
            .collect();
        near.sort_unstable();
        found = near.into_iter().take(PROPOSED).map(|(_, one)| one.to_owned()).collect();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_told_with_what_was_meant() {
        let known = ["relay/batch_wait_us", "kafka/linger_us", "service/chat/idle_timeout_ms"];
        let meant = |path: &str| nearest(path, known.into_iter());
        assert_eq!(meant("relay/batch_wait_ms"), ["relay/batch_wait_us"]);
        assert_eq!(meant("relay.batch_wait_us"), ["relay/batch_wait_us"]);
        assert_eq!(meant("idle_timeout_ms"), ["service/chat/idle_timeout_ms"]);
        assert_eq!(meant("kafka/lingr_us"), ["kafka/linger_us"]);
        assert!(meant("weather").is_empty() && meant("").is_empty());
        assert!(meant(&"x".repeat(100_000)).is_empty());
        let path = "lingr_us".to_owned();
        let told = Refusal::Unknown { path, nearest: meant("kafka/lingr_us") }.to_string();
        assert_eq!(told, "`lingr_us` is no setting; did you mean `kafka/linger_us`?");
    }
}
