//! A certificate authority for one broker, thrown away with it: [`Authority`].

use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

pub(crate) const CA: &str = "ca.pem";
pub(crate) const CERTIFICATE: &str = "certificate.pem";
pub(crate) const KEY: &str = "key.pem";

/// Writes the certificate of an authority, and the certificate and key that it gives to a server on this machine.
pub(crate) fn write(folder: &Path) -> io::Result<()> {
    let made = make().map_err(io::Error::other)?;
    for (name, text) in [CA, CERTIFICATE, KEY].into_iter().zip(made) {
        fs::write(folder.join(name), text)?;
    }
    Ok(())
}

fn make() -> Result<[String; 3], Box<dyn Error + Send + Sync>> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::default();
    ca.distinguished_name
        .push(DnType::CommonName, "Millstream's tests");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca, ca_key);

    let key = KeyPair::generate()?;
    let mut server = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    server.distinguished_name.push(DnType::CommonName, "localhost");
    let certificate = server.signed_by(&key, &issuer)?;
    Ok([ca_certificate.pem(), certificate.pem(), key.serialize_pem()])
}
