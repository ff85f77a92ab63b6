//! What every real server of a store needs: ports, certificates, an end.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::bail;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use tempfile::TempDir;

/// Certificates of one authority: a server's, and a client's, whose common name is `howdah`.
pub(crate) struct Certificates {
    directory: TempDir,
}

impl Certificates {
    pub(crate) fn make() -> anyhow::Result<Self> {
        let directory = TempDir::new()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        std::fs::write(directory.path().join("ca.pem"), certificate.pem())?;
        let issuer = Issuer::new(params, key);
        for (name, common_name, usage) in [
            ("server", "server", ExtendedKeyUsagePurpose::ServerAuth),
            ("client", "howdah", ExtendedKeyUsagePurpose::ClientAuth),
        ] {
            let mut params =
                CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])?;
            params
                .distinguished_name
                .push(DnType::CommonName, common_name);
            // etcd's gateway talks to itself with the server's certificate.
            params.extended_key_usages = vec![usage, ExtendedKeyUsagePurpose::ClientAuth];
            let key = KeyPair::generate()?;
            let certificate = params.signed_by(&key, &issuer)?;
            std::fs::write(
                directory.path().join(format!("{name}.pem")),
                certificate.pem(),
            )?;
            std::fs::write(
                directory.path().join(format!("{name}.key")),
                key.serialize_pem(),
            )?;
            let both = format!("{}{}", key.serialize_pem(), certificate.pem());
            std::fs::write(directory.path().join(format!("{name}-both.pem")), both)?;
        }
        Ok(Certificates { directory })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// A port below those that the system hands out for outgoing connections: it must still be free after a restart.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 12_000)?;
    for _ in 0..12_000 {
        let offset = (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        if std::net::TcpListener::bind(("127.0.0.1", 20_000 + offset)).is_ok() {
            return Ok(20_000 + offset);
        }
    }
    bail!("no free port")
}

/// A child that ends, as by a power failure, with its owner.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn of(command: &mut Command) -> std::io::Result<Self> {
        command.spawn().map(Process)
    }

    #[cfg(feature = "kubernetes")]
    pub(crate) fn signal(&self, signal: rustix::process::Signal) -> anyhow::Result<()> {
        let id = rustix::process::Pid::from_child(&self.0);
        Ok(rustix::process::kill_process(id, signal)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
