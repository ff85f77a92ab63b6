//! TLS of the client side: which server certificates are believed, which certificate is shown.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use super::{ClientSettings, Verify};

/// Where distributions keep the system's CA bundle.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A certificate or key that cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{file}: {detail}")]
pub struct TlsError {
    /// The file, or the setting.
    pub file: String,
    /// What is wrong with it, and what to do.
    pub detail: String,
}

/// Reads every certificate of a PEM file.
pub(crate) fn read_certificates(file: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let fail = |detail: String| TlsError {
        file: file.to_owned(),
        detail,
    };
    let certificates = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| fail(error.to_string()))?;
    if certificates.is_empty() {
        Err(fail("no certificate in it".to_owned()))
    } else {
        Ok(certificates)
    }
}

/// Reads the first private key of a PEM file.
pub(crate) fn read_key(
    file: &str,
    password: Option<&str>,
) -> Result<PrivateKeyDer<'static>, TlsError> {
    let fail = |detail: String| TlsError {
        file: file.to_owned(),
        detail,
    };
    let text = std::fs::read_to_string(file).map_err(|error| fail(error.to_string()))?;
    if let Some(encrypted) = encrypted_key(&text) {
        let Some(password) = password else {
            return Err(fail(
                "the private key is encrypted; its password is needed (keyfile_password)"
                    .to_owned(),
            ));
        };
        return decrypted(&encrypted.map_err(fail)?, password).map_err(fail);
    }
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| {
        fail(if text.contains("Proc-Type: 4,ENCRYPTED") {
            "the private key is encrypted in OpenSSL's old format; convert it with openssl pkcs8 -topk8".to_owned()
        } else {
            format!("no usable private key: {error}")
        })
    })
}

/// The first encrypted key of a PEM file (PKCS #8, RFC 5958), if it is there at all.
fn encrypted_key(text: &str) -> Option<Result<Vec<u8>, String>> {
    use base64::Engine as _;
    let (_, rest) = text.split_once("-----BEGIN ENCRYPTED PRIVATE KEY-----")?;
    let Some((body, _)) = rest.split_once("-----END ENCRYPTED PRIVATE KEY-----") else {
        return Some(Err("the encrypted private key has no end".to_owned()));
    };
    let body: String = body.split_whitespace().collect();
    let der = base64::engine::general_purpose::STANDARD.decode(body);
    Some(der.map_err(|error| format!("the encrypted private key is not base64: {error}")))
}

fn decrypted(der: &[u8], password: &str) -> Result<PrivateKeyDer<'static>, String> {
    let key = pkcs8::EncryptedPrivateKeyInfo::try_from(der)
        .map_err(|error| format!("the encrypted private key is damaged: {error}"))?;
    let plain = key.decrypt(password).map_err(|error| match error {
        // A wrong password shows as bad padding or, now and then, as nonsense where the key should be.
        pkcs8::Error::EncryptedPrivateKey(
            pkcs8::pkcs5::Error::DecryptFailed | pkcs8::pkcs5::Error::EncryptFailed,
        )
        | pkcs8::Error::Asn1(_) => {
            "the private key cannot be decrypted: the password (keyfile_password) is wrong".to_owned()
        }
        other => format!(
            "the private key cannot be decrypted ({other}); openssl pkcs8 -topk8 -v2 aes-256-cbc makes one that can"
        ),
    })?;
    Ok(PrivateKeyDer::Pkcs8(plain.as_bytes().to_vec().into()))
}

/// The CA certificates of a PEM file.
pub(crate) fn read_roots(file: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(read_certificates(file)?);
    if added == 0 {
        return Err(TlsError {
            file: file.to_owned(),
            detail: "no usable CA certificate in it".to_owned(),
        });
    }
    Ok(roots)
}

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
