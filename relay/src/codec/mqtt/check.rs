//! Who may connect: asked on a thread of its own, because a good hash takes tens of milliseconds and a
//! worker must not wait for anything.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use crate::config::Passwords;

/// Clients that wait to be asked about; further ones are refused.
const QUEUE: usize = 1024;

/// What tells who may connect. It may take its time.
pub(super) trait Check: Debug + Send + 'static {
    /// Whether this client may.
    fn allows(&self, client: &str, user: Option<&str>, password: Option<&[u8]>) -> bool;
}

impl Check for Passwords {
    fn allows(&self, _client: &str, user: Option<&str>, password: Option<&[u8]>) -> bool {
        self.check(user, password)
    }
}

/// An answer that will come.
#[derive(Clone, Debug, Default)]
pub(super) struct Ticket(Arc<AtomicU8>);

impl Ticket {
    const ALLOWED: u8 = 1;
    const REFUSED: u8 = 2;

    /// The answer, if it is there.
    pub(super) fn answer(&self) -> Option<bool> {
        match self.0.load(Ordering::Acquire) {
            Self::ALLOWED => Some(true),
            Self::REFUSED => Some(false),
            _ => None,
        }
    }

    fn set(&self, allowed: bool) {
        let answer = if allowed { Self::ALLOWED } else { Self::REFUSED };
        self.0.store(answer, Ordering::Release);
    }
}

#[derive(Debug)]
struct Question {
    client: Box<str>,
    user: Option<Box<str>>,
    password: Option<Box<[u8]>>,
    ticket: Ticket,
}

/// The thread's end of the worker's. The thread ends with it.
#[derive(Debug)]
pub(super) struct Checker(SyncSender<Question>);

impl Checker {
    pub(super) fn start(check: impl Check) -> Self {
        let (sender, receiver): (_, Receiver<Question>) = sync_channel(QUEUE);
        let answer = move || {
            for question in receiver {
                let Question { client, user, password, ticket } = question;
                ticket.set(check.allows(&client, user.as_deref(), password.as_deref()));
            }
        };
        std::thread::Builder::new()
            .name("mqtt-check".to_owned())
            .spawn(answer)
            .expect("a thread can be started when the relay starts");
        Self(sender)
    }

    /// Asks about a client; nothing if too many wait already.
    pub(super) fn ask(
        &self,
        client: &str,
        user: Option<&str>,
        password: Option<&[u8]>,
    ) -> Option<Ticket> {
        let ticket = Ticket::default();
        let question = Question {
            client: client.into(),
            user: user.map(Into::into),
            password: password.map(Into::into),
            ticket: ticket.clone(),
        };
        match self.0.try_send(question) {
            Ok(()) => Some(ticket),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => None,
        }
    }
}
