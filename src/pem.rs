//! PEM files: certificates and private keys, encrypted ones too.

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

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
                "the private key is encrypted; its password is needed (keyfile_password, or key_password of a store)"
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
            "the private key cannot be decrypted: the password (keyfile_password, or key_password of a store) is wrong".to_owned()
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
