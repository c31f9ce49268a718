//! Telling a broker who we are, where it wants to know.
//!
//! ```text
//!  versions ─► mechanism (SaslHandshake) ─► Order::Login ─► messages (SaslAuthenticate) ─► ready
//!                   ▲                                                                        │
//!                   └──────── when that has held for most of its time (KIP-368) ◄────────────┘
//! ```
//!
//! A broker answers in order, so that what was asked before comes while it is told again; nothing new is asked
//! meanwhile.

use std::fmt::Display;
use std::time::{Duration, Instant};

use super::answer::Wrong;
use super::link::{LinkId, Stage, What};
use super::{Order, Uplink};
use crate::message::{
    SaslAuthenticate, SaslHandshake, Versions, put_sasl_authenticate_request,
    put_sasl_handshake_request,
};
use crate::sasl::{Exchange, Login, Mechanism, Step};

/// Of the time for which it holds, after so many hundredths we say it again; Kafka's own clients do after 85
/// to 95.
const AGAIN_AFTER: u32 = 85;

impl Uplink {
    /// A broker has told its versions.
    pub(super) fn greeted(&mut self, id: LinkId, versions: Versions, now: Instant) {
        match self.settings.sasl {
            None => self.ready(id, versions, now),
            Some(mechanism) => self.authenticate(id, versions, mechanism, now),
        }
    }

    fn ready(&mut self, id: LinkId, versions: Versions, now: Instant) {
        if let Some(link) = self.peers.get(id) {
            (link.stage, link.since) = (Stage::Ready(versions), now);
        }
        if self.peers.works(id) {
            tracing::info!("Kafka: connected again");
        }
    }

    fn authenticate(&mut self, id: LinkId, versions: Versions, mechanism: Mechanism, now: Instant) {
        if let Some(link) = self.peers.get(id) {
            (link.stage, link.since) = (Stage::Authenticating(versions), now);
            link.again_at = None;
        }
        self.question(id, What::Mechanism, now, |out, correlation, client| {
            put_sasl_handshake_request(out, correlation, client, mechanism.name());
        });
    }

    /// Says again who we are, where that will not hold much longer. Returns when to look again.
    pub(super) fn authenticate_again(&mut self, now: Instant) -> Option<Instant> {
        let mechanism = self.settings.sasl?;
        let due = |then: Option<Instant>| then.is_some_and(|then| then <= now);
        while let Some((id, versions)) = self.peers.links.iter().find_map(|link| match link.stage {
            Stage::Ready(versions) if due(link.again_at) => Some((link.id, versions)),
            _ => None,
        }) {
            self.authenticate(id, versions, mechanism, now);
        }
        self.peers.links.iter().filter_map(|link| link.again_at).min()
    }

    /// A broker has answered to the mechanism.
    pub(super) fn mechanism_answered(
        &mut self,
        id: LinkId,
        answer: &SaslHandshake,
    ) -> Result<(), Wrong> {
        if answer.error != 0 {
            let mechanism = self.settings.sasl.map_or("", Mechanism::name);
            return Err(Wrong::Mechanism { mechanism, taken: answer.mechanisms.join(", ") });
        }
        self.landed(id);
        self.orders.push_back(Order::Login { link: id });
        Ok(())
    }

    /// What to tell a broker ([`Order::Login`]), or why there is nothing; and a nonce: characters that nobody
    /// can guess, other ones each time, printable and without a comma.
    pub fn login(
        &mut self,
        id: LinkId,
        login: Result<(&Login, String), &dyn Display>,
        now: Instant,
    ) {
        let Some(mechanism) = self.settings.sasl else { return };
        match login {
            Err(reason) => self.lose(id, reason, now),
            Ok((login, nonce)) => {
                let (exchange, message) = Exchange::begin(mechanism, login, nonce);
                self.say(id, exchange, &message, now);
            }
        }
    }

    fn say(&mut self, id: LinkId, exchange: Exchange, message: &[u8], now: Instant) {
        let Some(link) = self.peers.get(id) else { return };
        link.exchange = Some(exchange);
        self.question(id, What::Message, now, |out, correlation, client| {
            put_sasl_authenticate_request(out, correlation, client, message);
        });
    }

    /// A broker has answered to a message of the mechanism.
    pub(super) fn message_answered(
        &mut self,
        id: LinkId,
        answer: SaslAuthenticate<'_>,
        now: Instant,
    ) -> Result<(), Wrong> {
        if answer.error != 0 {
            let reason = answer.reason.unwrap_or("it does not say why").to_owned();
            return Err(Wrong::Login { code: answer.error, reason });
        }
        let Some(link) = self.peers.get(id) else { return Ok(()) };
        let exchange = link.exchange.take().ok_or(Wrong::Unasked)?;
        match exchange.answer(answer.message)? {
            Step::Send(exchange, message) => {
                self.landed(id);
                self.say(id, exchange, &message, now);
            }
            Step::Done => {
                let Stage::Authenticating(versions) = link.stage else {
                    return Err(Wrong::Unasked);
                };
                let lifetime = u64::try_from(answer.lifetime_ms).unwrap_or_default();
                if lifetime > 0 {
                    let most = Duration::from_millis(lifetime.min(MOST_LIFETIME_MS));
                    link.again_at = Some(now + most * AGAIN_AFTER / 100);
                }
                self.landed(id);
                self.ready(id, versions, now);
            }
        }
        Ok(())
    }
}

/// What is longer is cut to a day, so that no sum overflows.
const MOST_LIFETIME_MS: u64 = 86_400_000;
