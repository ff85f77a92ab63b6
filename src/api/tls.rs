//! TLS of the listener: builds the server configuration and notices changed files (spec/rest-api.md §3.3).

use std::sync::Arc;
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::WebPkiClientVerifier;

use crate::pem::{TlsError, read_certificates, read_key, read_roots};

use super::{TlsSettings, VerifyClient};

/// Loads the files. Minimum protocol TLS 1.2.
pub(crate) fn server_config(settings: &TlsSettings) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let fail = |detail: String| TlsError {
        file: settings.certfile.clone(),
        detail,
    };
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| fail(error.to_string()))?;
    let builder = if settings.verify_client == VerifyClient::None {
        builder.with_no_client_auth()
    } else {
        let Some(cafile) = &settings.cafile else {
            return Err(TlsError {
                file: "restapi.cafile".to_owned(),
                detail: "client certificates are to be verified (verify_client), but no CA bundle is given".to_owned(),
            });
        };
        let mut verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(read_roots(cafile)?), provider);
        if settings.verify_client == VerifyClient::Optional {
            verifier = verifier.allow_unauthenticated();
        }
        let verifier = verifier.build().map_err(|error| TlsError {
            file: cafile.clone(),
            detail: error.to_string(),
        })?;
        builder.with_client_cert_verifier(verifier)
    };
    let key = read_key(
        settings.keyfile.as_ref().unwrap_or(&settings.certfile),
        settings.keyfile_password.as_deref(),
    )?;
    let config = builder
        .with_single_cert(read_certificates(&settings.certfile)?, key)
        .map_err(|error| fail(error.to_string()))?;
    Ok(Arc::new(config))
}

/// What the files looked like: size and modification time of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fingerprint(Vec<Option<(u64, SystemTime)>>);

impl Fingerprint {
    pub(crate) fn take(settings: &TlsSettings) -> Fingerprint {
        let files = [
            Some(&settings.certfile),
            settings.keyfile.as_ref(),
            settings.cafile.as_ref(),
        ];
        let look = |file: &String| {
            let metadata = std::fs::metadata(file).ok()?;
            Some((metadata.len(), metadata.modified().ok()?))
        };
        Fingerprint(files.into_iter().flatten().map(look).collect())
    }
}
