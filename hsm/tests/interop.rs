//! The keys in the hands of other software: OpenSSL and its `tpm2` provider, certificate requests,
//! TLS.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use hsm::swtpm::Swtpm;
use hsm::{IdentitySigner, Public};
use openssl::bn::BigNumContext;
use openssl::ec::{EcGroup, EcKey, EcPoint};
use openssl::ecdsa::EcdsaSig;
use openssl::nid::Nid;
use openssl::pkey;
use rcgen::{CertificateParams, DnType};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, RootCertStore, SignatureScheme, StreamOwned};
use support::{at_rest, digest, fails, file, hsm, tool};

#[tokio::test]
async fn openssl_signs_with_our_key_files() {
    let tpm = Swtpm::start().unwrap();
    let public = hsm(&tpm).provision(false).await.unwrap();
    at_rest(&tpm);
    std::fs::write(tpm.folder().join("message"), b"signed by another program").unwrap();

    tool(
        &tpm,
        "openssl dgst -provider tpm2 -provider default -propquery ?provider=tpm2 -sha256 \
         -sign keys/identity.pem -out signature message",
    );

    let signature = EcdsaSig::from_der(&file(&tpm, "signature")).unwrap();
    let digest = openssl::sha::sha256(b"signed by another program");
    assert!(
        signature
            .verify(&digest, &openssl_key(&public.identity))
            .unwrap()
    );
    // Key agreement is all that the channel key does.
    at_rest(&tpm);
    assert!(fails(
        &tpm,
        "openssl dgst -provider tpm2 -provider default -propquery ?provider=tpm2 -sha256 \
         -sign keys/channel.pem -out signature message",
    ));
}

#[test]
fn ten_thousand_signatures_verify_with_openssl() {
    let (tpm, public, signer) = signer();
    let key = openssl_key(&public.identity);
    let half_order = {
        let mut half = openssl::bn::BigNum::new().unwrap();
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let mut order = openssl::bn::BigNum::new().unwrap();
        group
            .order(&mut order, &mut BigNumContext::new().unwrap())
            .unwrap();
        half.rshift1(&order).unwrap();
        half
    };
    let (mut short_r, mut short_s) = (0, 0);

    for number in 0..10_000_u32 {
        let message = digest(number);
        let der = signer.sign(&message).unwrap();

        let signature = EcdsaSig::from_der(&der).unwrap();
        let digest = openssl::sha::sha256(&message);
        assert!(signature.verify(&digest, &key).unwrap(), "{number}");
        // DER has one form, and s is the lower one.
        assert_eq!(signature.to_der().unwrap(), der, "{number}");
        assert!(*signature.s() <= half_order, "{number}");
        short_r += u32::from(signature.r().num_bytes() < 32);
        short_s += u32::from(signature.s().num_bytes() < 32);
    }

    // One in 256 begins with a zero; of the lower s one in 128.
    assert!((10..90).contains(&short_r), "{short_r} with a short r");
    assert!((30..140).contains(&short_s), "{short_s} with a short s");
    drop(tpm);
}

#[test]
fn a_certificate_request_verifies_with_openssl() {
    let (tpm, public, signer) = signer();
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "greenhouse-7");

    let request = params.serialize_request(&signer).unwrap();

    std::fs::write(tpm.folder().join("request.pem"), request.pem().unwrap()).unwrap();
    let printed = tool(
        &tpm,
        "openssl req -in request.pem -verify -noout -subject -pubkey",
    );
    assert!(printed.contains("CN = greenhouse-7"), "{printed}");
    let key =
        pkey::PKey::public_key_from_pem(&printed.as_bytes()[printed.find("-----BEGIN").unwrap()..])
            .unwrap();
    assert!(key.public_eq(&pkey::PKey::from_ec_key(openssl_key(&public.identity)).unwrap()));
    // It says so on standard error, and ends well in any case.
    let said = |line| String::from_utf8(support::run(&tpm, line).stderr).unwrap();
    assert!(said("openssl req -in request.pem -verify -noout").contains("verify OK"));
    let mut der = request.der().to_vec();
    let last = der.len() - 1;
    der[last] ^= 1;
    std::fs::write(tpm.folder().join("altered.der"), der).unwrap();
    let altered = said("openssl req -in altered.der -inform DER -verify -noout");
    assert!(!altered.contains("verify OK"), "{altered}");
}

#[test]
fn a_tls_client_shows_a_certificate_whose_key_is_in_the_tpm() {
    let (tpm, _, signer) = signer();
    let mut params = CertificateParams::new(vec!["greenhouse-7".to_owned()]).unwrap();
    params.serial_number = Some(7.into());
    let client = params.self_signed(&signer).unwrap();
    std::fs::write(tpm.folder().join("client.pem"), client.pem()).unwrap();
    tool(
        &tpm,
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
         -subj /CN=localhost -addext basicConstraints=critical,CA:FALSE \
         -addext subjectAltName=DNS:localhost -keyout server.key \
         -out server.pem",
    );
    let mut server = Server::start(&tpm);
    let mut roots = RootCertStore::empty();
    let server_certificate = CertificateDer::from_pem_file(tpm.folder().join("server.pem"));
    roots.add(server_certificate.unwrap()).unwrap();
    let config = || {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots.clone())
    };

    let key = CertifiedKey::new(vec![client.der().clone()], Arc::new(signer));
    let with_key = config().with_client_cert_resolver(Arc::new(OurKey(Arc::new(key))));
    for _ in 0..5 {
        assert_eq!(server.echo(with_key.clone()).unwrap(), "dnatsrednu");
    }
    assert!(server.echo(config().with_no_client_auth()).is_err());
}

fn signer() -> (Swtpm, Public, IdentitySigner) {
    let tpm = Swtpm::start().unwrap();
    let handle = hsm(&tpm);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let public = runtime.block_on(handle.provision(false)).unwrap();
    let signer = handle.signer(&public);
    (tpm, public, signer)
}

fn openssl_key(point: &[u8; 65]) -> EcKey<pkey::Public> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let point = EcPoint::from_bytes(&group, point, &mut BigNumContext::new().unwrap()).unwrap();
    EcKey::from_public_key(&group, &point).unwrap()
}

/// `openssl s_server`, which demands a certificate and sends back what it gets, reversed.
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    fn start(tpm: &Swtpm) -> Self {
        let mut process = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-tls1_3", "-rev"])
            .args(["-key", "server.key", "-cert", "server.pem"])
            .args([
                "-CAfile",
                "client.pem",
                "-Verify",
                "1",
                "-verify_return_error",
            ])
            .current_dir(tpm.folder())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // ACCEPT 127.0.0.1:PORT
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let port = lines
            .find_map(|line| line.unwrap().rsplit_once(':')?.1.parse().ok())
            .unwrap();
        // It goes on to print, and ends if nobody reads.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, port }
    }

    fn echo(&mut self, config: ClientConfig) -> std::io::Result<String> {
        let name = ServerName::try_from("localhost").unwrap();
        let connection = ClientConnection::new(Arc::new(config), name).unwrap();
        let stream = TcpStream::connect(("127.0.0.1", self.port))?;
        let mut stream = StreamOwned::new(connection, stream);
        stream.write_all(b"understand\n")?;
        let mut answer = [0; 11];
        stream.read_exact(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).trim().to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[derive(Debug)]
struct OurKey(Arc<CertifiedKey>);

impl ResolvesClientCert for OurKey {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
