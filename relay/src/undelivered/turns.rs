//! Whose turn it is to get the replies that waited for it, without I/O.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

/// Most deliveries of clients that are prompt. While there are so many the others wait for their turn,
/// so that a crowd that comes back is not read into memory at once.
const MOST_PROMPT: usize = 1024;
/// A delivery that is not reported within this time gives its place up: its client has it until it is
/// done with it or ends, gets no other one before, and keeps nobody else waiting. So there are at most as
/// many as connections, and each is counted in its connection's memory.
const PROMPT: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct UnderWay<D> {
    holder: String,
    delivery: D,
    /// It has a place among the prompt.
    prompt: bool,
}

/// Who waits for a delivery, and who has one. One at a time for each client, and in the order of asking.
#[derive(Debug)]
pub(crate) struct Turns<D> {
    waiting: VecDeque<String>,
    /// The same.
    asked: HashSet<String>,
    /// By number.
    under_way: HashMap<u64, UnderWay<D>>,
    /// Their clients.
    busy: HashSet<String>,
    /// Those that began with a place, the oldest first; some are over.
    begun: VecDeque<(Instant, u64)>,
    prompt: usize,
    last: u64,
}

impl<D> Turns<D> {
    pub(crate) fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            asked: HashSet::new(),
            under_way: HashMap::new(),
            busy: HashSet::new(),
            begun: VecDeque::new(),
            prompt: 0,
            last: 0,
        }
    }

    /// Something may wait for a client. One who has a delivery is asked for again at its end.
    pub(crate) fn ask(&mut self, holder: String) {
        if !self.busy.contains(&holder) && self.asked.insert(holder.clone()) {
            self.waiting.push_back(holder);
        }
    }

    /// How many ask.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Takes their places from those whose time is over.
    fn give_up_places(&mut self, now: Instant) {
        while let Some((begun, number)) = self.begun.front().copied()
            && now.saturating_duration_since(begun) >= PROMPT
        {
            self.begun.pop_front();
            if let Some(late) = self.under_way.get_mut(&number) {
                late.prompt = false;
                self.prompt -= 1;
            }
        }
    }

    /// Whose turn it is, if there is room for another delivery.
    pub(crate) fn next(&mut self, now: Instant) -> Option<String> {
        self.give_up_places(now);
        if self.prompt >= MOST_PROMPT {
            return None;
        }
        let holder = self.waiting.pop_front()?;
        self.asked.remove(&holder);
        Some(holder)
    }

    /// A number for a delivery.
    pub(crate) fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// A client was given a delivery.
    pub(crate) fn begin(&mut self, number: u64, holder: &str, delivery: D, now: Instant) {
        self.busy.insert(holder.to_owned());
        self.begun.push_back((now, number));
        self.prompt += 1;
        let under_way = UnderWay { holder: holder.to_owned(), delivery, prompt: true };
        self.under_way.insert(number, under_way);
    }

    /// All is said about a delivery: whose it was, and what. More may wait for that client.
    pub(crate) fn end(&mut self, number: u64) -> Option<(String, D)> {
        let UnderWay { holder, delivery, prompt } = self.under_way.remove(&number)?;
        self.prompt -= usize::from(prompt);
        while self.begun.front().is_some_and(|(_, begun)| !self.under_way.contains_key(begun)) {
            self.begun.pop_front();
        }
        self.busy.remove(&holder);
        self.ask(holder.clone());
        Some((holder, delivery))
    }

    /// Whether a client has a delivery.
    pub(crate) fn is_busy(&self, holder: &str) -> bool {
        self.busy.contains(holder)
    }

    /// Deliveries that have given their places up, whether others ask for them or not.
    pub(crate) fn late(&mut self, now: Instant) -> usize {
        self.give_up_places(now);
        self.under_way.len() - self.prompt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a delivery to everybody whose turn it is.
    fn go_on(turns: &mut Turns<()>, now: Instant) -> Vec<(u64, String)> {
        let mut begun = Vec::new();
        while let Some(holder) = turns.next(now) {
            let number = turns.number();
            turns.begin(number, &holder, (), now);
            begun.push((number, holder));
        }
        begun
    }

    #[test]
    fn clients_who_never_confirm_keep_others_waiting_for_a_while_and_not_for_ever() {
        let (mut turns, begun) = (Turns::new(), Instant::now());
        for client in 0..MOST_PROMPT {
            turns.ask(format!("deaf {client}"));
        }
        assert_eq!(go_on(&mut turns, begun).len(), MOST_PROMPT);
        turns.ask("honest".to_owned());
        assert_eq!(go_on(&mut turns, begun + PROMPT / 2), []);
        let [(number, holder)] = &go_on(&mut turns, begun + PROMPT)[..] else { panic!("one") };
        assert_eq!((&**holder, turns.late(begun + PROMPT)), ("honest", MOST_PROMPT));
        // It confirms, and has the next one at once, however many do not.
        assert_eq!(turns.end(*number).unwrap().0, "honest");
        assert_eq!(go_on(&mut turns, begun + PROMPT)[0].1, "honest");
        // Who is late and confirms at last gets what follows.
        turns.end(1).unwrap();
        assert_eq!(turns.late(begun + PROMPT), MOST_PROMPT - 1);
        assert_eq!(go_on(&mut turns, begun + PROMPT)[0].1, "deaf 0");
    }

    #[test]
    fn who_is_late_is_counted_though_nobody_waits() {
        let (mut turns, begun) = (Turns::new(), Instant::now());
        turns.ask("deaf".to_owned());
        assert_eq!(go_on(&mut turns, begun).len(), 1);
        assert_eq!([turns.late(begun + PROMPT / 2), turns.late(begun + PROMPT)], [0, 1]);
    }

    #[test]
    fn a_client_has_one_delivery_at_a_time_and_asks_once() {
        let (mut turns, now) = (Turns::new(), Instant::now());
        for holder in ["a", "b", "a"] {
            turns.ask(holder.to_owned());
        }
        let begun = go_on(&mut turns, now);
        assert_eq!(begun, [(1, "a".to_owned()), (2, "b".to_owned())]);
        turns.ask("a".to_owned());
        assert_eq!((turns.waiting(), turns.is_busy("a")), (0, true));
        turns.end(1).unwrap();
        assert!(turns.end(1).is_none(), "it is said once");
        assert_eq!((turns.waiting(), turns.is_busy("a")), (1, false));
    }

    #[test]
    fn who_asks_first_is_first_and_one_that_must_wait_on_goes_to_the_end() {
        let (mut turns, now) = (Turns::<()>::new(), Instant::now());
        turns.ask("a".to_owned());
        turns.ask("b".to_owned());
        let first = turns.next(now).unwrap();
        turns.ask(first);
        assert_eq!(turns.next(now).as_deref(), Some("b"));
        assert_eq!(turns.next(now).as_deref(), Some("a"));
        assert_eq!(turns.next(now), None);
    }

    /// What is kept about deliveries that are over does not grow.
    #[test]
    fn the_past_is_forgotten() {
        let (mut turns, now) = (Turns::new(), Instant::now());
        for _ in 0..10_000 {
            turns.ask("a".to_owned());
            let begun = go_on(&mut turns, now);
            turns.end(begun[0].0).unwrap();
        }
        assert!(turns.begun.len() <= 1 && turns.under_way.is_empty() && turns.prompt == 0);
    }
}
