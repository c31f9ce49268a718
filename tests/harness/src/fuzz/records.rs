//! Fuzz targets of what others write down: records of the registry, and the operator's configuration.

use millrace_relay::codec::Protocol;
use millrace_relay::config::Config;
use millrace_relay::model::{ConnectionKey, HeaderList};
use millrace_relay::registry::{Outcome, Registry};

/// Lines of `KEY TAB VALUE`, without a tab a tombstone: who folds them is never surprised, comes to
/// the same whenever it folds them, and names the key of a record as it was.
pub fn registry(input: &[u8]) {
    let records = || {
        input.split(|byte| *byte == b'\n').map(|line| {
            let tab = line.iter().position(|byte| *byte == b'\t');
            tab.map_or((line, None), |tab| (&line[..tab], Some(&line[tab + 1..])))
        })
    };
    let mut first = Registry::default();
    for (offset, (key, value)) in (0..).zip(records()) {
        let named = match first.apply(offset, key, value) {
            Outcome::Changed(key) => Some(key),
            Outcome::Refused(_, key) => key,
        };
        if let Some(named) = named {
            assert_eq!(named.to_string().as_bytes(), key, "a record has another key");
        }
    }
    let mut again = Registry::default();
    for (offset, (key, value)) in (0..).zip(records()) {
        again.apply(offset, key, value);
    }
    assert_eq!(first, again);
}

/// A configuration that passes the check is one that a relay can make its protocols of.
pub fn config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(config) = toml::from_str::<Config>(text) else { return };
    if config.check().is_err() {
        return;
    }
    let now = std::time::Instant::now();
    for service in &config.services {
        let protocol = Protocol::from(&service.codec());
        let codec = protocol.codec(now);
        assert!(
            codec.kept_bytes() <= 1 << 20,
            "an idle connection holds {} bytes",
            codec.kept_bytes()
        );
        let _ = protocol.check_reply(HeaderList::default().headers(), b"reply");
    }
}

/// A record's key: what is accepted is printed as it was.
pub fn key(input: &[u8]) {
    if let Ok(key) = ConnectionKey::parse(input) {
        assert_eq!(&key.print()[..], input);
    }
}
