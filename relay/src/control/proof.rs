//! The thread that proves that what is diverted is answered. Apart from the heartbeat's: the kernel may
//! take its time with questions about devices.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use millrace_common::abi;

use crate::gateway::{Diversion, Evidence, GatewayError, PathEvidence};

use super::answers::{Answers, Change, Counted, Decision};
use super::standing::Standing;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// Looks at what becomes of diverted packets, and closes ways on which nothing is answered.
pub(super) struct Proof {
    diversion: Diversion,
    standing: Standing,
    answers: Answers,
    /// As it was when nothing was lost.
    calm: Option<Evidence>,
    failed: bool,
}

impl Proof {
    pub(super) fn new(diversion: Diversion, standing: Standing) -> Self {
        Self { diversion, standing, answers: Answers::default(), calm: None, failed: false }
    }

    /// Looks until it is told to stop.
    pub(super) fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::SeqCst) {
            let looked = self.look();
            if let Err(error) = &looked
                && !self.failed
            {
                tracing::warn!(%error, "cannot see whether diverted packets are answered; retrying");
            }
            self.failed = looked.is_err();
            std::thread::sleep(PAUSE);
        }
    }

    fn look(&mut self) -> Result<(), GatewayError> {
        let evidence = self.diversion.look()?;
        let decision = self.answers.look(Instant::now(), Counted::from(&evidence));
        for path in &evidence.paths {
            let closed = decision.silent.get(&path.key()).is_some_and(|tried| !tried);
            if closed != path.closed {
                self.diversion.set_closed(path.key(), closed)?;
            }
        }
        let paths_closed = decision.silent.values().any(|tried| !tried);
        self.standing.set_unanswered(decision.cut, paths_closed);
        self.tell(&decision, &evidence);
        if self.answers.are_calm() {
            self.calm = Some(evidence);
        }
        Ok(())
    }

    fn tell(&self, decision: &Decision, evidence: &Evidence) {
        for change in &decision.changes {
            match change {
                Change::Cut(lost) => tracing::error!(
                    "new connections take the ordinary path: none of {lost} diverted packets has \
                     arrived at the relay's device; {}",
                    evidence.cause_of_loss()
                ),
                Change::Joined => {
                    tracing::info!("diverted packets arrive again: new connections are diverted");
                }
                Change::Silent(path, repeated) => {
                    let path = named(evidence, *path);
                    let before = self.calm.as_ref().unwrap_or(evidence);
                    tracing::error!(
                        "new connections of {} take the ordinary path: of several clients that have \
                         sent {repeated} SYNs again none has got an answer; {}",
                        path.name(),
                        evidence.cause_of_silence(path, before)
                    );
                }
                Change::Answered(path) => tracing::info!(
                    "a client of {} has got an answer: new connections are diverted again",
                    named(evidence, *path).name()
                ),
            }
        }
    }
}

fn named(evidence: &Evidence, path: abi::Path) -> &PathEvidence {
    evidence.paths.iter().find(|one| one.key() == path).expect("it was judged by it")
}

impl From<&Evidence> for Counted {
    fn from(evidence: &Evidence) -> Self {
        let Evidence { diverted, received, ref paths, .. } = *evidence;
        let offers = |path: &PathEvidence| abi::Offers {
            answered: path.answered,
            repeated: path.repeated + path.in_vain,
            sources: path.sources,
            ..abi::Offers::default()
        };
        Self {
            diverted,
            received,
            paths: paths.iter().map(|path| (path.key(), offers(path))).collect(),
        }
    }
}
