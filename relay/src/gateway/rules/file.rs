//! The file of rules: one a line, `#` begins a comment.

use std::collections::HashMap;
use std::sync::Arc;

use super::place::Where;
use super::{Action, GatewayError, Origin, Protocol, Rule, RuleMistake, RuleSet, Source, mistake};
use crate::ports::Ports;
use crate::prefix::Prefix;

const FORM: &str = "a line is `divert|pass|drop tcp|udp PREFIX port PORT|FIRST-LAST|any [from PREFIX]`, \
                    `exclude PREFIX`, or `drop from PREFIX`, each with `[device NAME] [vlan \
                    NUMBER|OUTER.INNER|none]` behind it";

impl RuleSet {
    /// Reads the text of a file of rules; `name` is what its lines are called by.
    pub fn parse(name: &str, text: &str) -> Result<Self, GatewayError> {
        let name: Arc<str> = name.into();
        let mut set = Self::default();
        let mut mistakes: Vec<RuleMistake> = Vec::new();
        for (line, number) in text.lines().zip(1..) {
            let origin = Origin::Line(Arc::clone(&name), number);
            let code = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = code.split_whitespace().collect();
            match statement(&words) {
                Ok(None) => {}
                Ok(Some(Statement::Rule(rule))) => set.rules.push((rule, origin)),
                Ok(Some(Statement::Exclusion(source))) => set.exclusions.push((source, origin)),
                Ok(Some(Statement::DroppedSource(source))) => {
                    set.dropped_sources.push((source, origin));
                }
                Err(reason) => mistakes.push(mistake(&origin, reason)),
            }
        }
        mistakes.extend(set.ties());
        mistakes.extend(set.source_ties());
        if mistakes.is_empty() { Ok(set) } else { Err(GatewayError::Rules { mistakes }) }
    }

    /// Sources that are to be excluded, and dropped.
    fn source_ties(&self) -> Vec<RuleMistake> {
        let excluded: HashMap<_, _> =
            self.exclusions.iter().map(|(source, there)| (source, there)).collect();
        let dropped = self.dropped_sources.iter();
        dropped
            .filter_map(|(source, here)| {
                let there = excluded.get(source)?;
                let reason = format!(
                    "`exclude {source}` ({there}) is about the same prefix, so neither takes \
                     precedence; remove one of them"
                );
                Some(mistake(here, reason))
            })
            .collect()
    }

    /// Rules of which neither comes before the other.
    fn ties(&self) -> Vec<RuleMistake> {
        let what = |rule: &Rule| {
            (rule.protocol, rule.source, rule.destination, rule.place.clone(), rule.ports.width())
        };
        let mut rules: Vec<_> = self.rules.iter().collect();
        // Stable: of two alike the later line is the mistake.
        rules.sort_by_cached_key(|(rule, _)| (what(rule), rule.ports.first));
        rules
            .windows(2)
            .filter_map(|pair| {
                let [(first, there), (second, here)] = pair else { return None };
                let alike = what(first) == what(second);
                (alike && first.ports.last >= second.ports.first).then(|| {
                    let reason = if first == second {
                        format!("`{second}` is already in {there}; remove one of them")
                    } else {
                        format!(
                            "`{second}` and `{first}` ({there}) have the same prefix and the same \
                             number of ports, so neither takes precedence at port {}; narrow one \
                             of them",
                            second.ports.first
                        )
                    };
                    mistake(here, reason)
                })
            })
            .collect()
    }
}

enum Statement {
    Rule(Rule),
    Exclusion(Source),
    DroppedSource(Source),
}

fn statement(words: &[&str]) -> Result<Option<Statement>, String> {
    if words.is_empty() {
        return Ok(None);
    }
    let (words, Conditions { source, place }) = conditions(words)?;
    let action = match words.first() {
        None => return Err(format!("a line needs an action; {FORM}")),
        Some(&"exclude") => {
            return match (&words[1..], source) {
                ([prefix], None) => {
                    Ok(Some(Statement::Exclusion(Source { prefix: prefix.parse()?, place })))
                }
                _ => Err(format!("`exclude` needs one prefix; {FORM}")),
            };
        }
        Some(&"drop") if words.len() == 1 || words[1] == "from" => {
            return match source {
                Some(prefix) => Ok(Some(Statement::DroppedSource(Source { prefix, place }))),
                None => Err(format!(
                    "`drop from` needs one prefix, and drops what comes from there to any destination \
                     that has a rule; to drop what goes to some destinations alone, write `drop tcp|udp \
                     PREFIX port PORTS from PREFIX`; {FORM}"
                )),
            };
        }
        Some(&"divert") => Action::Divert,
        Some(&"pass") => Action::Pass,
        Some(&"drop") => Action::Drop,
        Some(word) => return Err(format!("`{word}` is not an action; {FORM}")),
    };
    let [protocol, destination, port, ports] = words[1..] else {
        return Err(format!(
            "{} words before `from`, `device` and `vlan`, but a rule has 5; {FORM}",
            words.len()
        ));
    };
    if port != "port" {
        return Err(format!("`{port}` should be `port`; {FORM}"));
    }
    let protocol = Protocol::ALL
        .into_iter()
        .find(|known| known.name() == protocol)
        .ok_or_else(|| format!("`{protocol}` is not a protocol for rules: use tcp or udp"))?;
    let destination: Prefix = destination.parse()?;
    if let Some(source) = source.filter(|it| it.address.is_ipv4() != destination.address.is_ipv4())
    {
        return Err(format!(
            "nothing from {source} can be sent to {destination}: one is IPv4 and the other IPv6; use \
             two prefixes of one family"
        ));
    }
    let ports = self::ports(ports)?;
    Ok(Some(Statement::Rule(Rule { action, protocol, destination, ports, source, place })))
}

/// What stands behind a rule.
#[derive(Default)]
struct Conditions {
    source: Option<Prefix>,
    place: Where,
}

/// Takes the conditions off the end of a line, whatever their order.
fn conditions<'a, 'b>(words: &'a [&'b str]) -> Result<(&'a [&'b str], Conditions), String> {
    let (mut rest, mut found) = (words, Conditions::default());
    loop {
        match rest {
            [.., word @ ("from" | "device" | "vlan")] => {
                return Err(format!("`{word}` needs a value behind it; {FORM}"));
            }
            [before @ .., "from", source] if found.source.is_none() => {
                (rest, found.source) = (before, Some(source.parse()?));
            }
            [before @ .., "device", name] if found.place.device.is_none() => {
                (rest, found.place.device) = (before, Some((*name).into()));
            }
            [before @ .., "vlan", vlan] if found.place.vlan.is_none() => {
                (rest, found.place.vlan) = (before, Some(vlan.parse()?));
            }
            [.., word @ ("from" | "device" | "vlan"), _] => {
                return Err(format!("`{word}` twice: write one line for each"));
            }
            _ => return Ok((rest, found)),
        }
    }
}

fn ports(text: &str) -> Result<Ports, String> {
    if text == "any" {
        return Ok(Ports::ANY);
    }
    text.parse().map_err(|wrong: String| wrong.replace(", or FIRST-LAST", ", FIRST-LAST, or any"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(text: &str) -> Vec<String> {
        match RuleSet::parse("rules", text) {
            Err(GatewayError::Rules { mistakes }) => {
                mistakes.iter().map(ToString::to_string).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_file_is_read_and_written() {
        let set = RuleSet::parse(
            "rules",
            "# The chat.\n\n  divert tcp 203.0.113.0/24 port 7000-7010 # and more\n\
             pass tcp 203.0.113.7 port 7000\ndrop udp 2001:db8::/32 port any\n\
             exclude 198.51.100.0/24\n drop from 2001:db8:bad::/48\ndrop from 198.51.100.7\n\
             drop tcp 203.0.113.0/24 port 7000-7010 from 198.51.100.0/25\n\
             divert tcp 203.0.113.0/24 port 7000 vlan 12 device eth1\n\
             divert tcp 203.0.113.0/24 port 7000 vlan 100.12 from 192.0.2.7\n\
             exclude 198.51.100.0/24 vlan none\ndrop from 198.51.100.7 device eth1\n",
        )
        .unwrap();
        assert_eq!(
            set.lines(),
            [
                "divert tcp 203.0.113.0/24 port 7000 device eth1 vlan 12",
                "divert tcp 203.0.113.0/24 port 7000 from 192.0.2.7/32 vlan 100.12",
                "divert tcp 203.0.113.0/24 port 7000-7010",
                "drop tcp 203.0.113.0/24 port 7000-7010 from 198.51.100.0/25",
                "pass tcp 203.0.113.7/32 port 7000",
                "drop udp 2001:db8::/32 port any",
                "exclude 198.51.100.0/24",
                "exclude 198.51.100.0/24 vlan none",
                "drop from 198.51.100.7/32",
                "drop from 198.51.100.7/32 device eth1",
                "drop from 2001:db8:bad::/48",
            ]
        );
        let again = RuleSet::parse("again", &set.lines().join("\n")).unwrap();
        assert_eq!(again.lines(), set.lines());
    }

    #[test]
    fn every_wrong_line_is_reported_with_its_place_and_what_is_allowed() {
        let found = mistakes(
            "steer tcp 10.0.0.0/8 port 1\ndivert tcp 10.0.0.0/8 port 1\ndivert sctp 10.0.0.0/8 port \
             1\ndivert tcp 10.0.0.1/8 port 1\ndivert tcp 10.0.0.0/8 port 70000\ndivert tcp \
             10.0.0.0/8 port 9-3\ndivert tcp 10.0.0.0/8\ndivert tcp 10.0.0.0/8 ports 1\nexclude\n\
             drop from 10.1.0.0/16 port 1\ndrop from 10.1.0.1/16\n\
             divert tcp 10.0.0.0/8 port 2 vlan 4095\ndivert tcp 10.0.0.0/8 port 2 device\n\
             divert tcp 10.0.0.0/8 port 2 vlan 1 device a vlan 2\n\
             divert tcp 10.0.0.0/8 port 2 vlan 1 only from 10.1.0.0/16\n\
             drop tcp 10.0.0.0/8 port 2 from 2001:db8::/32\nvlan 12\n",
        );
        for (line, said) in [
            (1, "`steer` is not an action; a line is `divert|pass|drop"),
            (3, "tcp or udp"),
            (4, "did you mean 10.0.0.0/8?"),
            (5, "use 0 to 65535, FIRST-LAST, or any"),
            (6, "the first port is greater than the last"),
            (7, "3 words"),
            (8, "should be `port`"),
            (9, "needs one prefix"),
            (10, "`drop from` needs one prefix"),
            (11, "did you mean 10.1.0.0/16?"),
            (12, "`4095` is not a VLAN: use 1 to 4094"),
            (13, "`device` needs a value behind it"),
            (14, "`vlan` twice: write one line for each"),
            (15, "8 words before `from`, `device` and `vlan`, but a rule has 5"),
            (16, "one is IPv4 and the other IPv6"),
            (17, "a line needs an action; a line is"),
        ] {
            let place = format!("rules:{line}: ");
            assert!(
                found.iter().any(|text| text.starts_with(&place) && text.contains(said)),
                "{place}{said}: {found:#?}"
            );
        }
        assert_eq!(found.len(), 16, "{found:#?}");
    }

    #[test]
    fn a_source_is_excluded_or_dropped() {
        let found = mistakes("drop from 10.1.0.0/16\nexclude 10.1.0.0/16\nexclude 10.1.0.0/24\n");
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].starts_with("rules:1: ") && found[0].contains("(rules:2)"), "{found:?}");
    }

    #[test]
    fn a_tie_names_both_lines() {
        let found = mistakes(
            "divert tcp 10.0.0.0/8 port 10-20\ndivert tcp 10.0.0.0/8 port 5\npass tcp 10.0.0.0/8 \
             port 20-30\n",
        );
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].starts_with("rules:3: ") && found[0].contains("(rules:1)"), "{found:?}");
        let found = mistakes("pass udp ::/0 port any\npass udp ::/0 port 0-65535\n");
        assert!(found[0].contains("is already in rules:1"), "{found:?}");
        // The narrower decides, and so does the longer prefix or the protocol.
        let text = "divert tcp 10.0.0.0/8 port 10-20\npass tcp 10.0.0.0/8 port 20-31\ndrop tcp \
                    10.0.0.0/9 port 10-20\npass udp 10.0.0.0/8 port 10-20\n";
        assert_eq!(RuleSet::parse("rules", text).unwrap().rules.len(), 4);
    }
}
