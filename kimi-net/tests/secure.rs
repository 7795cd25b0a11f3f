//! Who may make a link, and what somebody between two machines can do to one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helpers fail the test")]

mod common;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use common::*;
use kimi_net::*;
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys,
        danger::{HandshakeSignatureValid, ServerCertVerified},
    },
    crypto::ring,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex},
    net::{TcpListener, TcpStream},
};

const PIPE: usize = 1 << 20;
const LIMIT: Duration = Duration::from_secs(20);

fn other_key() -> Trust {
    Trust::Key(ClusterKey::generate().unwrap())
}

fn config(name: &str) -> Config {
    Config { handshake_timeout: LIMIT, ..Config::new(name) }
}

/// Both ends' outcome over a pipe in memory.
async fn shake(coordinator: &Trust, worker: &Trust) -> (Option<LinkError>, Option<LinkError>) {
    let (ours, theirs) = duplex(PIPE);
    let (c, w) = tokio::join!(
        Coordinator::handshake(ours, coordinator, config("c")),
        Worker::handshake(theirs, worker, config("w"))
    );
    (c.err(), w.err())
}

#[tokio::test]
async fn machines_with_one_key_make_a_link() {
    assert_eq!(shake(&trust(), &trust()).await, (None, None));
    assert_eq!(shake(&Trust::Insecure, &Trust::Insecure).await, (None, None));
}

#[tokio::test]
async fn another_key_is_refused_and_both_are_told_what_to_do() {
    let (c, w) = shake(&trust(), &other_key()).await;
    let (c, w) = (c.unwrap(), w.unwrap());
    assert_eq!(c, LinkError::WrongKey { cluster: key().id(), ours: Role::Coordinator });
    assert!(matches!(w, LinkError::WrongKey { ours: Role::Worker, .. }), "{w}");
    let text = c.to_string();
    let told = text.contains("the worker does not have this cluster's key")
        && text.contains(&key().id().to_string())
        && text.contains("kimi key show");
    assert!(told, "{text}");
    assert!(w.to_string().contains("the coordinator does not have"), "{w}");
}

#[tokio::test]
async fn a_plain_peer_and_an_encrypted_one_do_not_meet() {
    let (c, w) = shake(&Trust::Insecure, &trust()).await;
    assert_eq!(w, Some(LinkError::NotEncrypted));
    let c = c.unwrap();
    assert!(c.to_string().contains("--insecure"), "{c}");

    let (c, w) = shake(&trust(), &Trust::Insecure).await;
    let (c, w) = (c.unwrap(), w.unwrap());
    assert!(matches!(c, LinkError::Lost { .. } | LinkError::NotEncrypted), "{c}");
    assert!(c.to_string().contains("--insecure"), "{c}");
    assert!(matches!(w, LinkError::Frame(FrameError::NotKimi { .. })), "{w}");
    assert!(w.to_string().contains("--insecure"), "{w}");
}

/// What happens to the bytes of one direction on their way: called for each piece with its place in the stream.
type Tamper = Box<dyn FnMut(usize, &mut Vec<u8>) + Send>;

fn untouched() -> Tamper {
    Box::new(|_, _| {})
}

async fn pass<R, W>(mut from: R, mut to: W, mut tamper: Tamper) -> usize
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut place = 0;
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let mut piece = buffer[..count].to_vec();
        tamper(place, &mut piece);
        place += count;
        if to.write_all(&piece).await.is_err() {
            break;
        }
    }
    drop(to.shutdown().await);
    place
}

/// A link through somebody who does something to the bytes of each direction.
async fn through(
    up: Tamper,
    down: Tamper,
    limit: Duration,
) -> (Result<Coordinator, LinkError>, Result<Worker, LinkError>) {
    let ((ours, near), (far, theirs)) = (duplex(PIPE), duplex(PIPE));
    let (near_in, near_out) = tokio::io::split(near);
    let (far_in, far_out) = tokio::io::split(far);
    tokio::spawn(pass(near_in, far_out, up));
    tokio::spawn(pass(far_in, near_out, down));
    let (trust, ping_interval) = (trust(), limit / 4);
    let quick = Config { handshake_timeout: limit, idle_timeout: limit, ping_interval, ..Config::new("x") };
    tokio::join!(
        Coordinator::handshake(ours, &trust, quick.clone()),
        Worker::handshake(theirs, &trust, quick.clone())
    )
}

/// Has a worker answer every step with its input.
fn echo(mut worker: Worker) -> tokio::task::JoinHandle<LinkError> {
    tokio::spawn(async move {
        let sender = worker.sender();
        loop {
            let sent = match worker.next().await {
                Ok(Event::Assigned(_)) => sender.ready(ready()),
                Ok(Event::Forward(f, x)) => sender.result(result(f.step, f.rows, f.cols), x),
                Ok(_) => Ok(()),
                Err(reason) => return reason,
            };
            if let Err(reason) = sent {
                return reason;
            }
        }
    })
}

#[tokio::test]
async fn nothing_of_the_protocol_can_be_read_on_the_way() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let watch = || -> Tamper {
        let seen = seen.clone();
        Box::new(move |_, piece| seen.lock().unwrap().extend_from_slice(piece))
    };
    let (link, worker) = through(watch(), watch(), LIMIT).await;
    let (link, _worker) = (link.unwrap(), echo(worker.unwrap()));
    link.assign(assign(), |_| ()).await.unwrap();
    let input = Bytes::from(b"secret! ".repeat(100));
    assert_eq!(link.forward(forward(1, 2, 100), input.clone()).await.unwrap().payload, input);
    let seen = seen.lock().unwrap();
    assert!(seen.len() > 1600);
    let text = key().to_text();
    for word in [b"KIMI".as_slice(), b"secret! ", b"kimi-tiny", &text.as_bytes()[11..27]] {
        assert!(
            !seen.windows(word.len()).any(|window| window == word),
            "{:?}",
            word.escape_ascii().to_string()
        );
    }
}

/// A small generator of pseudo-random numbers: which bits are hit does not matter, that they can be hit again does.
fn next(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize
}

/// Where a stream of records is (RFC 8446 5.1).
#[derive(Default)]
struct Records {
    header: Vec<u8>,
    body_left: usize,
}

impl Records {
    /// Whether a receiver must look at the next byte: versions of records and whole compatibility records say nothing.
    fn counts(&mut self, byte: u8) -> bool {
        if self.body_left > 0 {
            self.body_left -= 1;
            let counts = self.header[0] != 0x14;
            if self.body_left == 0 {
                self.header.clear();
            }
            return counts;
        }
        self.header.push(byte);
        if self.header.len() == 5 {
            self.body_left = usize::from(u16::from_be_bytes([self.header[3], self.header[4]]));
        }
        self.header[0] != 0x14 && !matches!(self.header.len(), 2 | 3)
    }
}

#[tokio::test]
async fn a_flipped_bit_anywhere_in_the_handshake_ends_it() {
    let mut state = 7;
    for round in 0..80 {
        let (at, bit) = (next(&mut state) % 450, next(&mut state) % 8);
        let flip = || -> Tamper {
            let (mut records, mut flipped) = (Records::default(), false);
            Box::new(move |place, piece| {
                for (i, byte) in piece.iter_mut().enumerate() {
                    if records.counts(*byte) && !flipped && place + i >= at {
                        (*byte, flipped) = (*byte ^ 1 << bit, true);
                    }
                }
            })
        };
        let (up, down) = if round % 2 == 0 { (flip(), untouched()) } else { (untouched(), flip()) };
        // One of the two may see its own half of the handshake through; none gets to serve a stage.
        if let (Ok(link), Ok(worker)) = through(up, down, Duration::from_millis(500)).await {
            let worker = echo(worker);
            let assigned = link.assign(assign(), |_| ()).await;
            assert!(assigned.is_err(), "bit {bit} of byte {at}, round {round}");
            worker.await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_flipped_bit_in_a_step_is_noticed_by_its_receiver() {
    let mut state = 3;
    for _ in 0..20 {
        // A step of 4000 bytes: the place is within it, behind the handshake and the assignment.
        let armed = Arc::new(Mutex::new(None));
        let (arm, bit) = (armed.clone(), next(&mut state) % 8);
        let up: Tamper = Box::new(move |_, piece| {
            if let Some(at) = *arm.lock().unwrap()
                && piece.len() > 4000
            {
                piece[at] ^= 1 << bit;
            }
        });
        let (link, worker) = through(up, untouched(), LIMIT).await;
        let (link, worker) = (link.unwrap(), echo(worker.unwrap()));
        link.assign(assign(), |_| ()).await.unwrap();
        *armed.lock().unwrap() = Some(5 + next(&mut state) % 3900);
        let error = link.forward(forward(1, 10, 100), hidden(10, 100)).await.unwrap_err();
        assert!(!matches!(error, LinkError::PeerLeft { .. }), "{error}");
        let reason = worker.await.unwrap();
        assert!(matches!(reason, LinkError::Io { .. }), "{reason}");
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_is_lost_wherever_it_is_cut() {
    for cut in [0, 1, 100, 250, 400, 700, 1000, 3000] {
        let ((ours, near), (far, theirs)) = (duplex(PIPE), duplex(PIPE));
        let (near_in, near_out) = tokio::io::split(near);
        let (far_in, far_out) = tokio::io::split(far);
        tokio::spawn(pass(near_in.take(cut), far_out, untouched()));
        tokio::spawn(pass(far_in, near_out, untouched()));
        let quick = Config { handshake_timeout: Duration::from_secs(2), ..Config::new("x") };
        let trust = trust();
        let coordinator = async {
            let link = Coordinator::handshake(ours, &trust, quick.clone()).await?;
            link.assign(assign(), |_| ()).await?;
            link.forward(forward(1, 10, 100), hidden(10, 100)).await.map(drop)
        };
        let worker = async {
            match Worker::handshake(theirs, &trust, quick.clone()).await {
                Ok(worker) => echo(worker).await.unwrap(),
                Err(error) => error,
            }
        };
        let (link, reason) = tokio::join!(coordinator, worker);
        assert!(link.is_err(), "cut after {cut} bytes");
        assert!(matches!(reason, LinkError::Lost { .. }), "cut after {cut} bytes: {reason}");
    }
}

/// What a coordinator has sent in a whole session.
async fn recorded_session() -> Vec<u8> {
    let record = Arc::new(Mutex::new(Vec::new()));
    let seen = record.clone();
    let up: Tamper = Box::new(move |_, piece| seen.lock().unwrap().extend_from_slice(piece));
    let (link, worker) = through(up, untouched(), LIMIT).await;
    let (link, worker) = (link.unwrap(), echo(worker.unwrap()));
    link.assign(assign(), |_| ()).await.unwrap();
    link.forward(forward(1, 1, 4), hidden(1, 4)).await.unwrap();
    link.close("done").await;
    worker.await.unwrap();
    std::mem::take(&mut *record.lock().unwrap())
}

#[tokio::test]
async fn a_recorded_session_opens_nothing_when_it_is_sent_again() {
    let recorded = recorded_session().await;
    for (upto, whole) in [(recorded.len(), true), (recorded.len() / 2, false), (recorded.len() / 4, false)] {
        let (mut thief, theirs) = duplex(PIPE);
        thief.write_all(&recorded[..upto]).await.unwrap();
        thief.shutdown().await.unwrap();
        let error = Worker::handshake(theirs, &trust(), config("w")).await.err().unwrap();
        let refused = matches!(error, LinkError::Handshake { .. });
        assert!(refused || !whole && matches!(error, LinkError::Lost { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_peer_that_sends_our_own_bytes_back_is_none() {
    // To a coordinator, from a mirror.
    let (ours, mirror) = duplex(PIPE);
    let (from, to) = tokio::io::split(mirror);
    tokio::spawn(pass(from, to, untouched()));
    let error = Coordinator::handshake(ours, &trust(), config("c")).await.err().unwrap();
    assert!(matches!(error, LinkError::Handshake { .. }), "{error}");

    // One coordinator's bytes to another: none of them is a worker.
    let (one, other) = duplex(PIPE);
    let trust = trust();
    let quick = Config { handshake_timeout: Duration::from_secs(2), ..Config::new("c") };
    let (one, other) = tokio::join!(
        Coordinator::handshake(one, &trust, quick.clone()),
        Coordinator::handshake(other, &trust, quick.clone())
    );
    assert!(one.is_err() && other.is_err());
}

/// A TLS client as browsers are: it trusts certificates and has no key.
fn stranger() -> tokio_rustls::TlsConnector {
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    Arc::new(config).into()
}

#[tokio::test]
async fn a_tls_client_of_another_kind_gets_no_further_than_the_handshake() {
    let (ours, theirs) = duplex(PIPE);
    let trust = trust();
    let (client, worker) = tokio::join!(
        stranger().connect("worker".try_into().unwrap(), ours),
        Worker::handshake(theirs, &trust, config("w"))
    );
    assert!(client.is_err());
    let error = worker.err().unwrap();
    assert!(matches!(error, LinkError::Handshake { .. }), "{error}");
}

/// A peer that takes whatever worker it meets.
#[derive(Debug)]
struct Intruder;

impl rustls::client::danger::ServerCertVerifier for Intruder {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn a_peer_that_proves_another_key_or_none_is_refused_by_the_worker_itself() {
    let mut document = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    document.extend([9; 32]);
    let pair = ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(document)).unwrap();
    let public = CertificateDer::from(pair.public_key().unwrap().to_vec());
    let own_key = AlwaysResolvesClientRawPublicKeys::new(Arc::new(CertifiedKey::new(vec![public], pair)));
    let builder = || {
        rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Intruder))
    };
    let without = builder().with_no_client_auth();
    for (client, proves) in [(builder().with_client_cert_resolver(Arc::new(own_key)), true), (without, false)]
    {
        let (ours, theirs) = duplex(PIPE);
        let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
        let intruder = async {
            let mut stream = connector.connect("worker".try_into().unwrap(), ours).await?;
            stream.write_all(b"KIMI").await?;
            stream.read_u8().await
        };
        let trust = trust();
        let (intruder, worker) = tokio::join!(intruder, Worker::handshake(theirs, &trust, config("w")));
        assert!(intruder.is_err());
        match (proves, worker.err().unwrap()) {
            (true, LinkError::WrongKey { ours: Role::Worker, .. }) | (false, LinkError::Handshake { .. }) => {
            }
            (_, error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn an_offer_of_older_versions_or_weaker_ciphers_is_no_way_in() {
    // The coordinator's own greeting, changed on the way: the version that it lists (0x0304) becomes TLS 1.2's, or its
    // cipher suite (0x1301) another one.
    for (from, to) in
        [([0x03, 0x04], [0x03, 0x03]), ([0x13, 0x01], [0xc0, 0x2f]), ([0x13, 0x01], [0x13, 0x03])]
    {
        let up: Tamper = Box::new(move |place, piece| {
            if place == 0
                && let Some(at) = piece.windows(2).position(|window| window == from)
            {
                piece[at..at + 2].copy_from_slice(&to);
            }
        });
        let (link, worker) = through(up, untouched(), LIMIT).await;
        assert!(link.is_err() && worker.is_err(), "{from:02x?}");
    }
}

async fn listener() -> (Listener, SocketAddr) {
    let listener = Listener::bind(([127, 0, 0, 1], 0).into(), trust(), Tuning::default()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

#[tokio::test]
async fn a_handshake_that_drips_ends_at_the_limit() {
    let (listener, addr) = listener().await;
    // A true greeting, one byte at a time.
    let greeting = recorded_session().await;
    let drip = tokio::spawn(async move {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        for byte in greeting {
            if stream.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let limit = Duration::from_millis(300);
    let short = Config { handshake_timeout: limit, ..Config::new("w") };
    let error = listener.accept().await.unwrap().handshake(short).await.err().unwrap();
    assert_eq!(error, LinkError::HandshakeTimeout { after: limit });
    drip.abort();

    // The other way round: a peer that accepts and says nothing.
    let mute = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let short = Config { handshake_timeout: limit, ..Config::new("c") };
    let error = connect(mute.local_addr().unwrap(), &trust(), &Tuning::default(), short).await.err().unwrap();
    assert_eq!(error, LinkError::HandshakeTimeout { after: limit });
}

#[tokio::test]
async fn a_key_that_was_proved_does_not_renew_the_time_for_the_hello() {
    let (ours, theirs) = duplex(PIPE);
    let limit = Duration::from_millis(500);
    let worker =
        Worker::handshake(theirs, &trust(), Config { handshake_timeout: limit, ..Config::new("w") }).await;
    assert_eq!(worker.err(), Some(LinkError::HandshakeTimeout { after: limit }));
    drop(ours);
}
