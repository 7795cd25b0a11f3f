//! Links that only machines with the cluster's key can make: TLS 1.3 below the frames.
//!
//! Each end has an Ed25519 key pair that is derived from the cluster's key and from its role. Both prove theirs in the
//! handshake, and accept the other role's only: a peer without the key can't make one, and one that sends our own bytes
//! back has the wrong one. There is one version, one cipher suite and one key exchange, so nothing is negotiated. The keys of
//! a link come from a fresh exchange: who finds the cluster's key later can't read links of before. Nothing of a link is
//! kept to be resumed, and no data is sent before the handshake is over.

use std::{fmt, io, sync::Arc, time::Duration};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    InvalidMessage, ServerConfig, SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
    server::{
        AlwaysResolvesServerRawPublicKeys,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::{CertifiedKey, SigningKey},
    version::TLS13,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, BufReader},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use zeroize::Zeroizing;

use crate::{error::LinkError, key::ClusterKey, message::Role};

/// With whom links are made, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// With those who have this key; encrypted.
    Key(ClusterKey),
    /// With anyone; in the clear. Both ends must be set so.
    Insecure,
}

/// Bytes taken from the socket at once: a hidden state of one token of Kimi-K2, in its records.
const READ_BYTES: usize = 32 << 10;

/// A stream whose bytes come in large pieces, so that a step of one token is read by one call of the system. What is larger is
/// read to where it belongs.
pub(crate) fn buffered<S: AsyncRead>(stream: S) -> BufReader<S> {
    BufReader::with_capacity(READ_BYTES, stream)
}

/// An encrypted stream.
pub(crate) type Secured<S> = TlsStream<BufReader<S>>;

/// Proves this end's key to the peer and has the peer prove its own, within `limit`.
pub(crate) async fn handshake<S>(
    stream: S,
    key: &ClusterKey,
    role: Role,
    limit: Duration,
) -> Result<Secured<S>, LinkError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let stream = buffered(stream);
    let ours = |error: Error| LinkError::Handshake { detail: error.to_string() };
    let done = match role {
        Role::Coordinator | Role::Observer => {
            let connector = TlsConnector::from(Arc::new(client_config(key).map_err(ours)?));
            // A name is asked for, though none is sent and none is checked.
            let name = ServerName::try_from("worker").map_err(|e| ours(Error::General(e.to_string())))?;
            timeout(limit, connector.connect(name, stream)).await.map(|done| done.map(TlsStream::from))
        }
        Role::Worker => {
            let acceptor = TlsAcceptor::from(Arc::new(server_config(key).map_err(ours)?));
            timeout(limit, acceptor.accept(stream)).await.map(|done| done.map(TlsStream::from))
        }
    };
    match done {
        Ok(result) => result.map_err(|error| failure(&error, key, role)),
        Err(_) => Err(LinkError::HandshakeTimeout { after: limit }),
    }
}

fn failure(error: &io::Error, key: &ClusterKey, ours: Role) -> LinkError {
    let tls = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>());
    match tls {
        Some(
            Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
            | Error::AlertReceived(AlertDescription::AccessDenied),
        ) => LinkError::WrongKey { cluster: key.id(), ours },
        // The first bytes are no TLS record.
        Some(Error::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge
            | InvalidMessage::InvalidEmptyPayload,
        )) => LinkError::NotEncrypted,
        Some(error) => LinkError::Handshake { detail: error.to_string() },
        None if error.kind() == io::ErrorKind::UnexpectedEof => LinkError::Lost {
            at: "in the encrypted handshake; is the other end a kimi with the cluster's key, without --insecure?"
                .into(),
        },
        None => LinkError::io("cannot shake hands with the peer", error),
    }
}

fn client_config(key: &ClusterKey) -> Result<ClientConfig, Error> {
    let provider = provider();
    let identity = Identity::of(key, Role::Coordinator)?;
    let verifier = Arc::new(OnlyKey::of(key, Role::Worker, &provider)?);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(identity.certified())));
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

fn server_config(key: &ClusterKey) -> Result<ServerConfig, Error> {
    let provider = provider();
    let identity = Identity::of(key, Role::Worker)?;
    let verifier = Arc::new(OnlyKey::of(key, Role::Coordinator, &provider)?);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(identity.certified())));
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The one way in which links are encrypted.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![ring::cipher_suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![ring::kx_group::X25519],
        ..ring::default_provider()
    })
}

/// The key pair of a role in a cluster.
struct Identity(Arc<dyn SigningKey>);

impl Identity {
    fn of(key: &ClusterKey, role: Role) -> Result<Identity, Error> {
        /// PKCS #8 (RFC 8410): version 0, Ed25519, a private key of 32 bytes.
        const HEAD: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
        let seed = Zeroizing::new(key.derive(match role {
            Role::Coordinator | Role::Observer => "kimi 2026 link 1 coordinator",
            Role::Worker => "kimi 2026 link 1 worker",
        }));
        let mut document = Zeroizing::new([0; 48]);
        document[..16].copy_from_slice(&HEAD);
        document[16..].copy_from_slice(&*seed);
        let pair = ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(&document[..]))?;
        Ok(Identity(pair))
    }

    fn public(&self) -> Result<SubjectPublicKeyInfoDer<'static>, Error> {
        let public = self.0.public_key().map(SubjectPublicKeyInfoDer::into_owned);
        public.ok_or_else(|| Error::General("a key pair has no public key".into()))
    }

    fn certified(&self) -> Arc<CertifiedKey> {
        let public = self.0.public_key().map(|public| CertificateDer::from(public.to_vec()));
        Arc::new(CertifiedKey::new(public.into_iter().collect(), self.0.clone()))
    }
}

/// Accepts one public key and nothing else.
struct OnlyKey {
    accepted: SubjectPublicKeyInfoDer<'static>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl OnlyKey {
    fn of(key: &ClusterKey, role: Role, provider: &CryptoProvider) -> Result<OnlyKey, Error> {
        let accepted = Identity::of(key, role)?.public()?;
        Ok(OnlyKey { accepted, algorithms: provider.signature_verification_algorithms })
    }

    fn check(&self, key: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<(), Error> {
        // Public keys: there is no secret whose comparison could be timed.
        match others.is_empty() && key.as_ref() == self.accepted.as_ref() {
            true => Ok(()),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms)
    }
}

/// TLS 1.2 is neither offered nor accepted.
fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("only TLS 1.3 is spoken".into()))
}

impl ServerCertVerifier for OnlyKey {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(key, others).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, key, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for OnlyKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(key, others).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, key, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl fmt::Debug for OnlyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnlyKey")
    }
}
