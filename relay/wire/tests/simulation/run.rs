//! One run: records in random bursts, faults for a while, then peace; and what must hold.

use std::collections::HashMap;
use std::ops::AddAssign;
use std::time::{Duration, Instant};

use bytes::Bytes;
use millrace_wire::batch::{Constant, Tag};
use millrace_wire::sasl::{Login, Mechanism};
use millrace_wire::uplink::{Fate as Told, MOST_OF_PARTITION, Order, Refusal, Settings, Uplink};

use crate::cluster::{Cluster, Faults, Odd, PORT, REFUSALS, REVOKED, TOPIC};
use crate::dice::Dice;
use crate::log::Log;
use crate::network::{Event, Network};

/// Far more than any run needs: a run that gets here has stalled.
const MOST_ROUNDS: usize = 100_000;
/// After the last fault everything is settled in that time.
const PEACE: Duration = Duration::from_mins(5);
/// Bytes that it takes to print an uplink that has nothing to do: addresses, links, empty batches.
const MOST_KEPT: usize = 12_000;
/// One to each broker and one to each address of the configuration, and what is not closed yet.
const MOST_CONNECTIONS: usize = 12;

/// What may happen in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Strict,
    Revoked,
    Purged,
    MadeAnew,
    Lossy,
}

/// What has happened in runs, to see that they are worth something.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) rounds: usize,
    pub(crate) written: usize,
    pub(crate) refused: usize,
    pub(crate) purged: usize,
    pub(crate) faults: usize,
    /// Runs in which a partition had as many batches on their way as it may.
    pub(crate) full: usize,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, of: Self) {
        self.rounds += of.rounds;
        self.written += of.written;
        self.refused += of.refused;
        self.purged += of.purged;
        self.faults += of.faults;
        self.full += of.full;
    }
}

/// A record's fate as it was reported.
type Fate = Result<i64, Refusal>;

struct Run {
    kind: Kind,
    uplink: Uplink,
    cluster: Cluster,
    network: Network,
    dice: Dice,
    start: Instant,
    now: Duration,
    /// When faults end.
    peace: Duration,
    /// A fault in so many rounds.
    fault_one_in: usize,
    /// A record in so many is never taken.
    refused_one_in: usize,
    /// Brokers may come back with another port.
    ports_change: bool,
    /// By partition, the records that were pushed, and what became of them.
    pushed: Vec<Vec<Bytes>>,
    fates: Vec<Vec<Fate>>,
    /// Bursts that are still to come.
    bursts: usize,
    next_burst: Duration,
    /// What the uplink said when it was advanced last.
    wake: Option<Instant>,
    /// The topic's logs before it was made anew.
    former: Vec<Vec<Log>>,
    /// Rounds in which nothing happened.
    idle: usize,
    has_room: bool,
    counts: Counts,
}

pub(crate) fn run(kind: Kind, seed: u64) -> Counts {
    let mut run = Run::new(kind, seed);
    while run.now < run.peace || run.bursts > 0 || !run.uplink.is_settled() {
        run.round();
    }
    run.check();
    run.counts
}

impl Run {
    fn new(kind: Kind, seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let partitions = 1 + dice.below(4);
        let cluster = Cluster::new(&mut dice, partitions);
        // A broker that carries out late what it would not carry out before: nobody can know that.
        let has_late_requests = !matches!(kind, Kind::Revoked | Kind::Lossy);
        let network = Network::new(Dice::new(seed << 8), cluster.nodes, has_late_requests);
        // Either some of the brokers, or addresses that are always good.
        let kind_of_name = dice.of(&['b', 's']);
        let names = 1..2 + dice.below(3);
        let names = names.map(|number| (format!("{kind_of_name}{number}"), PORT));
        let settings = Settings {
            topic: TOPIC.to_owned(),
            partitions: u16::try_from(partitions).expect("few"),
            client_id: "simulation".to_owned(),
            bootstrap: names.collect(),
            batch_bytes: dice.of(&[200, 600, 4000]),
            sasl: cluster.login.map(|_| Mechanism::Plain),
            linger: Duration::from_millis(dice.of(&[0, 0, 5])),
            request_timeout: Duration::from_millis(dice.of(&[1500, 6000])),
        };
        let peace = Duration::from_secs(5 + dice.below(30) as u64);
        Self {
            kind,
            uplink: Uplink::new(settings),
            cluster,
            network,
            start: Instant::now(),
            now: Duration::ZERO,
            peace,
            fault_one_in: dice.of(&[20, 60, 200, 1000]),
            refused_one_in: dice.of(&[8, 30, 100, 1000]),
            ports_change: kind_of_name == 's',
            pushed: vec![Vec::new(); partitions],
            fates: vec![Vec::new(); partitions],
            bursts: 1 + dice.below(40),
            next_burst: Duration::ZERO,
            wake: None,
            former: Vec::new(),
            idle: 0,
            has_room: true,
            counts: Counts::default(),
            dice,
        }
    }

    fn instant(&self) -> Instant {
        self.start + self.now
    }

    /// Does everything once, in some order, perhaps not all of it; then goes on in time.
    fn round(&mut self) {
        self.counts.rounds += 1;
        assert!(self.counts.rounds < MOST_ROUNDS, "it has stalled at {:?}", self.now);
        assert!(self.now < self.peace + PEACE, "it is not settled: {:?}", self.uplink);
        if self.now < self.peace {
            if self.dice.one_in(self.fault_one_in) {
                self.fault();
            }
        } else if !self.network.is_well {
            self.end_faults();
        }
        let is_whole = !self.dice.one_in(4);
        let mut any = false;
        let first = self.dice.below(8);
        for step in (0..8).map(|step| (first + step) % 8) {
            if is_whole || self.dice.one_in(2) {
                any |= self.step(step);
            }
        }
        assert!(self.network.count() <= MOST_CONNECTIONS, "{} connections", self.network.count());
        if !is_whole {
            self.now += self.dice.millis(2);
        } else if !any {
            self.idle += 1;
            self.go_on();
        } else if self.dice.one_in(8) {
            self.now += self.dice.millis(3);
        }
        let seconds = usize::try_from(self.now.as_secs()).expect("few");
        assert!(
            self.idle < 1000 + 100 * seconds,
            "{} times nothing happened in {seconds} s: {:?}",
            self.idle,
            self.uplink
        );
    }

    /// Waits for what comes next.
    fn go_on(&mut self) {
        let wake = self.wake.map(|then| then.saturating_duration_since(self.start));
        let burst = (self.bursts > 0).then_some(self.next_burst);
        let peace = (self.now < self.peace).then_some(self.peace);
        let room = (!self.has_room).then_some(self.now);
        let all = [wake, burst, peace, room, self.network.next(), self.cluster.next_election()];
        let next = all.into_iter().flatten().min();
        let next = next.unwrap_or_else(|| panic!("nothing will happen: {:?}", self.uplink));
        self.now = self.now.max(next);
    }

    /// True if something happened.
    fn step(&mut self, step: usize) -> bool {
        match step {
            0 => self.push(),
            1 => self.advance(),
            2 => self.orders(),
            3 => self.flush(),
            4 => self.tell(),
            5 => self.report(),
            6 => {
                self.cluster.hold_elections(&mut self.dice, self.now);
                self.network.serve(&mut self.cluster, self.now)
            }
            _ => {
                self.has_room = !self.dice.one_in(3);
                false
            }
        }
    }

    fn push(&mut self) -> bool {
        if self.bursts == 0 || self.now < self.next_burst {
            return false;
        }
        self.bursts -= 1;
        let until_peace = 2 * usize::try_from(self.peace.as_millis()).expect("small");
        self.next_burst = self.now
            + match self.dice.below(3) {
                0 => self.dice.millis(5),
                1 => self.dice.millis(100),
                _ => self.dice.millis(until_peace / 40),
            };
        let partition = self.dice.below(self.pushed.len());
        let count = self.dice.of(&[1, 1, 2, 10, 30]);
        for _ in 0..count {
            let number = self.pushed[partition].len();
            let mut value = format!("{partition}/{number} ").into_bytes();
            if self.dice.one_in(self.refused_one_in) {
                value.extend_from_slice(self.dice.of(&REFUSALS).0);
            }
            let more = self.dice.of(&[0, 20, 150, 150, 3000]);
            value.resize(value.len() + self.dice.below(more + 1), b'.');
            let tag = Tag {
                token: token(partition, number),
                booked_bytes: u32::try_from(value.len()).expect("small"),
            };
            let time = 1_700_000_000_000 + i64::try_from(number).expect("few");
            let headers = [(&b"name"[..], &b"header"[..])].into_iter();
            let constant = Constant::encode(b"key", headers.clone());
            let record = (time, Constant::from_bytes(&constant), &value[..]);
            let index = u16::try_from(partition).expect("few");
            assert!(self.uplink.push(index, record, &headers, tag), "there is the partition");
            self.pushed[partition].push(value.into());
        }
        true
    }

    fn advance(&mut self) -> bool {
        let now = self.instant();
        let wake = self.uplink.advance(now);
        if self.dice.one_in(4) {
            let again = self.uplink.advance(now);
            let is_later = |then: Instant| again.is_none_or(|again| then <= again);
            assert!(
                again.is_none() || wake.is_some_and(is_later) || wake <= Some(now),
                "advanced twice: {wake:?}, then {again:?}: {:?}",
                self.uplink
            );
        }
        self.wake = wake;
        false
    }

    fn orders(&mut self) -> bool {
        let mut any = false;
        while let Some(order) = self.uplink.next_order() {
            any = true;
            match order {
                Order::Connect { link, host, port } => {
                    self.network.connect(link, (&host, port), &self.cluster, self.now);
                }
                Order::Login { link } => {
                    let (user, secret) = ("simulation".to_owned(), "secret".to_owned());
                    let login = Login { user, secret };
                    let now = self.instant();
                    if self.network.is_well || !self.dice.one_in(20) {
                        self.uplink.login(link, Ok((&login, "nonce".to_owned())), now);
                    } else {
                        self.uplink.login(link, Err(&"the file is not there"), now);
                    }
                }
                Order::Close { link } => self.network.close(link, &mut self.cluster, self.now),
            }
        }
        while self.uplink.next_throttled().is_some() {}
        any
    }

    fn flush(&mut self) -> bool {
        // What is closed has nothing on its way.
        let mut any = self.orders();
        let (now, instant) = (self.now, self.instant());
        let network = &mut self.network;
        self.uplink.flush(instant, |link, slices| {
            any = true;
            network.send(link, slices, now)
        });
        let most = self.network.most_flying;
        assert!(most <= MOST_OF_PARTITION, "{most} batches of a partition on their way");
        any
    }

    fn tell(&mut self) -> bool {
        let now = self.instant();
        let mut any = false;
        while let Some(event) = self.network.event(self.now) {
            any = true;
            match event {
                Event::Connected(link) => self.uplink.connected(link, now),
                Event::Failed(link) => self.uplink.failed(link, &"it broke", now),
                Event::Received(link, bytes) => self.uplink.received(link, &bytes, now),
                Event::Writable(link) => self.uplink.writable(link),
            }
            if self.dice.one_in(3) {
                break;
            }
        }
        any
    }

    fn report(&mut self) -> bool {
        let Self { fates, pushed, cluster, .. } = self;
        let is_strict = matches!(self.kind, Kind::Strict | Kind::Revoked | Kind::Purged);
        let mut looks = if self.has_room { usize::MAX } else { self.dice.below(2) };
        let looks = std::cell::RefCell::new(&mut looks);
        let room = || {
            let mut looks = looks.borrow_mut();
            **looks = looks.saturating_sub(1);
            **looks > 0
        };
        self.uplink.reports(room, |report| {
            let partition = usize::from(report.partition);
            let (records, booked_bytes) = match report.fate {
                Told::Written { records, booked_bytes, .. } => (records as usize, Some(booked_bytes)),
                Told::Refused(..) => (1, None),
            };
            let first = fates[partition].len();
            let values = pushed[partition].get(first..first + records);
            let values = values.unwrap_or_else(|| panic!("{report:?} is too much"));
            let bytes: usize = values.iter().map(Bytes::len).sum();
            assert!(booked_bytes.is_none_or(|booked| booked == bytes as u64), "{report:?}");
            for (value, number) in values.iter().zip(first..) {
                assert_eq!(report.token, token(partition, number), "the order of reports");
                let result = match &report.fate {
                    Told::Written { offset, .. } => {
                        let offset = if *offset < 0 { -1 } else { offset + i64::try_from(number - first).expect("few") };
                        let found = usize::try_from(offset)
                            .ok()
                            .map(|offset| cluster.logs[partition].values.get(offset));
                        assert!(
                            !is_strict || found.is_none_or(|found| found == Some(value)),
                            "partition {partition}: record {number} is not at {offset} but {found:?}"
                        );
                        Ok(offset)
                    }
                    Told::Refused(refusal, record) => {
                        assert_eq!(record.value, Some(&value[..]));
                        Err(*refusal)
                    }
                };
                fates[partition].push(result);
            }
        })
    }

    fn end_faults(&mut self) {
        self.network.is_well = true;
        self.network.stuck.fill(Duration::ZERO);
        self.network.down.fill(Duration::ZERO);
        self.cluster.faults = Faults::default();
        self.cluster.revoked_until = Duration::ZERO;
        self.cluster.odd = None;
    }

    fn fault(&mut self) {
        let Self { dice, cluster, network, now, .. } = self;
        let now = *now;
        self.counts.faults += 1;
        let node = dice.below(cluster.nodes);
        let partition = dice.below(self.pushed.len());
        match dice.below(12) {
            0 | 1 => network.break_some(cluster, now),
            2 => network.mute_some(),
            3 => {
                let most = dice.of(&[300, 3000, 12_000]);
                network.stuck[node] = now + dice.millis(most);
            }
            4 | 5 => cluster.elect(partition, dice, now),
            6 => {
                network.take_down(node, cluster, now);
                if self.ports_change && dice.one_in(3) {
                    cluster.ports[node] += 1;
                }
                for partition in 0..self.pushed.len() {
                    if cluster.truth[partition].0 == Some(node) {
                        cluster.elect(partition, dice, now);
                    }
                }
            }
            7 if cluster.odd.is_none() => {
                let short = dice.below(self.pushed.len());
                let odd = dice.of(&[Odd::Error(3), Odd::Error(5), Odd::Short(short)]);
                cluster.odd = Some((odd, now + dice.millis(20_000)));
            }
            7 | 8 => {
                let mut rate = || dice.of(&[0, 0, 3, 10, 50]);
                cluster.faults = Faults {
                    before: rate(),
                    after: rate(),
                    throttle: rate(),
                    no_brokers: rate(),
                    no_identity: rate(),
                    incomplete: rate(),
                };
            }
            _ => self.fault_of_kind(partition),
        }
    }

    fn fault_of_kind(&mut self, partition: usize) {
        let Self { dice, cluster, now, .. } = self;
        match self.kind {
            Kind::Strict => cluster.logs[partition].fence(),
            Kind::Revoked => {
                let until = *now + dice.millis(2000);
                match dice.below(3) {
                    0 => cluster.odd = Some((Odd::Error(REVOKED), until)),
                    _ => cluster.revoked_until = until,
                }
            }
            Kind::Purged => {
                let now = self.instant();
                self.uplink.purge(now);
            }
            Kind::MadeAnew => {
                if self.former.len() < 2 {
                    self.former.push(cluster.make_anew(dice, *now));
                }
            }
            Kind::Lossy => {
                cluster.logs[partition].lose_tail(dice.below(4));
                cluster.elect(partition, dice, *now);
            }
        }
    }

    /// What must hold when everything is settled.
    fn check(&mut self) {
        // A new topic knows no producers and takes anything in any order; also what was for the old one, if
        // requests name it.
        let is_in_order = self.former.is_empty();
        let is_there_once = is_in_order || self.cluster.produce_max >= 13;
        for partition in 0..self.pushed.len() {
            let (pushed, fates) = (&self.pushed[partition], &self.fates[partition]);
            assert_eq!(pushed.len(), fates.len(), "partition {partition}: reports");
            let log = &self.cluster.logs[partition].values;
            let mut places: HashMap<&Bytes, usize> = HashMap::new();
            for (place, value) in log.iter().enumerate() {
                let before = places.insert(value, place).filter(|_| is_there_once);
                assert_eq!(before, None, "partition {partition}: written twice: {value:?}");
            }
            let mut last = None;
            for (number, (value, fate)) in pushed.iter().zip(fates).enumerate() {
                let place = places.remove(value);
                self.counts.count(*fate);
                let may_be_there = match fate {
                    Ok(_) => true,
                    Err(Refusal::Purged) => self.kind == Kind::Purged,
                    Err(Refusal::Broker(code)) => self.kind == Kind::Revoked && *code == REVOKED,
                };
                assert!(
                    may_be_there || place.is_none(),
                    "{number} was refused, and is at {place:?}"
                );
                let must_be_there = fate.is_ok() && self.former.is_empty();
                if must_be_there && self.kind != Kind::Lossy {
                    assert!(place.is_some(), "partition {partition}: {number} is lost");
                }
                if place.is_some() && (fate.is_ok() || self.kind != Kind::Purged) {
                    assert!(
                        place > last || !is_in_order,
                        "partition {partition}: {number} is at {place:?}"
                    );
                    last = place;
                }
            }
            assert!(places.is_empty(), "partition {partition}: nobody has pushed {places:?}");
        }
        assert_eq!(self.uplink.fatal(), None);
        let kept = format!("{:?}", self.uplink).len();
        assert!(kept < MOST_KEPT, "{kept} bytes to print what is kept: {:?}", self.uplink);
        self.counts.full = usize::from(self.network.most_flying == MOST_OF_PARTITION);
    }
}

impl Counts {
    fn count(&mut self, fate: Fate) {
        match fate {
            Ok(_) => self.written += 1,
            Err(Refusal::Broker(_)) => self.refused += 1,
            Err(Refusal::Purged) => self.purged += 1,
        }
    }
}

/// Several records that follow each other have the same one.
const fn token(partition: usize, number: usize) -> u64 {
    ((partition << 32) | (number / 3)) as u64
}
