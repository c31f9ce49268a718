//! How we say who we are: SASL (RFC 4422), in the mechanisms that brokers have.
//!
//! | mechanism | messages | source |
//! |---|---|---|
//! | PLAIN | one: user and password as they are | RFC 4616 |
//! | SCRAM-SHA-256, SCRAM-SHA-512 | two, and the broker has to know the password too | RFC 5802, RFC 7677 |
//!
//! Kafka compares users and passwords byte by byte: they are not prepared (RFC 4013) here either.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::{digest, hmac, pbkdf2};

/// Fewest rounds of the hash that a broker may ask for (RFC 7677 section 4): with fewer, who listens in
/// guesses passwords quickly.
const LEAST_ROUNDS: u32 = 4096;
/// Most of them. Kafka itself sets at most 16,384; a million would take a second of the thread that writes.
const MOST_ROUNDS: u32 = 100_000;

/// A way to say who we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// User and password as they are.
    Plain,
    /// A proof of the password, by SHA-256.
    ScramSha256,
    /// The same by SHA-512.
    ScramSha512,
}

impl Mechanism {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Plain, Self::ScramSha256, Self::ScramSha512];

    /// The registered name (IANA, SASL mechanisms).
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }

    const fn hash(self) -> Option<(hmac::Algorithm, pbkdf2::Algorithm)> {
        match self {
            Self::ScramSha256 => Some((hmac::HMAC_SHA256, pbkdf2::PBKDF2_HMAC_SHA256)),
            Self::ScramSha512 => Some((hmac::HMAC_SHA512, pbkdf2::PBKDF2_HMAC_SHA512)),
            Self::Plain => None,
        }
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mechanism {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|known| known.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("`{name}` is none of the mechanisms {names}")
        })
    }
}

/// Who we are, and what proves it.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The user's name.
    pub user: String,
    /// The password.
    pub secret: String,
}

/// Without the secret.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Why an exchange of messages does not go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SaslError {
    /// A message that the mechanism does not have there.
    #[error("its {mechanism} message {what}")]
    Unexpected {
        /// The mechanism.
        mechanism: Mechanism,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The broker does not say yes.
    #[error("it refuses {mechanism}: {reason}")]
    Refused {
        /// The mechanism.
        mechanism: Mechanism,
        /// In its own words.
        reason: String,
    },
    /// It does not know the password.
    #[error("it does not prove that it knows the password: it may be somebody else's broker")]
    Impostor,
}

/// An exchange that waits for the broker's next message.
#[derive(Debug)]
pub(crate) struct Exchange {
    mechanism: Mechanism,
    state: State,
}

enum State {
    /// Whatever the broker says, it has accepted.
    Last,
    /// The salt is to come.
    First { password: String, bare: String, nonce: String },
    /// The broker's own proof is to come.
    Proof { expected: hmac::Tag },
}

/// Without secrets.
impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Last => "Last",
            Self::First { .. } => "First",
            Self::Proof { .. } => "Proof",
        })
    }
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Step {
    /// A message to the broker, and its answer.
    Send(Exchange, Vec<u8>),
    /// We are who we say.
    Done,
}

impl Exchange {
    /// Begins, and returns the first message. `nonce` has to be another one each time, of printable
    /// characters without a comma.
    pub(crate) fn begin(mechanism: Mechanism, login: &Login, nonce: String) -> (Self, Vec<u8>) {
        let Login { user, secret } = login;
        let (state, message) = match mechanism {
            Mechanism::Plain => (State::Last, format!("\0{user}\0{secret}")),
            Mechanism::ScramSha256 | Mechanism::ScramSha512 => {
                // Both are separators there (RFC 5802 section 5.1).
                let user = user.replace('=', "=3D").replace(',', "=2C");
                let bare = format!("n={user},r={nonce}");
                let message = format!("{NO_BINDING}{bare}");
                (State::First { password: secret.clone(), bare, nonce }, message)
            }
        };
        (Self { mechanism, state }, message.into_bytes())
    }

    /// Takes the broker's message.
    pub(crate) fn answer(self, message: &[u8]) -> Result<Step, SaslError> {
        let mechanism = self.mechanism;
        let unexpected = |what| SaslError::Unexpected { mechanism, what };
        match self.state {
            State::Last => Ok(Step::Done),
            State::First { password, bare, nonce } => {
                let first = text(message).ok_or_else(|| unexpected("is not ASCII"))?;
                let salt = Salt::read(first, &nonce).map_err(unexpected)?;
                let keys = Keys::new(mechanism, &password, &salt);
                let keys = keys.ok_or_else(|| unexpected("comes from nowhere"))?;
                let last = format!("c={},r={}", BASE64.encode(NO_BINDING), salt.nonce);
                let all = format!("{bare},{first},{last}");
                let (proof, expected) = keys.prove(all.as_bytes());
                let message = format!("{last},p={}", BASE64.encode(proof));
                let next = Self { state: State::Proof { expected }, ..self };
                Ok(Step::Send(next, message.into_bytes()))
            }
            State::Proof { expected } => {
                let last = text(message).ok_or_else(|| unexpected("is not ASCII"))?;
                if let Some(reason) = last.strip_prefix("e=") {
                    return Err(SaslError::Refused { mechanism, reason: reason.to_owned() });
                }
                let proof = last.split(',').next().and_then(|first| first.strip_prefix("v="));
                let proof = proof.ok_or_else(|| unexpected("has no proof"))?;
                let proof = BASE64
                    .decode(proof)
                    .map_err(|_| unexpected("has a proof that is not base 64"))?;
                // Not a question of time: both are known to the broker.
                if proof == expected.as_ref() { Ok(Step::Done) } else { Err(SaslError::Impostor) }
            }
        }
    }
}

/// We bind to no channel, and say so (RFC 5802 section 7, `gs2-header`).
const NO_BINDING: &str = "n,,";

fn text(message: &[u8]) -> Option<&str> {
    str::from_utf8(message).ok().filter(|text| text.is_ascii())
}

/// The broker's first message.
struct Salt<'a> {
    nonce: &'a str,
    bytes: Vec<u8>,
    rounds: NonZeroU32,
}

impl<'a> Salt<'a> {
    fn read(message: &'a str, ours: &str) -> Result<Self, &'static str> {
        let mut fields = message.split(',');
        let mut field = |name: &str| fields.next().and_then(|field| field.strip_prefix(name));
        // One that we do not know (`m=`) comes first, and may not be passed over (RFC 5802 section 5.1).
        let nonce = field("r=").ok_or("does not begin with a nonce")?;
        if nonce.len() <= ours.len() || !nonce.starts_with(ours) {
            return Err("has a nonce that does not go on from ours");
        }
        let bytes = field("s=").and_then(|salt| BASE64.decode(salt).ok());
        let bytes = bytes.ok_or("has no salt in base 64")?;
        let rounds = field("i=").and_then(|rounds| rounds.parse().ok());
        let rounds: u32 = rounds.ok_or("has no number of rounds")?;
        if rounds < LEAST_ROUNDS {
            return Err(
                "asks for fewer than 4096 rounds, with which a password is guessed quickly",
            );
        }
        if rounds > MOST_ROUNDS {
            return Err("asks for more than 100000 rounds");
        }
        let rounds = NonZeroU32::new(rounds).ok_or("asks for no rounds")?;
        Ok(Self { nonce, bytes, rounds })
    }
}

/// The password with salt, as broker and client know it (RFC 5802 section 3, `SaltedPassword`). None if the
/// mechanism has no such thing.
pub fn salted_password(
    mechanism: Mechanism,
    password: &str,
    salt: &[u8],
    rounds: NonZeroU32,
) -> Option<Vec<u8>> {
    let (hmac, hash) = mechanism.hash()?;
    let mut out = vec![0; hmac.digest_algorithm().output_len()];
    pbkdf2::derive(hash, rounds, salt, password.as_bytes(), &mut out);
    Some(out)
}

/// What follows from the password.
struct Keys {
    client: hmac::Tag,
    server: hmac::Tag,
    algorithm: hmac::Algorithm,
}

impl Keys {
    fn new(mechanism: Mechanism, password: &str, salt: &Salt<'_>) -> Option<Self> {
        let (algorithm, _) = mechanism.hash()?;
        let salted = salted_password(mechanism, password, &salt.bytes, salt.rounds)?;
        let key = hmac::Key::new(algorithm, &salted);
        let client = hmac::sign(&key, b"Client Key");
        let server = hmac::sign(&key, b"Server Key");
        Some(Self { client, server, algorithm })
    }

    /// Our proof, and what the broker's has to be.
    fn prove(&self, all: &[u8]) -> (Vec<u8>, hmac::Tag) {
        let stored = digest::digest(self.algorithm.digest_algorithm(), self.client.as_ref());
        let signature = hmac::sign(&hmac::Key::new(self.algorithm, stored.as_ref()), all);
        let proof = self.client.as_ref().iter().zip(signature.as_ref());
        let server = hmac::Key::new(self.algorithm, self.server.as_ref());
        (proof.map(|(key, of)| key ^ of).collect(), hmac::sign(&server, all))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn login(user: &str, secret: &str) -> Login {
        Login { user: user.to_owned(), secret: secret.to_owned() }
    }

    fn begin(mechanism: Mechanism, login: &Login, nonce: &str) -> (Exchange, String) {
        let (exchange, message) = Exchange::begin(mechanism, login, nonce.to_owned());
        (exchange, String::from_utf8(message).expect("it is text"))
    }

    fn next(exchange: Exchange, message: &str) -> (Exchange, String) {
        match exchange.answer(message.as_bytes()).expect("it goes on") {
            Step::Send(next, message) => (next, String::from_utf8(message).expect("it is text")),
            Step::Done => panic!("it is over"),
        }
    }

    const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
    const SALT: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    /// RFC 7677 section 3.
    #[test]
    fn the_example_of_the_standard_is_said_word_by_word() {
        let (exchange, first) = begin(Mechanism::ScramSha256, &login("user", "pencil"), NONCE);
        assert_eq!(first, "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let (exchange, last) = next(exchange, SALT);
        assert_eq!(
            last,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
             p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        let done = exchange.answer(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        assert!(matches!(done, Ok(Step::Done)), "{done:?}");
    }

    #[test]
    fn a_broker_that_does_not_know_the_password_is_none_of_ours() {
        let mine = login("user", "pencil");
        let proof = |message: &str| {
            let (exchange, _) = begin(Mechanism::ScramSha256, &mine, NONCE);
            next(exchange, SALT).0.answer(message.as_bytes()).map(|_| ()).unwrap_err()
        };
        assert_eq!(proof("v=AAAA"), SaslError::Impostor);
        assert!(
            matches!(proof("e=invalid-proof"), SaslError::Refused { reason, .. } if reason == "invalid-proof")
        );
        assert!(matches!(proof(""), SaslError::Unexpected { .. }));
        assert!(matches!(proof("v=?"), SaslError::Unexpected { .. }));
    }

    #[test]
    fn what_would_give_a_password_away_is_refused() {
        for (salt, why) in [
            ("r=other,s=W22Z,i=4096", "does not go on from ours"),
            ("r=rOprNGfwEbeRWgbNEkqO,s=W22Z,i=4096", "does not go on from ours"),
            ("r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=4095", "fewer than 4096"),
            ("r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=4000000000", "more than 100000"),
            ("r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=99999999999999999999", "no number"),
            ("r=rOprNGfwEbeRWgbNEkqOx,s=,,i=4096", "no number"),
            ("m=x,r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=4096", "does not begin with a nonce"),
            ("r=rOprNGfwEbeRWgbNEkqOx,s=\u{e4},i=4096", "not ASCII"),
        ] {
            let (exchange, _) = begin(Mechanism::ScramSha512, &login("user", "pencil"), NONCE);
            let told = exchange.answer(salt.as_bytes()).map(|_| ()).unwrap_err().to_string();
            assert!(told.contains(why), "{salt}: {told}");
        }
    }

    #[test]
    fn users_and_passwords_are_written_as_their_mechanism_has_them() {
        let (_, first) = begin(Mechanism::ScramSha512, &login("a=b,c", "x"), "nonce");
        assert_eq!(first, "n,,n=a=3Db=2Cc,r=nonce");
        let (exchange, first) = begin(Mechanism::Plain, &login("relay", "se,c=ret"), "nonce");
        assert_eq!(first, "\0relay\0se,c=ret");
        assert!(matches!(exchange.answer(b""), Ok(Step::Done)));
    }

    #[test]
    fn mechanisms_go_by_their_registered_names() {
        for mechanism in Mechanism::ALL {
            assert_eq!(mechanism.name().parse(), Ok(mechanism));
        }
        let told = "OAUTHBEARER".parse::<Mechanism>().unwrap_err();
        assert!(told.contains("PLAIN, SCRAM-SHA-256"), "{told}");
    }

    #[test]
    fn no_secret_is_printed() {
        let mine = login("user", "pencil");
        assert!(!format!("{mine:?}").contains("pencil"));
        let (exchange, _) = begin(Mechanism::ScramSha256, &mine, NONCE);
        assert!(!format!("{exchange:?}").contains("pencil"));
    }

    proptest! {
        #[test]
        fn whatever_a_broker_says_ends_in_order(
            messages in proptest::collection::vec(
                prop_oneof![
                    any::<Vec<u8>>(),
                    "(r=nonce[a-z,=]{0,9}|m=|v=|e=)[,s=i0-9A-Za-z]{0,30}".prop_map(String::into_bytes),
                ],
                3,
            ),
            which in 0..3_usize,
        ) {
            let login = login("user", "pencil");
            let (mut exchange, _) =
                Exchange::begin(Mechanism::ALL[which], &login, "nonce".to_owned());
            for message in messages {
                match exchange.answer(&message) {
                    Ok(Step::Send(next, _)) => exchange = next,
                    Ok(Step::Done) | Err(_) => break,
                }
            }
        }
    }
}
