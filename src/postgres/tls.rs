//! TLS towards a PostgreSQL server with libpq's meaning of `sslmode` (spec/configuration.md §3.3).
//!
//! `verify-full` checks the chain and the name, `verify-ca` the chain, `require` and `prefer` only what a given root
//! certificate allows (as libpq does), else nothing. Certificates are read anew for each connection, so a renewed file is
//! used at once. Not supported: encrypted private keys (`sslpassword`) and channel binding to the certificate.

use std::fs;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime,
};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

use super::Credentials;
use super::wire::Replication;

/// libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "libpq's names")]
pub enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl SslMode {
    /// The mode credentials ask for; `prefer` if they do not say.
    ///
    /// # Errors
    /// An unknown word.
    pub fn of(credentials: &Credentials) -> Result<SslMode, TlsError> {
        match credentials.sslmode.as_deref() {
            Some("disable") => Ok(SslMode::Disable),
            Some("allow") => Ok(SslMode::Allow),
            None | Some("" | "prefer") => Ok(SslMode::Prefer),
            Some("require") => Ok(SslMode::Require),
            Some("verify-ca") => Ok(SslMode::VerifyCa),
            Some("verify-full") => Ok(SslMode::VerifyFull),
            Some(other) => Err(TlsError::Mode(other.to_owned())),
        }
    }
}

/// TLS cannot be set up as configured.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// An unknown `sslmode`.
    #[error("sslmode {0:?} is not one of disable, allow, prefer, require, verify-ca, verify-full")]
    Mode(String),
    /// A file is missing or not what it should be.
    #[error("{setting} {path:?}: {reason}")]
    File {
        /// Which setting names it.
        setting: &'static str,
        /// Its path.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// Something this program cannot do.
    #[error("{0}")]
    Unsupported(&'static str),
    /// The TLS library refuses the combination.
    #[error("{0}")]
    Library(String),
}

fn library(error: impl std::fmt::Display) -> TlsError {
    TlsError::Library(error.to_string())
}

fn file_error(setting: &'static str, path: &str, reason: impl std::fmt::Display) -> TlsError {
    TlsError::File {
        setting,
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

fn read(setting: &'static str, path: &str) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| file_error(setting, path, error))
}

fn certificates(
    setting: &'static str,
    path: &str,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(setting, path)?;
    let found: Vec<_> = rustls_pemfile::certs(&mut text.as_slice())
        .collect::<Result<_, _>>()
        .map_err(|error| file_error(setting, path, error))?;
    match found.is_empty() {
        true => Err(file_error(setting, path, "no certificate in it")),
        false => Ok(found),
    }
}

fn private_key(path: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = read("sslkey", path)?;
    rustls_pemfile::private_key(&mut text.as_slice())
        .map_err(|error| file_error("sslkey", path, error))?
        .ok_or_else(|| file_error("sslkey", path, "no unencrypted private key in it"))
}

fn revocations(
    credentials: &Credentials,
) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let mut files: Vec<(&'static str, String)> = Vec::new();
    files.extend(credentials.sslcrl.clone().map(|path| ("sslcrl", path)));
    if let Some(directory) = &credentials.sslcrldir {
        let entries =
            fs::read_dir(directory).map_err(|error| file_error("sslcrldir", directory, error))?;
        files.extend(
            entries
                .flatten()
                .map(|entry| ("sslcrldir", entry.path().display().to_string())),
        );
    }
    let mut found = Vec::new();
    for (setting, path) in files {
        let text = read(setting, &path)?;
        for list in rustls_pemfile::crls(&mut text.as_slice()) {
            found.push(list.map_err(|error| file_error(setting, &path, error))?);
        }
    }
    Ok(found)
}

/// What one connection needs to speak TLS.
#[derive(Clone)]
pub(super) struct Connector {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Connector {
    /// Prepares TLS to `host` as the credentials ask for.
    pub(super) fn new(credentials: &Credentials, host: &str) -> Result<Connector, TlsError> {
        let mode = SslMode::of(credentials)?;
        if credentials.channel_binding.as_deref() == Some("require") {
            return Err(TlsError::Unsupported(
                "channel_binding=require is not supported; use prefer",
            ));
        }
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(library)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier::new(
                credentials,
                mode,
                provider,
            )?));
        let config = match (&credentials.sslcert, &credentials.sslkey) {
            (Some(certificate), Some(key)) => builder
                .with_client_auth_cert(certificates("sslcert", certificate)?, private_key(key)?)
                .map_err(library)?,
            (None, None) => builder.with_no_client_auth(),
            _ => {
                return Err(TlsError::Unsupported(
                    "sslcert and sslkey must be set together",
                ));
            }
        };
        let name = ServerName::try_from(host.to_owned()).map_err(library)?;
        Ok(Connector {
            config: Arc::new(config),
            name,
        })
    }
}

/// Checks a server's certificate as far as the mode asks.
#[derive(Debug)]
struct Verifier {
    chain: Option<Arc<WebPkiServerVerifier>>,
    name: bool,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(
        credentials: &Credentials,
        mode: SslMode,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, TlsError> {
        let chain = match credentials.sslrootcert.as_deref() {
            None if mode >= SslMode::VerifyCa => {
                return Err(TlsError::Unsupported(
                    "sslmode verify-ca and verify-full need sslrootcert",
                ));
            }
            None => None,
            Some(_) if mode < SslMode::Require => None,
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates("sslrootcert", path)? {
                    roots
                        .add(certificate)
                        .map_err(|error| file_error("sslrootcert", path, error))?;
                }
                let verifier = WebPkiServerVerifier::builder_with_provider(
                    Arc::new(roots),
                    Arc::clone(&provider),
                )
                .with_crls(revocations(credentials)?)
                .allow_unknown_revocation_status()
                .build()
                .map_err(library)?;
                Some(verifier)
            }
        };
        Ok(Verifier {
            chain,
            name: mode == SslMode::VerifyFull,
            provider,
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        let verdict =
            chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verdict {
            // The name is checked last: everything else was in order.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.name => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A TLS session inside a connection, with the startup message inside the session.
pub(super) struct Session<S>(Replication<tokio_rustls::client::TlsStream<S>>);

impl<S> TlsConnect<Replication<S>> for Connector
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Session<Replication<S>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Stream>> + Send>>;

    fn connect(self, stream: Replication<S>) -> Self::Future {
        Box::pin(async move {
            let wanted = stream.wanted();
            let connector = tokio_rustls::TlsConnector::from(self.config);
            let session = connector.connect(self.name, stream).await?;
            Ok(Session(Replication::new(session, wanted)))
        })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Session<S> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Session<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Session<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
