//! TLS: who this program trusts as a client, and the certificate that it shows as a server.
//!
//! The server's files are read again every minute, so that a renewed certificate is shown without a
//! restart; one that cannot be read leaves the old one in place.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use tokio_rustls::rustls::client::WantsClientCert;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::{ClientConfig, ConfigBuilder, RootCertStore, ServerConfig};

/// Where the certificate is, the server's own first and those that vouch for it after it (PEM).
pub const CERTIFICATE: &str = "TLS_CERT_FILE";
/// Where its key is (PEM).
pub const KEY: &str = "TLS_KEY_FILE";
/// Where the certificates are that clients must have theirs from (PEM).
pub const CLIENT_AUTHORITY: &str = "TLS_CLIENT_CA_FILE";

/// The certificate that commands show to a server (PEM).
const CLIENT_CERTIFICATE: &str = "--client-cert";
/// Its key (PEM).
const CLIENT_KEY: &str = "--client-key";

/// What is spoken inside, the preferred first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// How this program connects to others: it trusts whom the system trusts, and shows no certificate.
pub fn client_config() -> ClientConfig {
    client_builder().with_no_client_auth()
}

fn client_builder() -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (added, ignored) = roots.add_parsable_certificates(found.certs);
    tracing::debug!(added, ignored, "read the system's certificates");
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider knows the versions of TLS that it was built with")
        .with_root_certificates(roots)
}

/// A client of HTTP for this program's own commands, which trusts as [`client_config`] says.
///
/// One that is made in another way knows no TLS and cannot be built.
pub fn http_client() -> reqwest::ClientBuilder {
    static CONFIG: OnceLock<ClientConfig> = OnceLock::new();
    let config = CONFIG.get_or_init(client_config).clone();
    reqwest::Client::builder().tls_backend_preconfigured(config)
}

/// As [`http_client`], with a certificate to show to servers that ask for one.
pub fn http_client_showing(
    certificate: &Path,
    key: &Path,
) -> Result<reqwest::ClientBuilder, FileError> {
    let chain = certificates(CLIENT_CERTIFICATE, &read(CLIENT_CERTIFICATE, certificate)?)?;
    let key = private_key(CLIENT_KEY, &read(CLIENT_KEY, key)?)?;
    let config = client_builder().with_client_auth_cert(chain, key).map_err(|error| {
        let problem = format!("and {CLIENT_CERTIFICATE} do not make one certificate: {error}");
        wrong(CLIENT_KEY, problem)
    })?;
    Ok(reqwest::Client::builder().tls_backend_preconfigured(config))
}

/// What is wrong with a file, and which variable names it. It never holds what is in the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable} {problem}")]
pub struct FileError {
    /// The variable.
    pub variable: &'static str,
    /// What is wrong.
    pub problem: String,
}

fn wrong(variable: &'static str, problem: impl Into<String>) -> FileError {
    FileError { variable, problem: problem.into() }
}

/// The files of a server's TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// [`CERTIFICATE`].
    pub certificate: PathBuf,
    /// [`KEY`].
    pub key: PathBuf,
    /// [`CLIENT_AUTHORITY`]: with it nobody is let in without a certificate from there.
    pub client_authority: Option<PathBuf>,
}

/// What is in the files.
#[derive(Clone, PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_authority: Option<Vec<u8>>,
}

impl Files {
    fn read(&self) -> Result<Contents, FileError> {
        let authority = self.client_authority.as_deref();
        Ok(Contents {
            certificate: read(CERTIFICATE, &self.certificate)?,
            key: read(KEY, &self.key)?,
            client_authority: authority.map(|path| read(CLIENT_AUTHORITY, path)).transpose()?,
        })
    }

    /// Says what is wrong with them, if anything.
    pub fn check(&self) -> Result<(), FileError> {
        self.read()?.server_config().map(|_| ())
    }
}

fn read(variable: &'static str, path: &Path) -> Result<Vec<u8>, FileError> {
    let problem = |error| format!("cannot be read ({}): {error}", path.display());
    std::fs::read(path).map_err(|error| wrong(variable, problem(error)))
}

fn private_key(variable: &'static str, pem: &[u8]) -> Result<PrivateKeyDer<'static>, FileError> {
    PrivateKeyDer::from_pem_slice(pem)
        .map_err(|_| wrong(variable, "names a file without a private key in PEM"))
}

fn certificates(
    variable: &'static str,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        _ => Err(wrong(variable, "names a file without a certificate in PEM")),
    }
}

impl Contents {
    fn verifier(&self) -> Result<Option<Arc<dyn ClientCertVerifier>>, FileError> {
        let Some(pem) = &self.client_authority else { return Ok(None) };
        let unusable = || wrong(CLIENT_AUTHORITY, "names a file with a certificate that is none");
        let mut roots = RootCertStore::empty();
        for certificate in certificates(CLIENT_AUTHORITY, pem)? {
            roots.add(certificate).map_err(|_| unusable())?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
        Ok(Some(verifier.build().map_err(|_| unusable())?))
    }

    fn server_config(&self) -> Result<Arc<ServerConfig>, FileError> {
        let chain = certificates(CERTIFICATE, &self.certificate)?;
        let key = private_key(KEY, &self.key)?;
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the provider knows the versions of TLS that it was built with");
        let builder = match self.verifier()? {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let config = builder.with_single_cert(chain, key);
        let mut config = config.map_err(|error| {
            wrong(KEY, format!("and {CERTIFICATE} do not make one certificate: {error}"))
        })?;
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        Ok(Arc::new(config))
    }
}

/// A server's TLS, as its files say now.
pub struct ServerTls {
    files: Files,
    current: RwLock<(Contents, Arc<ServerConfig>)>,
}

impl ServerTls {
    /// As the files say.
    pub fn new(files: Files) -> Result<Self, FileError> {
        let contents = files.read()?;
        let config = contents.server_config()?;
        Ok(Self { files, current: RwLock::new((contents, config)) })
    }

    /// For the next connection.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// Reads the files again. Whether something was new.
    fn look(&self) -> Result<bool, FileError> {
        let contents = self.files.read()?;
        if self.current.read().unwrap_or_else(PoisonError::into_inner).0 == contents {
            return Ok(false);
        }
        let config = contents.server_config()?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = (contents, config);
        Ok(true)
    }

    /// Looks for new files for ever.
    pub async fn keep_current(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let tls = self.clone();
            match tokio::task::spawn_blocking(move || tls.look()).await {
                Ok(Ok(true)) => tracing::info!("the certificate was renewed"),
                Ok(Ok(false)) => {}
                Ok(Err(error)) => tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the certificate's files have changed and are no good; the old one stays"
                ),
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey, generate_simple_self_signed};

    use super::*;

    fn files(folder: &Path) -> Files {
        Files {
            certificate: folder.join("certificate.pem"),
            key: folder.join("key.pem"),
            client_authority: None,
        }
    }

    /// Writes a new certificate into the files.
    fn renew(files: &Files) {
        let made = generate_simple_self_signed(vec!["souk.example".to_owned()]).unwrap();
        let CertifiedKey { cert, signing_key } = made;
        std::fs::write(&files.certificate, cert.pem()).unwrap();
        std::fs::write(&files.key, signing_key.serialize_pem()).unwrap();
    }

    #[test]
    fn a_renewed_certificate_is_shown_and_a_broken_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        renew(&files);
        let tls = ServerTls::new(files.clone()).unwrap();
        let first = tls.current();
        assert_eq!(tls.look(), Ok(false));
        assert!(Arc::ptr_eq(&first, &tls.current()));
        renew(&files);
        assert_eq!(tls.look(), Ok(true));
        let second = tls.current();
        assert!(!Arc::ptr_eq(&first, &second));
        // In the middle of being written: the key is of another certificate.
        let key = std::fs::read(&files.key).unwrap();
        renew(&files);
        std::fs::write(&files.key, key).unwrap();
        assert_eq!(tls.look().unwrap_err().variable, KEY);
        std::fs::write(&files.certificate, "none").unwrap();
        assert_eq!(tls.look().unwrap_err().variable, CERTIFICATE);
        assert!(Arc::ptr_eq(&second, &tls.current()));
    }

    #[test]
    fn what_is_wrong_with_the_files_is_said_by_variable() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        assert_eq!(files.check().unwrap_err().variable, CERTIFICATE);
        renew(&files);
        assert_eq!(files.check(), Ok(()));
        let authority = folder.path().join("authority.pem");
        let strict = Files { client_authority: Some(authority.clone()), ..files.clone() };
        assert_eq!(strict.check().unwrap_err().variable, CLIENT_AUTHORITY);
        std::fs::copy(&files.key, &authority).unwrap();
        let error = strict.check().unwrap_err();
        assert_eq!(error.variable, CLIENT_AUTHORITY);
        assert!(!error.to_string().contains("PRIVATE"), "{error}");
        std::fs::copy(&files.certificate, &authority).unwrap();
        assert_eq!(strict.check(), Ok(()));
        std::fs::write(&files.key, "no key").unwrap();
        assert_eq!(files.check().unwrap_err().variable, KEY);
    }
}
