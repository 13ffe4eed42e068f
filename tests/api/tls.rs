//! TLS on the service's own listener, and certificates of clients (S1-157, X22).

use std::path::Path;
use std::sync::Arc;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertifiedKey, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::support::certificates::{Authority, write_key, write_pem};
use crate::support::{Command, Server, Start, wish};

const HOST: &str = "127.0.0.1";

/// A client that trusts this authority, and shows a certificate if it has one.
pub fn trusting(authority: &Authority, own: Option<&CertifiedKey<KeyPair>>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate().der().clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    match own {
        None => builder.with_no_client_auth(),
        Some(CertifiedKey { cert, signing_key }) => {
            let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
            builder.with_client_auth_cert(vec![cert.der().clone()], key).unwrap()
        }
    }
}

/// How to start a server with a certificate of this authority, asked by such a client.
pub fn secured(authority: &Authority, client: ClientConfig, folder: &Path) -> Start {
    let CertifiedKey { cert, signing_key } = authority.certify(HOST);
    let http = reqwest::Client::builder().tls_backend_preconfigured(client).build().unwrap();
    Start::default()
        .with("TLS_CERT_FILE", write_pem(folder, "server.pem", &cert).display())
        .with("TLS_KEY_FILE", write_key(folder, "server-key.pem", &signing_key).display())
        .asked_by(http)
}

fn address(server: &Server) -> String {
    server.url().strip_prefix("https://").unwrap().to_owned()
}

async fn connect(
    server: &Server,
    mut client: ClientConfig,
    protocols: &[&[u8]],
) -> std::io::Result<TlsStream<TcpStream>> {
    client.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let stream = TcpStream::connect(address(server)).await?;
    let name = ServerName::try_from(HOST).unwrap();
    TlsConnector::from(Arc::new(client)).connect(name, stream).await
}

/// What is answered to a request on such a connection; nothing: it was closed.
async fn answered(mut stream: TlsStream<TcpStream>) -> Option<String> {
    let request = b"GET /livez HTTP/1.1\r\nhost: souk\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.ok()?;
    let mut answer = Vec::new();
    // Whoever is refused is reset, sooner or later.
    let _: std::io::Result<usize> = stream.read_to_end(&mut answer).await;
    (!answer.is_empty()).then(|| String::from_utf8(answer).unwrap())
}

#[tokio::test]
async fn everything_is_served_under_tls_and_nothing_else_is() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let client = || trusting(&authority, None);
    let start = secured(&authority, client(), folder.path());
    let server = start.with("HTTP_HEADER_TIMEOUT", "2s").start().await;
    let sale = server.sale(1, 1, "sandbox").await;
    server.order_eventually(&sale.order.id, "SHIPPED").await;
    // Both versions of HTTP; the older one where nobody asks for another.
    for protocols in [&[&b"http/1.1"[..]][..], &[]] {
        let answer = answered(connect(&server, client(), protocols).await.unwrap()).await;
        assert!(answer.unwrap().starts_with("HTTP/1.1 200"));
    }
    let stream = connect(&server, client(), &[b"h2", b"http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let connection = tokio::spawn(connection);
    let request = hyper::Request::get(format!("{}/livez", server.url()));
    let answer = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 200);
    connection.abort();
    // Nobody is answered in clear, and who says nothing loses the place.
    for said in [&b"GET /livez HTTP/1.1\r\nhost: souk\r\n\r\n"[..], b""] {
        let mut stream = TcpStream::connect(address(&server)).await.unwrap();
        stream.write_all(said).await.unwrap();
        let mut answer = Vec::new();
        let _: std::io::Result<usize> = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    }
    // Whoever does not know the authority does not believe the server.
    assert!(connect(&server, trusting(&Authority::new(), None), &[]).await.is_err());
    // The command line asks by it too.
    let list = ["subscriptions", "list", "--url", &server.url()];
    let known = authority.write(folder.path(), "authority.pem");
    let told = server.command(&list).with("SSL_CERT_FILE", known.display()).run();
    assert_eq!(told.code, 0, "{}", told.errors);
    assert!(told.output.contains("payment-gateway"), "{}", told.output);
    server.finish().await;
}

#[tokio::test]
async fn with_an_authority_for_clients_nobody_comes_in_without_its_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, clients, strange) = (Authority::new(), Authority::new(), Authority::new());
    let good = clients.certify("worker.example");
    let with = |own| trusting(&authority, own);
    let server = secured(&authority, with(Some(&good)), folder.path())
        .with("TLS_CLIENT_CA_FILE", clients.write(folder.path(), "clients.pem").display())
        .start()
        .await;
    server.register("Ann").await.expect(201);
    let unknown = strange.certify("worker.example");
    let asked = async |own| match connect(&server, with(own), &[]).await {
        // With TLS 1.3 the refusal may come after the client thinks that it is connected.
        Ok(stream) => answered(stream).await,
        Err(_) => None,
    };
    assert!(asked(Some(&good)).await.unwrap().starts_with("HTTP/1.1 200"));
    assert_eq!(asked(None).await, None);
    assert_eq!(asked(Some(&unknown)).await, None);
    // Commands show theirs.
    let known = authority.write(folder.path(), "authority.pem");
    let url = server.url();
    let command = |more: &[&str]| {
        let list = [&["subscriptions", "list", "--url", &url][..], more].concat();
        server.command(&list).with("SSL_CERT_FILE", known.display())
    };
    let certificate = write_pem(folder.path(), "worker.pem", &good.cert);
    let key = write_key(folder.path(), "worker-key.pem", &good.signing_key);
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    let refused = command(&[]).run();
    assert_eq!(refused.code, 1, "{}", refused.output);
    let shown = command(&["--client-cert", &certificate, "--client-key", &key]).run();
    assert_eq!(shown.code, 0, "{}", shown.errors);
    assert!(shown.output.contains("payment-gateway"), "{}", shown.output);
    let named = command(&[]).with("SOUK_CLIENT_CERT_FILE", &certificate);
    let named = named.with("SOUK_CLIENT_KEY_FILE", &key).run();
    assert_eq!(named.code, 0, "{}", named.errors);
    for (files, says) in [
        (vec!["--client-cert", &certificate], "--client-key"),
        (vec!["--client-cert", &certificate, "--client-key", &certificate], "--client-key names"),
        (vec!["--client-cert", "/nowhere", "--client-key", &key], "--client-cert cannot be read"),
    ] {
        let wrong = command(&files).run();
        assert_ne!(wrong.code, 0, "{}", wrong.output);
        assert!(wrong.errors.contains(says), "{says}: {}", wrong.errors);
    }
    // A certificate alone is nobody: it opens the door, and tokens say who comes.
    server.visitor().post("/api/v1/orders", &wish("none", 1, "sandbox")).await.expect(401);
    server.finish().await;
}

#[tokio::test]
async fn files_that_are_no_good_end_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let key = write_key(folder.path(), "key.pem", &authority.certify(HOST).signing_key);
    let certificate = authority.write(folder.path(), "authority.pem");
    let missing = folder.path().join("missing.pem");
    let names = ["TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CLIENT_CA_FILE"];
    for (files, wrong) in [
        ([Some(&certificate), None, None], 1),
        ([None, Some(&key), None], 0),
        ([None, None, Some(&certificate)], 0),
        ([Some(&missing), Some(&key), None], 0),
        ([Some(&certificate), Some(&certificate), None], 1),
        // Of another certificate.
        ([Some(&certificate), Some(&key), None], 1),
    ] {
        let mut command = Command::new(&["serve"]).with("DATA_DIR", folder.path().display());
        for (name, file) in names.iter().zip(files) {
            if let Some(file) = file {
                command = command.with(name, file.display());
            }
        }
        let ended = command.run();
        assert_eq!(ended.code, 78, "{}", ended.errors);
        assert!(ended.errors.starts_with(&format!("{}: ", names[wrong])), "{}", ended.errors);
        assert_eq!(ended.errors.lines().count(), 1, "{}", ended.errors);
    }
}
