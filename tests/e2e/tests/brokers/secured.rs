//! A cluster that wants TLS, a password or a certificate, with both engines of the uplink.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use millrace_harness::kafka::OwnBroker;
use millrace_harness::kafka::certificates::Authority;
use millrace_harness::kafka::requests::set_password;
use millrace_harness::net::free_port;
use millrace_harness::relay::direct::Direct;
use millrace_harness::servers::by_hand::HandServer;
use millrace_harness::system::process::run;
use millrace_relay::config::{KafkaSection, SaslSection, TlsSection, UplinkEngine};
use millrace_wire::sasl::Mechanism;

/// A start that is refused may have waited for a cluster that says "timed out".
const REFUSAL: Duration = Duration::from_mins(2);
/// For so long a login holds.
const LIFETIME: Duration = Duration::from_secs(2);
const ENGINES: [UplinkEngine; 2] = [UplinkEngine::Librdkafka, UplinkEngine::Millrace];
const USER: &str = "relay";
const PASSWORD: &str = "se=cr,et";

/// A broker with a listener for everybody, one for users over TLS, one for those with a certificate, and one
/// for users without TLS.
struct Secured {
    broker: OwnBroker,
    users: String,
    certified: String,
    plain: String,
    directory: PathBuf,
    authority: Authority,
}

impl Secured {
    fn start(name: &str) -> Result<Self> {
        let directory: PathBuf =
            std::env::temp_dir().join(format!("millrace-secured-{name}-{}", std::process::id()));
        let authority = Authority::new(&directory, "authority")?;
        let keystore = authority.issue_keystore("127.0.0.1")?;
        let ports = [free_port()?, free_port()?, free_port()?, free_port()?, free_port()?];
        let at = |place: usize| format!("127.0.0.1:{}", ports[place]);
        let listeners = format!("USERS://{},CERTIFIED://{},PLAIN://{}", at(2), at(3), at(4));
        let plain_users = format!(
            "plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
             user_{USER}=\"{PASSWORD}\";"
        );
        let scram =
            "sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;";
        let mut properties = vec![
            format!("listeners=CLIENTS://{},CONTROLLER://{},{listeners}", at(0), at(1)),
            format!("advertised.listeners=CLIENTS://{},{listeners}", at(0)),
            "listener.security.protocol.map=CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT,USERS:SASL_SSL,\
             CERTIFIED:SSL,PLAIN:SASL_PLAINTEXT"
                .to_owned(),
            format!("controller.quorum.voters=1@{}", at(1)),
            format!("connections.max.reauth.ms={}", LIFETIME.as_millis()),
            "ssl.keystore.type=PEM".to_owned(),
            format!("ssl.keystore.location={}", keystore.display()),
            "ssl.truststore.type=PEM".to_owned(),
            format!("ssl.truststore.location={}", authority.certificate().display()),
            "listener.name.certified.ssl.client.auth=required".to_owned(),
        ];
        for listener in ["users", "plain"] {
            let of = format!("listener.name.{listener}");
            properties
                .push(format!("{of}.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512"));
            properties.push(format!("{of}.{plain_users}"));
            properties.push(format!("{of}.scram-sha-256.{scram}"));
            properties.push(format!("{of}.scram-sha-512.{scram}"));
        }
        let properties: Vec<&str> = properties.iter().map(String::as_str).collect();
        let broker = OwnBroker::start_at(&directory.join("kafka"), ports[0], &properties)?;
        for mechanism in [Mechanism::ScramSha256, Mechanism::ScramSha512] {
            set_password(broker.address(), mechanism, USER, PASSWORD)?;
        }
        let [users, certified, plain] = [at(2), at(3), at(4)];
        Ok(Self { broker, users, certified, plain, directory, authority })
    }

    fn trust(&self) -> TlsSection {
        TlsSection { ca: Some(self.authority.certificate()), ..TlsSection::default() }
    }

    fn login(&self, mechanism: Mechanism, password: &str) -> Result<SaslSection> {
        let password_file = self.directory.join(format!("password-{password}"));
        fs::write(&password_file, format!("{password}\n"))?;
        Ok(SaslSection { mechanism, user: USER.to_owned(), password_file })
    }

    fn relay(
        &self,
        name: &str,
        engine: UplinkEngine,
        how: impl FnOnce(&mut KafkaSection),
    ) -> Result<Direct> {
        Direct::at(self.broker.address(), name, |config| {
            config.kafka.engine = engine;
            how(&mut config.kafka);
        })
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        // What is left of it is in the temporary directory.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Messages go, and replies come, for as long as `lasts`.
fn talk(secured: &Secured, relay: &mut Direct, lasts: Duration) -> Result<()> {
    relay.instance.start()?;
    let server = HandServer::on(secured.broker.address(), relay.topics.prefix(), &[0])?;
    let mut client = relay.connect()?;
    let began = Instant::now();
    let mut number = 0;
    while number == 0 || began.elapsed() < lasts {
        number += 1;
        let said = format!("message {number}").into_bytes();
        client.send(&said)?;
        let message = server.next("the message", |record| record.value == said)?;
        server.reply(&message, &said)?;
        let answered = client.receive()?;
        ensure!(answered == said, "{answered:?} is no answer to {said:?}");
    }
    relay.instance.stop().map(drop)
}

#[test]
fn users_are_known_by_each_mechanism_and_longer_than_a_login_holds() {
    let secured = Secured::start("users").unwrap();
    for engine in ENGINES {
        for (mechanism, lasts) in [
            (Mechanism::ScramSha512, LIFETIME * 2),
            (Mechanism::ScramSha256, Duration::ZERO),
            (Mechanism::Plain, Duration::ZERO),
        ] {
            let sasl = secured.login(mechanism, PASSWORD).unwrap();
            let mut relay = secured
                .relay("users", engine, |kafka| {
                    secured.users.clone_into(&mut kafka.brokers);
                    kafka.tls = Some(secured.trust());
                    kafka.sasl = Some(sasl);
                })
                .unwrap();
            talk(&secured, &mut relay, lasts)
                .unwrap_or_else(|e| panic!("{engine:?}, {mechanism}: {e:#}"));
        }
        let sasl = secured.login(Mechanism::ScramSha256, PASSWORD).unwrap();
        let mut relay = secured
            .relay("plain", engine, |kafka| {
                secured.plain.clone_into(&mut kafka.brokers);
                kafka.sasl = Some(sasl);
            })
            .unwrap();
        talk(&secured, &mut relay, Duration::ZERO)
            .unwrap_or_else(|e| panic!("{engine:?}, no TLS: {e:#}"));
    }
}

#[test]
fn a_relay_is_known_by_its_certificate() {
    let secured = Secured::start("certified").unwrap();
    let (certificate, key) = secured.authority.issue("relay").unwrap();
    for engine in ENGINES {
        let own = TlsSection {
            certificate: Some(certificate.clone()),
            key: Some(key.clone()),
            ..secured.trust()
        };
        let mut relay = secured
            .relay("certified", engine, |kafka| {
                secured.certified.clone_into(&mut kafka.brokers);
                kafka.tls = Some(own);
            })
            .unwrap();
        talk(&secured, &mut relay, Duration::ZERO).unwrap_or_else(|e| panic!("{engine:?}: {e:#}"));
    }
}

#[test]
fn what_is_not_trusted_or_not_known_is_told_at_the_start() {
    let secured = Secured::start("refused").unwrap();
    let other = Authority::new(&secured.directory, "other").unwrap();
    let refused = |at: &str, tls: Option<TlsSection>, sasl: Option<SaslSection>| {
        let relay = secured.relay("refused", UplinkEngine::Millrace, |kafka| {
            at.clone_into(&mut kafka.brokers);
            (kafka.tls, kafka.sasl) = (tls, sasl);
        })?;
        let mut command = relay.instance.command("run", false);
        command.args(["--no-gateway", "127.0.0.1"]);
        let finished = run("relay run", &mut command, REFUSAL)?;
        ensure!(!finished.status.success(), "it runs: {finished:?}");
        Ok(finished.stderr)
    };
    let login = |password: &str| secured.login(Mechanism::ScramSha512, password);
    let trusting = |ca: &Path| TlsSection { ca: Some(ca.to_owned()), ..TlsSection::default() };

    // It has a certificate for its address and for no name.
    let by_name = secured.users.replace("127.0.0.1", "localhost");
    let (users, certified) = (&*secured.users, &*secured.certified);
    let (other, nowhere) = (other.certificate(), Path::new("/nonexistent/ca.pem"));
    let cases = [
        (users, secured.trust(), Some(login("wrong").unwrap()), "uthentication failed"),
        (users, trusting(&other), Some(login(PASSWORD).unwrap()), "certificate"),
        (certified, secured.trust(), None, "kafka.tls"),
        (&*by_name, secured.trust(), Some(login(PASSWORD).unwrap()), "certificate"),
        (users, trusting(nowhere), None, "kafka.tls.ca: cannot read /nonexistent/ca.pem"),
    ];
    // Each gives up after a while, so all do it at once.
    std::thread::scope(|scope| {
        for (at, tls, sasl, why) in cases {
            let refused = &refused;
            scope.spawn(move || {
                let said = refused(at, Some(tls), sasl).unwrap();
                assert!(said.contains(why), "{why}: {said}");
            });
        }
    });
}
