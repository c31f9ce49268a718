//! Certificates for brokers and relays, made for one test.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
};

/// A certificate authority, and where it puts what it makes.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: PathBuf,
    name: String,
}

impl Authority {
    /// A new one, whose certificate is in a file of `directory`.
    pub fn new(directory: &Path, name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = common_name(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        fs::create_dir_all(directory)?;
        let authority = Self {
            issuer: Issuer::new(params.clone(), KeyPair::from_pem(&key.serialize_pem())?),
            directory: directory.to_owned(),
            name: name.to_owned(),
        };
        fs::write(authority.certificate(), params.self_signed(&key)?.pem())?;
        Ok(authority)
    }

    /// The file of its own certificate.
    pub fn certificate(&self) -> PathBuf {
        self.directory.join(format!("{}.pem", self.name))
    }

    /// Makes a certificate for a host (a name or an address) or a client, and its key: two files.
    pub fn issue(&self, name: &str) -> Result<(PathBuf, PathBuf)> {
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.distinguished_name = common_name(name);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let file = |kind: &str| self.directory.join(format!("{}-{name}.{kind}", self.name));
        let files = (file("pem"), file("key"));
        fs::write(&files.0, certificate.pem())?;
        fs::write(&files.1, key.serialize_pem())?;
        Ok(files)
    }

    /// The same in one file, as a broker wants it (`ssl.keystore.type=PEM`).
    pub fn issue_keystore(&self, name: &str) -> Result<PathBuf> {
        let (certificate, key) = self.issue(name)?;
        let both = self.directory.join(format!("{}-{name}-keystore.pem", self.name));
        fs::write(&both, fs::read_to_string(key)? + &fs::read_to_string(certificate)?)?;
        Ok(both)
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}
