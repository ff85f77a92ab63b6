//! TLS of the client side: which server certificates are believed, which certificate is shown.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use super::{ClientSettings, Verify};
use crate::pem::{TlsError, read_certificates, read_key, read_roots};

/// Where distributions keep the system's CA bundle.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

pub(crate) fn client_config(settings: &ClientSettings) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let fail = |error: Error| TlsError {
        file: "TLS settings".to_owned(),
        detail: error.to_string(),
    };
    let verifier: Arc<dyn ServerCertVerifier> = if settings.verify == Verify::Nothing {
        Arc::new(Lenient {
            provider: provider.clone(),
            chain: None,
        })
    } else {
        let roots = match &settings.cacert {
            Some(file) => read_roots(file)?,
            None => SYSTEM_BUNDLES
                .iter()
                .find_map(|file| read_roots(file).ok())
                .unwrap_or_else(RootCertStore::empty),
        };
        if roots.is_empty() {
            // Nothing can be verified: fail when a server shows a certificate, not when no TLS is in use at all.
            Arc::new(Lenient {
                provider: provider.clone(),
                chain: Some(Arc::new(NoRoots)),
            })
        } else {
            let chain =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                    .build()
                    .map_err(|error| TlsError {
                        file: "ctl.cacert".to_owned(),
                        detail: error.to_string(),
                    })?;
            if settings.verify == Verify::Full {
                chain
            } else {
                Arc::new(Lenient {
                    provider: provider.clone(),
                    chain: Some(chain),
                })
            }
        }
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(fail)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    match &settings.certfile {
        None => Ok(builder.with_no_client_auth()),
        Some(certfile) => {
            let key = read_key(
                settings.keyfile.as_ref().unwrap_or(certfile),
                settings.keyfile_password.as_deref(),
            )?;
            builder
                .with_client_auth_cert(read_certificates(certfile)?, key)
                .map_err(fail)
        }
    }
}

/// Checks the chain, if one is given, and never the host name.
#[derive(Debug)]
struct Lenient {
    provider: Arc<CryptoProvider>,
    chain: Option<Arc<dyn ServerCertVerifier>>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        stapled: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        match chain.verify_server_cert(end_entity, intermediates, name, stapled, now) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Believes nobody, because there is no CA to believe.
#[derive(Debug)]
struct NoRoots;

impl ServerCertVerifier for NoRoots {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Err(Error::General(
            "no CA certificates to verify the server with; set ctl.cacert or ctl.insecure"
                .to_owned(),
        ))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("no CA certificates".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("no CA certificates".to_owned()))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Vec::new()
    }
}
