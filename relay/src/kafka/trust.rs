//! What the relay's own connections to brokers trust, and what they show of the relay: rustls.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, crypto};

use crate::config::TlsSection;

/// Why there can be no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// Something is wrong with a file.
    #[error("kafka.tls.{setting}: {file}: {problem}")]
    File {
        /// Which setting names it.
        setting: &'static str,
        /// The file.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// No certificate authority is named, and the system has none.
    #[error(
        "kafka.tls.ca: this system has no certificate authorities ({0}); install ca-certificates, or name a \
         file with those of the brokers"
    )]
    NoAuthorities(String),
    /// What the files hold does not belong together.
    #[error("kafka.tls: {0}")]
    Unfit(#[from] rustls::Error),
}

/// TLS 1.2 and 1.3 as the section says.
pub(crate) fn client_config(section: &TlsSection) -> Result<Arc<ClientConfig>, TrustError> {
    let mut authorities = RootCertStore::empty();
    if let Some(file) = &section.ca {
        for certificate in certificates("ca", file)? {
            authorities.add(certificate).map_err(|error| wrong("ca", file, &error))?;
        }
    } else {
        let found = rustls_native_certs::load_native_certs();
        // Some that are out of date are no reason not to trust the others.
        authorities.add_parsable_certificates(found.certs);
        if authorities.is_empty() {
            let why =
                found.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
            return Err(TrustError::NoAuthorities(why));
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(authorities);
    let config = match (&section.certificate, &section.key) {
        (Some(certificate), Some(key)) => {
            let chain = certificates("certificate", certificate)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| {
                let problem = match error {
                    pem::Error::NoItemsFound => {
                        "it holds no private key in PEM that is not encrypted".to_owned()
                    }
                    other => other.to_string(),
                };
                wrong("key", key, &problem)
            })?;
            builder.with_client_auth_cert(chain, key)?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

fn certificates(
    setting: &'static str,
    file: &Path,
) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let all = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let all = all.map_err(|error| wrong(setting, file, &error))?;
    if all.is_empty() {
        return Err(wrong(setting, file, &"it holds no certificate in PEM"));
    }
    Ok(all)
}

fn wrong(setting: &'static str, file: &Path, problem: &dyn ToString) -> TrustError {
    let (file, problem) = (file.display().to_string(), problem.to_string());
    TrustError::File { setting, file, problem }
}
