//! An authority of the tests' own, and certificates by it.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, CertifiedKey, DnType, IsCa,
    KeyPair,
};

/// Vouches for others.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// One that nobody knows yet.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "An authority of our own");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate of this name or address.
    pub fn certify(&self, name: &str) -> CertifiedKey<KeyPair> {
        let signing_key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(vec![name.to_owned()]).unwrap();
        CertifiedKey { cert: cert.signed_by(&signing_key, &self.0).unwrap(), signing_key }
    }

    /// Its own certificate.
    pub fn certificate(&self) -> &Certificate {
        self.0.as_ref()
    }

    /// Writes its own certificate into a file.
    pub fn write(&self, folder: &Path, name: &str) -> PathBuf {
        write_pem(folder, name, self.certificate())
    }
}

/// Writes a certificate into a file.
pub fn write_pem(folder: &Path, name: &str, certificate: &Certificate) -> PathBuf {
    let file = folder.join(name);
    std::fs::write(&file, certificate.pem()).unwrap();
    file
}

/// Writes a key into a file.
pub fn write_key(folder: &Path, name: &str, key: &KeyPair) -> PathBuf {
    let file = folder.join(name);
    std::fs::write(&file, key.serialize_pem()).unwrap();
    file
}
