//! Whom the client trusts over TLS, and who it says it is.

use std::sync::Arc;

use inferwire::v1::{ListModelsRequest, ListModelsResponse};
use inferwire::{Client, Code, Error, Options, Tls};
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::scripted::{Server, Step};
use crate::within;

/// An authority that signs certificates of servers and of clients.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    fn sign(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        (certificate, key)
    }

    /// Starts a server with a certificate of its own for `name`; with mutual TLS it asks for one of the same authority.
    async fn serve(&self, name: &str, is_mutual: bool) -> Server {
        let (certificate, key) = self.sign(name);
        let provider = Arc::new(default_provider());
        let config =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
        let config = if is_mutual {
            let mut roots = RootCertStore::empty();
            roots.add(self.0.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
            config.with_client_cert_verifier(verifier)
        } else {
            config.with_no_client_auth()
        };
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = config.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let models = vec![Step::Message(ListModelsResponse::default().encode_to_vec().into()), Step::Ok];
        Server::start_with(vec![models], Some(TlsAcceptor::from(Arc::new(config)))).await
    }
}

async fn ask(server: &Server, options: Options) -> Result<ListModelsResponse, Error> {
    let client = Client::connect(&server.address, options.retry(false))?;
    within(client.list_models(ListModelsRequest {})).await
}

/// A server is trusted when its authority is, under the name it was called by or the one that was said.
#[tokio::test]
async fn trusts_a_given_authority() {
    let authority = Authority::new();
    let server = authority.serve("127.0.0.1", false).await;
    ask(&server, Options::new().tls(Tls::new().ca(authority.pem()))).await.unwrap();
    let server = authority.serve("inferwire.example", false).await;
    ask(&server, Options::new().tls(Tls::new().ca(authority.pem()).server_name("inferwire.example"))).await.unwrap();
    assert_eq!(1, server.asked().len());
}

/// A server of another authority or of another name is not called, and neither is one that speaks no TLS.
#[tokio::test]
async fn refuses_whom_it_does_not_know() {
    let authority = Authority::new();
    let trusting = || Options::new().tls(Tls::new().ca(authority.pem()));
    let stranger = Authority::new().serve("127.0.0.1", false).await;
    let other_name = authority.serve("inferwire.example", false).await;
    for server in [&stranger, &other_name] {
        let error = ask(server, trusting().token("secret")).await.unwrap_err();
        assert_eq!(Code::Unavailable, error.code());
        assert!(error.message().contains("certificate"), "{error}");
        assert!(server.asked().is_empty());
    }
    let known = authority.serve("127.0.0.1", false).await;
    assert_eq!(Code::Unavailable, ask(&known, Options::new().plain_text()).await.unwrap_err().code());
}

/// With mutual TLS the client shows a certificate; without one it is not let in.
#[tokio::test]
async fn shows_its_own_certificate() {
    let authority = Authority::new();
    let server = authority.serve("127.0.0.1", true).await;
    let (certificate, key) = authority.sign("me.example");
    let tls = || Tls::new().ca(authority.pem());
    ask(&server, Options::new().tls(tls().identity(certificate.pem(), key.serialize_pem()))).await.unwrap();
    assert_eq!(Code::Unavailable, ask(&server, Options::new().tls(tls())).await.unwrap_err().code());
}

/// A certificate or key that cannot be read is told at once.
#[tokio::test]
async fn tells_what_cannot_be_read() {
    let tls = Tls::new().ca(Authority::new().pem()).identity("no certificate", "no key");
    let error = Client::connect("127.0.0.1:1", Options::new().tls(tls)).unwrap_err();
    assert_eq!(Code::InvalidArgument, error.code());
}
