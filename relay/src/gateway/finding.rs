//! What a look at the host or a device has shown.

use std::fmt;

use serde::Serialize;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The load does not go on.
    Refuses,
    /// It works, but slower, or not with every driver.
    Costs,
    /// Good to know.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Refuses => "refuses",
            Self::Costs => "costs",
            Self::Note => "note",
        })
    }
}

/// One thing about the host or a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// Name of the device, or `host`.
    pub subject: String,
    /// For programs; never changes.
    pub code: &'static str,
    /// For people.
    pub what: String,
    /// To be typed in a shell, or, where it starts with `gateway.`, into the configuration; absent
    /// where `what` says it all.
    pub remedy: Option<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        self.remedy.as_ref().map_or(Ok(()), |remedy| write!(f, ": `{remedy}`"))
    }
}

impl Finding {
    pub(super) fn new(
        severity: Severity,
        subject: &str,
        code: &'static str,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (what, remedy) = (what.into(), Some(remedy.into()));
        Self { severity, subject: subject.to_owned(), code, what, remedy }
    }

    pub(super) fn refuses(
        subject: &str,
        code: &'static str,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(Severity::Refuses, subject, code, what, remedy)
    }
}
