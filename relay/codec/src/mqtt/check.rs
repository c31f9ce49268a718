//! Who may connect: asked on a thread of its own, because a good hash takes tens of milliseconds and a
//! worker must not wait for anything.
//!
//! The next client is in turn the one that has waited for the least time and the one that has waited for
//! the longest. With more clients than can be asked about in the time that they have, the longest waiting
//! ones are those who are about to give up: asked about first, all would be asked about in vain. So half of
//! the thread's time goes to those who are sure to be there for the answer, and half to whose turn it is.
//! Who has gone is passed over.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::Passwords;

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

impl Question {
    /// Nobody waits for the answer any more.
    fn is_moot(&self) -> bool {
        Arc::strong_count(&self.ticket.0) == 1
    }
}

#[derive(Debug, Default)]
struct Queue {
    /// The oldest first.
    questions: VecDeque<Question>,
    /// Whether the next one is the newest.
    newest: bool,
    over: bool,
}

impl Queue {
    /// Whose turn it is.
    fn next(&mut self) -> Option<Question> {
        loop {
            self.newest = !self.newest;
            let question =
                if self.newest { self.questions.pop_back() } else { self.questions.pop_front() }?;
            if !question.is_moot() {
                return Some(question);
            }
        }
    }
}

#[derive(Debug, Default)]
struct Intake {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Intake {
    /// Every step leaves the queue whole.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next question; none, if there will be no more.
    fn next(&self) -> Option<Question> {
        let mut queue = self.queue();
        loop {
            if queue.over {
                return None;
            }
            if let Some(question) = queue.next() {
                return Some(question);
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The workers' end of the thread, which ends with it.
#[derive(Debug)]
pub(super) struct Checker(Arc<Intake>);

impl Checker {
    pub(super) fn start(check: impl Check) -> Self {
        let intake = Arc::<Intake>::default();
        let here = intake.clone();
        let answer = move || {
            while let Some(question) = here.next() {
                let Question { client, user, password, ticket } = question;
                ticket.set(check.allows(&client, user.as_deref(), password.as_deref()));
            }
        };
        std::thread::Builder::new()
            .name("mqtt-check".to_owned())
            .spawn(answer)
            .expect("a thread can be started when the relay starts");
        Self(intake)
    }

    /// Asks about a client; nothing if too many wait already.
    pub(super) fn ask(
        &self,
        client: &str,
        user: Option<&str>,
        password: Option<&[u8]>,
    ) -> Option<Ticket> {
        let mut queue = self.0.queue();
        if queue.questions.len() >= QUEUE {
            queue.questions.retain(|question| !question.is_moot());
        }
        if queue.questions.len() >= QUEUE {
            return None;
        }
        let ticket = Ticket::default();
        queue.questions.push_back(Question {
            client: client.into(),
            user: user.map(Into::into),
            password: password.map(Into::into),
            ticket: ticket.clone(),
        });
        self.0.changed.notify_one();
        Some(ticket)
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.0.queue().over = true;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(clients: &[&str]) -> (Queue, Vec<Ticket>) {
        let mut queue = Queue::default();
        let tickets = clients.iter().map(|client| {
            let ticket = Ticket::default();
            let (user, password) = (None, None);
            let client = (*client).into();
            queue.questions.push_back(Question { client, user, password, ticket: ticket.clone() });
            ticket
        });
        let tickets = tickets.collect();
        (queue, tickets)
    }

    fn order(queue: &mut Queue) -> Vec<Box<str>> {
        std::iter::from_fn(|| queue.next()).map(|question| question.client).collect()
    }

    #[test]
    fn the_newest_and_the_oldest_come_in_turn_and_who_has_gone_not_at_all() {
        let (mut queue, mut tickets) = queue(&["a", "b", "c", "d", "e", "f"]);
        tickets.remove(4);
        tickets.remove(1);
        assert_eq!(order(&mut queue).concat(), "fadc");
    }

    /// Clients that wait for three answers and then come anew, more of them than are answered in that
    /// time: with the oldest first, nobody is ever there for the answer.
    #[test]
    fn more_clients_than_can_be_asked_about_in_their_time_get_in_all_the_same() {
        const CLIENTS: usize = 150;
        const PATIENCE: usize = 3;
        let mut queue = Queue::default();
        let mut waiting: Vec<Option<(usize, Ticket)>> = vec![None; CLIENTS];
        let mut inside = std::collections::HashSet::new();
        for round in 0..2 * CLIENTS {
            for (client, place) in waiting.iter_mut().enumerate() {
                let since = place.as_ref().map(|(since, _)| *since);
                if inside.contains(&client) || since.is_some_and(|since| round - since < PATIENCE) {
                    continue;
                }
                let ticket = Ticket::default();
                *place = Some((round, ticket.clone()));
                let client = client.to_string().into();
                queue.questions.push_back(Question { client, user: None, password: None, ticket });
            }
            let question = queue.next().expect("some wait");
            let client: usize = question.client.parse().unwrap();
            // The answer takes a round: whoever is at the end of its patience has gone by then.
            let (since, _) = waiting[client].take().expect("it waits");
            if round + 1 - since < PATIENCE {
                inside.insert(client);
            }
            if inside.len() == CLIENTS {
                return;
            }
        }
        panic!("{} of {CLIENTS} got in", inside.len());
    }
}
