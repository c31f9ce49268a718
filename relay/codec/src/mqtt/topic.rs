//! Topic names, topic filters, and which names a filter covers (section 4.7 of both versions).

/// Longest name or filter in bytes. The standard allows 65,535; a limit keeps what one client may
/// make the relay remember small.
pub(super) const MAX_TOPIC_BYTES: usize = 4096;

/// What names and filters have in common. Control characters "should not" be in them (section 1.5),
/// and a receiver may refuse them: filters are told to servers one a line.
fn is_usable(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_TOPIC_BYTES && !text.contains(char::is_control)
}

/// Whether something can be published under this name.
pub(super) fn is_name(text: &str) -> bool {
    is_usable(text) && !text.contains(['+', '#'])
}

/// Whether this is a filter: wildcards stand alone in their level, `#` in the last one.
pub(super) fn is_filter(text: &str) -> bool {
    is_usable(text) && {
        let mut levels = text.split('/').peekable();
        let mut well_formed = true;
        while let Some(level) = levels.next() {
            well_formed &= match level {
                "+" => true,
                "#" => levels.peek().is_none(),
                _ => !level.contains(['+', '#']),
            };
        }
        well_formed
    }
}

/// Whether a filter is that of a shared subscription.
pub(super) fn is_shared(filter: &str) -> bool {
    filter.starts_with("$share/")
}

/// Whether a filter covers a name.
pub(super) fn matches(filter: &str, name: &str) -> bool {
    // "The Server MUST NOT match Topic Filters starting with a wildcard character with Topic Names
    // beginning with a $ character" (MQTT-4.7.2-1).
    if name.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let (mut filter, mut name) = (filter.split('/'), name.split('/'));
    loop {
        match (filter.next(), name.next()) {
            // It covers the level above it too.
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(wanted), Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of section 4.7, in both versions.
    #[test]
    fn filters_cover_what_the_standard_says() {
        let covered = [
            ("sport/tennis/player1/#", "sport/tennis/player1"),
            ("sport/tennis/player1/#", "sport/tennis/player1/ranking"),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon"),
            ("sport/#", "sport"),
            ("#", "a/b"),
            ("sport/tennis/+", "sport/tennis/player1"),
            ("sport/+", "sport/"),
            ("+/+", "/finance"),
            ("/+", "/finance"),
            ("+", "a"),
            ("$SYS/#", "$SYS/a"),
            ("$SYS/monitor/+", "$SYS/monitor/Clients"),
            ("a//b", "a//b"),
        ];
        for (filter, name) in covered {
            assert!(is_filter(filter) && is_name(name) && matches(filter, name), "{filter} {name}");
        }
        let not_covered = [
            ("sport/tennis/+", "sport/tennis/player1/ranking"),
            ("sport/+", "sport"),
            ("+", "/finance"),
            ("#", "$SYS/a"),
            ("+/monitor/Clients", "$SYS/monitor/Clients"),
            ("A", "a"),
            ("a/b", "a"),
            ("a", "a/b"),
        ];
        for (filter, name) in not_covered {
            assert!(!matches(filter, name), "{filter} {name}");
        }
        for bad in ["", "sport/tennis#", "sport/tennis/#/ranking", "sport+", "a/b+/c", "a\nb", "##"]
        {
            assert!(!is_filter(bad), "{bad}");
        }
        for bad in ["", "a/+", "#", "a\u{7f}"] {
            assert!(!is_name(bad), "{bad}");
        }
        assert!(!is_name(&"a".repeat(MAX_TOPIC_BYTES + 1)));
    }
}
