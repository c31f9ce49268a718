//! Settings that no relay goes by: to see what would be taken.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Refusal, Source, Values};

/// Takes every change that its values take.
#[derive(Debug)]
pub struct Draft(Mutex<Arc<Values>>);

impl Draft {
    /// One that begins with these.
    pub fn new(values: Values) -> Self {
        Self(Mutex::new(Arc::new(values)))
    }
}

impl Source for Draft {
    fn values(&self) -> Arc<Values> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, path: &str, text: &str) -> Result<String, Refusal> {
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = values.with(path, text)?;
        let invalid = |problem: String| Refusal::Invalid { path: path.to_owned(), problem };
        let now = values.changed(&changed).map_err(|error| invalid(error.to_string()))?;
        let shown = now.entry(path)?.text.clone();
        *values = Arc::new(now);
        Ok(shown)
    }
}
