//! TLS towards a store's servers, as Patroni's settings mean it.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rustls::client::WantsClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::pem;

/// Where distributions keep the system's CA bundle.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Whose certificates are believed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Trust<'a> {
    /// Everybody's: encryption without authentication.
    Anybody,
    /// What one of these authorities has signed.
    Authorities(&'a Path),
    /// The same, as PEM.
    #[cfg(feature = "kubernetes")]
    Bundle(&'a [u8]),
    /// What an authority in the system's bundle has signed.
    System,
}

/// PEM from a file, or as it is.
#[cfg(feature = "kubernetes")]
#[derive(Debug, Clone)]
pub(super) enum Pem {
    File(std::path::PathBuf),
    Text(Vec<u8>),
}

#[cfg(feature = "kubernetes")]
impl Pem {
    fn read(&self) -> anyhow::Result<std::borrow::Cow<'_, [u8]>> {
        Ok(match self {
            Pem::Text(text) => text.into(),
            Pem::File(path) => std::fs::read(path)
                .with_context(|| format!("cannot read {}", path.display()))?
                .into(),
        })
    }
}

/// The client's side with a certificate and its key from wherever they are; the key must not be encrypted.
///
/// # Errors
/// As [`client`].
#[cfg(feature = "kubernetes")]
pub(super) fn client_of(
    trust: Trust<'_>,
    identity: Option<&(Pem, Pem)>,
) -> anyhow::Result<Arc<ClientConfig>> {
    let builder = trusting(trust)?;
    let config = match identity {
        Some((certificate, key)) => {
            let certificates = rustls_pemfile::certs(&mut certificate.read()?.as_ref())
                .collect::<Result<Vec<_>, _>>()
                .context("the client certificate is not PEM")?;
            let key = rustls_pemfile::private_key(&mut key.read()?.as_ref())
                .context("the client key is not PEM")?
                .context("the client key is none that can be used")?;
            builder
                .with_client_auth_cert(certificates, key)
                .context("the client certificate and its key do not fit")?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// The client's side; `cert` without `key` is a combined PEM file, `key_password` opens an encrypted key.
///
/// # Errors
/// A file that cannot be read or holds nothing usable; the message names it.
pub(super) fn client(
    trust: Trust<'_>,
    cert: Option<&Path>,
    key: Option<&Path>,
    key_password: Option<&str>,
) -> anyhow::Result<Arc<ClientConfig>> {
    let builder = trusting(trust)?;
    let config = match cert {
        Some(path) => {
            let key = private_key(key.unwrap_or(path), key_password)?;
            builder
                .with_client_auth_cert(certificates(path)?, key)
                .with_context(|| format!("{} and its key do not fit", path.display()))?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

fn trusting(trust: Trust<'_>) -> anyhow::Result<ConfigBuilder<ClientConfig, WantsClientCert>> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    Ok(match trust {
        Trust::Authorities(path) => builder.with_root_certificates(roots(path)?),
        #[cfg(feature = "kubernetes")]
        Trust::Bundle(pem) => builder.with_root_certificates(bundled_roots(pem)?),
        Trust::System => {
            let found = SYSTEM_BUNDLES
                .iter()
                .map(Path::new)
                .find(|path| path.exists());
            builder.with_root_certificates(match found {
                Some(path) => system_roots(path)?,
                None => RootCertStore::empty(),
            })
        }
        Trust::Anybody => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer(provider))),
    })
}

#[cfg(feature = "kubernetes")]
fn bundled_roots(pem: &[u8]) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in rustls_pemfile::certs(&mut &*pem) {
        roots.add(certificate.context("the authority is not PEM")?)?;
    }
    anyhow::ensure!(
        !roots.is_empty(),
        "the authority's data holds no certificate"
    );
    Ok(roots)
}

fn roots(path: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .with_context(|| format!("{} holds an unusable certificate", path.display()))?;
    }
    Ok(roots)
}

/// A system's bundle may hold certificates that this library does not understand; the others count.
fn system_roots(path: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(path)?);
    Ok(roots)
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let pem = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let found = rustls_pemfile::certs(&mut pem.as_slice())
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("{} is not PEM", path.display()))?;
    anyhow::ensure!(!found.is_empty(), "{} holds no certificate", path.display());
    Ok(found)
}

fn private_key(path: &Path, password: Option<&str>) -> anyhow::Result<PrivateKeyDer<'static>> {
    let file = path
        .to_str()
        .with_context(|| format!("{} is no usable file name", path.display()))?;
    Ok(pem::read_key(file, password)?)
}

/// Accepts every certificate: encryption without authentication, which is what a setup without `cacert` asks for.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
