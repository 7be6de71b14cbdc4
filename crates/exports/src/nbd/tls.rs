//! TLS settings: certificate, key and, when clients must prove who they are, the authority that signs them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::NbdServerError;

/// Files in PEM form.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// The server's certificate, with the chain behind it.
    pub certificate: PathBuf,
    /// The key of the certificate.
    pub key: PathBuf,
    /// Only clients with a certificate signed by one of these are let in. `None`: whoever connects.
    pub client_authorities: Option<PathBuf>,
}

/// Loads the files.
pub(super) fn load(config: &TlsConfig) -> Result<Arc<rustls::ServerConfig>, NbdServerError> {
    let chain = certificates(&config.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&config.key)
        .map_err(|error| broken(&config.key, &error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| broken(&config.certificate, &error.to_string()))?;
    let builder = match &config.client_authorities {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(path)? {
                roots
                    .add(authority)
                    .map_err(|error| broken(path, &error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| broken(path, &error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let config = builder
        .with_single_cert(chain, key)
        .map_err(|error| broken(&config.key, &error.to_string()))?;
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, NbdServerError> {
    let list: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .map_err(|error| broken(path, &error.to_string()))?
        .collect();
    let list = list.map_err(|error| broken(path, &error.to_string()))?;
    if list.is_empty() {
        return Err(broken(path, "no certificate in it"));
    }
    Ok(list)
}

fn broken(path: &Path, reason: &str) -> NbdServerError {
    NbdServerError::Tls {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}
