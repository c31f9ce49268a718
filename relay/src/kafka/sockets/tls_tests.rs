//! Connections with TLS, to a server of rustls' in another thread.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::thread::JoinHandle;

use rcgen::{CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::tests::{LINK, turn_until, turn_until_told};
use super::*;
use crate::config::TlsSection;
use crate::kafka::trust::client_config;

/// More than waits in a connection with TLS and in the sockets below it.
const MUCH: usize = 20 << 20;

/// An authority's certificate in a file that is deleted with this, and what a server of this name needs.
struct Trust {
    file: PathBuf,
    server: Arc<ServerConfig>,
}

impl Trust {
    fn new(name: &str) -> Self {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let file = format!("millrace-trust-{}-{number}.pem", std::process::id());
        let file = std::env::temp_dir().join(file);

        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        // Who is not known is told apart from who only says that he is somebody by his name.
        params.distinguished_name.push(DnType::CommonName, format!("authority {number}"));
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let authority = params.self_signed(&key).expect("a certificate");
        std::fs::write(&file, authority.pem()).expect("a file");
        let issuer = Issuer::new(params, key);

        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let server = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("it has them")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("they belong together");
        Self { file, server: Arc::new(server) }
    }

    fn sockets(&self) -> (Sockets, Wake) {
        let section = TlsSection { ca: Some(self.file.clone()), ..TlsSection::default() };
        let tls = client_config(&section).expect("there is a certificate");
        let wake = Wake::new().expect("an eventfd");
        (Sockets::new(wake.clone(), Some(tls)).expect("an epoll"), wake)
    }
}

impl Drop for Trust {
    fn drop(&mut self) {
        std::fs::remove_file(&self.file).expect("it is ours");
    }
}

/// Takes one connection, and does this with it.
fn serve<T: Send + 'static>(
    body: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (u16, JoinHandle<T>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    let port = listener.local_addr().expect("bound").port();
    (port, std::thread::spawn(move || body(listener.accept().expect("it comes").0)))
}

fn is_over(told: &[String]) -> bool {
    told.iter().any(|of| of.starts_with("connected") || of.starts_with("failed"))
}

#[test]
fn bytes_go_both_ways_and_more_than_the_socket_takes() {
    let trust = Trust::new("127.0.0.1");
    let server = trust.server.clone();
    let (port, peer) = serve(move |socket| {
        let tls = ServerConnection::new(server).expect("a connection");
        let mut stream = StreamOwned::new(tls, socket);
        let mut all = vec![0; MUCH];
        stream.read_exact(&mut all).expect("it is sent");
        stream.write_all(b"pong").expect("it is taken");
        stream.conn.send_close_notify();
        stream.flush().expect("it is taken");
        all.iter().enumerate().all(|(place, byte)| *byte == place.to_le_bytes()[0])
    });
    let (mut sockets, wake) = trust.sockets();
    sockets.connect(LINK, "127.0.0.1", port);
    assert_eq!(turn_until(&mut sockets, &wake, |told| is_over(told)), ["connected"]);

    let all: Vec<u8> = (0..MUCH).map(|place| place.to_le_bytes()[0]).collect();
    let (mut sent, mut was_full) = (0, false);
    while sent < MUCH {
        match sockets.send(LINK, &[IoSlice::new(&all[sent..])]) {
            Ok(count) => sent += count,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                was_full = true;
                let (told, _) = turn_until_told(&mut sockets, &wake, |told, is_writable| {
                    is_writable || !told.is_empty()
                });
                assert!(told.is_empty(), "{told:?}");
            }
        }
    }
    assert!(was_full, "the socket has taken everything at once");
    let told = turn_until(&mut sockets, &wake, |told| is_over(told));
    assert_eq!(told, ["pong", "failed: closed by the broker"]);
    assert!(peer.join().expect("it ends"), "other bytes have come");
}

#[test]
fn who_is_not_trusted_is_told_with_what_to_look_at() {
    let (trust, other) = (Trust::new("127.0.0.1"), Trust::new("127.0.0.1"));
    let named = Trust::new("broker.example");
    // By another authority, and for another name.
    for (server, own, why) in
        [(&other, &trust, "UnknownIssuer"), (&named, &named, "not valid for name")]
    {
        let server = server.server.clone();
        let (port, peer) = serve(move |mut socket| {
            let mut tls = ServerConnection::new(server).expect("a connection");
            while tls.is_handshaking() {
                tls.complete_io(&mut socket)?;
            }
            io::Result::Ok(())
        });
        let (mut sockets, wake) = own.sockets();
        sockets.connect(LINK, "127.0.0.1", port);
        let told = turn_until(&mut sockets, &wake, |told| is_over(told)).join(" ");
        assert!(told.contains(why) && told.contains("see kafka.tls.ca"), "{told}");
        let heard = peer.join().expect("it ends").expect_err("an alert").to_string();
        assert!(heard.contains("alert"), "{heard}");
    }
}

#[test]
fn a_broker_without_tls_is_recognised() {
    for answer in [&b"\0\0\0\x01x"[..], b""] {
        let (port, peer) = serve(move |mut socket| {
            let mut hello = [0; 5];
            socket.read_exact(&mut hello).expect("it comes");
            socket.write_all(answer).expect("it is taken");
        });
        let trust = Trust::new("127.0.0.1");
        let (mut sockets, wake) = trust.sockets();
        sockets.connect(LINK, "127.0.0.1", port);
        let told = turn_until(&mut sockets, &wake, |told| is_over(told)).join(" ");
        assert!(told.starts_with("failed"), "{told}");
        let is_explained =
            told.contains("speak TLS at this port") || told.contains("reset by peer");
        assert!(is_explained, "{told}");
        peer.join().expect("it ends");
    }
}
